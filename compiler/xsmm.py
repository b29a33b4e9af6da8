"""Linear layers on libxsmm's kernels, which IPEX carries as ``torch_ipex::tpp_linear…``.

They read weights in blocks, which are stored so: nothing is packed when an artifact is loaded, and a number of rows that was
not met before costs less. The layout is the one of IPEX's ``BlockedParameter`` for float32
(intel_extension_for_pytorch/cpu/tpp/utils/blocked_layout.py): [outputs / 32, inputs / 32, 32 inputs, 32 outputs].

The kernels want contiguous inputs of two or three axes, which they don't check.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from cpuc.compiler.quantization import watch
from cpuc.compiler.rewrites.matching import constant
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

# Blocks of 32 outputs keep up with oneDNN or lead at every number of rows from 8 to 1024 with AVX2 (BERT-base's layers: 1.05 to
# 1.6 times as fast); those of 16, 48 and 64 fall behind above 200 rows.
_OUTPUTS = 32
_INPUTS = (32, 64, 48, 24, 16)

_ADD_RUN = "ipex_prepack::linear_add_run"
# The operator for a layer and what was fused into it, and one to follow it. libxsmm's own GELU and SiLU are approximations that
# are off by 4e-5; torch's in its place cost 3 % of BERT-base.
_OPERATORS: dict[str, tuple[str, str | None]] = {
    "ipex_prepack::linear_run": ("torch_ipex::tpp_linear_bias", None),
    "ipex_prepack::linear_relu_run": ("torch_ipex::tpp_linear_relu", None),
    "ipex_prepack::linear_gelu_run": ("torch_ipex::tpp_linear_bias", "aten::gelu_"),
    "ipex_prepack::linear_swish_run": ("torch_ipex::tpp_linear_bias", "aten::silu_"),
    _ADD_RUN: ("torch_ipex::tpp_linear_add", None),
}
_CONTIGUOUS = (
    "aten::contiguous",
    "aten::gelu_",
    "aten::silu_",
    *(operator for operator, _ in _OPERATORS.values()),
)


def use_xsmm(graph: Graph, example: Sequence[torch.Tensor]) -> None:
    """Move the packed linear layers of the fused `graph` to libxsmm, in place, where it has a kernel.

    Args:
        graph: what `rewrites` and IPEX's passes have left; its inputs are those of `example`.
        example: tensors to run it on once, for the number of axes that each layer's input has.
    """
    tensors = iter(
        watch(graph, lambda graph: [v for node in _layers(graph) for v in (*_operands(node), node.output())], example)
    )
    weights = _Weights(graph)
    for node in _layers(graph):
        _move(graph, node, [next(tensors).shape for _ in _operands(node)], next(tensors).shape, weights)
    torch._C._jit_pass_dce(graph)


def _layers(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes() if node.kind() in _OPERATORS]


def _operands(node: Node) -> list[Value]:
    return [node.inputsAt(i) for i in range(2 if node.kind() == _ADD_RUN else 1)]


def _move(graph: Graph, node: Node, operands: list[torch.Size], output: torch.Size, weights: _Weights) -> None:
    operator, after = _OPERATORS[node.kind()]
    factor = constant(node, 2) if node.kind() == _ADD_RUN else None
    if len(output) not in (2, 3) or any(shape != output for shape in operands[1:]):
        return
    with graph.insert_point_guard(node):
        stored = weights.insert(node.inputsAt(node.inputsSize() - 1).toIValue())
        if stored is None:
            return
        arguments = [*(_contiguous(graph, value) for value in _operands(node)), *stored]
        if node.kind() == _ADD_RUN:
            arguments.append(graph.insertConstant(1.0 if factor is None else float(factor)))
        made = graph.insertNode(graph.create(operator, [*arguments, graph.insertConstant(None)], 1)).output()
        if after is not None:
            options = [node.inputsAt(i) for i in range(1, node.inputsSize() - 1)]
            made = graph.insertNode(graph.create(after, [made, *options], 1)).output()
    node.output().replaceAllUsesWith(made)
    node.destroy()


def _contiguous(graph: Graph, value: Value) -> Value:
    if value.node().kind() in _CONTIGUOUS:
        return value
    format_ = graph.insertConstant(0)  # torch.contiguous_format
    return graph.insertNode(graph.create("aten::contiguous", [value, format_], 1)).output()


class _Weights:
    """The blocked weights and the bias of packed layers, each stored once however many layers share it."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._blocked: dict[bytes, torch.Tensor] = {}

    def insert(self, context: Any) -> tuple[Value, Value] | None:
        """Constants for a packed layer's weights and bias; None if no kernel takes them."""
        weight, bias, _ = context._get_method("__getstate__")()
        block = next((size for size in _INPUTS if weight.shape[1] % size == 0), None)
        if weight.dtype != torch.float32 or weight.shape[0] % _OUTPUTS or block is None:
            return None
        digest = hashlib.sha256(weight.contiguous().numpy().tobytes()).digest()
        if digest not in self._blocked:
            split = weight.reshape(weight.shape[0] // _OUTPUTS, _OUTPUTS, weight.shape[1] // block, block)
            self._blocked[digest] = split.permute(0, 2, 3, 1).contiguous()
        start = torch.empty(0) if bias is None else bias
        return self._graph.insertConstant(self._blocked[digest]), self._graph.insertConstant(start)
