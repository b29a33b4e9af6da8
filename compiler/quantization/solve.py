"""The arithmetic of int8: how weights and activations are rounded, and which scales lose least."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cpuc.compiler.quantization.layers import Group, Layer
from cpuc.compiler.quantization.rounding import LEVELS, Weight, compensation, round_nearest, round_weight
from cpuc.compiler.quantization.splitting import Split, split

# SmoothQuant's migration strengths (Xiao et al., 2023, section 4). With 1.0 each channel would have its own range: on texts
# unlike the sample one or another then exceeds it.
_STRENGTHS = (0.4, 0.55, 0.7, 0.85)
# Smoothing has to leave no more than a part of the loss, by what it may cost: nothing if other weights can take it in, see
# `smoothing`; else a pass over the activation (without any, MiniLM-L6 with random weights is 1.07 times as fast at 16 tokens
# and 1.01 at 8 x 128: EPYC, Zen 4); and three passes if that could have come in int8 from the layer before.
_FREE, _WORTHWHILE, _ACTIVATED = 0.8, 0.5, 0.4
# Copies of neurons have to leave no more than this part of it.
_NARROWER = 0.8


@dataclass(frozen=True, eq=False)
class Solution:
    """How a group is computed in int8.

    Attributes:
        weights: of its layers; smoothing is in them.
        biases: of its layers, float32 [out]: the original ones, and what makes up for the mean error. They and the scales of
            weights may have taken the smoothing of a later group.
        scale, zero_point: of the activation, which is uint8; None if they are found while running, for each row.
        smoothing: [in], what the activation is multiplied with first; None for ones.
        copies: of the neurons that the only layer reads, whose columns its weight has too; None if there are none. The layer
            that they belong to has to be widened.
    """

    weights: Mapping[Layer, Weight]
    biases: Mapping[Layer, torch.Tensor]
    scale: float | None = None
    zero_point: int = 0
    smoothing: torch.Tensor | None = None
    copies: Split | None = None

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [..., in] as int8 arithmetic sees it, in float32, with the copies."""
        if self.smoothing is not None:
            x = x * self.smoothing
        if self.copies is not None:
            x = self.copies.widened(x)
        if self.scale is None:
            scales = row_scales(x)
            return (x / scales).round().clamp(-LEVELS, LEVELS) * scales
        levels = (x / self.scale).round() + self.zero_point
        return (levels.clamp(0, 255) - self.zero_point) * self.scale


@dataclass(frozen=True, eq=False)
class Observation:
    """What a group's input was on the calibration sample.

    Attributes:
        rows: some of its rows [rows, in].
        mean, covariance: [in] and [in, in], over all rows.
        lowest, highest: [in], the extremes of each channel over all rows.
    """

    rows: torch.Tensor
    mean: torch.Tensor
    covariance: torch.Tensor
    lowest: torch.Tensor
    highest: torch.Tensor

    @property
    def finite(self) -> bool:
        return all(bool(each.isfinite().all()) for each in (self.mean, self.covariance, self.lowest, self.highest))


def row_scales(x: torch.Tensor) -> torch.Tensor:
    """The scale of each row of x [..., in] for symmetric int8: [..., 1]."""
    return x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LEVELS


def solve_dynamic(group: Group, seen: Observation) -> Solution:
    """Activations are scaled row by row while running: only the weights are decided now."""
    return _rounded_well(group, seen, Solution({}, {}))


def solve_static(group: Group, seen: Observation) -> Solution:
    """The scales that lose least of the layers' outputs on the observed rows, of those that cut nothing off.

    A narrower range would lose less on most rows, but all of what the few with the largest values are for: attention looks for
    separators by them. With ranges chosen by such means, the keys of examples/minilm-qa alone put its outputs off by 2.5 %, and
    by 0.4 % with whole ones.
    """
    exact = {layer: seen.rows @ layer.weight.t() for layer in group.layers}

    def loss(solution: Solution) -> float:
        """Mean squared error of the outputs relative to their size, summed over the layers."""
        rounded = solution.rounded(seen.rows)
        total = 0.0
        for layer, weight in solution.weights.items():
            error = rounded @ weight.dequantized().t() - exact[layer]
            total += float(error.square().mean() / exact[layer].square().mean().clamp(min=1e-12))
        return total

    whole = _widest(group, seen, None)
    narrow = _split(group, seen, whole)
    plain = narrow if narrow is not whole and loss(narrow) < _NARROWER * loss(whole) else whole
    best = min((_widest(group, seen, _smoothing(group, seen, strength)) for strength in _STRENGTHS), key=loss)
    part = _FREE if group.free else _ACTIVATED if group.activation else _WORTHWHILE
    return _rounded_well(group, seen, best if loss(best) < part * loss(plain) else plain)


def _rounded_well(group: Group, seen: Observation, solution: Solution) -> Solution:
    """The same with weights that are rounded for what the layers will read.

    The mean of that is left to the bias, which makes up for it exactly: weights need only care for what varies.
    """
    factors = _factors(seen, solution.smoothing)
    covariance = factors[:, None] * seen.covariance * factors
    fitting = compensation(covariance)
    weights = {layer: round_weight(layer.weight / factors, *fitting) for layer in group.layers}
    mean = seen.mean * factors
    biases = {}
    for layer, weight in weights.items():
        error = layer.weight @ seen.mean - weight.dequantized() @ mean
        biases[layer] = error if layer.bias is None else layer.bias + error
    if solution.copies is not None:
        for layer, weight in weights.items():
            weights[layer] = wide = solution.copies.columns(weight)
            error = seen.rows @ weight.dequantized().t() - solution.rounded(seen.rows) @ wide.dequantized().t()
            biases[layer] += error.mean(0)
    return dataclasses.replace(solution, weights=weights, biases=biases)


def _factors(seen: Observation, smoothing: torch.Tensor | None) -> torch.Tensor:
    return torch.ones_like(seen.lowest) if smoothing is None else smoothing


def _smoothing(group: Group, seen: Observation, strength: float) -> torch.Tensor:
    """What moves outliers of activations into the weights (SmoothQuant, equation 4): [in], to multiply activations with."""
    columns = torch.stack([layer.weight.abs().amax(0) for layer in group.layers]).amax(0).clamp(min=1e-5)
    peaks = torch.maximum(-seen.lowest, seen.highest).clamp(min=1e-5)
    factors = peaks**strength / columns ** (1 - strength)
    return factors.log().mean().exp() / factors


def _widest(group: Group, seen: Observation, smoothing: torch.Tensor | None) -> Solution:
    """The solution with this smoothing whose range clips nothing that was observed."""
    factors = _factors(seen, smoothing)
    weights = {layer: round_nearest(layer.weight / factors) for layer in group.layers}
    scale, zero_point = _range(float((seen.lowest * factors).min()), float((seen.highest * factors).max()))
    return Solution(weights, {}, scale, zero_point, smoothing)


def _split(group: Group, seen: Observation, solution: Solution) -> Solution:
    """The same with copies of neurons that give more than most, if there are such."""
    copies = split(seen.highest, group.activation) if group.maker and group.activation else None
    if copies is None:
        return solution
    scale, zero_point = _range(float(seen.lowest.min()), copies.limit)
    if zero_point > LEVELS:  # most of the range is below zero, where there is nothing to gain
        return solution
    scale = copies.limit / (255 - zero_point)  # the limit is the highest level
    weights = {layer: copies.columns(weight) for layer, weight in solution.weights.items()}
    return Solution(weights, {}, scale, zero_point, copies=copies)


def _range(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of uint8 from `low` to `high`; zero itself is always exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, 1e-12)
    return scale, round(-low / scale)
