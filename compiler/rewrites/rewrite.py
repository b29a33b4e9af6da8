"""What a rewrite is, and what its conditions read from a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Rewrite:
    """Every occurrence of `pattern` becomes `replacement`.

    Attributes:
        accepts: asked of every node that could yield the pattern's (first) result, where types and constants alone do not
            tell whether the replacement computes the same; nodes that it refuses are left as they are.
    """

    name: str
    pattern: str
    replacement: str
    accepts: Callable[[torch._C.Node], bool] | None = None


def source(node: torch._C.Node, *path: int) -> torch._C.Node | None:
    """The node that is found by following the inputs of these positions upwards; None where there are fewer inputs."""
    for position in path:
        if node.inputsSize() <= position:
            return None
        node = node.inputsAt(position).node()
    return node


def constant(node: torch._C.Node | None, position: int) -> Any:
    """The value of an input, where it is constant, or None. A tensor that came from a number is given as that number."""
    if node is None or node.inputsSize() <= position:
        return None
    return node.inputsAt(position).toIValue()


def constant_tensor(node: torch._C.Node | None, position: int) -> torch.Tensor | None:
    """The value of an input, where it is a constant tensor."""
    value = constant(node, position)
    return value if isinstance(value, torch.Tensor) else None
