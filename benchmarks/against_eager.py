"""Latency of bundles against eager transformers, as a ratio of medians; calls interleaved in one process.

    python benchmarks/against_eager.py FOLDER BUNDLE [BUNDLE ...]

FOLDER holds the original model, each BUNDLE is compiled from it. Without arguments a BERT-base of random weights is
made and compiled at every precision that this CPU runs first. Needs ``pip install cpuc[bench]``.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tabulate
import torch
import transformers

import cpuc
from cpuc.compiler.precision import PRECISIONS
from cpuc.runtime.engine import cpu_offers

LENGTHS = {384: 20, 128: 30, 16: 40}  # tokens: rounds


def make_bert_base(folder: Path) -> list[str]:
    """Write a random BERT-base and a bundle of it at each precision; returns the arguments to measure them."""
    examples = Path(__file__).resolve().parent.parent / "examples" / "minilm-qa"
    source = folder / "bert-base"
    torch.manual_seed(0)
    transformers.AutoModelForQuestionAnswering.from_config(transformers.BertConfig()).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(examples / name, source)
    bundles = [folder / f"{precision}.pt" for precision, entry in PRECISIONS.items() if cpu_offers(entry.isa)]
    for bundle in bundles:
        cpuc.compile(str(source), bundle, precision=bundle.stem)
    return [str(source), *map(str, bundles)]


def seconds(call: Callable[[], object]) -> float:
    """How long `call` takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(source: str, bundles: list[str]) -> list[list[object]]:
    """A row for each length: tokens, eager's median in milliseconds, and the ratio of each bundle."""
    models = [cpuc.load(bundle) for bundle in bundles]
    eager = transformers.AutoModelForQuestionAnswering.from_pretrained(source).eval()
    rows = []
    for length, rounds in LENGTHS.items():
        ids = np.full((1, length), 1000, np.int64)
        every = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        arrays = {spec.name: every[spec.name] for spec in models[0].manifest.inputs}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        calls: list[Callable[[], object]] = [lambda tensors=tensors: eager(**tensors)]
        calls += [lambda model=model, arrays=arrays: model.raw(arrays) for model in models]
        with torch.inference_mode():
            times = [[seconds(call) for call in calls] for _ in range(rounds + 2)][2:]
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        rows.append([length, round(medians[0] * 1e3), *(round(medians[0] / median, 2) for median in medians[1:])])
    return rows


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        source, *bundles = sys.argv[1:] or make_bert_base(Path(scratch))
        print(tabulate.tabulate(measure(source, bundles), ["tokens", "eager ms", *(Path(b).stem for b in bundles)], "github"))
