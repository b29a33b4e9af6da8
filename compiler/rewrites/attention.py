"""Attention that a model spells out becomes torch's one kernel for it.

    q ─ matmul(kᵀ) ─ … ─ softmax ─ matmul(v)   →   scaled_dot_product_attention(q, k, v, mask, scale)

What happens between the product and the softmax differs with every model: division by a scale, position biases, masks
that are added or filled in, casts, in any order. All of it is affine in the scores, so it is read as scale · scores +
mask, whatever its order (`_Scores`); where anything else stands, the graph is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from cpuc.compiler.rewrites.matching import is_constant, rank
from cpuc.compiler.rewrites.rewrite import Graph, Rewrite, Value, Values

# A fill of this size swallows the score it replaces, so that adding it is the same.
_SWALLOWS = -1e30
_FLOATS = (5, 6, 15)  # float16, float32 and bfloat16, as the graph writes them
_BOOLEAN = 11
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "__and__", "__or__", "bitwise_not", "logical_not", "logical_and")
_MOVES = ("unsqueeze", "squeeze", "expand", "expand_as", "slice", "view", "reshape", "permute", "transpose", "index")


def _number(value: Value) -> float | None:
    """The number that a constant holds: a Python number or a tensor without axes."""
    if not is_constant(value):
        return None
    content: Any = value.toIValue()
    if isinstance(content, torch.Tensor):
        return float(content) if content.dim() == 0 else None
    return float(content) if isinstance(content, int | float) and not isinstance(content, bool) else None


def _kind(value: Value) -> str:
    return str(value.node().kind()).removeprefix("aten::")


def _is_boolean(value: Value) -> bool:
    """Whether `value` is a mask of truth values, which attention takes to mean something else than a sum does."""
    node = value.node()
    if _kind(value) == "to":
        return node.inputsSize() > 1 and _number(node.inputsAt(1)) == _BOOLEAN
    return _kind(value) in _COMPARISONS or (_kind(value) in _MOVES and _is_boolean(node.inputsAt(0)))


@dataclass
class _Scores:
    """A value read as ``scale * matmul(query, keys) + mask``.

    Attributes:
        steps: builds the mask, innermost first: each takes the graph and the mask so far, and returns the next.
        batched: whether the product has three axes for certain, the first of them [batch · heads].
        heads: the number of heads, where such scores are viewed as [batch, heads, queries, keys].
    """

    query: Value
    keys: Value
    scale: float = 1.0
    steps: list[Callable[[Graph, Value | None], Value | None]] = field(default_factory=list)
    batched: bool = False
    heads: Value | None = None


def _read(value: Value) -> _Scores | None:
    """`value` as scores, or None if it is anything else."""
    node = value.node()
    kind, inputs = _kind(value), list(node.inputs())
    if kind in ("matmul", "bmm") and len(inputs) == 2:
        return _Scores(inputs[0], inputs[1], batched=kind == "bmm")
    reader = _READERS.get(kind)
    return reader(value, inputs) if reader else None


def _read_scaled(value: Value, inputs: list[Value]) -> _Scores | None:
    factor = _number(inputs[1])
    if len(inputs) != 2 or factor is None or factor <= 0 or not (scores := _read(inputs[0])):
        return None
    factor = 1 / factor if _kind(value) == "div" else factor

    def scaled(graph: Graph, mask: Value | None) -> Value | None:
        return None if mask is None else _make(graph, "aten::mul", mask, graph.insertConstant(factor))

    scores.scale *= factor
    scores.steps.append(scaled)
    return scores


def _read_sum(value: Value, inputs: list[Value]) -> _Scores | None:
    if len(inputs) != 3 or _number(inputs[2]) != 1:
        return None
    subtract = _kind(value) == "sub"
    scores, term = _read(inputs[0]), inputs[1]
    if scores is None and not subtract:
        scores, term = _read(inputs[1]), inputs[0]
    if scores is None or _number(term) == 0:
        return scores
    if _number(term) is not None or _is_boolean(term):
        return None

    def summed(graph: Graph, mask: Value | None) -> Value:
        if mask is not None:
            return _make(graph, value.node().kind(), mask, term, graph.insertConstant(1))
        return _make(graph, "aten::neg", term) if subtract else term

    scores.steps.append(summed)
    return scores


def _read_filled(_: Value, inputs: list[Value]) -> _Scores | None:
    filling, where = _number(inputs[2]), inputs[1]
    if filling is None or filling > _SWALLOWS or not (scores := _read(inputs[0])):
        return None

    def filled(graph: Graph, mask: Value | None) -> Value:
        fill = graph.insertConstant(filling)
        if mask is None:
            return _make(graph, "aten::where", where, fill, graph.insertConstant(0.0))
        return _make(graph, "aten::masked_fill", mask, where, fill)

    scores.steps.append(filled)
    return scores


def _read_cast(_: Value, inputs: list[Value]) -> _Scores | None:
    # The kernel accumulates in float32 whatever the model is in.
    return _read(inputs[0]) if _number(inputs[1]) in _FLOATS else None


def _read_heads(_: Value, inputs: list[Value]) -> _Scores | None:
    """A view of [batch · heads, queries, keys] as [batch, heads, queries, keys]."""
    product, shape = inputs
    if is_constant(shape) or shape.node().inputsSize() != 4:
        return None
    sizes = list(shape.node().inputs())
    whole = _is_size(sizes[2], product, -2) and _is_size(sizes[3], product, -1)
    if not whole or _number(sizes[0]) != -1 or _number(sizes[1]) is None:
        return None
    scores = _read(product)
    if scores is None or not scores.batched:
        return None

    def viewed(graph: Graph, mask: Value | None) -> Value | None:
        if mask is None:
            return None
        lengths = [_size(graph, scores.query, -2), _size(graph, scores.keys, -1)]
        whole = _make(graph, "prim::ListConstruct", *sizes[:2], *lengths)
        whole.setType(torch._C.ListType.ofInts())
        return _make(graph, "aten::view", mask, whole)

    scores.steps.append(viewed)
    scores.batched, scores.heads = False, sizes[1]
    return scores


def _is_size(size: Value, of: Value, axis: int) -> bool:
    node = size.node()
    return _kind(size) == "size" and node.inputsAt(0).unique() == of.unique() and _number(node.inputsAt(1)) == axis


_READERS = {
    "div": _read_scaled,
    "mul": _read_scaled,
    "add": _read_sum,
    "sub": _read_sum,
    "masked_fill": _read_filled,
    "to": _read_cast,
    "view": _read_heads,
}


def _make(graph: Graph, kind: str, *inputs: Value) -> Value:
    return graph.insertNode(graph.create(kind, list(inputs), 1)).output()


def _size(graph: Graph, of: Value, axis: int) -> Value:
    size = _make(graph, "aten::size", of, graph.insertConstant(axis))
    size.setType(torch._C.IntType.get())
    return size


def _attention(graph: Graph, names: Values, *, merged: bool = False) -> Values | None:
    """Accept scores that can be read, normalised over the keys; adds what the kernel needs of them.

    `merged`: the weights are viewed as [batch · heads, queries, keys] before they meet the values.
    """
    scores, axis = _read(names["scores"]), _number(names["axis"])
    floats = [names[name] for name in ("dtype", "cast") if name in names]
    if scores is None or not all(each.node().mustBeNone() or _number(each) in _FLOATS for each in floats):
        return None
    if axis != -1 and (axis is None or rank(scores.query) != axis + 1):
        return None
    if merged != (scores.heads is not None):
        return None
    mask: Value | None = None
    for step in scores.steps:
        mask = step(graph, mask)
    more = {"query": scores.query, "keys": scores.keys, "scale": graph.insertConstant(scores.scale)}
    more["mask"] = graph.insertConstant(None) if mask is None else mask
    return more if scores.heads is None else {**more, "heads": scores.heads}


_KERNEL = """
            %last : int = prim::Constant[value=-1]()
            %second : int = prim::Constant[value=-2]()
            %dropout : float = prim::Constant[value=0.]()
            %no : bool = prim::Constant[value=0]()
            %key = aten::transpose(%keys, %last, %second)"""

_ATTEND = f"""
        graph(%query, %keys, %value, %mask, %scale):{_KERNEL}
            %y = aten::scaled_dot_product_attention(%query, %key, %value, %mask, %dropout, %no, %scale, %no)
            return (%y)"""


def _only_fills(_: Graph, names: Values) -> Values | None:
    uses = [use.user for use in names["result"].uses()]
    fills = all(each.kind() in ("aten::masked_fill", "aten::masked_fill_") for each in uses)
    return {} if fills and all(each.inputsAt(0).unique() == names["x"].unique() for each in uses) else None


# What attention gives already has the shape [batch, heads, queries, columns of v]:
#
#   attention(q, k, v, …) ─ reshape(batch, -1, queries, columns)   →   attention(q, k, v, …)
SHAPE = Rewrite(
    "attention-shape",
    """
    graph(%query, %key, %value, %mask, %dropout, %causal, %scale, %grouped):
        %first : int = prim::Constant[value=0]()
        %keep : int = prim::Constant[value=-1]()
        %two : int = prim::Constant[value=2]()
        %three : int = prim::Constant[value=3]()
        %attended = aten::scaled_dot_product_attention(%query, %key, %value, %mask, %dropout, %causal, %scale, %grouped)
        %batch : int = aten::size(%attended, %first)
        %queries : int = aten::size(%query, %two)
        %columns : int = aten::size(%value, %three)
        %shape : int[] = prim::ListConstruct(%batch, %keep, %queries, %columns)
        %y = aten::reshape(%attended, %shape)
        return (%y)""",
    """
    graph(%query, %key, %value, %mask, %dropout, %causal, %scale, %grouped):
        %y = aten::scaled_dot_product_attention(%query, %key, %value, %mask, %dropout, %causal, %scale, %grouped)
        return (%y)""",
)

ATTENTION = (
    #   masked_fill(x, expand_as(mask, x), c)   →   masked_fill(x, mask, c)      a mask broadcasts
    Rewrite(
        "mask-expansion",
        """
        graph(%mask, %x):
            %y = aten::expand_as(%mask, %x)
            return (%y)""",
        """
        graph(%mask, %x):
            return (%mask)""",
        _only_fills,
    ),
    #   softmax(scale · q·kᵀ + mask) ─ matmul(v)   →   scaled_dot_product_attention(q, k, v, mask, scale)
    Rewrite(
        "attention",
        """
        graph(%scores, %value, %axis, %dtype):
            %weights = aten::softmax(%scores, %axis, %dtype)
            %y = aten::matmul(%weights, %value)
            return (%y)""",
        _ATTEND,
        _attention,
    ),
    # The softmax in float32, its result cast back:
    #
    #   softmax(scale · q·kᵀ + mask) ─ to(dtype) ─ matmul(v)   →   scaled_dot_product_attention(q, k, v, mask, scale)
    Rewrite(
        "attention-cast",
        """
        graph(%scores, %value, %axis, %dtype, %cast, %a, %b, %c):
            %weights = aten::softmax(%scores, %axis, %dtype)
            %same = aten::to(%weights, %cast, %a, %b, %c)
            %y = aten::matmul(%same, %value)
            return (%y)""",
        _ATTEND,
        _attention,
    ),
    #   softmax(scale · q·kᵀ + mask) ─ type_as(q) ─ matmul(v)   →   scaled_dot_product_attention(q, k, v, mask, scale)
    Rewrite(
        "attention-type-as",
        """
        graph(%scores, %value, %axis, %dtype, %like):
            %weights = aten::softmax(%scores, %axis, %dtype)
            %same = aten::type_as(%weights, %like)
            %y = aten::matmul(%same, %value)
            return (%y)""",
        _ATTEND,
        _attention,
    ),
    # Products over [batch · heads] with a softmax over [batch, heads, queries, keys]. The kernel wants four axes:
    #
    #   softmax(view(q·kᵀ + bias) + mask) ─ view(3 axes) ─ bmm(v)   →   split heads of q, k, v, mask ─ attention ─ merge
    Rewrite(
        "attention-bmm",
        """
        graph(%scores, %value, %axis, %dtype):
            %last : int = prim::Constant[value=-1]()
            %second : int = prim::Constant[value=-2]()
            %weights = aten::softmax(%scores, %axis, %dtype)
            %queries : int = aten::size(%weights, %second)
            %others : int = aten::size(%weights, %last)
            %sizes : int[] = prim::ListConstruct(%last, %queries, %others)
            %flat = aten::view(%weights, %sizes)
            %y = aten::bmm(%flat, %value)
            return (%y)""",
        f"""
        graph(%query, %keys, %value, %mask, %scale, %heads):{_KERNEL}
            %first : int = prim::Constant[value=0]()
            %one : int = prim::Constant[value=1]()
            %split : int[] = prim::ListConstruct(%last, %heads)
            %q = aten::unflatten(%query, %first, %split)
            %k = aten::unflatten(%key, %first, %split)
            %v = aten::unflatten(%value, %first, %split)
            %attended = aten::scaled_dot_product_attention(%q, %k, %v, %mask, %dropout, %no, %scale, %no)
            %y = aten::flatten(%attended, %first, %one)
            return (%y)""",
        partial(_attention, merged=True),
    ),
    SHAPE,
)
