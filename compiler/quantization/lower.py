"""Lowering: placeholders of layers in int8 become oneDNN's operators, as torch's compiler for x86 uses them.

`onednn::qlinear_pointwise` multiplies plain uint8 or int8 tensors with packed int8 weights, and does in the same pass what
follows: scales, bias, GELU, rounding to the next layer's uint8, or a result in bfloat16. It works on every CPU: with AMX or
VNNI where they are, with 16-bit products where they are not.

    x ─ linear ─ gelu ─ linear ─ …   →   x ─ quantize ─ qlinear(gelu → uint8) ─ qlinear(→ float32) ─ …
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from cpuc.compiler.modules import as_module
from cpuc.compiler.quantization.layers import ACTIVATIONS, PLACEHOLDER, Layer, readers
from cpuc.compiler.quantization.observe import Tensors, operands
from cpuc.compiler.quantization.quantize import Quantized
from cpuc.compiler.quantization.rounding import LEVELS
from cpuc.compiler.quantization.solve import Solution
from cpuc.compiler.rewrites.matching import equals, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

_STATE = """
def __getstate__(self) -> Tuple[List[Tensor], bool]:
    return (self.weights, self.training)

def __setstate__(self, state: Tuple[List[Tensor], bool]) -> None:
    packed: List[Tensor] = []
    for weight in state[0]:
        packed.append(torch.ops.onednn.qlinear_prepack(weight, None))
    self.packed = packed
    self.weights = []
    self.training = state[1]
"""
FLOAT32, _BFLOAT16, _UINT8, _QUINT8 = 6, 15, 0, 13  # dtypes as graphs write them
# Zero, where rows are scaled while running: uint8 again, since int8 would have to be shifted in each call without AMX (at 16
# tokens it took twice as long).
_MIDDLE = 128


def lower(graph: Graph, quantized: Quantized, batch: Tensors, sums: Mapping[int, Node], kernels: type[Lowering]) -> Lowering:
    """After fusion: replace every placeholder of `graph` in place.

    Args:
        graph: fused.
        quantized: how.
        batch: inputs to run it with once, which shows how inputs of layers lie in memory.
        sums: what `find_sums` found, for the layers to do.
        kernels: whose operators they become.

    The graph gets one more input, a list of packed weights, which is what the returned object packages.
    """
    inputs = operands(graph, PLACEHOLDER, (0,), batch)
    lowering = kernels(graph, quantized, sums)
    for node, (x,) in zip(graph.findAllNodes(PLACEHOLDER), inputs, strict=True):
        # Rounding keeps the order in memory that images may have (torch.channels_last), in which there are no rows.
        if x is not None and x.dim() > 3 and not x.is_contiguous():
            with graph.insert_point_guard(node):
                node.replaceInput(0, insert(graph, "aten::contiguous", node.inputsAt(0), 0))  # torch.contiguous_format
    for node in graph.findAllNodes(PLACEHOLDER):
        if node.output().uses():  # else it went with another one of the same input
            lowering.lower(node)
    torch._C._jit_pass_dce(graph)
    return lowering


class Lowering:
    """To oneDNN's operators; those of others inherit what they have in common.

    Args:
        graph: fused.
        quantized: how.
        sums: what `find_sums` found, for the layers to do.

    Attributes:
        kind: of a packed weight, in the graph.
        weights: int8 [out, in], in the order of the list.
    """

    kind: ClassVar[Any] = torch._C.TensorType.get()

    def __init__(self, graph: Graph, quantized: Quantized, sums: Mapping[int, Node]) -> None:
        self.graph = graph
        self.quantized = quantized
        self.sums = sums
        self.weights: list[torch.Tensor] = []
        self.packed = graph.addInput("packed")
        self.packed.setType(torch._C.ListType(self.kind))
        # What layers read, in int8 if they take that, and the scales of its rows where they are found while running.
        self.inputs: dict[Solution, tuple[Value, Value | None]] = {}

    def package(self, function: Callable[..., Any], names: Sequence[str]) -> Any:
        """A module whose ``forward`` takes `names` and calls `function` with them and the packed weights.

        oneDNN packs them when it is loaded (about 0.1 s for BERT-base).
        """
        tensors = torch._C.ListType.ofTensors()
        return as_module(function, names, {"weights": (tensors, self.weights), "packed": (tensors, [])}, _STATE)

    def lower(self, node: Node) -> None:
        """Replace the placeholder `node`, and with it what else its operator does."""
        layer = self.quantized.network.layer_of(node)
        solution = self.quantized.solutions[layer]
        with self.graph.insert_point_guard(node):
            if solution not in self.inputs:
                self.inputs[solution] = self._quantize(node.inputsAt(0), solution)
            x, scales = self.inputs[solution]
            if scales is not None:
                self._dynamic(node, layer, x, scales, solution)
            elif len(alike := self._alike(solution)) > 1:
                self._together(alike, x, solution)
            else:
                self.static(node, layer, x, solution)

    def _quantize(self, x: Value, solution: Solution) -> tuple[Value, Value | None]:
        if solution.smoothing is not None:
            x = self.make("aten::mul", x, solution.smoothing)
        if solution.scale is not None:
            return self.levels(x, solution.scale, solution.zero_point), None
        # Two passes that use vectors; the infinity norm does not.
        highest, lowest = (self.make(kind, x, [-1], True) for kind in ("aten::amax", "aten::amin"))
        peaks = self.make("aten::maximum", highest, self.make("aten::neg", lowest))
        scales = self.make("aten::mul", self.make("aten::clamp_min", peaks, 1e-12), 1 / LEVELS)
        return self.levels(self.make("aten::div", x, scales), 1.0, _MIDDLE), scales

    def levels(self, x: Value, scale: float, zero_point: int) -> Value:
        """uint8 [..., in], in the memory of torch's quantised tensor.

        `aten::int_repr` would copy it byte by byte: (EPYC, Zen 5) 30 us for 384 x 384 of them, where rounding takes 10.
        """
        quantized = self.make("aten::quantize_per_tensor", x, scale, zero_point, _QUINT8)
        sizes, strides = (
            self.make(f"aten::{kind}", quantized).setType(torch._C.ListType.ofInts()) for kind in ("size", "stride")
        )
        none = self.make("aten::empty", [0], _UINT8, None, None, None, None)
        return self.make("aten::set_", none, quantized, 0, sizes, strides)

    def static(self, node: Node, layer: Layer, x: Value, solution: Solution) -> None:
        """The layer and what follows it, as far as the operator does that too."""
        last, activation = activation_of(node)
        follower, narrow = self._only_reader(last.output())
        total = self.sums.get(node.output().unique())
        if follower is not None:
            y = self.linear([layer], x, solution, (follower.scale, follower.zero_point, _UINT8), activation)
            self.inputs[follower] = (y, None)
        elif total is not None:
            other = addend(total, node.output())
            if other.node().kind() == "aten::add":  # which may lie in memory otherwise with other sizes
                other = self.make("aten::contiguous", other, 0)  # torch.contiguous_format
            y = self.linear([layer], x, solution, _floating(None), activation, other)
        else:
            y = self.linear([layer], x, solution, _floating(narrow), activation)
        replace(y, node, last, narrow, total)

    def _together(self, nodes: Sequence[Node], x: Value, solution: Solution) -> None:
        """Layers of the same input as one operator, whose result is cut: each call of it costs some 25 us beside the work."""
        layers = [self.quantized.network.layer_of(node) for node in nodes]
        narrows = [self._only_reader(node.output())[1] for node in nodes]
        whole, begin = self.linear(layers, x, solution, _floating(narrows[0]), ("none", "none")), 0
        for node, layer, narrow in zip(nodes, layers, narrows, strict=True):
            end = begin + len(layer.weight)
            replace(self.make("aten::slice", whole, -1, begin, end, 1), node, node, narrow)
            begin = end

    def _alike(self, solution: Solution) -> list[Node]:
        """The layers of an input, if nothing follows any of them that the operator would do, and all give the same dtype."""
        nodes = [
            node
            for node in self.graph.findAllNodes(PLACEHOLDER)
            if node.output().uses() and self.quantized.solutions[self.quantized.network.layer_of(node)] is solution
        ]
        found = {(activation_of(node)[1], *self._only_reader(node.output())) for node in nodes}
        kinds = {(activation, follower, narrow is None) for activation, follower, narrow in found}
        return nodes if kinds in ({(("none", "none"), None, True)}, {(("none", "none"), None, False)}) else []

    def _only_reader(self, value: Value) -> tuple[Solution | None, Node | None]:
        """How the layers that alone read `value` take it in int8, or the cast to bfloat16 that alone reads it."""
        found = readers(value)
        if found and all(each.kind() == PLACEHOLDER for each in found):
            solutions = [self.quantized.solutions[self.quantized.network.layer_of(each)] for each in found]
            if all(each is solutions[0] for each in solutions) and solutions[0].smoothing is None:
                return solutions[0], None
        if len(found) == 1 and found[0].kind() == "aten::to" and equals(found[0].inputsAt(1), _BFLOAT16):
            return None, found[0]
        return None, None

    def _dynamic(self, node: Node, layer: Layer, x: Value, scales: Value, solution: Solution) -> None:
        """Rows are multiplied with their scales after the layer; the operator itself takes one scale for all."""
        unscaled = dataclasses.replace(solution, scale=1.0, zero_point=_MIDDLE, biases={})
        y = self.linear([layer], x, unscaled, (1.0, 0, FLOAT32), ("none", "none"))
        node.output().replaceAllUsesWith(self.make("aten::addcmul", solution.biases[layer], y, scales, 1))

    def linear(
        self,
        layers: Sequence[Layer],
        x: Value,
        solution: Solution,
        output: tuple[float | None, int, int],
        activation: tuple[str, str],
        other: Value | None = None,
    ) -> Value:
        """The operator, for `layers` side by side; `output` is scale, zero point and dtype of what it gives.

        With another tensor, the sum of both is what that is afterwards.
        """
        weights = [solution.weights[layer] for layer in layers]
        packed = self.take(torch.cat([weight.values for weight in weights]))
        biases = torch.cat([solution.biases[layer] for layer in layers]) if solution.biases else None
        scales, biases = _fold(self.weights[-1], torch.cat([weight.scales for weight in weights]), biases, solution)
        none = self.make("prim::ListConstruct")
        none.setType(torch._C.ListType(torch._C.OptionalType(torch._C.NumberType.get())))
        zero_points = torch.zeros(len(scales), dtype=torch.int64)
        quantized = (x, 1.0, 0, packed, scales, zero_points)
        name, algorithm = activation
        given = (biases, *output) if other is None else (other, biases, *output, 1.0, 0, "sum", 1.0)
        return self.make("onednn::qlinear_pointwise", *quantized, *given, name, none, algorithm)

    def take(self, weight: torch.Tensor) -> Value:
        """The packed form of a `weight`, int8 [out, in]."""
        self.weights.append(weight)
        return self.make("aten::__getitem__", self.packed, len(self.weights) - 1).setType(self.kind)

    def make(self, kind: str, *inputs: Any) -> Value:
        """Insert an operator; inputs that are no values of the graph become constants."""
        return insert(self.graph, kind, *inputs)


def addend(total: Node, value: Value) -> Value:
    """What a sum adds to `value`."""
    return total.inputsAt(1 if total.inputsAt(0).unique() == value.unique() else 0)


def activation_of(node: Node) -> tuple[Node, tuple[str, str]]:
    """The activation that alone reads a layer's output, or else the layer itself, and what the operator calls it."""
    found = readers(node.output())
    if len(found) == 1 and found[0].kind() in ACTIVATIONS:
        (last,) = found
        name = last.kind().removeprefix("aten::")
        return last, (name, last.inputsAt(1).toIValue() if name == "gelu" else "none")
    return node, ("none", "none")


def _fold(
    values: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor | None, solution: Solution
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales, float32 [out], and biases, [1, out], with which a layer takes its input as plain integers.

    s · w · (x - z) + b = s · w · x + (b - s · w · z): with neither scale nor zero point of its input the operator has less to
    set up, and nothing to make up for in each call (EPYC, Zen 4: 1.03 to 1.12 times as fast at 16 rows, 0.99 to 1.09 at 128,
    1.01 to 1.05 at 384).
    """
    assert solution.scale is not None, "scales of rows are applied after the layer"
    scales = scales * solution.scale
    shift = values.sum(1).double() * scales.double() * solution.zero_point
    biases = ((0.0 if biases is None else biases.double()) - shift).float()
    return scales, biases[None]  # as oneDNN has it: the operator would reshape it in each call


def _floating(narrow: Node | None) -> tuple[float, int, int]:
    """An output that is not int8, given the cast to bfloat16 that reads it."""
    return 1.0, 0, FLOAT32 if narrow is None else _BFLOAT16


def replace(y: Value, *nodes: Node | None) -> None:
    """`y` for the outputs of `nodes`; of what is left to read the others, all but the size is in it."""
    for node in nodes:
        if node is not None:
            node.output().replaceAllUsesWith(y)
