"""What an activation is multiplied with before it becomes int8 goes into the weights before it, or stays where it cannot."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import here
from media_models import make_media_model
from safetensors.torch import load_file, save_file
from test_int8 import in_int8, operators, tokens
from tiny import make_model

import cpuc
from cpuc.compiler import fusion
from cpuc.compiler.branches import one_way
from cpuc.compiler.flash import KERNEL
from cpuc.compiler.forms import int8_kernels


def outliers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights whose norms, and whose heads' values, have a few channels that are much larger than the rest."""
    return {
        name: torch.cat([tensor[:3] * 8, tensor[3:]]) if re.search(r"(norm\w*|value)\.weight$", name, re.IGNORECASE) else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_smoothing_goes_into_weights(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "vit":
        source = make_media_model(tmp_path / "source", kind, "image-classification")
        inputs = {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)}
    else:
        source, inputs = make_model(tmp_path / "source", kind), tokens(40, 2, 350)
    weights = source / "model.safetensors"
    save_file(outliers(load_file(weights)), weights, {"format": "pt"})
    manifest = cpuc.compile(str(source), tmp_path / "with.pt", precision=here("int8"))
    monkeypatch.setattr(fusion, "absorb", lambda graph, quantized, batch: quantized)  # noqa: ARG005
    cpuc.compile(str(source), tmp_path / "without.pt", precision=here("int8"))
    smoothed, plain = (cpuc.load(tmp_path / f"{name}.pt") for name in ("with", "without"))
    inputs = {spec.name: inputs[spec.name] for spec in manifest.inputs}
    for name, expected in plain.raw(inputs).items():
        difference = smoothed.raw(inputs)[name] - expected
        # FBGEMM's layers round all that they read, which may leave nothing of a difference in the last digits.
        assert np.mean(difference**2) < 0.05**2 * np.mean(expected**2)
        assert np.any(difference) or int8_kernels() == "fbgemm"
    ran, before = operators(smoothed, inputs), operators(plain, inputs)
    # Each layer of the model adds two residual connections by its linear layers; to one position of many, of ViT's last layer,
    # it is added apart.
    nodes = list(one_way(torch.jit.load(tmp_path / "with.pt").inlined_graph))
    by_onednn = [node.kind().startswith("onednn") and node.inputsSize() > 13 for node in nodes]
    after_fbgemm = [node.kind() == "aten::add_" and node.inputsAt(0).node().kind().startswith("quantized") for node in nodes]
    assert sum(by_onednn) + sum(after_fbgemm) == {"bert": 4, "vit": 3}[kind]
    # Of BERT's norms all but the last are also read by the residual connection; of ViT's four one in the last layer is read
    # whole and at one position.
    by_values = 2 if KERNEL in manifest.build.fused else 0
    by_norms = {"bert": 1, "vit": 3}[kind]
    assert before["aten::mul"] - ran.get("aten::mul", 0) == by_values + by_norms


@pytest.mark.parametrize("case", ["itself", "a number", "a product"])
def test_smoothing_stays_where_a_norm_is_read_otherwise(case: str) -> None:
    class Read(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = torch.nn.LayerNorm(64), torch.nn.Linear(64, 64)
            with torch.no_grad():
                self.norm.weight[:3] *= 30

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            normed = self.norm(rows)
            other = {"itself": normed + normed, "a number": normed + 0.5, "a product": normed * rows}[case]
            return torch.sin(self.layer(normed)) + other

    torch.manual_seed(0)
    module, rows = Read().eval(), torch.randn(3, 9, 64)
    graph, found = in_int8(module, rows)
    assert graph.fused["onednn::qlinear_pointwise"] == 1
    expected = module(rows)
    assert (found - expected).square().mean() < 0.05**2 * expected.square().mean()
