"""Verification: the artifact, reloaded from disk in a fresh process, against the eager model in float32."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cpuc.compiler.benchmarking.sizes import Size, make_inputs
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


# How many times the tolerance one batch may take: few values may differ by chance, those of a wrong kernel differ by more.
_OF_ONE_BATCH = 4
# Of a batch of random numbers: scores of all words of a vocabulary at many positions take gigabytes.
_MOST_VALUES = 1 << 26


@dataclass(frozen=True)
class Batch:
    """Padded inputs, and which rows of the sample they hold; none if they are random numbers, without padding."""

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


def with_packed_sizes(sample: Sample, manifest: Manifest) -> Sample:
    """`sample`, and a batch of each size that layers are packed for, if they are: a kernel of its own that no text may meet."""
    tuning = manifest.build.tuning
    if tuning is None or not any(trial.kept and (trial.choice, trial.form) == ("layers", "mkl") for trial in tuning.trials):
        return sample
    batches = []
    for batch, *lengths in tuning.sizes:
        length = lengths[0] if lengths else None
        inputs = make_inputs(manifest, Size(batch, length))
        if (ids := inputs.get("input_ids")) is not None:
            # Words of the sample in any order, between what begins and ends a row: there are models that look for it.
            first, *_, last = sample.rows[0].inputs["input_ids"]
            words = np.concatenate([row.inputs["input_ids"] for row in sample.rows])
            words = words[~np.isin(words, [first, last])]
            ids[:] = words[ids % len(words)]
            ids[:, 0], ids[:, -1] = first, last
        sizes = {**dict.fromkeys(manifest.axes, length or 1), "batch": batch}
        shapes = [[size if isinstance(size, int) else sizes[size] for size in spec.shape] for spec in manifest.outputs]
        if sum(map(math.prod, shapes)) <= _MOST_VALUES:
            batches.append(Batch([], inputs))
    return replace(sample, batches=[*sample.batches, *batches])


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

    Raises ParityError if an output is outside `tolerance` (see `Precision.tolerance`), far outside in a batch, or not finite.
    """
    expected, actual = (_values(task, manifest, sample, outputs) for outputs in (eager, artifact))
    for own, other in zip(expected, actual, strict=True):
        if not all(np.isfinite(values).all() for values in own.values()):
            raise ModelError("the original model itself gives NaN or infinite values on ordinary text")
        if any(other[name].shape != values.shape for name, values in own.items()):
            raise ParityError("the artifact's outputs have other sizes than the original model's")
    told = [i for i, batch in enumerate(sample.batches) if batch.rows]
    for spec in manifest.outputs:
        _check_output(spec.name, expected, actual, told, tolerance, manifest.build.precision)
    exact = np.concatenate([values for i in told for values in expected[i].values()])
    difference = np.abs(np.concatenate([values for i in told for values in actual[i].values()]) - exact)
    scale = _size(exact) or 1.0
    answers = zip(_answers(task, sample, eager), _answers(task, sample, artifact), strict=True)
    return Proof(
        inputs=len(told),
        shapes=[list(next(iter(sample.batches[i].inputs.values())).shape) for i in told],
        max_abs_difference=_round(difference.max()),
        mean_abs_difference=_round(difference.mean()),
        max_relative_difference=_round(difference.max() / scale),
        rms_relative_difference=_round(_size(difference) / scale),
        tolerance=tolerance,
        answers=len(sample.records),
        answers_equal=sum(a == b for a, b in answers),
    )


def _round(value: float) -> float:
    """Three digits: what a person reads, and the same on every run."""
    return float(f"{value:.3g}")


def _size(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _check_output(
    name: str,
    expected: Sequence[Arrays],
    actual: Sequence[Arrays],
    told: Sequence[int],
    tolerance: float,
    precision: str,
) -> None:
    """Raise ParityError unless an output agrees over the batches `told`, and roughly in each; written so that NaN fails."""
    size = _size(np.concatenate([expected[i][name] for i in told]))
    apart = [
        _size(other[name] - own[name]) / (max(size, _size(own[name])) or 1.0)
        for own, other in zip(expected, actual, strict=True)
    ]
    relative = _size(np.concatenate([actual[i][name] - expected[i][name] for i in told])) / (size or 1.0)
    if not relative <= tolerance:
        raise ParityError(
            f"the artifact differs from the original model by {relative:.2g} of its outputs' size ({name}), more than the "
            f"{tolerance:g} allowed at {precision}"
        )
    if not all(each <= _OF_ONE_BATCH * tolerance for each in apart):
        worst = max(range(len(apart)), key=lambda i: (math.isnan(apart[i]), apart[i]))
        raise ParityError(
            f"the artifact differs from the original model by {apart[worst]:.2g} of its outputs' size ({name}) in batch "
            f"{worst + 1}, more than the {_OF_ONE_BATCH * tolerance:g} allowed in one at {precision}"
        )


def _values(task: Task, manifest: Manifest, sample: Sample, outputs: Sequence[Arrays]) -> list[dict[str, np.ndarray]]:
    """Of each batch each output's values at positions that are not padding, as a float64 vector."""
    found = []
    for batch, arrays in zip(sample.batches, outputs, strict=True):
        rows = [sample.rows[i] for i in batch.rows]
        cut = cut_rows(rows, manifest.outputs, arrays, task.padding_side) if rows else [arrays]
        names = [spec.name for spec in manifest.outputs]
        found.append({name: np.concatenate([row[name].ravel() for row in cut]).astype(np.float64) for name in names})
    return found


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
