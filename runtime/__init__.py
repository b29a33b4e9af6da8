"""The runtime: answers from a bundle with torch, tokenizers, numpy and IPEX's shared library, nothing else.

What it lists is imported when first used, so that its small parts can be had without numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpuc.runtime.bundle import Bundle, open_bundle, sign
    from cpuc.runtime.errors import BundleError, CpucError, InputError, ModelError, ParityError
    from cpuc.runtime.manifest import Manifest
    from cpuc.runtime.model import Model, load
    from cpuc.runtime.signature import read_private_key

_MODULES = {
    "bundle": ("Bundle", "open_bundle", "sign"),
    "errors": ("BundleError", "CpucError", "InputError", "ModelError", "ParityError"),
    "manifest": ("Manifest",),
    "model": ("Model", "load"),
    "signature": ("read_private_key",),
}

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


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
