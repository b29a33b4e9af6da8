"""Our own graph rewrites: a table of patterns and replacements, applied in order to the frozen graph.

They run before IPEX's passes, which go on from what they leave. Both sides are TorchScript IR.
"""

from __future__ import annotations

import torch

from cpuc.compiler.rewrites.linear import LINEAR
from cpuc.compiler.rewrites.rewrite import Rewrite

REWRITES: tuple[Rewrite, ...] = LINEAR


def apply(graph: torch._C.Graph) -> None:
    """Apply the table to `graph` in place, each entry wherever it matches."""
    for rewrite in REWRITES:
        torch._C._jit_pass_custom_pattern_based_rewrite_graph(rewrite.pattern, rewrite.replacement, graph)
