"""Named tensors in and out: ``cpuc run --raw``, for any bundle."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cpuc.runtime.errors import InputError
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.records import loads

# A few thousand images; what compresses to little must not fill the memory.
MAX_NPZ = 2 << 30


def parse_tensors(data: bytes, source: str, manifest: Manifest) -> dict[str, np.ndarray]:
    """Arrays from a ``.npz`` archive or from a JSON object of nested lists, by name, in the signature's dtypes.

    Raises:
        InputError: neither of the two, a ragged list, or values that the signature's dtype cannot hold.
    """
    arrays = _parse_npz(data, source) if data[:2] == b"PK" else _parse_json(data, source)
    dtypes = {spec.name: np.dtype(spec.dtype) for spec in manifest.inputs}
    return {name: _cast(f"{source}: {name!r}", array, dtypes.get(name)) for name, array in arrays.items()}


def _parse_npz(data: bytes, source: str) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            size = sum(member.file_size for member in archive.zip.infolist())
            if size > MAX_NPZ:
                raise InputError(
                    f"{source}: takes {size} bytes unpacked, at most {MAX_NPZ} are read: give fewer rows at a time"
                )
            arrays = {name: archive[name] for name in archive.files}
    except InputError:
        raise
    except MemoryError:  # an array that says it is larger than its data
        raise InputError(f"{source}: not a readable .npz archive: an array is larger than memory") from None
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{source}: not a readable .npz archive: {error}") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise InputError(f"{source}: {name!r} is not an array")
    return arrays


def _parse_json(data: bytes, source: str) -> dict[str, np.ndarray]:
    try:
        value: Any = loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: neither a .npz archive nor UTF-8 JSON (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{source}: invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise InputError(f"{source}: the JSON is nested too deeply") from None
    except ValueError:
        raise InputError(f"{source}: a number has too many digits") from None
    if not isinstance(value, dict):
        raise InputError(f"{source}: expected an object of named tensors, found {type(value).__name__}")
    arrays = {}
    for name, nested in value.items():
        try:
            arrays[name] = np.asarray(nested)
        except ValueError:
            raise InputError(f"{source}: {name!r}: rows have different lengths; pad them") from None
    return arrays


def _cast(where: str, array: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    if dtype is None or array.dtype == dtype:
        return array
    if array.size == 0:
        return array.astype(dtype)
    if array.dtype.kind not in "iuf" or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise InputError(f"{where} is {array.dtype}, expected {dtype}")
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind == "i" and not np.array_equal(cast, array):
        raise InputError(f"{where} holds values that {dtype} cannot hold")
    return cast


def format_tensors(outputs: Mapping[str, np.ndarray], *, npz: bool) -> bytes:
    """A ``.npz`` archive, or one JSON object of nested lists; NaN and infinities become null in JSON."""
    if npz:
        buffer = io.BytesIO()
        arrays: dict[str, Any] = dict(outputs)
        np.savez(buffer, **arrays)
        return buffer.getvalue()
    lists = {name: _finite(array) for name, array in outputs.items()}
    return (json.dumps(lists, allow_nan=False) + "\n").encode()


def _finite(array: np.ndarray) -> Any:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()
    objects = array.astype(object)
    objects[~np.isfinite(array)] = None
    return objects.tolist()
