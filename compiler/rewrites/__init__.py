"""Our own graph rewrites: a table of patterns and replacements, applied in order to the frozen graph.

They run before IPEX's passes, which go on from what they leave; a few run after, on what cannot be stored as IPEX left it.
Both sides are TorchScript IR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cpuc.compiler.rewrites.convolution import BOTTLENECKS, CONVOLUTION
from cpuc.compiler.rewrites.linear import LINEAR
from cpuc.compiler.rewrites.rewrite import Rewrite
from cpuc.compiler.rewrites.window_attention import WINDOW_ATTENTION

REWRITES: tuple[Rewrite, ...] = (*WINDOW_ATTENTION, *CONVOLUTION, *LINEAR)
AFTER_FUSION: tuple[Rewrite, ...] = BOTTLENECKS
# Stands in for the operator of nodes that a rewrite has accepted, and of the node in its pattern that must match them.
_ACCEPTED = "cpuc::accepted"


def apply(graph: Any) -> None:
    """Apply the table to the frozen `graph` in place, each entry wherever it matches."""
    remove_mutation: Any = torch._C._jit_pass_remove_mutation  # type: ignore[attr-defined]
    # What only constants decide, such as a table of position biases, becomes one; an operation in place would bar that.
    remove_mutation(graph)
    torch._C._jit_pass_constant_propagation(graph)
    _apply_each(graph, REWRITES)


def finish(graph: Any) -> None:
    """Apply what follows fusion to the fused `graph` in place."""
    _apply_each(graph, AFTER_FUSION)


def _apply_each(graph: Any, table: Sequence[Rewrite]) -> None:
    for rewrite in table:
        _unpool(graph)
        if rewrite.accepts is None:
            torch._C._jit_pass_custom_pattern_based_rewrite_graph(rewrite.pattern, rewrite.replacement, graph)
        else:
            _apply_where_accepted(graph, rewrite, rewrite.accepts)


def _apply_where_accepted(graph: Any, rewrite: Rewrite, accepts: Callable[[torch._C.Node], bool]) -> None:
    """The nodes that yield what a pattern returns are renamed where accepted, and only those match the renamed pattern."""
    pattern = torch._C.parse_ir(rewrite.pattern)
    kind = next(iter(pattern.outputs())).node().kind()
    for node in [node for node in graph.findAllNodes(kind) if accepts(node)]:
        _rename(graph, node, _ACCEPTED)
    before, _, after = rewrite.pattern.rpartition(f"{kind}(")
    torch._C._jit_pass_custom_pattern_based_rewrite_graph(f"{before}{_ACCEPTED}({after}", rewrite.replacement, graph)
    for node in graph.findAllNodes(_ACCEPTED):
        _rename(graph, node, kind)


def _unpool(graph: Any) -> None:
    """Give every use of a constant that is no tensor one of its own.

    Inside a pattern, a value matches only one that has as many uses: a constant that is shared with the rest of the graph
    would match nothing. Patterns, too, have one constant a use.
    """
    for node in graph.findAllNodes("prim::Constant"):
        value = node.output()
        if isinstance(value.type(), torch._C.TensorType):
            continue
        for use in value.uses()[1:]:
            own = graph.create("prim::Constant", [], 1)
            own.copyAttributes(node)
            own.insertBefore(node)
            own.output().setType(value.type())
            use.user.replaceInput(use.offset, own.output())


def _rename(graph: Any, node: torch._C.Node, kind: str) -> None:
    renamed = graph.create(kind, list(node.inputs()), node.outputsSize())
    renamed.insertBefore(node)
    renamed.copyMetadata(node)
    for old, new in zip(node.outputs(), renamed.outputs(), strict=True):
        new.setType(old.type())
        old.replaceAllUsesWith(new)
    node.destroy()
