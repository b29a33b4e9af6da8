"""Several ways to compute the same in one graph, of which each call takes one by the sizes of its inputs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
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


Make = Callable[[], Value]  # inserts operators, and returns what the last of them gives


def branch(graph: Graph, node: Node, ways: Sequence[tuple[Value, Make]], otherwise: Make) -> None:
    """Replace `node` by what the first of `ways` inserts whose condition holds while running, or `otherwise`.

    Its first output becomes theirs. All may read the inputs of `node`, which is destroyed afterwards.
    """
    with graph.insert_point_guard(node):
        chosen = choose(graph, ways, otherwise)
    node.outputsAt(0).replaceAllUsesWith(chosen)
    node.destroy()


def choose(graph: Graph, ways: Sequence[tuple[Value, Make]], otherwise: Make) -> Value:
    """What the first of `ways` inserts whose condition holds while running, or `otherwise`."""
    if not ways:
        return otherwise()
    (condition, make), *others = ways
    either = graph.insertNode(graph.create("prim::If", [condition], 1))
    for each in (make, functools.partial(choose, graph, others, otherwise)):
        with _block(graph, either) as block:
            block.registerOutput(each())
    output: Value = either.output()
    return output


def copies(graph: Graph, nodes: Sequence[Node], changed: Mapping[int, Value] | None = None) -> Value:
    """The first output of the last of new copies of operators, which read each other as the originals do.

    `changed` says what they read in the place of other values, by `Value.unique` of those.
    """
    made = dict(changed or {})
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
    """The operators of a graph; of several ways to compute the same, those of the last."""
    for node in graph.nodes():
        branches = list(node.blocks())
        yield from one_way(branches[-1]) if branches else [node]
