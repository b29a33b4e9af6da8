"""Tuning: of the ways to compute the same, the one that is fastest on this CPU for given sizes, by paired measurement.

One alternative after the other is compared with what was kept before it. What is kept is verified afterwards like any artifact.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from cpuc.compiler.benchmarking.machine import cpu_count, cpu_name
from cpuc.compiler.benchmarking.sizes import Size, make_inputs
from cpuc.compiler.benchmarking.timing import take_turns
from cpuc.compiler.fusion import FusedGraph, Fusible
from cpuc.runtime.allocation import heap_for
from cpuc.runtime.libraries import packing_for_fbgemm
from cpuc.runtime.manifest import Manifest, Trial, Tuning
from cpuc.runtime.streams import Streams

# An alternative has to win by more than a repeated measurement differs from the first.
_GAIN = 1.01
# Changing the number of threads costs a call some of its time: so long has each number at least.
_LEAST = 0.02

Arrays = Mapping[str, np.ndarray]
Report = Callable[[str], None]


def tune(
    fusible: Fusible, manifest: Manifest, sizes: Sequence[Size], seconds: float, report: Report
) -> tuple[FusedGraph, Tuning]:
    """Choose forms, threads and streams by measuring, at `sizes`.

    Args:
        fusible: what to build.
        manifest: whose inputs it takes.
        sizes: batches to measure with, all of the same weight.
        seconds: for each of two forms that are compared at one size.
        report: called with the name of each alternative as its measurement begins.

    Returns the graph in the best forms, and what was measured.
    """
    batches = [make_inputs(manifest, size) for size in sizes]
    names = [spec.name for spec in manifest.inputs]
    if len(batches) == 1:
        fusible.expect(batches[0])
    forms, trials = fusible.defaults, list[Trial]()
    graph = fusible.build(forms)
    best = _Program(graph, names)
    for choice, others in fusible.alternatives().items():
        for form in others:
            changed = replace(forms, **{choice: form})
            other = fusible.build(changed)
            if choice != "layers" and other.fused == graph.fused:
                continue  # there is nothing here that it would change
            report(f"tuning: {choice} {form}")
            program = _Program(other, names)
            measured, kept = _compare(choice, [_calls({"": best.run, form: program.run}, batch) for batch in batches], seconds)
            trials += measured
            if kept:
                forms, graph, best = changed, other, program
            del other, program  # of large models there is memory for two at a time
    trials = [replace(trial, kept=trial.form == getattr(forms, trial.choice)) for trial in trials]
    of_threads, threads = _threads(best, batches, seconds, report)
    of_streams, streams = _streams(best, batches, threads, seconds, report)
    shapes = [[size.batch] if size.length is None else [size.batch, size.length] for size in sizes]
    return graph, Tuning(cpu_name(), cpu_count(), shapes, threads, streams, [*trials, *of_threads, *of_streams])


class _Program:
    """A graph as an artifact with it would run."""

    def __init__(self, graph: FusedGraph, names: Sequence[str]) -> None:
        saved = graph.saved()
        with heap_for(len(saved)), packing_for_fbgemm():  # as the runtime does
            self._module = torch.jit.load(io.BytesIO(saved))
        self._names = names

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Nobody reads what it returns."""
        with torch.jit.optimized_execution(False), torch.inference_mode():
            self._module(*(torch.from_numpy(inputs[name]) for name in self._names))
        return {}


Call = Callable[[], object]


def _calls(runs: Mapping[str, Callable[[Arrays], object]], batch: Arrays) -> dict[str, Call]:
    return {form: functools.partial(run, batch) for form, run in runs.items()}


def _compare(choice: str, groups: Sequence[Mapping[str, Call]], seconds: float) -> tuple[list[Trial], str]:
    """Time the calls of each group in turns; that named "" is what the others are alternatives to.

    Returns a trial for each alternative, and the name of the one to keep: by the geometric mean of its ratios, as long as that
    of the lower quartiles is above one too.
    """
    rounds = take_turns(groups, seconds * len(groups[0]))
    ratios: dict[str, list[list[float]]] = {
        form: [[usual / own for usual, own in zip(each[""], each[form], strict=True)] for each in rounds]
        for form in groups[0]
        if form
    }
    medians = {form: [statistics.median(each) for each in sizes] for form, sizes in ratios.items()}
    sure = {form: _mean([statistics.quantiles(each, n=4)[0] for each in sizes]) > 1 for form, sizes in ratios.items()}
    best = max(medians, key=lambda form: _mean(medians[form]) if sure[form] else 0.0)
    kept = best if sure[best] and _mean(medians[best]) > _GAIN else ""
    return [Trial(choice, form, [round(x, 3) for x in sizes], form == kept) for form, sizes in medians.items()], kept


def _mean(ratios: Sequence[float]) -> float:
    return statistics.geometric_mean(ratios)


def _powers(most: int) -> list[int]:
    """Powers of two up to `most`."""
    return list(itertools.takewhile(lambda count: count <= most, (1 << i for i in range(32))))


def _threads(best: _Program, batches: Sequence[Arrays], seconds: float, report: Report) -> tuple[list[Trial], int]:
    usual = torch.get_num_threads()
    most = min(usual, cpu_count())
    fewer = [count for count in _powers(most) if count < most]
    if not fewer:
        return [], most

    def on(count: int, batch: Arrays, repeat: int) -> Call:
        def call() -> None:
            torch.set_num_threads(count)
            for _ in range(repeat):
                best.run(batch)

        return call

    report("tuning: threads")
    repeats = [_repeat(best, batch) for batch in batches]
    groups = [
        {str(count or ""): on(count or usual, batch, repeat) for count in (0, *fewer)}
        for batch, repeat in zip(batches, repeats, strict=True)
    ]
    try:
        trials, kept = _compare("threads", groups, seconds)
    finally:
        torch.set_num_threads(usual)
    return trials, int(kept or most)


def _repeat(best: _Program, batch: Arrays) -> int:
    best.run(batch)
    begin = time.perf_counter()
    best.run(batch)
    return max(1, math.ceil(_LEAST / (time.perf_counter() - begin)))


def _streams(
    best: _Program, batches: Sequence[Arrays], threads: int, seconds: float, report: Report
) -> tuple[list[Trial], int]:
    counts = _powers(cpu_count())[1:]
    if not counts:
        return [], 1
    report("tuning: streams")
    streams = {str(count): Streams(best.run, count) for count in counts}
    several = 2 * counts[-1]
    usual = torch.get_num_threads()

    def one_by_one(batch: Arrays) -> None:
        for _ in range(several):
            best.run(batch)

    def side_by_side(streams: Streams, batch: Arrays) -> None:
        for _ in streams.map([batch] * several):
            pass

    runs: dict[str, Callable[[Arrays], object]] = {"": one_by_one}
    runs |= {count: functools.partial(side_by_side, each) for count, each in streams.items()}
    for batch, each in itertools.product(batches, streams.values()):
        each.run(batch)  # kernels that are missing are made by one thread, the tables that keep them have no lock
    groups = [_calls(runs, batch) for batch in batches]
    torch.set_num_threads(min(threads, usual))
    try:
        trials, kept = _compare("streams", groups, seconds)
    finally:
        torch.set_num_threads(usual)
    return trials, int(kept or 1)
