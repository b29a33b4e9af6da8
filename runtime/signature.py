"""Signatures: Ed25519 (RFC 8032) over the manifest, which holds the digests of everything else.

Keys are PEM files as ``openssl genpkey -algorithm ed25519`` and ``openssl pkey -pubout`` write them. The arithmetic is that of
the `cryptography` library, which only those need who sign or ask for a signature.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpuc.runtime.errors import BundleError, CpucError, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey as PrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey as PublicKey

ALGORITHM = "ed25519"
MAX_SIGNATURE = 4096
# What is signed begins with this, so that a key that signs other things too never signs one of ours by accident.
_CONTEXT = b"cpuc bundle signature 1\n"
_MAX_KEY = 64 * 1024
_MAKE_PRIVATE = "openssl genpkey -algorithm ed25519 -out key.pem"
_MAKE_PUBLIC = "openssl pkey -in key.pem -pubout -out key.pub.pem"


@dataclass(frozen=True)
class Signature:
    """The member ``extra/signature.json``; `public_key` (32 bytes) and `signature` (64 bytes) are in base64."""

    algorithm: str
    public_key: str
    signature: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: bytes) -> Signature:
        """Parse and check the form. Raises BundleError if it is another one."""
        try:
            raw = json.loads(text.decode())
            given = Signature(**raw)
            sizes = [len(base64.b64decode(value, validate=True)) for value in (given.public_key, given.signature)]
        except (ValueError, TypeError, RecursionError, binascii.Error):
            raise BundleError("signature.json is not readable: the file was damaged or altered") from None
        if given.algorithm != ALGORITHM:
            raise BundleError(f"signed with algorithm {given.algorithm!r}, which this cpuc does not know: update cpuc")
        if sizes != [32, 64]:
            raise BundleError("signature.json holds no Ed25519 signature: the file was damaged or altered")
        return given

    @property
    def signer(self) -> str:
        """The key's fingerprint: SHA-256 of its 32 bytes, in base64."""
        return _fingerprint(base64.b64decode(self.public_key))


def _fingerprint(raw: bytes) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")


def sign_manifest(manifest: bytes, key: PrivateKey) -> Signature:
    """The signature of a manifest's bytes."""
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    return Signature(ALGORITHM, public, base64.b64encode(key.sign(_CONTEXT + manifest)).decode())


def check_signature(signature: Signature | None, manifest: bytes, trust: str | os.PathLike[str]) -> None:
    """Raise BundleError unless `signature` is that of `manifest` by the public key in the file `trust`."""
    key = read_public_key(trust)
    if signature is None:
        raise BundleError(f"is not signed, and only bundles signed by {trust} are trusted: sign it with 'cpuc sign'")
    raw = key.public_bytes_raw()
    if base64.b64decode(signature.public_key) != raw:
        raise BundleError(
            f"is signed by {signature.signer}, and only {trust} ({_fingerprint(raw)}) is trusted: do not use this file"
        )
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(signature.signature), _CONTEXT + manifest)
    except InvalidSignature:
        raise BundleError(
            f"the signature is not one of this manifest by {trust}: the file was altered; do not use it"
        ) from None


def read_private_key(path: str | os.PathLike[str], password: bytes | None = None) -> PrivateKey:
    """An Ed25519 private key from a PEM file (PKCS #8).

    Raises InputError if the file holds something else, or is encrypted with another password; CpucError without `cryptography`.
    """
    serialization, keys = _cryptography()
    text = _read_key(path)
    encrypted = b"ENCRYPTED" in text
    if encrypted and password is None:
        raise InputError(f"{path}: is encrypted: give its password in the environment variable CPUC_KEY_PASSWORD")
    try:
        key = serialization.load_pem_private_key(text, password if encrypted else None)
    except Exception as error:  # of several kinds, from several libraries
        if encrypted:
            raise InputError(f"{path}: the password in CPUC_KEY_PASSWORD is not that of the key") from error
        raise _no_key(path, "private", _MAKE_PRIVATE) from error
    if not isinstance(key, keys.Ed25519PrivateKey):
        raise _no_key(path, "private", _MAKE_PRIVATE)
    private: PrivateKey = key
    return private


def read_public_key(path: str | os.PathLike[str]) -> PublicKey:
    """An Ed25519 public key from a PEM file (SubjectPublicKeyInfo). Raises as `read_private_key` does."""
    serialization, keys = _cryptography()
    text = _read_key(path)
    try:
        key = serialization.load_pem_public_key(text)
    except Exception as error:  # of several kinds, from several libraries
        raise _no_key(path, "public", _MAKE_PUBLIC) from error
    if not isinstance(key, keys.Ed25519PublicKey):
        raise _no_key(path, "public", _MAKE_PUBLIC)
    public: PublicKey = key
    return public


def _no_key(path: str | os.PathLike[str], kind: str, remedy: str) -> InputError:
    return InputError(f"{path}: holds no Ed25519 {kind} key in PEM form: make one with '{remedy}'")


def _read_key(path: str | os.PathLike[str]) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_KEY)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise CpucError("signatures need the cryptography library: pip install 'cpuc[sign]'") from None
    return serialization, ed25519
