"""A benchmark drawn: the roofline with a point for each size, and the distribution of its latencies."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from cpuc.compiler.benchmarking.report import Benchmark, Result
from cpuc.runtime.errors import CpucError, InputError
from cpuc.runtime.files import atomic_write, check_writable

FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: Path, *, force: bool) -> None:
    """Raise InputError for a kind of file that is not drawn, CpucError if it could not be written or matplotlib is missing."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: --plot draws {', '.join(FORMATS)}: name a file that ends so")
    check_writable(path, force=force)
    if importlib.util.find_spec("matplotlib") is None:
        raise CpucError("--plot needs matplotlib: pip install 'cpuc[bench]'")


def draw(benchmark: Benchmark, path: Path, *, force: bool) -> None:
    """Write the two plots to `path`, whole or not at all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    roofline, latencies = figure.subplots(1, 2)
    _draw_roofline(roofline, benchmark)
    _draw_latencies(latencies, benchmark)
    manifest, machine = benchmark.manifest, benchmark.machine
    figure.suptitle(
        f"{manifest.source.id}, {manifest.build.precision}, on {machine.threads} threads of {machine.cpu}, {machine.isa}"
    )
    with atomic_write(path, force=force) as staged:
        figure.savefig(staged, format=path.suffix.lower().removeprefix("."), dpi=150)


def _draw_roofline(axes: Any, benchmark: Benchmark) -> None:
    roofs = benchmark.roofs
    points = [(_intensity(each), each.arithmetic.total / each.median / 1e9, each) for each in benchmark.results]
    ridges = [peak.best / roofs.bandwidth for peak in roofs.peaks.values()]
    bounds = [*ridges, *(intensity for intensity, _, _ in points)]
    span = np.geomspace(min(bounds) / 4, max(bounds) * 4, 200)
    for peak in roofs.peaks.values():
        axes.plot(span, np.minimum(span * roofs.bandwidth, peak.best) / 1e9, label=f"{peak.precision} peak")
    for intensity, rate, result in points:
        axes.plot(intensity, rate, "o", color="black")
        axes.annotate(str(result.size), (intensity, rate), textcoords="offset points", xytext=(6, -10))
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations for each byte of weights",
        ylabel="GFLOP/s (int8: GOP/s)",
        title=f"Roofline: measured peaks, {roofs.bandwidth / 1e9:.1f} GB/s",
    )
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    axes.grid(which="both", alpha=0.2)
    axes.legend()


def _draw_latencies(axes: Any, benchmark: Benchmark) -> None:
    for i, result in enumerate(benchmark.results):
        for name, seconds, style in (("", result.seconds, "-"), (", original", result.original, "--")):
            if seconds is not None:
                share = 100 * np.arange(1, len(seconds) + 1) / len(seconds)
                label = f"{result.size}{name}"
                axes.step(1e3 * np.sort(seconds), share, style, where="post", color=f"C{i}", label=label)
    unit = benchmark.results[0].size.unit
    axes.set(xscale="log", xlabel="milliseconds", ylabel="% of the calls that took no longer", title="Latency")
    axes.legend(title="batch" if unit == "rows" else f"batch x {unit}")
    _plain(axes.xaxis)
    axes.grid(which="both", alpha=0.2)


def _plain(axis: Any) -> None:
    """Numbers as people write them along a logarithmic axis, also between powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _intensity(result: Result) -> float:
    return result.arithmetic.total / max(result.arithmetic.weight_bytes, 1)
