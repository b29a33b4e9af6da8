"""Linear layers on libxsmm's kernels, through what a compile makes of small modules."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import linear_layers
from torch import nn
from torch.nn import functional as F  # noqa: N812

from cpuc.compiler.benchmarking.machine import cpu_count
from cpuc.compiler.fusion import FusedGraph, Fusible, prepare
from cpuc.compiler.xsmm import XSMM

ROWS = (1, 2, 31, 63, 64, 65, 130, 256, 257, 300, 513)


class Layers(nn.Module):
    """A layer of 96 features to 64, and what is done with its result."""

    def __init__(self, after: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], bias: bool = True) -> None:
        super().__init__()
        self.layer, self.after = nn.Linear(96, 64, bias=bias), after

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        # Sums with an input of the graph are not fused: it belongs to the caller.
        return self.after(self.layer(x), other * 2)


AFTER: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], str]] = {
    "nothing": (lambda y, _: y, "_bias"),
    "relu": (lambda y, _: F.relu(y), "_relu"),
    "silu": (lambda y, _: F.silu(y), "_bias"),
    "gelu": (lambda y, _: F.gelu(y), "_bias"),
    "gelu tanh": (lambda y, _: F.gelu(y, approximate="tanh"), "_bias"),
    "sum": (lambda y, other: y + other, "_add"),
    "scaled sum": (lambda y, other: torch.add(y, other, alpha=3), "_add"),
}


def named(*tensors: torch.Tensor) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in zip(["x", "other"], tensors, strict=False)}


def prepared(module: nn.Module, *tensors: torch.Tensor) -> Fusible:
    with torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(module.eval(), tensors))
    return prepare(traced, list(named(*tensors)), named(*tensors))


def fused(module: nn.Module, *tensors: torch.Tensor) -> FusedGraph:
    fusible = prepared(module, *tensors)
    return fusible.build(fusible.defaults)


def packed(module: nn.Module, *tensors: torch.Tensor) -> FusedGraph:
    """In MKL's form, packed for the number of rows of `tensors`."""
    fusible = prepared(module, *(tensor[:, :5].contiguous() for tensor in tensors))
    fusible.expect(named(*tensors))
    return fusible.build(replace(fusible.defaults, layers="mkl"))


def check(graph: FusedGraph, module: nn.Module, *tensors: torch.Tensor) -> None:
    """The stored graph gives what eager gives, in float32's digits."""
    loaded = torch.jit.load(io.BytesIO(graph.saved()))
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        torch.testing.assert_close(loaded(*tensors), module(*tensors), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", AFTER)
def test_whatever_follows_at_every_number_of_rows(name: str, bias: bool) -> None:
    torch.manual_seed(0)
    after, suffix = AFTER[name]
    module = Layers(after, bias)
    graph = fused(module, torch.randn(3, 5, 96), torch.randn(3, 5, 64))
    assert {kind: n for kind, n in graph.fused.items() if "linear" in kind} == {XSMM + suffix: 1}
    for rows in ROWS:
        check(graph, module, torch.randn(1, rows, 96), torch.randn(1, rows, 64))
    check(graph, module, torch.randn(7, 41, 96), torch.randn(7, 41, 64))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", AFTER)
def test_packed_for_a_number_of_rows_and_used_with_any(name: str, bias: bool) -> None:
    torch.manual_seed(0)
    module = Layers(AFTER[name][0], bias)
    graph = packed(module, torch.randn(3, 43, 96), torch.randn(3, 43, 64))
    assert graph.fused == {"ipex_prepack::mkl_sgemm_run": 1}
    for rows, length in ((3, 43), (1, 129), (1, 1), (7, 41)):
        check(graph, module, torch.randn(rows, length, 96), torch.randn(rows, length, 64))


def test_packed_on_any_number_of_threads() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(96, 400), nn.GELU(), nn.Linear(400, 96))
    x = torch.randn(3, 40, 96)
    loaded = torch.jit.load(io.BytesIO(packed(module, x).saved()))

    def run(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            return loaded(x)

    with torch.inference_mode():
        expected = module(x)
    usual = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(4) as pool:
            for y in pool.map(run, [1, 1, 2, 3] * 10):
                torch.testing.assert_close(y, expected, rtol=1e-5, atol=5e-6)
    finally:
        torch.set_num_threads(usual)


def test_inputs_need_not_be_contiguous() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(96, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.transpose(1, 2))

    module = Turned()
    graph = fused(module, torch.randn(2, 96, 7))
    assert XSMM + "_bias" in graph.fused
    check(graph, module, torch.randn(2, 96, 7))
    check(graph, module, torch.randn(3, 96, 70))
    check(graph, module, torch.randn(96, 5, 3).permute(1, 0, 2))


def test_a_sum_with_another_shape_is_the_same_sum() -> None:
    module = Layers(lambda y, other: y + other)
    graph = fused(module, torch.randn(3, 5, 96), torch.randn(5, 64))
    check(graph, module, torch.randn(2, 6, 96), torch.randn(6, 64))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["nothing", "relu", "gelu", "sum"])
@pytest.mark.parametrize("outputs", [1, 2, 15, 17, 33, 100])
def test_outputs_that_fill_no_block(outputs: int, name: str, bias: bool) -> None:
    torch.manual_seed(0)
    after, suffix = AFTER[name]
    module = Layers(after, bias)
    module.layer = nn.Linear(96, outputs, bias=bias)
    graph = fused(module, torch.randn(3, 5, 96), torch.randn(3, 5, outputs))
    # The sum of a layer and of what has no room for more outputs is oneDNN's.
    operator = "ipex_prepack::linear_add_run" if name == "sum" else XSMM + suffix
    assert {kind: n for kind, n in graph.fused.items() if "linear" in kind} == {operator: 1}
    assert linear_layers(graph.graph) == 1
    for rows in ROWS:
        check(graph, module, torch.randn(1, rows, 96), torch.randn(1, rows, outputs))


@pytest.mark.parametrize(("shape", "outputs"), [((2, 3, 5, 96), 64), ((2, 5, 97), 64)])
def test_other_axes_and_sizes_stay_with_onednn(shape: tuple[int, ...], outputs: int) -> None:
    module = nn.Sequential(nn.Linear(shape[-1], outputs))
    graph = fused(module, torch.randn(shape))
    assert {kind: n for kind, n in graph.fused.items() if "linear" in kind} == {"ipex_prepack::linear_run": 1}
    check(graph, module, torch.randn(4, *shape[1:]))


def test_weights_that_layers_share_are_stored_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(256, 256)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(4):
                x = torch.tanh(self.layer(x).sin())
            return x

    module = Shared()
    graph = fused(module, torch.randn(2, 5, 256))
    assert linear_layers(graph.graph) == graph.fused[XSMM + "_bias"] == 4
    assert len(graph.saved()) < 1.2 * 256 * 257 * 4
    check(graph, module, torch.randn(3, 6, 256))


class Brain(nn.Module):
    """`module` in bfloat16, between float32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.bfloat16()

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.module(x.bfloat16(), other.bfloat16()).float()


BRAIN = {**{name: suffix for name, (_, suffix) in AFTER.items()}, "gelu": "_gelu", "gelu tanh": "_gelu_tanh", "silu": "_silu"}


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="needs a CPU with bfloat16 instructions")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", BRAIN)
def test_bfloat16_at_every_number_of_rows(name: str, bias: bool) -> None:
    torch.manual_seed(0)
    module = Layers(AFTER[name][0], bias)
    original = copy.deepcopy(module)
    graph = fused(Brain(module), torch.randn(3, 5, 96), torch.randn(3, 5, 64))
    assert linear_layers(graph.graph) == graph.fused[XSMM + BRAIN[name]] == 1
    loaded = torch.jit.load(io.BytesIO(graph.saved()))
    for rows in ROWS:
        x, other = torch.randn(1, rows, 96), torch.randn(1, rows, 64)
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            torch.testing.assert_close(loaded(x, other), original(x, other), rtol=0.02, atol=0.02)


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="needs a CPU with bfloat16 instructions")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("outputs", "operator"), [(1, XSMM + "_bias"), (15, XSMM + "_bias"), (17, "ipex_prepack::linear_run")])
def test_in_bfloat16_only_layers_of_few_outputs_are_filled_up(outputs: int, operator: str, bias: bool) -> None:
    torch.manual_seed(0)
    module = Layers(AFTER["nothing"][0], bias)
    module.layer = nn.Linear(96, outputs, bias=bias)
    original = copy.deepcopy(module)
    graph = fused(Brain(module), torch.randn(3, 5, 96), torch.randn(3, 5, outputs))
    assert {kind: n for kind, n in graph.fused.items() if "linear" in kind} == {operator: 1}
    for rows in ROWS:
        x, other = torch.randn(1, rows, 96), torch.randn(1, rows, outputs)
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            torch.testing.assert_close(graph.program(x, other), original(x, other), rtol=0.02, atol=0.02)


class Ignoring(nn.Module):
    """`module` of the first of two tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.module(x) + other


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="needs a CPU with AMX")
@pytest.mark.parametrize(("outputs", "block"), [(128 * 3 * cpu_count(), 128), (128 * (3 * cpu_count() - 1), 64)])
def test_blocks_are_large_where_each_cpu_has_several(outputs: int, block: int) -> None:
    torch.manual_seed(0)
    module = nn.Linear(64, outputs)
    original = copy.deepcopy(module)
    one = torch.zeros(1)
    graph = fused(Brain(Ignoring(module)), torch.randn(3, 5, 64), one)
    (layer,) = graph.graph.findAllNodes(XSMM + "_bias")
    assert layer.inputsAt(1).toIValue().shape[3] == block
    x = torch.randn(2, 70, 64)
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        program = torch.jit.load(io.BytesIO(graph.saved()))
        torch.testing.assert_close(program(x, one), original(x), rtol=0.02, atol=0.02)
