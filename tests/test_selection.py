"""Which layers stay in floating point, by the error that each makes alone and the work that it saves."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping

import pytest
import torch

from cpuc.compiler.quantization.layers import Compute, Layer
from cpuc.compiler.quantization.rounding import Weight
from cpuc.compiler.quantization.solve import Solution

quantize = importlib.import_module("cpuc.compiler.quantization.quantize")


class Additive:
    """A measurement whose layers' squared errors add up."""

    size = 1.0

    def __init__(self, alone: dict[Layer, float]) -> None:
        self.alone = alone

    def error(self, computes: Mapping[Layer, Compute]) -> float:
        return math.sqrt(sum(self.alone[layer] ** 2 for layer, compute in computes.items() if compute != layer.exact))

    def errors(self, computes: Mapping[Layer, Compute]) -> dict[Layer, float]:
        return {layer: self.error({layer: compute}) for layer, compute in computes.items()}


def selected(
    alone: dict[str, float], weights: dict[str, int], groups: list[str], limit: float, scale: float | None = 1.0
) -> set[str]:
    """The names of the layers that stay in floating point; each of `groups` are layers that read the same."""
    layers = {name: Layer(name, torch.zeros(1, count), None) for name, count in weights.items()}
    solutions = {}
    for group in groups:
        solution = Solution(
            {layers[name]: Weight(torch.zeros(1, 1, dtype=torch.int8), torch.ones(1)) for name in group}, {}, scale
        )
        solutions.update({layers[name]: solution for name in group})
    measurement = Additive({layers[name]: error for name, error in alone.items()})
    return {layer.name for layer in quantize._select(solutions, measurement, limit, torch.float32)}


def test_layers_go_back_if_others_make_room() -> None:
    # By error for its work `b` goes first, which is not enough, and `a` then would have been.
    assert selected({"a": 0.6, "b": 0.1, "c": 0.2}, {"a": 100, "b": 1, "c": 1000}, ["a", "b", "c"], 0.235) == {"a"}


@pytest.mark.parametrize(("scale", "kept"), [pytest.param(1.0, {"c"}, id="static"), pytest.param(None, {"a"}, id="dynamic")])
def test_a_layer_apart_costs_a_call(scale: float | None, kept: set[str]) -> None:
    """Of layers that read the same, one that leaves takes a call more, if they were one call."""
    alone, weights = {"a": 0.5, "b": 0.0, "c": 0.51}, {"a": 147_000, "b": 147_000, "c": 200_000}
    assert selected(alone, weights, ["ab", "c"], 0.6, scale) == kept
