"""Products of activations that are neither linear layers nor attention, in the forms that IPEX has a kernel for.

IPEX's batched product reads heads where they stand, without a copy, but only in `matmul` of operands of one shape.
"""

from __future__ import annotations

from cpuc.compiler.rewrites.matching import is_constant, is_weight, rank
from cpuc.compiler.rewrites.rewrite import Graph, Rewrite, Values


def _without_batch(_: Graph, names: Values) -> Values | None:
    known = rank(names["a"]) == 4 and rank(names["b"]) in (3, 4)
    return {} if known and is_weight(names["b"]) and not is_weight(names["a"]) else None


def _outer_axis(graph: Graph, names: Values) -> Values | None:
    """Which operand of a product has the axis whose size is asked for."""
    product, axis = names["product"].node(), names["axis"]
    if product.kind() not in ("aten::matmul", "aten::bmm") or not is_constant(axis):
        return None
    left, right = product.inputs()
    known = rank(left)
    if product.kind() == "aten::matmul" and (known is None or known < 2 or known != rank(right)):
        return None
    index = axis.toIValue() - (known or 3) if axis.toIValue() >= 0 else axis.toIValue()
    if index not in (-1, -2):
        return None
    return {"operand": right if index == -1 else left, "index": graph.insertConstant(index)}


PRODUCT = (
    # A product whose size alone is asked for need not be computed:
    #
    #   size(matmul(a, b), -1)   →   size(b, -1)
    Rewrite(
        "size-of-product",
        """
        graph(%product, %axis):
            %y : int = aten::size(%product, %axis)
            return (%y)""",
        """
        graph(%operand, %index):
            %y : int = aten::size(%operand, %index)
            return (%y)""",
        _outer_axis,
    ),
    #   bmm(a, b)   →   matmul(a, b)      the same for the three axes that bmm insists on
    Rewrite(
        "bmm",
        """
        graph(%a, %b):
            %y = aten::bmm(%a, %b)
            return (%y)""",
        """
        graph(%a, %b):
            %y = aten::matmul(%a, %b)
            return (%y)""",
    ),
    # Queries times the heads of position embeddings, which are the same for all rows of a batch. (Were it `a` that is
    # broadcast, the expansion would fail, not give another result.)
    #
    #   matmul(a [batch, heads, …], b [1, heads, …])   →   matmul(a, expand(b, [batch, heads, -1, -1]))
    #   matmul(a [batch, heads, …], b [heads, …])      →   the same
    Rewrite(
        "product-with-weight",
        """
        graph(%a, %b):
            %y = aten::matmul(%a, %b)
            return (%y)""",
        """
        graph(%a, %b):
            %first : int = prim::Constant[value=0]()
            %one : int = prim::Constant[value=1]()
            %keep : int = prim::Constant[value=-1]()
            %no : bool = prim::Constant[value=0]()
            %batch : int = aten::size(%a, %first)
            %heads : int = aten::size(%a, %one)
            %sizes : int[] = prim::ListConstruct(%batch, %heads, %keep, %keep)
            %whole = aten::expand(%b, %sizes, %no)
            %y = aten::matmul(%a, %whole)
            return (%y)""",
        _without_batch,
    ),
)
