"""Verification: the artifact, reloaded from disk in a fresh process, against the eager model in float32."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cpuc.compiler.processes import ARTIFACTS, ORIGINALS, Fresh
from cpuc.runtime.archive import File
from cpuc.runtime.errors import InputError, ModelError, ParityError
from cpuc.runtime.libraries import ipex_is_loaded
from cpuc.runtime.manifest import Manifest, Proof
from cpuc.runtime.model import cut_rows, pad_rows
from cpuc.runtime.tasks import Row, Task

if TYPE_CHECKING:
    from cpuc.compiler.loading import Original

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Batch:
    """Padded inputs, and which rows of the sample they hold."""

    rows: list[int]
    inputs: Arrays


@dataclass(frozen=True)
class Sample:
    """Encoded sample records; `owned` lists, for each record, its rows."""

    records: list[Any]
    owned: list[list[int]]
    rows: list[Row]
    batches: list[Batch]
    options: Any


def make_sample(task: Task, manifest: Manifest, records: Sequence[dict[str, Any]]) -> Sample:
    """Encode `records` and batch their rows: each alone, a few short ones together, the shortest with the longest.

    Records that are too long for the model are left out. Raises ModelError if hardly any are left, or if there are numbers in
    them that the model has no embedding for.
    """
    options = task.options({})
    parsed: list[Any] = []
    rows: list[Row] = []
    owned = []
    for i, value in enumerate(records):
        record = task.parse(value, f"sample {i + 1}")
        try:
            encoded = task.encode(record, options)
        except InputError:
            continue
        parsed.append(record)
        owned.append(list(range(len(rows), len(rows) + len(encoded))))
        rows += encoded
    if len(rows) < 3:
        raise ModelError("the model takes inputs so short that there is nothing to trace and verify it with")
    order = sorted(range(len(rows)), key=lambda i: rows[i].length)
    together = [[i] for i in order] + [order[:5], [order[0], order[-1]]]
    masked = any(spec.name == "attention_mask" for spec in manifest.inputs)
    if not masked and len({row.length for row in rows}) > 1:
        # Without a mask the graph cannot tell padding from values: the same row several times.
        together = [[i] for i in order] + [[order[1]] * 4, [order[-2]] * 2]
    side = task.padding_side
    batches = [Batch(indices, pad_rows([rows[i] for i in indices], manifest.inputs, side)) for indices in together]
    for spec in manifest.inputs:
        most = max(int(batch.inputs[spec.name].max()) for batch in batches)
        if spec.maximum is not None and most > spec.maximum:
            raise ModelError(
                f"the tokenizer gives {most} in {spec.name!r}, but the model takes {spec.maximum} at most: "
                "they do not belong together, or 'model_input_names' in tokenizer_config.json has one too many"
            )
    return Sample(parsed, owned, rows, batches, options)


def replay(artifact: File, manifest: Manifest, sample: Sample) -> list[Arrays]:
    """The outputs of `artifact` for each batch, computed by a fresh process, without transformers or the model's code.

    The process is given this very file, whatever is moved onto its path meanwhile. Raises ParityError if it fails.
    """
    inputs, outputs = ([spec.name for spec in specs] for specs in (manifest.inputs, manifest.outputs))
    try:
        return _in_fresh_process(ARTIFACTS, [], inputs, outputs, sample.batches, [artifact.handle])
    except ChildProcessError as error:
        raise ParityError(f"the artifact does not run in a fresh process: {error}") from None


def run_original(original: Original, inputs: Sequence[str], outputs: Sequence[str], batches: Sequence[Batch]) -> list[Arrays]:
    """The outputs of the original model for each batch: eager, float32, with torch's own kernels.

    IPEX's library replaces some of them in every process that loads it, so then another process computes them. Raises
    ModelError if that fails.
    """
    from cpuc.compiler.capture import explained, run_eager

    with explained():
        if ipex_is_loaded():
            arguments = [*original.origin, ",".join(inputs), ",".join(outputs)]
            return _in_fresh_process(ORIGINALS, arguments, inputs, outputs, batches)
        return [run_eager(original.module, inputs, outputs, batch.inputs) for batch in batches]


def _in_fresh_process(
    fresh: Fresh,
    arguments: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    batches: Sequence[Batch],
    handles: Sequence[int] = (),
) -> list[Arrays]:
    """What a process from `fresh` answers. Raises ChildProcessError with the last line that it wrote if it fails."""
    arrays: dict[str, Any] = {
        f"{b}/{i}": batch.inputs[name] for b, batch in enumerate(batches) for i, name in enumerate(inputs)
    }
    data = io.BytesIO()
    np.savez(data, **arrays)
    with np.load(io.BytesIO(fresh.run(arguments, data.getvalue(), handles))) as results:
        return [{name: results[f"{b}/{i}"] for i, name in enumerate(outputs)} for b in range(len(batches))]


def compare(
    task: Task, manifest: Manifest, sample: Sample, eager: Sequence[Arrays], artifact: Sequence[Arrays], tolerance: float
) -> Proof:
    """Figures of agreement over `sample`, whose batches gave `eager` and `artifact`.

    Raises ParityError if they are outside `tolerance` (see `Precision.tolerance`), or not finite.
    """
    expected, actual = (_values(task, manifest, sample, outputs) for outputs in (eager, artifact))
    if not np.isfinite(expected).all():
        raise ModelError("the original model itself gives NaN or infinite values on ordinary text")
    if actual.shape != expected.shape:
        raise ParityError("the artifact's outputs have other sizes than the original model's")
    difference = np.abs(actual - expected)
    scale = float(np.sqrt(np.mean(expected**2))) or 1.0
    relative = float(np.sqrt(np.mean(difference**2))) / scale
    # Written so that NaN fails.
    if not relative <= tolerance:
        raise ParityError(
            f"the artifact differs from the original model by {relative:.2g} of its outputs' size, more than the "
            f"{tolerance:g} allowed at {manifest.build.precision}"
        )
    answers = zip(_answers(task, sample, eager), _answers(task, sample, artifact), strict=True)
    return Proof(
        inputs=len(sample.batches),
        shapes=[list(next(iter(batch.inputs.values())).shape) for batch in sample.batches],
        max_abs_difference=_round(difference.max()),
        mean_abs_difference=_round(difference.mean()),
        max_relative_difference=_round(difference.max() / scale),
        rms_relative_difference=_round(relative),
        tolerance=tolerance,
        answers=len(sample.records),
        answers_equal=sum(a == b for a, b in answers),
    )


def _round(value: float) -> float:
    """Three digits: what a person reads, and the same on every run."""
    return float(f"{value:.3g}")


def _values(task: Task, manifest: Manifest, sample: Sample, outputs: Sequence[Arrays]) -> np.ndarray:
    """All output values at positions that are not padding, as one float64 vector."""
    values = []
    for batch, arrays in zip(sample.batches, outputs, strict=True):
        for row in cut_rows([sample.rows[i] for i in batch.rows], manifest.outputs, arrays, task.padding_side):
            values += [row[spec.name].ravel() for spec in manifest.outputs]
    return np.concatenate(values).astype(np.float64)


def _answers(task: Task, sample: Sample, outputs: Sequence[Arrays]) -> list[Any]:
    """The final answer to each record, scores aside, from the batches of one row."""
    alone = {batch.rows[0]: arrays for batch, arrays in zip(sample.batches, outputs, strict=True) if len(batch.rows) == 1}
    answers = []
    for record, owned in zip(sample.records, sample.owned, strict=True):
        single = [{name: array[0] for name, array in alone[row].items()} for row in owned]
        answer = task.decode(record, [sample.rows[row] for row in owned], single, sample.options)
        answers.append(without_scores(answer.to_json()))
    return answers


def without_scores(value: Any) -> Any:
    """JSON without its numbers that are not whole: scores and vectors, which the differences speak of."""
    if isinstance(value, dict):
        return {key: without_scores(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_scores(item) for item in value if not isinstance(item, float)]
    return None if isinstance(value, float) else value
