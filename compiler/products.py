"""Attention in float32 as products of whole matrices, for as many scores as that is faster with.

    flash_attention(q, k, v, mask)   →   if least ≤ number of scores ≤ most:  bmm(softmax(bmm(scale · q, kᵀ) + mask), v)
                                         else:                                flash_attention(q, k, v, mask)

Both kernels of FlashAttention multiply through MKL, which has no AVX-512 for CPUs that are not Intel's.
`torch_ipex::bmm_add` is oneDNN's, as long as it adds something. On an EPYC (Zen 5), 12 heads, attention with a mask is so 1.5
to 1.7 times as fast at 128 tokens, 1.7 to 2.1 at 384 and at 8 x 128, and 1.75 at 8 x 512; up to 64 tokens it is slower. With
AVX2 it gains nothing, and on a Xeon, where MKL has AVX-512, products take 1.2 to 1.6 times as long at 128 and 384 tokens.

IPEX keeps oneDNN's kernels by the layouts of both operands and of the result, but not by the sizes of what is added: whoever
comes first decides for all. Hence one rule, for every artifact that a process may load: to a product with a transposed second
operand a mask [batch, 1, 1, keys] is added, and to any other a zero.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from cpuc.compiler.branches import branch, copies, number, truth
from cpuc.compiler.flash import KERNEL, is_plain, masks_of_keys, unexpanded_mask
from cpuc.compiler.quantization import operands
from cpuc.compiler.rewrites.matching import constant, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

# Scores of all heads and rows of a call. Above, they would take more than 128 MiB.
LEAST, MOST = 1 << 16, 1 << 25
_MASK, _SCALE = 5, 6
_PRODUCT = "torch_ipex::bmm_add"


def use_products(graph: Graph, batch: Sequence[torch.Tensor]) -> None:
    """Give attention in float32 its second form in place, wherever there is nothing to it but a mask.

    Args:
        graph: fused.
        batch: inputs to run it with once, which shows axes and dtypes.
    """
    found = zip(operands(graph, KERNEL, (0, 1, 2, _MASK), batch), masks_of_keys(graph, batch), strict=True)
    many: dict[tuple[torch.Size, torch.Size], Value] = {}
    for node, ((query, key, value, mask), of_keys) in zip(graph.findAllNodes(KERNEL), found, strict=True):
        assert query is not None and key is not None and value is not None
        if not _fits(node, query, key, value, mask):
            continue
        # Layers of the same sizes here have the same sizes with other inputs; where not, it would only be slower.
        sizes = query.shape, key.shape
        if sizes not in many:
            with graph.insert_point_guard(node):
                many[sizes] = _many(graph, node, query.shape[-1])
        products = functools.partial(_products, graph, node, query.shape[-1], of_keys=of_keys is not None)
        branch(graph, node, [(many[sizes], products)], functools.partial(copies, graph, [node]))
    torch._C._jit_pass_cse(graph)


def _fits(node: Node, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    same = query.dim() == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2] and query.shape[-1] > 1
    return same and is_plain(node) and query.dtype == torch.float32 and (mask is None or mask.dim() == 4)


def _many(graph: Graph, node: Node, size: int) -> Value:
    """Whether there are so many scores that products are faster, and few enough for memory; `size` is that of a head."""
    scores = number(
        graph, "aten::mul", number(graph, "aten::numel", node.inputsAt(0)), number(graph, "aten::size", node.inputsAt(1), 2)
    )
    bounds = truth(graph, "aten::ge", scores, LEAST * size), truth(graph, "aten::le", scores, MOST * size)
    # One key turned has the layout of one that is not: see the rule above.
    several = truth(graph, "aten::gt", number(graph, "aten::size", node.inputsAt(1), 2), 1)
    return truth(graph, "aten::__and__", truth(graph, "aten::__and__", *bounds), several)


def _products(graph: Graph, node: Node, size: int, *, of_keys: bool) -> Value:
    """The products; `of_keys` says that the mask is [batch, 1, 1, keys]."""
    query, key, value = (node.inputsAt(i) for i in range(3))
    scale, mask, zero = constant(node, _SCALE), unexpanded_mask(node), torch.zeros(1, 1, 1, 1)
    # What is made anew here is dense, which the operator wants; it would copy the rest in its own way.
    query = insert(graph, "aten::mul", query, size**-0.5 if scale is None else float(scale))
    if of_keys:
        scores = insert(graph, _PRODUCT, mask, query, _turned(graph, _dense(graph, key), 2, 3), 1)
    else:
        scores = insert(graph, _PRODUCT, zero, query, _dense(graph, _turned(graph, key, 2, 3)), 1)
        if mask is not None:
            scores = insert(graph, "aten::add_", scores, mask, 1)
    weights = insert(graph, "ipex::softmax_", scores, -1, None)
    attended = insert(graph, _PRODUCT, zero, weights, _dense(graph, value), 1)
    # In memory [batch, tokens, heads, size], as the kernel leaves it.
    return _turned(graph, _dense(graph, _turned(graph, attended, 1, 2)), 1, 2)


def _dense(graph: Graph, value: Value) -> Value:
    return insert(graph, "aten::contiguous", value, 0)  # torch.contiguous_format


def _turned(graph: Graph, value: Value, one: int, other: int) -> Value:
    return insert(graph, "aten::transpose", value, one, other)
