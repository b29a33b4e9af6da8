"""Where a head reads the first position only, the last layer computes no other.

    … ─ attention(q, k, v) ─ linear ─ add(h) ─ norm ─ feed-forward ─ select(1, 0)

becomes

    … ─ attention(q[0], k, v) ─ linear ─ add(h[0]) ─ norm ─ feed-forward ─ select(1, 0)

with q[0] made from h[0] alone. Of a layer, keys and values are left: classifiers of text and of images, and embeddings that
are the first token's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from cpuc.compiler.quantization import watch
from cpuc.compiler.rewrites.matching import constant, equals, is_constant
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

_SELECT, _ATTENTION = "aten::select", "aten::scaled_dot_product_attention"
# What treats every position by itself, whichever axis they are on as long as it is not the last, and how many of its first
# inputs have positions.
_ROWS = {
    "aten::linear": 1,
    "aten::layer_norm": 1,
    "aten::gelu": 1,
    "aten::relu": 1,
    "aten::silu": 1,
    "aten::tanh": 1,
    "aten::contiguous": 1,
    "aten::add": 2,
    "aten::sub": 2,
    "aten::mul": 2,
}
_RESHAPES = ("aten::view", "aten::reshape")


def narrow_last_layer(graph: Graph, example: Sequence[torch.Tensor]) -> int:
    """Rewrite `graph` in place, wherever position 0 of a sequence is all that is read; returns how many layers it shortened.

    Args:
        graph: of a frozen module, with linear layers as ``aten::linear`` and attention as torch's.
        example: inputs to run it with once, whose sequences have a length that no size of the model is a multiple of.
    """
    shortened = 0
    for root in [node for node in graph.nodes() if _reads_first(node)]:
        shortened += _Narrowing(graph, root, example).apply()
    if shortened:
        torch._C._jit_pass_dce(graph)
    return shortened


def _reads_first(node: Node) -> bool:
    return node.kind() == _SELECT and equals(node.inputsAt(1), 1) and equals(node.inputsAt(2), 0)


class _Narrowing:
    """What leads to one ``select(x, 1, 0)``: the axis of positions in each value, and the nodes that may do with one."""

    def __init__(self, graph: Graph, root: Node, example: Sequence[torch.Tensor]) -> None:
        self._graph = graph
        self._root = root
        nodes = list(graph.nodes())
        self._place = {node.output().unique(): i for i, node in enumerate(nodes) if node.outputsSize() == 1}
        self._before = nodes[: self._place[root.output().unique()]]
        tensors = [node.output() for node in self._before if node.outputsSize() == 1 and _is_tensor(node.output())]
        wanted = [self._place[value.unique()] for value in tensors]
        shapes = watch(graph, lambda copy: [list(copy.nodes())[i].output() for i in wanted], example)
        # A number may have the type of a tensor.
        known = zip(tensors, shapes, strict=True)
        self._shapes = {value.unique(): tensor.shape for value, tensor in known if isinstance(tensor, torch.Tensor)}
        self._axes: dict[int, int] = {root.inputsAt(0).unique(): 1}
        self._narrow: list[Node] = []  # the last first

    def apply(self) -> bool:
        """Rewrite if it saves an attention; whether it did."""
        kept = {self._root.output().unique()}
        for node in reversed(self._before):
            if node.outputsSize() != 1 or node.output().unique() not in self._axes:
                continue
            readers = [use.user for use in node.output().uses() if use.user.kind() != "aten::size"]
            alone = all(user.outputsSize() == 1 and user.output().unique() in kept for user in readers)
            inputs = self._inputs(node) if alone else None
            if inputs is not None:
                self._narrow.append(node)
                kept.add(node.output().unique())
                self._axes.update(inputs)
        if not any(node.kind() == _ATTENTION for node in self._narrow):
            return False
        self._rebuild()
        return True

    def _inputs(self, node: Node) -> dict[int, int] | None:
        """The axes of those inputs that one position is enough of, if `node` is one of the operators that allow it."""
        axis, rank = self._axes[node.output().unique()], len(self._shapes.get(node.output().unique(), ()))
        kind = node.kind()
        if kind in _ROWS and axis < rank - 1:
            return self._rows(node, axis, rank)
        if kind == "aten::slice" and equals(node.inputsAt(1), 0) and (axis or equals(node.inputsAt(2), 0)):
            return {node.inputsAt(0).unique(): axis}
        if kind == "aten::transpose":
            one, other = (int(constant(node, i)) % rank for i in (1, 2))
            return {node.inputsAt(0).unique(): {one: other, other: one}.get(axis, axis)}
        if kind == _ATTENTION and axis == rank - 2 and equals(node.inputsAt(5), False):
            return {node.inputsAt(0).unique(): axis}
        if kind in _RESHAPES and self._keeps(node, axis):
            return {node.inputsAt(0).unique(): axis}
        return None

    def _rows(self, node: Node, axis: int, rank: int) -> dict[int, int] | None:
        if node.kind() == "aten::layer_norm" and len(constant(node, 1) or (0, 0)) != 1:
            return None
        found = {}
        for i in range(_ROWS[node.kind()]):
            value = node.inputsAt(i)
            shape = self._shapes.get(value.unique())
            if shape is not None and len(shape) == rank and shape[axis] == self._shapes[node.output().unique()][axis]:
                found[value.unique()] = axis
            elif not is_constant(value) or getattr(value.toIValue(), "dim", lambda: 0)() > 1:
                return None
        return found

    def _keeps(self, node: Node, axis: int) -> bool:
        """Whether a change of shape leaves everything up to the positions' axis, and no other size has to do with them."""
        before, after = self._shapes.get(node.inputsAt(0).unique()), self._shapes[node.output().unique()]
        if before is None or before[: axis + 1] != after[: axis + 1] or node.inputsAt(1).node().kind() != "prim::ListConstruct":
            return False
        length, rest = after[axis], math.prod(before[axis + 1 :])
        return length > 1 and rest % length != 0 and all(size % length for i, size in enumerate(after) if i != axis)

    def _rebuild(self) -> None:
        made: dict[int, Value] = {}
        for node in reversed(self._narrow):
            with self._graph.insert_point_guard(node):
                inputs = list(node.inputs())
                for i in range(2 if node.kind() in _ROWS and _ROWS[node.kind()] == 2 else 1):
                    if inputs[i].unique() in self._axes:
                        inputs[i] = self._first(inputs[i], made)
                axis = self._axes[node.output().unique()]
                if node.kind() == _ATTENTION and not inputs[3].node().mustBeNone():
                    inputs[3] = self._slice(inputs[3], -2)
                if node.kind() in _RESHAPES:
                    inputs[1] = self._sizes(node, axis, made)
                new = self._graph.insertNode(self._graph.create(node.kind(), inputs, 1)).output()
                new.setType(torch._C.TensorType.get())
                made[node.output().unique()] = new
        self._root.replaceInput(0, self._first_of_root(made))

    def _first_of_root(self, made: dict[int, Value]) -> Value:
        return made[self._root.inputsAt(0).unique()]

    def _first(self, value: Value, made: dict[int, Value]) -> Value:
        """The first position of a value: what was made for it, or cut out of it here."""
        if value.unique() not in made:
            made[value.unique()] = self._slice(value, self._axes[value.unique()])
        return made[value.unique()]

    def _slice(self, value: Value, axis: int) -> Value:
        numbers = [self._graph.insertConstant(number) for number in (axis, 0, 1, 1)]
        return self._graph.insertNode(self._graph.create("aten::slice", [value, *numbers], 1)).output()

    def _sizes(self, node: Node, axis: int, made: dict[int, Value]) -> Value:
        """The sizes that a view has now: one on the positions' axis, and others not of what is no longer computed."""
        sizes = list(node.inputsAt(1).node().inputs())
        for i, size in enumerate(sizes):
            if i == axis:
                sizes[i] = self._graph.insertConstant(1)
            elif size.node().kind() == "aten::size" and size.node().inputsAt(0).unique() in made:
                of, which = made[size.node().inputsAt(0).unique()], size.node().inputsAt(1)
                sizes[i] = self._graph.insertNode(self._graph.create("aten::size", [of, which], 1)).output()
                sizes[i].setType(torch._C.IntType.get())
        made_list = self._graph.insertNode(self._graph.create("prim::ListConstruct", sizes, 1)).output()
        made_list.setType(torch._C.ListType.ofInts())
        return made_list


def _is_tensor(value: Value) -> bool:
    return isinstance(value.type(), torch._C.TensorType)
