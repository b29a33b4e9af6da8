"""Large embedding tables: in int8 with a scale for each row, which is applied to the rows that a call reads."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cpuc.compiler.quantization.layers import cast
from cpuc.compiler.quantization.rounding import LEVELS
from cpuc.compiler.rewrites.matching import constant_tensor, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

_KIND = "aten::embedding"
# Values of a table, from which on it is worth a second lookup: those of positions and types stay in float32.
_LARGE = 1 << 20


def round_tables(graph: Graph, accurate: Callable[[], bool]) -> None:
    """Before fusion: store the large tables of `graph` in int8, or in bfloat16 if that is not `accurate`.

    embedding(table, ids)   →   to(embedding(values, ids)) · embedding(scales, ids)
                                or   to(embedding(bfloat16(table), ids))
    """
    found = []
    for node in graph.findAllNodes(_KIND):
        table = constant_tensor(node, 0)
        if table is None or table.dtype != torch.float32 or table.numel() < _LARGE:
            continue
        with graph.insert_point_guard(node):
            rounded = _in_int8(graph, node, table)
        node.output().replaceAllUsesWith(rounded)
        found.append((node, table, rounded))
    if found and not accurate():
        for node, table, rounded in found:
            with graph.insert_point_guard(node):
                rounded.replaceAllUsesWith(_in_bfloat16(graph, node, table))
    torch._C._jit_pass_dce(graph)
    torch._C._jit_pass_cse(graph)


def _in_int8(graph: Graph, node: Node, table: torch.Tensor) -> Value:
    scales = table.abs().amax(1, keepdim=True).clamp(min=1e-12) / LEVELS
    _, *others = node.inputs()
    rows, factors = (insert(graph, _KIND, part, *others) for part in ((table / scales).round().to(torch.int8), scales))
    return insert(graph, "aten::mul", cast(graph, rows, torch.float32, known=torch.int8), factors)


def _in_bfloat16(graph: Graph, node: Node, table: torch.Tensor) -> Value:
    _, *others = node.inputs()
    return cast(graph, insert(graph, _KIND, table.bfloat16(), *others), torch.float32, known=torch.bfloat16)
