"""The tasks: each file turns records into rows of tensors and the model's outputs into answers.

A new task is a new file here, a line in `TASKS`, and an entry in the compiler's task table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cpuc.runtime.errors import BundleError, InputError
from cpuc.runtime.manifest import Manifest

# name → module below this package that defines `load(manifest, read) -> Task`
TASKS = {
    "question-answering": "question_answering",
}


@dataclass(frozen=True)
class Row:
    """One row of a batch before padding: each input's values, 1-D, and what decoding needs to know of the row."""

    inputs: dict[str, np.ndarray]
    context: Any = None

    @property
    def length(self) -> int:
        return len(next(iter(self.inputs.values())))


class Task(Protocol):
    """What the model runner needs of a task. `options` is an instance of the task's own `Options`."""

    def options(self, given: Mapping[str, Any]) -> Any:
        """Validated options from keyword arguments. Raises InputError for one that is unknown or out of range."""

    def parse(self, value: Any, where: str) -> Any:
        """A typed record from a JSON value; `where` names the record in errors."""

    def encode(self, record: Any, options: Any) -> list[Row]:
        """The rows that answer this record: one, or several for a text of several windows."""

    def decode(self, record: Any, rows: list[Row], outputs: list[dict[str, np.ndarray]], options: Any) -> Any:
        """The answer, from the outputs of the record's rows (padding cut off)."""


def load_task(manifest: Manifest, read: Callable[[str], bytes]) -> Task:
    """The task that `manifest` names; `read` gives the bundle's extra files by name.

    Raises BundleError if this version does not know the task.
    """
    if manifest.task not in TASKS:
        raise BundleError(f"the bundle's task {manifest.task!r} is unknown to this cpuc: update cpuc")
    task: Task = importlib.import_module(f"{__name__}.{TASKS[manifest.task]}").load(manifest, read)
    return task


def build_options(kind: type, given: Mapping[str, Any], task: str) -> Any:
    """`kind(**given)`, with an InputError that names an option the task does not have."""
    for name in given:
        if name not in kind.__dataclass_fields__:  # type: ignore[attr-defined]
            known = ", ".join(kind.__dataclass_fields__)  # type: ignore[attr-defined]
            raise InputError(f"{task} has no option {name!r}; it has {known}")
    return kind(**given)
