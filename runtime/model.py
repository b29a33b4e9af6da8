"""A loaded artifact as users call it: records in, answers out; batched by length."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from cpuc.runtime.bundle import open_bundle
from cpuc.runtime.engine import Engine
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.tasks import Row, Task, load_task

# Tokens in a batch, padding included. Short rows share the cost of a call; beyond this, activations leave the cache
# (on two cores 2048 was as fast in bf16 and slower in fp32).
BATCH_TOKENS = 1024
# Records encoded at a time: enough to sort by length, few enough to keep memory flat on long files.
CHUNK_RECORDS = 1024

Progress = Callable[[int], None]


class Model:
    """What `load` returns. Calling it answers records; `raw` runs named arrays."""

    def __init__(self, engine: Engine, task: Task) -> None:
        self.manifest: Manifest = engine.manifest
        self._engine = engine
        self._task = task
        self._pads = {spec.name: spec.pad or 0 for spec in self.manifest.inputs}

    def __call__(self, inputs: Any, *, progress: Progress | None = None, **options: Any) -> Any:
        """Answer one record or a list of them, as the task describes (``{"question": …, "context": …}``).

        Args:
            inputs: a record gives an answer, a list gives a list in the same order.
            progress: called with the number of records answered since the last call.
            options: the task's options, such as ``top_k``.

        Raises:
            InputError: naming the record and field, or the option, that is wrong.
        """
        if isinstance(inputs, list | tuple):
            return list(self.answers(inputs, [f"record {i + 1}" for i in range(len(inputs))], options, progress))
        return next(self.answers([inputs], ["the record"], options, progress))

    def answers(
        self,
        inputs: Iterable[Any],
        names: Iterable[str],
        options: Mapping[str, Any],
        progress: Progress | None = None,
    ) -> Iterator[Any]:
        """Answers in the order of `inputs`, whose names in errors are `names`. All records are checked first."""
        checked = self._task.options(options)
        records = [self._task.parse(value, name) for value, name in zip(inputs, names, strict=True)]
        for start in range(0, len(records), CHUNK_RECORDS):
            yield from self._answer_chunk(records[start : start + CHUNK_RECORDS], checked, progress)

    def _answer_chunk(self, records: list[Any], options: Any, progress: Progress | None) -> list[Any]:
        encoded = [self._task.encode(record, options) for record in records]
        rows = [row for group in encoded for row in group]
        owner = [i for i, group in enumerate(encoded) for _ in group]
        missing = [len(group) for group in encoded]
        outputs: list[dict[str, np.ndarray]] = [{}] * len(rows)
        for batch in batches([row.length for row in rows], BATCH_TOKENS):
            for index, output in zip(batch, self._run([rows[i] for i in batch]), strict=True):
                outputs[index] = output
                missing[owner[index]] -= 1
                if progress is not None and missing[owner[index]] == 0:
                    progress(1)
        answers = []
        start = 0
        for record, group in zip(records, encoded, strict=True):
            answers.append(self._task.decode(record, group, outputs[start : start + len(group)], options))
            start += len(group)
        return answers

    def _run(self, rows: list[Row]) -> list[dict[str, np.ndarray]]:
        """The outputs of each row, without padding."""
        outputs = self.raw(pad_rows(rows, self._pads))
        per_token = {spec.name: spec.shape[1:2] == ["sequence"] for spec in self.manifest.outputs}
        return [
            {name: array[i, : row.length] if per_token[name] else array[i] for name, array in outputs.items()}
            for i, row in enumerate(rows)
        ]

    def raw(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph on named arrays of the manifest's signature; returns its outputs by name.

        Raises InputError naming the array whose name, dtype, shape or values do not fit.
        """
        return self._engine.run(inputs)


def load(path: str | os.PathLike[str], *, check_digests: bool = True, warm_up: bool = True) -> Model:
    """Load a bundle that ``cpuc compile`` wrote.

    Args:
        path: the ``.pt`` file.
        check_digests: compare every member with the manifest's SHA-256 before it is used.
        warm_up: run one window before returning, so that the first request is as fast as the others. A program that
            answers one request and ends does better without.

    Raises:
        BundleError: no such file, no bundle, damaged, or made for other versions or another CPU.
    """
    bundle = open_bundle(path)
    task = load_task(bundle.manifest, bundle.read)
    return Model(Engine(bundle, check_digests=check_digests, warm_up=warm_up), task)


def batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Indices of rows grouped so that longest length × rows stays within `budget`, longest rows first.

    Longest first, so that the largest buffers are allocated once and memory does not creep up.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad_rows(rows: list[Row], pads: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Stack rows into arrays of shape [rows, longest], filled up on the right with `pads`."""
    longest = max(row.length for row in rows)
    arrays = {}
    for name, first in rows[0].inputs.items():
        array = np.full((len(rows), longest), pads[name], first.dtype)
        for i, row in enumerate(rows):
            array[i, : row.length] = row.inputs[name]
        arrays[name] = array
    return arrays
