"""Two ways to compute the same in one graph, of which each call takes one by the sizes of its inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from cpuc.compiler.rewrites.matching import insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value


def number(graph: Graph, kind: str, *inputs: Any) -> Value:
    """The output of a new operator that gives a whole number."""
    return insert(graph, kind, *inputs).setType(torch._C.IntType.get())


def truth(graph: Graph, kind: str, *inputs: Any) -> Value:
    """The output of a new operator that gives a truth value."""
    return insert(graph, kind, *inputs).setType(torch._C.BoolType.get())


def branch(graph: Graph, node: Node, condition: Value, yes: Callable[[], Value], no: Callable[[], Value]) -> None:
    """Replace `node` by what `yes` or `no` inserts, as `condition` says while running; its first output becomes theirs.

    Both may read the inputs of `node`, which is destroyed afterwards.
    """
    with graph.insert_point_guard(node):
        either = graph.insertNode(graph.create("prim::If", [condition], 1))
    for make in (yes, no):
        with _block(graph, either) as block:
            block.registerOutput(make())
    node.outputsAt(0).replaceAllUsesWith(either.output())
    node.destroy()


def copies(graph: Graph, nodes: Sequence[Node]) -> Value:
    """The first output of the last of new copies of operators, which read each other as the originals do."""
    made: dict[int, Value] = {}
    for node in nodes:
        copy = graph.insertNode(graph.createClone(node, lambda value: made.get(value.unique(), value)))
        made.update((old.unique(), new) for old, new in zip(node.outputs(), copy.outputs(), strict=True))
    return made[nodes[-1].outputsAt(0).unique()]


@contextlib.contextmanager
def _block(graph: Graph, either: Node) -> Iterator[Any]:
    block = either.addBlock()
    with graph.insert_point_guard(block):
        yield block


def one_way(graph: Graph) -> Iterator[Node]:
    """The operators of a graph; of two ways to compute the same, those of the second."""
    for node in graph.nodes():
        branches = list(node.blocks())
        yield from one_way(branches[-1]) if branches else [node]
