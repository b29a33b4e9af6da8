"""The runtime: answers from a bundle with torch, tokenizers, numpy and IPEX's shared library, nothing else."""

from __future__ import annotations

from cpuc.runtime.bundle import Bundle, open_bundle, sign
from cpuc.runtime.errors import BundleError, CpucError, InputError, ModelError, ParityError
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.model import Model, load
from cpuc.runtime.signature import read_private_key

__all__ = [
    "Bundle",
    "BundleError",
    "CpucError",
    "InputError",
    "Manifest",
    "Model",
    "ModelError",
    "ParityError",
    "load",
    "open_bundle",
    "read_private_key",
    "sign",
]
