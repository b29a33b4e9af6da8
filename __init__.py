"""cpuc compiles a Hugging Face model into one TorchScript file for CPU servers, and answers from it.

    import cpuc
    cpuc.compile("bert-base-uncased-squad-v1", "model.pt")
    model = cpuc.load("model.pt")
    model({"question": "Who wrote it?", "context": "Ada Lovelace wrote it."}).answer

It offers `bench`, `compile`, `choose`, `evaluate`, `package` and `verify` of `cpuc.compiler` and all that `cpuc.runtime` lists,
imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpuc.compiler import *  # noqa: F403
    from cpuc.runtime import *  # noqa: F403

_COMPILER = (
    *("Benchmark", "Choice", "Evaluation", "Package", "Verification"),
    *("bench", "choose", "compile", "evaluate", "package", "verify"),
)


def __getattr__(name: str) -> Any:
    home = importlib.import_module("cpuc.compiler" if name in _COMPILER else "cpuc.runtime")
    if name not in home.__all__:
        raise AttributeError(f"module 'cpuc' has no attribute {name!r}")
    return getattr(home, name)
