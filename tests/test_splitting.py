"""Neurons that give much more than all others have copies, so that the others keep their digits in int8."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import here
from test_int8 import in_int8
from torch import nn
from torch.nn import functional as F  # noqa: N812

from cpuc.compiler.quantization import solve
from cpuc.compiler.quantization.rounding import Weight
from cpuc.compiler.quantization.splitting import split

quantize = importlib.import_module("cpuc.compiler.quantization.quantize")
NEURONS = 1024
Activation = Callable[[torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class Block(nn.Module):
    """Two layers with an activation between them, and the `further` readers of what it gives."""

    def __init__(self, activation: Activation, further: int = 0) -> None:
        super().__init__()
        self.activation = activation
        self.up, self.down = nn.Linear(64, NEURONS), nn.Linear(NEURONS, 64)
        self.others = nn.ModuleList(nn.Linear(NEURONS, 64) for _ in range(further))
        with torch.no_grad():
            self.up.weight *= 3
            self.up.weight[7] *= 8

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        inner = self.activation(self.up(rows))
        return self.down(inner) + sum(torch.sin(other(inner)) for other in self.others)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return math.sqrt(float((found - expected).square().mean() / expected.square().mean()))


def block(activation: str, further: int = 0) -> tuple[Block, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    module, rows = Block(ACTIVATIONS[activation], further).eval(), torch.randn(20, 9, 64)
    with torch.no_grad():
        return module, rows, module(rows)


def widest(graph: Any) -> int:
    """The most outputs that a layer of the graph has."""
    loaded = torch.jit.load(io.BytesIO(graph.saved())).inlined_graph  # which keeps its nodes alive
    return max(int(node.inputsAt(4).toIValue().numel()) for node in loaded.findAllNodes("onednn::qlinear_pointwise"))


def multiplications(graph: Any) -> int:
    loaded = torch.jit.load(io.BytesIO(graph.saved())).inlined_graph
    return len(loaded.findAllNodes("aten::mul"))


@pytest.mark.parametrize("kernels", ["onednn", "fbgemm"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_outlier_costs_nothing(activation: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither digits of the others, nor the passes that smoothing would take."""
    module, rows, expected = block(activation)
    graph, found = in_int8(module, rows, "int8-fp32", kernels)
    monkeypatch.setattr(solve, "split", lambda *_: None)
    smoothed, without = in_int8(module, rows, "int8-fp32", kernels)
    assert error(found, expected) < 0.02
    assert error(found, expected) < 1.1 * error(without, expected)
    assert [multiplications(each) for each in (graph, smoothed)] == [0, 1]


def test_copies_stand_where_they_are_read() -> None:
    """Not where another layer would read the neurons too, nor in what is scaled while it runs."""
    for further, precision, expected in ((0, "int8-fp32", 16), (1, "int8-fp32", 0), (0, "int8-dynamic-fp32", 0)):
        module, rows, exact = block("gelu", further)
        graph, found = in_int8(module, rows, precision)
        assert widest(graph) == NEURONS + expected
        assert error(found, exact) < 0.1


@pytest.mark.parametrize("precision", ["int8-fp32", "int8"])
@pytest.mark.parametrize("layer", ["up", "down"])
def test_one_of_the_two_in_floating_point(layer: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, rows, expected = block("gelu")
    monkeypatch.setattr(
        quantize, "_select", lambda solutions, *_: {each: 0.0 for each in solutions if each.name == f"{layer}.weight"}
    )
    graph, found = in_int8(module, rows, here(precision))
    loaded = torch.jit.load(io.BytesIO(graph.saved())).inlined_graph
    constants = [node.output().toIValue() for node in loaded.findAllNodes("prim::Constant")]
    lengths = {len(each) for each in constants if isinstance(each, torch.Tensor) and each.dim() == 1}
    # Blocks of 64 are libxsmm's. In floating point nothing is cut off, so that there must be no copies.
    assert lengths - {64} == {"up": {NEURONS + 64}, "down": {NEURONS}}[layer]
    assert error(found, expected) < 0.02


class Chain(nn.Module):
    """Three layers, of which the second reads copies and has some itself, and another layer that reads what the first does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Block(F.gelu)
        self.second, self.third, self.sibling = nn.Linear(NEURONS, NEURONS), nn.Linear(NEURONS, 64), nn.Linear(64, 64)
        with torch.no_grad():
            self.second.weight[9] *= 8

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        inner = F.gelu(self.second(F.gelu(self.first.up(rows))))
        return self.third(inner) + torch.sin(self.sibling(rows))


def test_a_layer_that_has_copies_and_reads_some() -> None:
    torch.manual_seed(0)
    module, rows = Chain().eval(), torch.randn(20, 9, 64)
    graph, found = in_int8(module, rows)
    loaded = torch.jit.load(io.BytesIO(graph.saved())).inlined_graph
    outputs = [int(node.inputsAt(4).toIValue().numel()) for node in loaded.findAllNodes("onednn::qlinear_pointwise")]
    assert sorted(outputs) == [64, 64, NEURONS + 16, NEURONS + 16]
    with torch.no_grad():
        assert error(found, module(rows)) < 0.03


def test_together_they_give_what_the_neuron_gives() -> None:
    highest = torch.rand(NEURONS, generator=torch.Generator().manual_seed(0))
    highest[[3, 4, 500]] = torch.tensor([2.5, 1.7, 3.4])
    copies = split(highest, "aten::relu")
    assert copies is not None and copies.limit < 1.9
    weight = torch.randint(-127, 128, (5, NEURONS), dtype=torch.int8)
    columns, x = copies.columns(Weight(weight, torch.ones(5))).values, torch.rand(40, NEURONS) * highest
    assert torch.allclose(copies.widened(x).clamp(max=copies.limit) @ columns.float().t(), x @ weight.float().t(), atol=1e-2)
    assert len(copies.sources) % 16 == 0
    # No two copies are neighbours, whose weights would have to share sixteen bits where there is no VNNI.
    assert not (copies.read[NEURONS:-1] & copies.read[NEURONS + 1 :]).any()


def test_a_limit_that_is_within_gelus_curve() -> None:
    highest = torch.cat([torch.full((NEURONS - 1,), 0.5), torch.full((1,), 3.0)])
    assert split(highest, "aten::gelu") is None
    assert split(highest, "aten::relu") is not None


@pytest.mark.parametrize(
    "highest",
    [
        pytest.param(torch.ones(NEURONS), id="none is larger"),
        pytest.param(torch.cat([torch.ones(NEURONS // 2), torch.full((NEURONS // 2,), 9.0)]), id="too many are"),
        pytest.param(torch.cat([torch.zeros(NEURONS - 1), torch.ones(1)]), id="one gives anything"),
        pytest.param(
            torch.cat([torch.full((NEURONS - 1,), 1e-9), torch.ones(1)]), id="one gives a thousand million times as much"
        ),
        pytest.param(torch.cat([torch.ones(63), torch.full((1,), 9.0)]), id="there are few"),
    ],
)
def test_no_copies(highest: torch.Tensor) -> None:
    assert split(highest, "aten::gelu") is None


def test_biases_make_up_for_what_copies_lack() -> None:
    """Copies give less than the neuron where GELU's curves meet, on average of all rows too."""
    torch.manual_seed(0)
    module, rows = Block(F.gelu).eval(), torch.randn(60, 9, 64)
    with torch.no_grad():
        module.down.weight[:, 7] = 0.2
        expected = module(rows)
    _, found = in_int8(module, rows)
    differences = (found - expected).flatten(0, 1)
    assert differences.mean(0).abs().mean() < 0.1 * differences.square().mean().sqrt()
