"""Attention as products of whole matrices, which for some sizes is faster than FlashAttention in float32.

    scaled_dot_product_attention(q, k, v, mask, …)   →   matmul(softmax(scale · matmul(q, kᵀ) + mask), v)

The products are IPEX's operators; scores of all heads are in memory at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cpuc.compiler.flash import ATTENTION
from cpuc.compiler.quantization import operands
from cpuc.compiler.rewrites.matching import constant, equals, insert, is_constant
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

# For a row with -inf everywhere the softmax gives NaN. With this all keys weigh the same.
_LOWEST = torch.finfo(torch.float32).min
# Where the operator takes what is no tensor: dropout, causal, and heads that share keys.
_PLAIN = ((4, 0.0), (5, False), (7, False))
_SCALE = 6


def use_products(graph: Graph, batch: Sequence[torch.Tensor]) -> None:
    """Replace attention in float32 in place, wherever there is a mask and nothing else to it.

    Args:
        graph: fused.
        batch: inputs to run it with once, which shows axes and dtypes.
    """
    for node, given in zip(graph.findAllNodes(ATTENTION), operands(graph, ATTENTION, range(4), batch), strict=True):
        query, key, value, mask = given
        assert query is not None and key is not None and value is not None
        if mask is None or not _fits(node, (query, key, value, mask)):
            continue
        with graph.insert_point_guard(node):
            attended = _products(graph, node, query.shape[-1], boolean=mask.dtype == torch.bool)
        node.output().replaceAllUsesWith(attended)
        node.destroy()
    torch._C._jit_pass_cse(graph)


def _fits(node: Node, given: Sequence[torch.Tensor]) -> bool:
    query, key, value, mask = given
    same = all(each.dim() == 4 for each in given) and query.shape[:2] == key.shape[:2] == value.shape[:2]
    same = same and mask.shape[-1] == key.shape[-2] > 1
    plain = all(equals(node.inputsAt(i), fixed) for i, fixed in _PLAIN) and is_constant(node.inputsAt(_SCALE))
    return same and plain and query.dtype == torch.float32 and mask.dtype in (torch.bool, torch.float32)


def _products(graph: Graph, node: Node, size: int, *, boolean: bool) -> Value:
    """What to put in the node's place; `size` is that of a head, `boolean` says what kind of mask there is."""
    query, key, value, mask = (node.inputsAt(i) for i in range(4))
    given = constant(node, _SCALE)
    scale = size**-0.5 if given is None else float(given)
    if boolean:
        added = insert(graph, "aten::where", mask, torch.tensor(0.0), torch.tensor(_LOWEST))
    else:
        added = insert(graph, "aten::clamp_min", mask, _LOWEST)
    added = insert(graph, "aten::contiguous", added, 0)  # the softmax reads its memory in this order without a look at strides
    scores = insert(graph, "ipex::matmul_mul", query, insert(graph, "aten::transpose", key, 2, 3), scale)
    weights = insert(graph, "torch_ipex::add_softmax_", scores, added)
    # [batch, tokens, heads, size], which is the order that what follows wants its memory in.
    return insert(graph, "aten::transpose", insert(graph, "ipex::matmul_outtrans", weights, value), 1, 2)
