"""What libxsmm's linear layers and their neighbours can do together."""

from __future__ import annotations

from typing import Any

import torch

from cpuc.compiler.quantization.layers import readers
from cpuc.compiler.rewrites.matching import Writes, constant, equals, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node

_BIAS, _ADD, _NORM = "torch_ipex::tpp_linear_bias", "torch_ipex::tpp_linear_add", "aten::layer_norm"
# Operators that take a layer's output apart, and would do so with a part of a row as well.
_VIEWS = ("aten::view", "aten::reshape")


def add_in_norm(graph: Graph) -> None:
    """A residual connection is added by the layer norm after it, in place of the linear layer before it.

    layer_norm(tpp_linear_add(x, residual, …), …)   →   add_layernorm(tpp_linear_bias(x, …), residual, …)
    """
    writes = Writes(graph)
    for norm in [norm for norm in graph.findAllNodes(_NORM) if _adds(norm, writes)]:
        layer = norm.inputsAt(0).node()
        x, residual, weight, bias, _, blocks = layer.inputs()
        shape, *parameters, _ = list(norm.inputs())[1:]
        with graph.insert_point_guard(layer):
            y = insert(graph, _BIAS, x, weight, bias, blocks)
        with graph.insert_point_guard(norm):
            normed = insert(graph, "ipex::add_layernorm", y, residual, 1, shape, *parameters, False)
        norm.output().replaceAllUsesWith(normed)
        norm.destroy()
    torch._C._jit_pass_dce(graph)


def _adds(norm: Node, writes: Writes) -> bool:
    """Whether it has weight and bias, and alone reads the plain sum of a layer and of what is the same until then."""
    layer = norm.inputsAt(0).node()
    if layer.kind() != _ADD or len(layer.output().uses()) != 1 or not equals(layer.inputsAt(4), 1.0):
        return False
    whole = constant(norm, 2) is not None and constant(norm, 3) is not None
    return whole and not writes.between(layer.inputsAt(1), layer, norm)


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
            source = node.inputsAt(0)
            while source.node().kind() == "aten::contiguous":
                source = source.node().inputsAt(0)
            groups.setdefault((source.debugName(), weight.dtype, weight.shape[1:]), []).append(node)
    writes = Writes(graph)
    return [nodes for nodes in groups.values() if len(nodes) > 1 and _undisturbed(nodes, writes)]


def _undisturbed(nodes: list[Node], writes: Writes) -> bool:
    """Whether all of them read the same values, and nobody writes to what they give, which will be parts of one tensor."""
    sources = [node.inputsAt(0) for node in nodes]
    return not any(writes.between(source, nodes[0], nodes[-1]) for source in sources) and not any(
        writes.ever(node.output()) for node in nodes
    )


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
