"""What the command line is made of: errors as exit codes, the tasks' options, progress. Only ``cpuc.cli`` uses it.

It is the one part of the runtime that needs click.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import click

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


class Group(click.Group):
    """Turns the errors that cpuc raises on purpose into one line on standard error and an exit code."""

    def invoke(self, context: click.Context) -> Any:
        from cpuc.runtime.errors import CpucError

        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort, SystemExit):
            raise
        except BrokenPipeError:
            # The reader of our output went away, as `head` does; Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(EXIT_FAILED) from None
        except KeyboardInterrupt:
            self._fail(context, "interrupted", EXIT_INTERRUPTED)
        except CpucError as error:
            self._fail(context, str(error), error.exit_code)
        except MemoryError:
            self._fail(context, "out of memory", EXIT_FAILED)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            # torch says first where in the graph it was, and last what it was.
            what = lines[-1 if lines[0].endswith("failed in the TorchScript interpreter.") else 0]
            self._fail(context, f"unexpected {type(error).__name__}: {what} (cpuc --debug … shows where)", EXIT_FAILED)

    @staticmethod
    def _fail(context: click.Context, message: str, code: int) -> NoReturn:
        if context.params.get("debug"):
            raise  # from the except clause that called this
        from cpuc.runtime.errors import printable

        click.echo(f"cpuc: {printable(message)}", err=True)
        raise SystemExit(code)


class TaskOptions(click.Command):
    """A command that has, besides its own, the tasks' options that are `wanted`, each once, as the tasks describe them."""

    def __init__(self, *arguments: Any, wanted: Callable[[str, str], bool] = lambda *_: True, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._wanted: Callable[[str, str], bool] | None = wanted

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        if self._wanted is not None:
            from cpuc.runtime import tasks

            for each in tasks.list_options(self._wanted):
                kind = click.Choice(each.choices) if each.choices else each.kind
                given: dict[str, Any] = {"is_flag": True} if each.kind is bool else {"type": kind}
                self.params.append(click.Option([f"--{each.name.replace('_', '-')}"], default=None, help=each.help, **given))
            self._wanted = None
        return super().get_params(context)


def show(what: Any, *, alone: bool = True) -> None:
    """Lines of text, or anything else as JSON, on standard output, which may be closed if a command gives more than that alone.

    Raises CpucError if it cannot be written.
    """
    from cpuc.runtime.errors import CpucError

    text = "\n".join(what) if isinstance(what, list) else json.dumps(what, indent=2, ensure_ascii=False)
    if sys.stdout is None and alone:
        raise CpucError("standard output is closed")
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CpucError(f"standard output cannot be written: {error.strerror}") from None


def warn(text: str) -> None:
    """One line on standard error, under the program's name."""
    click.echo(f"cpuc: {text}", err=True)


def on_terminal() -> bool:
    """Whether a person may be watching standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def reporter() -> Callable[[str], None]:
    """Prints the name of each stage on a terminal, and nothing elsewhere. Plain lines go well with download bars."""
    return lambda stage: click.echo(click.style(f"{stage} …", dim=True), err=True) if on_terminal() else None


@contextlib.contextmanager
def bar(total: int | None, label: str = "answering") -> Iterator[Callable[..., None]]:
    """A progress bar over records, on a terminal and for more than one. What this gives is called with how many were answered
    since the last call, and how many there are, if `total` is not known yet."""
    with contextlib.ExitStack() as stack:
        shown: list[Any] = []

        def advance(count: int, known: int | None = total) -> None:
            if not on_terminal() or (known or 0) < 2:
                return
            if not shown:
                shown.append(stack.enter_context(click.progressbar(length=known, label=label, file=sys.stderr)))
            if count and not shown[0].finished:
                shown[0].update(count)
                if shown[0].finished:
                    stack.close()  # what is printed next begins a line

        yield advance
