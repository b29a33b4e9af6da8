"""The bundle as a format: what it holds, that plain torch opens it, and that a reader refuses what is not whole."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cpuc
from cpuc.runtime.archive import ALIGNMENT, LARGE, PAGE, ROOT
from cpuc.runtime.bundle import MANIFEST, open_bundle
from cpuc.runtime.libraries import ipex_library

Manifest = dict[str, Any]


def rewrite(source: Path, target: Path, change: Callable[[Manifest], None]) -> Path:
    """A copy of a bundle whose manifest `change` has edited."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename == f"{ROOT}/{MANIFEST}":
                manifest = json.loads(data)
                change(manifest)
                data = json.dumps(manifest).encode()
            new.writestr(info, data)
    return target


def test_the_manifest_says_what_it_is(fp32: Path) -> None:
    manifest = open_bundle(fp32).manifest
    assert manifest.task == "question-answering"
    assert manifest.architecture == "bert"
    assert manifest.source.id == "minilm-qa"
    assert manifest.source.license == "apache-2.0"
    assert [spec.name for spec in manifest.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(spec.shape == ["batch", "sequence"] for spec in (*manifest.inputs, *manifest.outputs))
    assert manifest.axes["sequence"].maximum == 512
    assert manifest.build.fused["torch_ipex::flash_attention"] == 6
    assert manifest.proof is not None
    assert manifest.proof.answers_equal == manifest.proof.answers == 6
    assert manifest.proof.rms_relative_difference < 1e-5


def test_every_member_has_its_digest_and_alignment(fp32: Path) -> None:
    bundle = open_bundle(fp32)
    data = fp32.read_bytes()
    assert set(bundle.members) == {*bundle.manifest.members, MANIFEST}
    for name, digest in bundle.manifest.members.items():
        offset, size = bundle.members[name]
        assert hashlib.sha256(data[offset : offset + size]).hexdigest() == digest
        assert offset % (PAGE if size >= LARGE else ALIGNMENT) == 0


def test_plain_torch_opens_it_without_anything_of_ours(fp32: Path, model: cpuc.Model) -> None:
    script = """
import sys, torch
torch.ops.load_library(sys.argv[1])
extra = {"manifest.json": "", "tokenizer.json": ""}
module = torch.jit.load(sys.argv[2], _extra_files=extra)
ids = torch.tensor([[101, 2040, 102, 9262, 102]])
with torch.no_grad(), torch.jit.optimized_execution(False):
    start, end = module(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids))
import json
assert not any(name.split(".")[0] in ("cpuc", "transformers", "intel_extension_for_pytorch") for name in sys.modules)
print(json.dumps([start.tolist(), json.loads(extra["manifest.json"])["task"], len(extra["tokenizer.json"]) > 1000]))
"""
    command = [sys.executable, "-c", script, str(ipex_library()), str(fp32)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    start, task, has_tokenizer = json.loads(done.stdout)
    assert (task, has_tokenizer) == ("question-answering", True)
    ids = torch.tensor([[101, 2040, 102, 9262, 102]])
    arrays = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    expected = model.raw({name: tensor.numpy() for name, tensor in arrays.items()})
    assert torch.allclose(torch.tensor(start), torch.from_numpy(expected["start_logits"]), atol=1e-5)


def test_the_same_model_gives_the_same_bytes(minilm: Path, tmp_path: Path, cli: Any) -> None:
    bundles = []
    for place in ("here", "elsewhere"):
        copy = tmp_path / place / "minilm-qa"
        copy.mkdir(parents=True)
        for file in minilm.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        done = cli("compile", copy, "-o", tmp_path / place / "model.pt", TMPDIR=str(tmp_path / place))
        assert (done.returncode, done.stderr) == (0, "")
        bundles.append((tmp_path / place / "model.pt").read_bytes())
    assert bundles[0] == bundles[1]


def test_nothing_of_the_compiling_machine_is_in_it(fp32: Path, minilm: Path) -> None:
    data = fp32.read_bytes()
    for secret in (str(minilm.parent), str(Path.home()) + "/", sys.prefix, "site-packages"):
        assert secret.encode() not in data


@pytest.mark.parametrize("keep", [0, 1, 100, 0.3, 0.9, -1, -30])
def test_a_truncated_bundle_is_refused(fp32: Path, tmp_path: Path, keep: float) -> None:
    data = fp32.read_bytes()
    size = int(len(data) * keep) if 0 < keep < 1 else int(keep) % len(data)
    (tmp_path / "cut.pt").write_bytes(data[:size])
    with pytest.raises(cpuc.BundleError, match=r"cut short|not a cpuc bundle"):
        cpuc.load(tmp_path / "cut.pt")


@pytest.mark.parametrize("member", ["extra/tokenizer.json", "code/__torch__.py", "data.pkl", "constants/0"])
def test_a_flipped_bit_is_refused(fp32: Path, tmp_path: Path, member: str) -> None:
    offset, size = open_bundle(fp32).members[member]
    data = bytearray(fp32.read_bytes())
    data[offset + size // 2] ^= 1
    (tmp_path / "bad.pt").write_bytes(data)
    with pytest.raises(cpuc.BundleError, match=f"{member}' does not match its SHA-256"):
        cpuc.load(tmp_path / "bad.pt")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pt")
    for name, message in (
        ("text.pt", "not a cpuc bundle"),
        ("weights.pt", "has no manifest.json"),
        ("absent.pt", "no such file"),
        (".", "cannot be read"),
    ):
        with pytest.raises(cpuc.BundleError, match=message) as error:
            cpuc.load(tmp_path / name)
        assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "compression", "message"),
    [
        ("cpuc/extra/more.txt", zipfile.ZIP_STORED, "not in both the archive and the manifest"),
        ("cpuc/../evil", zipfile.ZIP_STORED, "misplaced"),
        ("other/evil", zipfile.ZIP_STORED, "misplaced"),
        ("cpuc/extra/zeros", zipfile.ZIP_DEFLATED, "compressed"),
    ],
)
def test_an_added_member_is_refused(fp32: Path, tmp_path: Path, name: str, compression: int, message: str) -> None:
    target = tmp_path / "more.pt"
    target.write_bytes(fp32.read_bytes())
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o644 << 16
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(member, b"\0" * 100_000, compression)
    with pytest.raises(cpuc.BundleError, match=message):
        cpuc.load(target)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(fp32: Path, tmp_path: Path) -> None:
    target = tmp_path / "twice.pt"
    target.write_bytes(fp32.read_bytes())
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr("cpuc/data.pkl", b"other")
    with pytest.raises(cpuc.BundleError, match="there twice"):
        cpuc.load(target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=4), "format version 4, this cpuc reads version 3: update cpuc"),
        (lambda m: m.update(format_version=2), "compile the model again"),
        (lambda m: m.pop("format_version"), "has no format_version"),
        (lambda m: m["build"].update(torch="2.9.1"), "compiled with torch 2.9.1, but .* pip install torch==2.9.1"),
        (lambda m: m["build"].update(ipex="2.7.0"), "compiled with intel-extension-for-pytorch 2.7.0"),
        (lambda m: m["build"].update(isa="AVX1024"), "needs CPU capability 'AVX1024'"),
        (lambda m: m.update(task="juggling"), "task 'juggling' is unknown"),
        (lambda m: m.update(color="red"), "unknown field 'color'"),
        (lambda m: m.pop("inputs"), "field 'inputs' is missing"),
        (lambda m: m["source"].update(id=3), "manifest.json.source.id: expected str, found int"),
        (lambda m: m["inputs"][0].update(shape=["batch", 1.5]), r"inputs\[0\].shape\[1\]"),
        (lambda m: m["axes"].pop("batch"), "axis 'batch' has no entry"),
        (lambda m: m["members"].pop("data.pkl"), "'data.pkl' is not in both"),
        (lambda m: m["axes"]["sequence"].update(minimum=10**30, maximum=None), "is no range of sizes"),
        (lambda m: m["axes"]["sequence"].update(minimum=500, maximum=3), "is no range of sizes"),
        (lambda m: m.update(inputs=[]), "inputs: is empty"),
        (lambda m: m.update(outputs=m["outputs"][:1] * 2), "a name occurs twice"),
        (lambda m: m["outputs"][1].update(name="other"), "not those of question answering"),
        (lambda m: m["inputs"][0].update(dtype="foo128"), "dtype 'foo128' is not one of"),
        (lambda m: m["inputs"][0].update(pad=10**30), "is out of range"),
        (lambda m: m.update(preprocessing={}), "padding_side is missing"),
        (lambda m: m["preprocessing"].update(padding_side=[]), "padding_side is missing or wrong"),
        (lambda m: m["preprocessing"].update(cls_token_id="x"), "cls_token_id is wrong"),
        (lambda m: m["proof"].update(tolerance=float("nan")), "NaN is not JSON"),
        (lambda m: m["proof"].update(inputs="many"), "manifest.json.proof.inputs: expected int, found str"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(
    fp32: Path, tmp_path: Path, change: Callable[[Manifest], None], message: str
) -> None:
    with pytest.raises(cpuc.BundleError, match=message):
        cpuc.load(rewrite(fp32, tmp_path / "other.pt", change))


def test_a_cpu_that_lacks_instructions_is_refused(fp32: Path, tmp_path: Path, cli: Any) -> None:
    demanding = rewrite(fp32, tmp_path / "other.pt", lambda m: m["build"].update(isa="AVX512"))
    done = cli("run", demanding, "-i", "-", stdin='{"question": "Who?", "context": "Ada."}', ATEN_CPU_CAPABILITY="avx2")
    assert done.returncode == 1
    assert "needs a CPU with AVX512, which this one lacks" in done.stderr


def test_fp32_runs_on_a_cpu_with_fewer_instructions(fp32: Path, cli: Any, model: cpuc.Model) -> None:
    record = {"question": "Who wrote it?", "context": "Ada Lovelace wrote it in London."}
    low = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = cli("run", fp32, "-i", "-", stdin=json.dumps(record), **low)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"] == model(record).answer
