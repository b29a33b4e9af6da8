"""Residual connections that a layer in int8 adds where what it adds to lies, and those that it must leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_int8 import in_int8

from cpuc.compiler import fusion


class Residual(torch.nn.Module):
    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case
        self.norm, self.first, self.second = torch.nn.LayerNorm(64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        n = self.norm(rows)
        first = n[:, :1]
        match self.case:
            case "twice":
                n = n + self.first(n)
                return torch.sin(self.second(torch.nn.functional.gelu(self.first(n))) + n)
            case "read later":
                return torch.sin(n + self.first(n)) * n
            case "given":
                return torch.sin(rows + self.first(rows))
            case "given again":
                return torch.cat([torch.sin(n + self.first(n)), n])
            case "seen in part":
                return torch.sin(n + self.first(n)) * first
            case "seen in part before and after":
                return torch.sin(n + self.first(n * first)) * first
            case "broadcast":
                return torch.sin(self.norm(rows[:, :1]) + self.first(rows))
            case "one row for all":
                return torch.sin(self.norm(rows[:1]) + self.first(rows))
            case "made later":
                y = self.first(rows)
                return torch.sin(self.norm(rows * 2) + y)
            case "scaled":
                return torch.sin(torch.add(n, self.first(n), alpha=2))
            case "in another order in memory":
                return torch.sin(torch.add(rows.transpose(0, 1).contiguous().transpose(0, 1), 1) + self.first(rows))
            case "normalised later":
                return torch.sin(n + self.first(n)) * self.norm(n)
            case "normalised before, for something else":
                return self.norm(n) * torch.sin(n + self.first(n))
        raise AssertionError(self.case)


@pytest.mark.parametrize(
    ("case", "sums"),
    [
        ("twice", 2),
        ("read later", 0),
        ("given", 0),
        ("given again", 0),
        ("seen in part", 0),
        ("seen in part before and after", 0),
        ("broadcast", 0),
        ("one row for all", 0),
        ("made later", 0),
        ("scaled", 0),
        ("in another order in memory", 0),
        ("normalised later", 0),
        ("normalised before, for something else", 0),
    ],
)
def test_layers_add_where_nobody_reads_what_was_there(case: str, sums: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, rows = Residual(case).eval(), torch.randn(3, 9, 64)
    given = rows.clone()
    graph, found = in_int8(module, rows)
    assert torch.equal(rows, given)
    layers: list[Any] = graph.graph.findAllNodes("onednn::qlinear_pointwise")
    assert sum(layer.inputsSize() > 13 for layer in layers) == sums
    monkeypatch.setattr(fusion, "find_sums", lambda graph, batch: {})  # noqa: ARG005
    _, plain = in_int8(module, rows)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        expected = module(rows)
    assert (found - expected).square().mean() < 0.02**2 * expected.square().mean()
