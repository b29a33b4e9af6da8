"""The compile pipeline: one line a stage, each a function from one named type to the next."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpuc.compiler.benchmarking.sizes import fit_sizes, parse_sizes
from cpuc.compiler.calibration import Calibration, make_calibration, read_calibration
from cpuc.compiler.precision import FEATURES, LOGITS, PRECISIONS, check_cpu, slow_here
from cpuc.compiler.processes import start_processes
from cpuc.compiler.source import Snapshot, Source, resolve, snapshot
from cpuc.compiler.tasks import TASKS, architecture_of, select
from cpuc.runtime import bundle
from cpuc.runtime.archive import File
from cpuc.runtime.errors import InputError, ParityError
from cpuc.runtime.files import atomic_write, check_writable
from cpuc.runtime.libraries import installed_versions
from cpuc.runtime.manifest import FORMAT_VERSION, Build, Manifest, TensorSpec
from cpuc.runtime.manifest import Source as SourceRecord
from cpuc.runtime.tasks import load_task

if TYPE_CHECKING:
    import numpy as np

    from cpuc.compiler.fusion import Fusible
    from cpuc.compiler.loading import Original
    from cpuc.compiler.verification import Sample
    from cpuc.runtime.records import Records

FUSER = "ipex"
Report = Callable[[str], None]


def compile(
    model: str,
    output: str | os.PathLike[str],
    *,
    task: str | None = None,
    precision: str = "fp32",
    calibrate: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    force: bool = False,
    verify: bool = True,
    allow_unlisted: bool = False,
    tune: bool | str = False,
    tune_seconds: float = 2.0,
    report: Report = lambda _: None,
    warn: Report = lambda _: None,
) -> Manifest:
    """Compile a Hugging Face model into one bundle; returns the manifest that it holds.

    Args:
        model: a local folder, a Hub id or a short name.
        output: path of the bundle; its folder must exist.
        task: such as ``question-answering``; by default what the model's configuration says.
        precision: one of `precision.PRECISIONS`.
        calibrate: records as ``cpuc run`` takes them, to choose scales of static int8 by; by default a few built-in ones.
        revision: branch, tag or commit on the Hub.
        force: replace `output` if it exists.
        verify: compare the artifact with the original model; without it the manifest's proof is null.
        allow_unlisted: try an architecture that is not in the table; it is always verified.
        tune: keep the form of the graph that is fastest on this CPU, at sizes like "1x16,8x128" (rows x length) or usual ones.
        tune_seconds: for how long to measure each form at each size, and at least five calls.
        report: called with the name of each stage as it begins.
        warn: called with what a user should know of the artifact, if there is something.

    Raises:
        ModelError: the model cannot be found, read or compiled.
        InputError: an option, or a record of `calibrate`, is wrong.
        ParityError: the artifact does not agree with the original; nothing is written.
        CpucError: the output cannot be written.
    """
    _check_options(precision, verify, allow_unlisted, warn)
    given, tuning = read_calibration(calibrate, precision), _wanted_tuning(tune, tune_seconds)
    check_writable(target := Path(output), force=force)
    report("finding the model")
    source = resolve(model, revision)
    chosen, kind = select(source, task, allow_unlisted=allow_unlisted)
    report("fetching weights")
    files = snapshot(source, sentence=chosen == "sentence-embeddings")
    _check_card(source, chosen, task, warn)
    with _told_whole(), atomic_write(target, force=force) as staged:
        return _build(_Request(source, files, chosen, kind, precision, given, verify, tuning, report), staged)


def _check_card(source: Source, task: str, named: str | None, warn: Report) -> None:
    """Warn if the cache, which is all that is known, may lack what tells the task: what cpuc has downloaded has its card."""
    if source.unlisted and named is None and source.fetch("README.md") is None:
        warn(f"{source.id}: taken for {task} by what is in the cache ({source.unlisted}): give --task if that is wrong")


@contextlib.contextmanager
def _told_whole() -> Iterator[None]:
    """Adds to an error of parity what became of the output."""
    try:
        yield
    except ParityError as error:
        raise ParityError(f"{error}: nothing was written") from None


def _check_options(precision: str, verify: bool, allow_unlisted: bool, warn: Report) -> None:
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is not supported; supported: {', '.join(PRECISIONS)}")
    if allow_unlisted and not verify:
        raise InputError("an architecture that is not listed is always verified: leave out --no-verify")
    check_cpu(precision)
    if remark := slow_here(precision):
        warn(remark)


@dataclass(frozen=True)
class _Tuning:
    """Sizes to tune for, none for what is usual, and the time for each form at each."""

    shapes: list[tuple[int, ...]]
    seconds: float


def _wanted_tuning(tune: bool | str, seconds: float) -> _Tuning | None:
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"tune_seconds is {seconds}, must be a positive number of seconds")
    return _Tuning(parse_sizes(tune) if isinstance(tune, str) else [], seconds) if tune is not False else None


@dataclass(frozen=True)
class _Request:
    """What was asked for, after every check that needs no weights."""

    source: Source
    files: Snapshot
    task: str
    kind: str
    precision: str
    calibration: Records | None
    verify: bool
    tuning: _Tuning | None
    report: Report


def _build(request: _Request, staged: Path) -> Manifest:
    """Every stage after the files are there; writes the finished bundle to `staged`."""
    task, report = TASKS[request.task], request.report
    report("loading the original model")
    if request.verify:
        start_processes()
    # These import torch and transformers, which take seconds: an error before this point needs neither.
    from cpuc.compiler.capture import given_outputs
    from cpuc.compiler.loading import load_original, quiet
    from cpuc.compiler.verification import compare, make_sample, replay, run_original, with_packed_sizes

    chosen = PRECISIONS[request.precision]
    original = load_original(request.source, request.files, request.task, request.kind)
    manifest = describe(request.source, request.files, original, request.task, request.kind, request.precision)
    sizes = None if request.tuning is None else fit_sizes(manifest, request.tuning.shapes)
    extra = original.preprocessing.extra
    runtime_task = load_task(manifest, extra.__getitem__)
    sample = make_sample(runtime_task, manifest, task.records(manifest.preprocessing))
    calibration = make_calibration(runtime_task, manifest, request.calibration) if chosen.int8 else None
    inputs = [spec.name for spec in manifest.inputs]
    with quiet():
        report("running the original model")
        # Without verification one batch is enough to see the outputs' shapes.
        tried = sample.batches if request.verify else sample.batches[:1]
        given = given_outputs(original.module, list(task.outputs), tried[0].inputs)
        eager = run_original(original, inputs, given, tried)
        manifest = replace(manifest, outputs=_outputs(task.outputs, eager[0]))
        fusible = _fuse(request, original, manifest, sample, calibration)
        if request.tuning is None or sizes is None:
            fused, tuning = fusible.build(fusible.defaults), None
        else:
            from cpuc.compiler.tuning import tune

            fused, tuning = tune(fusible, manifest, sizes, request.tuning.seconds, report)
    build = replace(manifest.build, fused=fused.fused, unfused=fused.unfused, quantization=fused.quantization, tuning=tuning)
    manifest = replace(manifest, build=build)
    report("writing the bundle")
    digests = bundle.stage(staged, fused.saved(), extra)
    if request.verify:
        report("verifying the artifact in a fresh process")
        sample = with_packed_sizes(sample, manifest)
        if further := sample.batches[len(eager) :]:
            eager = [*eager, *run_original(original, inputs, given, further)]
        artifact = replay(File(staged), manifest, sample)
        manifest = replace(manifest, proof=compare(runtime_task, manifest, sample, eager, artifact, chosen.tolerance))
    return bundle.seal(staged, manifest, digests)


def _fuse(
    request: _Request, original: Original, manifest: Manifest, sample: Sample, calibration: Calibration | None
) -> Fusible:
    """Capture, quantise if asked for, fuse what has one form."""
    import torch

    from cpuc.compiler.capture import capture, to_dtype
    from cpuc.compiler.fusion import prepare
    from cpuc.compiler.quantization import Quantized, quantize

    chosen, report = PRECISIONS[request.precision], request.report
    inputs = [spec.name for spec in manifest.inputs]
    architecture_of(request.kind).prepare(original.pretrained)
    example = next(batch.inputs for batch in sample.batches if len(batch.rows) > 2)
    report("capturing the graph")
    module = to_dtype(original.module, getattr(torch, chosen.dtype))
    frozen = capture(module, inputs, [spec.name for spec in manifest.outputs], example)

    def in_int8(graph: Any) -> Quantized:
        assert chosen.int8 and calibration
        limit = LOGITS if TASKS[request.task].logits else FEATURES
        return quantize(graph, module.named_parameters(), calibration, inputs, chosen.int8, limit, report)

    report("fusing the graph")
    # Convolutions are packed for the sizes met here. A server gets its images one by one: ResNet-50 was 1.7 times faster
    # with one so than packed for three; those that several want in another order are packed for these, too.
    fixed = set(manifest.axes) == {"batch"}
    alone = sample.batches[0].inputs if fixed else example
    return prepare(frozen, inputs, alone, in_int8 if chosen.int8 else None, fixed=fixed)


def describe(source: Source, files: Snapshot, original: Original, task: str, kind: str, precision: str) -> Manifest:
    """The manifest as far as it is known before the model has run: no fusions, no proof, no digests."""
    versions = installed_versions()
    return Manifest(
        format_version=FORMAT_VERSION,
        cpuc_version=importlib.metadata.version("cpuc"),
        task=task,
        architecture=kind,
        source=SourceRecord(source.id, source.revision, source.license, files.weights),
        axes=original.preprocessing.axes,
        inputs=original.preprocessing.inputs,
        # Their fixed sizes are not known before the model has run.
        outputs=[TensorSpec(name, "float32", list(free.values())) for name, free in TASKS[task].outputs.items()],
        preprocessing=original.preprocessing.facts,
        build=Build(precision, FUSER, versions["torch"], versions["ipex"], PRECISIONS[precision].isa, fused={}, unfused={}),
        proof=None,
    )


def _outputs(free: dict[str, dict[int, str]], batch: Mapping[str, np.ndarray]) -> list[TensorSpec]:
    """The outputs' specifications: `free` names their free axes, a batch of them shows the other sizes."""
    return [
        TensorSpec(name, "float32", [free[name].get(axis, size) for axis, size in enumerate(array.shape)])
        for name, array in batch.items()
    ]
