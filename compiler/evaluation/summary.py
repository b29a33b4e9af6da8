"""An evaluation in words, for people: what ``cpuc eval`` prints."""

from __future__ import annotations

import math
from pathlib import Path

from cpuc.compiler.evaluation.pipeline import Evaluation
from cpuc.compiler.tables import align, three_digits


def describe(evaluation: Evaluation) -> list[str]:
    """A compact table, line by line: a row for each figure, a column for each model."""
    manifest, runs = evaluation.manifest, list(evaluation.runs.values())
    rows = [["", *evaluation.runs]]
    for name in runs[0].scores:
        rows.append([_words(name), *(_score(run.scores[name]) for run in runs)])
    rows.append(["samples/s", *(three_digits(run.samples_per_second) for run in runs)])
    if runs[0].tokens is not None:
        rows.append(["tokens/s", *(three_digits(run.tokens_per_second or 0) for run in runs)])
    for name, value in evaluation.agreement.items():
        rows.append([_words(name), f"{value} of {evaluation.samples}" if isinstance(value, int) else f"{value:.6g}"])
    title = f"{manifest.task}, {manifest.architecture}, {manifest.build.precision}: {evaluation.samples} samples of "
    return [title + Path(evaluation.data).name, *align(rows)]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _score(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.2f}"
