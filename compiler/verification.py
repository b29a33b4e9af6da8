"""Verification: the artifact, reloaded from disk in a fresh process, against the eager model in float32."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpuc.compiler.capture import Inputs
from cpuc.runtime.errors import CpucError, ParityError
from cpuc.runtime.manifest import Manifest, Proof
from cpuc.runtime.model import pad_rows
from cpuc.runtime.tasks import Row, Task

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sample:
    """The rows of sample records, and batches of them as (indices of rows, padded inputs)."""

    records: list[Any]
    groups: list[list[int]]
    rows: list[Row]
    batches: list[tuple[list[int], Inputs]]
    options: Any


def make_sample(task: Task, manifest: Manifest, records: Sequence[dict[str, Any]]) -> Sample:
    """Encode `records` and batch their rows: each alone, all together, and pairs of unlike lengths with padding."""
    options = task.options({})
    parsed = [task.parse(record, f"sample {i + 1}") for i, record in enumerate(records)]
    rows: list[Row] = []
    groups = []
    for record in parsed:
        encoded = task.encode(record, options)
        groups.append(list(range(len(rows), len(rows) + len(encoded))))
        rows += encoded
    pads = {spec.name: spec.pad or 0 for spec in manifest.inputs}
    order = sorted(range(len(rows)), key=lambda i: rows[i].length)
    together = [[i] for i in order] + [order[:5], [order[0], order[-1]]]
    return Sample(parsed, groups, rows, [(indices, pad_rows([rows[i] for i in indices], pads)) for indices in together], options)


def replay(artifact: Path, manifest: Manifest, batches: Sequence[Inputs]) -> list[Outputs]:
    """The outputs of `artifact` for `batches`, computed by a fresh process that imports the runtime only.

    Raises ParityError if the process fails.
    """
    names = [spec.name for spec in manifest.inputs]
    with tempfile.TemporaryDirectory(prefix="cpuc-") as folder:
        inputs, outputs = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(inputs, **{f"{b}/{i}": batch[name] for b, batch in enumerate(batches) for i, name in enumerate(names)})
        command = [sys.executable, "-P", "-m", "cpuc.compiler.replay", str(artifact), str(inputs), str(outputs)]
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"it ended with code {process.returncode}"]
            raise ParityError(f"the artifact does not run in a fresh process: {lines[-1]}")
        with np.load(outputs) as arrays:
            return [
                {spec.name: arrays[f"{b}/{i}"] for i, spec in enumerate(manifest.outputs)} for b in range(len(batches))
            ]


def compare(task: Task, manifest: Manifest, sample: Sample, eager: Sequence[Outputs], artifact: Sequence[Outputs],
            tolerance: float) -> Proof:  # fmt: skip
    """Figures of agreement. Raises ParityError if they are outside `tolerance` (see `Precision.tolerance`)."""
    pairs = [pair for batch in zip(sample.batches, eager, artifact, strict=True) for pair in _valid(sample, manifest, *batch)]
    expected = np.concatenate([pair[0].ravel() for pair in pairs]).astype(np.float64)
    actual = np.concatenate([pair[1].ravel() for pair in pairs]).astype(np.float64)
    if not np.isfinite(expected).all():
        raise CpucError("the original model itself gives NaN or infinite values on ordinary text")
    difference = np.abs(actual - expected)
    scale = float(np.sqrt(np.mean(expected**2))) or 1.0
    answers = [_answers(task, sample, outputs) for outputs in (eager, artifact)]
    proof = Proof(
        inputs=len(sample.batches),
        shapes=[list(next(iter(batch.values())).shape) for _, batch in sample.batches],
        max_abs_difference=_round(difference.max()),
        mean_abs_difference=_round(difference.mean()),
        max_relative_difference=_round(difference.max() / scale),
        rms_relative_difference=_round(np.sqrt(np.mean(difference**2)) / scale),
        tolerance=tolerance,
        answers=len(sample.records),
        answers_equal=sum(a == b for a, b in zip(*answers, strict=True)),
    )
    # Written so that NaN fails.
    if not proof.rms_relative_difference <= tolerance:
        raise ParityError(
            f"the artifact differs from the original model by {proof.rms_relative_difference:.2g} of its outputs' "
            f"size, more than the {tolerance:g} allowed at {manifest.build.precision}: no artifact was written"
        )
    return proof


def _round(value: float) -> float:
    """Three digits: what a person reads, and the same on every run."""
    return float(f"{value:.3g}")


def _valid(sample: Sample, manifest: Manifest, batch: tuple[list[int], Inputs], eager: Outputs, artifact: Outputs
           ) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Pairs of output values at positions that are not padding."""
    pairs = []
    for spec in manifest.outputs:
        for i, index in enumerate(batch[0]):
            end = sample.rows[index].length if "sequence" in spec.shape else None
            pairs.append((eager[spec.name][i, :end], artifact[spec.name][i, :end]))
    return pairs


def _answers(task: Task, sample: Sample, outputs: Sequence[Outputs]) -> list[Any]:
    """The final answer to each record, scores aside, from the batches of one row."""
    alone = {batch[0][0]: output for batch, output in zip(sample.batches, outputs, strict=True) if len(batch[0]) == 1}
    answers = []
    for record, group in zip(sample.records, sample.groups, strict=True):
        rows = [sample.rows[i] for i in group]
        answer = task.decode(record, rows, [{k: v[0] for k, v in alone[i].items()} for i in group], sample.options)
        answers.append({key: value for key, value in answer.to_json().items() if key != "score"})
    return answers
