"""Convolutions."""

from __future__ import annotations

from typing import Any

import torch

from cpuc.compiler.rewrites.matching import equals, is_constant, rank
from cpuc.compiler.rewrites.rewrite import Graph, Rewrite, Values


def _flat(graph: Graph, names: Values) -> Values | None:
    """The parameters of a convolution over one axis, for two axes of which the first has size 1."""
    settings = ("weight", "stride", "padding", "dilation", "transposed", "spare")
    if not all(is_constant(names[name]) for name in settings):
        return None
    weight, stride, padding, dilation, transposed, spare = (names[name].toIValue() for name in settings)
    if transposed or not isinstance(weight, torch.Tensor) or weight.dim() != 3:
        return None
    values: dict[str, Any] = {
        "weights": weight.unsqueeze(2),
        "strides": [1, *stride],
        "paddings": [0, *padding],
        "dilations": [1, *dilation],
        "spares": [0, *spare],
    }
    return {name: graph.insertConstant(value) for name, value in values.items()}


def _after_convolution(_: Graph, names: Values) -> Values | None:
    """Only what the rewrite above makes: the axis that is squeezed has size 1."""
    node = names["x"].node()
    if node.kind() != "aten::_convolution" or not (is_constant(node.inputsAt(1)) and is_constant(node.inputsAt(4))):
        return None
    rows, width, padding = node.inputsAt(0).node(), node.inputsAt(1).toIValue().shape, node.inputsAt(4).toIValue()
    single = rows.kind() == "aten::unsqueeze" and equals(rows.inputsAt(1), 2)
    return {} if single and len(width) == 4 and width[2] == 1 and padding[0] == 0 else None


def _plus_three_axes(graph: Graph, names: Values) -> Values | None:
    return _after_convolution(graph, names) if rank(names["residual"]) == 3 else None


CONVOLUTION = (
    # IPEX warns of every convolution over one axis (which it runs over two all the same).
    #
    #   conv1d(x, W)   →   x ─ unsqueeze(2) ─ conv2d(W as [out, in, 1, width]) ─ squeeze(2)
    Rewrite(
        "conv1d",
        """
        graph(%x, %weight, %bias, %stride, %padding, %dilation, %transposed, %spare, %groups, %a, %b, %c, %d):
            %y = aten::_convolution(%x, %weight, %bias, %stride, %padding, %dilation, %transposed, %spare, %groups,
                %a, %b, %c, %d)
            return (%y)""",
        """
        graph(%x, %weights, %bias, %strides, %paddings, %dilations, %transposed, %spares, %groups, %a, %b, %c, %d):
            %two : int = prim::Constant[value=2]()
            %rows = aten::unsqueeze(%x, %two)
            %flat = aten::_convolution(%rows, %weights, %bias, %strides, %paddings, %dilations, %transposed, %spares, %groups,
                %a, %b, %c, %d)
            %y = aten::squeeze(%flat, %two)
            return (%y)""",
        _flat,
    ),
    # What follows it is done before the squeeze, where IPEX finds it.
    #
    #   conv2d ─ squeeze(2) ─ gelu   →   conv2d ─ gelu ─ squeeze(2)
    Rewrite(
        "squeezed-gelu",
        """
        graph(%x, %form):
            %two : int = prim::Constant[value=2]()
            %flat = aten::squeeze(%x, %two)
            %y = aten::gelu(%flat, %form)
            return (%y)""",
        """
        graph(%x, %form):
            %two : int = prim::Constant[value=2]()
            %y = aten::gelu(%x, %form)
            %flat = aten::squeeze(%y, %two)
            return (%flat)""",
        _after_convolution,
    ),
    #   conv2d ─ squeeze(2) ─ add(residual)   →   conv2d ─ add(unsqueeze(residual, 2)) ─ squeeze(2)
    Rewrite(
        "squeezed-sum",
        """
        graph(%x, %residual, %alpha):
            %two : int = prim::Constant[value=2]()
            %flat = aten::squeeze(%x, %two)
            %y = aten::add(%flat, %residual, %alpha)
            return (%y)""",
        """
        graph(%x, %residual, %alpha):
            %two : int = prim::Constant[value=2]()
            %rows = aten::unsqueeze(%residual, %two)
            %y = aten::add(%x, %rows, %alpha)
            %flat = aten::squeeze(%y, %two)
            return (%flat)""",
        _plus_three_axes,
    ),
)
