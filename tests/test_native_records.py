"""The native program reads and writes JSON as the Python runtime does."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_tokenizer import built

import cpuc
from cpuc.runtime.records import Form, format_answers, parse_records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reader() -> Path:
    """The program that reads records, under sanitizers."""
    return built("native-sanitized", sanitize=True) / "cpuc-records"


class Dumped:
    """A JSON value that has `to_json`, as answers have."""

    def __init__(self, value: Any) -> None:
        self.to_json = lambda: value


def python_reads(source: str, data: bytes) -> dict[str, Any]:
    try:
        records = parse_records(data, source)
    except cpuc.InputError as error:
        return {"error": str(error)}
    formatted = format_answers(map(Dumped, records.values), records.form) if records.values else ""
    return {"form": records.form.value, "names": records.names, "values": records.values, "formatted": formatted}


def native_reads(reader: Path, cases: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    lines = "".join(f"{source}\t{data.hex()}\n" for source, data in cases)
    done = subprocess.run([reader], input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.split("\n")[:-1]]


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether both read the same, or refuse it at the same line; words about JSON are the libraries' own."""
    if "error" in ours and "error" in theirs:
        found = (re.sub(r"(invalid JSON at line \d+).*", r"\1", each["error"], flags=re.DOTALL) for each in (ours, theirs))
        return next(found) == next(found)
    if "surrogate" in ours.get("error", ""):  # which Python reads, and refuses in every field that it uses
        return any("\ud800" <= character <= "\udfff" for character in theirs["formatted"])
    return json.dumps(ours) == json.dumps(theirs)  # which tells 1 from 1.0 and keeps the order of fields


SQUAD = {"question": "q", "context": "c"}
READ = [
    '{"question": "Who?", "context": "Ada."}',
    '\ufeff[{"id": 1.0, "a": 1e5}, "x", 3, -0, -0.0, 1e-7, 123456789012345678, 0.1, 1e300, 18446744073709551615]',
    '{"b": 1, "a": 2, "b": 3}',
    '{"a": 1}\n{"a": 2}\n',
    '{"a": 1}\n\n  \u00a0\x1f\n{"a": 2',
    '{"a": 1}\r\n{"a": 2}\r\n',
    "[1]\n[2]",
    '{"a": 1} {"b": 2}',
    '"\\u00e9\\ud83e\\udd50 \\u2028 \\u001f \\/ \x7f"',
    '{"a": "x\u2028y"}\n{"a": "\u0085"}',
    '{"a": [[], {}, [1, [2]], {"b": {}}]}',
    "",
    " \n\t\u00a0",
    "{",
    '{"a": }',
    '{\n "a": 1,\n "b": tru\n}',
    "[1, 2,]",
    "'a'",
    "NaN",
    "[1, -Infinity]",
    "1e999",
    '"a\nb"',
    "[01]",
    "[" * 100_000,
    '{"a":' * 3000,
    "\u00a0{}",
    "10\0",
    "[1]\0[2]",
    '{"a": 1}\0',
    json.dumps(
        {"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "id": 5, "more": 1}, {"question": "r"}]}]}]}
    ),
    '{"data": []}',
    '{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q"}]}, {"qas": [{"question": "r"}]}]}]}',
    '{"data": [{}]}',
    '{"data": [{"paragraphs": [{"context": "c"}]}]}',
    '{"data": 3}',
    '{"data": [3]}',
    json.dumps({"data": 1, **SQUAD}),
    '{"text": "good", "data": []}',
    ' {"a": 1} \r\n\n',
    '\n{"a":\n1}',
]


def test_records_are_read_alike(reader: Path) -> None:
    cases = [("in.json", text.encode()) for text in READ] + [("in.jsonl", text.encode()) for text in READ]
    cases += [
        ("in.json", data)
        for data in (b"\xff", b'{"a": "\xc3"}', b'{"a": "\xed\xa0\x80"}', b'{"a": "\xc0\x80"}', b"\xef\xbb\xbf")
    ]
    found = native_reads(reader, cases)
    expected = [python_reads(*case) for case in cases]
    assert [(case, a, b) for case, a, b in zip(cases, found, expected, strict=True) if not same(a, b)] == []
    assert {each.get("form") for each in expected} == {None, *(form.value for form in Form)}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VALUES, min_size=20, max_size=40), st.integers(0, 1 << 30))
def test_any_json_is_read_and_written_alike(reader: Path, values: list[Any], seed: int) -> None:
    texts = [json.dumps(value, ensure_ascii=bool(seed >> i % 30 & 1)).encode() for i, value in enumerate(values)]
    # Cut, and with a byte changed.
    texts += [text[: seed % (len(text) + 1)] for text in texts]
    texts += [text[: seed % len(text)] + bytes([seed & 255]) + text[seed % len(text) + 1 :] for text in texts if text]
    cases = [(f"in.json{'l' * (i % 2)}", text) for i, text in enumerate(texts)]
    found = native_reads(reader, cases)
    assert [(case, ours) for case, ours in zip(cases, found, strict=True) if not same(ours, python_reads(*case))] == []


def test_objects_with_many_fields_are_read(reader: Path) -> None:
    # Looked up one by one, they take a minute.
    case = (
        "in.json",
        json.dumps({f"field {i}": i for i in range(100_000)}).encode(),
    )
    assert same(native_reads(reader, [case])[0], python_reads(*case))


def test_numbers_that_no_64_bits_hold_are_refused(reader: Path) -> None:
    for text in (b'{"id": 18446744073709551616}', b'{"id": -9223372036854775809}'):
        (found,) = native_reads(reader, [("in.json", text)])
        assert found == {"error": "in.json: a whole number has more than 64 bits: write it as a string"}
