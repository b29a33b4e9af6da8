"""Lowering to FBGEMM's operator for layers in int8: what CPUs with neither AVX-512 nor VNNI have, and others may be tuned to.

It takes the input in float32, rounds it to uint8 while it packs it, and gives float32. Activations and sums are operators of
their own.

Layers of MiniLM's and BERT-base's sizes on an EPYC of Zen 2, two cores, oneDNN's time over FBGEMM's, whose rounding is
counted: 1.4 to 2.2 at 16 rows, 1.1 to 1.2 at 128, 1.0 to 1.1 at 384. With VNNI (EPYC of Zen 4), the layers of a block together
and with what follows each: 1.4 and 1.55 at one row, 1.2 and 1.25 at 8, 1.10 and 1.07 at 16, 0.98 and 0.97 at 32, 0.85 and 0.87
at 128.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from cpuc.compiler.modules import as_module
from cpuc.compiler.quantization.layers import Layer
from cpuc.compiler.quantization.lower import FLOAT32, Lowering, activation_of, addend, replace
from cpuc.compiler.quantization.quantize import Quantized
from cpuc.compiler.quantization.solve import Solution
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

_OPERATOR = "quantized::linear_with_input_q_dq_qweight_dq{}_output_fp32"
_STATE = """
def __getstate__(self) -> Tuple[List[Tensor], List[Tensor], List[Tensor], bool]:
    return (self.weights, self.scales, self.biases, self.training)

def __setstate__(self, state: Tuple[List[Tensor], List[Tensor], List[Tensor], bool]) -> None:
    weights, scales, biases, training = state
    self.packed = [
        torch.ops.quantized.linear_prepack(
            torch.ops.aten._make_per_channel_quantized_tensor(
                weights[i], scales[i], torch.zeros([len(scales[i])], dtype=torch.int64), 0
            ),
            biases[i],
        )
        for i in range(len(weights))
    ]
    self.weights, self.scales, self.biases = weights[:0], scales[:0], biases[:0]
    self.training = training
"""


class Fbgemm(Lowering):
    """To FBGEMM's operator.

    Attributes:
        scales, biases: float32 [out], in the order of `weights`.
    """

    kind: ClassVar[Any] = torch._C._jit_get_schemas_for_operator("quantized::linear_prepack")[0].returns[0].type

    def __init__(self, graph: Graph, quantized: Quantized, sums: Mapping[int, Node]) -> None:
        super().__init__(graph, quantized, sums)
        self.scales: list[torch.Tensor] = []
        self.biases: list[torch.Tensor] = []

    def package(self, function: Callable[..., Any], names: Sequence[str]) -> Any:
        """The same; packing takes 6 us for each output, since torch reads their scales one by one: 0.5 s for BERT-base."""
        tensors = torch._C.ListType.ofTensors()
        stored = {"weights": self.weights, "scales": self.scales, "biases": self.biases}
        attributes = {name: (tensors, value) for name, value in stored.items()}
        return as_module(function, names, {**attributes, "packed": (torch._C.ListType(self.kind), [])}, _STATE)

    def levels(self, x: Value, scale: float, zero_point: int) -> Value:  # noqa: ARG002
        """Nothing: the operator does it."""
        return x

    def static(self, node: Node, layer: Layer, x: Value, solution: Solution) -> None:
        """The layer, and in place what follows it."""
        last, activation = activation_of(node)
        y = self.linear([layer], x, solution, activation=activation)
        if activation[0] == "gelu":
            y = self.make("aten::gelu_", y, activation[1])
        total = self.sums.get(node.output().unique())
        if total is not None:
            y = self.make("aten::add_", y, addend(total, node.output()), 1)
        replace(y, node, last, total)

    def linear(
        self,
        layers: Sequence[Layer],
        x: Value,
        solution: Solution,
        output: tuple[float | None, int, int] = (1.0, 0, FLOAT32),
        activation: tuple[str, str] = ("none", "none"),
        other: Value | None = None,  # noqa: ARG002
    ) -> Value:
        """The operator, for `layers` side by side, and ReLU; what it gives is cast to bfloat16 where that is asked for."""
        weights = [solution.weights[layer] for layer in layers]
        packed = self.take(torch.cat([weight.values for weight in weights]))
        self.scales.append(torch.cat([weight.scales for weight in weights]))
        biases = [solution.biases[layer] for layer in layers] if solution.biases else [torch.zeros(len(self.scales[-1]))]
        self.biases.append(torch.cat(biases))
        operator = _OPERATOR.format("_relu" if activation[0] == "relu" else "")
        y = self.make(operator, x, solution.scale, solution.zero_point, packed)
        _, _, dtype = output
        return y if dtype == FLOAT32 else self.make("aten::to", y, dtype, False, False, None)
