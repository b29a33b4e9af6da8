"""What the command line shows while it works: on a terminal only, on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import click


def reporter() -> Callable[[str], None]:
    """Prints the name of each stage on a terminal, and nothing elsewhere. Plain lines go well with download bars."""
    if not sys.stderr.isatty():
        return lambda _: None
    return lambda stage: click.echo(click.style(f"{stage} …", dim=True), err=True)


@contextlib.contextmanager
def bar(total: int | None) -> Iterator[Callable[..., None]]:
    """A progress bar over records, on a terminal and for more than a handful; nothing elsewhere.

    It appears with the first call of what this gives: how many records were answered since the last call, and how many
    there are, if `total` is not known yet.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal or (total is not None and total < 2):
        yield lambda *_: None
        return
    progress = Progress(console=console, transient=True)
    task = progress.add_task("answering", total=total)

    def advance(count: int, known: int | None = total) -> None:
        progress.start()
        progress.update(task, advance=count, total=known)

    try:
        yield advance
    finally:
        progress.stop()
