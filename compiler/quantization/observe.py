"""Observing what goes into the layers while a calibration sample runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from cpuc.compiler.quantization.layers import Group, Network, calling
from cpuc.compiler.quantization.solve import Observation
from cpuc.compiler.rewrites.rewrite import Graph, Value
from cpuc.runtime.errors import ModelError

# Rows that are kept of each layer's input. More did not change what was chosen.
_KEPT_ROWS = 512

Tensors = Sequence[torch.Tensor]


class _Observer:
    """Stands in for a group's first layer, and watches its input."""

    def __init__(self, group: Group, rows: int) -> None:
        self.layer = group.layers[0]
        self.rows = rows
        self.random = torch.Generator().manual_seed(0)
        self.count = 0
        # What sums are taken around: squares of large means would leave float32 no digits for the rest.
        self.origin: torch.Tensor | None = None
        self.sum = torch.zeros(self.layer.weight.shape[1])
        self.moments = torch.zeros(self.layer.weight.shape[1], self.layer.weight.shape[1])
        self.kept: list[torch.Tensor] = []
        self.extremes: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        self.count += len(rows)
        if self.origin is None:
            self.origin = rows.mean(0)
        centred = rows - self.origin
        self.sum += centred.sum(0)
        self.moments.addmm_(centred.t(), centred)
        self.extremes.append(torch.stack(torch.aminmax(rows, dim=0)))
        self.kept.append(rows[torch.randperm(len(rows), generator=self.random)[: self.rows]])
        return self.layer.exact(x)

    def observation(self) -> Observation:
        extremes = torch.stack(self.extremes)
        assert self.origin is not None
        mean = self.sum / self.count
        covariance = self.moments / self.count - mean[:, None] * mean
        return Observation(torch.cat(self.kept), self.origin + mean, covariance, extremes[:, 0].amin(0), extremes[:, 1].amax(0))


def observe(network: Network, batches: Sequence[Tensors]) -> dict[Group, Observation]:
    """Run `batches` through `network` in float32 and watch each group's input.

    `batches` hold no padding: what a model computes there never reaches an answer. Raises ModelError for NaN.
    """
    observers = {group: _Observer(group, max(1, _KEPT_ROWS // len(batches))) for group in network.groups}
    function = network.function()
    try:
        for group, observer in observers.items():
            group.layers[0].compute = observer
        for batch in batches:
            run(function, batch)
    finally:
        for group in network.groups:
            group.layers[0].compute = group.layers[0].exact
    seen = {group: observers.pop(group).observation() for group in list(observers)}
    if not all(each.finite for each in seen.values()):
        raise ModelError("the model gives NaN or infinite values on the calibration sample")
    return seen


def watch(graph: Graph, pick: Callable[[Graph], Sequence[Value]], batch: Tensors) -> list[torch.Tensor]:
    """The tensors that some values are when a graph runs on `batch`; `pick` finds the values in a copy of it.

    The graph may be that of a frozen module, with the module as its first input. It stays as it is.
    """
    graph = graph.copy()
    watched = pick(graph)
    if not watched:
        return []
    for value in watched:
        graph.registerOutput(value)
    graph.makeMultiOutputIntoTuple()
    if len(list(graph.inputs())) > len(batch):
        graph.eraseInput(0)
    return list(run(torch._C._create_function_from_graph("network", graph), batch)[-len(watched) :])


def operands(graph: Graph, kind: str, positions: Sequence[int], batch: Tensors) -> list[list[torch.Tensor | None]]:
    """What each node of `kind` is given at `positions` when the graph runs on `batch`; None is None."""

    def values(graph: Graph) -> list[list[Value]]:
        return [[node.inputsAt(i) for i in positions] for node in graph.findAllNodes(kind)]

    def pick(graph: Graph) -> list[Value]:
        return [value for each in values(graph) for value in each if not value.node().mustBeNone()]

    found = iter(watch(graph, pick, batch))
    return [[None if value.node().mustBeNone() else next(found) for value in each] for each in values(graph)]


def run(function: Callable[..., tuple[torch.Tensor, ...]], batch: Tensors) -> tuple[torch.Tensor, ...]:
    """The outputs of a network's function."""
    with calling(), torch.inference_mode(), torch.jit.optimized_execution(False):
        return function(*batch)
