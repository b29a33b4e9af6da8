"""Narrow layers in float32, with AVX-512 but on Intel's CPUs: which kernel computes them, and that both give the same."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_by_rows import FEW, MANY, fused, loaded, readers, run
from test_xsmm import AFTER, Layers, named
from torch import nn

import cpuc
from cpuc.compiler.benchmarking.machine import is_intel
from cpuc.compiler.by_rows import use_both
from cpuc.compiler.fusion import prepare
from cpuc.runtime.engine import cpu_offers

pytestmark = pytest.mark.skipif(not cpu_offers("AVX512") or is_intel(), reason="needs AVX-512, and not Intel's")
ROWS = ((1, FEW), (191, FEW), (192, MANY), (193, MANY), (700, MANY))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", AFTER)
def test_rows_decide_and_the_result_is_the_same(name: str, bias: bool) -> None:
    torch.manual_seed(0)
    module = Layers(AFTER[name][0], bias)
    module.layer = nn.Linear(384, 768, bias=bias)
    original = copy.deepcopy(module)
    program = loaded(fused(module, torch.randn(3, 5, 384), torch.randn(3, 5, 768)))
    for rows, kernel in ROWS:
        x, other = torch.randn(1, rows, 384), torch.randn(1, rows, 768)
        before = x.clone(), other.clone()
        outputs, kernels = run(program, x, other)
        assert len(kernels) == 1
        assert all(each.startswith(kernel) for each in kernels)
        torch.testing.assert_close(outputs, original(x, other), rtol=1e-4, atol=1e-5)
        assert torch.equal(x, before[0]) and torch.equal(other, before[1])


def test_a_layer_that_is_filled_up_has_one_kernel() -> None:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(384, 700), nn.GELU()).eval()
    graph = fused(copy.deepcopy(original), torch.randn(3, 5, 384))
    assert {kind for kind in graph.fused if "linear" in kind} == {"torch_ipex::tpp_linear_bias"}
    x = torch.randn(1, 300, 384)
    torch.testing.assert_close(run(loaded(graph), x)[0], original(x), rtol=1e-4, atol=1e-5)


def test_weights_are_stored_once() -> None:
    graph = fused(nn.Sequential(nn.Linear(384, 768), nn.GELU()), torch.randn(3, 5, 384))
    assert 384 * 768 * 4 < len(graph.saved()) < 1.1 * 384 * 768 * 4
    assert len(loaded(graph).packed) == 1


@pytest.mark.parametrize(
    ("inputs", "outputs", "both"), [(768, 384, True), (512, 512, True), (576, 576, False), (384, 320, False)]
)
def test_it_pays_in_narrow_layers_that_are_not_small(inputs: int, outputs: int, both: bool) -> None:
    graph = fused(nn.Sequential(nn.Linear(inputs, outputs)), torch.randn(3, 5, inputs))
    kinds = {kind for kind in graph.fused if "linear" in kind}
    assert kinds == {"torch_ipex::tpp_linear_bias", *(["ipex_prepack::linear_run"] if both else [])}


def test_what_others_read_too_is_not_part_of_what_follows() -> None:
    """torch's passes leave such a GELU out of place; passes that come after might not."""
    traced = torch.jit.freeze(torch.jit.trace(nn.Sequential(nn.Linear(384, 768), nn.GELU()).eval(), torch.randn(3, 5, 384)))
    fusible = prepare(traced, ["x"], named(torch.randn(3, 5, 384)))
    graph = fusible.build(replace(fusible.defaults, layers="libxsmm")).graph.copy()
    graph.registerOutput(graph.findAllNodes("torch_ipex::tpp_linear_bias")[0].output())
    assert use_both(graph) is not None
    assert not graph.findAllNodes("ipex_prepack::linear_gelu_run")
    assert graph.findAllNodes("ipex_prepack::linear_run")


def test_what_a_layer_gives_to_others_too_is_left_as_it_was() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(384, 768)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.layer(x)
            return nn.functional.gelu(y), y * 2

    torch.manual_seed(0)
    original = Twice().eval()
    program = loaded(fused(copy.deepcopy(original), torch.randn(3, 5, 384)))
    for rows, _ in ROWS:
        x = torch.randn(1, rows, 384)
        for actual, expected in zip(run(program, x)[0], original(x), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


class Block(nn.Module):
    """As in a transformer, with norms before and after; `after` makes the outputs of the last norm and of what was added to."""

    def __init__(self, after: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]) -> None:
        super().__init__()
        self.first, self.last, self.after = nn.LayerNorm(384), nn.LayerNorm(384), after
        self.up, self.down = nn.Linear(384, 768), nn.Linear(768, 384)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        start = self.first(x)
        return self.after(self.last(self.down(nn.functional.gelu(self.up(start))) + start), start)


@readers
def test_a_sum_takes_the_memory_of_what_nobody_reads_afterwards(after: Any, in_place: bool) -> None:
    torch.manual_seed(0)
    original = Block(after).eval()
    graph = fused(copy.deepcopy(original), torch.randn(3, 5, 384))
    for operator in ("torch_ipex::tpp_linear_add", "ipex_prepack::linear_add_run"):  # of many rows; of few the norm adds
        assert (operator in graph.fused) == in_place
    program = loaded(graph)
    for rows, _ in ROWS:
        x = torch.randn(1, rows, 384)
        for _ in range(2):
            for actual, expected in zip(run(program, x)[0], original(x), strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("read", [True, False])
def test_what_is_read_after_a_sum_is_left_as_it_was(read: bool) -> None:
    """IPEX adds to nothing that is read afterwards; passes that come after its own might."""
    tensors = [torch.randn(3, 5, 384)]
    with torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(Block(lambda total, _: (total,)).eval(), tensors))
    fusible = prepare(traced, ["x"], named(*tensors))
    graph = fusible.build(replace(fusible.defaults, layers="libxsmm")).graph.copy()
    if read:
        graph.registerOutput(graph.findAllNodes("torch_ipex::tpp_linear_add")[0].inputsAt(1))
    assert use_both(graph) is not None
    assert len(graph.findAllNodes("ipex_prepack::linear_add_run")) == (0 if read else 1)


def test_a_model_answers_alike_with_few_rows_and_many(minilm: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    manifest = cpuc.compile(str(minilm), path)
    assert Counter(manifest.build.fused)["ipex_prepack::linear_gelu_run"] == 6
    model = cpuc.load(path)
    ids = np.random.default_rng(0).integers(1000, 20000, (3, 80))
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    together = model.raw(arrays)
    for i in range(len(ids)):
        alone = model.raw({name: array[i : i + 1] for name, array in arrays.items()})
        for name, array in alone.items():
            np.testing.assert_allclose(array[0], together[name][i], rtol=1e-3, atol=1e-4)
