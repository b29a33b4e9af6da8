"""What becomes a constant at compile time because sizes are known, or tables."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import pytest
import torch
from test_media_rewrites import Plain, check
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.testing import FileCheck

from cpuc.compiler import several
from cpuc.compiler.capture import capture
from cpuc.compiler.fusion import fuse
from cpuc.compiler.sizes import fix_sizes


def fixed(function: Callable[..., torch.Tensor], *weights: torch.Tensor, size: int = 6) -> str:
    """The graph of a function of images when it is known that they have this size; its results stay, for any number of rows."""
    module = Plain(function, *weights)
    inputs = torch.randn(2, 3, size, size)
    frozen = torch.jit.freeze(torch.jit.trace(module.eval(), (inputs,), check_trace=False))
    FileCheck().check("aten::size").run(frozen.graph)
    fix_sizes(frozen.graph, [inputs[:1]])
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for rows in (1, 2, 7):
            for _ in range(2):  # what is constant must not be written to
                images = torch.randn(rows, 3, size, size)
                torch.testing.assert_close(frozen(images.clone()), module(images))
    return str(frozen.graph)


def table(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """As BEiT's: an index that is written part by part."""
    steps = torch.arange(x.shape[2])
    index = torch.zeros(x.shape[2], x.shape[3], dtype=torch.long)
    index[1:, 1:] = steps[1:, None] + steps[None, 1:]
    index[0, :] = 11
    index += 1
    return x + positions[index]


def test_a_table_that_is_written_part_by_part_is_a_constant() -> None:
    graph = fixed(table, torch.randn(13))
    FileCheck().check_not("aten::size").check_not("aten::index").check("aten::add").run(graph)


def test_what_depends_on_the_number_of_rows_stays() -> None:
    def windows(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0] * x.shape[1], x.shape[2] // 2, -1).sum(1) * torch.arange(x.shape[0]).sum()

    FileCheck().check_count("aten::size", 1, exactly=True).check("aten::arange").run(fixed(windows))


def test_what_an_input_was_written_to_is_no_constant() -> None:
    def filled(x: torch.Tensor) -> torch.Tensor:
        memory = torch.zeros(x.shape[2], x.shape[3])
        memory[0] = x[0, 0, 0]
        return x + memory.clone()

    FileCheck().check("aten::copy_").check("aten::clone").run(fixed(filled))


def test_what_an_input_was_written_to_through_a_view_is_no_constant() -> None:
    def filled(x: torch.Tensor) -> torch.Tensor:
        memory = torch.zeros(x.shape[2], x.shape[3])
        memory[x.shape[0] % 2] = x[0, 0, 0]
        return x + memory.clone()

    FileCheck().check("aten::copy_").check("aten::clone").run(fixed(filled))


def test_what_a_loop_makes_of_an_input_is_no_constant() -> None:
    @torch.jit.script
    def total(x: torch.Tensor) -> torch.Tensor:
        memory = torch.zeros(x.size(2), x.size(3))
        for i in range(3):
            memory = memory + x[0, i]
        return memory

    fixed(lambda x: x + total(x))


def test_a_size_that_depends_on_what_is_in_an_image_stays() -> None:
    FileCheck().check("aten::size").run(fixed(lambda x: x * (x[:1] > 0).nonzero().shape[0]))


def test_random_numbers_are_no_constant() -> None:
    graph = fixed(lambda x: x + 0 * torch.rand(1, x.shape[2]))
    FileCheck().check("aten::rand").run(graph)


def test_a_constant_that_would_be_large_is_made_anew_of_one_that_is_small() -> None:
    def bias(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        index = torch.zeros(x.shape[2], x.shape[3], dtype=torch.long)
        index[1:] = 3
        return x.mean() + positions[index]  # 1.1 MiB an element of the index, 40 in all

    FileCheck().check_not("aten::copy_(").check("aten::index").run(fused_constants(bias, torch.randn(4, 300_000)))
    FileCheck().check_not("aten::index").run(fused_constants(bias, torch.randn(4, 3)))


def fused_constants(function: Callable[..., torch.Tensor], *weights: torch.Tensor) -> str:
    """The graph of a function of images after fusion, which drops what nobody needs."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Plain(function, *weights)

        def forward(self, pixel_values: torch.Tensor, return_dict: bool) -> dict[str, torch.Tensor]:  # noqa: ARG002
            return {"logits": self.inner(pixel_values)}

    example = {"pixel_values": torch.randn(2, 3, 6, 6).numpy()}
    frozen = capture(Model(), ["pixel_values"], ["logits"], example)
    return str(fuse(frozen, ["pixel_values"], example, fixed=True).graph)


def test_a_constant_that_is_written_to_later_stays_as_it_is_in_every_call() -> None:
    def counted(x: torch.Tensor) -> torch.Tensor:
        memory = torch.ones(x.shape[2], x.shape[3])
        before = x + memory
        memory += x[0, 0]
        return before * memory

    FileCheck().check("aten::ones").run(fixed(counted))


@pytest.mark.parametrize("differ", [True, False, None])
def test_convolutions_are_packed_for_one_image_and_for_several(differ: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the order of weights differs, which depends on the CPU: None leaves it to it."""
    if differ is not None:
        memories = itertools.count() if differ else itertools.repeat(0)
        monkeypatch.setattr(several, "_memory", lambda _: torch.tensor(next(memories)))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.apart = nn.Conv2d(3, 256, 3), nn.Conv2d(256, 1024, 1), nn.Conv2d(1024, 8, 1, groups=8)

        def forward(self, pixel_values: torch.Tensor, return_dict: bool) -> dict[str, torch.Tensor]:  # noqa: ARG002
            hidden = self.one(pixel_values)
            return {"logits": self.apart((self.other(hidden) + hidden.repeat(1, 4, 1, 1)).relu())}

    torch.manual_seed(0)
    model, example = Model(), {"pixel_values": torch.randn(1, 3, 16, 16).numpy()}
    frozen = capture(model, ["pixel_values"], ["logits"], {"pixel_values": torch.randn(2, 3, 16, 16).numpy()})
    fused = fuse(frozen, ["pixel_values"], example, fixed=True)
    ways = [node for node in fused.graph.nodes() if node.kind() == "prim::If"]
    assert differ is None or len(ways) == 3 * differ
    assert sum(n for kind, n in fused.fused.items() if kind.startswith("ipex_prepack::convolution")) == 3
    program = torch.jit.load(io.BytesIO(fused.saved()))
    for rows in (1, 2, 8, 9):
        images = torch.randn(rows, 3, 16, 16)
        with torch.no_grad(), torch.jit.optimized_execution(False):
            (actual,) = program(images)
            torch.testing.assert_close(actual, model(images, True)["logits"], atol=1e-4, rtol=1e-4)


def test_padding_by_nothing_is_a_copy_where_that_matters() -> None:
    def written(x: torch.Tensor) -> torch.Tensor:
        copy = F.pad(x, (0, 0, 0, 0))
        copy[:, 0] = 0
        return x + copy

    check(Plain(written), [torch.randn(2, 3, 4)], ["aten::pad"], ["aten::pad"])


LAYER = torch.randn(16, 8), torch.randn(16)


def test_linear_of_part() -> None:
    def positions(x: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        part = rows[6 - x.shape[1] : 6 + x.shape[1], :].unsqueeze(0)
        return x.sum() + F.linear(part, weight, bias) + F.linear(part, weight).tanh()

    module = Plain(positions, torch.randn(12, 8), *LAYER)
    check(module, [torch.randn(2, 5)], ["aten::linear"], ["aten::slice", "aten::tanh"], [torch.randn(3, 2)])


def test_linear_of_part_that_is_written_to() -> None:
    def scaled(x: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        part = F.linear(rows[: x.shape[1]], weight, bias).transpose(0, 1)
        part /= x.sum()
        return part

    inputs, others = [torch.randn(2, 5)], [torch.randn(3, 7)]
    module = Plain(scaled, torch.randn(12, 8), *LAYER)
    check(module, inputs, ["aten::linear"], ["aten::slice", "aten::clone", "aten::div"], others)


@pytest.mark.parametrize(
    "part",
    [
        lambda rows, n: rows[:n, :8],
        lambda rows, n: rows[:n, 1:],
        lambda rows, n: rows.unsqueeze(1)[:n, :, 1:],
        lambda rows, n: rows[:n, ::2].repeat(1, 2)[:, :8],
    ],
)
def test_linear_of_part_of_the_columns_is_left_alone(part: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    module = Plain(lambda x, rows, weight, bias: F.linear(part(rows, x.shape[1]), weight, bias), torch.randn(12, 9), *LAYER)
    check(module, [torch.randn(2, 5)], ["aten::linear"], ["linear_run"], [torch.randn(3, 7)])


def test_linear_of_part_of_a_long_table_is_left_alone() -> None:
    module = Plain(lambda x, rows, weight, bias: F.linear(rows[: x.shape[1]], weight, bias), torch.randn(4097, 8), *LAYER)
    check(module, [torch.randn(2, 5)], ["aten::linear"], ["linear_run"], [torch.randn(3, 7)])
