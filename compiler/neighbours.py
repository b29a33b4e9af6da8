"""Linear layers of libxsmm that read one tensor become one."""

from __future__ import annotations

from typing import Any

import torch

from cpuc.compiler.quantization.layers import readers
from cpuc.compiler.rewrites.matching import Writes, equals, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value
from cpuc.compiler.xsmm import BIAS

# Operators that take a layer's output apart, and would do so with a part of a row as well.
_VIEWS = ("aten::view", "aten::reshape")


def join(graph: Graph) -> None:
    """Layers that read one tensor, such as those of query, key and value, are one, whose output is cut."""
    joined: dict[tuple[int, ...], torch.Tensor] = {}
    for nodes in _groups(graph):
        weights, biases = ([_tensor(node, i) for node in nodes] for i in (1, 2))
        shared = tuple(weight.data_ptr() for weight in weights)  # groups may share weights
        if shared not in joined:
            joined[shared] = torch.cat(weights)
        blocks = nodes[0].inputsAt(3)
        with graph.insert_point_guard(nodes[0]):
            source = nodes[0].inputsAt(0)
            whole = insert(graph, BIAS, source, joined[shared], torch.cat(biases), blocks)
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
    """How many of the model's linear layers an operator computes, as long as they are cut: see `short`, in bfloat16."""
    whole = node.output()
    if (
        any(use.user.kind() == "prim::Return" for use in whole.uses())
        and (owner := node.owningBlock().owningNode()) is not None
    ):
        whole = owner.output() if owner.kind() == "prim::If" else whole  # one of two ways to compute the same
    cuts = [reader for reader in readers(whole) if reader.kind() == "aten::slice" and equals(reader.inputsAt(1), -1)]
    return max(1, len(cuts))


def _groups(graph: Graph) -> list[list[Node]]:
    """Layers with a bias, of one input and one size of blocks, all of whose outputs are taken apart next."""
    groups: dict[tuple[Any, ...], list[Node]] = {}
    for node in graph.findAllNodes(BIAS):
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
