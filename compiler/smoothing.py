"""Smoothing at no cost: what an activation is multiplied with before it becomes int8 goes into the weights that made it.

Of attention, the heads' values come from a layer in int8 whose scales take the factors, channel by channel:

    rows(attention(q, k, heads(linear(x, w, b)))) · s   →   rows(attention(q, k, heads(linear(x, w·s, b·s))))

Of a norm, its weights do, as long as nothing but layers in int8 reads it:

    quantize(layer_norm(x, w, b) · s)   →   quantize(layer_norm(x, w·s, b·s))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from cpuc.compiler.flash import KERNEL
from cpuc.compiler.heads import cuts_of, joins_of
from cpuc.compiler.norms import PARAMETERS, norms_of
from cpuc.compiler.quantization import Quantized, operands
from cpuc.compiler.quantization.layers import PLACEHOLDER, readers
from cpuc.compiler.quantization.rounding import Weight
from cpuc.compiler.quantization.solve import Solution
from cpuc.compiler.rewrites.matching import constant_tensor
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value


def absorb(graph: Graph, quantized: Quantized, batch: Sequence[torch.Tensor]) -> Quantized:
    """Take smoothing out of what `lower` would insert, where it can go into weights of `graph`, which is changed in place.

    From here on the graph is right only with the solutions that are returned: its placeholders know nothing of them.

    Args:
        graph: fused, with placeholders; the attention to look at is `KERNEL`.
        quantized: how its layers are computed.
        batch: inputs to run it with once, which shows the sizes of heads.
    """
    absorbing = _Absorbing(graph, quantized)
    for attention, (values,) in zip(graph.findAllNodes(KERNEL), operands(graph, KERNEL, (2,), batch), strict=True):
        assert values is not None
        absorbing.by_values(attention, values.shape[1] * values.shape[3])
    for node in graph.findAllNodes(PLACEHOLDER):
        absorbing.by_norm(node.inputsAt(0))
    return dataclasses.replace(quantized, solutions=absorbing.solutions)


class _Absorbing:
    def __init__(self, graph: Graph, quantized: Quantized) -> None:
        self._graph, self._network = graph, quantized.network
        self.solutions = dict(quantized.solutions)

    def by_values(self, attention: Node, channels: int) -> None:
        """`channels` are those of all heads of the values."""
        rows, made = joins_of(attention), _source(cuts_of(attention, 2))
        if not rows or made is None:
            return
        found = _through_casts(rows[-1].output())
        smoothing, layer = self._smoothing(found), self._network.layer_of(made)
        if smoothing is None or not len(smoothing) == len(layer.weight) == channels:
            return
        solution, weight = self.solutions[layer], self.solutions[layer].weights[layer]
        weights = {**solution.weights, layer: Weight(weight.values, weight.scales * smoothing)}
        biases = {**solution.biases, layer: solution.biases[layer] * smoothing}
        self._change(solution, dataclasses.replace(solution, weights=weights, biases=biases))
        self._without(found)

    def by_norm(self, x: Value) -> None:
        """`x` is what a layer in int8 reads."""
        norms, layers = norms_of(x), readers(x)
        smoothing = self._smoothing(layers)
        if not norms or smoothing is None:
            return
        parameters = [
            (norm, position, constant_tensor(norm, position))
            for norm in norms
            for position in (PARAMETERS[norm.kind()], PARAMETERS[norm.kind()] + 1)
        ]
        known = [(norm, position, tensor) for norm, position, tensor in parameters if tensor is not None]
        if any(tensor.shape != smoothing.shape for *_, tensor in known) or len(known) < len(parameters):
            return
        for norm, position, tensor in known:
            with self._graph.insert_point_guard(norm):
                norm.replaceInput(position, self._graph.insertConstant(tensor * smoothing))
        self._without(layers)

    def _smoothing(self, nodes: Sequence[Node]) -> torch.Tensor | None:
        """That of the only solution of some nodes, if they are layers in int8 and have one."""
        if not nodes or any(node.kind() != PLACEHOLDER for node in nodes):
            return None
        first, *others = (self.solutions[self._network.layer_of(node)] for node in nodes)
        return first.smoothing if all(other is first for other in others) else None

    def _without(self, nodes: Sequence[Node]) -> None:
        solution = self.solutions[self._network.layer_of(nodes[0])]
        self._change(solution, dataclasses.replace(solution, smoothing=None))

    def _change(self, old: Solution, new: Solution) -> None:
        for layer, solution in self.solutions.items():
            if solution is old:
                self.solutions[layer] = new


def _source(cuts: Sequence[Node]) -> Node | None:
    """The layer in int8 whose whole output becomes heads by `cuts`, and nothing else, perhaps in another dtype."""
    if not cuts or cuts[0].kind() == "aten::slice":
        return None
    value: Value = cuts[0].inputsAt(0)
    used = [cut.output() for cut in cuts]
    if value.node().kind() == "aten::to":
        used.append(value)
        value = value.node().inputsAt(0)
    used.append(value)
    alone = all(len(readers(each)) == 1 for each in used)
    return value.node() if alone and value.node().kind() == PLACEHOLDER else None


def _through_casts(value: Value) -> list[Node]:
    """What reads a value, or a cast of it that alone reads it."""
    found = readers(value)
    if len(found) == 1 and found[0].kind() == "aten::to":
        return readers(found[0].output())
    return found
