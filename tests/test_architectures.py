"""Each architecture compiles, is fused, and equals eager on shapes that it was not traced with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import needs_avx512
from tiny import make_model

import cpuc
from cpuc.compiler.architectures import ARCHITECTURES, TEXT

# transformers has no fused attention for it, because of its position bias; IPEX fuses parts.
IN_PARTS = {"mpnet"}
LAYERS = 2
# (batch, sequence); 0 stands for the model's maximum.
SHAPES = [(1, 1), (1, 7), (2, 128), (5, 33), (1, 0), (3, 2)]


def random_inputs(manifest: cpuc.Manifest, batch: int, sequence: int) -> dict[str, np.ndarray]:
    """Random ids; every row but the first is padded, down to a single token."""
    generator = np.random.default_rng(batch * 1000 + sequence)
    inputs = {}
    lengths = np.linspace(sequence, 1, batch).astype(int)
    valid = np.arange(sequence)[None, :] < lengths[:, None]
    for spec in manifest.inputs:
        assert spec.maximum is not None
        assert spec.pad is not None
        values = generator.integers(5 if spec.name == "input_ids" else 0, spec.maximum + 1, (batch, sequence))
        inputs[spec.name] = valid.astype(np.int64) if spec.name == "attention_mask" else np.where(valid, values, spec.pad)
    return inputs


def largest_difference(model: cpuc.Model, eager: torch.nn.Module, shape: tuple[int, int]) -> float:
    """The largest absolute difference at unpadded positions, relative to the size of eager's outputs."""
    maximum = model.manifest.axes["sequence"].maximum
    inputs = random_inputs(model.manifest, shape[0], shape[1] or maximum or 512)
    with torch.inference_mode():
        expected = eager(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    valid = inputs["attention_mask"].astype(bool)
    worst = 0.0
    for name, actual in model.raw(inputs).items():
        reference = expected[name].numpy()[valid]
        worst = max(worst, float(np.abs(actual[valid] - reference).max() / np.abs(reference).max()))
    return worst


@pytest.mark.parametrize("kind", sorted(kind for kind, entry in ARCHITECTURES.items() if entry.tasks >= TEXT))
def test_fp32_equals_eager_on_shapes_it_was_not_traced_with(kind: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / kind, kind)
    manifest = cpuc.compile(str(folder), tmp_path / "model.pt")
    eager = transformers.AutoModelForQuestionAnswering.from_pretrained(folder, attn_implementation="eager").eval()
    model = cpuc.load(tmp_path / "model.pt")
    for shape in SHAPES:
        assert largest_difference(model, eager, shape) < 1e-5, shape

    fused = manifest.build.fused
    assert manifest.build.unfused == {}
    assert sum(n for name, n in fused.items() if name.startswith("ipex_prepack::linear")) == linear_calls(eager)
    if kind in IN_PARTS:
        assert fused["ipex::matmul_div"] == fused["ipex::softmax_"] == fused["ipex::matmul_outtrans"] == LAYERS
    else:
        assert fused["aten::scaled_dot_product_attention"] == LAYERS


def linear_calls(eager: torch.nn.Module) -> int:
    """How often one call of the model runs a linear layer; a layer may be shared."""
    calls: list[torch.nn.Module] = []
    for module in eager.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda linear, *_: calls.append(linear))
    eager(input_ids=torch.ones(1, 5, dtype=torch.int64))
    return len(calls)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_bf16_is_close_and_half_the_size(kind: str, tmp_path: Path) -> None:
    needs_avx512()
    folder = make_model(tmp_path / kind, kind)
    cpuc.compile(str(folder), tmp_path / "bf16.pt", precision="bf16")
    assert (tmp_path / "bf16.pt").stat().st_size < 0.7 * (folder / "model.safetensors").stat().st_size
    eager = transformers.AutoModelForQuestionAnswering.from_pretrained(folder, attn_implementation="eager").eval()
    model = cpuc.load(tmp_path / "bf16.pt")
    for shape in SHAPES:
        assert 0 < largest_difference(model, eager, shape) < 0.1, shape
    proof = model.manifest.proof
    assert proof is not None
    assert proof.rms_relative_difference < proof.tolerance


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_weights_stored_in_half_precision_are_computed_in_float32(stored: torch.dtype, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "bert", "bert")
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
    model.to(stored).save_pretrained(folder)
    cpuc.compile(str(folder), tmp_path / "model.pt")
    eager = transformers.AutoModelForQuestionAnswering.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert next(eager.parameters()).dtype == torch.float32
    assert largest_difference(cpuc.load(tmp_path / "model.pt"), eager.eval(), (2, 50)) < 1e-5
