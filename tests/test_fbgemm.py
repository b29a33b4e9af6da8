"""Layers in int8 on FBGEMM's kernels, which any CPU has: they give what oneDNN's give."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import INT8, needs_avx512
from test_int8 import in_int8, tokens
from torch import nn

import cpuc
from cpuc.compiler.benchmarking.arithmetic import count
from cpuc.compiler.forms import defaults
from cpuc.compiler.quantization.rounding import round_nearest
from cpuc.runtime.engine import Engine

ONEDNN, FBGEMM = INT8
OPERATOR = "quantized::linear_with_input_q_dq_qweight_dq_output_fp32"
Layers = Callable[["Several", torch.Tensor], torch.Tensor]


class Several(nn.Module):
    def __init__(self, compute: Layers) -> None:
        super().__init__()
        self.compute = compute
        self.up, self.down, self.plain = nn.Linear(48, 64), nn.Linear(64, 48, bias=False), nn.Linear(48, 48)
        self.norm = nn.LayerNorm(48)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.compute(self, rows)


def residual(layers: Several, rows: torch.Tensor) -> torch.Tensor:
    start = layers.norm(rows)
    return layers.norm(start + layers.plain(start))


CASES: dict[str, tuple[Layers, int]] = {
    "gelu": (lambda layers, rows: layers.down(nn.functional.gelu(layers.up(rows))), 2),
    "gelu, tanh": (lambda layers, rows: layers.down(nn.functional.gelu(layers.up(rows), approximate="tanh")), 2),
    "relu": (lambda layers, rows: layers.down(nn.functional.relu(layers.up(rows))), 2),
    "a residual connection": (residual, 1),
    "of the same input": (lambda layers, rows: torch.sin(layers.up(rows))[..., :48] * torch.sin(layers.plain(rows)), 1),
    "another order in memory": (lambda layers, rows: layers.plain((rows * 2).transpose(0, 1)), 1),
}


def of(kernels: str, graph: Any) -> int:
    return sum(count for name, count in graph.fused.items() if name.startswith(kernels))


@pytest.mark.parametrize("precision", ["int8-fp32", "int8-dynamic-fp32"])
@pytest.mark.parametrize("case", CASES)
def test_both_kernels_give_the_same(case: str, precision: str) -> None:
    torch.manual_seed(0)
    compute, count = CASES[case]
    module, rows = Several(compute).eval(), torch.randn(20, 5, 48) + 0.3
    expected_graph, expected = in_int8(module, rows, precision)
    graph, found = in_int8(module, rows, precision, "fbgemm")
    assert (of(ONEDNN, graph), of(FBGEMM, expected_graph)) == (0, 0)
    assert of(FBGEMM, graph) == of(ONEDNN, expected_graph)
    if precision == "int8-fp32":
        assert of(FBGEMM, graph) == count
    # What one of them rounds up the other may round down, where it lies between.
    off = (found - expected).abs()
    assert (off > 1e-4).float().mean() < 0.1
    assert off.max() < 0.05 * expected.abs().max()
    with torch.no_grad():
        exact = module(rows)
    assert (found - exact).square().mean() < 0.02**2 * exact.square().mean()


@pytest.mark.parametrize(("wide", "vnni", "kernels"), [(0, 0, "fbgemm"), (0, 1, "onednn"), (1, 0, "onednn"), (1, 1, "onednn")])
def test_int8_is_fbgemms_where_that_was_faster(monkeypatch: pytest.MonkeyPatch, wide: int, vnni: int, kernels: str) -> None:
    monkeypatch.setattr("cpuc.compiler.forms.cpu_offers", lambda _: bool(wide))
    monkeypatch.setattr("cpuc.compiler.forms.has_vnni", lambda: bool(vnni))
    assert defaults(torch.float32).int8 == kernels


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_the_rest_may_be_in_bfloat16(precision: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_avx512()
    for module in ("forms", "fusion"):
        monkeypatch.setattr(f"cpuc.compiler.{module}.int8_kernels", lambda: "fbgemm")
    manifest = cpuc.compile(str(tiny_model), tmp_path / "model.pt", precision=precision)  # compared with the original
    assert {name.partition("::")[0] for name in manifest.build.fused if name.startswith(INT8)} == {"quantized"}
    model = cpuc.load(tmp_path / "model.pt")
    inputs = {spec.name: tokens(20, 2, 350)[spec.name] for spec in manifest.inputs}
    assert all(np.isfinite(array).all() for array in model.raw(inputs).values())


def test_a_sum_is_made_in_place() -> None:
    torch.manual_seed(0)
    graph, _ = in_int8(Several(residual).eval(), torch.randn(20, 5, 48), kernels="fbgemm")
    (total,) = graph.graph.findAllNodes("aten::add_")
    assert total.inputsAt(0).node().kind().startswith(FBGEMM)
    assert not graph.graph.findAllNodes("aten::add")


@pytest.mark.parametrize("engine", ["onednn", "none"])
def test_what_torch_is_set_to_does_not_matter(engine: str, fbgemm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cpuc.load(fbgemm)
    inputs = {spec.name: tokens(20, 2, 350)[spec.name] for spec in model.manifest.inputs}
    expected = model.raw(inputs)
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    found = cpuc.load(fbgemm).raw(inputs)
    assert torch.backends.quantized.engine == engine
    for name, array in expected.items():
        assert np.array_equal(found[name], array)


def test_products_are_counted_as_those_of_int8(fbgemm: Path) -> None:
    engine = Engine(cpuc.open_bundle(fbgemm))
    inputs = [torch.from_numpy(tokens(20, 2, 350)[spec.name]) for spec in engine.manifest.inputs]
    arithmetic = count(engine.module, inputs)
    assert arithmetic.by_operator[OPERATOR] == arithmetic.operations["int8"] > arithmetic.operations["fp32"]
    assert not arithmetic.uncounted


def test_weights_are_kept_packed_alone() -> None:
    """What they were packed from would take as much memory again."""
    torch.manual_seed(0)
    graph, _ = in_int8(Several(CASES["gelu"][0]).eval(), torch.randn(20, 5, 48), kernels="fbgemm")
    program: Any = torch.jit.load(io.BytesIO(graph.saved()))
    assert [len(each) for each in (program.packed, program.weights, program.scales, program.biases)] == [2, 0, 0, 0]


@pytest.mark.parametrize("rows", [1, 2, 7, 130])
def test_sums_are_exact(rows: int) -> None:
    """Without VNNI, pairs of products are added in 16 bits: the largest fit."""
    random = torch.Generator().manual_seed(rows)
    weight = torch.randn(37, 67, generator=random)
    rounded = round_nearest(weight.sign() * (0.9 + 0.1 * torch.rand(37, 67, generator=random)))
    scales, zeros = torch.ones(37), torch.zeros(37, dtype=torch.int64)
    quantized = torch.ops.aten._make_per_channel_quantized_tensor(rounded.values, scales, zeros, 0)
    packed = torch.ops.quantized.linear_prepack(quantized, torch.zeros(37))
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    for x in (torch.full((rows, 67), 255), torch.randint(0, 256, (rows, 67), generator=random)):
        assert torch.equal(multiply(x.float(), 1.0, 0, packed).long(), x @ rounded.values.long().t())


def test_a_row_does_not_depend_on_others() -> None:
    torch.manual_seed(0)
    module, rows = Several(CASES["gelu"][0]).eval(), torch.randn(40, 3, 48)
    graph, found = in_int8(module, rows, "int8-dynamic-fp32", "fbgemm")
    program = torch.jit.load(io.BytesIO(graph.saved()))
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        for i in (0, 17, 39):
            torch.testing.assert_close(program(rows[i : i + 1]), found[i : i + 1], rtol=1e-5, atol=1e-6)
