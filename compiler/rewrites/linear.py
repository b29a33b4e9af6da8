"""Linear layers."""

from __future__ import annotations

import sys

import torch

from cpuc.compiler.rewrites.matching import Writes, constant, insert, is_constant
from cpuc.compiler.rewrites.rewrite import Graph, Node, Rewrite, Value, Values


def _tensor(value: Value) -> torch.Tensor | None:
    content = value.toIValue() if is_constant(value) else None
    return content if isinstance(content, torch.Tensor) else None


def _scaled(graph: Graph, names: Values) -> Values | None:
    """The weights of a layer whose outputs are multiplied by one constant each."""
    weight, bias, factor = (_tensor(names[name]) for name in ("weight", "bias", "factor"))
    if weight is None or factor is None or weight.dim() != 2 or factor.shape != weight.shape[:1]:
        return None
    if bias is None and not names["bias"].node().mustBeNone():
        return None
    return {
        "rows": graph.insertConstant(weight * factor[:, None]),
        "start": graph.insertConstant(None if bias is None else bias * factor),
    }


def _shifted(graph: Graph, names: Values) -> Values | None:
    """The bias of a layer to whose outputs one constant each is added."""
    weight, bias, shift = (_tensor(names[name]) for name in ("weight", "bias", "shift"))
    if weight is None or shift is None or weight.dim() != 2 or shift.shape != weight.shape[:1]:
        return None
    if bias is None and not names["bias"].node().mustBeNone():
        return None
    return {"start": graph.insertConstant(shift if bias is None else bias + shift)}


def _transposed(graph: Graph, names: Values) -> Values | None:
    """The weights of a layer that is spelled as a product."""
    weight = _tensor(names["weight"])
    if weight is None or weight.dim() != 2:
        return None
    return {"rows": graph.insertConstant(weight.t().contiguous())}


def _transposed_with_bias(graph: Graph, names: Values) -> Values | None:
    weight, bias = _tensor(names["weight"]), _tensor(names["bias"])
    fits = weight is not None and bias is not None and bias.shape == weight.shape[1:]
    return _transposed(graph, names) if fits else None


# The rows of a table of positions; what is longer holds something else, and its file would grow more than that pays.
_POSITIONS = 4096
_CUTS = ("aten::slice", "aten::unsqueeze")


def _of_part(graph: Graph, names: Values) -> Values | None:
    """The part of what a layer makes of a constant table, where it takes that part of the table."""
    weight, bias, cuts, table = _tensor(names["weight"]), _tensor(names["bias"]), list[Node](), names["x"]
    while table.node().kind() in _CUTS:
        cuts.insert(0, table.node())
        table = table.node().inputsAt(0)
    rows = _tensor(table)
    if rows is None or rows.dim() != 2 or len(rows) > _POSITIONS or not cuts or any(map(_cuts_columns, cuts)):
        return None
    if weight is None or weight.dim() != 2:
        return None
    if bias is None and not names["bias"].node().mustBeNone():
        return None
    part = graph.insertConstant(torch.nn.functional.linear(rows, weight, bias))
    for node in cuts:
        part = insert(graph, node.kind(), part, *list(node.inputs())[1:])
    # What writes to the outputs of the layer would write to the constant.
    return {"part": insert(graph, "aten::clone", part, None) if Writes(graph).ever(names["result"]) else part}


def _cuts_columns(node: Node) -> bool:
    """Whether it is anything but a part of the rows, all columns, or one more axis before them."""
    axis = constant(node, 1)
    if node.kind() == "aten::unsqueeze":
        return bool(axis != 0)
    return bool(axis != 0 and [constant(node, i) for i in (2, 3, 4)] != [0, sys.maxsize, 1])


LINEAR = (
    #   matmul(x, W)   →   linear(x, Wᵀ)      for a constant W of two axes
    Rewrite(
        "matmul-linear",
        """
        graph(%x, %weight):
            %y = aten::matmul(%x, %weight)
            return (%y)""",
        """
        graph(%x, %rows):
            %none : NoneType = prim::Constant()
            %y = aten::linear(%x, %rows, %none)
            return (%y)""",
        _transposed,
    ),
    #   addmm(b, x, W)   →   linear(x, Wᵀ, b)      the same
    Rewrite(
        "addmm-linear",
        """
        graph(%bias, %x, %weight):
            %one : int = prim::Constant[value=1]()
            %y = aten::addmm(%bias, %x, %weight, %one, %one)
            return (%y)""",
        """
        graph(%bias, %x, %rows):
            %y = aten::linear(%x, %rows, %bias)
            return (%y)""",
        _transposed_with_bias,
    ),
    # A constant factor or term for each output, as in the norms of MobileBERT, which do nothing else, or BEiT's residual
    # connections, where the factor comes first.
    #
    #   x ─ linear(W, b) ─ mul(s)   →   x ─ linear(W · s, b · s)
    *(
        Rewrite(
            name,
            f"""
            graph(%x, %weight, %bias, %factor):
                %y = aten::linear(%x, %weight, %bias)
                %scaled = aten::mul({factors})
                return (%scaled)""",
            """
            graph(%x, %rows, %start):
                %y = aten::linear(%x, %rows, %start)
                return (%y)""",
            _scaled,
        )
        for name, factors in (("scaled-linear", "%y, %factor"), ("scaled-linear-turned", "%factor, %y"))
    ),
    # DeBERTa's projections of positions, a fifth of its time for 128 tokens: two tables in each layer, in the place of two
    # weights, which of a base model in float32 have three quarters of their size.
    #
    #   table ─ slice(rows) ─ linear(W, b)   →   linear(table, W, b) ─ slice(rows)
    Rewrite(
        "linear-of-part",
        """
        graph(%x, %weight, %bias):
            %y = aten::linear(%x, %weight, %bias)
            return (%y)""",
        """
        graph(%part):
            return (%part)""",
        _of_part,
    ),
    #   x ─ linear(W, b) ─ add(c)   →   x ─ linear(W, b + c)
    Rewrite(
        "shifted-linear",
        """
        graph(%x, %weight, %bias, %shift):
            %one : int = prim::Constant[value=1]()
            %y = aten::linear(%x, %weight, %bias)
            %sum = aten::add(%y, %shift, %one)
            return (%sum)""",
        """
        graph(%x, %weight, %start):
            %y = aten::linear(%x, %weight, %start)
            return (%y)""",
        _shifted,
    ),
)

PACKING = (
    # IPEX leaves float32 linear layers to MKL unless its Python front end is asked to replace the modules. Packing
    # them here for oneDNN does the same to the graph, for every precision, and lets its passes fuse what follows.
    #
    #   x ─ linear(W, b)   →   x ─ linear_run(pack(W, b))      pack is folded into a constant
    Rewrite(
        "pack-linear",
        """
        graph(%x, %weight, %bias):
            %y = aten::linear(%x, %weight, %bias)
            return (%y)""",
        """
        graph(%x, %weight, %bias):
            %rows : NoneType = prim::Constant()
            %packed = ipex_prepack::linear_prepack(%weight, %bias, %rows)
            %y = ipex_prepack::linear_run(%x, %packed)
            return (%y)""",
    ),
)
