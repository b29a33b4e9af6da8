"""A loaded artifact as users call it: records in, answers out; batched by length."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from cpuc.runtime.bundle import open_bundle
from cpuc.runtime.engine import Engine
from cpuc.runtime.manifest import LARGEST_SIZE, Manifest, TensorSpec
from cpuc.runtime.streams import Streams
from cpuc.runtime.tasks import Row, Task, load_task

# Sizes of the free axis in the runs that prepare a loaded artifact, as far as its bounds allow.
WARM_UP = {"sequence": (384, 128, 16), "samples": (80_000,)}

Progress = Callable[[int], None]


class Runner(Protocol):
    """What a model needs of its engine."""

    manifest: Manifest

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The graph's outputs by name for arrays of the manifest's signature."""


class Model:
    """What `load` returns. Calling it answers records; `raw` runs named arrays."""

    def __init__(self, engine: Runner, task: Task, streams: Streams | None = None) -> None:
        self.manifest: Manifest = engine.manifest
        self._streams = streams
        self._run = engine.run if streams is None else streams.run
        self._task = task
        # Without a mask the graph cannot tell padding from values: rows of different sizes stay apart.
        self._mixes = any(spec.name == "attention_mask" for spec in self.manifest.inputs)

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
        size = self._task.chunk_records
        for start in range(0, len(records), size):
            yield from self._answer_chunk(records[start : start + size], checked, progress)

    def encoded(self, inputs: Iterable[Any], names: Iterable[str], options: Mapping[str, Any]) -> Iterator[list[Row]]:
        """The rows that answer each record, which the model is not run on; raises what `answers` raises of them."""
        checked = self._task.options(options)
        for value, name in zip(inputs, names, strict=True):
            yield self._task.encode(self._task.parse(value, name), checked)

    def _answer_chunk(self, records: list[Any], options: Any, progress: Progress | None) -> list[Any]:
        encoded = [self._task.encode(record, options) for record in records]
        rows = [row for group in encoded for row in group]
        owner = [i for i, group in enumerate(encoded) for _ in group]
        missing = [len(group) for group in encoded]
        outputs: list[dict[str, np.ndarray]] = [{}] * len(rows)
        groups = list(batches([row.length for row in rows], self._budget(rows), mixed=self._mixes))
        for batch, made in zip(groups, self._run_all([[rows[i] for i in batch] for batch in groups]), strict=True):
            for index, output in zip(batch, made, strict=True):
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

    def _budget(self, rows: list[Row]) -> int:
        """Of a batch; less than the task's where every stream would not have one."""
        most = self._task.batch_budget
        return most if self._streams is None else min(most, -(-sum(row.length for row in rows) // self._streams.count))

    def _run_all(self, groups: list[list[Row]]) -> Iterator[list[dict[str, np.ndarray]]]:
        """The outputs of each row of each batch, without padding."""
        side = self._task.padding_side
        padded = (pad_rows(rows, self.manifest.inputs, side) for rows in groups)
        made = map(self._run, padded) if self._streams is None else self._streams.map(padded)
        for rows, outputs in zip(groups, made, strict=True):
            yield cut_rows(rows, self.manifest.outputs, outputs, side)

    def warm_up(self) -> None:
        """Run a row of each usual size, so that threads, buffers and kernels exist before the first request.

        oneDNN generates code for each number of rows when it first meets it.
        """
        free = next((name for name in WARM_UP if name in self.manifest.axes), "batch")
        largest = self.manifest.axes[free].maximum or LARGEST_SIZE
        for size in WARM_UP.get(free, (1,)):
            sizes = {free: min(size, largest)}
            inputs = pad_rows([self._task.warm_up()], self.manifest.inputs, self._task.padding_side, sizes)
            if self._streams is None:
                self._run(inputs)
            else:
                self._streams.everywhere(inputs)

    def raw(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph on named arrays of the manifest's signature; returns its outputs by name.

        Raises InputError naming the array whose name, dtype, shape or values do not fit.
        """
        return self._run(inputs)


def load(
    path: str | os.PathLike[str],
    *,
    trust: str | os.PathLike[str] | None = None,
    check_digests: bool = True,
    warm_up: bool = True,
    streams: int = 1,
) -> Model:
    """Load a bundle that ``cpuc compile`` wrote.

    Args:
        path: the ``.pt`` file.
        trust: a PEM file with an Ed25519 public key: the bundle must be signed by it.
        check_digests: compare every member with the manifest's SHA-256 before it is used.
        warm_up: run rows of usual lengths before returning, so that the first request is as fast as the others. A program that
            answers one request and ends does better without.
        streams: how many batches run side by side, each on its own share of the CPUs that this process may use: more than one
            answers lists of records, and requests of several threads, sooner, and each single one later.

    Raises:
        BundleError: no such file, no bundle, damaged, not signed as it must be, or made for other versions or another CPU.
        InputError: a key that cannot be read, or one without the digests that it signs; more streams than CPUs.
    """
    bundle = open_bundle(path, trust=trust)
    task = load_task(bundle.manifest, bundle.read)
    engine = Engine(bundle, check_digests=check_digests)
    model = Model(engine, task, Streams(engine.run, streams) if streams != 1 else None)
    if warm_up:
        model.warm_up()
    return model


def batches(lengths: list[int], budget: int, *, mixed: bool = True) -> Iterator[list[int]]:
    """Indices of rows grouped so that longest length × rows stays within `budget`, longest rows first.

    Longest first, so that the largest buffers are allocated once and memory does not creep up. Unless `mixed`, the rows
    of a batch are all of one length.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batch: list[int] = []
    for index in order:
        longest = lengths[batch[0]] if batch else 0
        if batch and ((len(batch) + 1) * longest > budget or not (mixed or lengths[index] == longest)):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad_rows(
    rows: Sequence[Row], specs: Sequence[TensorSpec], side: str, sizes: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Stack rows into arrays of shape [rows, longest, …], filled up with each input's `pad` on the given side.

    `sizes` gives free axes a size of their own, where that is more than the longest row's.
    """
    arrays = {}
    for spec in specs:
        values = [row.inputs[spec.name] for row in rows]
        least = [(sizes or {}).get(str(axis), 1) for axis in spec.shape[1:]]
        shape = [max(each) for each in zip(least, *(value.shape for value in values), strict=True)]
        array = np.full((len(rows), *shape), spec.pad or 0, values[0].dtype)
        for i, value in enumerate(values):
            array[i][tuple(_part(size, total, side) for size, total in zip(value.shape, shape, strict=True))] = value
        arrays[spec.name] = array
    return arrays


def cut_rows(
    rows: Sequence[Row], specs: Sequence[TensorSpec], outputs: Mapping[str, np.ndarray], side: str
) -> list[dict[str, np.ndarray]]:
    """The outputs of each row, free axes cut to the row's own sizes: the inverse of `pad_rows`."""
    cut = []
    for i, row in enumerate(rows):
        own = {}
        for spec in specs:
            array = outputs[spec.name][i]
            sizes = [row.sizes.get(str(axis), total) for axis, total in zip(spec.shape[1:], array.shape, strict=True)]
            own[spec.name] = array[tuple(_part(size, total, side) for size, total in zip(sizes, array.shape, strict=True))]
        cut.append(own)
    return cut


def _part(size: int, total: int, side: str) -> slice:
    return slice(size) if side == "right" else slice(total - size, total)
