"""The bundle: one zip archive that is a TorchScript file, a manifest and what the task needs.

Every member is stored uncompressed under one top folder, aligned to 64 bytes as PyTorch writes them, with fixed
timestamps. The manifest is the last member and holds the SHA-256 of all the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from cpuc.runtime.errors import BundleError, CpucError
from cpuc.runtime.manifest import MAX_BYTES, Manifest

ROOT = "cpuc"
EXTRA = "extra/"
MANIFEST = EXTRA + "manifest.json"
ALIGNMENT = 64
# TorchScript writes these for stack traces and caching; they carry paths of the compiling machine.
_DROPPED = (".debug_pkl", ".data/serialization_id")
_CHUNK = 1 << 20
_LOCAL_HEADER = 30
_MAX_MEMBERS = 100_000


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle; ``members`` maps each name to its (offset, size) in the file."""

    path: Path
    manifest: Manifest
    members: dict[str, tuple[int, int]]

    def read(self, name: str) -> bytes:
        """The bytes of an extra file such as ``tokenizer.json``. Raises BundleError if it is not there or altered."""
        data = _read_member(self.path, self.members, EXTRA + name)
        if hashlib.sha256(data).hexdigest() != self.manifest.members.get(EXTRA + name):
            raise _altered(self.path, EXTRA + name)
        return data

    def check_digests(self) -> None:
        """Compare the SHA-256 of every member with the manifest. Raises BundleError naming the first that differs."""
        halves = _split_by_size({name: size for name, (_, size) in self.members.items() if name != MANIFEST})
        with ThreadPoolExecutor(len(halves)) as pool:
            for wrong in pool.map(self._first_altered, halves):
                if wrong is not None:
                    raise _altered(self.path, wrong)

    def _first_altered(self, names: list[str]) -> str | None:
        buffer = memoryview(bytearray(_CHUNK))
        with self.path.open("rb", buffering=0) as file:
            for name in names:
                offset, left = self.members[name]
                digest = hashlib.sha256()
                file.seek(offset)
                while left > 0 and (count := file.readinto(buffer[: min(left, _CHUNK)])):
                    digest.update(buffer[:count])
                    left -= count
                if left or digest.hexdigest() != self.manifest.members[name]:
                    return name
        return None


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read and check the structure and the manifest, without reading the weights or executing anything.

    Raises BundleError for a file that is missing, no bundle, damaged, or of another format version.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            members = _list_members(path, file)
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from None
    if members[MANIFEST][1] > MAX_BYTES:
        raise BundleError(f"{path}: manifest.json is larger than {MAX_BYTES} bytes: the bundle is damaged")
    try:
        manifest = Manifest.from_json(_read_member(path, members, MANIFEST))
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    if difference := sorted(set(manifest.members) ^ (set(members) - {MANIFEST})):
        raise BundleError(f"{path}: member {difference[0]!r} is not in both the archive and the manifest: do not use it")
    return Bundle(path, manifest, members)


def _list_members(path: Path, file: io.BufferedReader) -> dict[str, tuple[int, int]]:
    """Where each member's bytes lie, from the central directory, refusing anything that readers could disagree on."""
    not_ours = f"{path}: not a cpuc bundle"
    try:
        archive = zipfile.ZipFile(file)
        infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise BundleError(f"{not_ours}, or one that is cut short ({error}): compile or copy it again") from None
    if f"{ROOT}/{MANIFEST}" not in {info.filename for info in infos}:
        raise BundleError(f"{not_ours}: it has no manifest.json; make one with 'cpuc compile'")
    if len(infos) > _MAX_MEMBERS:
        raise BundleError(f"{path}: more than {_MAX_MEMBERS} members: the bundle is damaged")
    size = os.fstat(file.fileno()).st_size
    members: dict[str, tuple[int, int]] = {}
    for info in infos:
        name = info.filename.removeprefix(ROOT + "/")
        parts = info.filename.split("/")
        if parts[0] != ROOT or not name or name in members or {"", ".", ".."} & set(parts):
            raise BundleError(f"{path}: member {info.filename!r} is misplaced or there twice: do not use this file")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1 or info.compress_size != info.file_size:
            raise BundleError(f"{path}: member {info.filename!r} is compressed or encrypted: do not use this file")
        if not 0 <= info.header_offset < size:
            raise BundleError(f"{path}: member {info.filename!r} is damaged: compile or copy it again")
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            raise BundleError(f"{path}: member {info.filename!r} is damaged: compile or copy it again")
        name_size, extra_size = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        offset = info.header_offset + _LOCAL_HEADER + name_size + extra_size
        if file.read(name_size) != info.filename.encode() or offset + info.file_size > size:
            raise BundleError(f"{path}: member {info.filename!r} is damaged: compile or copy it again")
        members[name] = (offset, info.file_size)
    return members


def _read_member(path: Path, members: Mapping[str, tuple[int, int]], name: str) -> bytes:
    if name not in members:
        raise BundleError(f"{path}: member {name!r} is missing: compile the model again")
    offset, size = members[name]
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _altered(path: Path, name: str) -> BundleError:
    return BundleError(f"{path}: member {name!r} does not match its SHA-256: the file was damaged or altered; copy it again")


def _split_by_size(sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Two lists of about equal total size: hashing is bound by one core, and the smallest servers have two."""
    first: list[str] = []
    second: list[str] = []
    totals = [0, 0]
    for name in sorted(sizes, key=lambda key: (-sizes[key], key)):
        smaller = totals[1] < totals[0]
        (second if smaller else first).append(name)
        totals[smaller] += sizes[name]
    return first, second


def stage(path: Path, torchscript: bytes, extra: Mapping[str, bytes]) -> dict[str, str]:
    """Write `torchscript` (what ``torch.jit.save`` gave) and the `extra` files; returns the SHA-256 of each member.

    The result opens with plain ``torch.jit.load`` and lacks only its manifest, which `seal` adds.
    """
    digests: dict[str, str] = {}
    with zipfile.ZipFile(io.BytesIO(torchscript)) as saved, zipfile.ZipFile(path, "w") as target:
        for info in saved.infolist():
            name = info.filename.split("/", 1)[1]
            if not name.endswith(_DROPPED):
                digests[name] = _write_member(target, name, saved.read(info))
        for name, data in sorted(extra.items()):
            digests[EXTRA + name] = _write_member(target, EXTRA + name, data)
    return digests


def seal(path: Path, manifest: Manifest, digests: Mapping[str, str]) -> Manifest:
    """Add the manifest, holding `digests`, to a staged bundle; returns the manifest as written."""
    manifest = Manifest.from_json(replace(manifest, members=dict(sorted(digests.items()))).to_json())
    with zipfile.ZipFile(path, "a") as target:
        _write_member(target, MANIFEST, manifest.to_json().encode())
    return manifest


def _write_member(target: zipfile.ZipFile, name: str, data: bytes) -> str:
    info = zipfile.ZipInfo(f"{ROOT}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    # The padding field 'FB' is the one PyTorch's own writer uses to align tensors for memory mapping.
    start = target.start_dir + _LOCAL_HEADER + len(info.filename.encode()) + 4
    padding = -start % ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    target.writestr(info, data)
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def atomic_write(target: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """A temporary path beside `target`, moved onto it when the block succeeds and removed when it does not.

    Raises CpucError if `target` exists and `force` is not given, or if its folder cannot be written.
    """
    target = Path(os.path.realpath(target))  # through links, as any program writes
    check_writable(target, force=force)
    try:
        handle, name = tempfile.mkstemp(prefix=".cpuc.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise CpucError(f"{target}: cannot be written: {error.strerror or error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    except OSError as error:
        raise CpucError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(target: Path, *, force: bool) -> None:
    """Raise CpucError early if `target` could not be written at the end."""
    target = Path(os.path.realpath(target))
    try:
        exists = target.exists()
    except OSError as error:
        raise CpucError(f"{target}: cannot be written: {error.strerror or error}") from error
    if target.is_dir():
        raise CpucError(f"{target}: is a folder; name a file")
    if exists and not target.is_file():
        raise CpucError(f"{target}: is not a regular file; name another, or - for standard output")
    if exists and not force:
        raise CpucError(f"{target}: exists already; give --force to replace it")
    folder = target.parent
    if not folder.is_dir():
        raise CpucError(f"{folder}: no such folder; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CpucError(f"{folder}: no permission to write there")
