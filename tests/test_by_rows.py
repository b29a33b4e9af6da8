"""Layers in bfloat16 on a CPU with AMX: which kernel computes them, and that both give the same."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_xsmm import AFTER, BRAIN, Brain, Layers, named
from torch import nn

from cpuc.compiler.by_rows import use_both
from cpuc.compiler.fusion import FusedGraph, fuse, prepare

pytestmark = pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="needs a CPU with AMX")
FEW, MANY = "torch_ipex::tpp_", "ipex_prepack::linear_"
# Of 256 features, 144 rows are the first that are many.
ROWS = ((1, FEW), (143, FEW), (144, MANY), (145, MANY), (700, MANY))


def fused(module: nn.Module, *tensors: torch.Tensor) -> FusedGraph:
    with torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(module.eval(), tensors))
    return fuse(traced, list(named(*tensors)), named(*tensors))


def loaded(graph: FusedGraph) -> Any:
    return torch.jit.load(io.BytesIO(graph.saved()))


def run(module: Any, *tensors: torch.Tensor) -> tuple[Any, set[str]]:
    """What a module gives, and the operators that computed its layers."""
    with torch.inference_mode(), torch.jit.optimized_execution(False), torch.profiler.profile() as profile:
        outputs = module(*tensors)
    return outputs, {event.key for event in profile.key_averages() if event.key.startswith((FEW, MANY))}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", BRAIN)
def test_rows_decide_and_the_result_is_the_same(name: str, bias: bool) -> None:
    torch.manual_seed(0)
    module = Layers(AFTER[name][0], bias)
    module.layer = nn.Linear(256, 384, bias=bias)
    original = copy.deepcopy(module)
    program = loaded(fused(Brain(module), torch.randn(3, 5, 256), torch.randn(3, 5, 384)))
    for rows, kernel in ROWS:
        x, other = torch.randn(1, rows, 256), torch.randn(1, rows, 384)
        outputs, kernels = run(program, x, other)
        assert all(each.startswith(kernel) for each in kernels)
        assert len(kernels) == 1
        torch.testing.assert_close(outputs, original(x, other), rtol=0.02, atol=0.02)


# What is made of a sum, and of what was added to.
readers = pytest.mark.parametrize(
    ("after", "in_place"),
    [
        (lambda total, _: (total,), True),
        (lambda total, start: (total, start), False),
        (lambda total, start: (total * start,), False),
        (lambda total, start: (total, start.transpose(0, 1)), False),
    ],
    ids=["nobody", "the caller", "an operator", "a view"],
)


class Residual(nn.Module):
    """A layer that adds to what a norm gave, in bfloat16, and what else is made of that."""

    def __init__(self, after: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]) -> None:
        super().__init__()
        self.norm, self.after = nn.LayerNorm(256), after
        self.up, self.down = nn.Linear(256, 512), nn.Linear(512, 256)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        start = self.norm(x.bfloat16() if self.up.weight.dtype == torch.bfloat16 else x)
        return tuple(each.float() for each in self.after(self.down(torch.relu(self.up(start))) + start, start))


@readers
def test_a_sum_takes_the_memory_of_what_nobody_reads_afterwards(after: Any, in_place: bool) -> None:
    torch.manual_seed(0)
    original = Residual(after)
    graph = fused(copy.deepcopy(original).bfloat16(), torch.randn(3, 5, 256))
    assert ("ipex_prepack::linear_add_run" in graph.fused) == in_place
    program = loaded(graph)
    for rows, _ in ROWS:
        x = torch.randn(1, rows, 256)
        for actual, expected in zip(run(program, x)[0], original(x), strict=True):
            torch.testing.assert_close(actual, expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("read", [True, False])
def test_what_is_read_after_a_sum_is_left_as_it_was(read: bool) -> None:
    """IPEX adds to nothing that is read afterwards; passes that come after its own might."""
    tensors = [torch.randn(3, 5, 256)]
    with torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(Residual(lambda total, _: (total,)).bfloat16().eval(), tensors))
    fusible = prepare(traced, ["x"], named(*tensors))
    graph = fusible.build(replace(fusible.defaults, layers="libxsmm")).graph.copy()
    if read:
        graph.registerOutput(graph.findAllNodes("torch_ipex::tpp_linear_add")[0].inputsAt(1))
    assert use_both(graph) is not None
    assert len(graph.findAllNodes("ipex_prepack::linear_add_run")) == (0 if read else 1)


def test_a_layer_adds_to_what_it_reads() -> None:
    class Itself(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.LayerNorm(256), nn.Linear(256, 256)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            start = self.norm(x.to(self.layer.weight.dtype))
            return (self.layer(start) + start).float()

    torch.manual_seed(0)
    original = Itself()
    program = loaded(fused(copy.deepcopy(original).bfloat16(), torch.randn(3, 5, 256)))
    for rows, _ in ROWS:
        x = torch.randn(1, rows, 256)
        torch.testing.assert_close(run(program, x)[0], original(x), rtol=0.03, atol=0.03)


def test_joined_layers_that_share_weights_are_packed_once() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(256, 256) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.bfloat16()
            for _ in range(4):
                q, k, v = (part(x).view(*x.shape[:2], 4, 64).transpose(1, 2) for part in self.parts)
                x = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return x.float()

    torch.manual_seed(0)
    graph = fused(Attention().bfloat16(), torch.randn(3, 5, 256))
    assert graph.fused["torch_ipex::tpp_linear_bias"] == 4
    program = loaded(graph)
    assert len(program.packed) == 1
    assert run(program, torch.randn(1, 300, 256))[1] == {"ipex_prepack::linear_run"}


def test_weights_are_stored_once_and_packed_once_however_many_layers_share_them() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.other = nn.Linear(256, 256), nn.Linear(256, 256)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.shared(x.bfloat16()))
            x = torch.relu(self.other(x))
            return self.shared(x).float()

    torch.manual_seed(0)
    graph = fused(Twice().bfloat16(), torch.randn(3, 5, 256))
    weights = 2 * 256 * 256 * 2
    assert weights < len(graph.saved()) < 1.2 * weights
    assert len(loaded(graph).packed) == 2
    again = loaded(graph)
    buffer = io.BytesIO()
    torch.jit.save(again, buffer)
    x = torch.randn(1, 300, 256)
    restored = torch.jit.load(io.BytesIO(buffer.getvalue()))
    torch.testing.assert_close(run(restored, x)[0], run(again, x)[0], rtol=0, atol=0)
