"""The bundle: one zip archive that is a TorchScript file, a manifest and what the task needs.

The manifest is the last member and holds the SHA-256 of all the others; a signed bundle has one more after it, the signature
of the manifest.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cpuc.runtime.archive import File, Members, copy_members, list_members, write_member
from cpuc.runtime.errors import BundleError
from cpuc.runtime.files import atomic_write
from cpuc.runtime.manifest import MAX_BYTES, Manifest
from cpuc.runtime.signature import MAX_SIGNATURE, Signature, check_signature, sign_manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

EXTRA = "extra/"
MANIFEST = EXTRA + "manifest.json"
SIGNATURE = EXTRA + "signature.json"
# TorchScript writes these for stack traces and caching; they carry paths of the compiling machine.
_DROPPED = (".debug_pkl", ".data/serialization_id")
_CHUNK = 1 << 20
# The largest tokenizers there are take 40 MB.
_MAX_EXTRA = 256 << 20


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle; ``members`` maps each name to its (offset, size) in the file.

    `signature` is the one in the bundle, which only `open_bundle` with a trusted key has checked; `trusted` says that it did.
    """

    file: File
    manifest: Manifest
    members: Members
    signature: Signature | None
    trusted: bool

    @property
    def path(self) -> Path:
        return self.file.path

    def read(self, name: str) -> bytes:
        """The bytes of an extra file such as ``tokenizer.json``. Raises BundleError if it is not there or altered."""
        member = EXTRA + name
        if member not in self.manifest.members:
            raise BundleError(f"{self.path}: member {member!r} is missing: compile the model again")
        data = _read_member(self.file, self.members, member, _MAX_EXTRA)
        if hashlib.sha256(data).hexdigest() != self.manifest.members[member]:
            raise _altered(self.path, member)
        return data

    def check_digests(self) -> None:
        """Compare the SHA-256 of every member with the manifest. Raises BundleError naming the first that differs."""
        halves = _split_by_size({name: self.members[name][1] for name in self.manifest.members})
        with ThreadPoolExecutor(len(halves)) as pool:
            for wrong in pool.map(self._first_altered, halves):
                if wrong is not None:
                    raise _altered(self.path, wrong)

    def _first_altered(self, names: list[str]) -> str | None:
        buffer = memoryview(bytearray(_CHUNK))
        for name in names:
            offset, left = self.members[name]
            digest = hashlib.sha256()
            while left > 0 and (count := self.file.read_into(buffer[: min(left, _CHUNK)], offset)):
                digest.update(buffer[:count])
                left, offset = left - count, offset + count
            if left or digest.hexdigest() != self.manifest.members[name]:
                return name
        return None


def open_bundle(path: str | os.PathLike[str], *, trust: str | os.PathLike[str] | None = None) -> Bundle:
    """Read and check the structure and the manifest, without reading the weights or executing anything.

    Args:
        trust: a PEM file with an Ed25519 public key. The bundle must be signed by it, which is checked before anything that the
            bundle says is read.

    Raises BundleError for a file that is missing, no bundle, damaged, of another format version, or not signed as it must be;
    InputError for a key that cannot be read.
    """
    path = Path(path)
    file = File(path)
    members = list_members(file, MANIFEST)
    text = _read_member(file, members, MANIFEST, MAX_BYTES)
    signed = _read_member(file, members, SIGNATURE, MAX_SIGNATURE) if SIGNATURE in members else None
    try:
        signature = None if signed is None else Signature.from_json(signed)
        if trust is not None:
            check_signature(signature, text, trust)
        manifest = Manifest.from_json(text)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    if difference := sorted(set(manifest.members) ^ (set(members) - {MANIFEST, SIGNATURE})):
        raise BundleError(f"{path}: member {difference[0]!r} is not in both the archive and the manifest: do not use it")
    if list(members)[-1 if signature is None else -2 :] != [MANIFEST, SIGNATURE][: 1 if signature is None else 2]:
        raise BundleError(f"{path}: member {MANIFEST!r} is not the last one: do not use this file")
    return Bundle(file, manifest, members, signature, trust is not None)


def _read_member(file: File, members: Members, name: str, most: int) -> bytes:
    offset, size = members[name]
    if size > most:
        raise BundleError(f"{file.path}: {name.removeprefix(EXTRA)} is larger than {most} bytes: the bundle is damaged")
    return file.read(offset, size)


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

    def write(name: str, data: bytes) -> None:
        write_member(target, name, data)
        digests[name] = hashlib.sha256(data).hexdigest()

    with zipfile.ZipFile(io.BytesIO(torchscript)) as saved, zipfile.ZipFile(path, "w") as target:
        for info in saved.infolist():
            name = info.filename.split("/", 1)[1]
            if not name.endswith(_DROPPED):
                write(name, saved.read(info))
        for name, data in sorted(extra.items()):
            write(EXTRA + name, data)
    return digests


def seal(path: Path, manifest: Manifest, digests: Mapping[str, str]) -> Manifest:
    """Add the manifest, holding `digests`, to a staged bundle; returns the manifest as written."""
    manifest = Manifest.from_json(replace(manifest, members=dict(sorted(digests.items()))).to_json())
    with zipfile.ZipFile(path, "a") as target:
        write_member(target, MANIFEST, manifest.to_json().encode())
    return open_bundle(path).manifest


def sign(
    path: str | os.PathLike[str],
    key: Ed25519PrivateKey,
    output: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
) -> Bundle:
    """Sign a bundle whose members match their digests; another signature is replaced.

    Args:
        key: what `signature.read_private_key` gave.
        output: the signed bundle; by default it replaces the one at `path`.
        force: replace `output` if it exists.

    Returns the signed bundle. Raises BundleError if the bundle is damaged, CpucError if it cannot be written.
    """
    bundle = open_bundle(path)
    bundle.check_digests()
    signature = sign_manifest(_read_member(bundle.file, bundle.members, MANIFEST, MAX_BYTES), key)
    target = Path(path if output is None else output)
    with atomic_write(target, force=force or output is None) as staged:
        with zipfile.ZipFile(staged, "w") as archive:
            copy_members(bundle.file, {name: place for name, place in bundle.members.items() if name != SIGNATURE}, archive)
            write_member(archive, SIGNATURE, signature.to_json().encode())
        if output is None:
            shutil.copymode(path, staged)
    return open_bundle(target)
