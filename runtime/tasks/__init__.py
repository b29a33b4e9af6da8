"""The tasks: each file turns records into rows of tensors and the model's outputs into answers.

A new task is a new file here and an entry in the compiler's task table. The file is named after the task and defines
`ABOUT` (an `About`), `Options` (a dataclass of `option` fields) and ``load(manifest, read) -> Task``.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from cpuc.runtime.errors import BundleError, InputError
from cpuc.runtime.manifest import Manifest


@dataclass(frozen=True)
class Row:
    """One row of a batch before padding: each input's array, and what decoding needs to know of the row.

    `sizes` holds the row's own size along each free axis but the batch, the first of which is what rows are ordered by.
    """

    inputs: dict[str, np.ndarray]
    sizes: dict[str, int]
    context: Any = None

    @property
    def length(self) -> int:
        return next(iter(self.sizes.values()), 1)


@dataclass(frozen=True)
class About:
    """What ``cpuc tasks`` prints: `takes` and `gives` in words, and an example of each that is real JSON."""

    takes: str
    gives: str
    example: Any
    answer: Any


class Task(Protocol):
    """What the model runner needs of a task. `options` is an instance of the task's own `Options`.

    `batch_budget` bounds the sum of lengths in a batch, padding included, `chunk_records` how many records are held
    encoded at a time; `padding_side` is "left" or "right"; `outputs` are those of the model that decoding reads.
    """

    batch_budget: int
    chunk_records: int
    padding_side: str
    outputs: tuple[str, ...]

    def warm_up(self) -> Row:
        """A row that the model can run, to prepare a loaded artifact with."""

    def options(self, given: Mapping[str, Any]) -> Any:
        """Validated options from keyword arguments. Raises InputError for one that is unknown or out of range."""

    def parse(self, value: Any, where: str) -> Any:
        """A typed record from a JSON value; `where` names the record in errors."""

    def encode(self, record: Any, options: Any) -> list[Row]:
        """The rows that answer this record: one, or several for a text of several windows."""

    def decode(self, record: Any, rows: list[Row], outputs: list[dict[str, np.ndarray]], options: Any) -> Any:
        """The answer, from the outputs of the record's rows (padding cut off). It has ``to_json``."""


def names() -> list[str]:
    """The tasks that this runtime has: one for each file of this folder."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def task_module(name: str) -> ModuleType:
    """The file of a task. Raises BundleError if there is none of that name."""
    if name not in names():
        raise BundleError(f"the bundle's task {name!r} is unknown to this cpuc: update cpuc")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def load_task(manifest: Manifest, read: Callable[[str], bytes]) -> Task:
    """The task that `manifest` names; `read` gives the bundle's extra files by name.

    Raises BundleError if this version does not know the task, or the manifest lacks what the task needs.
    """
    task: Task = task_module(manifest.task).load(manifest, read)
    if not set(task.outputs) <= {spec.name for spec in manifest.outputs}:
        raise BundleError(f"manifest.json: the outputs are not those of {manifest.task.replace('-', ' ')}")
    return task


def option(default: Any, description: str, *, minimum: int | None = None, choices: tuple[str, ...] = ()) -> Any:
    """A field of a task's `Options`: its default, its help on the command line, and what `build_options` checks."""
    return dataclasses.field(default=default, metadata={"help": description, "minimum": minimum, "choices": choices})


def build_options(kind: type, given: Mapping[str, Any], task: str) -> Any:
    """`kind(**given)`. Raises InputError for an option that the task does not have, of a wrong type or out of range.

    None stands for an option that was not given.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, value in given.items():
        if name not in fields:
            raise InputError(f"{task} has no option {name!r}; it has {', '.join(fields) or 'none'}")
        if value is not None:
            _check_option(name, value, str(fields[name].type), fields[name].metadata)
    return kind(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class ListedOption:
    """An option of one or several tasks, for a command line; `help` says whose it is."""

    name: str
    kind: type
    choices: tuple[str, ...]
    help: str


def list_options(wanted: Callable[[str, str], bool]) -> list[ListedOption]:
    """The options of every task, each once, of which `wanted` is true, given the task's and the option's name."""
    found: dict[str, tuple[dataclasses.Field[Any], list[str]]] = {}
    for task in names():
        for field in dataclasses.fields(task_module(task).Options):
            if wanted(task, field.name):
                found.setdefault(field.name, (field, []))[1].append(task)
    options = []
    for name, (field, users) in sorted(found.items()):
        kind = {"int": int, "str": str, "bool": bool}[str(field.type).split(" | ")[0]]
        who = ", ".join(users) if len(users) < 4 else f"{len(users)} tasks"
        shown = kind is not bool and field.default is not None and len(users) == 1
        default = f"  [default: {field.default}]" if shown else ""
        options.append(ListedOption(name, kind, field.metadata["choices"], f"{field.metadata['help']}{default}  ({who})"))
    return options


class BaseTask:
    """What every task's class is built on: its name, and options that their dataclass describes."""

    name: str
    options_type: type
    outputs: tuple[str, ...] = ("logits",)

    def options(self, given: Mapping[str, Any]) -> Any:
        """Validated options from keyword arguments."""
        return build_options(self.options_type, given, self.name)


def _check_option(name: str, value: Any, kind: str, facts: Mapping[str, Any]) -> None:
    expected = kind.split(" | ")[0]
    if expected == "int" and (type(value) is not int or value < (facts["minimum"] or 0)):
        raise InputError(f"{name} is {value!r}, must be a whole number of at least {facts['minimum'] or 0}")
    if expected == "bool" and type(value) is not bool:
        raise InputError(f"{name} is {value!r}, must be true or false")
    if expected == "str" and not isinstance(value, str):
        raise InputError(f"{name} is {value!r}, must be a string")
    if facts["choices"] and value not in facts["choices"]:
        raise InputError(f"{name} is {value!r}, must be one of {', '.join(facts['choices'])}")
