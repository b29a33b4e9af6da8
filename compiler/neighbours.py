"""What libxsmm's linear layers and their neighbours can do together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cpuc.compiler.branches import branch, number, truth
from cpuc.compiler.quantization.layers import readers
from cpuc.compiler.rewrites.matching import Writes, constant, equals, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

_BIAS, _ADD = "torch_ipex::tpp_linear_bias", "torch_ipex::tpp_linear_add"
_NORM, _ADDING_NORM = "aten::layer_norm", "ipex::add_layernorm"
# From so many on, IPEX's norm, which adds, is slower than torch's after a sum.
ROWS = 128
# Operators that take a layer's output apart, and would do so with a part of a row as well.
_VIEWS = ("aten::view", "aten::reshape")


def add_in_norm(graph: Graph) -> None:
    """A residual connection of few rows is added by the layer norm after it, in place of the linear layer before it.

    layer_norm(tpp_linear_add(x, residual, …), …)   →   if rows ≥ 128:  as it was
                                                        else:           add_layernorm(tpp_linear_bias(x, …), residual, …)
    """
    writes = Writes(graph)
    many: dict[int, Value] = {}
    for norm in [norm for norm in graph.findAllNodes(_NORM) if _adds(norm, writes)]:
        layer = norm.inputsAt(0).node()
        few = functools.partial(_adding_norm, graph, layer, norm)
        _by_rows(graph, norm, layer.inputsAt(1), functools.partial(_copies, graph, (layer, norm)), few, many)
    torch._C._jit_pass_dce(graph)


def split_norms(graph: Graph) -> None:
    """Of many rows, what a layer norm adds is added before it.

    add_layernorm(x, y, …)   →   if rows ≥ 128:  layer_norm(x + y, …)
                                 else:           as it was

    IPEX's norm allocates memory for each row. With 384 and 768 columns, torch's in float32 takes (EPYC, Zen 5) 15 us for 16
    rows, 17 and 21 for 128, and 40 and 68 for 1024; IPEX's, which adds, takes 6, 25 and 28, and 181 and 197.
    """
    many: dict[int, Value] = {}
    for norm in [node for node in graph.nodes() if node.kind() == _ADDING_NORM and constant(node, 4) is not None]:
        few = functools.partial(_copies, graph, (norm,))
        _by_rows(graph, norm, norm.inputsAt(0), functools.partial(_sum_and_norm, graph, norm), few, many)


def _by_rows(
    graph: Graph, norm: Node, rows: Value, yes: Callable[[], Value], no: Callable[[], Value], known: dict[int, Value]
) -> None:
    """Replace `norm` by `yes` if there are many `rows`, else by `no`; `known` has the conditions by the number of columns."""
    columns = constant(norm, 4 if norm.kind() == _ADDING_NORM else 2).numel()
    if columns not in known:
        # What has as many columns has as many rows; where not, it would only be slower.
        with graph.insert_point_guard(norm):
            known[columns] = truth(graph, "aten::ge", number(graph, "aten::numel", rows), ROWS * columns)
    branch(graph, norm, known[columns], yes, no)


def _copies(graph: Graph, nodes: Sequence[Node]) -> Value:
    """Copies of operators, of which each reads the one before."""
    made: dict[int, Value] = {}
    for node in nodes:
        copy = graph.insertNode(graph.createClone(node, lambda value: made.get(value.unique(), value)))
        made[node.output().unique()] = copy.output()
    return made[nodes[-1].output().unique()]


def _adding_norm(graph: Graph, layer: Node, norm: Node) -> Value:
    x, residual, weight, bias, _, blocks = layer.inputs()
    shape, *parameters, _ = list(norm.inputs())[1:]
    y = insert(graph, _BIAS, x, weight, bias, blocks)
    return insert(graph, _ADDING_NORM, y, residual, 1, shape, *parameters, False)


def _sum_and_norm(graph: Graph, norm: Node) -> Value:
    x, y, alpha, *parameters, _ = norm.inputs()
    return insert(graph, _NORM, insert(graph, "aten::add", x, y, alpha), *parameters, False)


def _adds(norm: Node, writes: Writes) -> bool:
    """Whether it has weight and bias, and alone reads the plain sum of a layer and of what is the same until then."""
    layer = norm.inputsAt(0).node()
    if layer.kind() != _ADD or len(layer.output().uses()) != 1 or not equals(layer.inputsAt(4), 1.0):
        return False
    whole = constant(norm, 2) is not None and constant(norm, 3) is not None
    return whole and not any(writes.between(layer.inputsAt(i), layer, norm) for i in range(2))


def join(graph: Graph) -> None:
    """Layers that read one tensor, such as those of query, key and value, are one, whose output is cut."""
    for nodes in _groups(graph):
        weights, biases = ([_tensor(node, i) for node in nodes] for i in (1, 2))
        # Groups that share weights make equal tensors, which torch stores once.
        blocks = nodes[0].inputsAt(3)
        with graph.insert_point_guard(nodes[0]):
            source = nodes[0].inputsAt(0)
            whole = insert(graph, _BIAS, source, torch.cat(weights), torch.cat(biases), blocks)
            begin = 0
            for node, bias in zip(nodes, biases, strict=True):
                part = insert(graph, "aten::slice", whole, -1, begin, begin + len(bias), 1)
                begin += len(bias)
                node.output().replaceAllUsesWith(part)
                for use in part.uses():
                    _reshape(graph, use.user)
        for node in nodes:
            node.destroy()
    torch._C._jit_pass_dce(graph)


def layers_in(node: Node) -> int:
    """How many of the model's linear layers an operator computes."""
    cuts = [reader for reader in readers(node.output()) if reader.kind() == "aten::slice" and equals(reader.inputsAt(1), -1)]
    return max(1, len(cuts))


def _groups(graph: Graph) -> list[list[Node]]:
    """Layers with a bias, of one input and one size of blocks, all of whose outputs are taken apart next."""
    groups: dict[tuple[Any, ...], list[Node]] = {}
    for node in graph.findAllNodes(_BIAS):
        weight, bias = (_tensor(node, i) for i in (1, 2))
        if all(reader.kind() in _VIEWS for reader in readers(node.output())) and len(bias):
            source, _ = _source(node)
            groups.setdefault((source.debugName(), weight.dtype, weight.shape[1:]), []).append(node)
    writes = Writes(graph)
    return [nodes for nodes in groups.values() if len(nodes) > 1 and _undisturbed(nodes, writes)]


def _undisturbed(nodes: list[Node], writes: Writes) -> bool:
    """Whether all of them read the same values, and nobody writes to what they give, which will be parts of one tensor."""
    read = [_source(node) for node in nodes]
    source, first = read[0]
    for _, reader in read:
        first = reader if reader.isBefore(first) else first
    # A layer that reads a copy may have been given one that another layer reads, too.
    inputs = [source, *(node.inputsAt(0) for node in nodes)]
    return not any(writes.between(value, first, nodes[-1]) for value in inputs) and not any(
        writes.ever(node.output()) for node in nodes
    )


def _source(layer: Node) -> tuple[Value, Node]:
    """What a layer reads, before it was made contiguous, and the operator that reads it first."""
    reader = layer
    while reader.inputsAt(0).node().kind() == "aten::contiguous":
        reader = reader.inputsAt(0).node()
    return reader.inputsAt(0), reader


def _reshape(graph: Graph, view: Node) -> None:
    """A part of a row is not contiguous: what cannot be a view of it becomes a copy."""
    if view.kind() == "aten::view":
        with graph.insert_point_guard(view):
            new = insert(graph, "aten::reshape", *view.inputs())
        view.output().replaceAllUsesWith(new)
        view.destroy()


def _tensor(node: Node, position: int) -> torch.Tensor:
    value: torch.Tensor = node.inputsAt(position).toIValue()
    return value
