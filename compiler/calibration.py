"""The calibration sample: inputs by which static int8 chooses its scales, and every int8 measures what it loses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpuc.compiler.precision import PRECISIONS
from cpuc.compiler.tasks import TASKS
from cpuc.runtime.errors import InputError
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.model import pad_rows
from cpuc.runtime.records import Records, parse_records
from cpuc.runtime.tasks import Row, Task

if TYPE_CHECKING:
    import numpy as np

# Fewer records than this tell too little of what the model will see.
LEAST = 8
# Of more than this, so many are taken, evenly: scales settle long before.
_MOST = 128


@dataclass(frozen=True)
class Calibration:
    """Inputs of one row each, without padding. `sample` is "built-in" or "given", `records` how many it had."""

    batches: Sequence[Mapping[str, np.ndarray]]
    sample: str
    records: int


def read_calibration(path: str | os.PathLike[str] | None, precision: str) -> Records | None:
    """The records of a calibration file, not yet checked against the task.

    Raises InputError if it cannot be read, is no JSON or too short, or if `precision` does not calibrate.
    """
    if path is None:
        return None
    scheme = PRECISIONS[precision].int8
    if scheme is None or scheme.dynamic:
        raise InputError(f"precision {precision} needs no calibration: leave out --calibrate")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    records = parse_records(data, str(path))
    if len(records.values) < LEAST:
        raise InputError(f"{path}: {len(records.values)} records are too few to calibrate with: give at least {LEAST}")
    return records


@dataclass(frozen=True)
class Chosen:
    """A record of the sample, its name in errors, and the rows that the task makes of it."""

    value: Any
    name: str
    rows: list[Row]


def choose_records(task: Task, manifest: Manifest, given: Records | None) -> list[Chosen]:
    """The records that were given, or the task's built-in ones, evenly chosen if there are many.

    Texts that are longer than the model takes are cut where the task can do that; built-in ones that it cannot cut are left
    out. Raises InputError naming the given record that is not one of
    the task's, or that the model cannot take.
    """
    entry = TASKS[manifest.task]
    values = given.values if given else (entry.calibration or entry.records)(manifest.preprocessing)
    names = given.names if given else [f"built-in record {i + 1}" for i in range(len(values))]
    # All are checked, some are taken.
    parsed = [task.parse(value, name) for value, name in zip(values, names, strict=True)]
    count = min(len(values), _MOST)
    options = task.options(cutting(task))
    chosen = []
    for i in (position * len(values) // count for position in range(count)):
        try:
            chosen.append(Chosen(values[i], names[i], task.encode(parsed[i], options)))
        except InputError:
            if given is not None:
                raise
    return chosen


def cutting(task: Task) -> dict[str, Any]:
    """The option to cut texts that are too long, of a task that has it."""
    return {"truncate": True} if hasattr(task.options({}), "truncate") else {}


def make_calibration(task: Task, manifest: Manifest, given: Records | None) -> Calibration:
    """The inputs that `choose_records` leads to."""
    chosen = choose_records(task, manifest, given)
    batches = [pad_rows([row], manifest.inputs, task.padding_side) for each in chosen for row in each.rows]
    return Calibration(batches, "given" if given else "built-in", len(chosen))
