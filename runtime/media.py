"""Where images and sounds come from: a path, a data URL or base64, as one open binary file."""

from __future__ import annotations

import base64
import binascii
import io
import re
import stat
from pathlib import Path
from typing import BinaryIO

from cpuc.runtime.errors import InputError

# Some decoders read the whole file at once.
MAX_BYTES = 512 * 1024 * 1024
_SHORTEST_BASE64 = 40
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_NETWORK_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def open_source(value: str, where: str) -> BinaryIO:
    """The bytes that `value` names, as a file open for reading; the caller closes it.

    A string that names an existing file is a path, as in ``transformers.image_utils.load_image``; anything else must be
    base64, which may be wrapped in lines, plain or behind ``data:…;base64,``.

    Args:
        value: a path, a data URL, or base64.
        where: what errors call the value, such as ``record 3: field 'image'``.

    Raises:
        InputError: there is no such file, it cannot be read, it is empty or larger than 512 MiB, or `value` is a network
            address, which cpuc never opens.
    """
    if prefix := _DATA_URL.match(value):
        return io.BytesIO(_decode_base64(value[prefix.end() :], where))
    if value[:5].lower() == "data:":
        raise InputError(f"{where}: a data URL must be data:<type>;base64,<data>")
    if _NETWORK_URL.match(value):
        raise InputError(f"{where}: cpuc opens no network addresses: download {_excerpt(value)} and give its path")
    if not value:
        raise InputError(f"{where}: is empty")
    try:
        status = Path(value).stat()
    except (OSError, ValueError) as error:  # ValueError: characters that no name can hold
        return io.BytesIO(_decode_without_prefix(value, where, error))
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{where}: {_excerpt(value)} is not a regular file")
    if not 0 < status.st_size <= MAX_BYTES:
        raise InputError(f"{where}: {_excerpt(value)} {_size_trouble(status.st_size)}")
    try:
        return Path(value).open("rb")
    except OSError as error:
        raise InputError(f"{where}: cannot read {_excerpt(value)}: {error.strerror}") from None


def _decode_without_prefix(text: str, where: str, no_file: Exception) -> bytes:
    """Base64, which many a mistyped path is by chance, but not of enough bytes for an image or a sound."""
    if len(text) >= _SHORTEST_BASE64:
        try:
            return _decode_base64(text, where)
        except InputError:
            pass
    if isinstance(no_file, PermissionError):
        raise InputError(f"{where}: cannot read {_excerpt(text)}: {no_file.strerror}")
    raise InputError(f"{where}: no such file: {_excerpt(text)}")


def _decode_base64(text: str, where: str) -> bytes:
    if len(text) > MAX_BYTES // 3 * 4:
        raise InputError(f"{where}: the base64 data {_size_trouble(len(text))}")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{where}: invalid base64: {error}") from None
    if not data:
        raise InputError(f"{where}: the base64 data is empty")
    return data


def _size_trouble(size: int) -> str:
    return f"is larger than {MAX_BYTES >> 20} MiB" if size else "is empty"


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:60]}…{text[-20:]}")
