"""The archive: a zip file in one layout only, so that no two readers of zip files can see different members in it.

Members are stored one behind the other from the first byte on, each with the header that the central directory repeats; the
directory follows the last of them in the same order, and the file ends with it. ``docs/format.md`` describes it.
"""

from __future__ import annotations

import fcntl
import io
import os
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cpuc.runtime.errors import BundleError

ROOT = "cpuc"
ALIGNMENT = 64
# Of members that are worth mapping, the page of the system: a reader may take the file's pages for its memory.
PAGE, LARGE = 4096, 256 << 10
# Of a plain file that its owner may write. Other attributes may say that a member is a folder: then torch reads nothing.
_ATTRIBUTES = 0o644 << 16
# A directory that is read at all; the longest there is, of a model of thousands of weights, takes a few hundred kilobytes.
_MAX_DIRECTORY = 16 << 20
# Sizes and the disk numbers between them, which are 0, of the end record and of its form for archives over 4 GB.
_END = struct.Struct("<4sHHHHLLH")
_END64 = struct.Struct("<4sQHHLLQQQQ")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4sHHHHHHLLLHHHHHLL")
_LOCAL = struct.Struct("<4sHHHHHLLLHH")
_PIECE = 1 << 26
_UNKNOWN = 0xFFFFFFFF  # the value is in the extra field for large files
_LARGE, _PADDING = 0x0001, 0x4246

Members = dict[str, tuple[int, int]]


class File:
    """A regular file, open for reading. Reads name their place, so that threads may share it.

    It is the same file for as long as this object lives, whatever is moved onto its path meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._handle = -1
        try:
            # Opening a pipe would wait for its writer.
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                # Not in the place of a standard stream that is closed, which libraries write to.
                self._handle = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 3)
            finally:
                os.close(handle)
            facts = os.fstat(self._handle)
        except FileNotFoundError:
            raise BundleError(f"{path}: no such file") from None
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        if not stat.S_ISREG(facts.st_mode):
            raise BundleError(f"{path}: cannot be read: not a regular file")
        self.path, self.size = path, facts.st_size

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, or what there is of them."""
        data = bytearray(max(min(size, self.size - offset), 0))
        view, done = memoryview(data), 0
        while done < len(data) and (count := self.read_into(view[done:], offset + done)):
            done += count
        return bytes(view[:done])

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on, as far as one call of the system does; returns how many bytes, 0 at the end."""
        try:
            return os.preadv(self._handle, [buffer], offset)
        except OSError as error:
            raise BundleError(f"{self.path}: cannot be read: {error.strerror or error}") from None

    @property
    def handle(self) -> int:
        """The system's number of the open file."""
        return self._handle


def reopened(handle: int) -> str | BinaryIO:
    """A path that opens the very file of an open handle or, where the system's list of them is not mounted, its contents."""
    own = Path(f"/proc/self/fd/{handle}")
    if own.exists():
        return str(own)
    contents = io.BytesIO()
    while piece := os.pread(handle, _PIECE, contents.tell()):  # one call gives 2 GiB at most
        contents.write(piece)
    contents.seek(0)
    return contents


@dataclass(frozen=True)
class _Entry:
    """A line of the central directory: `header` is what the member's own header has to repeat of it."""

    name: bytes
    header: tuple[int, ...]
    size: int
    packed: int
    offset: int
    extra: bytes
    plain: bool
    file: bool


def list_members(file: File, needed: str) -> Members:
    """Where each member's bytes lie (offset, size), by name below the top folder, in their order.

    Args:
        needed: a member without which the file is somebody else's.

    Raises BundleError for anything that is not laid out as above.
    """
    place, count, directory = _directory(file)
    entries = list(_entries(file.path, directory, count))
    if f"{ROOT}/{needed}".encode() not in {entry.name for entry in entries}:
        raise BundleError(f"{file.path}: not a cpuc bundle: it has no manifest.json; make one with 'cpuc compile'")
    members: Members = {}
    known: set[str] = set()
    expected = 0
    for entry in entries:
        name = _name(file.path, entry.name, known)
        if not entry.plain:
            raise BundleError(f"{file.path}: member {name!r} is compressed or encrypted: do not use this file")
        start, size = _place(file, entry, name, expected)
        expected = start + size
        if expected > place:
            raise _damaged(file.path, name)
        members[name] = (start, size)
    if expected != place:
        raise BundleError(f"{file.path}: holds bytes that belong to no member: do not use this file")
    return members


def _directory(file: File) -> tuple[int, int, bytes]:
    """Where the central directory lies, how many entries it has, and its bytes."""
    broken = BundleError(f"{file.path}: not a cpuc bundle, or one that is cut short: compile or copy it again")
    end = file.size - _END.size
    if end < 0:
        raise broken
    mark, *disks, entries, total, size, place, comment = _unpack(_END, file, end)
    if mark != b"PK\x05\x06" or any(disks) or entries != total or comment:
        raise broken
    locator = _unpack(_LOCATOR, file, end - _LOCATOR.size) if end >= _LOCATOR.size + _END64.size else ()
    if locator[:1] == (b"PK\x06\x07",):
        end -= _LOCATOR.size + _END64.size
        mark, length, _, _, *disks, every, all_, wide_size, wide_place = _unpack(_END64, file, end)
        same = all(short in (wide, most) for short, wide, most in (
            (entries, every, 0xFFFF), (size, wide_size, _UNKNOWN), (place, wide_place, _UNKNOWN)))  # fmt: skip
        if mark != b"PK\x06\x06" or length != 44 or any(disks) or every != all_ or locator[1:] != (0, end, 1) or not same:
            raise broken
        entries, size, place = every, wide_size, wide_place
    if place + size != end:
        raise broken
    if size > _MAX_DIRECTORY:
        raise BundleError(f"{file.path}: its list of members takes {size} bytes: the bundle is damaged")
    return place, entries, file.read(place, size)


def _unpack(kind: struct.Struct, file: File, offset: int) -> tuple[Any, ...]:
    """Fields of a record that the file's size has room for; a file that shrinks meanwhile gives zeros."""
    return kind.unpack(file.read(offset, kind.size).ljust(kind.size, b"\0"))


def _entries(path: Path, directory: bytes, count: int) -> Iterator[_Entry]:
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory):
            raise _damaged(path, "the list of them")
        fields = _CENTRAL.unpack_from(directory, at)
        mark, _, _, flags, method, *stamp, check, packed, size, names, extras, comment, disk, inner, outer, offset = fields
        at += _CENTRAL.size
        name, extra = directory[at : at + names], directory[at + names : at + names + extras]
        at += names + extras + comment
        if mark != b"PK\x01\x02" or at > len(directory) or comment or disk:
            raise _damaged(path, name.decode(errors="replace"))
        header = (flags, method, *stamp, check, packed, size, names)
        plain = not flags and not method and packed == size
        yield _Entry(name, header, size, packed, offset, extra, plain, not inner and outer == _ATTRIBUTES)
    if at != len(directory):
        raise BundleError(f"{path}: its list of members holds more than its entries: do not use this file")


def _place(file: File, entry: _Entry, name: str, expected: int) -> tuple[int, int]:
    """Where the member's bytes begin, and how many they are; its own header must say what the directory says."""
    size, packed, offset = _wide(file.path, entry.extra, name, [entry.size, entry.packed, entry.offset])
    data = file.read(offset, _LOCAL.size + len(entry.name)) if offset == expected and entry.file else b""
    if len(data) < _LOCAL.size + len(entry.name):
        raise _damaged(file.path, name)
    mark, _, *header, extras = _LOCAL.unpack_from(data)
    if mark != b"PK\x03\x04" or tuple(header) != entry.header or data[_LOCAL.size :] != entry.name:
        raise _damaged(file.path, name)
    start = offset + len(data)
    extra = file.read(start, extras)
    if len(extra) < extras or _wide(file.path, extra, name, [entry.size, entry.packed]) != [size, packed] or packed != size:
        raise _damaged(file.path, name)
    return start + extras, size


def _wide(path: Path, extra: bytes, name: str, values: list[int]) -> list[int]:
    """`values`, those of which that need 64 bits taken from the extra fields."""
    found, at = b"", 0
    while at < len(extra):
        kind, size = struct.unpack_from("<HH", extra, at) if at + 4 <= len(extra) else (0, 0)
        if kind not in (_LARGE, _PADDING) or at + 4 + size > len(extra) or (kind == _LARGE and found):
            raise _damaged(path, name)
        if kind == _LARGE:
            found = extra[at + 4 : at + 4 + size]
        at += 4 + size
    missing = values.count(_UNKNOWN)
    if len(found) != 8 * missing:
        raise _damaged(path, name)
    large = iter(struct.unpack(f"<{missing}Q", found))
    return [next(large) if value == _UNKNOWN else value for value in values]


def _name(path: Path, raw: bytes, known: set[str]) -> str:
    """A member's name below the top folder. torch looks members up without regard to case."""
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError:
        name = ""
    parts = name.split("/")
    odd = not name.isprintable() or set(name) & set('\\:*?"<>|') or {"", ".", ".."} & set(parts)
    if odd or parts[0] != ROOT or len(parts) < 2 or name.lower() in known:
        raise BundleError(f"{path}: member {raw.decode(errors='replace')!r} is misplaced or there twice: do not use this file")
    known.add(name.lower())
    return name.removeprefix(ROOT + "/")


def _damaged(path: Path, name: str) -> BundleError:
    return BundleError(f"{path}: member {name!r} is damaged: compile or copy it again")


def write_member(target: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Append a member, aligned, with a fixed time."""
    info = zipfile.ZipInfo(f"{ROOT}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    info.external_attr = _ATTRIBUTES
    # The padding field 'FB' is the one PyTorch's own writer uses to align tensors for memory mapping.
    start = target.start_dir + _LOCAL.size + len(info.filename.encode()) + 4
    # Given the size, Python would add 64-bit sizes to one of the two headers earlier than to the other.
    large = len(data) > zipfile.ZIP64_LIMIT
    padding = -(start + 20 * large) % (PAGE if len(data) >= LARGE else ALIGNMENT)
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    with target.open(info, "w", force_zip64=large) as member:
        member.write(data)
    info.extra = b""  # the directory, which is read whole, needs no padding


def copy_members(source: File, members: Mapping[str, tuple[int, int]], target: zipfile.ZipFile) -> None:
    """Append members of another archive."""
    for name, (offset, size) in members.items():
        write_member(target, name, source.read(offset, size))
