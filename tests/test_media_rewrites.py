"""Each rewrite for images and sound: the graph before and after, the same numbers, and a near miss that it leaves alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.testing import FileCheck

from cpuc.compiler import rewrites
from cpuc.compiler.capture import capture
from cpuc.compiler.fusion import fuse
from cpuc.runtime.libraries import load_ipex

FUSED = "aten::scaled_dot_product_attention"


class Plain(nn.Module):
    """A function with the weights that it uses."""

    def __init__(self, function: Callable[..., torch.Tensor], *weights: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for i, weight in enumerate(weights):
            self.register_buffer(f"weight{i}", weight)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs, *self.buffers())


def check(
    module: nn.Module, inputs: list[torch.Tensor], before: list[str], after: list[str], others: list[torch.Tensor] | None = None
) -> str:
    """The operators of `before` turn into those of `after`, and results stay; returns the graph."""
    load_ipex()
    frozen = torch.jit.freeze(torch.jit.trace(module.eval(), tuple(inputs), check_trace=False))
    for operators, gone in ((before, []), (after, [kind for kind in before if kind not in after])):
        drawing = FileCheck()
        for kind in operators:
            drawing.check(kind)
        drawing.run(frozen.graph)
        for kind in gone:
            FileCheck().check_not(f"Tensor = {kind}(").run(frozen.graph)
        if operators is before:
            rewrites.apply(frozen.graph)
    with torch.no_grad(), torch.jit.optimized_execution(False):  # as it is, without the passes of IPEX
        for batch in (inputs, others or inputs):
            torch.testing.assert_close(frozen(*batch), module(*batch), atol=2e-5, rtol=1e-5)
    return str(frozen.graph)


def unchanged(module: nn.Module, inputs: list[torch.Tensor], operators: list[str]) -> None:
    """The operators stay; a batched product is written as the other kind all the same."""
    check(module, inputs, operators, [kind.replace("aten::bmm", "aten::matmul") for kind in operators])


def images(channels: int, batch: int = 2, size: int = 9) -> list[torch.Tensor]:
    return [torch.randn(batch, channels, size, size)]


def sounds(channels: int, batch: int = 2, size: int = 50) -> list[torch.Tensor]:
    return [torch.randn(batch, channels, size)]


def heads(*sizes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(size) for size in sizes]


@pytest.mark.parametrize("groups", [1, 4])
def test_channels_last(groups: int) -> None:
    layer = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups)
    graph = check(layer, images(8), ["aten::_convolution"], ["aten::conv2d"], images(8, 3, 20))
    channels = 8 // groups
    assert f"strides=[{9 * channels}, 1, {3 * channels}, {channels}]" in graph  # of the weight


@pytest.mark.parametrize(("layer", "rank"), [(nn.ConvTranspose2d(4, 8, 3), 2), (nn.Conv3d(4, 8, 3), 3)])
def test_transposed_and_three_dimensional_convolutions_are_left_alone(layer: nn.Module, rank: int) -> None:
    unchanged(layer, [torch.randn(2, 4, *[7] * rank)], ["aten::_convolution"])


@pytest.mark.parametrize("mode", ["valid", "same"])
@pytest.mark.parametrize("kernel", [1, 3, (5, 3)])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
def test_padding_by_name(mode: str, kernel: int | tuple[int, int], dilation: int | tuple[int, int]) -> None:
    layer = nn.Conv2d(4, 8, kernel, padding=mode, dilation=dilation)
    check(layer, images(4, size=12), ["aten::_convolution_mode"], ["aten::conv2d"], images(4, 3, 15))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_padding_to_the_same_size_with_an_even_kernel_is_left_alone() -> None:
    unchanged(nn.Conv2d(4, 8, 2, padding="same"), images(4), ["aten::_convolution_mode"])
    # One that is even and dilated by two is symmetric after all.
    check(nn.Conv2d(4, 8, 2, padding="same", dilation=2), images(4), ["aten::_convolution_mode"], ["aten::conv2d"])


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"padding": 1, "dilation": (2, 1)}])
def test_padding_in_convolution(groups: int, settings: dict[str, Any]) -> None:
    layer = nn.Sequential(nn.ZeroPad2d((1, 1, 2, 2)), nn.Conv2d(4, 8, 3, groups=groups, **settings))
    check(layer, images(4), ["aten::pad", "aten::_convolution"], ["aten::conv2d"], images(4, 3, 20))


@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (2, 0, 1, 1), (0, 3, 2, 1)])
@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
def test_padding_by_more_on_one_side_in_convolution_of_each_channel(
    pads: tuple[int, ...], stride: int | tuple[int, int]
) -> None:
    layer = nn.Sequential(nn.ZeroPad2d(pads), nn.Conv2d(4, 8, 3, groups=4, stride=stride))
    for size in (9, 10, 11, 12):
        check(layer, images(4, 2, size), ["aten::pad", "aten::_convolution"], ["aten::conv2d"])


def test_padding_that_is_left_alone() -> None:
    padded = ["aten::pad", "aten::conv2d"]
    for layers in (
        (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 8, 3, stride=2)),  # all channels: longer kernels would cost more
        (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 8, 3, groups=4, padding=1)),
        (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 8, 3, groups=4, dilation=2)),
        (nn.ZeroPad2d((-1, -1, 0, 0)), nn.Conv2d(4, 8, 3)),
        (nn.ConstantPad1d(1, 0.0), nn.Conv2d(4, 8, 3)),  # of the last axis only
        (nn.ConstantPad2d(1, 0.5), nn.Conv2d(4, 8, 3)),
        (nn.ReflectionPad2d(1), nn.Conv2d(4, 8, 3)),
    ):
        check(nn.Sequential(*layers), images(4), ["aten::pad", "aten::_convolution"], padded, images(4, 3, 12))
    check(nn.Sequential(nn.ZeroPad2d(0), nn.ReLU()), images(4), ["aten::pad", "aten::relu"], ["aten::relu"])


def response(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, order: float = 2) -> torch.Tensor:
    norm = torch.linalg.vector_norm(x, order, dim=(1, 2), keepdim=True)
    return weight * (x * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + bias + x


def test_response_norm() -> None:
    before = ["aten::linalg_vector_norm", "aten::mean", "aten::div", "aten::add"]
    after = ["aten::sum", "aten::sqrt", "aten::mean", "aten::add", "aten::div", "aten::addcmul"]
    weights = torch.randn(1, 1, 1, 9), torch.randn(1, 1, 1, 9)
    check(Plain(response, *weights), images(4), before, after, images(5, 3, 9))
    unchanged(Plain(lambda x, w, b: response(x, w, b, 1), *weights), images(4), before)


def test_scaled_linear_turned() -> None:
    x, others, weights = [torch.randn(2, 4)], [torch.randn(3, 5, 4)], (torch.randn(8, 4), torch.randn(8))
    layer = Plain(lambda x, w, b, f: f * F.linear(x, w, b), *weights, torch.randn(8))
    check(layer, x, ["aten::linear", "aten::mul"], ["ipex_prepack::linear_run"], others)
    for factor in (torch.randn(1), torch.randn(1, 8)):
        near = Plain(lambda x, w, b, f: f * F.linear(x, w, b), *weights, factor)
        check(near, x, ["aten::linear", "aten::mul"], ["ipex_prepack::linear_run", "aten::mul"], others)


@pytest.mark.parametrize("form", ["none", "tanh"])
def test_conv1d_and_gelu_as_2d(form: str) -> None:
    layer = nn.Sequential(nn.Conv1d(8, 16, 10, stride=5, bias=False), nn.GELU(form))
    order = ["aten::unsqueeze", "aten::conv2d", "aten::gelu", "aten::squeeze"]
    check(layer, sounds(8), ["aten::_convolution", "aten::gelu"], order, sounds(8, 3, 77))


@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_as_linear(bias: bool) -> None:
    layer = nn.Conv1d(8, 16, 1, bias=bias)
    order = ["aten::transpose", "ipex_prepack::linear_run", "aten::transpose"]
    check(layer, sounds(8), ["aten::_convolution"], order, sounds(8, 3, 77))
    for near in (nn.Conv1d(8, 16, 1, stride=2), nn.Conv1d(8, 16, 1, padding=1)):
        check(near, sounds(8), ["aten::_convolution"], ["aten::conv2d"])


@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_for_groups_as_products(bias: bool) -> None:
    layer = nn.Conv1d(8, 16, 1, groups=4, bias=bias)
    order = ["aten::transpose", "aten::reshape", "torch_ipex::bmm_add", "aten::add", "aten::transpose"]
    check(layer, sounds(8), ["aten::_convolution"], order, sounds(8, 3, 77))
    check(nn.Conv1d(8, 16, 1, groups=4, stride=2), sounds(8), ["aten::_convolution"], ["aten::conv2d"])


@pytest.mark.parametrize(
    ("width", "settings"),
    [
        (128, {"padding": 64}),
        (128, {"padding": 64, "stride": 2}),
        (3, {}),
        (3, {"stride": 3, "dilation": 2}),
        (4, {"padding": 1, "stride": 2, "bias": False}),
    ],
)
def test_conv1d_for_groups_in_blocks(width: int, settings: dict[str, int]) -> None:
    layer = nn.Conv1d(12, 24, width, groups=2, **settings)
    order = ["aten::constant_pad_nd", "aten::unfold", "aten::conv2d", "aten::slice"]
    for length in (7, 31, 32, 33, 64, 65, 99, 100, 101, 300):  # some leave more at the end than the last block sees
        check(layer, sounds(12), ["aten::_convolution"], order, sounds(12, 3, length))
    far = nn.Conv1d(12, 12, 3, groups=2, dilation=200, padding=200)
    check(far, sounds(12), ["aten::_convolution"], ["aten::unsqueeze", "aten::conv2d"], sounds(12, 3, 300))


@pytest.mark.parametrize("groups", [1, 64])
def test_conv1d_as_2d(groups: int) -> None:
    layer = nn.Sequential(nn.Conv1d(64, 64, 4, padding=2, groups=groups, dilation=3), nn.ReLU())
    order = ["aten::unsqueeze", "aten::conv2d", "aten::squeeze", "aten::relu"]
    check(layer, sounds(64), ["aten::_convolution", "aten::relu"], order, sounds(64, 1, 31))
    unchanged(nn.ConvTranspose1d(4, 8, 3), sounds(4), ["aten::_convolution"])


def divided(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.softmax(q @ k.transpose(-1, -2) / 4.5, dim=-1) @ v


def test_divided_attention() -> None:
    before = ["aten::matmul", "aten::div", "aten::softmax", "aten::matmul"]
    q, k, v = (2, 3, 5, 16), (2, 3, 7, 16), (2, 3, 7, 16)
    check(Plain(divided), heads(q, k, v), before, [FUSED], heads((4, 3, 2, 16), (4, 3, 9, 16), (4, 3, 9, 16)))


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v, _: F.softmax(q @ k.transpose(-1, -2) / 4.5, dim=-2) @ v,
        lambda q, k, v, c: F.softmax(q @ k.transpose(-1, -2) / c, dim=-1) @ v,
        lambda q, k, v, _: (w := F.softmax(q @ k.transpose(-1, -2) / 4.5, dim=-1)) @ v + w.sum(),
    ],
    ids=["over queries", "a divisor a head", "weights that are used"],
)
def test_what_only_looks_like_divided_attention_is_left_alone(function: Callable[..., torch.Tensor]) -> None:
    module = Plain(function, torch.rand(3, 1, 1) + 1)
    unchanged(module, heads(*[(2, 3, 5, 16)] * 3), ["aten::matmul", "aten::div", "aten::softmax", "aten::matmul"])


def biased(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, c: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.softmax(q @ k.transpose(-2, -1) * c + bias, dim=-1) @ v


def test_scaled_biased_attention() -> None:
    before = ["aten::matmul", "aten::mul", "aten::add", "aten::softmax", "aten::matmul"]
    weights = torch.rand(3, 1, 1), torch.randn(1, 3, 5, 5)
    check(Plain(biased, *weights), heads(*[(2, 3, 5, 16)] * 3), before, ["aten::mul", FUSED], heads(*[(4, 3, 5, 16)] * 3))
    # A factor of every key scales no query.
    unchanged(Plain(biased, torch.rand(3, 1, 5), weights[1]), heads(*[(2, 3, 5, 16)] * 3), before)


def shifted(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, c: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Four windows an image, as in Swin v2; the first dimension is images times windows."""
    scores = q @ k.transpose(-2, -1) * c + bias
    scores = scores.view(q.shape[0] // 4, 4, 3, 5, 5) + mask + mask
    return F.softmax(scores.view(-1, 3, 5, 5), dim=-1) @ v


def test_shifted_window_attention() -> None:
    before = ["aten::matmul", "aten::mul", "aten::add", "aten::view", "aten::add", "aten::add", "aten::softmax", "aten::matmul"]
    mask = torch.where(torch.rand(1, 4, 1, 5, 5) > 0.6, -100.0, 0.0)
    weights = torch.rand(3, 1, 1), torch.randn(1, 3, 5, 5), mask
    windows = heads(*[(8, 3, 5, 16)] * 3)
    check(
        Plain(shifted, *weights),
        windows,
        before,
        ["aten::mul", "aten::expand", FUSED],
        heads(*[(4, 3, 5, 16)] * 3),
    )
    # A bias that differs from window to window cannot be expanded with the mask.
    unchanged(Plain(shifted, weights[0], torch.randn(8, 3, 5, 5), mask), windows, before)


def batched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.bmm(F.softmax(torch.baddbmm(bias, q, k.transpose(-2, -1)), dim=-1), v)


def test_batched_biased_attention() -> None:
    before = ["aten::baddbmm", "aten::softmax", "aten::bmm"]
    inputs = heads((6, 5, 16), (6, 7, 16), (6, 7, 16), (6, 5, 7))
    check(Plain(batched), inputs, before, [FUSED, "aten::squeeze"], heads((2, 9, 8), (2, 3, 8), (2, 3, 8), (2, 9, 3)))

    def doubled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.bmm(F.softmax(torch.baddbmm(bias, q, k.transpose(-2, -1), alpha=2), dim=-1), v)

    unchanged(Plain(doubled), inputs, before)


def test_batched_attention() -> None:
    before = ["aten::bmm", "aten::softmax", "aten::bmm"]
    inputs = heads((6, 5, 16), (6, 16, 7), (6, 7, 16))
    check(Plain(lambda q, kt, v: torch.bmm(F.softmax(torch.bmm(q, kt), -1), v)), inputs, before, [FUSED, "aten::squeeze"])
    unchanged(Plain(lambda q, kt, v: torch.bmm(F.softmax(torch.bmm(q, kt), 1), v)), inputs, before)


def pooled(query: torch.Tensor, source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A query of its own, and packed weights cut as torch's MultiheadAttention does."""
    size = query.size(-1)
    (wq, wkv), (bq, bkv) = (packed.split([size, size * 2]) for packed in (weight, bias))
    return F.linear(query, wq, bq).sum(1) + F.linear(source, wkv, bkv).sum((1, 2))[:, None]


def cut_elsewhere(query: torch.Tensor, _source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    a, b = weight.split([query.size(-1), query.size(-1) * 3])
    return F.linear(query, a, bias[:8]) + F.linear(query, b).sum()


def test_packed_projections() -> None:
    inputs = heads((2, 1, 8), (2, 5, 8))
    module = Plain(pooled, torch.randn(24, 8), torch.randn(24))
    graph = check(module, inputs, ["aten::linear"], ["ipex_prepack::linear_run"], heads((3, 1, 8), (3, 4, 8)))
    assert "aten::split" not in graph
    assert "ipex_prepack::linear_prepack" not in graph
    unchanged(Plain(cut_elsewhere, torch.randn(32, 8), torch.randn(32)), inputs, ["aten::split"])


def test_a_constant_that_the_rest_of_the_graph_shares_matches_too() -> None:
    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return divided(q, k, v).transpose(-1, -2).sum(-1)

    check(Plain(function), heads(*[(2, 3, 5, 16)] * 3), ["aten::softmax", "aten::sum"], [FUSED, "aten::sum"])


def test_a_bias_table_that_is_computed_in_place_becomes_a_constant() -> None:
    def function(x: torch.Tensor, table: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x + F.linear(table, weight).relu_()

    graph = check(Plain(function, torch.randn(5, 2), torch.randn(8, 2)), heads((3, 5, 8)), ["aten::relu_"], ["aten::add"])
    assert "linear" not in graph


def test_sum_without_factor() -> None:
    check(Plain(lambda x, y: torch.add(x, y, alpha=3)), heads((2, 5), (2, 5)), ["aten::add"], ["aten::mul", "aten::add"])
    assert "aten::mul" not in check(Plain(lambda x, y: x + y), heads((2, 5), (2, 5)), ["aten::add"], ["aten::add"])


class Block(nn.Module):
    """As in ResNet; the sum has a factor."""

    def __init__(self, projects: bool, factor: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 32, 1)
        )
        self.shortcut = nn.Conv2d(32, 32, 1) if projects else nn.Identity()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.add(self.layers(x), self.shortcut(x), alpha=self.factor).relu()


class Named(nn.Module):
    """A model as transformers makes them, of one input and one output."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor, return_dict: bool = True) -> dict[str, torch.Tensor]:
        assert return_dict
        return {"y": self.layers(x)}


def saved_and_loaded(model: nn.Module, x: torch.Tensor) -> Any:
    """Captured, fused, saved and loaded again."""
    example = {"x": x.numpy()}
    graph = fuse(capture(Named(model).eval(), ["x"], ["y"], example), ["x"], example)
    buffer = io.BytesIO()
    torch.jit.save(graph.program, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.parametrize("projects", [False, True])
@pytest.mark.parametrize("factor", [1, 0.5])
def test_bottlenecks_are_taken_apart_because_they_do_not_survive_saving(
    projects: bool, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), Block(projects, factor), Block(projects, factor))
    example, other = torch.randn(3, 3, 9, 9), torch.randn(2, 3, 12, 12)
    loaded = saved_and_loaded(model, example)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for x in (example, other):
            torch.testing.assert_close(loaded(x)[0], model(x), atol=1e-5, rtol=1e-5)
    FileCheck().check_not("bottleneck").check_count("ipex_prepack::convolution_", 7 + 2 * projects).run(loaded.graph)
    if factor == 1:
        drawing = FileCheck().check("convolution_relu_run").check("convolution_relu_run").check("convolution_add_relu_run")
        drawing.run(loaded.graph)
        monkeypatch.setattr(rewrites, "AFTER_FUSION", ())
        FileCheck().check_count("ipex_prepack::convolution_bottleneck_run", 2).run(saved_and_loaded(model, example).graph)


def test_chunks_survive_saving() -> None:
    def gate(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, dim=-1)
        return a * b

    loaded = saved_and_loaded(Plain(gate), torch.randn(3, 6))
    FileCheck().check("aten::chunk").check("prim::ListUnpack").check_not("prim::ConstantChunk").run(loaded.graph)
    x = torch.randn(2, 6)
    assert torch.equal(loaded(x)[0], x[:, :3] * x[:, 3:])
