"""Attention is IPEX's kernel instead of torch's, and masks are what either kernel adds to the scores.

    scaled_dot_product_attention(q, k, v, mask, …)   →   torch_ipex::flash_attention(q, k, v, max(mask, lowest), …)

Of a mask of truth values torch would make that in every layer anew, and of one that all queries share for each of them: 1.03
times the time of MiniLM in float32 at 384 tokens.

Both are FlashAttention; IPEX's packs keys and values for the CPU's bfloat16 instructions, torch's does so with AMX only. On an
AMD EPYC with AVX512_BF16, 12 heads of 64, it was 2.4 times as fast at 128 and at 384 tokens, and equally fast up to 32. In
float32 it is (Zen 5, 12 heads of 32) 2.1 times as fast at 16 tokens, 1.5 at 64, 1.3 at 128 and 1.07 at 384.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from cpuc.compiler.quantization import operands, watch
from cpuc.compiler.rewrites.matching import Writes, equals, insert, is_constant
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

ATTENTION = "aten::scaled_dot_product_attention"
KERNEL = "torch_ipex::flash_attention"


def use_flash(graph: Graph, batch: Sequence[torch.Tensor]) -> None:
    """Replace attention in place, wherever its operands are such as the kernel takes.

    Args:
        graph: of a frozen module; its first input is the module.
        batch: inputs to run it with once, which shows axes and dtypes.
    """
    masks: dict[tuple[int, bool, torch.dtype], Value] = {}  # what was made of each for the first layer that has it
    writes = Writes(graph)
    for node, given in zip(graph.findAllNodes(ATTENTION), operands(graph, ATTENTION, range(4), batch), strict=True):
        fits = _fits(node, given)
        query, key, value, mask, dropout, causal, scale, _ = node.inputs()
        with graph.insert_point_guard(node):
            if given[3] is not None and given[0] is not None:
                met = mask.unique(), fits, given[0].dtype
                if met not in masks or writes.ever(node.inputsAt(3)):
                    masks[met] = _mask(graph, mask, given[3].dtype, given[0].dtype, finite=fits)
                mask = masks[met]
            if not fits:
                node.replaceInput(3, mask)
                continue
            kernel = graph.create(KERNEL, [query, key, value, dropout, causal, mask, scale], 2)
            attended = graph.insertNode(kernel).outputsAt(0)
        node.output().replaceAllUsesWith(attended)
        node.destroy()


def is_plain(node: Node) -> bool:
    """Whether there is nothing to the kernel's attention but a scale, known at compile time, and a mask."""
    _, _, _, dropout, causal, _, scale = node.inputs()
    return equals(dropout, 0.0) and equals(causal, False) and is_constant(scale)


def expansions(node: Node) -> list[Node]:
    """What expands the mask that the kernel adds to the scores, the first of them first."""
    mask, found = node.inputsAt(5), list[Node]()
    while mask.node().kind() == "aten::expand":
        found.insert(0, mask.node())
        mask = mask.node().inputsAt(0)
    return found


def unexpanded_mask(node: Node) -> Value | None:
    """What the kernel adds to the scores, before it was expanded."""
    expanded = expansions(node)
    mask = expanded[0].inputsAt(0) if expanded else node.inputsAt(5)
    return None if mask.node().mustBeNone() else mask


def masks_of_keys(graph: Graph, batch: Sequence[torch.Tensor]) -> list[torch.dtype | None]:
    """Of each of the kernels, the dtype of `unexpanded_mask` if that is [batch, 1, 1, keys] and dense, else None.

    Args:
        graph: what `watch` takes.
        batch: inputs of several rows to run it with once.
    """

    def masks(graph: Graph) -> list[Value | None]:
        return [unexpanded_mask(node) for node in graph.findAllNodes(KERNEL)]

    found = iter(watch(graph, lambda copy: [mask for mask in masks(copy) if mask], batch))
    dtypes: list[torch.dtype | None] = []
    for mask, (query, key) in zip(masks(graph), operands(graph, KERNEL, (0, 1), batch), strict=True):
        tensor = next(found) if mask else None
        assert query is not None and key is not None
        of_keys = tensor is not None and tensor.is_contiguous() and tensor.shape == (len(query), 1, 1, key.shape[-2])
        dtypes.append(tensor.dtype if tensor is not None and of_keys and len(query) > 1 else None)
    return dtypes


def _fits(node: Node, given: Sequence[torch.Tensor | None]) -> bool:
    query, key, value, mask = given
    assert query is not None and key is not None and value is not None
    same = query.dim() == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2]
    heads = {each.shape[-1] for each in (query, key, value)}
    known = query.dtype == key.dtype == value.dtype and query.dtype in (torch.float32, torch.bfloat16)
    dense = known and all(each.stride(-1) == 1 for each in (query, key, value))
    fixed = equals(node.inputsAt(4), 0.0) and equals(node.inputsAt(7), False)
    added = mask is None or (mask.dim() in (2, 4) and mask.stride(-1) != 0)
    return same and len(heads) == 1 and dense and fixed and added


def _mask(graph: Graph, mask: Value, given: torch.dtype, dtype: torch.dtype, *, finite: bool) -> Value:
    """`mask`, which is given in one dtype, as what is added to scores of another; one that was expanded is so at last.

    `finite` is for IPEX's kernel: it gives NaN for a row with -inf everywhere, which the next layer would spread, and wants
    keys to be neighbours in memory, a single one too, which may be none in a tensor that calls itself contiguous. With the
    lowest number instead all keys weigh the same.
    """
    if mask.node().kind() == "aten::expand":
        inner, *sizes = mask.node().inputs()
        return insert(graph, "aten::expand", _mask(graph, inner, given, dtype, finite=finite), *sizes)
    lowest = torch.finfo(dtype).min if finite else -math.inf
    if finite:
        mask = insert(graph, "aten::clone", mask, 0)  # torch.contiguous_format
    if given == torch.bool:
        return insert(graph, "aten::where", mask, *(torch.tensor(number, dtype=dtype) for number in (0.0, lowest)))
    return insert(graph, "aten::clamp_min", mask, lowest) if finite else mask
