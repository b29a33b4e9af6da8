"""Labelled data as users have it, in files and folders, and what evaluation makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpuc.runtime.errors import InputError
from cpuc.runtime.records import parse_records
from cpuc.runtime.text import string_field


@dataclass(frozen=True)
class Dataset:
    """Records for the model, and what the scores compare its answers with.

    Attributes:
        source: the file or folder.
        records: in the form that the runtime's task takes.
        names: what errors call each record.
        references: what the task's scores take, such as one label for each record; empty if the data has no labels.
        labels: the model's labels, in the order of its scores; empty for a task without labels.
        options: options of the task that the data asks for, where the user says nothing else.
    """

    source: str
    records: list[Any]
    names: list[str]
    references: list[Any]
    labels: list[str]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One sample as the file has it; `where` names it in errors, with the file."""

    where: str
    fields: dict[str, Any]


class FormError(InputError):
    """The data does not have the form that the task takes; `read_dataset` adds what that is."""


def read_bytes(path: Path) -> bytes:
    """The file's content. Raises InputError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise FormError(f"{path}: is a folder") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def read_lines(path: Path, limit: int | None) -> list[Line]:
    """The first `limit` samples of a JSON list, JSON Lines, or SQuAD's own JSON; None takes all."""
    records = parse_records(read_bytes(path), str(path))
    if not records.values:
        raise InputError(f"{path}: holds no records")
    lines = []
    for value, name in list(zip(records.values, records.names, strict=True))[:limit]:
        if not isinstance(value, dict):
            raise FormError(f"{path}: {name}: expected an object, found {type(value).__name__}")
        lines.append(Line(f"{path}: {name}", value))
    return lines


def find_field(line: Line, *names: str) -> str:
    """Which of the fields `names` the sample has. Raises FormError if it has none of them."""
    for name in names:
        if line.fields.get(name) is not None:
            return name
    raise FormError(f"{line.where}: field {' or '.join(map(repr, names))} is missing")


def read_text(line: Line, *names: str) -> str:
    """The text in one of the fields `names`."""
    return string_field(line.fields, find_field(line, *names), line.where)


def read_label(line: Line, labels: Sequence[str]) -> int:
    """The position of the sample's ``label`` among the model's."""
    return label_position(line.fields[find_field(line, "label")], labels, line.where)


def read_label_set(line: Line, labels: Sequence[str]) -> list[int]:
    """Of each of the model's labels 1 if the sample has it, else 0; ``label`` or ``labels`` is a list, which may be empty."""
    given = line.fields[find_field(line, "labels", "label")]
    positions = [label_position(value, labels, line.where) for value in (given if isinstance(given, list) else [given])]
    if len(set(positions)) < len(positions):
        raise InputError(
            f"{line.where}: a label occurs twice: name those that the sample has, a vector of zeros and ones will not do"
        )
    return [int(i in positions) for i in range(len(labels))]


def read_number(line: Line, labels: Sequence[str] = ()) -> float:  # noqa: ARG001 - what every reader of references is given
    """The number in ``score`` or ``label``."""
    name = find_field(line, "score", "label")
    value = line.fields[name]
    if type(value) not in (int, float):
        raise InputError(f"{line.where}: field {name!r} must be a number, found {value!r}")
    return float(value)


def label_position(value: Any, labels: Sequence[str], where: str) -> int:
    """The position of a label that is given by name or by position. Raises InputError if the model has none such."""
    if isinstance(value, str) and value in labels:
        return labels.index(value)
    position = int(value) if isinstance(value, str) and value.isdecimal() else value
    if type(position) is int and 0 <= position < len(labels):
        return position
    raise InputError(f"{where}: label {value!r} is not one of the model's: {listed(labels)}")


def listed(labels: Sequence[str]) -> str:
    """Labels in one line, not more than a person reads."""
    more = f" and {len(labels) - 20} more" if len(labels) > 20 else ""
    return ", ".join(labels[:20]) + more


def check_numbers(dataset: Dataset) -> None:
    """Raise InputError unless a correlation with the references exists."""
    values = {reference[-1] if isinstance(reference, tuple) else reference for reference in dataset.references}
    if dataset.references and len(values) < 2:
        count = len(dataset.references)
        raise InputError(
            f"{dataset.source}: a correlation needs at least 2 samples with different scores, found {count} samples"
            + (", all of one score" if count > 1 else "")
        )
