"""Attention of short rows in bfloat16: which of its forms a call takes, and that all of them give the same."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from conftest import needs_avx512
from test_forms import MASKS, Attention, calls, heads, prepared
from torch import nn

from cpuc.compiler.flash import KERNEL
from cpuc.compiler.short import multiplies_slowly


def windows(y: torch.Tensor) -> torch.Tensor:
    return y.view(2 * y.shape[0], y.shape[1] // 2, 4, 16).transpose(1, 2)


def row_of_windows(rows: int, length: int) -> torch.Tensor:
    return MASKS["one row"](2 * rows, length // 2)


def of_heads(_: int, length: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(1, 4, length, length)


SHORT: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[int, int], torch.Tensor], bool]] = {
    "keys": (heads, MASKS["one row"], True),
    "no keys": (heads, lambda rows, length: torch.full((rows, 1, 1, length), -torch.inf), True),
    "pairs": (heads, MASKS["boolean"], False),
    "heads": (heads, of_heads, False),
    "windows": (windows, row_of_windows, False),
}


class Brain(nn.Module):
    """A module in bfloat16, for inputs in float32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.bfloat16()

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.module(x.bfloat16(), mask if mask.dtype == torch.bool else mask.bfloat16())
        return output


def way(called: Counter[str], usual: Counter[str]) -> str:
    """The form that a call takes, given what it calls, and what one does whose rows are not short."""
    if called["dil_bert_flash_mha"]:
        return "in one"
    assert called["torch_ipex::flash_attention"] == 1
    if called["aten::constant_pad_nd"]:
        return "rows of 64"
    return "in float32" if called["aten::_to_copy"] > usual["aten::_to_copy"] else "as it was"


def expected(kind: str, rows: int, length: int) -> str:
    few, slow = rows * length < 64, multiplies_slowly()
    if not SHORT[kind][2]:
        keys = length // 2 if kind == "windows" else length
        return "in float32" if slow and not few and keys < 64 else "as it was"
    if slow and 48 <= length < 64:
        return "rows of 64"
    return "in one" if few else "in float32" if slow and length < 48 else "as it was"


ROWS = ((1, 4), (3, 20), (2, 30), (1, 46), (1, 48), (1, 62), (2, 32), (4, 46), (2, 48), (3, 62), (1, 64), (3, 130), (1, 600))


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("kind", SHORT)
def test_short_attention_takes_the_form_of_its_sizes(kind: str, scale: float | None) -> None:
    needs_avx512()
    torch.manual_seed(0)
    take, mask, short = SHORT[kind]
    module = Brain(Attention(take, scale))
    fusible = prepared(module, x=torch.randn(2, 6, 64), mask=mask(2, 6))
    graph = fusible.build(fusible.defaults)
    assert graph.fused.get("ipex::bert_flash_mha", 0) == short
    assert graph.fused[KERNEL] == 1  # of a call
    loaded = torch.jit.load(io.BytesIO(graph.saved()))
    usual = calls(graph, torch.randn(1, 130, 64), mask(1, 130))
    for rows, length in ROWS:
        tensors = torch.randn(rows, length, 64), mask(rows, length)
        assert way(calls(graph, *tensors), usual) == expected(kind, rows, length), (rows, length)
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            y = loaded(*tensors)
        assert y.isfinite().all()
        if kind != "no keys":
            difference = (y - module(*tensors)).float().square().mean().sqrt()
            assert difference < 0.01  # of outputs whose standard deviation is 1; that of rounding is 0.002
