"""Einsums: products in disguise, which neither torch nor IPEX recognises as linear layers or as attention.

The equation says the rank of each operand, so the drawings below hold for every shape.
"""

from __future__ import annotations

from cpuc.compiler.rewrites.matching import is_constant
from cpuc.compiler.rewrites.rewrite import Graph, Rewrite, Values, Where


def _constant_weight(names: Values) -> bool:
    return is_constant(names["b"])


def _order(letters: str, wanted: str) -> list[int]:
    return [letters.index(letter) for letter in wanted]


def _rewrite(name: str, equation: str, operands: list[str], body: list[str], where: Where | None = None) -> Rewrite:
    inputs = ", ".join(f"%{operand}" for operand in operands)
    pattern = [
        f"graph({inputs}):",
        f'  %equation : str = prim::Constant[value="{equation}"]()',
        "  %path : NoneType = prim::Constant()",
        f"  %operands : Tensor[] = prim::ListConstruct({inputs})",
        "  %y = aten::einsum(%equation, %operands, %path)",
        "  return (%y)",
    ]
    replacement = [f"graph({inputs}):", *(f"  {line}" for line in body), "  return (%y)"]
    return Rewrite(f"{name} {equation}", "\n".join(pattern), "\n".join(replacement), where)


def _permuted(name: str, source: str, order: list[int]) -> list[str]:
    return [f"%{name}_order : int[] = prim::Constant[value={order}]()", f"%{name} = aten::permute(%{source}, %{name}_order)"]


def as_permutation(equation: str) -> Rewrite:
    """One operand whose axes change places.

    einsum("ijbn->bnij", x)   →   permute(x, [2, 3, 0, 1])
    """
    source, target = equation.split("->")
    return _rewrite("einsum-permutation", equation, ["a"], _permuted("y", "a", _order(source, target)))


def as_linear(equation: str) -> Rewrite:
    """A product of activations with a constant weight that has an axis for the heads.

    einsum("ibh,hnd->ibnd", x, W)   →   x ─ linear(W as [n·d, h]) ─ unflatten(-1, [n, d])
    einsum("ibnd,hnd->ibh", x, W)   →   x ─ flatten(-2) ─ linear(W as [h, n·d])
    """
    (left, right), target = equation.split("->")[0].split(","), equation.split("->")[1]
    summed = "".join(letter for letter in right if letter in left)
    made = "".join(letter for letter in right if letter not in left)
    kept = left.removesuffix(summed)
    assert (left, target) == (kept + summed, kept + made)
    body = [
        f"%order : int[] = prim::Constant[value={_order(right, made + summed)}]()",
        "%first : int = prim::Constant[value=0]()",
        f"%made : int = prim::Constant[value={len(made) - 1}]()",
        "%one : int = prim::Constant[value=1]()",
        f"%summed : int = prim::Constant[value={-len(summed)}]()",
        "%last : int = prim::Constant[value=-1]()",
        "%bias : NoneType = prim::Constant()",
        "%ordered = aten::permute(%b, %order)",
        "%rows = aten::flatten(%ordered, %first, %made)",
        "%weight = aten::flatten(%rows, %one, %last)",
        "%x = aten::flatten(%a, %summed, %last)",
        f"%{'y' if len(made) == 1 else 'flat'} = aten::linear(%x, %weight, %bias)",
    ]
    if len(made) > 1:
        for letter in made:
            body.append(f"%axis_{letter} : int = prim::Constant[value={right.index(letter)}]()")
            body.append(f"%size_{letter} : int = aten::size(%b, %axis_{letter})")
        body.append(f"%sizes : int[] = prim::ListConstruct({', '.join(f'%size_{letter}' for letter in made)})")
        body.append("%y = aten::unflatten(%flat, %last, %sizes)")
    return _rewrite("einsum-linear", equation, ["a", "b"], body, lambda _, names: {} if _constant_weight(names) else None)


def as_matmul(equation: str) -> Rewrite:
    """A product over one axis, with axes that both operands have.

    einsum("ibnd,jbnd->bnij", q, k)   →   permute(q, [1, 2, 0, 3]) ─ matmul(permute(k, [1, 2, 3, 0]))
    """
    (left, right), target = equation.split("->")[0].split(","), equation.split("->")[1]
    (summed,) = set(left) & set(right) - set(target)
    both = "".join(letter for letter in left if letter in right and letter in target)
    (made,) = set(right) - set(left)
    *outer, row = (letter for letter in left if letter not in right)
    # Axes that only the left operand has come first: there matmul broadcasts the right operand.
    product = "".join(outer) + both + row + made
    body = [
        *_permuted("left", "a", _order(left, product[:-1] + summed)),
        *_permuted("right", "b", _order(right, both + summed + made)),
        "%product = aten::matmul(%left, %right)",
        *_permuted("y", "product", _order(product, target)),
    ]
    return _rewrite("einsum-matmul", equation, ["a", "b"], body)


def _keeps_order(_: Graph, names: Values) -> Values | None:
    order = names["order"].toIValue() if is_constant(names["order"]) else None
    return {} if order == list(range(len(order or []))) else None


EINSUM = (
    # XLNet: i and j are positions, b rows, n heads, d the size of a head, h that of the model, s segments.
    as_permutation("ijbn->bnij"),
    as_linear("ibh,hnd->ibnd"),
    as_linear("ibnd,hnd->ibh"),
    as_matmul("ibnd,jbnd->bnij"),
    as_matmul("ibnd,snd->ibns"),
    as_matmul("ijbs,ibns->bnij"),
    as_matmul("bnij,jbnd->ibnd"),
    # Funnel: the same letters, but t is a relative position, and h and d are exchanged in the position's weight.
    as_linear("td,dnh->tnh"),
    as_matmul("bind,bjnd->bnij"),
    as_matmul("binh,tnh->bnit"),
    as_matmul("binh,dnh->bind"),
    as_matmul("bind,jd->bnij"),
    as_matmul("bind,snd->bnis"),
    as_matmul("bnij,bjnd->bind"),
    #   permute(x, [0, 1, 2, 3])   →   x
    Rewrite(
        "identity-permutation",
        """
        graph(%x, %order):
            %y = aten::permute(%x, %order)
            return (%y)""",
        """
        graph(%x, %order):
            return (%x)""",
        _keeps_order,
    ),
)
