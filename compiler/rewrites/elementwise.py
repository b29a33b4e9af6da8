"""Norms and activations that a model spells out."""

from __future__ import annotations

from typing import Any

import torch

from cpuc.compiler.rewrites.matching import Writes, is_constant
from cpuc.compiler.rewrites.rewrite import Graph, Rewrite, Values

_FLOATS = (5, 6, 15)  # float16, float32 and bfloat16, as the graph writes them


def _norm(graph: Graph, names: Values) -> Values | None:
    constants: list[Any] = [names[name].toIValue() for name in ("weight", "bias", "epsilon") if is_constant(names[name])]
    if len(constants) < 3 or not all(isinstance(each, torch.Tensor) and each.dim() == 1 for each in constants[:2]):
        return None
    weight, bias, epsilon = constants
    # One of another size would have been broadcast.
    if weight.shape != bias.shape or weight.numel() < 2 or not isinstance(epsilon, float):
        return None
    if not all(is_constant(names[name]) and names[name].toIValue() in _FLOATS for name in ("up", "down")):
        return None
    # The number may have the type of a tensor in a trace; the norm wants a float.
    return {"shape": graph.insertConstant(list(weight.shape)), "small": graph.insertConstant(epsilon)}


def _is_int8(graph: Graph, names: Values) -> Values | None:  # noqa: ARG001
    table = names["table"].toIValue()
    return {} if isinstance(table, torch.Tensor) and table.dtype == torch.int8 else None


def _by_nothing(graph: Graph, names: Values) -> Values | None:
    """It is a copy all the same, which matters where one of the two is written to."""
    if any(names["pads"].toIValue() or [1]):
        return None
    writes = Writes(graph)
    return None if writes.ever(names["x"]) or writes.ever(names["result"]) else {}


def _is_euclidean(graph: Graph, names: Values) -> Values | None:  # noqa: ARG001
    """Whether a norm is that of vectors, each of which stays an axis of its own."""
    return {} if names["order"].toIValue() == 2 and names["keep"].toIValue() is True else None


ELEMENTWISE = (
    # The norm of DeBERTa, in float32 whatever the model is in, as torch's is too.
    #
    #   (x - mean(x)) / sqrt(mean((x - mean(x))²) + ε) · w + b   →   layer_norm(x, w, b, ε)
    Rewrite(
        "layer-norm",
        """
        graph(%x, %weight, %bias, %epsilon, %up, %down):
            %none : NoneType = prim::Constant()
            %no : bool = prim::Constant[value=0]()
            %yes : bool = prim::Constant[value=1]()
            %one : int = prim::Constant[value=1]()
            %two : int = prim::Constant[value=2]()
            %axes : int[] = prim::Constant[value=[-1]]()
            %wide = aten::to(%x, %up, %no, %no, %none)
            %mean = aten::mean(%wide, %axes, %yes, %none)
            %centred = aten::sub(%wide, %mean, %one)
            %square = aten::pow(%centred, %two)
            %variance = aten::mean(%square, %axes, %yes, %none)
            %above = aten::add(%variance, %epsilon, %one)
            %deviation = aten::sqrt(%above)
            %normal = aten::div(%centred, %deviation)
            %narrow = aten::to(%normal, %down, %no, %no, %none)
            %scaled = aten::mul(%weight, %narrow)
            %y = aten::add(%scaled, %bias, %one)
            return (%y)""",
        """
        graph(%x, %weight, %bias, %shape, %small):
            %yes : bool = prim::Constant[value=1]()
            %y = aten::layer_norm(%x, %shape, %weight, %bias, %small, %yes)
            return (%y)""",
        _norm,
    ),
    # Swin pads windows that fit already.
    #
    #   x ─ pad(0)   →   x
    Rewrite(
        "padding-by-nothing",
        """
        graph(%x, %pads, %mode, %fill):
            %y = aten::pad(%x, %pads, %mode, %fill)
            return (%y)""",
        """
        graph(%x):
            return (%x)""",
        _by_nothing,
    ),
    # The normalisation of responses in ConvNeXt-V2 (Woo et al., 2023), g the norm of each channel. torch's norm over the rows
    # of an image takes 2 to 10 times as long as a sum of squares, and what follows made five passes over the image.
    #
    #   g = vector_norm(x);  w · (x · g / (mean(g) + ε)) + b + x   →   g = √sum(x · x);  b + x · (1 + w · g / (mean(g) + ε))
    Rewrite(
        "response-norm",
        """
        graph(%x, %order, %axes, %keep, %dtype, %last, %keep_last, %dtype_last, %epsilon, %weight, %bias):
            %one : int = prim::Constant[value=1]()
            %g = aten::linalg_vector_norm(%x, %order, %axes, %keep, %dtype)
            %mean = aten::mean(%g, %last, %keep_last, %dtype_last)
            %above = aten::add(%mean, %epsilon, %one)
            %n = aten::div(%g, %above)
            %normal = aten::mul(%x, %n)
            %scaled = aten::mul(%weight, %normal)
            %shifted = aten::add(%scaled, %bias, %one)
            %y = aten::add(%shifted, %x, %one)
            return (%y)""",
        """
        graph(%x, %axes, %keep, %dtype, %last, %keep_last, %dtype_last, %epsilon, %weight, %bias):
            %one : int = prim::Constant[value=1]()
            %squares = aten::mul(%x, %x)
            %sum = aten::sum(%squares, %axes, %keep, %dtype)
            %g = aten::sqrt(%sum)
            %mean = aten::mean(%g, %last, %keep_last, %dtype_last)
            %above = aten::add(%mean, %epsilon, %one)
            %n = aten::div(%g, %above)
            %scale = aten::mul(%weight, %n)
            %factor = aten::add(%scale, %one, %one)
            %y = aten::addcmul(%bias, %x, %factor, %one)
            return (%y)""",
        _is_euclidean,
    ),
    #   x · 0.5 · (1 + erf(x / √2))   →   gelu(x)
    Rewrite(
        "gelu",
        """
        graph(%x):
            %half : float = prim::Constant[value=0.5]()
            %root : float = prim::Constant[value=1.4142135623730951]()
            %unit : float = prim::Constant[value=1.]()
            %one : int = prim::Constant[value=1]()
            %halved = aten::mul(%x, %half)
            %scaled = aten::div(%x, %root)
            %error = aten::erf(%scaled)
            %above = aten::add(%error, %unit, %one)
            %y = aten::mul(%halved, %above)
            return (%y)""",
        """
        graph(%x):
            %exact : str = prim::Constant[value="none"]()
            %y = aten::gelu(%x, %exact)
            return (%y)""",
    ),
)

# After fusion: the cast of rows in int8 has made memory for them already.
IN_PLACE = (
    #   to(embedding(table)) · factors   →   to(embedding(table)) *= factors
    Rewrite(
        "scaled-rows",
        """
        graph(%table, %ids, %padding, %by_frequency, %sparse, %dtype, %non_blocking, %copy, %format, %factors):
            %rows = aten::embedding(%table, %ids, %padding, %by_frequency, %sparse)
            %wide = aten::to(%rows, %dtype, %non_blocking, %copy, %format)
            %y = aten::mul(%wide, %factors)
            return (%y)""",
        """
        graph(%table, %ids, %padding, %by_frequency, %sparse, %dtype, %non_blocking, %copy, %format, %factors):
            %rows = aten::embedding(%table, %ids, %padding, %by_frequency, %sparse)
            %wide = aten::to(%rows, %dtype, %non_blocking, %copy, %format)
            %y = aten::mul_(%wide, %factors)
            return (%y)""",
        _is_int8,
    ),
)
