"""The models of the matrix, of random weights in their real sizes, and the inputs of each case."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import cpuc
from cpuc.compiler.calibration import make_calibration
from cpuc.runtime.bundle import open_bundle
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.model import batches
from cpuc.runtime.tasks import load_task

ROOT = Path(__file__).resolve().parent.parent
MINILM = ROOT / "examples" / "minilm-qa"
# A configuration, with what differs from its defaults. Sizes are those of the models of these names on the Hub.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("BertConfig", {}),
    "distilbert": ("DistilBertConfig", {}),
    "minilm-l6": (
        "BertConfig",
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    ),
    "roberta-base": ("RobertaConfig", {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "vit-base": ("ViTConfig", {"num_labels": 1000}),
}
# Rows by tokens, or by pixels of an image's side; any others may be asked for.
TEXT_CASES, IMAGE_CASES = ("1x16", "1x128", "1x384", "8x128"), ("1x224", "8x224")
SIZE = re.compile(r"(\d+)x(\d+)")
# 32 rows of real lengths: in one batch, one by one, like with like, or one by one on streams side by side.
MIXED = ("mixed-together", "mixed-alone", "mixed-alike", "mixed-streams")
# Windows of real paragraphs, which need data; fixed is padded to 384 tokens.
REAL_TEXT = ("text-alone", "text-alike", "text-streams", "text-fixed")
# WordPiece tokens, at most 384, of every twentieth question of XQuAD in English with its paragraph.
REAL_LENGTHS = (
    *(256, 113, 98, 51, 141, 113, 141, 152, 194, 158, 264, 384, 250, 143, 132, 165),
    *(239, 181, 219, 252, 162, 172, 272, 186, 367, 181, 157, 194, 158, 176, 210, 271),
)
# Tokens of a batch where rows of like length share one.
BUDGET = 1024


def make_model(name: str, folder: Path) -> Path:
    """Write a model of random weights in Hugging Face layout; the embedded one and a user's are where they are."""
    if name == "minilm-qa":
        return MINILM
    if name not in MODELS:
        return Path(name)
    source = folder / name
    if not (source / "config.json").exists():
        config, changes = MODELS[name]
        torch.manual_seed(0)
        kind = (
            transformers.AutoModelForImageClassification if name == "vit-base" else transformers.AutoModelForQuestionAnswering
        )
        kind.from_config(getattr(transformers, config)(**changes)).save_pretrained(source)
        if name == "vit-base":
            transformers.ViTImageProcessor().save_pretrained(source)
        else:
            shutil.copy(MINILM / "tokenizer.json", source)
            settings = json.loads((MINILM / "tokenizer_config.json").read_text())
            if changes.get("type_vocab_size") == 1:  # BERT's tokenizer would tell two kinds of tokens apart
                settings["model_input_names"] = ["input_ids", "attention_mask"]
            (source / "tokenizer_config.json").write_text(json.dumps(settings))
    return source


def make_cases(bundle: Path, wanted: list[str], data: Path | None) -> dict[str, np.ndarray]:
    """The cases' arrays as a worker reads them, and the calibration sample; `bundle` tells the signature."""
    opened = open_bundle(bundle)
    task = load_task(opened.manifest, opened.read)
    arrays: dict[str, np.ndarray] = {}
    for case in wanted:
        for i, call in enumerate(_calls(case, opened.manifest, bundle, data)):
            arrays.update({f"{case}/{i}/{name}": array for name, array in call.items()})
    for i, call in enumerate(make_calibration(task, opened.manifest, None).batches):
        arrays.update({f"calibration/{i}/{name}": np.ascontiguousarray(array) for name, array in call.items()})
    return arrays


def _calls(case: str, manifest: Manifest, bundle: Path, data: Path | None) -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    names = [spec.name for spec in manifest.inputs]
    words = (5, manifest.inputs[0].maximum)  # what comes before is special in every vocabulary
    if size := SIZE.fullmatch(case):
        count, length = map(int, size.groups())
        if names == ["pixel_values"]:
            yield {"pixel_values": random.standard_normal((count, 3, length, length), np.float32)}
        else:
            yield _padded(list(random.integers(*words, (count, length))), names)
    else:
        kind, strategy = case.split("-")
        rows = _windows(bundle, data) if kind == "text" else [random.integers(*words, n) for n in REAL_LENGTHS]
        for group in _grouped([len(row) for row in rows], strategy):
            yield _padded([rows[i] for i in group], names, 384 if strategy == "fixed" else 0)


def _grouped(lengths: list[int], strategy: str) -> list[list[int]]:
    """How rows of different lengths become calls: all in one, one by one, or like with like."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if strategy == "together":
        return [order]
    if strategy == "fixed":
        return [order[i : i + 8] for i in range(0, len(order), 8)]
    return [[i] for i in order] if strategy in ("alone", "streams") else list(batches(lengths, BUDGET))


def _windows(bundle: Path, data: Path | None) -> list[np.ndarray]:
    """The token ids of every window of the first paragraphs of a SQuAD file, as question answering cuts them."""
    if data is None:
        raise ValueError("a case of real text needs data")
    articles = json.loads(data.read_text())["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]][:12]
    records = [{"question": qa["question"], "context": each["context"]} for each in paragraphs for qa in each["qas"]]
    model = cpuc.load(bundle, warm_up=False)
    encoded = model.encoded(records, [str(i) for i in range(len(records))], {})
    return [row.inputs["input_ids"] for rows in encoded for row in rows]


def _padded(rows: list[np.ndarray], names: list[str], length: int = 0) -> dict[str, np.ndarray]:
    longest = max(length, *(len(row) for row in rows))
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: every[name] for name in names}
