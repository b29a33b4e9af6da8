"""Attention in one kernel: IPEX's, with every mask that torch's takes, or torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import attentions, needs_avx512

from cpuc.compiler.flash import ATTENTION, KERNEL
from cpuc.compiler.fusion import FusedGraph, fuse

LENGTH = 96  # enough scores for attention by products too
HIDDEN = torch.rand(2, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.4
# Rows without a key: what attends there is never read, but must not become NaN for those who add it up.
HIDDEN[:, :, 5] = True
MASKS = {
    "truth": ~HIDDEN,
    "of every head": ~HIDDEN.expand(2, 4, LENGTH, LENGTH),
    "of keys": ~HIDDEN[:, :, :1],
    "infinite": torch.zeros(HIDDEN.shape).masked_fill(HIDDEN, -math.inf),
    "lowest": torch.zeros(HIDDEN.shape).masked_fill(HIDDEN, torch.finfo(torch.float32).min),
    "two axes": torch.zeros(LENGTH, LENGTH).masked_fill(HIDDEN[0, 0], -math.inf),
    "three axes": torch.zeros(4, LENGTH, LENGTH).masked_fill(HIDDEN[0], -math.inf),
    "none": None,
}
# The kernel takes two axes or four.
LEFT = {"three axes"}


class Attention(torch.nn.Module):
    def __init__(self, mask: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.mask, self.dtype = mask, dtype

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # A mask that is not a constant is what models have.
        mask = self.mask if self.mask is None else self.mask.clone()
        mask = mask if mask is None or mask.dtype == torch.bool else mask.to(self.dtype)
        heads = (each.to(self.dtype).unflatten(-1, (4, 16)).transpose(1, 2) for each in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(*heads, mask).transpose(1, 2).flatten(2).float()


def fused(module: Attention, tensors: list[torch.Tensor]) -> FusedGraph:
    names = ["query", "key", "value"]
    traced = torch.jit.freeze(torch.jit.trace(module.eval(), tensors))
    return fuse(traced, names, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MASKS)
def test_every_mask(name: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16:
        needs_avx512()
    random = torch.Generator().manual_seed(1)
    tensors = [torch.randn(2, LENGTH, 64, generator=random) for _ in range(3)]
    graph = fused(Attention(MASKS[name], dtype), tensors)
    assert attentions(graph.fused) == 1
    assert (KERNEL in graph.fused) is (name not in LEFT)
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        actual, expected = graph.program(*tensors), Attention(MASKS[name], torch.float32)(*tensors)
    assert actual.isfinite().all()
    read = torch.arange(LENGTH) != 5
    assert (actual - expected)[:, read].abs().max() < (0.03 if dtype == torch.bfloat16 else 1e-5)


class Twice(torch.nn.Module):
    """Two layers under one mask, which is written to in between."""

    def __init__(self, by_parts: bool) -> None:
        super().__init__()
        self.by_parts = by_parts

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        heads, mask = x.unflatten(-1, (4, 16)).transpose(1, 2), mask.clone()
        heads = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, mask)
        if self.by_parts:
            mask[:, :, :, 0] = False
        else:
            part = mask[:, :, :, :1]
            part &= torch.zeros(1, dtype=torch.bool)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, mask)


@pytest.mark.parametrize("by_parts", [True, False])
def test_a_mask_that_is_written_to_between_layers(by_parts: bool) -> None:
    module = Twice(by_parts).eval()
    tensors = [torch.randn(2, 5, 64), torch.ones(2, 1, 5, 5, dtype=torch.bool)]
    traced = torch.jit.freeze(torch.jit.trace(module, tensors))
    graph = fuse(traced, ["x", "mask"], {"x": tensors[0].numpy(), "mask": tensors[1].numpy()})
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        torch.testing.assert_close(graph.program(*tensors), module(*tensors))


def test_double_precision_keeps_torchs_kernel() -> None:
    graph = fused(Attention(None, torch.float64), [torch.randn(1, LENGTH, 64) for _ in range(3)])
    assert ATTENTION in graph.fused
