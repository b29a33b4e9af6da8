"""Options of commands that come from elsewhere: those of the tasks, as each task describes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


class TaskOptions(click.Command):
    """A command that has the options of every task besides its own, each once, as the tasks' `Options` describe them."""

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        if not self._added:
            self._added = True
            self.params += _task_options(self.has_option)
        return super().get_params(context)

    _added = False

    @staticmethod
    def has_option(task: str, option: str) -> bool:  # noqa: ARG004
        """Whether the command has this option of this task."""
        return True


class EvaluationOptions(TaskOptions):
    """The same for the options that an evaluation leaves to the user."""

    @staticmethod
    def has_option(task: str, option: str) -> bool:
        from cpuc.compiler.evaluation import EVALUATIONS

        return task in EVALUATIONS and option in EVALUATIONS[task].options


def _task_options(wanted: Callable[[str, str], bool]) -> list[click.Parameter]:
    from cpuc.runtime import tasks

    options: list[click.Parameter] = []
    for each in tasks.list_options(wanted):
        given: dict[str, Any] = {"is_flag": True} if each.kind is bool else {"type": each.kind}
        if each.choices:
            given["type"] = click.Choice(each.choices)
        options.append(click.Option([f"--{each.name.replace('_', '-')}"], default=None, help=each.help, **given))
    return options
