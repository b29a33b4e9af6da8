"""Large embedding tables next to layers in int8: a byte for each value, unless that loses too much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import here
from safetensors.torch import load_file, save_file
from tiny import make_model

import cpuc
from cpuc.compiler.quantization.embedding import round_tables


def tables(path: Path, size: int) -> list[torch.dtype]:
    """The dtypes of an artifact's constants of `size` values."""
    graph = torch.jit.load(path).forward.graph
    values = (node.output().toIValue() for node in graph.findAllNodes("prim::Constant") if node.hasAttribute("value"))
    return [value.dtype for value in values if isinstance(value, torch.Tensor) and value.numel() == size]


# With the share of float32's size: layers that stay in float32 take more than those in bfloat16.
@pytest.mark.parametrize(("precision", "share"), [("int8", 0.36), ("int8-dynamic-fp32", 0.4)])
def test_words_take_a_byte_for_each_value(precision: str, share: float, minilm: Path, fp32: Path, tmp_path: Path) -> None:
    cpuc.compile(str(minilm), tmp_path / "model.pt", precision=here(precision))
    assert tables(tmp_path / "model.pt", 30522 * 384) == [torch.int8]
    assert tables(tmp_path / "model.pt", 512 * 384) == [torch.float32]
    assert (tmp_path / "model.pt").stat().st_size < share * fp32.stat().st_size


def test_a_table_whose_rows_int8_holds_badly_takes_two(tmp_path: Path) -> None:
    source = make_model(tmp_path / "source", "distilbert")
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(source)
    model.resize_token_embeddings(20000)
    model.save_pretrained(source)
    weights = load_file(source / "model.safetensors")
    words = weights["distilbert.embeddings.word_embeddings.weight"]
    assert words.numel() >= 1 << 20
    cpuc.compile(str(source), tmp_path / "even.pt", precision="int8-fp32")
    words[:, 5] = 40  # where norms are taken, it is the same for every row
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    cpuc.compile(str(source), tmp_path / "odd.pt", precision="int8-fp32")
    assert (tables(tmp_path / "even.pt", words.numel()), tables(tmp_path / "odd.pt", words.numel())) == (
        [torch.int8],
        [torch.bfloat16],
    )


@pytest.mark.parametrize("accurate", [True, False])
def test_rows_are_those_of_the_table(accurate: bool) -> None:
    module = torch.nn.Embedding(20000, 64)
    ids = torch.randint(0, 20000, (3, 7))
    frozen = torch.jit.freeze(torch.jit.trace(module.eval(), ids))
    graph = frozen.graph
    round_tables(graph, lambda: accurate)
    graph.eraseInput(0)
    found = torch._C._create_function_from_graph("rows", graph)(ids)
    rows = module(ids).detach()
    # Half a level of each row's largest value, or half of the last of bfloat16's 8 digits.
    allowed = rows.abs().amax(-1, keepdim=True) / 254 if accurate else rows.abs() / 256
    assert found.dtype == torch.float32 and bool(((found - rows).abs() <= 1.001 * allowed).all())
    assert not np.array_equal(found.numpy(), rows.numpy())
