"""The manifest: what a bundle says of itself. This module is its only reader and its only writer.

``docs/format.md`` describes every field for people who write another reader.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cpuc.runtime.errors import BundleError

FORMAT_VERSION = 3
# A manifest is a few kilobytes; a reader must not be made to parse more than this.
MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 100
# Names that torch and numpy share.
DTYPES = ("bool", "int32", "int64", "float16", "float32", "float64")
LARGEST_SIZE = 2**31
_VERSION = re.compile(r"[0-9][0-9A-Za-z.]{0,40}(\+[0-9A-Za-z.]{1,40})?")


@dataclass(frozen=True)
class Source:
    """Where the weights came from. ``id`` is a Hub id or the name of a local folder."""

    id: str
    revision: str | None
    license: str | None
    weights: str


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. ``shape`` holds sizes and the names of free axes (keys of ``Manifest.axes``).

    ``minimum`` and ``maximum`` bound the values of an integer input, ``pad`` is what fills a row up to the
    length of its batch; all three are null for outputs.
    """

    name: str
    dtype: str
    shape: list[int | str]
    minimum: int | None = None
    maximum: int | None = None
    pad: int | None = None


@dataclass(frozen=True)
class Axis:
    """Bounds of a free axis, both inclusive; ``maximum`` is null where the model sets none."""

    minimum: int
    maximum: int | None


@dataclass(frozen=True)
class KeptLayer:
    """A linear layer that is not computed in int8.

    ``error`` is that of the outputs (root mean square, relative to their size) if this layer alone is.
    """

    name: str
    dtype: str
    error: float


@dataclass(frozen=True)
class Quantization:
    """How linear layers were brought to int8.

    ``scheme`` is "static" (activations by a calibration sample) or "dynamic" (while running, row by row); ``rest`` the dtype of
    attention and of the layers in ``kept``; ``sample`` "built-in" or "given"; ``records`` how many it had; ``layers`` how many
    linear layers are in int8.
    """

    scheme: str
    rest: str
    sample: str
    records: int
    layers: int
    kept: list[KeptLayer]


@dataclass(frozen=True)
class Trial:
    """One alternative that ``--tune`` measured.

    ``choice`` is what it is an alternative for and ``form`` which; ``ratios`` say for each of ``Tuning.sizes`` how many times
    as fast a call was as with what had been kept before; ``kept`` whether it won.
    """

    choice: str
    form: str
    ratios: list[float]
    kept: bool


@dataclass(frozen=True)
class Tuning:
    """What ``--tune`` measured, on a machine with this ``cpu`` of which it could use ``cpus``.

    ``sizes`` are rows, or rows and their length. ``threads`` is how many of the CPUs a call is fastest on, ``streams`` how many
    calls side by side answer most rows per second.
    """

    cpu: str
    cpus: int
    sizes: list[list[int]]
    threads: int
    streams: int
    trials: list[Trial]


@dataclass(frozen=True)
class Build:
    """How the artifact was made and what a machine needs to run it.

    ``isa`` is the lowest CPU capability, as ``torch.backends.cpu.get_cpu_capability`` names it; ``quantization`` is null where
    nothing is computed in int8, ``tuning`` where nothing was tried.
    """

    precision: str
    fuser: str
    torch: str
    ipex: str
    isa: str
    fused: dict[str, int]
    unfused: dict[str, int]
    quantization: Quantization | None = None
    tuning: Tuning | None = None


@dataclass(frozen=True)
class Proof:
    """Agreement of the artifact, reloaded in a fresh process, with the original model in float32 (eager).

    Differences are over all output values at unpadded positions; ``relative`` ones are divided by the
    root mean square of the original's values.
    """

    inputs: int
    shapes: list[list[int]]
    max_abs_difference: float
    mean_abs_difference: float
    max_relative_difference: float
    rms_relative_difference: float
    tolerance: float
    answers: int
    answers_equal: int


@dataclass(frozen=True)
class Manifest:
    """See ``docs/format.md``. ``proof`` is null for an artifact compiled with ``--no-verify``."""

    format_version: int
    cpuc_version: str
    task: str
    architecture: str
    source: Source
    axes: dict[str, Axis]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    preprocessing: dict[str, Any]
    build: Build
    proof: Proof | None
    members: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The canonical text: keys in schema order, two spaces, one final newline."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """What its JSON says."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(text: str | bytes) -> Manifest:
        """Parse and validate. Raises BundleError naming the field that is missing, unknown or of a wrong type."""
        try:
            string = text if isinstance(text, str) else text.decode()
            raw = json.loads(string, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
            _check_depth(raw, MAX_DEPTH)
            json.dumps(raw, ensure_ascii=False).encode()  # refuses halves of surrogate pairs
        except (ValueError, RecursionError) as error:
            raise BundleError(f"manifest.json is not valid JSON: {error}") from None
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if type(version) is not int:
            raise BundleError("manifest.json has no format_version: this file was not written by cpuc")
        if version != FORMAT_VERSION:
            raise BundleError(
                f"the bundle has format version {version}, this cpuc reads version {FORMAT_VERSION}: "
                + ("update cpuc" if version > FORMAT_VERSION else "compile the model again")
            )
        manifest: Manifest = decode(Manifest, raw, "manifest.json")
        _check_values(manifest)
        return manifest


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number[:40])


def _whole(number: str) -> int:
    """Bounds of fields are checked by name; this is so that every number can be shown as a float."""
    return int(number) if len(number) <= 300 else _refuse(number[:40])


def _check_depth(value: Any, left: int) -> None:
    if left < 0:
        raise ValueError("nested too deeply")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, left - 1)


def _check_values(manifest: Manifest) -> None:
    """What types cannot say: bounds that make sense, names that are there once, dtypes that exist."""
    for name in ("torch", "ipex"):
        version = getattr(manifest.build, name)
        if not _VERSION.fullmatch(version):  # a user is told to install it
            raise BundleError(f"manifest.json.build.{name}: {version!r} is no version")
    tuning = manifest.build.tuning
    if tuning is not None and not (0 < tuning.threads <= tuning.cpus <= LARGEST_SIZE and 0 < tuning.streams <= tuning.cpus):
        raise BundleError("manifest.json.build.tuning: threads and streams must be from 1 to cpus")
    for name, axis in manifest.axes.items():
        if not 0 < axis.minimum <= (LARGEST_SIZE if axis.maximum is None else axis.maximum) <= LARGEST_SIZE:
            raise BundleError(f"manifest.json.axes.{name}: {axis.minimum} to {axis.maximum} is no range of sizes")
    for field_name, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        if not specs or len({spec.name for spec in specs}) < len(specs):
            raise BundleError(f"manifest.json.{field_name}: is empty, or a name occurs twice")
        for spec in specs:
            if spec.dtype not in DTYPES:
                raise BundleError(f"manifest.json.{field_name}: dtype {spec.dtype!r} is not one of {', '.join(DTYPES)}")
            for size in spec.shape:
                if isinstance(size, str) and size not in manifest.axes:
                    raise BundleError(f"manifest.json: axis {size!r} has no entry in 'axes'")
                if isinstance(size, int) and not 0 < size <= LARGEST_SIZE:
                    raise BundleError(f"manifest.json.{field_name}: {size} is no size")
            for value in (spec.minimum, spec.maximum, spec.pad):
                if value is not None and not -(2**63) <= value < 2**63:
                    raise BundleError(f"manifest.json.{field_name}: {value} is out of range")


def decode(kind: Any, value: Any, where: str) -> Any:
    """Check `value` against the annotation `kind` and build it; `where` names the field in errors."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            try:
                return decode(option, value, where)
            except BundleError:
                if dataclasses.is_dataclass(option) and isinstance(value, dict):
                    raise
        raise BundleError(f"{where}: expected {' | '.join(map(_name, arguments))}, found {type(value).__name__}")
    if origin is list and isinstance(value, list):
        return [decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any or (kind is float and type(value) in (int, float)) or type(value) is kind:
        return value
    if kind is type(None) and value is None:
        return None
    raise BundleError(f"{where}: expected {_name(kind)}, found {type(value).__name__}")


def _name(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return "an object"
    return "None" if kind is type(None) else str(getattr(kind, "__name__", kind))


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise BundleError(f"{where}: expected an object, found {type(value).__name__}")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(value) - set(hints)):
        raise BundleError(f"{where}: unknown field {unknown[0]!r}")
    if missing := [name for name in hints if name not in value]:
        raise BundleError(f"{where}: field {missing[0]!r} is missing")
    return kind(**{name: decode(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
