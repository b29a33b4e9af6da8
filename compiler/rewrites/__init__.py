"""Our own graph rewrites: a table of patterns and replacements, applied in order to the frozen graph.

They run before IPEX's passes, which go on from what they leave; a few run after, on what cannot be stored as IPEX left it.
Both sides are TorchScript IR.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cpuc.compiler.rewrites.attention import ATTENTION
from cpuc.compiler.rewrites.convolution import BOTTLENECKS, CONVOLUTION
from cpuc.compiler.rewrites.convolution_1d import CONVOLUTION_1D
from cpuc.compiler.rewrites.einsum import EINSUM
from cpuc.compiler.rewrites.elementwise import ELEMENTWISE, IN_PLACE
from cpuc.compiler.rewrites.linear import LINEAR, PACKING
from cpuc.compiler.rewrites.mask import MASK
from cpuc.compiler.rewrites.matching import replace
from cpuc.compiler.rewrites.product import PRODUCT
from cpuc.compiler.rewrites.rewrite import Graph, Rewrite
from cpuc.compiler.rewrites.window_attention import WINDOW_ATTENTION

# Products hide in einsums, and some of them are linear layers.
REWRITES: tuple[Rewrite, ...] = (
    *MASK,
    *EINSUM,
    *ATTENTION,
    *WINDOW_ATTENTION,
    *PRODUCT,
    *CONVOLUTION,
    *CONVOLUTION_1D,
    *LINEAR,
    *ELEMENTWISE,
    *PACKING,
)
AFTER_FUSION: tuple[Rewrite, ...] = (*BOTTLENECKS, *IN_PLACE)


def apply(graph: Graph, before_packing: Callable[[Graph], None] | None = None) -> None:
    """Apply the table to the frozen `graph` in place, each entry wherever it matches.

    `before_packing` is called with the graph when linear layers are plain operators for the last time.
    """
    passes: Any = torch._C  # whose annotations lack some
    # What only constants decide, such as a table of position biases, becomes one; an operation in place would bar that.
    passes._jit_pass_remove_mutation(graph)
    passes._jit_pass_constant_propagation(graph)
    for rewrite in REWRITES:
        if before_packing is not None and rewrite in PACKING:
            passes._jit_pass_constant_propagation(graph)
            before_packing(graph)
        # An entry may be what allows the next in-place operator to go.
        passes._jit_pass_remove_mutation(graph)
        replace(rewrite, graph)
    # Weights that a rewrite has reshaped or scaled are constants again.
    passes._jit_pass_constant_propagation(graph)


def finish(graph: Graph) -> None:
    """Apply what follows fusion to the fused `graph` in place."""
    for rewrite in AFTER_FUSION:
        replace(rewrite, graph)
