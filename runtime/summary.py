"""The manifest in words, for people: what ``cpuc inspect`` prints."""

from __future__ import annotations

from cpuc.runtime.manifest import Manifest, TensorSpec


def describe(manifest: Manifest, size: int) -> list[tuple[str, list[tuple[str, str]]]]:
    """The manifest for a person: titles, each with rows of a name and a value."""
    source, build = manifest.source, manifest.build
    what = [
        ("task", manifest.task),
        ("architecture", manifest.architecture),
        ("source", source.id + (f" at {source.revision}" if source.revision else "")),
        ("licence", source.license or "not stated"),
        ("weights", source.weights),
        ("format", f"{manifest.format_version}, written by cpuc {manifest.cpuc_version}"),
        ("size", megabytes(size)),
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
        ("needs", build.isa),
        ("fused", counts(build.fused)),
        ("unfused", counts(build.unfused)),
    ]
    integrity = [("sha-256", f"{len(manifest.members)} members; checked when the bundle is loaded")]
    return [
        ("what it is", what),
        ("inputs, in order", inputs),
        ("outputs", outputs),
        ("free axes", axes),
        ("how it was built", built),
        ("proof", [("", proof(manifest))]),
        ("integrity", integrity),
    ]


def _tensor(spec: TensorSpec) -> str:
    bounds = "" if spec.maximum is None else f", {spec.minimum} to {spec.maximum}"
    return f"{spec.dtype} [{', '.join(map(str, spec.shape))}]{bounds}"


def counts(operators: dict[str, int]) -> str:
    """Operators and how often each occurs, in one line."""
    return ", ".join(f"{name} {count}" for name, count in operators.items()) or "nothing"


def proof(manifest: Manifest) -> str:
    """How well the artifact agrees with the original model, in one line."""
    figures = manifest.proof
    if figures is None:
        return "not verified (--no-verify)"
    return (
        f"{figures.inputs} batches against eager fp32: largest difference {figures.max_abs_difference:g}, "
        f"rms {figures.rms_relative_difference:.2g} of the outputs' size (allowed {figures.tolerance:g}), "
        f"{figures.answers_equal} of {figures.answers} answers equal"
    )


def megabytes(size: int) -> str:
    """A number of bytes for a person."""
    return f"{size / 1e6:.1f} MB"
