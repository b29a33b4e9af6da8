"""What becomes bfloat16 around layers in int8: attention."""

from __future__ import annotations

import torch

from cpuc.compiler.quantization.layers import ATTENTION, MOVES, Network, cast, readers
from cpuc.compiler.quantization.observe import Tensors, operands
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value


def narrow(network: Network, rest: torch.dtype, batch: Tensors) -> None:
    """Before fusion: attention computes in `rest`.

    Masks of truth values stay what they are: one run on `batch` tells which are.
    """
    graph = network.graph
    if rest != torch.float32:
        masks = operands(graph, ATTENTION, [3], batch)
        for node, (mask,) in zip(graph.findAllNodes(ATTENTION), masks, strict=True):
            for position in range(3):
                _cast_operand(graph, node, position, rest)
            if mask is not None and mask.dtype == torch.float32:
                with graph.insert_point_guard(node):
                    node.replaceInput(3, cast(graph, node.inputsAt(3), rest))
            _cast_result(graph, _end_of_moves(node.output()), torch.float32, known=rest)
    torch._C._jit_pass_cse(graph)


def _cast_operand(graph: Graph, node: Node, position: int, dtype: torch.dtype) -> None:
    """Cast an operand before the views that lead to it, so that a layer gives it in `dtype` right away."""
    value, user = node.inputsAt(position), node
    while value.node().kind() in MOVES and len(readers(value)) == 1:
        value, user, position = value.node().inputsAt(0), value.node(), 0
    with graph.insert_point_guard(user):
        user.replaceInput(position, cast(graph, value, dtype))


def _cast_result(graph: Graph, value: Value, dtype: torch.dtype, known: torch.dtype) -> None:
    """Cast `value`, whose dtype is `known`, for all who read it."""
    users = [use.user for use in value.uses()]
    with graph.insert_point_guard(value.node()):
        wide = cast(graph, value, dtype, known)
    wide.node().moveAfter(value.node())
    for user in users:
        user.replaceInputWith(value, wide)


def _end_of_moves(value: Value) -> Value:
    """Where the views of `value` end that follow each other: what is read there has left the kernel's layout."""
    found = readers(value)
    while len(found) == 1 and found[0].kind() in MOVES:
        value = found[0].output()
        found = readers(value)
    return value
