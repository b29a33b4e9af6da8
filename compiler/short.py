"""Attention of short rows in bfloat16, whose kernel multiplies through MKL when a row has fewer than 64 tokens.

    reshape(transpose(flash_attention(cut(qkv, 0), cut(qkv, 1), cut(qkv, 2), mask)))
        →   if fewer than 64 tokens in all rows:  flatten(bert_flash_mha(qkv, mask))
            else:                                 as it was     (on Intel's CPUs)

where cut(qkv, i) is transpose(view(slice(qkv, …))). So few, both kernels of IPEX multiply through MKL, and what is saved is
taking apart and putting together. On a Xeon with AMX, 12 heads of 64, microseconds of the whole:

    batch x tokens      1x8    1x16    1x24    1x40    1x56    2x16    2x32    4x16    4x33
    as it was            72      72      85     132     130      75      93     120     226
    in one               56      60      70     121     118      68      96     114     260

On CPUs that are not Intel's, MKL's product in bfloat16 is no faster than the one in float32, and IPEX's own, from 64 tokens
on, is so much faster that 63 of them take longer. There

    flash_attention(cut(qkv), mask)   →   if fewer than 64 tokens in all rows, and than 52 in one:    bert_flash_mha, as above
                                          if 44 to 63 tokens in a row:    that of rows of 64, cut to what they had
                                          if fewer than 44:               to(that in float32)
                                          else:                           as it was

and what is not cut from one tensor is in float32 up to 63 tokens, unless there are fewer than 64 in all. On an EPYC (Zen 4),
12 heads of 64, as above:

    batch x tokens    1x32    1x40    1x44    1x63    2x32    8x16    8x32    8x40    8x44    8x63   32x32   32x44
    as it was           64     101     118     214     115     186     413     712     859    1599    1663    3663
    in one              59      94     107     186     111     195     430     715     829    1464    1792    3629
    rows of 64         103     104     104     106     161     552     561     557     562     566    2674    2703
    in float32          70     101     117     209      98     137     318     538     668    1363    1299    3105

Beyond 512 tokens, `bert_flash_mha` would read the mask in the wrong places (csrc/cpu/aten/kernels/MultiHeadAttentionKrnl.cpp);
its like for Stable Diffusion, without a mask, ends the process with a segmentation fault once it has met some tens of sizes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuc.compiler.benchmarking.machine import is_intel
from cpuc.compiler.branches import branch, choose, copies, number, truth
from cpuc.compiler.flash import KERNEL, expansions, is_plain, masks_of_keys, unexpanded_mask
from cpuc.compiler.heads import cuts_of, joins_of
from cpuc.compiler.quantization import operands, watch
from cpuc.compiler.rewrites.matching import constant, equals, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

_FEW = 64  # tokens of a call
_LONG, _NEARLY, _ALONE = 64, 44, 52  # tokens of a row
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
        joined: whether it is one of a row's tokens among themselves, with a mask of keys, and made into rows again.
    """

    count: int
    size: int
    scale: float
    tokens: int
    joined: bool


def find_short(graph: Graph, batch: Sequence[torch.Tensor]) -> list[Heads | None]:
    """Each attention of a fused graph, in the order of `findAllNodes`; None for those that `use_short` leaves alone.

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
        # Of one query, as where a head reads one position, products take less time than casts of keys and values.
        worthwhile = query.dtype == torch.bfloat16 and tokens > 1
        found.append(Heads(count, size, scale, key.shape[2], joined) if worthwhile else None)
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
                if whole is None:
                    keys = number(graph, "aten::size", node.inputsAt(1), 2)
                    sizes[key] = _sizes(graph, keys, node.inputsAt(0), width)
                else:
                    sizes[key] = _sizes(graph, number(graph, "aten::size", whole, 1), whole, 3 * width)
        if whole is not None:
            _of_joined(graph, node, heads, sizes[key], whole)
        else:
            ways = [(sizes[key].several, functools.partial(_in_float32, graph, node))]
            branch(graph, node, ways, functools.partial(copies, graph, [node]))
    torch._C._jit_pass_dce(graph)


def multiplies_slowly() -> bool:
    """Whether MKL's product in bfloat16 is slow on this CPU, and IPEX's own is not."""
    return torch.cpu._is_avx512_bf16_supported() and not is_intel()


@dataclass(frozen=True)
class _Sizes:
    """What a call's sizes are, while running.

    Attributes:
        tokens: keys of a row.
        few: the truth value that all rows have fewer than `_FEW` tokens.
        nearly: that a row has `_NEARLY` or more, but fewer than `_LONG`.
        tiny: that it has fewer than `_ALONE`, and `few` is true.
        several: that it has fewer than `_LONG`, and `few` is not true.
        masks: what the kernel is given in the place of each, by `Value.unique`.
    """

    tokens: Value
    few: Value
    nearly: Value
    tiny: Value
    several: Value
    masks: dict[int, Value]


def _sizes(graph: Graph, tokens: Value, source: Value, width: int) -> _Sizes:
    """Those of a call; `source` has as many elements as `width` times the tokens of all rows."""
    count = number(graph, "aten::numel", source)
    few, many = (truth(graph, f"aten::{kind}", count, _FEW * width) for kind in ("lt", "ge"))
    short, below = (truth(graph, "aten::lt", tokens, bound) for bound in (_ALONE, _LONG))
    pairs = (below, truth(graph, "aten::ge", tokens, _NEARLY)), (short, few), (below, many)
    nearly, tiny, several = (truth(graph, "aten::__and__", *pair) for pair in pairs)
    return _Sizes(tokens, few, nearly, tiny, several, {})


def _of_joined(graph: Graph, node: Node, heads: Heads, sizes: _Sizes, whole: Value) -> None:
    """The forms of attention whose query, key and value are cut from `whole`."""
    chain, after = [cut for i in range(3) for cut in cuts_of(node, i)], joins_of(node)
    mask = unexpanded_mask(node)
    assert mask is not None, "it is joined"
    in_one = functools.partial(_in_one, graph, whole, mask, heads)
    if not multiplies_slowly():
        branch(graph, after[-1], [(sizes.few, in_one)], functools.partial(copies, graph, [*chain, node, *after]))
        return
    if mask.unique() not in sizes.masks:
        with graph.insert_point_guard(node):
            sizes.masks[mask.unique()] = _adapted_mask(graph, sizes, mask)
    adapted = functools.partial(_adapted, graph, node, heads, sizes, whole, sizes.masks[mask.unique()])
    branch(graph, after[-1], [(sizes.tiny, in_one)], adapted)


def _in_one(graph: Graph, whole: Value, mask: Value, heads: Heads) -> Value:
    # Of the numbers IPEX's kernel looks at the second, a divisor, and the last two.
    joined = insert(graph, _SHORT, whole, mask, 1, 1 / heads.scale, -1, None, heads.count, heads.size)
    return insert(graph, "aten::flatten", joined, 2, -1)


def _adapted(graph: Graph, node: Node, heads: Heads, sizes: _Sizes, whole: Value, mask: Value) -> Value:
    """Attention in rows of `_LONG` tokens, in float32, or as it was: that only what it reads decides."""
    rows = _adapt(graph, sizes, whole, [0, 0, 0], 0.0)
    split = insert(graph, "aten::unflatten", rows, 2, [3, heads.count, heads.size])
    turned = insert(graph, "aten::permute", split, [2, 0, 3, 1, 4])
    parts = insert(graph, "aten::unbind", turned, 0).setType(torch._C.ListType.ofTensors())
    query, key, value = graph.insertNode(graph.create("prim::ListUnpack", [parts], 3)).outputs()
    kernel = graph.create(KERNEL, [query, key, value, node.inputsAt(3), node.inputsAt(4), mask, node.inputsAt(_SCALE)], 2)
    attended = insert(graph, "aten::slice", graph.insertNode(kernel).outputsAt(0), 2, 0, sizes.tokens, 1)
    joined = insert(graph, "aten::contiguous", insert(graph, "aten::transpose", attended, 1, 2), 0)
    return _to(graph, insert(graph, "aten::flatten", joined, 2, -1), _BFLOAT16)


def _adapted_mask(graph: Graph, sizes: _Sizes, mask: Value) -> Value:
    """The mask for that. Of a row without any key, those that are missing must not weigh as much as those that are masked."""
    adapted = _adapt(graph, sizes, mask, [0], -math.inf)
    length = number(graph, "aten::size", adapted, -1)
    return insert(graph, "aten::expand", adapted, _list(graph, -1, -1, length, -1), False)


def _adapt(graph: Graph, sizes: _Sizes, value: Value, pads: Sequence[Any], fill: float) -> Value:
    def lengthened() -> Value:
        missing = number(graph, "aten::sub", _LONG, sizes.tokens)
        return insert(graph, "aten::constant_pad_nd", value, _list(graph, *pads, missing), fill)

    def wider() -> Value:
        return _to(graph, value, _FLOAT32)

    return choose(graph, [(sizes.nearly, lengthened), (sizes.several, wider)], lambda: value)


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
    if len({whole.unique() for whole in wholes}) != 1:
        return None
    whole = wholes.pop()
    # Another layer of the same input may be joined too, and the kernels take rows to be as wide as query, key and value.
    cuts = [use.user for use in whole.uses() if use.user.kind() == "aten::slice"]
    return None if any((constant(cut, 3) or 0) > 3 * width for cut in cuts) else whole
