"""Rounding of weights: int8 with a scale for each output channel, so that the layer's outputs change least."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LEVELS = 127
# CPUs without VNNI add products in pairs of neighbours, in 16 bits with saturation (``vpmaddubsw``). 255 · (|a| + |b|) fits if
# |a| + |b| is no more than this, where a and b have the same sign: then every CPU gives the same, exact sums.
_PAIR = 128
# Two neighbours at the largest weight fit with twice its own scale.
_WIDER = (1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0)
# Columns that are rounded before the others are told of their errors.
_BLOCK = 128
# Of the mean of the diagonal, added to it: directions that the sample does not show are not free to err in.
_DAMPING = 0.01


@dataclass(frozen=True, eq=False)
class Weight:
    """int8 `values` [out, in] and float32 `scales` [out]: the layer's weight is about values · scales."""

    values: torch.Tensor
    scales: torch.Tensor

    def dequantized(self) -> torch.Tensor:
        return self.values.float() * self.scales[:, None]


def round_nearest(weight: torch.Tensor) -> Weight:
    """Each value of a float32 weight [out, in] to its nearest level, as far as its neighbour lets it."""
    return _nearest(weight, _scales(weight))


def round_weight(weight: torch.Tensor, factor: torch.Tensor, order: torch.Tensor) -> Weight:
    """Round a float32 weight [out, in] column by column; each column's errors are made up for by those that follow.

    That is GPTQ (Frantar et al., 2023, algorithm 1). `factor` and `order` are what `compensation` gives.
    """
    scales = _scales(weight)
    columns = (weight / scales[:, None]).t()[order].contiguous()
    count = len(columns)
    rounded = torch.zeros_like(columns)
    place = torch.empty_like(order)
    place[order] = torch.arange(count)
    # Where each column's neighbour stands, and whether it has been rounded by then.
    partners = [int(place[k ^ 1]) if k ^ 1 < count else count for k in order.tolist()]
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = torch.zeros(end - start, columns.shape[1])
        for i in range(start, end):
            partner = rounded[partners[i]] if partners[i] < i else None
            rounded[i] = _within(columns[i].round(), partner)
            errors[i - start] = (columns[i] - rounded[i]) / factor[i, i]
            columns[i + 1 : end] -= factor[i, i + 1 : end, None] * errors[i - start]
        columns[end:] -= factor[start:end, end:].t() @ errors
    return Weight(rounded[place].t().to(torch.int8).contiguous(), scales)


def compensation(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `round_weight` needs to know of the inputs: the upper Cholesky factor of their damped inverse, and an order.

    Columns with large activations come first; row i of the factor tells how columns after i make up for an error in i.

    Args:
        covariance: [in, in], any multiple of it, finite.
    """
    order = covariance.diagonal().argsort(descending=True)
    wide = covariance[order][:, order].double()
    damping = _DAMPING * wide.diagonal().mean().clamp(min=1e-12)
    while True:
        lower, failed = torch.linalg.cholesky_ex(wide + damping * torch.eye(len(wide)))
        if not failed:
            break
        damping *= 10  # rounding has made the smallest eigenvalues negative
    factor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return factor.float(), order


def _nearest(weight: torch.Tensor, scales: torch.Tensor) -> Weight:
    values = (weight / scales[:, None]).round().clamp(-LEVELS, LEVELS)
    count = values.shape[1] // 2 * 2
    values[:, 1:count:2] = _within(values[:, 1:count:2], values[:, 0:count:2])
    return Weight(values.to(torch.int8), scales)


def _scales(weight: torch.Tensor) -> torch.Tensor:
    """Of each channel the scale that loses least: the finest that holds the largest weight cuts large neighbours more."""
    finest = weight.abs().amax(1).clamp(min=1e-12) / LEVELS
    tried = torch.stack([finest * part for part in _WIDER])
    losses = torch.stack([(_nearest(weight, scales).dequantized() - weight).square().sum(1) for scales in tried])
    return tried.gather(0, losses.argmin(0, keepdim=True)).squeeze(0)


def _within(column: torch.Tensor, partner: torch.Tensor | None) -> torch.Tensor:
    """A column's levels, within int8 and what its neighbour leaves (see `_PAIR`)."""
    if partner is None:
        return column.clamp(-LEVELS, LEVELS)
    low = (-_PAIR - partner.clamp(max=0)).clamp(min=-LEVELS)
    high = (_PAIR - partner.clamp(min=0)).clamp(max=LEVELS)
    return torch.minimum(torch.maximum(column, low), high)
