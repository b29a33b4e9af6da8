"""Heads that read the first position only, and last layers that compute no other."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_model
from torch import nn
from torch.nn import functional as F  # noqa: N812

import cpuc
from cpuc.compiler.flash import KERNEL
from cpuc.compiler.fusion import FusedGraph, fuse

LENGTH, WIDTH = 37, 64


class Layer(nn.Module):
    """A transformer's layer of two heads; `mask` is added to its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out, self.up, self.down = (nn.Linear(WIDTH, WIDTH) for _ in range(6))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        q, k, v = (each(x).view(x.shape[0], x.shape[1], 2, -1).transpose(1, 2) for each in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)
        x = self.norm(x + self.out(attended))
        return self.norm(x + self.down(F.gelu(self.up(x))))


class Reader(nn.Module):
    def __init__(self, reads: str) -> None:
        super().__init__()
        self.layers, self.head, self.reads = nn.ModuleList(Layer() for _ in range(2)), nn.Linear(WIDTH, 3), reads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = (x[:, None, :, 0] > 1).unsqueeze(1).expand(-1, 1, x.shape[1], -1)
        mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(mask, -100.0) if "mask" in self.reads else None
        for layer in self.layers:
            x = layer(x, mask)
        if "second" in self.reads:
            return self.head(x[:, 1])
        if "all too" in self.reads:
            return self.head(x[:, 0]) + x.mean(1)[:, :3]
        return self.head(x[:, 0])


def rows(graph: FusedGraph, length: int) -> list[int]:
    """How many positions each attention of the stored graph computes."""
    copy = torch.jit.load(io.BytesIO(graph.saved())).graph.copy()
    found = copy.findAllNodes(KERNEL)
    for node in found:
        copy.registerOutput(node.inputsAt(0))
    copy.makeMultiOutputIntoTuple()
    copy.eraseInput(0)
    outputs = torch._C._create_function_from_graph("watched", copy)(torch.randn(2, length, WIDTH))
    return [output.shape[2] for output in outputs[-len(found) :]]


def compiled(module: nn.Module) -> FusedGraph:
    example = torch.randn(3, LENGTH, WIDTH)
    with torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(module.eval(), example))
    return fuse(traced, ["x"], {"x": example.numpy()})


@pytest.mark.parametrize(
    ("reads", "computed"),
    [("first", [37, 1]), ("first, with a mask", [37, 1]), ("second", [37, 37]), ("first, and all too", [37, 37])],
)
def test_only_what_is_read_is_computed(reads: str, computed: list[int]) -> None:
    torch.manual_seed(0)
    module = Reader(reads)
    graph = compiled(module)
    assert rows(graph, LENGTH) == computed
    loaded = torch.jit.load(io.BytesIO(graph.saved()))
    for batch, length in ((1, 2), (1, 5), (4, 64), (2, 130)):
        x = torch.randn(batch, length, WIDTH)
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            torch.testing.assert_close(loaded(x), module(x), rtol=1e-5, atol=2e-6)


def test_a_classifier_gives_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    source = make_model(tmp_path / "source", "bert", "text-classification")
    cpuc.compile(str(source), tmp_path / "model.pt")
    model = cpuc.load(tmp_path / "model.pt")
    texts = ["Ada wrote it.", "It was written by Ada Lovelace, who was a countess and a mathematician, " * 3, "Who?"]
    together = model([{"text": text} for text in texts])
    alone = [model({"text": text}) for text in texts]
    np.testing.assert_allclose([a.score for a in together], [a.score for a in alone], rtol=1e-5)
