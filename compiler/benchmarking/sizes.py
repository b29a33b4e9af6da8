"""The sizes to measure at, and inputs of these sizes made from the signature alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cpuc.runtime.errors import InputError
from cpuc.runtime.manifest import Axis, Manifest, TensorSpec

# What a user may choose the size of besides the batch: sizes where none are given, and what the elements are called.
DEFAULTS = {"sequence": (16, 128, 384), "samples": (16_000, 80_000)}
UNITS = {"sequence": "tokens", "samples": "samples"}


@dataclass(frozen=True)
class Size:
    """A batch of rows; `length` is that of each along the free axis, in `unit`, None where the model has no such axis."""

    batch: int
    length: int | None = None
    unit: str = "rows"

    def __str__(self) -> str:
        return str(self.batch) if self.length is None else f"{self.batch} x {self.length}"

    @property
    def elements(self) -> int | None:
        """Tokens or samples in the batch."""
        return None if self.length is None else self.batch * self.length


def choose_sizes(
    manifest: Manifest,
    batches: Sequence[int],
    lengths: Sequence[int],
    options: tuple[str, str] = ("--batch-size", "--seq-len"),
) -> list[Size]:
    """Every batch size with every length, each once; usual lengths, as far as the model's bounds allow, if there are none.

    `options` are what messages call the two.

    Raises InputError naming the limit that a size exceeds, or that the model has no axis to choose.
    """
    for batch in batches:
        _check("batch", options[0], batch, manifest.axes.get("batch", Axis(1, 1)))
    axes = {axis for spec in manifest.inputs for axis in spec.shape}
    free = next((name for name in DEFAULTS if name in axes), None)
    if free is None:
        if lengths:
            shapes = ", ".join(f"{spec.name} {spec.shape}" for spec in manifest.inputs)
            raise InputError(f"{options[1]}: the model has no free length ({shapes}): leave it out")
        return [Size(batch) for batch in dict.fromkeys(batches)]
    bounds = manifest.axes[free]
    for length in lengths:
        _check(free, options[1], length, bounds)
    chosen = lengths or [max(bounds.minimum, min(length, bounds.maximum or length)) for length in DEFAULTS[free]]
    return [Size(batch, length, UNITS[free]) for batch in dict.fromkeys(batches) for length in dict.fromkeys(chosen)]


def parse_sizes(text: str) -> list[tuple[int, ...]]:
    """Rows, or rows and their length, of sizes written as "1x16,8x128" or "1,8".

    Raises InputError if it is none of these.
    """
    sizes = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(re.fullmatch(r"[1-9][0-9]{0,9}(x[1-9][0-9]{0,9})?", size) for size in sizes):
        raise InputError(f"--tune-shapes {text!r}: write rows x length, as in 1x16,8x128; rows alone where the length is fixed")
    return [tuple(map(int, size.split("x"))) for size in sizes]


def fit_sizes(manifest: Manifest, given: Sequence[tuple[int, ...]]) -> list[Size]:
    """What `parse_sizes` returned as sizes of a model; usual ones if there are none.

    Raises InputError naming the limit that a size exceeds, a length that is missing, or one that the model has no axis for.
    """
    usual = choose_sizes(manifest, [1], [])
    if not given:
        return usual
    for size in given:
        if (len(size) == 1) != (usual[0].length is None):
            shown = "x".join(map(str, size))
            wanted = "rows alone: the length is fixed" if usual[0].length is None else f"rows x {usual[0].unit}"
            raise InputError(f"--tune-shapes: {shown} does not fit the model, which takes {wanted}")
    options = ("--tune-shapes", "--tune-shapes")
    return [size for rows, *length in given for size in choose_sizes(manifest, [rows], length, options)]


def _check(axis: str, option: str, size: int, bounds: Axis) -> None:
    if size < bounds.minimum or (bounds.maximum is not None and size > bounds.maximum):
        most = "" if bounds.maximum is None else f" and at most {bounds.maximum}"
        raise InputError(f"{option}: the model takes a {axis} of at least {bounds.minimum}{most}, not {size}")


def make_inputs(manifest: Manifest, size: Size) -> dict[str, np.ndarray]:
    """Random arrays of the signature by name: no padding, since no value is the one that pads; normal where they are floats."""
    generator = np.random.default_rng(0)
    return {spec.name: _values(generator, spec, size) for spec in manifest.inputs}


def _values(generator: np.random.Generator, spec: TensorSpec, size: Size) -> np.ndarray:
    sizes = {"batch": size.batch, **dict.fromkeys(DEFAULTS, size.length or 1)}
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
    if spec.minimum is None or spec.maximum is None:
        return generator.standard_normal(shape).astype(spec.dtype)
    if spec.pad is None or not spec.minimum <= spec.pad <= spec.maximum or spec.minimum == spec.maximum:
        return generator.integers(spec.minimum, spec.maximum, shape, endpoint=True).astype(spec.dtype)
    values = generator.integers(spec.minimum, spec.maximum, shape)
    return (values + (values >= spec.pad)).astype(spec.dtype)
