"""Key pairs for signatures, in files as OpenSSL writes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PKCS8, PEM = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM


@dataclass(frozen=True)
class Keys:
    """Paths of a key pair."""

    private: Path
    public: Path


def make_keys(folder: Path, name: str, password: bytes | None = None) -> Keys:
    key = Ed25519PrivateKey.generate()
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(PEM, PKCS8, encryption))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return Keys(private, public)
