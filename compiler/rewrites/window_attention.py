"""Attention that a model spells out as products, with position biases of its own, becomes torch's fused attention.

The first product's second factor is the transposed key, however it was transposed: transposing it back is a view.
"""

from __future__ import annotations

import torch

from cpuc.compiler.rewrites.matching import accepts, constant, constant_tensor, source
from cpuc.compiler.rewrites.rewrite import Rewrite


def _scales_heads(node: torch._C.Node | None) -> bool:
    """`node` multiplies scores by one factor a row or a head, which scales a query just as well."""
    factor = constant_tensor(node, 1)
    return factor is not None and factor.dim() in (3, 4) and factor.shape[-1] == 1


def _scaled_and_biased(node: torch._C.Node) -> bool:
    return _scales_heads(source(node, 0, 0, 0))


def _shifted(node: torch._C.Node) -> bool:
    """The bias is the same for every window; one view splits windows by image, the other undoes it."""
    flat = source(node, 0, 0)
    windows = source(node, 0, 0, 0, 0, 0)
    bias = constant_tensor(source(node, 0, 0, 0, 0, 0, 0), 1)
    if bias is None or bias.dim() != 4 or bias.shape[0] != 1 or flat is None or windows is None:
        return False
    whole, split = (_lengths(view) for view in (flat, windows))
    same = len(split) == 5 and len(whole) == 4 and split[2:] == whole[1:] and "-1" not in split
    return same and _scales_heads(source(windows, 0, 0))


def _cut_in_one_and_two(node: torch._C.Node) -> bool:
    """Two sizes, the second twice the first: as they add up to what is cut, the first is a third of it."""
    sizes = node.inputsAt(1).node()
    if sizes.kind() != "prim::ListConstruct" or sizes.inputsSize() != 2 or constant_tensor(node, 0) is None:
        return False
    path = [source(sizes, 1), source(sizes, 1, 0), source(sizes, 1, 0, 0)]
    if [step and step.kind() for step in path] != ["aten::Int", "aten::mul", "prim::NumToTensor"]:
        return False
    return constant(path[1], 1) == 2 and _name(path[2], 0) == _name(sizes, 0)


def _name(node: torch._C.Node | None, position: int) -> str:
    return node.inputsAt(position).debugName() if node else ""


def _lengths(view: torch._C.Node) -> list[str]:
    """What a view's shape is made of: numbers, and names of values."""
    if isinstance(known := constant(view, 1), list):
        return [str(length) for length in known]
    shape = source(view, 1)
    if shape is None or shape.kind() != "prim::ListConstruct":
        return []
    return [str(value.toIValue() or value.debugName()) for value in shape.inputs()]


_SOFTMAX = """
            %axis : int = prim::Constant[value=-1]()
            %same : NoneType = prim::Constant()
            %weights = aten::softmax(%scores, %axis, %same)"""
_CONSTANTS = """
            %none : NoneType = prim::Constant()
            %last : int = prim::Constant[value=-1]()
            %minus_two : int = prim::Constant[value=-2]()
            %zero : int = prim::Constant[value=0]()
            %no : bool = prim::Constant[value=0]()
            %never : float = prim::Constant[value=0.]()
            %unit : float = prim::Constant[value=1.]()
            %key = aten::transpose(%kt, %minus_two, %last)"""

WINDOW_ATTENTION = (
    # Swin v2: cosine attention with a learnt factor a head.
    #
    #   q ─ matmul ─ mul(factor) ─ add(bias) ─ softmax ─ matmul   →   q ─ mul(factor) ─ scaled_dot_product_attention
    #   kᵀ ──┘                                     v ─────┘           k, v, bias ──────────┘
    Rewrite(
        "scaled-biased-attention",
        f"""
        graph(%q, %kt, %v, %factor, %bias):
            %products = aten::matmul(%q, %kt)
            %scaled = aten::mul(%products, %factor)
            %alpha : int = prim::Constant[value=1]()
            %scores = aten::add(%scaled, %bias, %alpha)
            {_SOFTMAX}
            %y = aten::matmul(%weights, %v)
            return (%y)""",
        f"""
        graph(%q, %kt, %v, %factor, %bias):
            {_CONSTANTS}
            %query = aten::mul(%q, %factor)
            %mask = aten::type_as(%bias, %query)
            %y = aten::scaled_dot_product_attention(%query, %key, %v, %mask, %never, %no, %unit, %no)
            return (%y)""",
        where=accepts(_scaled_and_biased),
    ),
    # The same in shifted windows, where a mask, the same in every image, keeps apart what is no neighbour. Swin v2 adds
    # it twice.
    #
    #   … ─ add(bias) ─ view ─ add(mask) ─ add(mask) ─ view ─ softmax ─ matmul
    #       →   … ─ scaled_dot_product_attention(bias + 2 mask, expanded to all images)
    Rewrite(
        "shifted-window-attention",
        f"""
        graph(%q, %kt, %v, %factor, %bias, %window, %split, %whole):
            %products = aten::matmul(%q, %kt)
            %scaled = aten::mul(%products, %factor)
            %alpha : int = prim::Constant[value=1]()
            %biased = aten::add(%scaled, %bias, %alpha)
            %windows = aten::view(%biased, %split)
            %beta : int = prim::Constant[value=1]()
            %masked = aten::add(%windows, %window, %beta)
            %gamma : int = prim::Constant[value=1]()
            %again = aten::add(%masked, %window, %gamma)
            %scores = aten::view(%again, %whole)
            {_SOFTMAX}
            %y = aten::matmul(%weights, %v)
            return (%y)""",
        f"""
        graph(%q, %kt, %v, %factor, %bias, %window, %split, %whole):
            {_CONSTANTS}
            %two : int = prim::Constant[value=2]()
            %query = aten::mul(%q, %factor)
            %sum = aten::add(%bias, %window, %two)
            %cast = aten::type_as(%sum, %query)
            %images = aten::expand(%cast, %split, %no)
            %mask = aten::reshape(%images, %whole)
            %y = aten::scaled_dot_product_attention(%query, %key, %v, %mask, %never, %no, %unit, %no)
            return (%y)""",
        where=accepts(_shifted),
    ),
    # torch's multi_head_attention_forward, asked for weights that nobody uses: batch and heads are one dimension, which
    # becomes the heads of a batch of one, because the fused kernel wants four dimensions.
    #
    #   bias ─ baddbmm ─ softmax ─ bmm   →   q, k, v, bias ─ unsqueeze ─ scaled_dot_product_attention ─ squeeze
    #   q, kᵀ ──┘             v ────┘
    Rewrite(
        "batched-biased-attention",
        f"""
        graph(%q, %kt, %v, %bias):
            %beta : int = prim::Constant[value=1]()
            %alpha : int = prim::Constant[value=1]()
            %scores = aten::baddbmm(%bias, %q, %kt, %beta, %alpha)
            {_SOFTMAX}
            %y = aten::bmm(%weights, %v)
            return (%y)""",
        f"""
        graph(%q, %kt, %v, %bias):
            {_CONSTANTS}
            %query = aten::unsqueeze(%q, %zero)
            %keys = aten::unsqueeze(%key, %zero)
            %values = aten::unsqueeze(%v, %zero)
            %cast = aten::type_as(%bias, %q)
            %mask = aten::unsqueeze(%cast, %zero)
            %heads = aten::scaled_dot_product_attention(%query, %keys, %values, %mask, %never, %no, %unit, %no)
            %y = aten::squeeze(%heads, %zero)
            return (%y)""",
    ),
    #   q, kᵀ ─ bmm ─ softmax ─ bmm   →   q, k, v ─ unsqueeze ─ scaled_dot_product_attention ─ squeeze
    #                      v ────┘
    Rewrite(
        "batched-attention",
        f"""
        graph(%q, %kt, %v):
            %scores = aten::bmm(%q, %kt)
            {_SOFTMAX}
            %y = aten::bmm(%weights, %v)
            return (%y)""",
        f"""
        graph(%q, %kt, %v):
            {_CONSTANTS}
            %query = aten::unsqueeze(%q, %zero)
            %keys = aten::unsqueeze(%key, %zero)
            %values = aten::unsqueeze(%v, %zero)
            %heads = aten::scaled_dot_product_attention(%query, %keys, %values, %none, %never, %no, %unit, %no)
            %y = aten::squeeze(%heads, %zero)
            return (%y)""",
    ),
    # torch's MultiheadAttention with a query of its own cuts its packed weights at a size that it reads from the query.
    # Cut at constants, they are constants, and the layers can be packed.
    #
    #   weights ─ split(n, 2n)   →   weights ─ split(rows / 3, rows - rows / 3)
    Rewrite(
        "packed-projections",
        """
        graph(%packed, %sizes, %axis):
            %parts : Tensor[] = aten::split_with_sizes(%packed, %sizes, %axis)
            return (%parts)""",
        """
        graph(%packed, %sizes, %axis):
            %three : int = prim::Constant[value=3]()
            %rows : int = aten::size(%packed, %axis)
            %third : int = aten::floordiv(%rows, %three)
            %rest : int = aten::sub(%rows, %third)
            %constant : int[] = prim::ListConstruct(%third, %rest)
            %parts : Tensor[] = aten::split_with_sizes(%packed, %constant, %axis)
            return (%parts)""",
        where=accepts(_cut_in_one_and_two),
    ),
)
