"""Reading what users give to ``cpuc run`` and writing answers back in the same form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cpuc.runtime.errors import InputError

# What records of any task begin with: an object with one of these is not SQuAD's, whatever else it has.
_FIELDS = ("question", "context", "text", "image", "audio")
# What a question of SQuAD may have besides its text.
SQUAD_FIELDS = ("id", "answers", "is_impossible")


class Form(Enum):
    """The shape of the input, which the output repeats. A record that stands on one line is a line."""

    RECORD = "record"
    LIST = "list"
    LINES = "lines"


@dataclass(frozen=True)
class Records:
    """JSON values with the name that errors call each by ("record 3", "line 7")."""

    form: Form
    values: list[Any]
    names: list[str]


def parse_records(data: bytes, source: str) -> Records:
    """Read one JSON object, a list, SQuAD's own JSON, or JSON Lines (``.jsonl``, or told by the second line).

    Args:
        data: UTF-8 text, a byte order mark is allowed.
        source: the file's name, for errors and for its ending.

    Raises:
        InputError: the data is not UTF-8 or not JSON; the message gives line and column.
    """
    text = decode_text(data, source)
    if source.endswith((".jsonl", ".ndjson")):
        return _parse_lines(text, source)
    if not text.strip():
        raise InputError(f"{source}: is empty; expected JSON")
    try:
        value = loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and _is_json(text.strip().split("\n")[0]):
            return _parse_lines(text, source)
        raise InputError(f"{source}: invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise InputError(f"{source}: the JSON is nested too deeply") from None
    except ValueError:  # int() of thousands of digits
        raise InputError(f"{source}: a number has too many digits") from None
    if isinstance(value, dict) and "data" in value and not any(field in value for field in _FIELDS):
        values = _flatten_squad(value, source)
        return Records(Form.LIST, values, [f"record {i + 1}" for i in range(len(values))])
    if isinstance(value, list):
        return Records(Form.LIST, value, [f"record {i + 1}" for i in range(len(value))])
    return Records(Form.RECORD if "\n" in text.strip(" \t\r\n") else Form.LINES, [value], ["the record"])


def decode_text(data: bytes, source: str) -> str:
    """The text of `data`, which may begin with a byte order mark. Raises InputError if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 at byte {error.start}: save the file as UTF-8") from None


def _parse_lines(text: str, source: str) -> Records:
    values, names = [], []
    # str.splitlines also splits at characters that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values.append(loads(line))
        except json.JSONDecodeError as error:
            raise InputError(f"{source}: invalid JSON at line {number}, column {error.colno}: {error.msg}") from None
        except RecursionError:
            raise InputError(f"{source}: the JSON at line {number} is nested too deeply") from None
        except ValueError:
            raise InputError(f"{source}: a number at line {number} has too many digits") from None
        names.append(f"line {number}")
    return Records(Form.LINES, values, names)


def loads(text: str) -> Any:
    """What JSON says; numbers that are not finite are no JSON. Raises what `json.loads` raises."""

    def refuse(constant: str) -> Any:
        raise json.JSONDecodeError(f"{constant} is not JSON", text, text.find(constant))

    def finite(number: str) -> float:
        value = float(number)
        return value if math.isfinite(value) else refuse(number)

    return json.loads(text, parse_constant=refuse, parse_float=finite)


def _is_json(text: str) -> bool:
    try:
        loads(text)
    except ValueError:
        return False
    return True


def _flatten_squad(value: dict[str, Any], source: str) -> list[Any]:
    """Questions of SQuAD 1.1 or 2.0 (Rajpurkar et al., 2016 and 2018) as records with their ids and labels."""
    records = []
    place = "data"
    try:
        for i, article in enumerate(value["data"]):
            for j, paragraph in enumerate(article["paragraphs"]):
                place = f"data[{i}].paragraphs[{j}]"
                for question in paragraph["qas"]:
                    record = {"question": question["question"], "context": paragraph["context"]}
                    records.append(record | {name: question[name] for name in SQUAD_FIELDS if name in question})
    except KeyError as error:
        raise InputError(f"{source}: {place}: field {error.args[0]!r} is missing (read as SQuAD's JSON)") from None
    except TypeError:
        raise InputError(f"{source}: {place}: not in the form of SQuAD's JSON") from None
    return records


def reject_surrogates(text: str, where: str) -> None:
    """Raise InputError if `text` holds half a surrogate pair, which JSON's escapes can spell but UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} has half a surrogate pair at character {error.start}") from None


def format_answers(answers: Iterable[Any], form: Form) -> str:
    """The JSON text of `answers` (each has ``to_json``) in the form of the input, ending in a newline.

    JSON has no numbers that are not finite: they are null.
    """
    values = [answer.to_json() for answer in answers]
    if form is Form.LINES:
        return "".join(_dumps(value) + "\n" for value in values)
    return _dumps(values if form is Form.LIST else values[0], indent=2) + "\n"


def _dumps(value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
