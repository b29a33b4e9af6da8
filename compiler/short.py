"""Attention of short rows in bfloat16, whose kernel multiplies through MKL when a row has fewer than 64 tokens.

    reshape(transpose(flash_attention(cut(qkv, 0), cut(qkv, 1), cut(qkv, 2), mask)))
        →   if fewer than 64 tokens in all rows:  flatten(bert_flash_mha(qkv, mask))
            else:                                 as it was

where cut(qkv, i) is transpose(view(slice(qkv, …))). So few, both kernels of IPEX multiply through MKL, and what is saved is
taking apart and putting together. On a Xeon with AMX, 12 heads of 64, microseconds of the whole:

    batch x tokens      1x8    1x16    1x24    1x40    1x56    2x16    2x32    4x16    4x33
    as it was            72      72      85     132     130      75      93     120     226
    in one               56      60      70     121     118      68      96     114     260

MKL has bfloat16 for Intel's AMX. With AVX512_BF16 alone its product is no faster than one in float32, and IPEX's own, from 64
tokens on, is so much faster that 63 of them take longer. There

    flash_attention(cut(qkv), mask)   →   if a row has 48 to 63 tokens:    that of rows with 64, cut to what they had
                                          if fewer than 64 in all rows:    flatten(bert_flash_mha(qkv, mask))
                                          if a row has fewer than 48:      to(that in float32)
                                          else:                            as it was

and what is not cut from one tensor is in float32 up to 63 tokens, unless there are fewer than 64 in all. On an EPYC (Zen 4),
12 heads of 64, as above:

    batch x tokens     1x48    1x56    1x63    8x16    8x24    8x32    8x40    8x48    8x56    8x63   32x32   32x48
    as it was           225     289     385     288     693     826    1404    1597    2102    2938    3768    7468
    in one              228     282     327     287     664     871    1378    1693    2160    2575    4025    7885
    rows of 64          217     222     219             861     844     899    1032     919     898    4074    3974
    in float32          297     376     480     215     515     683    1103    1248    1727    2544    2713    5454

Beyond 512 tokens, `bert_flash_mha` would read the mask in the wrong places (csrc/cpu/aten/kernels/MultiHeadAttentionKrnl.cpp);
its like for Stable Diffusion, without a mask, ends the process with a segmentation fault once it has met some tens of sizes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuc.compiler.branches import branch, choose, copies, number, truth
from cpuc.compiler.flash import KERNEL, expansions, is_plain, masks_of_keys, unexpanded_mask
from cpuc.compiler.heads import cuts_of, joins_of
from cpuc.compiler.quantization import operands, watch
from cpuc.compiler.rewrites.matching import constant, equals, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

_FEW = 64  # tokens of a call
_LONG, _NEARLY = 64, 48  # tokens of a row
_SHORT = "ipex::bert_flash_mha"
_MASK, _SCALE = 5, 6
_BFLOAT16, _FLOAT32 = 15, 6  # dtypes as graphs write them


@dataclass(frozen=True)
class Heads:
    """What `use_short` has to know of an attention in bfloat16.

    Attributes:
        count: number of heads.
        size: of each.
        scale: of the scores.
        tokens: keys of each row of the batch that it was found with; where they are as many, they are so in any other.
        joined: whether it is one of a row's tokens among themselves, with no mask but one of keys, and made into rows again.
    """

    count: int
    size: int
    scale: float
    tokens: int
    joined: bool


def find_short(graph: Graph, batch: Sequence[torch.Tensor]) -> list[Heads | None]:
    """Each attention of a fused graph in bfloat16, in the order of `findAllNodes`.

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
        alike = query.shape == key.shape == value.shape and mask == torch.bfloat16
        # Windows of an image, say, are not the rows that were cut.
        joined = shapes == [(rows, tokens, count * size)] * 4 and alike and is_plain(node)
        scale = constant(node, _SCALE)
        scale = size**-0.5 if scale is None else float(scale)
        found.append(Heads(count, size, scale, key.shape[2], joined) if query.dtype == torch.bfloat16 else None)
    return found


def use_short(graph: Graph, found: Sequence[Heads | None]) -> None:
    """Give attention of short rows its other forms in place.

    Args:
        graph: as it will be stored, but for this.
        found: what `find_short` said of it.
    """
    sizes: dict[tuple[int, int, bool], _Sizes] = {}
    for node, heads in zip(graph.findAllNodes(KERNEL), found, strict=True):
        whole = _whole(node, heads) if heads and heads.joined else None
        if heads is None or (whole is None and not multiplies_slowly()):
            continue
        width = heads.count * heads.size
        key = heads.tokens, width, whole is None
        if key not in sizes:
            with graph.insert_point_guard(node):
                sizes[key] = _sizes(graph, *((node.inputsAt(1), 2, width) if whole is None else (whole, 1, 3 * width)))
        if whole is not None:
            _in_one(graph, node, heads, sizes[key], whole)
        else:
            ways = [(sizes[key].several, functools.partial(_in_float32, graph, node))]
            branch(graph, node, ways, functools.partial(copies, graph, [node]))
    torch._C._jit_pass_dce(graph)


def multiplies_slowly() -> bool:
    """Whether MKL's product in bfloat16 is slow on this CPU, and IPEX's own is not."""
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


@dataclass(frozen=True)
class _Sizes:
    """What a call's sizes are, while running.

    Attributes:
        tokens: in a row.
        few: the truth value that all rows have fewer than `_FEW` tokens.
        short, nearly: that a row has fewer than `_NEARLY`, or that many and fewer than `_LONG`.
        tiny: that both `few` and `short` are true.
        several: that a row has fewer than `_LONG`, but `few` is not true.
        masks: what is made of each for such rows.
    """

    tokens: Value
    few: Value
    short: Value
    nearly: Value
    tiny: Value
    several: Value
    masks: dict[int, Value]


def _sizes(graph: Graph, source: Value, axis: int, width: int) -> _Sizes:
    """Those of a call with a tensor `source`, which has as many elements as `width` times the tokens of all rows."""
    tokens, count = number(graph, "aten::size", source, axis), number(graph, "aten::numel", source)
    few, many = (truth(graph, f"aten::{kind}", count, _FEW * width) for kind in ("lt", "ge"))
    short, below = (truth(graph, "aten::lt", tokens, bound) for bound in (_NEARLY, _LONG))
    pairs = (below, truth(graph, "aten::ge", tokens, _NEARLY)), (few, short), (below, many)
    nearly, tiny, several = (truth(graph, "aten::__and__", *pair) for pair in pairs)
    return _Sizes(tokens, few, short, nearly, tiny, several, {})


def _in_one(graph: Graph, node: Node, heads: Heads, sizes: _Sizes, whole: Value) -> None:
    """The forms of attention whose query, key and value are cut from `whole`."""
    chain, after = [cut for i in range(3) for cut in cuts_of(node, i)], joins_of(node)
    short = functools.partial(_short, graph, whole, unexpanded_mask(node), heads)
    if not multiplies_slowly():
        branch(graph, after[-1], [(sizes.few, short)], functools.partial(copies, graph, [*chain, node, *after]))
        return
    mask = _fitting_mask(graph, node, sizes)
    branch(graph, after[-1], [(sizes.tiny, short)], functools.partial(_fitting, graph, node, heads, sizes, whole, mask))


def _short(graph: Graph, whole: Value, mask: Value | None, heads: Heads) -> Value:
    # Of the numbers IPEX's kernel looks at the second, a divisor, and the last two.
    joined = insert(graph, _SHORT, whole, mask, 1, 1 / heads.scale, -1, None, heads.count, heads.size)
    return insert(graph, "aten::flatten", joined, 2, -1)


def _fit(graph: Graph, sizes: _Sizes, value: Value, pads: Sequence[Any], fill: float) -> Value:
    """`value` as a call's kernel is given it: with rows of `_LONG` tokens, in float32, or as it is."""

    def lengthened() -> Value:
        missing = number(graph, "aten::sub", _LONG, sizes.tokens)
        return insert(graph, "aten::constant_pad_nd", value, _list(graph, *pads, missing), fill)

    def wider() -> Value:
        return _to(graph, value, _FLOAT32)

    return choose(graph, [(sizes.nearly, lengthened), (sizes.short, wider)], lambda: value)


def _fitting_mask(graph: Graph, node: Node, sizes: _Sizes) -> Value:
    mask = unexpanded_mask(node)
    assert mask is not None, "it is one of keys"
    if mask.unique() not in sizes.masks:
        with graph.insert_point_guard(node):
            fitted = _fit(graph, sizes, mask, [0], torch.finfo(torch.bfloat16).min)
            length = number(graph, "aten::size", fitted, -1)
            sizes.masks[mask.unique()] = insert(graph, "aten::expand", fitted, _list(graph, -1, -1, length, -1), False)
    return sizes.masks[mask.unique()]


def _fitting(graph: Graph, node: Node, heads: Heads, sizes: _Sizes, whole: Value, mask: Value) -> Value:
    rows = _fit(graph, sizes, whole, [0, 0, 0], 0.0)
    split = insert(graph, "aten::unflatten", rows, 2, [3, heads.count, heads.size])
    turned = insert(graph, "aten::permute", split, [2, 0, 3, 1, 4])
    parts = insert(graph, "aten::unbind", turned, 0).setType(torch._C.ListType.ofTensors())
    query, key, value = graph.insertNode(graph.create("prim::ListUnpack", [parts], 3)).outputs()
    kernel = graph.create(KERNEL, [query, key, value, node.inputsAt(3), node.inputsAt(4), mask, node.inputsAt(_SCALE)], 2)
    attended = insert(graph, "aten::slice", graph.insertNode(kernel).outputsAt(0), 2, 0, sizes.tokens, 1)
    joined = insert(graph, "aten::contiguous", insert(graph, "aten::transpose", attended, 1, 2), 0)
    return _to(graph, insert(graph, "aten::flatten", joined, 2, -1), _BFLOAT16)


def _in_float32(graph: Graph, node: Node) -> Value:
    sources = [node.inputsAt(i) for i in range(3)]
    if mask := unexpanded_mask(node):
        sources.append(mask)
    cast = {value.unique(): _to(graph, value, _FLOAT32) for value in sources}
    return _to(graph, copies(graph, [*expansions(node), node], cast), _BFLOAT16)


def _to(graph: Graph, value: Value, dtype: int) -> Value:
    return insert(graph, "aten::to", value, dtype, False, False, None)


def _list(graph: Graph, *numbers: Any) -> Value:
    made = insert(graph, "prim::ListConstruct", *numbers)
    return made.setType(torch._C.ListType.ofInts())


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
