"""What models on the Hub are like that those of the other tests are not: parts that are missing, or called otherwise."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import needs_avx512
from media_models import make_media_model
from test_embeddings import TEXTS, sentence_folder
from tiny import make_model

import cpuc
from cpuc.compiler import verification
from cpuc.compiler.source import resolve

PAIR = {"question": "Who wrote it?", "context": "Ada Lovelace wrote it in London."}


def settings(folder: Path, **changes: Any) -> Path:
    """The same folder with other settings of the tokenizer; None takes one away."""
    path = folder / "tokenizer_config.json"
    merged = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in merged.items() if value is not None}))
    return folder


def names(manifest: cpuc.Manifest) -> list[str]:
    return [spec.name for spec in manifest.inputs]


def test_a_tokenizer_that_makes_token_types_for_a_model_without_a_table_of_them(tmp_path: Path) -> None:
    """As DeBERTa's do in transformers 5."""
    folder = make_model(tmp_path / "source", "deberta-v2", type_vocab_size=0)
    settings(folder, model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    manifest = cpuc.compile(str(folder), tmp_path / "model.pt")
    assert names(manifest) == ["input_ids", "attention_mask"]
    assert cpuc.load(tmp_path / "model.pt", warm_up=False)(PAIR).answer in PAIR["context"]


@pytest.mark.parametrize(
    ("task", "version", "expected"),
    [("question-answering", "4.57.6", True), ("question-answering", "5.0.0", False), ("text-classification", "4.57.6", False)],
)
def test_questions_have_the_token_types_that_transformers_4_made(
    task: str, version: str, expected: bool, tmp_path: Path
) -> None:
    """ALBERT's tokenizer makes none in version 5, whose pipelines are the reference for all but questions."""
    folder = make_model(tmp_path / "source", "albert", task)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": version}))
    manifest = cpuc.compile(str(settings(folder, model_input_names=None)), tmp_path / "model.pt")
    assert ("token_type_ids" in names(manifest)) == expected
    # What the folder itself says counts.
    settings(folder, model_input_names=["input_ids", "attention_mask"])
    assert "token_type_ids" not in names(cpuc.compile(str(folder), tmp_path / "model.pt", force=True))


@pytest.mark.parametrize(
    ("make", "kind", "saved", "task"),
    [
        (make_model, "roberta", "fill-mask", "feature-extraction"),
        (make_media_model, "vit", "image-classification", "image-feature-extraction"),
    ],
)
def test_a_checkpoint_without_the_pooler_that_nobody_reads(make: Any, kind: str, saved: str, task: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "source", kind, saved)
    manifest = cpuc.compile(str(folder), tmp_path / "model.pt", task=task)
    assert [spec.name for spec in manifest.outputs] == ["last_hidden_state"]
    # The task is not the one that its configuration names.
    measured = cpuc.bench(tmp_path / "model.pt", against=str(folder), seconds=0.01)
    assert measured.results[0].original is not None


def test_a_checkpoint_without_weights_of_its_head_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "source", "roberta", "fill-mask")
    with pytest.raises(cpuc.ModelError, match="the weights lack 'classifier"):
        cpuc.compile(str(folder), tmp_path / "model.pt", task="text-classification")


def test_the_settings_of_older_sentence_transformers_are_read(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "source", {"pooling_mode_mean_tokens": True})
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")
    assert cpuc.compile(str(folder), tmp_path / "model.pt").preprocessing["max_seq_length"] == 40
    texts = cpuc.load(tmp_path / "model.pt", warm_up=False)([" ".join(TEXTS), " ".join(TEXTS) + " and so on"])
    assert np.array_equal(*(answer.embedding for answer in texts))  # both were cut


def test_positions_far_apart_are_right_in_bfloat16(tmp_path: Path) -> None:
    """Frequencies of rotary positions stay in float32: rounded, angles would be off by more than a turn."""
    needs_avx512()
    longest = 4096
    folder = make_model(tmp_path / "source", "modernbert", "token-classification", max_position_embeddings=longest)
    cpuc.compile(str(folder), tmp_path / "model.pt", precision="bf16")
    ids = np.random.default_rng(0).integers(5, 300, (1, longest))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        exact = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()
    found = cpuc.load(tmp_path / "model.pt", warm_up=False).raw(inputs)["logits"]
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.03 * np.sqrt(np.mean(exact**2))


def test_a_conformer_takes_as_many_frames_as_its_table_has(tmp_path: Path) -> None:
    folder = make_media_model(tmp_path / "source", "wav2vec2-conformer", "audio-classification", max_source_positions=400)
    most = cpuc.compile(str(folder), tmp_path / "model.pt").axes["samples"].maximum
    assert most is not None
    model = cpuc.load(tmp_path / "model.pt", warm_up=False)
    assert np.isfinite(model.raw({"input_values": np.zeros((1, most), np.float32)})["logits"]).all()
    with pytest.raises(cpuc.InputError, match=str(most)):
        model.raw({"input_values": np.zeros((1, most + 1), np.float32)})


@pytest.mark.parametrize(
    ("make", "kind", "task", "output", "batches", "message"),
    [
        (
            make_media_model,
            "vit",
            "image-feature-extraction",
            "pooler_output",
            None,
            r"\(pooler_output\), more than the 0.0001",
        ),
        (make_model, "bert", "feature-extraction", "last_hidden_state", 1, r"in batch 1, more than the 0.0004 allowed in one"),
    ],
)
def test_one_wrong_output_or_batch_among_many_values_is_seen(
    make: Any,
    kind: str,
    task: str,
    output: str,
    batches: int | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def replay(*arguments: Any) -> list[Any]:
        found = [dict(arrays) for arrays in real(*arguments)]
        for arrays in found[:batches]:
            arrays[output] = arrays[output] * 1.0006
        return found

    real = verification.replay
    monkeypatch.setattr(verification, "replay", replay)
    folder = make(tmp_path / "source", kind, task)
    with pytest.raises(cpuc.ParityError, match=message):
        cpuc.compile(str(folder), tmp_path / "model.pt")


@pytest.mark.parametrize("card", [True, False])
def test_a_cache_that_another_program_filled_may_lack_what_tells_the_task(
    card: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model(tmp_path / "source", "bert", "feature-extraction")
    if card:
        (folder / "README.md").write_text("# A model")
    source = dataclasses.replace(resolve(str(folder)), unlisted="HF_HUB_OFFLINE forbids to download it")
    monkeypatch.setattr("cpuc.compiler.pipeline.resolve", lambda *_: source)
    said: list[str] = []
    cpuc.compile(str(folder), tmp_path / "model.pt", warn=said.append, verify=False)
    message = f"{source.id}: taken for feature-extraction by what is in the cache (HF_HUB_OFFLINE forbids to download it)"
    assert [line.partition(": give --task")[0] for line in said] == [] if card else [message]
