"""Attention of few tokens in bfloat16 reads query, key and value where the layer that makes all three has left them.

    reshape(transpose(flash_attention(cut(qkv, 0), cut(qkv, 1), cut(qkv, 2), mask)))
        →   if fewer than 64 tokens in all rows:  flatten(bert_flash_mha(qkv, mask))
            else:                                 as it was

where cut(qkv, i) is transpose(view(slice(qkv, …))).

So few, both kernels of IPEX multiply through MKL, and what is saved is taking apart and putting together. On a Xeon with AMX,
12 heads of 64, microseconds of the whole:

    batch x tokens      1x8    1x16    1x24    1x40    1x56    2x16    2x32    4x16    4x33
    as it was            72      72      85     132     130      75      93     120     226
    in one               56      60      70     121     118      68      96     114     260

Beyond 512 tokens, IPEX's kernel would read the mask in the wrong places (csrc/cpu/aten/kernels/MultiHeadAttentionKrnl.cpp);
its like for Stable Diffusion, without a mask, ends the process with a segmentation fault once it has met some tens of sizes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cpuc.compiler.branches import branch, copies, number, truth
from cpuc.compiler.flash import KERNEL, is_plain, masks_of_keys, unexpanded_mask
from cpuc.compiler.heads import cuts_of, joins_of
from cpuc.compiler.quantization import operands, watch
from cpuc.compiler.rewrites.matching import constant, equals, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

_FEW = 64
_SHORT = "ipex::bert_flash_mha"


@dataclass(frozen=True)
class Heads:
    """What `use_short` has to know of an attention.

    Attributes:
        count: number of heads.
        size: of each.
        scale: of the scores.
        tokens: in each row of the batch that it was found with; where they are as many, they are so in any other.
    """

    count: int
    size: int
    scale: float
    tokens: int


def find_short(graph: Graph, batch: Sequence[torch.Tensor]) -> list[Heads | None]:
    """Each attention of a fused graph, in the order of `findAllNodes`, if its sizes are such as `use_short` wants.

    To be called while the graph runs on `batch`, which shows axes and dtypes: before layers in int8 are lowered.
    """

    def pick(graph: Graph) -> list[Value]:
        return [value for node in graph.findAllNodes(KERNEL) for value in _around(node)]

    around = iter(watch(graph, pick, batch))
    given = zip(operands(graph, KERNEL, range(3), batch), masks_of_keys(graph, batch), strict=True)
    found: list[Heads | None] = []
    for node, ((query, key, value), mask) in zip(graph.findAllNodes(KERNEL), given, strict=True):
        shapes = [tensor.shape for tensor in itertools.islice(around, len(_around(node)))]
        assert query is not None and key is not None and value is not None
        rows, count, tokens, size = query.shape
        alike = query.shape == key.shape == value.shape and query.dtype == mask == torch.bfloat16
        # Windows of an image, say, are not the rows that were cut.
        if shapes == [(rows, tokens, count * size)] * 4 and alike and is_plain(node):
            scale = constant(node, 6)
            found.append(Heads(count, size, size**-0.5 if scale is None else float(scale), tokens))
        else:
            found.append(None)
    return found


def use_short(graph: Graph, found: Sequence[Heads | None]) -> None:
    """Give attention its second form in place, wherever one layer makes query, key and value.

    Args:
        graph: as it will be stored, but for this.
        found: what `find_short` said of it.
    """
    few: dict[tuple[int, int], Value] = {}
    for node, heads in zip(graph.findAllNodes(KERNEL), found, strict=True):
        whole = None if heads is None else _whole(node, heads)
        if heads is None or whole is None:
            continue
        size = heads.tokens, 3 * heads.count * heads.size
        if size not in few:
            with graph.insert_point_guard(node):
                few[size] = truth(graph, "aten::lt", number(graph, "aten::numel", whole), _FEW * size[1])
        before, after = [cut for i in range(3) for cut in cuts_of(node, i)], joins_of(node)
        short = functools.partial(_short, graph, whole, unexpanded_mask(node), heads)
        branch(graph, after[-1], few[size], short, functools.partial(copies, graph, [*before, node, *after]))
    torch._C._jit_pass_dce(graph)


def _short(graph: Graph, whole: Value, mask: Value | None, heads: Heads) -> Value:
    # Of the numbers IPEX's kernel looks at the second, a divisor, and the last two.
    joined = insert(graph, _SHORT, whole, mask, 1, 1 / heads.scale, -1, None, heads.count, heads.size)
    return insert(graph, "aten::flatten", joined, 2, -1)


def _around(node: Node) -> list[Value]:
    """What query, key and value are views of, and what is made of the output; empty if there is something else between."""
    cuts, after = [cuts_of(node, i) for i in range(3)], joins_of(node)
    return [*(views[-2].inputsAt(0) for views in cuts), after[-1].output()] if all(cuts) and after else []


def _whole(node: Node, heads: Heads) -> Value | None:
    """Where query, key and value lie side by side, in this order."""
    width = heads.count * heads.size
    wholes = set()
    for i in range(3):
        part = cuts_of(node, i)[0]
        bounds = (-1, i * width, (i + 1) * width, 1)
        if part.kind() != "aten::slice" or not all(equals(part.inputsAt(j + 1), bound) for j, bound in enumerate(bounds)):
            return None
        wholes.add(part.inputsAt(0))
    return wholes.pop() if len({whole.unique() for whole in wholes}) == 1 else None
