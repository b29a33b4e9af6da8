"""What linear layers, norms and attention become together, in every form, through what a compile makes of small modules."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from conftest import needs_avx512
from torch import nn
from torch.nn import functional as F  # noqa: N812

from cpuc.compiler.forms import defaults, norm_adds
from cpuc.compiler.fusion import FusedGraph, Fusible, prepare
from cpuc.compiler.xsmm import XSMM


def prepared(module: nn.Module, **tensors: torch.Tensor) -> Fusible:
    with torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(module.eval(), tuple(tensors.values())))
    return prepare(traced, list(tensors), {name: tensor.numpy() for name, tensor in tensors.items()})


def check(graph: FusedGraph, module: nn.Module, *tensors: torch.Tensor) -> None:
    """The stored graph gives what eager gives, in float32's digits."""
    loaded = torch.jit.load(io.BytesIO(graph.saved()))
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        torch.testing.assert_close(loaded(*tensors), module(*tensors), rtol=1e-5, atol=5e-6)


class Attention(nn.Module):
    """Self-attention with four heads of 16, a residual connection, and a norm."""

    def __init__(self, take: Callable[[torch.Tensor], torch.Tensor], scale: float | None = None) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(64, 64) for _ in range(4))
        self.norm, self.take, self.scale = nn.LayerNorm(64), take, scale

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x * 2
        query, key, value = (self.take(layer(x)) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(query, key, value, mask, scale=self.scale)
        return self.norm(self.out(y.transpose(1, 2).reshape(x.shape)) + x)


def heads(y: torch.Tensor) -> torch.Tensor:
    return y.view(y.shape[0], y.shape[1], 4, 16).transpose(1, 2)


def flattened(y: torch.Tensor) -> torch.Tensor:
    return y.view(-1).view(y.shape[0], y.shape[1], 4, 16).transpose(1, 2)


MASKS: dict[str, Callable[[int, int], torch.Tensor]] = {
    "boolean": lambda rows, length: (torch.arange(length) < length - 1).expand(rows, 1, length, length),
    "one row": lambda rows, length: torch.where(torch.arange(length) < length - 1, 0.0, -torch.inf).expand(rows, 1, 1, length),
    "turned": lambda rows, length: torch.randn(length, length, 4, rows).permute(3, 2, 0, 1),
    "of all rows": lambda _, length: torch.randn(length, length, 4).permute(2, 0, 1).unsqueeze(0),
    "nothing": lambda rows, length: torch.where(torch.zeros(rows, 1, length, length) > 0, 0.0, -torch.inf),
}
SIZES = ((2, 3), (1, 64), (1, 130), (3, 130))


@pytest.mark.parametrize("take", [heads, flattened])
def test_layers_of_one_input_are_one(take: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    module = Attention(take)
    fusible = prepared(module, x=torch.randn(2, 5, 64), mask=MASKS["boolean"](2, 5))
    graph = fusible.build(replace(fusible.defaults, attention="flash", residual="norm"))
    assert graph.fused == {"torch_ipex::flash_attention": 1, "ipex::add_layernorm": 1, XSMM + "_bias": 2, XSMM + "_add": 1}
    for rows, length in SIZES:
        check(graph, module, torch.randn(rows, length, 64), MASKS["boolean"](rows, length))


def test_layers_that_are_read_whole_stay_apart() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 2
            return torch.cos(self.one(x)) * torch.sin(self.other(x))

    module = Two()
    fusible = prepared(module, x=torch.randn(2, 5, 64))
    graph = fusible.build(fusible.defaults)
    assert graph.fused[XSMM + "_bias"] == 2
    check(graph, module, torch.randn(3, 7, 64))


class Written(nn.Module):
    """Attention's layers, and something that is written to in between."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.one, self.other, self.norm, self.what = nn.Linear(64, 64), nn.Linear(64, 64), nn.LayerNorm(64), what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 2
        residual = torch.sin(x)
        part, read = residual[:, 0], x
        if self.what == "copied input":
            x = x.transpose(0, 1)
            read = x.contiguous()
            x[:, 0] = 0
        given = self.one(read)
        one = given.view(*given.shape[:2], 4, 16)
        if self.what == "output":
            given.view(-1)[:7] = 5
        if self.what == "input":
            x[:, 0] = 0
        other = self.other(x).view(*x.shape[:2], 4, 16)
        y = (one * torch.tanh(other)).flatten(2)
        y = self.one(y.transpose(0, 1) if self.what == "copied input" else y) + residual
        if self.what == "residual":
            part.mul_(5)
        return self.norm(y) + part[:, None]


# How many of libxsmm's operators there are for the three layers, one of them twice where the norm may add, and whether it may.
# Layers that read what is written to are left to torch.
WRITTEN = {"copied input": (2, 1), "input": (3, 1), "output": (4, 1), "residual": (2, 0), "nothing": (3, 1)}


@pytest.mark.parametrize("what", WRITTEN)
def test_what_is_written_to_in_between_is_read_before(what: str) -> None:
    module = Written(what)
    fusible = prepared(module, x=torch.randn(2, 5, 64))
    graph = fusible.build(replace(fusible.defaults, residual="norm"))
    for rows, length in SIZES:
        check(graph, module, torch.randn(rows, length, 64))
    layers = sum(n for kind, n in graph.fused.items() if kind.startswith(XSMM))
    assert (layers, graph.fused.get("ipex::add_layernorm", 0)) == WRITTEN[what]


def test_joined_layers_that_share_weights_are_stored_once() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(256, 256), nn.Linear(256, 256)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(4):
                x = torch.tanh(x)
                one, other = (layer(x).view(*x.shape[:2], 2, 128) for layer in (self.one, self.other))
                x = (one * other).flatten(2)
            return x

    module = Repeated()
    fusible = prepared(module, x=torch.randn(2, 5, 256))
    graph = fusible.build(fusible.defaults)
    assert graph.fused[XSMM + "_bias"] == 4
    assert len(graph.saved()) < 1.1 * 2 * 256 * 257 * 4
    check(graph, module, torch.randn(3, 6, 256))


def test_a_norm_without_weights_stays_as_it_is() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(64, 64), nn.LayerNorm(64, elementwise_affine=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 2
            return self.norm(self.layer(x) + x)

    module = Sum()
    fusible = prepared(module, x=torch.randn(2, 5, 64))
    graph = fusible.build(fusible.defaults)
    assert graph.fused == {XSMM + "_add": 1}
    check(graph, module, torch.randn(3, 7, 64))


@pytest.mark.parametrize(
    ("wide", "intel", "attention"), [(1, 0, "products"), (1, 1, "flash"), (0, 0, "flash"), (0, 1, "flash")]
)
def test_products_are_the_default_where_they_were_faster(
    monkeypatch: pytest.MonkeyPatch, wide: int, intel: int, attention: str
) -> None:
    monkeypatch.setattr("cpuc.compiler.forms.cpu_offers", lambda _: bool(wide))
    monkeypatch.setattr("cpuc.compiler.forms.is_intel", lambda: bool(intel))
    assert defaults(torch.float32).attention == attention


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("mask", MASKS)
def test_every_form_is_the_same_function(mask: str, scale: float | None) -> None:
    torch.manual_seed(0)
    module = Attention(heads, scale)
    fusible = prepared(module, x=torch.randn(2, 5, 64), mask=MASKS[mask](2, 5))
    assert "mkl" not in fusible.alternatives()["layers"]
    fusible.expect({"x": torch.randn(*SIZES[0], 64).numpy(), "mask": MASKS[mask](*SIZES[0]).numpy()})
    alternatives = fusible.alternatives()
    assert {fusible.defaults.attention, *alternatives["attention"]} == {"flash", "products"}
    assert alternatives["residual"] == (["layer"] if norm_adds() else [])
    assert alternatives["layers"][-2:] == ["onednn", "mkl"]
    forms = [fusible.defaults, replace(fusible.defaults, attention="products"), replace(fusible.defaults, attention="flash")]
    forms += [replace(fusible.defaults, layers=form) for form in alternatives["layers"]]
    forms += [replace(fusible.defaults, residual=form) for form in ("layer", "norm")]
    built = {}
    for form in forms:
        graph = fusible.build(form)
        built[form] = graph.fused
        for rows, length in SIZES:
            if mask != "nothing":
                check(graph, module, torch.randn(rows, length, 64), MASKS[mask](rows, length))
    assert [built[form].get("torch_ipex::bmm_add", 0) for form in forms[1:3]] == [2, 0]
    assert [built[form]["torch_ipex::flash_attention"] for form in forms[1:3]] == [1, 1]
    assert [built[form].get("ipex::add_layernorm", 0) for form in forms[-2:]] == [0, 1]
    assert all(built[form][XSMM + "_add"] == 1 for form in forms[-2:])
    for form in ("onednn", "mkl"):
        assert not any(kind.startswith(XSMM) for kind in built[replace(fusible.defaults, layers=form)])
    assert built[replace(fusible.defaults, layers="mkl")]["ipex_prepack::mkl_sgemm_run"] == 2


@pytest.mark.parametrize("length", [6, 140])
@pytest.mark.parametrize("attention", ["flash", "products"])
def test_rows_without_any_key_are_numbers(attention: str, length: int) -> None:
    module = Attention(heads)
    fusible = prepared(module, x=torch.randn(2, 5, 64), mask=MASKS["nothing"](2, 5))
    graph = fusible.build(replace(fusible.defaults, attention=attention))
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        y = torch.jit.load(io.BytesIO(graph.saved()))(torch.randn(2, length, 64), MASKS["nothing"](2, length))
    assert y.isfinite().all()


class Bare(nn.Module):
    """Attention of heads of 16 that are given as they are."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x, mask = x * 2, mask * 2
        return F.scaled_dot_product_attention(x, x + 1, torch.sin(x), mask if self.masked else None).transpose(1, 2)


def calls(graph: FusedGraph, *tensors: torch.Tensor) -> Counter[str]:
    """What a run of the graph calls, and how often."""
    with torch.inference_mode(), torch.jit.optimized_execution(False), torch.profiler.profile() as profiled:
        torch.jit.load(io.BytesIO(graph.saved()))(*tensors)
    return Counter(event.name for event in profiled.events())


def products(graph: FusedGraph, *tensors: torch.Tensor) -> int:
    """How many products of matrices a run of the graph has."""
    return calls(graph, *tensors)["torch_ipex::bmm_add"]


@pytest.mark.parametrize(("rows", "tokens", "many"), [(1, 16, False), (1, 255, False), (1, 256, True), (16, 16, True)])
@pytest.mark.parametrize("added", [False, True])
def test_the_number_of_rows_decides_whose_norm_it_is(added: bool, rows: int, tokens: int, many: bool) -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x + torch.sin(x) if added else torch.sin(x)) * 2

    module = Norm()
    fusible = prepared(module, x=torch.randn(2, 5, 64))
    graph = fusible.build(fusible.defaults)
    x = torch.randn(rows, tokens, 64)
    check(graph, module, x)
    called = calls(graph, x)
    if added and norm_adds():
        assert (called["dil_add_layernorm"], called["torch_ipex::layer_norm"]) == ((0, 1) if rows * tokens >= 128 else (1, 0))
    else:
        assert (called["torch_ipex::layer_norm"], called["aten::native_layer_norm"]) == ((1, 0) if many else (0, 1))


@pytest.mark.parametrize(("tokens", "many"), [(255, False), (256, True)])
def test_norms_in_bfloat16_have_the_same_kernels(tokens: int, many: bool) -> None:
    needs_avx512()

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm = nn.LayerNorm(64)
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)
            self.norm.bfloat16()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x.bfloat16()).float()

    module = Norm()
    fusible = prepared(module, x=torch.randn(2, 5, 64))
    graph = fusible.build(fusible.defaults)
    x = torch.randn(1, tokens, 64)
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        torch.testing.assert_close(graph.program(x), module(x), rtol=0.01, atol=0.02)
    called = calls(graph, x)
    assert (called["torch_ipex::layer_norm"], called["aten::native_layer_norm"]) == ((1, 0) if many else (0, 1))


@pytest.mark.parametrize(("rows", "tokens", "expected"), [(1, 16, 0), (1, 127, 0), (1, 128, 2), (8, 46, 2), (9, 966, 0)])
def test_the_number_of_scores_decides(rows: int, tokens: int, expected: int) -> None:
    """Four heads: 65536 scores are the fewest, 33554432 the most."""
    fusible = prepared(Bare(masked=True), x=torch.randn(2, 4, 5, 16), mask=torch.randn(2, 1, 1, 5))
    graph = fusible.build(replace(fusible.defaults, attention="products"))
    assert products(graph, torch.randn(rows, 4, tokens, 16), torch.randn(rows, 1, 1, tokens)) == expected


ADDED: dict[str, Callable[[int, int], torch.Tensor]] = {
    "keys": lambda rows, length: torch.randn(rows, 1, 1, length),
    "queries": lambda rows, length: torch.randn(rows, 1, length, length),
    "heads": lambda _, length: torch.randn(1, 4, length, length),
    "all": lambda rows, length: torch.randn(rows, 4, length, length),
    "none": lambda *_: torch.randn(1, 1, 1, 1),
}


@pytest.mark.parametrize("kinds", list(itertools.permutations(ADDED, 2)))
def test_artifacts_with_other_masks_do_not_disturb_each_other(kinds: tuple[str, str]) -> None:
    """IPEX keeps oneDNN's kernels for each thread, and does not tell them apart by what they add.

    With 64 tokens in heads of 64, the two products of attention have the same sizes.
    """
    torch.manual_seed(0)
    graphs = []
    for kind in kinds:
        module = Bare(masked=kind != "none")
        fusible = prepared(module, x=torch.randn(2, 4, 5, 64), mask=ADDED[kind](2, 5))
        graphs.append((kind, module, fusible.build(replace(fusible.defaults, attention="products"))))

    def run() -> None:
        for rows, length in ((64, 64), (4, 128), (4, 64)):
            for kind, module, graph in graphs:
                tensors = torch.randn(rows, 4, length, 64), ADDED[kind](rows, length)
                assert products(graph, *tensors) == 2
                check(graph, module, *tensors)

    with ThreadPoolExecutor(1) as fresh:
        fresh.submit(run).result()
