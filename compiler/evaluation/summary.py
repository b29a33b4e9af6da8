"""An evaluation in words, for people: what ``cpuc eval`` prints."""

from __future__ import annotations

import math
from pathlib import Path

from cpuc.compiler.evaluation.pipeline import Evaluation


def describe(evaluation: Evaluation) -> list[str]:
    """A compact table, line by line: a row for each figure, a column for each model."""
    manifest, runs = evaluation.manifest, list(evaluation.runs.values())
    rows = [["", *evaluation.runs]]
    for name in runs[0].scores:
        rows.append([_words(name), *(_score(run.scores[name]) for run in runs)])
    rows.append(["samples/s", *(_rate(run.samples_per_second) for run in runs)])
    if runs[0].tokens is not None:
        rows.append(["tokens/s", *(_rate(run.tokens_per_second or 0) for run in runs)])
    for name, value in evaluation.agreement.items():
        rows.append([_words(name), f"{value} of {evaluation.samples}" if isinstance(value, int) else f"{value:.6g}"])
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    title = f"{manifest.task}, {manifest.architecture}, {manifest.build.precision}: {evaluation.samples} samples of "
    return [
        title + Path(evaluation.data).name,
        *(
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=False))])
            for row in rows
        ),
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _score(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.2f}"


def _rate(value: float) -> str:
    """Three digits that count."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"
