"""The figures of a benchmark, as JSON and in words."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cpuc.compiler.benchmarking.operators import Operator
from cpuc.compiler.benchmarking.sizes import Size
from cpuc.compiler.tables import align, three_digits
from cpuc.runtime.manifest import Manifest

if TYPE_CHECKING:  # they import torch
    from cpuc.compiler.benchmarking.arithmetic import Arithmetic
    from cpuc.compiler.benchmarking.machine import Machine
    from cpuc.compiler.benchmarking.peak import Peak, Roofs

# A percentile is told if so many rounds were measured: of fewer it would be the slowest one.
PERCENTILES = {50: 1, 90: 10, 99: 100}
# Operators in the table; the rest of them is one line.
MOST_OPERATORS = 10


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the original: of the medians, and the quartiles of the ratios round by round."""

    medians: float
    lower: float
    median: float
    upper: float


@dataclass(frozen=True)
class Result:
    """What was measured at one size.

    Attributes:
        seconds: of each call of the artifact, arrays in and arrays out, in the order of the rounds.
        original: of each call of the original, round by round beside them; None without one.
    """

    size: Size
    seconds: list[float]
    original: list[float] | None
    arithmetic: Arithmetic
    operators: list[Operator]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def percentile(self, rank: int) -> float | None:
        """Seconds within which `rank` per cent of the calls were answered, None if there were too few to tell."""
        return float(np.percentile(self.seconds, rank)) if len(self.seconds) >= PERCENTILES[rank] else None

    @property
    def ratio(self) -> Ratio | None:
        if self.original is None:
            return None
        rounds = np.percentile(np.array(self.original) / np.array(self.seconds), [25, 50, 75])
        return Ratio(statistics.median(self.original) / self.median, *map(float, rounds))

    def per_second(self, count: int) -> float:
        """The rate of something that each call does `count` times."""
        return count * len(self.seconds) / sum(self.seconds)

    def at_peak(self, roofs: Roofs) -> float | None:
        """Seconds that the arithmetic takes at the peak of its precisions; None without a peak of one of them."""
        operations = self.arithmetic.operations
        if not operations or not set(operations) <= set(roofs.peaks):
            return None
        return sum(count / roofs.peaks[precision].best for precision, count in operations.items())

    def at_roof(self, roofs: Roofs) -> float | None:
        """The same, but no less than reading the weights takes, unless all of them stay in the cache."""
        at_peak = self.at_peak(roofs)
        if at_peak is None or (roofs.cache is not None and self.arithmetic.weight_bytes < roofs.cache):
            return at_peak
        return max(at_peak, self.arithmetic.weight_bytes / roofs.bandwidth)

    def to_json(self, roofs: Roofs) -> dict[str, Any]:
        """Times in milliseconds; rates per second; shares between 0 and 1. What cannot be told is null."""
        arithmetic, at_peak, at_roof = self.arithmetic, self.at_peak(roofs), self.at_roof(roofs)
        return {
            "batch_size": self.size.batch,
            "seq_len": self.size.length,
            "unit": self.size.unit,
            "rounds": len(self.seconds),
            "latency_ms": {f"p{rank}": _milliseconds(self.percentile(rank)) for rank in PERCENTILES},
            "items_per_second": self.per_second(self.size.batch),
            "elements_per_second": None if self.size.elements is None else self.per_second(self.size.elements),
            "original_ms": None if self.original is None else _milliseconds(statistics.median(self.original)),
            "speedup": None if self.ratio is None else asdict(self.ratio),
            "operations": dict(arithmetic.operations),
            "uncounted_operators": dict(arithmetic.uncounted),
            "weight_bytes": arithmetic.weight_bytes,
            "operations_per_second": arithmetic.total / self.median,
            "share_of_peak": None if at_peak is None else at_peak / self.median,
            "share_of_roof": None if at_roof is None else at_roof / self.median,
            "operators": [
                {
                    "name": each.name,
                    "calls": each.calls,
                    "ms": _milliseconds(each.seconds),
                    "share": each.share,
                    "operations": arithmetic.by_operator.get(each.name),
                }
                for each in self.operators
            ],
        }


@dataclass(frozen=True)
class Benchmark:
    """The figures of a benchmark; `against` is the model that was measured beside the artifact, None without one."""

    manifest: Manifest
    machine: Machine
    roofs: Roofs
    against: str | None
    results: list[Result]

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.manifest.task,
            "architecture": self.manifest.architecture,
            "source": self.manifest.source.id,
            "precision": self.manifest.build.precision,
            "against": self.against,
            "machine": asdict(self.machine),
            "peak": {name: {**asdict(peak), "best": peak.best} for name, peak in self.roofs.peaks.items()},
            "peak_skipped": self.roofs.skipped,
            "memory_bytes_per_second": self.roofs.bandwidth,
            "cache_bytes": self.roofs.cache,
            "results": [result.to_json(self.roofs) for result in self.results],
        }

    def describe(self) -> list[str]:
        """The figures for people, line by line: the machine, a table of the sizes, and one of operators for each size."""
        build, machine = self.manifest.build, self.machine
        title = f"{self.manifest.task}, {self.manifest.architecture}, {build.precision}"
        lines = [f"{title}: {machine.threads} threads of {machine.cpu}, {machine.isa}", ""]
        lines += align([_peak_row(peak) for peak in self.roofs.peaks.values()], [_PEAK_HEAD])
        lines += [f"{name}: not measured, {reason}" for name, reason in self.roofs.skipped.items()]
        lines += [f"memory: {self.roofs.bandwidth / 1e9:.1f} GB/s read", ""]
        lines += self._sizes()
        for result in self.results:
            lines += ["", *_operators(result)]
        return lines

    def _sizes(self) -> list[str]:
        unit = self.results[0].size.unit
        head = ["batch" if unit == "rows" else f"batch x {unit}", "rounds", "p50 ms", "p90", "p99", "items/s"]
        head += [] if unit == "rows" else [f"{unit}/s"]
        head += ["GFLOP", "GFLOP/s", "of peak", "of roof"]
        head += [] if self.against is None else ["original ms", "speedup", "by round: quartiles"]
        lines = align([_size_row(result, self.roofs) for result in self.results], [head])
        if uncounted := self.results[0].arithmetic.uncounted:
            names = ", ".join(f"{name} {count}" for name, count in uncounted.items())
            lines.append(f"GFLOP leave out operators that cpuc has no rule for, so that shares are too low: {names}")
        return lines


_PEAK_HEAD = ["precision", "peak GFLOP/s", "instruction", "best GEMM", "its shape", "its kernel"]


def _peak_row(peak: Peak) -> list[str]:
    fma = "none measured" if peak.fma is None else f"{peak.instruction}: {peak.fma / 1e9:.0f}"
    shape = " x ".join(map(str, peak.shape))
    return [peak.precision, f"{peak.best / 1e9:.0f}", fma, f"{peak.gemm / 1e9:.0f}", shape, peak.kernel]


def _size_row(result: Result, roofs: Roofs) -> list[str]:
    size, median, arithmetic = result.size, result.median, result.arithmetic
    row = [str(size), str(len(result.seconds))]
    for rank in PERCENTILES:
        milliseconds = _milliseconds(result.percentile(rank))
        row.append("-" if milliseconds is None else three_digits(milliseconds))
    row.append(three_digits(result.per_second(size.batch)))
    row += [] if size.elements is None else [three_digits(result.per_second(size.elements))]
    row += [three_digits(arithmetic.total / 1e9), three_digits(arithmetic.total / median / 1e9)]
    for least in (result.at_peak(roofs), result.at_roof(roofs)):
        row.append("-" if least is None else f"{100 * least / median:.0f} %")
    if result.original is not None and result.ratio is not None:
        ratio = result.ratio
        row += [three_digits(1e3 * statistics.median(result.original)), f"{ratio.medians:.2f}"]
        row.append(f"{ratio.lower:.2f}  {ratio.median:.2f}  {ratio.upper:.2f}")
    return row


def _operators(result: Result) -> list[str]:
    """The longest operators of one call, as the profiler has them."""
    shown, rest = result.operators[:MOST_OPERATORS], result.operators[MOST_OPERATORS:]
    rows = []
    for each in shown:
        operations = result.arithmetic.by_operator.get(each.name)
        rate = three_digits(operations / each.seconds / 1e9) if operations else ""
        rows.append([each.name, f"{each.calls:.0f}", three_digits(1e3 * each.seconds), f"{100 * each.share:.1f} %", rate])
    if rest:
        calls, seconds, share = (sum(getattr(each, name) for each in rest) for name in ("calls", "seconds", "share"))
        name = f"{len(rest)} other operators"
        rows.append([name, f"{calls:.0f}", three_digits(1e3 * seconds), f"{100 * share:.1f} %", ""])
    return align(rows, [[f"one call of {result.size}, profiled", "calls", "ms", "share", "GFLOP/s"]])


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
