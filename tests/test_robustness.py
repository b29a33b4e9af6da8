"""A loaded model under load, at the limits of its inputs, and on CPUs with fewer instructions."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, here, needs_avx512
from tiny import make_model

import cpuc
from cpuc.runtime.tensors import parse_tensors

RECORD = {"question": "Who wrote it?", "context": "Ada Lovelace wrote it in London."}

# Prints the memory in MB (resident, what is free given back) every so many requests, and how many lengths there were.
MANY = """
import ctypes, gc, random, re, sys
import numpy as np
import cpuc
model = cpuc.load(sys.argv[1])
generator = random.Random(0)
words = "who wrote the letter that nobody in London ever read 1891 Évariste 巴黎 ?".split()
def memory():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024
lengths = set()
for i in range(1, 20_001):
    if i % 20:
        length = generator.randint(1, 256 if i % 10 == 1 else 40)
        ids = np.array([generator.choices(range(300), k=length)])
        model.raw({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        lengths.add(length)
    else:
        model({"question": "Who wrote it?", "context": " ".join(generator.choices(words, k=generator.randint(1, 60)))})
    if i % 2000 == 0:
        print(memory(), flush=True)
print(len(lengths))
"""


def test_sixteen_threads_get_the_answers_of_one(model: cpuc.Model) -> None:
    generator = random.Random(0)
    records = json.loads((ROOT / "examples" / "q.json").read_text())
    expected = {record["id"]: model(record) for record in records}
    wrong: list[Any] = []

    def work(seed: int) -> None:
        own = random.Random(seed)
        for _ in range(6):
            chosen = own.sample(records, own.randint(1, 3))
            answers = model(chosen) if own.random() < 0.5 else [model(record) for record in chosen]
            for record, answer in zip(chosen, answers, strict=True):
                known = expected[record["id"]]
                same = (answer.answer, answer.start, answer.end) == (known.answer, known.start, known.end)
                if not (same and abs(answer.score - known.score) < 1e-4):
                    wrong.append((record["id"], answer))

    threads = [threading.Thread(target=work, args=(generator.random(),)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_file_system_that_cannot_be_written(tiny: Path) -> None:
    """As a container may have: nothing of the runtime needs a temporary folder."""
    program = f"import tempfile; tempfile.tempdir = '/absent'; import cpuc; cpuc.load({str(tiny)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_memory_stays_flat_over_many_requests(tiny: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MANY, tiny], capture_output=True, text=True, check=True)
    *memory, lengths = map(int, done.stdout.split())
    assert lengths == 256
    # The bound that SECURITY.md states: kernels are kept for the lengths that have been seen.
    assert memory[-1] - memory[0] < 32, memory


def ids(*values: int) -> dict[str, np.ndarray]:
    row = np.array([values], np.int64)
    return {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}


def test_sizes_at_and_beyond_the_limits(model: cpuc.Model) -> None:
    for length in (1, 2, 511, 512):
        assert np.isfinite(model.raw(ids(*[7] * length))["start_logits"]).all()
    with pytest.raises(cpuc.InputError, match="sequence is 513, must be at least 1 and at most 512"):
        model.raw(ids(*[7] * 513))
    with pytest.raises(cpuc.InputError, match="sequence is 0"):
        model.raw(ids())
    many = {name: np.repeat(array, 300, 0) for name, array in ids(7, 8, 9).items()}
    assert model.raw(many)["end_logits"].shape == (300, 3)
    # No token is attended to: whatever comes out, it comes out.
    assert model.raw({**ids(7, 8), "attention_mask": np.zeros((1, 2), np.int64)})["start_logits"].shape == (1, 2)


@pytest.mark.parametrize("value", [-1, -(2**63), 30522, 2**31, 2**63 - 1])
def test_ids_that_are_not_in_the_vocabulary(model: cpuc.Model, value: int) -> None:
    with pytest.raises(cpuc.InputError, match=f"'input_ids' holds {value}, must be 0 to 30521"):
        model.raw(ids(7, value, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"input_ids": [[NaN]]}', "line 1, column 17: NaN is not JSON"),
        ('{"input_ids": [[1e999]]}', "1e999 is not JSON"),
        ('{"input_ids": [[1.0]]}', "float64, expected int64"),
        ('{"input_ids": [[18446744073709551616]]}', "expected int64"),
        ('{"input_ids": [[1], [1, 2]]}', "rows have different lengths"),
        ('{"input_ids": []}', None),
        ('{"input_ids": null}', "object, expected int64"),
        ('{"input_ids": [["1"]]}', "expected int64"),
        ("[" * 100_000, "nested too deeply|invalid JSON"),
    ],
)
def test_tensors_that_are_none(model: cpuc.Model, text: str, message: str | None) -> None:
    if message is None:
        with pytest.raises(cpuc.InputError, match="shape"):
            model.raw({**ids(1), **parse_tensors(text.encode(), "input", model.manifest)})
        return
    with pytest.raises(cpuc.InputError, match=message):
        parse_tensors(text.encode(), "input", model.manifest)


@pytest.mark.parametrize(
    "record",
    [
        {"question": "", "context": "a"},
        {"question": "a", "context": " \n\t\u3000"},
        {"question": "\0\ufffd\u200b", "context": "\0\x01\x02"},
        {"question": "a" * 100_000, "context": "b"},
        {"question": "who " * 600, "context": "b"},
    ],
)
def test_texts_without_an_answer_are_errors(model: cpuc.Model, record: dict[str, str]) -> None:
    try:
        answer = model(record)
    except cpuc.InputError as error:
        assert "the record" in str(error)
    else:
        assert record["context"][answer.start : answer.end] == answer.answer


def test_texts_at_the_limits_are_answered(model: cpuc.Model) -> None:
    for context in ("a", "x" * 20_000, "Ada " * 4000, "\U0001f469\u200d\U0001f52c wrote it. " * 50, "e\u0301" * 3000):
        answer = model({"question": "Who?", "context": context})
        assert context[answer.start : answer.end] == answer.answer


def test_pixels_that_are_not_finite_give_an_answer(tmp_path: Path, cli: Any) -> None:
    from media_models import make_media_model

    folder = make_media_model(tmp_path / "vit", "vit", "image-classification")
    cpuc.compile(str(folder), tmp_path / "vit.pt")
    loaded = cpuc.load(tmp_path / "vit.pt")
    (spec,) = loaded.manifest.inputs
    pixels = np.zeros([2, *spec.shape[1:]], np.float32)
    expected = loaded.raw({spec.name: pixels})["logits"]
    for value in (np.nan, np.inf, -np.inf, 3e38):
        pixels[1, 0, 3, 3] = value
        logits = loaded.raw({spec.name: pixels})["logits"]
        # The row beside it is none the worse.
        np.testing.assert_allclose(logits[0], expected[0], rtol=0, atol=1e-5)
    np.savez(tmp_path / "in.npz", **{spec.name: np.full_like(pixels, np.nan)})
    done = cli("run", tmp_path / "vit.pt", "--raw", "-i", tmp_path / "in.npz")
    assert (done.returncode, done.stderr) == (0, "")
    assert {value for row in json.loads(done.stdout)["logits"] for value in row} == {None}


LOWER = [
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
]
HIDDEN = "oneDNN has no kernels here for the graph's layers: unset ONEDNN_MAX_CPU_ISA"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int8-dynamic"])
def test_fewer_instructions_give_the_numbers_or_a_refusal(tiny_model: Path, tmp_path: Path, cli: Any, precision: str) -> None:
    """The switch of torch and IPEX (the same variable) and oneDNN's, which hide what this CPU has."""
    bundle = tmp_path / "model.pt"
    manifest = cpuc.compile(str(tiny_model), bundle, precision=here(precision), verify=False)
    generator = np.random.default_rng(0)
    arrays = {"input_ids": generator.integers(5, 300, (2, 50)), "attention_mask": np.ones((2, 50), np.int64)}
    expected = cpuc.load(bundle).raw(arrays)
    np.savez(tmp_path / "in.npz", **arrays)
    for environment in LOWER:
        done = cli("run", bundle, "--raw", "-i", tmp_path / "in.npz", **environment)
        # torch's switch hides a capability that the manifest names; oneDNN's hides kernels that torch still counts on.
        lacks = {"default": ("AVX2", "AVX512"), "avx2": ("AVX512",)}.get(environment.get("ATEN_CPU_CAPABILITY", ""), ())
        if manifest.build.isa in lacks:
            assert (done.returncode, done.stdout) == (1, "")
            assert f"needs a CPU with {manifest.build.isa}, which this one lacks" in done.stderr
            continue
        if done.returncode and not manifest.build.precision.endswith("fp32"):
            # Below AVX-512 oneDNN has no kernel in bfloat16 at all, not even a slow one. A graph may do without.
            assert environment.get("ONEDNN_MAX_CPU_ISA") in ("SSE41", "AVX2")
            assert (done.returncode, done.stdout) == (1, "")
            assert HIDDEN in done.stderr
            continue
        assert (done.returncode, done.stderr) == (0, ""), environment
        for name, values in json.loads(done.stdout).items():
            difference = np.square(np.array(values) - expected[name]).mean() / np.square(expected[name]).mean()
            assert np.sqrt(difference) < (1e-5 if precision == "fp32" else 0.05), environment


def hidden_kernels(folder: Path, sizes: dict[str, int], rows: int) -> list[Path | str]:
    """Arguments for a model in bfloat16 and an input that need oneDNN's kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # with AMX most layers are packed in loading
        cpuc.compile(str(make_model(folder / "model", "bert", **sizes)), folder / "bf16.pt", precision="bf16", verify=False)
    (folder / "in.json").write_text(json.dumps(dict.fromkeys(("input_ids", "attention_mask"), [[1] * 100] * rows)))
    return [folder / "bf16.pt", "--raw", "-i", folder / "in.json"]


of_hidden_kernels = pytest.mark.parametrize(
    ("sizes", "rows"), [({"intermediate_size": 136}, 1), ({}, 8)], ids=["packed in loading", "a norm of many rows"]
)


@pytest.mark.slow
@of_hidden_kernels
def test_kernels_that_are_hidden_are_named(tmp_path: Path, cli: Any, sizes: dict[str, int], rows: int) -> None:
    needs_avx512()
    done = cli("run", *hidden_kernels(tmp_path, sizes, rows), ONEDNN_MAX_CPU_ISA="AVX2")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"bf16.pt: {HIDDEN}" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_call_that_needs_more_memory_than_there_is_says_so(tiny: Path, tmp_path: Path) -> None:
    ids = np.ones((6000, 256), np.int64)
    np.savez(tmp_path / "in.npz", input_ids=ids, attention_mask=ids)
    few = ["prlimit", f"--as={5 << 30}"]
    command = [*few, Path(sys.executable).with_name("cpuc"), "run", tiny, "--raw", "-i", tmp_path / "in.npz"]
    # Each thread has a stack and a heap, which count.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "cpuc: out of memory\n")
