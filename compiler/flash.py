"""Attention in bfloat16 is IPEX's kernel instead of torch's, and masks are what either kernel adds to the scores.

    scaled_dot_product_attention(q, k, v, mask, …)   →   torch_ipex::flash_attention(q, k, v, max(mask, lowest), …)

Of a mask of truth values torch would make that in every layer anew, and of one that all queries share for each of them: 1.03
times the time of MiniLM in float32 at 384 tokens.

Both are FlashAttention; IPEX's packs keys and values for the CPU's bfloat16 instructions, torch's does so with AMX only. On an
AMD EPYC with AVX512_BF16, 12 heads of 64, it was 2.4 times as fast at 128 and at 384 tokens, and equally fast up to 32. In
float32 they hardly differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from cpuc.compiler.quantization import operands
from cpuc.compiler.rewrites.matching import equals, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

ATTENTION = "aten::scaled_dot_product_attention"
KERNEL = "torch_ipex::flash_attention"
# For a row with -inf everywhere the kernel gives NaN, which the next layer would spread. With this all keys weigh the same.
_LOWEST = torch.finfo(torch.bfloat16).min


def use_flash(graph: Graph, batch: Sequence[torch.Tensor]) -> None:
    """Replace attention in bfloat16 in place, wherever its operands are such as the kernel takes.

    Args:
        graph: of a frozen module; its first input is the module.
        batch: inputs to run it with once, which shows axes and dtypes.
    """
    for node, given in zip(graph.findAllNodes(ATTENTION), operands(graph, ATTENTION, range(4), batch), strict=True):
        if not _fits(node, given):
            _add_mask(graph, node, given)
            continue
        with graph.insert_point_guard(node):
            query, key, value, mask, dropout, causal, scale, _ = node.inputs()
            if given[3] is not None:
                mask = _finite(graph, mask, given[3].dtype)
            kernel = graph.create(KERNEL, [query, key, value, dropout, causal, mask, scale], 2)
            attended = graph.insertNode(kernel).outputsAt(0)
        node.output().replaceAllUsesWith(attended)
        node.destroy()
    torch._C._jit_pass_cse(graph)


def _fits(node: Node, given: Sequence[torch.Tensor | None]) -> bool:
    query, key, value, mask = given
    assert query is not None and key is not None and value is not None
    same = query.dim() == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2]
    heads = {each.shape[-1] for each in (query, key, value)}
    dense = all(each.dtype == torch.bfloat16 and each.stride(-1) == 1 for each in (query, key, value))
    fixed = equals(node.inputsAt(4), 0.0) and equals(node.inputsAt(7), False)
    return same and len(heads) == 1 and dense and fixed and (mask is None or (mask.dim() in (2, 4) and mask.stride(-1) == 1))


def _add_mask(graph: Graph, node: Node, given: Sequence[torch.Tensor | None]) -> None:
    """For torch's kernel: a mask of truth values becomes what it stands for."""
    query, mask = given[0], given[3]
    if query is not None and mask is not None and mask.dtype == torch.bool:
        with graph.insert_point_guard(node):
            node.replaceInput(3, _added(graph, node.inputsAt(3), query.dtype, -math.inf))


def _finite(graph: Graph, mask: Value, dtype: torch.dtype) -> Value:
    """`mask` as what is added to scores, without infinities."""
    if dtype == torch.bool:
        return _added(graph, mask, torch.bfloat16, _LOWEST)
    return insert(graph, "aten::clamp_min", mask, _LOWEST)


def _added(graph: Graph, mask: Value, dtype: torch.dtype, least: float) -> Value:
    """0 where `mask` is true and `least` elsewhere; a mask that was expanded is so before it is."""
    if mask.node().kind() == "aten::expand":
        _, *sizes = mask.node().inputs()
        return insert(graph, "aten::expand", _added(graph, mask.node().inputsAt(0), dtype, least), *sizes)
    return insert(graph, "aten::where", mask, *(torch.tensor(value, dtype=dtype) for value in (0.0, least)))
