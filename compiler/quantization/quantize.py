"""Which layers are computed in int8, and how."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812

from cpuc.compiler.calibration import Calibration
from cpuc.compiler.capture import to_tensors
from cpuc.compiler.precision import Int8, Limit
from cpuc.compiler.quantization.embedding import round_tables
from cpuc.compiler.quantization.layers import Compute, Group, Layer, Network
from cpuc.compiler.quantization.narrow import narrow
from cpuc.compiler.quantization.observe import Tensors, observe, run
from cpuc.compiler.quantization.rounding import Weight
from cpuc.compiler.quantization.solve import Observation, Solution, solve_dynamic, solve_static
from cpuc.compiler.rewrites.rewrite import Graph
from cpuc.runtime.errors import ModelError
from cpuc.runtime.manifest import KeptLayer, Quantization

# Batches that the error of the outputs is measured on, once for each layer.
_MEASURED = 6
# Layers that read the same are computed in one call, of which a layer that stays in floating point is no part. The call that it
# then takes costs as much as being computed in bfloat16 does a layer of so many weights (EPYC, Zen 4: 70,000 of them at 128
# rows, 560,000 at 16).
_APART = 200_000
# What layers err together is hardly ever so much less than the squares of what each does add up to.
_HOPELESS = 1.1
# Of the error that outputs may have, what embeddings may make: its square is a ninth.
_OF_TABLES = 1 / 3
# Channels of a layer come in blocks: oneDNN's in int8, and libxsmm's of those that stay in floating point.
_BLOCK, _FLOATING_BLOCK = 16, 64


@dataclass(frozen=True)
class Quantized:
    """What `quantize` decided: how each layer in int8 is computed, and what the manifest says of it."""

    network: Network
    solutions: Mapping[Layer, Solution]
    summary: Quantization


def quantize(
    graph: Graph,
    weights: Iterable[tuple[str, torch.Tensor]],
    calibration: Calibration,
    inputs: Sequence[str],
    scheme: Int8,
    limit: Limit,
    report: Callable[[str], None] = lambda _: None,
) -> Quantized:
    """Replace the linear layers of `graph` by placeholders, and decide which of them are computed in int8.

    Args:
        graph: of a frozen float32 module, changed in place. Layers that stay in floating point are linear layers again.
        weights: the model's tensors by name, to call layers by.
        calibration: inputs without padding.
        inputs: their names, in the graph's order.
        limit: layers stay in floating point until it holds.
        report: called with the name of each stage as it begins.

    Raises:
        ModelError: hardly anything of the model is a linear layer, or it gives NaN.
    """
    network = Network(graph, weights)
    _check_worthwhile(network, graph)
    rest = getattr(torch, scheme.rest)
    batches = [to_tensors(batch, inputs) for batch in calibration.batches]
    measurement = _Measurement(network, batches[:: -(-len(batches) // _MEASURED)])
    budget = measurement.budget(limit)
    round_tables(graph, accurate=lambda: measurement.error({}) <= _OF_TABLES * budget)
    narrow(network, rest, batches[0])
    report("running the calibration sample")
    seen = observe(network, batches)
    report("rounding weights and choosing scales")
    solutions = _solve(network, seen, solve_dynamic if scheme.dynamic else solve_static)
    report("measuring the error of what is in int8")
    kept = _select(solutions, measurement, budget, rest)
    for layer in kept:
        del solutions[layer]
    for group in network.groups:
        _widen(group, solutions)
    network.restore(list(kept), rest)
    summary = Quantization(
        scheme="dynamic" if scheme.dynamic else "static",
        rest=scheme.rest,
        sample=calibration.sample,
        records=calibration.records,
        layers=len(solutions),
        kept=[KeptLayer(layer.name, scheme.rest, float(f"{error:.2g}")) for layer, error in kept.items()],
    )
    return Quantized(network, solutions, summary)


def _solve(
    network: Network, seen: dict[Group, Observation], solve: Callable[[Group, Observation], Solution]
) -> dict[Layer, Solution]:
    """How each layer is computed; what was seen of a group is dropped then."""
    solved = {group: solve(group, seen.pop(group)) for group in network.groups}
    return {layer: solution for group, solution in solved.items() for layer in group.layers}


def _check_worthwhile(network: Network, graph: Graph) -> None:
    """Refuse a model most of whose weights are not those of linear layers: nothing would be gained."""
    linear = sum(layer.weight.numel() for group in network.groups for layer in group.layers)
    others = sum(
        tensor.numel()
        for kind, position in (("aten::_convolution", 1), ("aten::conv2d", 1), ("aten::conv1d", 1), ("torch_ipex::bmm_add", 2))
        for node in graph.findAllNodes(kind)
        if isinstance(tensor := node.inputsAt(position).toIValue(), torch.Tensor)
    )
    if linear <= others:
        raise ModelError("int8 quantises linear layers, and most of this model's work is convolutions: use another --precision")


class _Measurement:
    """How far outputs are from those of the model in float32, with any of its layers computed otherwise.

    Errors are root mean squares relative to the outputs' own, of the network as it is when they are asked for.
    """

    def __init__(self, network: Network, batches: Sequence[Tensors]) -> None:
        self.network, self.batches = network, batches
        function = network.function()
        self.exact = [_outputs(function, batch) for batch in batches]
        self.count = sum(each.numel() for each in self.exact)
        self.size = max(math.sqrt(sum(float(each.square().sum()) for each in self.exact) / self.count), 1e-12)

    def budget(self, limit: Limit) -> float:
        """The error that `limit` allows."""
        return min(limit.relative, limit.absolute / self.size)

    def error(self, computes: Mapping[Layer, Compute]) -> float:
        """The error with all of `computes` together."""
        function = self.network.function()
        with _computed(computes):
            return self._relative(sum(_squares(function, *each) for each in zip(self.batches, self.exact, strict=True)))

    def errors(self, computes: Mapping[Layer, Compute]) -> dict[Layer, float]:
        """The error with each of `computes` alone. Of layers before it, which give what they gave, none runs again."""
        function = self.network.function()
        squares = dict.fromkeys(computes, 0.0)
        for batch, exact in zip(self.batches, self.exact, strict=True):
            given: dict[Layer, torch.Tensor] = {}
            with _computed({layer: functools.partial(_keep, given, layer) for layer in computes}):
                _outputs(function, batch)
            before: dict[Layer, Compute] = {}
            for layer in given:
                with _computed({**before, layer: computes[layer]}):
                    squares[layer] += _squares(function, batch, exact)
                before[layer] = functools.partial(_again, given[layer])
        return {layer: self._relative(each) for layer, each in squares.items()}

    def _relative(self, squares: float) -> float:
        return math.sqrt(squares / self.count) / self.size


@contextlib.contextmanager
def _computed(computes: Mapping[Layer, Compute]) -> Iterator[None]:
    """Meanwhile layers are computed so."""
    try:
        for layer, compute in computes.items():
            layer.compute = compute
        yield
    finally:
        for layer in computes:
            layer.compute = layer.exact


def _outputs(function: Callable[..., tuple[torch.Tensor, ...]], batch: Tensors) -> torch.Tensor:
    return torch.cat([output.flatten() for output in run(function, batch)])


def _squares(function: Callable[..., tuple[torch.Tensor, ...]], batch: Tensors, exact: torch.Tensor) -> float:
    return float((_outputs(function, batch) - exact).square().sum())


def _keep(given: dict[Layer, torch.Tensor], layer: Layer, x: torch.Tensor) -> torch.Tensor:
    given[layer] = layer.exact(x)
    return given[layer].clone()


def _again(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return y.clone()  # the graph may write to it


def _select(
    solutions: Mapping[Layer, Solution], measurement: _Measurement, budget: float, rest: torch.dtype
) -> dict[Layer, float]:
    """The layers that stay in floating point, each with the error that it alone makes: as few as hold the budget.

    Errors of layers hardly depend on each other, so their squares add up: those are kept first that err most for the work
    they save, until what is left measures within it. Then those with the most work go back, as far as it still holds.
    Raises ModelError if nothing is left.
    """
    quantized = {layer: _simulation(layer, solution) for layer, solution in solutions.items()}
    floating = {layer: _in_dtype(layer, rest) for layer in solutions}
    whole = measurement.error(quantized)
    if whole <= budget:
        return {}
    # Attention in bfloat16 is in every measurement.
    others = measurement.error({}) ** 2
    alone = {layer: math.sqrt(max(error**2 - others, 0.0)) for layer, error in measurement.errors(quantized).items()}
    work = {layer: layer.weight.numel() + _APART * _together(solution) for layer, solution in solutions.items()}
    waiting = sorted(alone, key=lambda layer: alone[layer] ** 2 / work[layer])

    def without(kept: Mapping[Layer, float]) -> float:
        return measurement.error({layer: (floating if layer in kept else quantized)[layer] for layer in solutions})

    kept: dict[Layer, float] = {}
    while not whole <= budget:
        # The part of the squared error that has to go, by what each makes alone.
        excess = (1 - (budget / whole) ** 2) * sum(alone[layer] ** 2 for layer in waiting)
        while len(waiting) > 1:
            layer = waiting.pop()
            kept[layer] = alone[layer]
            excess -= alone[layer] ** 2
            if not excess > 0:
                break
        else:
            raise ModelError("no layer can be in int8 without too large an error: use another --precision")
        whole = without(kept)
    for layer in sorted(kept, key=work.__getitem__, reverse=True):
        fewer = {each: error for each, error in kept.items() if each is not layer}
        hopeless = whole**2 + alone[layer] ** 2 > (_HOPELESS * budget) ** 2
        if not hopeless and (error := without(fewer)) <= budget:
            kept, whole = fewer, error
    return kept


def _together(solution: Solution) -> bool:
    """Whether the layers of an input may be one call (see `lower`)."""
    return solution.scale is not None and len(solution.weights) > 1


def _widen(group: Group, solutions: dict[Layer, Solution]) -> None:
    """Give the neurons that a layer in int8 reads the copies that it reads too.

    From here on the graph is right only with the solutions: of the weights of layers in int8 it has the shapes.
    """
    reader, maker = group.layers[0], group.maker
    solution = solutions.get(reader)
    if solution is None or maker is None or solution.copies is None:
        return
    old = solutions.get(maker)
    copies = solution.copies.filled(_FLOATING_BLOCK if old is None else _BLOCK)
    wide = len(copies.sources)
    weight = solution.weights[reader]
    weight = Weight(F.pad(weight.values, (0, wide - weight.values.shape[1])), weight.scales)
    solutions[reader] = dataclasses.replace(solution, weights={reader: weight}, copies=None)
    reader.weight = torch.zeros(1).expand(len(reader.weight), wide)
    if old is None:
        maker.weight, maker.bias = maker.weight[copies.sources], copies.biases(maker.bias)
        return
    maker.weight, maker.bias = torch.zeros(1).expand(wide, maker.weight.shape[1]), None
    weights = {**old.weights, maker: copies.rows(old.weights[maker])}
    biases = {**old.biases, maker: copies.biases(old.biases[maker])}
    new = dataclasses.replace(old, weights=weights, biases=biases)
    solutions.update({layer: new for layer, each in solutions.items() if each is old})


def _in_dtype(layer: Layer, dtype: torch.dtype) -> Compute:
    if dtype == torch.float32:
        return layer.exact
    weight, bias = layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)
    return lambda x: torch.nn.functional.linear(x.to(dtype), weight, bias).float()


def _simulation(layer: Layer, solution: Solution) -> Compute:
    weight = solution.weights[layer].dequantized()
    return lambda x: torch.nn.functional.linear(solution.rounded(x), weight, solution.biases[layer])
