"""The manifest in words, for people: what ``cpuc inspect`` prints."""

from __future__ import annotations

import json

from cpuc.runtime.bundle import Bundle
from cpuc.runtime.errors import printable
from cpuc.runtime.manifest import Manifest, Proof, Quantization, TensorSpec, Trial, Tuning
from cpuc.runtime.tasks import names as list_tasks
from cpuc.runtime.tasks import task_module


def tasks() -> list[str]:
    """What each task takes and gives, with an example, line by line: what ``cpuc tasks`` prints."""
    lines = []
    for name in list_tasks():
        about = task_module(name).ABOUT
        lines += [
            name,
            f"  takes    {about.takes}",
            f"  example  {json.dumps(about.example, ensure_ascii=False)}",
            f"  gives    {about.gives}",
            f"  answer   {json.dumps(about.answer, ensure_ascii=False)}",
        ]
    return lines


def describe(bundle: Bundle) -> list[str]:
    """The manifest for a person: titles, each followed by rows of a name and a value."""
    lines = []
    for title, rows in _sections(bundle):
        lines.append(title)
        lines += [f"  {printable(name):<16}{printable(value)}" for name, value in rows]
    return lines


def _sections(bundle: Bundle) -> list[tuple[str, list[tuple[str, str]]]]:
    manifest, signature = bundle.manifest, bundle.signature
    source, build = manifest.source, manifest.build
    what = [
        ("task", manifest.task),
        ("architecture", manifest.architecture),
        ("source", source.id + (f" at {source.revision}" if source.revision else "")),
        ("licence", source.license or "not stated"),
        ("weights", source.weights),
        ("format", f"{manifest.format_version}, written by cpuc {manifest.cpuc_version}"),
        ("size", megabytes(bundle.file.size)),
    ]
    axes = [
        (name, f"at least {axis.minimum}" + ("" if axis.maximum is None else f", at most {axis.maximum}"))
        for name, axis in manifest.axes.items()
    ]
    inputs = [(spec.name, _tensor(spec)) for spec in manifest.inputs]
    outputs = [(spec.name, _tensor(spec)) for spec in manifest.outputs]
    built = [
        ("precision", build.precision),
        ("fuser", f"{build.fuser} {build.ipex}, torch {build.torch}"),
        ("needs", build.isa + (", fast with AVX512_BF16" if build.isa == "AVX512" else "")),
        ("fused", counts(build.fused)),
        ("unfused", counts(build.unfused)),
    ]
    if build.quantization:
        built += [("int8", quantization(build.quantization)), ("not int8", kept(build.quantization))]
    if build.tuning:
        built += [("tuned", tuning(build.tuning)), *((f"  {each.choice}", trial(each)) for each in build.tuning.trials)]
    integrity = [
        ("sha-256", f"{len(manifest.members)} members; checked when the bundle is loaded"),
        ("signature", f"by {signature.signer}; checked with --trust" if signature else "none"),
    ]
    return [
        ("what it is", what),
        ("inputs, in order", inputs),
        ("outputs", outputs),
        ("free axes", axes),
        ("how it was built", built),
        ("proof", [("", proof(manifest))]),
        ("integrity", integrity),
    ]


def compiled(manifest: Manifest, name: str, size: int) -> list[str]:
    """What was compiled, in a few lines; `name` and `size` are the bundle's."""
    build = manifest.build
    lines = [
        f"{name}: {manifest.task}, {manifest.architecture}, {build.precision}, {megabytes(size)}",
        f"fused: {counts(build.fused)}",
    ]
    if build.unfused:
        lines.append(f"unfused: {counts(build.unfused)}")
    if build.quantization:
        lines.append(f"int8: {quantization(build.quantization)}")
    if build.tuning:
        lines.append(f"tuned: {tuning(build.tuning)}")
    return [*lines, f"verified: {proof(manifest)}"]


def tuning(facts: Tuning) -> str:
    """Where an artifact was tuned, for what, and what came of it, in one line."""
    sizes = ", ".join(" x ".join(map(str, size)) for size in facts.sizes)
    kept = [f"{each.choice} {each.form}" for each in facts.trials if each.kept and each.choice not in ("threads", "streams")]
    forms = ", ".join(kept) or "the usual forms"
    best = f"a call on threads: {facts.threads}, most rows per second in streams: {facts.streams}"
    return f"for {sizes} on {facts.cpus} CPUs of {facts.cpu}: {forms}; {best}"


def trial(facts: Trial) -> str:
    """One alternative and its ratios, in one line."""
    return f"{facts.form}: {' '.join(f'{ratio:.2f}' for ratio in facts.ratios)}" + (" (kept)" if facts.kept else "")


def quantization(facts: Quantization) -> str:
    """How many layers are in int8, in one line."""
    by = f"calibrated on {facts.records} {facts.sample} records" if facts.scheme == "static" else "scaled while running"
    total = facts.layers + len(facts.kept)
    return f"{facts.layers} of {total} linear layers, activations {by}; attention and the rest in {facts.rest}"


def kept(facts: Quantization) -> str:
    """The layers that are not, with the error that each would make."""
    return ", ".join(f"{layer.name} ({100 * layer.error:.2g} %)" for layer in facts.kept) or "nothing"


def _tensor(spec: TensorSpec) -> str:
    bounds = "" if spec.maximum is None else f", {spec.minimum} to {spec.maximum}"
    return f"{spec.dtype} [{', '.join(map(str, spec.shape))}]{bounds}"


def counts(operators: dict[str, int]) -> str:
    """Operators and how often each occurs, in one line."""
    return ", ".join(f"{name} {count}" for name, count in operators.items()) or "nothing"


def proof(manifest: Manifest) -> str:
    """How well the artifact agrees with the original model, in one line."""
    return "not verified (--no-verify)" if manifest.proof is None else agreement(manifest.proof)


def agreement(figures: Proof) -> str:
    """The figures of a proof, in one line."""
    return (
        f"{figures.inputs} batches against eager fp32: largest difference {figures.max_abs_difference:g}, "
        f"rms {figures.rms_relative_difference:.2g} of the outputs' size (allowed {figures.tolerance:g}), "
        f"{figures.answers_equal} of {figures.answers} answers equal"
    )


def megabytes(size: int) -> str:
    """A number of bytes for a person."""
    return f"{size / 1e6:.1f} MB"
