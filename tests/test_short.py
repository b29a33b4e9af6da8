"""Attention of short rows in bfloat16: which of its forms a call takes, and that all of them give the same."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from test_forms import MASKS, Attention, calls, heads, prepared
from torch import nn

from cpuc.compiler.benchmarking.arithmetic import count
from cpuc.compiler.flash import KERNEL
from cpuc.compiler.fusion import FusedGraph

# Without these instructions layers are oneDNN's, and not joined.
pytestmark = pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="needs a CPU with AVX512_BF16")


def windows(y: torch.Tensor) -> torch.Tensor:
    return y.view(2 * y.shape[0], y.shape[1] // 2, 4, 16).transpose(1, 2)


def row_of_windows(rows: int, length: int) -> torch.Tensor:
    return MASKS["one row"](2 * rows, length // 2)


def of_heads(_: int, length: int) -> torch.Tensor:
    return torch.randn(1, 4, length, length, generator=torch.Generator().manual_seed(1))


SHORT: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[int, int], torch.Tensor], bool]] = {
    "keys": (heads, MASKS["one row"], True),
    "no keys": (heads, lambda rows, length: torch.full((rows, 1, 1, length), -torch.inf), True),
    "pairs": (heads, MASKS["boolean"], False),
    "heads": (heads, of_heads, False),
    "windows": (windows, row_of_windows, False),
}


NEARLY, ALONE = 44, 52


class Brain(nn.Module):
    """A module in bfloat16, for inputs in float32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.bfloat16()

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.module(x.bfloat16(), mask if mask.dtype == torch.bool else mask.bfloat16())
        return output


class Attended(Attention):
    """Attention alone, times ten."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x * 2
        query, key, value = (self.take(layer(x)) for layer in (self.query, self.key, self.value))
        y = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=self.scale)
        return 10 * y.transpose(1, 2).reshape(x.shape)


def fused(kind: str, scale: float | None = None) -> tuple[nn.Module, FusedGraph]:
    torch.manual_seed(0)
    take, mask, _ = SHORT[kind]
    module = Brain(Attended(take, scale))
    fusible = prepared(module, x=torch.randn(2, 6, 64), mask=mask(2, 6))
    return module, fusible.build(fusible.defaults)


def way(called: Counter[str], usual: Counter[str]) -> str:
    """The form that a call takes, given what it calls, and what one does whose rows are not short."""
    if called["dil_bert_flash_mha"]:
        return "in one"
    assert called["torch_ipex::flash_attention"] == 1
    if called["aten::constant_pad_nd"]:
        return "rows of 64"
    return "in float32" if called["aten::_to_copy"] > usual["aten::_to_copy"] else "as it was"


def keys_of(kind: str, length: int) -> int:
    return length // 2 if kind == "windows" else length


def expected(kind: str, rows: int, length: int, slow: bool) -> str:
    few = rows * length < 64
    if not SHORT[kind][2]:
        return "in float32" if slow and not few and keys_of(kind, length) < 64 else "as it was"
    if few and not (slow and length >= ALONE):
        return "in one"
    if slow and length < 64:
        return "rows of 64" if length >= NEARLY else "in float32"
    return "as it was"


SIZES = (
    *((1, 4), (3, 20), (2, 30), (1, ALONE - 1), (1, ALONE), (1, 63), (2, 32), (64, 1), (4, NEARLY - 1), (4, NEARLY), (3, 63)),
    *((1, 64), (3, 130), (1, 600), (64, 2), (2, 126)),
)


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("kind", SHORT)
def test_short_attention_takes_the_form_of_its_sizes(
    kind: str, scale: float | None, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpuc.compiler.short.multiplies_slowly", lambda: slow)
    _, mask, joined = SHORT[kind]
    module, graph = fused(kind, scale)
    assert graph.fused.get("ipex::bert_flash_mha", 0) == joined
    assert graph.fused[KERNEL] == 1  # forms of one attention, of which a call takes one
    loaded = torch.jit.load(io.BytesIO(graph.saved()))
    usual = calls(graph, torch.randn(1, 130, 64), mask(1, 130))
    for rows, length in SIZES:
        if kind == "windows" and length % 2:
            continue
        tensors = torch.randn(rows, length, 64), mask(rows, length)
        assert way(calls(graph, *tensors), usual) == expected(kind, rows, length, slow), (rows, length)
        keys = keys_of(kind, length)
        reference = module(*tensors) if kind != "no keys" and keys > 1 else values(module, tensors[0], keys)
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            difference = loaded(*tensors).float() - reference
        assert difference.square().mean() < 0.01**2 * reference.float().square().mean(), (rows, length)


def values(module: nn.Module, x: torch.Tensor, keys: int) -> torch.Tensor:
    """What attention gives where all keys weigh the same."""
    with torch.no_grad():
        y = module.get_submodule("module.value")(x.bfloat16() * 2).float().unflatten(1, (-1, keys))
    return 10 * y.mean(2, keepdim=True).expand(y.shape).flatten(1, 2)


@pytest.mark.parametrize("slow", [True, False])
def test_products_of_the_form_that_is_taken_are_counted(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpuc.compiler.short.multiplies_slowly", lambda: slow)
    _, graph = fused("keys")
    loaded = torch.jit.load(io.BytesIO(graph.saved()))
    for rows, length in ((1, 16), (8, 16), (2, 50), (1, 100)):
        tensors = [torch.randn(rows, length, 64), MASKS["one row"](rows, length)]
        counted = count(loaded, tensors)
        assert not counted.uncounted
        computed = 64 if slow and NEARLY <= length < 64 else length  # tokens of each row
        attention = counted.by_operator[KERNEL] + counted.by_operator["ipex::bert_flash_mha"]
        assert attention == 2 * 2 * rows * computed**2 * 64
        assert counted.operations["fp32"] == (attention if slow and rows * length >= 64 and length < NEARLY else 0)


class Gated(nn.Module):
    """Attention in bfloat16 with a gate that reads what query, key and value read."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.gate = (nn.Linear(64, 64).bfloat16() for _ in range(4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x.bfloat16() * 2
        query, key, value = (heads(layer(x)) for layer in (self.query, self.key, self.value))
        gate = self.gate(x).view(x.shape[0], x.shape[1], 4, 16)
        y = nn.functional.scaled_dot_product_attention(query, key, value, mask.bfloat16())
        return 10 * (y.transpose(1, 2).reshape(x.shape) + gate.reshape(x.shape))


@pytest.mark.parametrize("slow", [True, False])
def test_a_fourth_layer_of_the_same_input_is_minded(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpuc.compiler.short.multiplies_slowly", lambda: slow)
    torch.manual_seed(0)
    module = Gated()
    fusible = prepared(module, x=torch.randn(2, 6, 64), mask=MASKS["one row"](2, 6))
    graph = fusible.build(fusible.defaults)
    assert "ipex::bert_flash_mha" not in graph.fused
    loaded = torch.jit.load(io.BytesIO(graph.saved()))
    for rows, length in ((1, 16), (8, 16), (2, 50), (1, 100)):
        tensors = torch.randn(rows, length, 64), MASKS["one row"](rows, length)
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            found, reference = loaded(*tensors).float(), module(*tensors).float()
        assert (found - reference).square().mean() < 0.01**2 * reference.square().mean()
