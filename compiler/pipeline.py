"""The compile pipeline: one line a stage, each a function from one named type to the next."""

from __future__ import annotations

import importlib.metadata
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cpuc.compiler.precision import PRECISIONS
from cpuc.compiler.source import Snapshot, Source, resolve, snapshot
from cpuc.compiler.tasks import TASKS, architecture_of, select
from cpuc.runtime import bundle
from cpuc.runtime.errors import InputError
from cpuc.runtime.libraries import installed_versions
from cpuc.runtime.manifest import FORMAT_VERSION, Build, Manifest, TensorSpec
from cpuc.runtime.manifest import Source as SourceRecord
from cpuc.runtime.tasks import load_task

if TYPE_CHECKING:
    import numpy as np

    from cpuc.compiler.loading import Original

FUSER = "ipex"
Report = Callable[[str], None]


def compile(
    model: str,
    output: str | os.PathLike[str],
    *,
    task: str | None = None,
    precision: str = "fp32",
    revision: str | None = None,
    force: bool = False,
    verify: bool = True,
    allow_unlisted: bool = False,
    report: Report = lambda _: None,
) -> Manifest:
    """Compile a Hugging Face model into one bundle.

    Args:
        model: a local folder, a Hub id or a short name.
        output: path of the bundle; its folder must exist.
        task: such as ``question-answering``; by default what the model's configuration says.
        precision: ``fp32`` or ``bf16``.
        revision: branch, tag or commit on the Hub.
        force: replace `output` if it exists.
        verify: compare the artifact with the original model; without it the manifest's proof is null.
        allow_unlisted: try an architecture that is not in the table; it is always verified.
        report: called with the name of each stage as it begins.

    Returns:
        The manifest that the bundle holds.

    Raises:
        ModelError: the model cannot be found, read or compiled.
        ParityError: the artifact does not agree with the original; nothing is written.
        CpucError: the output cannot be written.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is not supported; supported: {', '.join(PRECISIONS)}")
    if allow_unlisted and not verify:
        raise InputError("an architecture that is not listed is always verified: leave out --no-verify")
    target = Path(output)
    bundle.check_writable(target, force=force)
    report("finding the model")
    source = resolve(model, revision)
    task, kind = select(source, task, allow_unlisted=allow_unlisted)
    report("fetching weights")
    files = snapshot(source, sentence=task == "sentence-embeddings")
    with bundle.atomic_write(target, force=force) as staged:
        return _build(source, files, task, kind, precision, staged, verify, report)


def _build(
    source: Source, files: Snapshot, task: str, kind: str, precision: str, staged: Path, verify: bool, report: Report
) -> Manifest:
    """Every stage after the files are there; writes the finished bundle to `staged`."""
    report("loading the original model")
    # These import torch and transformers, which take seconds: an error before this point needs neither.
    import torch

    from cpuc.compiler.capture import capture, given_outputs, run_eager
    from cpuc.compiler.fusion import fuse
    from cpuc.compiler.loading import load_original, quiet
    from cpuc.compiler.verification import compare, make_sample, replay

    chosen = PRECISIONS[precision]
    original = load_original(source, files, task, kind)
    manifest = _describe(source, files, original, task, kind, precision)
    extra = original.preprocessing.extra
    runtime_task = load_task(manifest, extra.__getitem__)
    sample = make_sample(runtime_task, manifest, TASKS[task].records(manifest.preprocessing))
    inputs = [spec.name for spec in manifest.inputs]
    with quiet():
        report("running the original model")
        # Without verification one batch is enough to see the outputs' shapes.
        tried = sample.batches if verify else sample.batches[:1]
        given = given_outputs(original.module, list(TASKS[task].outputs), tried[0].inputs)
        eager = [run_eager(original.module, inputs, given, batch.inputs) for batch in tried]
        manifest = replace(manifest, outputs=_outputs(TASKS[task].outputs, eager[0]))
        outputs = [spec.name for spec in manifest.outputs]
        architecture_of(kind).prepare(original.pretrained)
        example = next(batch.inputs for batch in sample.batches if len(batch.rows) > 2)
        report("capturing the graph")
        frozen = capture(original.module.to(getattr(torch, chosen.dtype)), inputs, outputs, example)
        report("fusing the graph")
        # Convolutions are packed for the sizes met here. A server gets its images one by one: ResNet-50 was 1.7 times faster
        # with one so than packed for three, and as fast with eight.
        alone = sample.batches[0].inputs if set(manifest.axes) == {"batch"} else example
        fused = fuse(frozen, inputs, alone)
    manifest = replace(manifest, build=replace(manifest.build, fused=fused.fused, unfused=fused.unfused))
    report("writing the bundle")
    buffer = io.BytesIO()
    torch.jit.save(fused.function, buffer)
    digests = bundle.stage(staged, buffer.getvalue(), extra)
    if verify:
        report("verifying the artifact in a fresh process")
        artifact = replay(staged, manifest, sample)
        manifest = replace(manifest, proof=compare(runtime_task, manifest, sample, eager, artifact, chosen.tolerance))
    return bundle.seal(staged, manifest, digests)


def _describe(source: Source, files: Snapshot, original: Original, task: str, kind: str, precision: str) -> Manifest:
    """The manifest as far as it is known before the model has run: no fusions, no proof, no digests."""
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
        build=Build(precision, FUSER, **installed_versions(), isa=PRECISIONS[precision].isa, fused={}, unfused={}),
        proof=None,
    )


def _outputs(free: dict[str, dict[int, str]], batch: Mapping[str, np.ndarray]) -> list[TensorSpec]:
    """The outputs' specifications: `free` names their free axes, a batch of them shows the other sizes."""
    return [
        TensorSpec(name, "float32", [free[name].get(axis, size) for axis, size in enumerate(array.shape)])
        for name, array in batch.items()
    ]
