"""Records in and answers out: the forms of JSON, what is no number in them, and standard streams that are not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from media_models import make_media_model
from test_images import claim_size

import cpuc
from cpuc.runtime import archive, engine
from cpuc.runtime.errors import CpucError
from cpuc.runtime.records import Form, format_answers, parse_records

RECORD = {"question": "Who wrote it?", "context": "Ada Lovelace wrote it in London."}
PROGRAM = Path(sys.executable).with_name("cpuc")


@pytest.mark.parametrize(
    ("data", "source", "form", "count"),
    [
        (json.dumps(RECORD), "in.json", Form.LINES, 1),
        (json.dumps(RECORD) + "\r\n\n", "standard input", Form.LINES, 1),
        (json.dumps(RECORD, indent=1), "in.json", Form.RECORD, 1),
        (json.dumps([RECORD]), "in.json", Form.LIST, 1),
        (json.dumps({**RECORD, "data": []}), "in.json", Form.LINES, 1),
        (json.dumps({"text": "good", "data": [{"paragraphs": []}]}), "in.json", Form.LINES, 1),
        ('{"data": []}', "in.json", Form.LIST, 0),
        ("", "in.jsonl", Form.LINES, 0),
        ("\n \n", "in.ndjson", Form.LINES, 0),
    ],
)
def test_the_form_is_that_of_the_input(data: str, source: str, form: Form, count: int) -> None:
    records = parse_records(data.encode(), source)
    assert (records.form, len(records.values)) == (form, count)


def test_lines_come_back_as_lines_however_many(cli: Run, tiny: Path, tmp_path: Path) -> None:
    for count in range(3):
        lines = "".join(json.dumps({**RECORD, "id": i}) + "\n" for i in range(count))
        (tmp_path / "in.jsonl").write_text(lines)
        done = [cli("run", tiny, "-i", tmp_path / "in.jsonl"), *([cli("run", tiny, "-i", "-", stdin=lines)] if count else [])]
        for each in done:
            assert (each.returncode, each.stderr) == (0, "")
            assert [json.loads(line)["id"] for line in each.stdout.splitlines()] == [*range(count)]


class Answer:
    """With a number that is none, as models give them whose weights are broken."""

    def to_json(self) -> dict[str, object]:
        return {"score": float("nan"), "scores": [1.5, float("-inf"), {"of": (float("inf"), 2)}], "text": "NaN"}


@pytest.mark.parametrize("form", Form)
def test_what_is_no_number_is_null(form: Form) -> None:
    written = json.loads(format_answers([Answer()], form))
    expected = {"score": None, "scores": [1.5, None, {"of": [None, 2]}], "text": "NaN"}
    assert written == ([expected] if form is Form.LIST else expected)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"allow_no_answer": True}])
def test_scores_that_are_no_numbers_are_an_error(
    options: dict[str, object], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cpuc.load(tiny)
    run = model._run
    monkeypatch.setattr(model, "_run", lambda inputs: {name: np.full_like(a, np.nan) for name, a in run(inputs).items()})
    with pytest.raises(CpucError, match="record 2: the model's scores are no numbers"):
        list(model.answers([RECORD], ["record 2"], options))


def test_a_result_that_cannot_be_written_is_an_error(tiny: Path) -> None:
    for redirection, message in ((">&-", "is closed"), (">/dev/full", "cannot be written: No space left on device")):
        line = f'"{PROGRAM}" inspect "{tiny}" --json {redirection}'
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, f"cpuc: standard output {message}\n")


def test_what_is_written_to_a_file_needs_no_standard_output(tiny: Path, tiny_model: Path, tmp_path: Path) -> None:
    for line in (f'run "{tiny}" -i - -o answer.json', f'compile "{tiny_model}" -o model.pt'):
        line = f"echo '{json.dumps(RECORD)}' | \"{PROGRAM}\" {line} >&-"
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"answer.json", "model.pt"}


def test_standard_input_that_cannot_be_read_is_an_error(tiny: Path, tmp_path: Path) -> None:
    line = f'"{PROGRAM}" run "{tiny}" -i - 0> "{tmp_path}/written"'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "cpuc: standard input cannot be read: Bad file descriptor\n")


def test_what_a_library_warns_of_is_not_printed(tmp_path: Path) -> None:
    bundle = tmp_path / "vit.pt"
    cpuc.compile(str(make_media_model(tmp_path / "vit", "vit", "image-classification")), bundle)
    record = json.dumps({"image": claim_size(12000, 12000)})  # Pillow warns of so many pixels
    done = subprocess.run([PROGRAM, "run", bundle, "-i", "-"], input=record, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("cpuc: the record: field 'image': ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_bundle_does_not_take_the_place_of_a_standard_stream(closed: int, tiny: Path) -> None:
    code = (
        f"import os; from pathlib import Path; from cpuc.runtime.archive import File; os.close({closed}); "
        f"os._exit(0 if File(Path({str(tiny)!r})).handle > 2 else 7)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_is_read_whole_where_its_path_is_not_known(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = archive.File(tiny)
    monkeypatch.setattr(Path, "exists", lambda _: False)  # as without /proc
    monkeypatch.setattr(archive, "_PIECE", 100_000)  # of 2 GiB, which one call of the system gives at most
    opened = archive.reopened(file.handle)
    assert not isinstance(opened, str)
    assert opened.read() == tiny.read_bytes()


def test_shapes_without_end_are_not_remembered(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_MOST_MET", 3)
    made = engine.Engine(cpuc.open_bundle(tiny))
    names = [spec.name for spec in made.manifest.inputs]
    for length in range(4, 12):
        inputs = {name: np.ones((1, length), np.int64) for name in names}
        first, again = made.run(inputs), made.run(inputs)
        assert all(np.array_equal(first[name], again[name]) for name in first)
        assert len(made._met) <= 3


def test_streams_are_warmed_up_from_several_threads(tiny: Path) -> None:
    code = f"""
import os, sys, threading, time, cpuc
from concurrent.futures import ThreadPoolExecutor
submit = ThreadPoolExecutor.submit
def slowly(*arguments):  # so that another thread comes between
    time.sleep(0.01)
    return submit(*arguments)
ThreadPoolExecutor.submit = slowly
model = cpuc.load({str(tiny)!r}, streams=len(os.sched_getaffinity(0)), warm_up=False)
threads = [threading.Thread(target=lambda: [model.warm_up() for _ in range(3)], daemon=True) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join(30)
sys.stdout.write("waits" if any(each.is_alive() for each in threads) else "done"); sys.stdout.flush()
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("done", "")
