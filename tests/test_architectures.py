"""Each architecture compiles, is fused, and equals eager on shapes that it was not traced with."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import attentions, coverage_rows, linear_layers, needs_avx512
from tiny import make_model, new_model, random_tokens

import cpuc
from cpuc.compiler.architectures import ARCHITECTURES, TEXT
from cpuc.compiler.capture import capture, run_eager, to_tensors
from cpuc.compiler.fusion import FusedGraph, fuse
from cpuc.compiler.loading import quiet

# Of these a whole compile is tested, of all others only capture and fusion.
COMPILED = ("albert", "bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
# Attention where it is not one for each of two layers: Funnel has a decoder of one, BART's decoders have two a layer.
ATTENTIONS = {"bart": 6, "funnel": 3, "mbart": 6}
# Linear layers that are no torch.nn.Linear (einsums of a weight: five in a layer of XLNet, one in Funnel's), less those
# whose result is a constant (DeBERTa's position embeddings) or never used (a pooler), and convolutions of width 1.
MORE_LINEAR = {"convbert": 2, "deberta": -4, "deberta-v2": -4, "funnel": 3, "squeezebert": 1, "xlnet": 10}
LAYERS = 2
KINDS = sorted(kind for kind, entry in ARCHITECTURES.items() if entry.tasks <= TEXT)
# (batch, sequence); 0 stands for the model's maximum.
SHAPES = [(1, 1), (1, 7), (2, 128), (5, 33), (1, 0), (3, 2), (4, 64)]
# Funnel itself fails for fewer tokens than this: its pooling has nothing to pool.
SHORTEST = {"funnel": 3}


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


@pytest.mark.parametrize("kind", COMPILED)
def test_fp32_equals_eager_on_shapes_it_was_not_traced_with(kind: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / kind, kind)
    manifest = cpuc.compile(str(folder), tmp_path / "model.pt")
    eager = transformers.AutoModelForQuestionAnswering.from_pretrained(folder, attn_implementation="eager").eval()
    model = cpuc.load(tmp_path / "model.pt")
    for shape in SHAPES:
        assert largest_difference(model, eager, shape) < 1e-5, shape

    fused = manifest.build.fused
    assert manifest.build.unfused == {}
    assert linear_layers(torch.jit.load(tmp_path / "model.pt").graph) == linear_calls(eager)
    assert attentions(fused) == LAYERS


def compiled(kind: str, model: Any, names: list[str], outputs: list[str]) -> FusedGraph:
    ARCHITECTURES[kind].prepare(model)
    example = random_tokens(model, 3, 37)
    with quiet():
        return fuse(capture(model, names, outputs, example), names, example)


def reloaded(graph: FusedGraph) -> Any:
    file = io.BytesIO()
    torch.jit.save(graph.program, file)
    file.seek(0)
    return torch.jit.load(file)


def run(function: Any, names: list[str], outputs: list[str], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        result = function(*to_tensors(inputs, names))
    # A function of one output returns it bare.
    results = result if isinstance(result, tuple) else (result,)
    return {name: tensor.numpy() for name, tensor in zip(outputs, results, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_all_is_fused_and_equals_eager_on_shapes_it_was_not_traced_with(kind: str) -> None:
    model = new_model(kind)
    maximum = ARCHITECTURES[kind].max_length(model.config) or 300
    shapes = [(batch, length or maximum) for batch, length in SHAPES if (length or maximum) >= SHORTEST.get(kind, 1)]
    names = list(random_tokens(model, 1, 5))
    outputs = ["start_logits", "end_logits"] if "question-answering" in ARCHITECTURES[kind].tasks else ["logits"]
    calls = linear_calls(model)
    with quiet():
        expected = [run_eager(model, names, outputs, random_tokens(model, *shape)) for shape in shapes]

    graph = compiled(kind, model, names, outputs)

    assert graph.unfused == {}
    assert attentions(graph.fused) == ATTENTIONS.get(kind, LAYERS)
    linear = linear_layers(graph.graph)
    assert linear == calls + MORE_LINEAR.get(kind, 0)
    count = ATTENTIONS.get(kind, LAYERS)
    assert coverage_rows()[kind]["attention"] == f"{count}/{count}"
    assert coverage_rows()[kind]["linear"] == f"{linear}/{linear}"
    function = reloaded(graph)
    scale = max(np.abs(array).max() for batch in expected for array in batch.values())
    for shape, eager in zip(shapes, expected, strict=True):
        inputs = random_tokens(model, *shape)
        valid = inputs["attention_mask"].astype(bool)
        for name, actual in run(function, names, outputs, inputs).items():
            assert np.abs(actual[valid] - eager[name][valid]).max() < 1e-5 * scale, shape


def linear_calls(eager: torch.nn.Module) -> int:
    """How often one call of the model runs a linear layer; a layer may be shared."""
    calls: list[torch.nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda linear, *_: calls.append(linear))
        for module in eager.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    eager(input_ids=torch.full((1, 5), 9))
    for hook in hooks:
        hook.remove()
    return len(calls)


@pytest.mark.parametrize("kind", ["bart", "deberta", "deberta-v2", "funnel", "mpnet", "squeezebert", "xlm", "xlnet"])
def test_in_bf16_as_much_is_fused(kind: str) -> None:
    needs_avx512()
    model, outputs = new_model(kind), ["start_logits", "end_logits"]
    names, shape = list(random_tokens(model, 1, 5)), (4, 50)
    with quiet():
        expected = run_eager(model, names, outputs, random_tokens(model, *shape))
    graph = compiled(kind, model.to(torch.bfloat16), names, outputs)
    assert graph.unfused == {}
    assert attentions(graph.fused) == ATTENTIONS.get(kind, LAYERS)
    inputs = random_tokens(model, *shape)
    valid = inputs["attention_mask"].astype(bool)
    for name, actual in run(reloaded(graph), names, outputs, inputs).items():
        difference, eager = actual[valid] - expected[name][valid], expected[name][valid]
        assert 0 < np.sqrt((difference**2).mean() / (eager**2).mean()) < 0.06


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
