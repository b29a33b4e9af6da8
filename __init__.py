"""cpuc compiles a Hugging Face model into one TorchScript file for CPU servers, and answers from it.

import cpuc
cpuc.compile("bert-base-uncased-squad-v1", "model.pt")
model = cpuc.load("model.pt")
model({"question": "Who wrote it?", "context": "Ada Lovelace wrote it."}).answer
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpuc.compiler import compile
    from cpuc.runtime import BundleError, CpucError, InputError, Manifest, Model, ModelError, ParityError, load, open_bundle

_HOMES = {
    "cpuc.compiler": ("compile",),
    "cpuc.runtime": (
        "BundleError",
        "CpucError",
        "InputError",
        "Manifest",
        "Model",
        "ModelError",
        "ParityError",
        "load",
        "open_bundle",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BundleError",
    "CpucError",
    "InputError",
    "Manifest",
    "Model",
    "ModelError",
    "ParityError",
    "compile",
    "load",
    "open_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'cpuc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
