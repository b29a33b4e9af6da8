"""The command line: what users type, what scripts rely on, and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Run

import cpuc
from cpuc.cli import main

RECORD = {"question": "Who wrote it?", "context": "Ada Lovelace wrote it in London."}


def fails(done: subprocess.CompletedProcess[str], *parts: str, code: int = 1) -> None:
    """One clear line on stderr, nothing on stdout, no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("cpuc: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


def test_help_imports_no_torch(cli: Run) -> None:
    done = cli("--help", PYTHONPROFILEIMPORTTIME="1")
    assert "cpuc compile bert-base-uncased-squad-v1 -o model.pt" in done.stdout
    for heavy in ("torch", "transformers", "numpy", "huggingface_hub"):
        assert not re.search(rf"\| +{heavy}\n", done.stderr)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_with_an_example_and_is_in_the_readme(cli: Run, command: str) -> None:
    done = cli(command, "--help")
    assert done.returncode == 0
    assert f"  cpuc {command} " in done.stdout.split("Examples:")[1]
    assert f"cpuc {command}" in (ROOT / "README.md").read_text()


def test_run_gives_one_record_for_one_object_and_nothing_on_stderr(cli: Run, fp32: Path) -> None:
    done = cli("run", fp32, "--input", "-", stdin=json.dumps({"id": "a", **RECORD}))
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert list(answer) == ["id", "answer", "score", "start", "end"]
    assert answer["answer"] == "Ada Lovelace"
    assert 0 < answer["score"] <= 1


def test_run_keeps_the_form_of_the_input(cli: Run, fp32: Path, tmp_path: Path) -> None:
    squad = {"data": [{"paragraphs": [{"context": RECORD["context"], "qas": [{"id": "q1", "question": "Who?"}]}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    done = cli("run", fp32, "-i", tmp_path / "squad.json", "--top-k", "2")
    [record] = json.loads(done.stdout)
    assert record["id"] == "q1"
    assert len(record["answers"]) == 2
    assert record["answers"][0]["score"] >= record["answers"][1]["score"]

    lines = "\n".join(
        json.dumps({"id": i, "question": "Who?", "context": "It was\u2028Ada."}, ensure_ascii=False) for i in range(3)
    )
    done = cli("run", fp32, "-i", "-", stdin=lines + "\n\n")
    assert [json.loads(line)["id"] for line in done.stdout.rstrip("\n").split("\n")] == [0, 1, 2]

    (tmp_path / "list.json").write_text("\ufeff" + json.dumps([RECORD]))
    done = cli("run", fp32, "-i", tmp_path / "list.json", "-o", tmp_path / "answers.json")
    assert (done.returncode, done.stdout) == (0, "")
    assert json.loads((tmp_path / "answers.json").read_text())[0]["answer"] == "Ada Lovelace"


def test_run_agrees_with_python(cli: Run, fp32: Path, model: cpuc.Model) -> None:
    done = cli("run", fp32, "-i", ROOT / "examples" / "q.json", "--max-seq-length", "128", "--doc-stride", "32")
    records = json.loads((ROOT / "examples" / "q.json").read_text())
    answers = model(records, max_seq_length=128, doc_stride=32)
    assert json.loads(done.stdout) == [answer.to_json() for answer in answers]
    for record, answer in zip(records, answers, strict=True):
        assert record["context"][answer.start : answer.end] == answer.answer


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ("", ["standard input", "is empty"]),
        ('{"question": "Who?", }', ["standard input: invalid JSON at line 1, column 22"]),
        ('{"question": "Who?",\n "context" "x"}', ["line 2, column 12"]),
        ('{"question": NaN}', ["invalid JSON", "NaN is not JSON"]),
        ('{"a": 1}\n{"a": \n', ["invalid JSON at line 2"]),
        ("[" * 100_000, ["nested too deeply"]),
        ('{"question": "Who?"}', ["the record: field 'context' is missing"]),
        ('[{"question": "Who?", "context": "Ada."}, 3]', ["record 2: expected", "found int"]),
        ('{"question": "Who?", "context": "Ada."}\n{"question": "Who?", "context": ""}', ["line 2: field 'context' is empty"]),
        ('{"data": [{"paragraphs": [{"qas": [{"question": "Who?"}]}]}]}', ["data[0].paragraphs[0]", "'context' is missing"]),
        ('{"data": 3}', ["SQuAD"]),
        ('{"id": 1e999, "question": "Who?", "context": "Ada."}', ["1e999 is not JSON"]),
        ('{"id": ' + "9" * 5000 + "}", ["too many digits"]),
        ('{"id": "\\ud800", "question": "Who?", "context": "Ada."}', ["field 'id' has half a surrogate pair"]),
    ],
)
def test_wrong_input_says_where(cli: Run, fp32: Path, data: str, parts: list[str]) -> None:
    fails(cli("run", fp32, "--input", "-", stdin=data), *parts)


def test_input_that_is_not_utf8_is_refused(cli: Run, fp32: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes('{"question": "Où?"}'.encode("latin-1"))
    fails(cli("run", fp32, "-i", tmp_path / "latin.json"), "latin.json: not UTF-8 at byte 15")
    fails(cli("run", fp32, "-i", tmp_path / "absent.json"), "absent.json: no such file")


def test_wrong_usage_exits_with_2(cli: Run, fp32: Path) -> None:
    assert cli("run", fp32).returncode == 2
    assert cli("compile", "x").returncode == 2
    assert cli("juggle").returncode == 2


def test_output_is_not_replaced_without_force(cli: Run, fp32: Path, minilm: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_text("precious")
    fails(cli("run", fp32, "-i", "-", "-o", target, stdin=json.dumps(RECORD)), "out.json: exists already", "--force")
    fails(cli("compile", minilm, "-o", target), "out.json: exists already", "--force")
    assert target.read_text() == "precious"
    assert cli("run", fp32, "-i", "-", "-o", target, "--force", stdin=json.dumps(RECORD)).returncode == 0
    assert json.loads(target.read_text())["answer"] == "Ada Lovelace"


def test_output_goes_through_a_link_and_never_onto_a_device(cli: Run, fp32: Path, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    os.mkfifo(tmp_path / "pipe")
    done = cli("run", fp32, "-i", "-", "-o", tmp_path / "link.json", "--force", stdin=json.dumps(RECORD))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["answer"] == "Ada Lovelace"
    fails(cli("run", fp32, "-i", "-", "-o", tmp_path / "pipe", "--force", stdin=json.dumps(RECORD)), "not a regular file")
    assert (tmp_path / "pipe").is_fifo()


def test_closed_streams_are_errors(fp32: Path) -> None:
    program = Path(sys.executable).with_name("cpuc")
    for redirection, stream in (("<&-", "input"), ("</dev/null >&-", "output")):
        command = ["sh", "-c", f'"{program}" run "{fp32}" -i - {redirection}']
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        fails(done, f"standard {stream} is closed")


def test_output_that_cannot_be_written_is_told_at_once(cli: Run, minilm: Path, tmp_path: Path) -> None:
    fails(cli("compile", minilm, "-o", tmp_path / ("x" * 300)), "cannot be written: File name too long")
    fails(cli("compile", minilm, "-o", tmp_path / "no" / "model.pt"), "no such folder")
    fails(cli("compile", minilm, "-o", tmp_path), "is a folder")
    fails(cli("compile", minilm, "-o", "/proc/model.pt"), "/proc")


def test_a_full_disk_leaves_no_file(fp32: Path, minilm: Path, tmp_path: Path) -> None:
    # A limit on the size of files makes the same system calls fail as a full disk does.
    for limit, arguments in (
        (10_000_000, ["compile", str(minilm), "-o", str(tmp_path / "model.pt")]),
        (1000, ["run", str(fp32), "--raw", "-i", str(tmp_path / "in.json"), "-o", str(tmp_path / "out.json")]),
    ):
        (tmp_path / "in.json").write_text(json.dumps(tensors(length=200)))
        script = (
            "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sys.argv[0] = 'cpuc'; "
            "from cpuc.cli import main; main()"
        )
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
        fails(done, "cannot be written: File too large")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.json"]


def test_a_full_standard_output_is_an_error(fp32: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [Path(sys.executable).with_name("cpuc"), "run", fp32, "-i", "-"]
        done = subprocess.run(command, input=json.dumps(RECORD), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "cpuc: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_compile_leaves_nothing(minilm: Path, tmp_path: Path, number: int, code: int) -> None:
    command = [Path(sys.executable).with_name("cpuc"), "compile", minilm, "-o", tmp_path / "model.pt"]
    # A shell that runs the tests in the background has its children ignore Ctrl-C, and they pass that on.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    while not list(tmp_path.iterdir()):  # the temporary file appears when the build begins
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    os.kill(process.pid, number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_compile_says_what_it_did_and_prints_no_warning(cli: Run, minilm: Path, tmp_path: Path) -> None:
    # With an environment of its own it imports everything itself.
    done = cli("compile", minilm, "-o", tmp_path / "model.pt", "--no-verify", TMPDIR=str(tmp_path))
    assert done.stderr == ""
    assert "question-answering, bert, fp32" in done.stdout
    assert "torch_ipex::flash_attention 6" in done.stdout
    assert "not verified (--no-verify)" in done.stdout
    shown = cli("inspect", tmp_path / "model.pt")
    assert "not verified (--no-verify)" in shown.stdout
    assert json.loads(cli("inspect", tmp_path / "model.pt", "--json").stdout)["proof"] is None


def test_inspect_shows_the_manifest(cli: Run, fp32: Path) -> None:
    text = cli("inspect", fp32).stdout
    for part in ("question-answering", "minilm-qa", "apache-2.0", "input_ids", "[batch, sequence]", "at most 512",
                 "ipex 2.8.0, torch 2.8.0", "6 of 6 answers equal", "sha-256"):  # fmt: skip
        assert part in text
    assert json.loads(cli("inspect", fp32, "--json").stdout) == json.loads(cpuc.open_bundle(fp32).manifest.to_json())


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, ["architecture 'gpt2' is not supported", "bert"]),
        (
            {"model_type": "bert", "architectures": ["BertForNextSentencePrediction"]},
            ["BertForNextSentencePrediction", "ForQuestionAnswering (question-answering)", "ForMaskedLM (fill-mask)"],
        ),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, ["BertLMHeadModel", "no supported task"]),
        ({"model_type": "bert"}, ["names no architectures", "--task"]),
        ({"architectures": ["BertForQuestionAnswering"]}, ["names no model_type"]),
        (
            {"model_type": "bert", "architectures": ["BertForQuestionAnswering"], "quantization_config": {}},
            ["quantised already"],
        ),
    ],
)
def test_what_is_not_supported_is_refused_at_once(cli: Run, tmp_path: Path, config: dict[str, Any], parts: list[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    fails(cli("compile", tmp_path, "-o", tmp_path / "model.pt"), *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--task", "juggling"], ["task 'juggling' is not supported", "question-answering"]),
        (["--precision", "fp64"], ["precision 'fp64' is not supported", "fp32, bf16"]),
    ],
)
def test_wrong_choices_say_what_there_is(
    cli: Run, minilm: Path, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    fails(cli("compile", minilm, "-o", tmp_path / "model.pt", *arguments), *parts)


def damaged(source: Path, folder: Path, **changes: bytes | None) -> Path:
    """A copy of a model's folder with files replaced, or left out where the change is None."""
    folder.mkdir()
    for file in source.iterdir():
        data = changes.get(file.name.replace(".", "_"), file.read_bytes())
        if data is not None:
            (folder / file.name).write_bytes(data)
    return folder


def test_broken_models_are_refused(cli: Run, minilm: Path, tmp_path: Path) -> None:
    weights = (minilm / "model.safetensors").read_bytes()
    folder = damaged(minilm, tmp_path / "cut", model_safetensors=weights[:100_000])
    fails(cli("compile", folder, "-o", tmp_path / "model.pt"), "config.json or model.safetensors cannot be loaded")
    config = json.loads((minilm / "config.json").read_text())
    cases: list[tuple[dict[str, bytes | None], list[str]]] = [
        ({"model_safetensors": b"garbage"}, ["config.json or model.safetensors cannot be loaded"]),
        ({"config_json": json.dumps({**config, "hidden_size": 768}).encode()}, ["another shape"]),
        ({"config_json": json.dumps({**config, "num_hidden_layers": 7}).encode()}, ["the weights lack", "layer.6"]),
        ({"config_json": json.dumps({**config, "num_attention_heads": 0}).encode()}, ["config.json or", "ZeroDivisionError"]),
        ({"config_json": json.dumps({**config, "hidden_size": "abc"}).encode()}, ["config.json or"]),
        ({"tokenizer_config_json": b'{"tokenizer_class": "BertTokenizerFast", "model_max_length": 16}'}, ["only 16 tokens"]),
        ({"tokenizer_json": None}, ["tokenizer"]),
        ({"tokenizer_json": b"{"}, ["tokenizer"]),
    ]
    for number, (changes, parts) in enumerate(cases):
        folder = damaged(minilm, tmp_path / str(number), **changes)
        with pytest.raises(cpuc.CpucError) as error:
            cpuc.compile(str(folder), tmp_path / "model.pt")
        assert all(part in str(error.value) for part in parts), error.value
    assert not (tmp_path / "model.pt").exists()


def test_debug_shows_the_traceback(cli: Run, tmp_path: Path) -> None:
    done = cli("--debug", "inspect", tmp_path / "absent.pt")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def tensors(length: int = 5) -> dict[str, Any]:
    ids = [[101, *([2040] * (length - 2)), 102]]
    ones = [[1] * length]
    return {"input_ids": ids, "attention_mask": ones, "token_type_ids": [[0] * length]}


def test_raw_takes_and_gives_named_tensors(cli: Run, fp32: Path, model: cpuc.Model, tmp_path: Path) -> None:
    arrays = {name: np.array(value) for name, value in tensors().items()}
    expected = model.raw(arrays)
    done = cli("run", fp32, "--raw", "-i", "-", stdin=json.dumps(tensors()))
    assert np.allclose(json.loads(done.stdout)["start_logits"], expected["start_logits"], atol=1e-5)
    np.savez(tmp_path / "in.npz", **{name: array.astype(np.int32) for name, array in arrays.items()})
    done = cli("run", fp32, "--raw", "-i", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as outputs:
        assert sorted(outputs.files) == ["end_logits", "start_logits"]
        assert np.allclose(outputs["end_logits"], expected["end_logits"], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": None}, "input 'input_ids' is missing"),
        ({"labels": [[1]]}, "unexpected input 'labels'"),
        ({"input_ids": [[101, 2040, 102]]}, "differ in sequence: 3 and 5"),
        ({"input_ids": [101, 102]}, "has shape [2], expected ['batch', 'sequence']"),
        ({"input_ids": [[101, 102], [3]]}, "rows have different lengths"),
        ({"input_ids": [[0.5] * 5]}, "is float64, expected int64"),
        ({"input_ids": [["a"] * 5]}, "expected int64"),
        ({"input_ids": [[101, 2040, 30522, 1, 102]]}, "'input_ids' holds 30522, must be 0 to 30521"),
        ({"input_ids": [[101, 2040, -1, 1, 102]]}, "'input_ids' holds -1"),
        ({"input_ids": [[101, 2040, 2**63, 1, 102]]}, "input_ids"),
        ({"input_ids": [], "attention_mask": [], "token_type_ids": []}, "expected"),
    ],
)
def test_wrong_tensors_are_named(cli: Run, fp32: Path, changes: dict[str, Any], message: str) -> None:
    data = {name: value for name, value in {**tensors(), **changes}.items() if value is not None}
    fails(cli("run", fp32, "--raw", "--input", "-", stdin=json.dumps(data)), message)


def test_a_sequence_longer_than_the_model_allows_is_refused(cli: Run, fp32: Path) -> None:
    done = cli("run", fp32, "--raw", "--input", "-", stdin=json.dumps(tensors(length=513)))
    fails(done, "sequence is 513, must be at least 1 and at most 512")
    fails(cli("run", fp32, "--raw", "--top-k", "3", "--input", "-"), "--top-k has no meaning with --raw")


@pytest.mark.parametrize(
    ("last", "code", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('why')", 1, "why\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("None", 1, ""),
    ],
)
def test_programs_end_early_but_leave_nothing_undone(last: str, code: int, said: str) -> None:
    script = f"""
import atexit, sys, threading, time
from cpuc.runtime.ending import end_early

class Module:
    def __del__(self):
        print("taken down")

held = Module()

def main():
    atexit.register(print, "registered")
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
    print("main", end=" ")
    {last}

end_early(main)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "main thread\nregistered\n")
    assert said in done.stderr and bool(said) == bool(done.stderr)
