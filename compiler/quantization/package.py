"""Weights in int8 are an artifact's state, packed by oneDNN when it is loaded (about 0.1 s for BERT-base)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cpuc.compiler.modules import as_module

_STATE = """
def __getstate__(self) -> Tuple[List[Tensor], bool]:
    return (self.weights, self.training)

def __setstate__(self, state: Tuple[List[Tensor], bool]) -> None:
    packed: List[Tensor] = []
    for weight in state[0]:
        packed.append(torch.ops.onednn.qlinear_prepack(weight, None))
    self.packed = packed
    self.weights = []
    self.training = state[1]
"""


def package(function: Callable[..., Any], names: Sequence[str], weights: list[torch.Tensor]) -> Any:
    """A module whose ``forward`` takes `names` and calls `function` with them and the packed `weights`."""
    tensors = torch._C.ListType.ofTensors()
    return as_module(function, names, {"weights": (tensors, weights), "packed": (tensors, [])}, _STATE)
