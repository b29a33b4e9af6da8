"""The mask of padding: built from indices by transformers, a view of what was given in an artifact."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cpuc
from cpuc.compiler import rewrites
from cpuc.compiler.flash import KERNEL, use_flash
from cpuc.runtime.bundle import open_bundle
from cpuc.runtime.engine import Engine
from cpuc.runtime.libraries import load_ipex

MISSES = (
    "later keys",
    "fewer keys",
    "reversed keys",
    "later queries",
    "every second key",
    "keys for rows",
    "written",
    "given is written",
)


class Masked(nn.Module):
    """Attention under a mask built as transformers/masking_utils.py does, or otherwise."""

    def __init__(self, miss: str = "") -> None:
        super().__init__()
        self.miss = miss

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.miss == "given is written":
            mask = mask.clone()
        batch, length, size = x.shape[0], x.shape[1], mask.shape[1]
        queries, keys = torch.arange(length) + 0, torch.arange(size)
        if self.miss == "later keys":
            keys = (keys + 1) % size
        elif self.miss == "fewer keys":
            keys, x = torch.arange(size - 1), x[:, 1:]
            length, queries = length - 1, queries[1:]
        elif self.miss == "reversed keys":
            keys = keys.flip(0)
        elif self.miss == "every second key":
            keys = torch.arange(size)[::2]
        queries, keys = queries[None, None, :, None], keys[None, None, None, :]
        rows = torch.arange(batch)[:, None, None, None]
        valid = queries >= (2 if self.miss == "later queries" else 0)
        taken = mask[rows, keys] if self.miss != "keys for rows" else mask[rows, rows].expand(-1, 1, 1, length)
        truth = queries.new_ones((), dtype=torch.bool) & valid.to(x.device) & taken.to(x.device)
        key = x[:, ::2] if self.miss == "every second key" else x
        truth = truth.expand(batch, -1, length, key.shape[1])
        if self.miss == "given is written":
            mask[:, 0] = False
            x = x + mask[:, :1, None].float()
        if self.miss == "written":
            truth[:, :, 0, :] = True
        return nn.functional.scaled_dot_product_attention(x[:, None], key[:, None], key[:, None], truth)[:, 0]


def example(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.randint(4, length + 1, (batch, 1))
    return torch.randn(batch, length, 8), torch.arange(length) < lengths


def kinds(graph: Any) -> Counter[str]:
    return Counter(node.kind() for node in graph.nodes())


def rewritten(module: nn.Module) -> Any:
    load_ipex()
    torch.manual_seed(0)
    frozen = torch.jit.freeze(torch.jit.trace(module.eval(), example(3, 11), check_trace=False))
    rewrites.apply(frozen.graph)
    use_flash(frozen.graph, example(3, 11))
    torch._C._jit_pass_dce(frozen.graph)
    frozen.graph.lint()
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for size in ((3, 11), (1, 5), (4, 1), (5, 30)):
            if min(size) > 1 or not module.miss:
                given = example(*size) if size[1] > 3 else (torch.randn(*size, 8), torch.ones(size, dtype=torch.bool))
                expected = module(*given)
                read = (expected != 0).any(-1)  # what attends to nothing is zero in eager mode, and nobody reads it
                torch.testing.assert_close(frozen(*given)[read], expected[read])
    return frozen.graph


def test_a_mask_of_padding_is_a_view() -> None:
    found = kinds(rewritten(Masked()))
    assert found[KERNEL] == found["aten::where"] == found["aten::expand"] == 1
    assert not found["aten::index"] + found["aten::arange"] + found["aten::__and__"]


@pytest.mark.parametrize("miss", MISSES)
def test_other_masks_stay_what_they_are(miss: str) -> None:
    assert kinds(rewritten(Masked(miss)))["aten::index"] == 1


def test_it_is_made_once_for_all_layers(tiny: Path) -> None:
    graph = Engine(open_bundle(tiny)).module.inlined_graph
    found = kinds(graph)
    assert len(graph.findAllNodes(KERNEL)) == 2
    assert found["aten::where"] == 1
    assert not found["aten::index"] + found["aten::arange"]
    # Before it is expanded: one row for all queries.
    (where,) = graph.findAllNodes("aten::where")
    assert {use.user.kind() for use in where.output().uses()} <= {"aten::expand", "torch_ipex::bmm_add"}


def test_one_token_in_a_mask_that_lies_otherwise_in_memory(tiny: Path) -> None:
    model = cpuc.load(tiny, warm_up=False)
    tokens = np.full((4, 1), 7, np.int64)
    masks = np.ones((4, 1), np.int64), np.ones((1, 4), np.int64).T
    mine, turned = ({"input_ids": tokens, "attention_mask": mask} for mask in masks)
    np.testing.assert_array_equal(model.raw(turned)["start_logits"], model.raw(mine)["start_logits"])
