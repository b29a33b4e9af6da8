"""Stages of a compile: verification catches what is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import make_model

import cpuc
from cpuc.compiler import rewrites
from cpuc.compiler.precision import PRECISIONS


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny") / "bert", "bert")


def test_a_graph_that_computes_something_else_is_not_written(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = rewrites.Rewrite(
        "gelu-to-relu",
        "graph(%x, %approximate):\n  %y = aten::gelu(%x, %approximate)\n  return (%y)",
        "graph(%x, %approximate):\n  %y = aten::relu(%x)\n  return (%y)",
    )
    monkeypatch.setattr(rewrites, "REWRITES", (wrong, *rewrites.REWRITES))
    with pytest.raises(cpuc.ParityError, match=r"more than the 0.0001 allowed at fp32: nothing was written") as error:
        cpuc.compile(str(tiny_bert), tmp_path / "model.pt")
    assert error.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []
    # Without verification it is written, and says that nobody looked.
    assert cpuc.compile(str(tiny_bert), tmp_path / "model.pt", verify=False).proof is None


def test_a_failed_compile_leaves_the_old_artifact(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRECISIONS, "fp32", dataclasses.replace(PRECISIONS["fp32"], tolerance=1e-30))
    (tmp_path / "model.pt").write_text("the old one")
    with pytest.raises(cpuc.ParityError):
        cpuc.compile(str(tiny_bert), tmp_path / "model.pt", force=True)
    assert (tmp_path / "model.pt").read_text() == "the old one"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_architecture_outside_the_table_is_tried_if_asked_for(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "layoutlm", "layoutlm", "text-classification", num_labels=3)
    with pytest.raises(cpuc.ModelError, match=r"architecture 'layoutlm' is not supported; .* try --allow-unlisted"):
        cpuc.compile(str(folder), tmp_path / "model.pt")
    with pytest.raises(cpuc.InputError, match="always verified"):
        cpuc.compile(str(folder), tmp_path / "model.pt", allow_unlisted=True, verify=False)
    manifest = cpuc.compile(str(folder), tmp_path / "model.pt", allow_unlisted=True)
    assert manifest.architecture == "layoutlm"
    assert manifest.proof is not None
    assert len(cpuc.load(tmp_path / "model.pt", warm_up=False)(["a text", "another one"])) == 2


def test_a_model_that_gives_nan_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nan"
    folder.mkdir()
    for file in tiny_bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights["qa_outputs.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(cpuc.ModelError, match="gives NaN"):
        cpuc.compile(str(folder), tmp_path / "model.pt")


def test_the_proof_covers_several_lengths_and_batch_sizes(fp32: Path) -> None:
    proof = cpuc.open_bundle(fp32).manifest.proof
    assert proof is not None
    assert {shape[0] for shape in proof.shapes} == {1, 2, 5}
    assert len({shape[1] for shape in proof.shapes}) >= 5
    assert max(shape[1] for shape in proof.shapes) == 384


def test_checkpoints_with_names_of_tensorflow_are_read(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    for file in tiny_bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    assert set(renamed) != set(weights)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    cpuc.compile(str(folder), tmp_path / "old.pt")
    cpuc.compile(str(tiny_bert), tmp_path / "new.pt", verify=False)
    record = {"question": "Who?", "context": "Ada Lovelace wrote it."}
    assert cpuc.load(tmp_path / "old.pt")(record) == cpuc.load(tmp_path / "new.pt")(record)


def test_a_tokenizer_that_tells_more_kinds_of_tokens_apart_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one-kind"
    shutil.copytree(tiny_bert, folder)
    weights = load_file(folder / "model.safetensors")
    kinds = "bert.embeddings.token_type_embeddings.weight"
    save_file({**weights, kinds: weights[kinds][:1].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    for file, changes in (
        ("config.json", {"type_vocab_size": 1}),
        ("tokenizer_config.json", {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}),
    ):
        (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **changes}))
    with pytest.raises(
        cpuc.ModelError, match=r"gives 1 in 'token_type_ids', but the model takes 0 at most: .*'model_input_names'"
    ):
        cpuc.compile(str(folder), tmp_path / "model.pt")
