"""Models of images and sound: every heavy layer is fused, and the graph equals eager on shapes it was not traced with."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import attentions, linear_layers, needs_avx512
from media import CASES, Case

from cpuc.compiler import rewrites
from cpuc.compiler.architectures import ARCHITECTURES, AUDIO, IMAGE
from cpuc.compiler.branches import one_way
from cpuc.compiler.capture import capture, run_eager, to_tensors
from cpuc.compiler.fusion import FusedGraph, fuse

# What torch says of WavLM's masks.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
# One of each kind of packed operator and of each rewrite, run once more in a process of its own.
FRESH = ("convnext", "efficientnet", "resnet", "siglip-features", "swinv2", "wav2vec2-masked", "wavlm")


IMAGES = [name for name, case in CASES.items() if "pixel_values" in case.example]


def fused(case: Case, dtype: torch.dtype = torch.float32, *, fixed: bool = False) -> tuple[FusedGraph, Counter[str]]:
    """The fused graph, and the operators that there were before, less those that only constants decide.

    `fixed` says that it knows the size of images, as the compiler has it.
    """
    model: Any = case.model()
    model.set_attn_implementation(case.architecture.attention)
    frozen = capture(model.to(dtype), list(case.example), case.outputs, case.example)
    graph: Any = frozen.graph.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewrites, "REWRITES", ())
        rewrites.apply(graph)
    example = {name: array[:1] if fixed else array for name, array in case.example.items()}
    return fuse(frozen, list(example), example, fixed=fixed), Counter(node.kind() for node in graph.nodes())


def run(graph: FusedGraph, inputs: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
    program = torch.jit.load(io.BytesIO(graph.saved()))
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        results = program(*to_tensors(inputs, list(inputs)))
    return {name: tensor.numpy() for name, tensor in zip(outputs, results, strict=True)}


def packed(graph: FusedGraph, context: str) -> int:
    """Layers whose packed weight some operator takes."""
    inputs = (value for node in one_way(graph.graph) for value in node.inputs())
    return sum(str(value.type()).endswith(context) for value in inputs)


@pytest.mark.parametrize("name", CASES)
def test_fp32_is_fused_and_equals_eager_on_shapes_it_was_not_traced_with(name: str) -> None:
    case = CASES[name]
    graph, before = fused(case)
    for shape in case.unseen:
        inputs = case.inputs(*shape)
        expected = run_eager(case.model(), list(inputs), case.outputs, inputs)
        for output, actual in run(graph, inputs, case.outputs).items():
            assert actual.shape == expected[output].shape
            assert np.abs(actual - expected[output]).max() < 1e-5 * np.abs(expected[output]).max(), (shape, output)

    assert graph.unfused == case.unfused
    assert attentions(graph.fused) == case.attentions
    convolutions = before["aten::_convolution"] + before["aten::_convolution_mode"]
    # Convolutions of width 1 over sound become linear layers.
    linear, others = linear_layers(graph.graph), packed(graph, "ConvolutionOpContext")
    assert linear + others == before["aten::linear"] + convolutions
    assert linear >= before["aten::linear"] > 0 or name.endswith("basic-features")
    assert 0 < others <= convolutions


@pytest.mark.parametrize("name", CASES)
def test_bf16_is_fused_and_close(name: str) -> None:
    needs_avx512()
    case = CASES[name]
    graph, _ = fused(case, torch.bfloat16)
    assert graph.unfused == case.unfused
    assert attentions(graph.fused) == case.attentions
    for shape in case.unseen[:3]:
        inputs = case.inputs(*shape)
        expected = run_eager(case.model(), list(inputs), case.outputs, inputs)
        for output, actual in run(graph, inputs, case.outputs).items():
            assert actual.dtype == np.float32
            error = np.sqrt(np.mean((actual - expected[output]) ** 2) / np.mean(expected[output] ** 2))
            assert 0 < error < 6e-2, (shape, output)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in IMAGES), *((name, torch.bfloat16) for name in ("beit", "mobilenet_v2", "swin"))],
)
def test_images_of_one_size_in_any_number_equal_eager(name: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16:
        needs_avx512()
    case = CASES[name]
    graph, _ = fused(case, dtype, fixed=True)
    assert graph.unfused == case.unfused
    assert attentions(graph.fused) == case.attentions
    for rows in (1, 2, 5):
        inputs = case.inputs(rows, 101)
        expected = run_eager(case.model(), list(inputs), case.outputs, inputs)
        for output, actual in run(graph, inputs, case.outputs).items():
            error = np.sqrt(np.mean((actual - expected[output]) ** 2) / np.mean(expected[output] ** 2))
            assert error < (1e-5 if dtype == torch.float32 else 6e-2), (rows, output)


def test_fused_graphs_load_silently_in_a_fresh_process_and_give_the_same(tmp_path: Path) -> None:
    expected = {}
    for name in FRESH:
        case = CASES[name]
        graph, _ = fused(case)
        torch.jit.save(graph.program, str(tmp_path / f"{name}.pt"))
        batches = [case.inputs(*shape) for shape in case.unseen]
        expected[name] = [run(graph, batch, case.outputs) for batch in batches]
        arrays = {f"{i}/{j}": array for i, batch in enumerate(batches) for j, array in enumerate(batch.values())}
        np.savez(tmp_path / f"{name}.in.npz", **arrays)
    program = f"""
import os, sys
from pathlib import Path
from cpuc.compiler.fresh import answer, artifact
for name in {FRESH!r}:
    run = artifact(str(os.open(name + ".pt", os.O_RDONLY)))
    Path(name + ".out.npz").write_bytes(answer(run, Path(name + ".in.npz").read_bytes()))
"""
    program += "assert not {'intel_extension_for_pytorch', 'transformers'} & set(sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    for name in FRESH:
        with np.load(tmp_path / f"{name}.out.npz") as arrays:
            for i, batch in enumerate(expected[name]):
                for j, array in enumerate(batch.values()):
                    np.testing.assert_allclose(arrays[f"{i}/{j}"], array, rtol=0, atol=1e-6 * np.abs(array).max())


@pytest.mark.parametrize("name", ["wav2vec2-masked", "hubert-masked", "wavlm-masked", "unispeech", "unispeech-sat"])
def test_padding_under_a_mask_changes_nothing(name: str) -> None:
    case = CASES[name]
    graph, _ = fused(case)
    short = {key: array[:1] for key, array in case.inputs(1, 9000).items()}
    padded = {key: np.pad(array, ((0, 0), (0, 7000))) for key, array in short.items()}
    alone = run(graph, short, case.outputs)["logits"]
    together = run(graph, padded, case.outputs)["logits"]
    frames = alone.shape[1] if alone.ndim == 3 else None
    assert np.abs(together[:, :frames] - alone).max() < 1e-5 * np.abs(alone).max()


def test_every_entry_for_images_and_sound_is_tried() -> None:
    entries = {kind for kind, entry in ARCHITECTURES.items() if entry.tasks & (IMAGE | AUDIO)}
    assert entries == {case.kind for case in CASES.values()}
