"""Our own graph rewrites: a table of patterns and replacements, applied in order to the frozen graph.

They run before IPEX's passes, which go on from what they leave. Both sides are TorchScript IR.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rewrite:
    """Every occurrence of `pattern` becomes `replacement`."""

    name: str
    pattern: str
    replacement: str


REWRITES = (
    # IPEX leaves float32 linear layers to MKL unless its Python front end is asked to replace the modules. Packing
    # them here for oneDNN does the same to the graph, for every precision, and lets its passes fuse what follows.
    #
    #   x ─ linear(W, b)   →   x ─ linear_run(pack(W, b))      pack is folded into a constant
    Rewrite(
        "pack-linear",
        """
        graph(%x, %weight, %bias):
            %y = aten::linear(%x, %weight, %bias)
            return (%y)""",
        """
        graph(%x, %weight, %bias):
            %rows : NoneType = prim::Constant()
            %packed = ipex_prepack::linear_prepack(%weight, %bias, %rows)
            %y = ipex_prepack::linear_run(%x, %packed)
            return (%y)""",
    ),
)


def apply(graph: torch._C.Graph) -> None:
    """Apply the table to `graph` in place, each entry wherever it matches."""
    for rewrite in REWRITES:
        torch._C._jit_pass_custom_pattern_based_rewrite_graph(rewrite.pattern, rewrite.replacement, graph)
