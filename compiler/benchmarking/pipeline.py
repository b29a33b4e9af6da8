"""A benchmark from a bundle to its figures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cpuc.compiler.benchmarking.report import Benchmark, Result
from cpuc.compiler.benchmarking.sizes import Size, choose_sizes, make_inputs
from cpuc.compiler.benchmarking.timing import Progress, take_turns
from cpuc.compiler.evaluation.original import original_model
from cpuc.runtime.bundle import Bundle, open_bundle
from cpuc.runtime.engine import Engine
from cpuc.runtime.errors import InputError
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.model import Model
from cpuc.runtime.tasks import load_task

ARTIFACT, ORIGINAL = "artifact", "original"
Report = Callable[[str], None]


def bench(
    bundle: str | os.PathLike[str],
    *,
    batch_size: int | Sequence[int] = 1,
    seq_len: int | Sequence[int] = (),
    against: str | None = None,
    revision: str | None = None,
    seconds: float = 10.0,
    plot: str | os.PathLike[str] | None = None,
    force: bool = False,
    report: Report = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Benchmark:
    """Measure how fast an artifact is on this machine, what share of the machine's peak it uses, and where its time goes.

    Args:
        bundle: the artifact.
        batch_size: rows in a call, one number or several.
        seq_len: tokens of each row, or samples of sound, one number or several; by default 16, 128 and 384 tokens, or one and
            five seconds at 16 kHz, as far as the model's bounds allow. Models of images have none.
        against: a model to measure beside the artifact, a local folder, a Hub id or a short name; it runs eager, in float32,
            with transformers' default attention.
        revision: its branch, tag or commit on the Hub.
        seconds: for each pair of batch size and length; slow ones take longer, until there are five rounds.
        plot: a file to draw the roofline and the latencies to (PNG, SVG or PDF); takes matplotlib, the extra ``bench``.
        force: replace that file if it exists.
        report: called with the name of each stage as it begins.
        progress: called with the steps done since the last call, and the number of all.

    Returns:
        Times in seconds, rates in operations and bytes per second.

    Raises:
        InputError: a size that the model does not take, or an option out of range. Nothing has run then.
        BundleError: no such file, or no bundle that this installation runs.
        ModelError: the original cannot be found or loaded.
        CpucError: the plot cannot be written, or matplotlib is not installed.
    """
    _check_options(seconds, against, revision, plot, force)
    opened = open_bundle(bundle)
    sizes = choose_sizes(opened.manifest, _several(batch_size), _several(seq_len))
    engine, models = _loaded(opened, against, revision, report)
    benchmark = _measure(engine, models, sizes, against, seconds, report, progress)
    if plot is not None:
        from cpuc.compiler.benchmarking.plot import draw

        draw(benchmark, Path(plot), force=force)
    return benchmark


def _loaded(opened: Bundle, against: str | None, revision: str | None, report: Report) -> tuple[Engine, dict[str, Model]]:
    report("loading the artifact")
    engine = Engine(opened)
    models = {ARTIFACT: Model(engine, load_task(opened.manifest, opened.read))}
    if against is not None:
        report("loading the original model")
        models[ORIGINAL] = original_model(against, opened.manifest.task, revision)
        _check_alike(opened.manifest, models[ORIGINAL].manifest)
    return engine, models


def _measure(
    engine: Engine,
    models: dict[str, Model],
    sizes: Sequence[Size],
    against: str | None,
    seconds: float,
    report: Report,
    progress: Progress,
) -> Benchmark:
    """The machine's peak before and after the models, which take turns, and the artifact's operators."""
    # Both import torch, which takes seconds.
    from cpuc.compiler.benchmarking.machine import describe_machine
    from cpuc.compiler.benchmarking.peak import measure_roofs

    report("measuring the peak of this machine")
    roofs = measure_roofs()
    report("measuring the model")
    inputs = [make_inputs(engine.manifest, size) for size in sizes]
    calls = [{name: lambda model=model, each=each: model.raw(each) for name, model in models.items()} for each in inputs]
    times = take_turns(calls, seconds, progress)
    report("measuring the peak again")
    roofs = measure_roofs(roofs)
    report("profiling")
    results = [_result(engine, size, times[i], calls[i][ARTIFACT], inputs[i]) for i, size in enumerate(sizes)]
    return Benchmark(engine.manifest, describe_machine(), roofs, against, results)


def _check_options(
    seconds: float, against: str | None, revision: str | None, plot: str | os.PathLike[str] | None, force: bool
) -> None:
    """Raise what `bench` raises of options that need no model to be checked."""
    if not 0 < seconds < float("inf"):
        raise InputError(f"--seconds is {seconds:g}, must be more than 0")
    if revision is not None and against is None:
        raise InputError("--revision is of the model to compare with, and there is none: give --against")
    if plot is not None:
        from cpuc.compiler.benchmarking.plot import check_plot

        check_plot(Path(plot), force=force)


def _several(sizes: int | Sequence[int]) -> Sequence[int]:
    return [sizes] if isinstance(sizes, int) else sizes


def _result(
    engine: Engine, size: Size, times: dict[str, list[float]], call: Callable[[], object], inputs: dict[str, np.ndarray]
) -> Result:
    """What is known of one size, with its operators and its arithmetic."""
    import torch

    from cpuc.compiler.benchmarking.arithmetic import count
    from cpuc.compiler.benchmarking.operators import profile

    tensors = [torch.from_numpy(inputs[spec.name]) for spec in engine.manifest.inputs]
    return Result(size, times[ARTIFACT], times.get(ORIGINAL), count(engine.module, tensors), profile(call))


def _check_alike(artifact: Manifest, original: Manifest) -> None:
    """Raise InputError unless the original takes the artifact's inputs."""
    mine, its = ([(spec.name, spec.dtype, spec.shape, spec.maximum) for spec in each.inputs] for each in (artifact, original))
    if mine != its:
        raise InputError(
            f"{original.source.id}: takes other inputs than the artifact: give the model it was compiled from, "
            f"{artifact.source.id}"
        )
