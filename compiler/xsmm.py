"""Linear layers on libxsmm's kernels, which IPEX carries as ``torch_ipex::tpp_linear…``.

They read weights in blocks, which are stored so: nothing is packed for them when an artifact is loaded, and a number of rows
that was not met before costs less. The layouts are those of IPEX's ``BlockedParameter``
(intel_extension_for_pytorch/cpu/tpp/utils/blocked_layout.py), for blocks of n outputs and k inputs:

    float32     [outputs / n, inputs / k, k, n]
    bfloat16    [outputs / n, inputs / k, k / 2, n, 2]

The kernels want contiguous inputs of two or three axes, which they don't check.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch.nn import functional as F  # noqa: N812

from cpuc.compiler.benchmarking.machine import cpu_count
from cpuc.compiler.quantization import watch
from cpuc.compiler.rewrites.matching import constant, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value
from cpuc.runtime.engine import cpu_offers

# Sizes of blocks, the first that divides a layer's: of float32 with AVX2, float32 with AVX-512, and bfloat16. With AVX2
# blocks of 32 outputs made BERT-base's layers 1.05 to 1.6 times as fast as oneDNN's, at 16 to 1024 rows; others fell behind
# above 200. With AVX-512 (EPYC, Zen 4) the whole of BERT-base in float32 is, against blocks of 32, 1.03 times as fast with
# those of 48 at 16 tokens and 1.06 at 128, with those of 64 0.98 and 1.03; in bfloat16 layers are 1.04 to 1.65 times as fast
# with 64 as oneDNN's. Of bfloat16, IPEX copies blocks of 32 outputs or fewer in every call.
#
# With AMX (Xeon), blocks of 128 made BERT-base's layers in bfloat16 0.98 to 1.18 times as fast as those of 64, at 16 to 1024
# rows, and the whole of it 1.00 to 1.07 times. Threads share out whole blocks: with 3 for two of them it was 0.77 at 128 rows.
_NARROW = ((32,), (32, 64, 48, 24, 16))
_WIDE = ((48, 64, 32), (64, 32, 48, 24, 16))
_BRAIN = ((64, 48), (64, 32, 48, 16))
_TILES, _BLOCKS_EACH = 128, 3
_LEAST = 32  # smaller blocks of outputs have not been the fastest anywhere
# But for layers of so few that they need to be filled up. With 384 inputs and 2 outputs and AVX2, a block of 16 takes 37 us for
# 16 rows, 65 for 128 and 180 for 1024, one of 32 46, 85 and 237, and oneDNN 110, 121 and 198.
# In bfloat16 (Xeon with AMX) it is 13, 15 and 28 us against oneDNN's 25, 27 and 35; but for a vocabulary of 30,522, filled up
# to blocks of 64 or 128, 1.13 to 1.29 times and 1.01 to 1.05 times oneDNN's time at 16 to 384 rows.
_FEW = 16

XSMM = "torch_ipex::tpp_linear"  # how the names of its operators begin
_ADD_RUN = "ipex_prepack::linear_add_run"
BIAS, RELU, ADD, GELU, GELU_TANH, SILU = (f"{XSMM}_{name}" for name in ("bias", "relu", "add", "gelu", "gelu_tanh", "silu"))
# The operator for a layer and what was fused into it, and one to follow it. libxsmm's own GELU and SiLU are approximations that
# are off by 4e-5, which bfloat16 does not show; in float32, torch's in their place cost 3 % of BERT-base.
_OPERATORS: dict[torch.dtype, dict[str, tuple[str, str | None]]] = {
    torch.float32: {
        "ipex_prepack::linear_run": (BIAS, None),
        "ipex_prepack::linear_relu_run": (RELU, None),
        "ipex_prepack::linear_gelu_run": (BIAS, "aten::gelu_"),
        "ipex_prepack::linear_swish_run": (BIAS, "aten::silu_"),
        _ADD_RUN: (ADD, None),
    },
    torch.bfloat16: {
        "ipex_prepack::linear_run": (BIAS, None),
        "ipex_prepack::linear_relu_run": (RELU, None),
        "ipex_prepack::linear_gelu_run": (GELU, None),
        "ipex_prepack::linear_swish_run": (SILU, None),
        _ADD_RUN: (ADD, None),
    },
}
# What gives contiguous tensors.
_CONTIGUOUS = (
    "aten::contiguous",
    "aten::gelu_",
    "aten::silu_",
    "aten::layer_norm",
    "ipex::add_layernorm",
    *(BIAS, RELU, ADD, GELU, GELU_TANH, SILU),
)


def use_xsmm(graph: Graph, example: Sequence[torch.Tensor], form: str = "libxsmm") -> None:
    """Move the packed linear layers of the fused `graph` to libxsmm, in place, where it has a kernel.

    Args:
        graph: what `rewrites` and IPEX's passes have left; its inputs are those of `example`.
        example: tensors to run it on once, for the number of axes that each layer's input has.
        form: `Forms.layers`.
    """
    if form == "onednn":
        return
    kernels, _, size = form.partition("-")
    preferred = int(size) if kernels == "libxsmm" and size else 0
    tensors = iter(
        watch(graph, lambda graph: [v for node in _layers(graph) for v in (*_operands(node), node.output())], example)
    )
    weights = _Weights(graph, preferred)
    for node in _layers(graph):
        _move(graph, node, [next(tensors).shape for _ in _operands(node)], next(tensors).shape, weights)
    torch._C._jit_pass_dce(graph)


def sizes_of_layers(graph: Graph) -> set[tuple[torch.dtype, int, int]]:
    """The dtypes, numbers of outputs and of inputs of the layers that `use_xsmm` may find a kernel for."""
    weights = (_unpacked(node)[0] for node in _layers(graph))
    return {(weight.dtype, weight.shape[0], weight.shape[1]) for weight in weights}


def alternatives(graph: Graph) -> list[str]:
    """The forms besides the usual one that the layers of a graph can have on this CPU."""
    layers = [(outputs, _blocks(dtype, outputs)[0]) for dtype, outputs, _ in sizes_of_layers(graph)]
    others = {
        size
        for outputs, sizes in layers
        for size in sizes
        if size >= _LEAST and outputs % size == 0 and size != _divisor(outputs, sizes)
    }
    return [*(f"libxsmm-{size}" for size in sorted(others)), "onednn"] if any(sizes for _, sizes in layers) else []


def _layers(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes() if node.kind() in _OPERATORS[torch.float32]]


def _operands(node: Node) -> list[Value]:
    return [node.inputsAt(i) for i in range(2 if node.kind() == _ADD_RUN else 1)]


def _move(graph: Graph, node: Node, operands: list[torch.Size], output: torch.Size, weights: _Weights) -> None:
    """Replace a layer by libxsmm's operator for it.

    linear_run(x, packed)   →   tpp_linear_bias(x, blocks, bias)                                if blocks divide its outputs
                                contiguous(slice(tpp_linear_bias(x, with zeros, with zeros)))   if not
    """
    factor = constant(node, 2) if node.kind() == _ADD_RUN else None
    if len(output) not in (2, 3) or any(shape != output for shape in operands[1:]):
        return
    with graph.insert_point_guard(node):
        stored = weights.insert(node)
        if stored is None:
            return
        dtype, *parameters, filled = stored
        operator, after = _OPERATORS[dtype][node.kind()]
        options = [node.inputsAt(i) for i in range(1, node.inputsSize() - 1)]
        if operator == GELU and options[0].toIValue() == "tanh":
            operator = GELU_TANH
        arguments = [*(_contiguous(graph, value) for value in _operands(node)), *parameters]
        if node.kind() == _ADD_RUN:
            arguments.append(graph.insertConstant(1.0 if factor is None else float(factor)))
        made = insert(graph, operator, *arguments, None)
        if filled:
            made = _contiguous(graph, insert(graph, "aten::slice", made, -1, 0, output[-1], 1))
        if after is not None:
            made = insert(graph, after, made, *options)
    node.output().replaceAllUsesWith(made)
    node.destroy()


def _contiguous(graph: Graph, value: Value) -> Value:
    if value.node().kind() in _CONTIGUOUS:
        return value
    return insert(graph, "aten::contiguous", value, 0)  # torch.contiguous_format


def _unpacked(node: Node) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight and the bias of a packed layer."""
    weight, bias, _ = node.inputsAt(node.inputsSize() - 1).toIValue()._get_method("__getstate__")()
    return weight, bias


class _Weights:
    """The blocked weights and the bias of packed layers, each stored once however many layers share it.

    `preferred` is the size of blocks of outputs to try before the usual ones, or 0.
    """

    def __init__(self, graph: Graph, preferred: int) -> None:
        self._graph = graph
        self._preferred = preferred
        self._blocked: dict[tuple[bytes, torch.Size], torch.Tensor] = {}

    def insert(self, node: Node) -> tuple[torch.dtype, Value, Value, bool] | None:
        """The dtype of a packed layer's weights, constants for them and the bias, and whether there are outputs of zeros among
        them to fill the last block up; None if no kernel takes them.
        """
        weight, bias = _unpacked(node)
        several, of_inputs = _blocks(weight.dtype, len(weight))
        if self._preferred and several:
            several = (self._preferred, *several)
        outputs, inputs = _divisor(weight.shape[0], several), _divisor(weight.shape[1], of_inputs)
        missing = 0
        few = len(weight) <= _FEW
        # What a layer adds to has no room for more outputs.
        if not outputs and several and (few or weight.dtype == torch.float32) and node.kind() != _ADD_RUN:
            outputs = _FEW if few else min(several, key=lambda size: -len(weight) % size)
            missing = -len(weight) % outputs
        if not outputs or not inputs:
            return None
        digest = hashlib.sha256(weight.contiguous().view(torch.uint8).numpy().tobytes()).digest()
        key = digest, weight.shape  # those of zeros are alike
        if key not in self._blocked:
            self._blocked[key] = _in_blocks(F.pad(weight, (0, 0, 0, missing)), outputs, inputs)
        start = torch.empty(0, dtype=weight.dtype) if bias is None else F.pad(bias.to(weight.dtype), (0, missing))
        constants = (self._graph.insertConstant(each) for each in (self._blocked[key], start))
        return weight.dtype, *constants, missing > 0


def _blocks(dtype: torch.dtype, outputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of blocks of outputs and of inputs, for this CPU; none where oneDNN's kernels are better."""
    if dtype == torch.float32:
        return _WIDE if cpu_offers("AVX512") else _NARROW
    # libxsmm emulates what a CPU without these instructions lacks, at half of oneDNN's speed.
    tiles = torch.cpu._is_amx_tile_supported()
    if dtype != torch.bfloat16 or not (tiles or torch.cpu._is_avx512_bf16_supported()):
        return (), ()
    several, of_inputs = _BRAIN
    return ((_TILES, *several) if tiles and outputs >= _TILES * _BLOCKS_EACH * cpu_count() else several), of_inputs


def _divisor(size: int, sizes: tuple[int, ...]) -> int | None:
    return next((each for each in sizes if size % each == 0), None)


def shape_of(blocks: torch.Tensor) -> tuple[int, int]:
    """Outputs and inputs of the weight that was stored in blocks."""
    outputs = blocks.shape[0] * blocks.shape[3]
    return outputs, blocks.numel() // outputs


def cut_of(node: Node) -> Node | None:
    """What takes the zeros away with which a layer was filled up."""
    readers = [use.user for use in node.output().uses()] if node.kind().startswith(XSMM) else []
    return readers[0] if len(readers) == 1 and readers[0].kind() == "aten::slice" else None


def operands(node: Node) -> tuple[Value, Value, Value]:
    """What an operator of libxsmm multiplies, the blocks of the weight, and the bias."""
    weight = 2 if node.kind() == ADD else 1
    return node.inputsAt(0), node.inputsAt(weight), node.inputsAt(weight + 1)


def _in_blocks(weight: torch.Tensor, outputs: int, inputs: int) -> torch.Tensor:
    split: torch.Tensor = weight.reshape(weight.shape[0] // outputs, outputs, weight.shape[1] // inputs, inputs)
    if weight.dtype == torch.float32:
        return split.permute(0, 2, 3, 1).contiguous()
    pairs: torch.Tensor = split.unflatten(3, (inputs // 2, 2))
    return pairs.permute(0, 2, 3, 1, 4).contiguous()
