"""Every rewrite on the graph that it is for: drawn before and after, equal in numbers, and silent on near misses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as f
from torch.testing import FileCheck

from cpuc.compiler import rewrites
from cpuc.compiler.rewrites import matching
from cpuc.compiler.rewrites.einsum import EINSUM
from cpuc.runtime.libraries import load_ipex

ATTENTION = "aten::scaled_dot_product_attention"
B, H, L, D = 3, 2, 5, 8


@pytest.fixture(autouse=True)
def ipex() -> None:
    load_ipex()
    torch.manual_seed(0)


class _Module(torch.nn.Module):
    """A function as a module whose parameters are constants of the frozen graph."""

    def __init__(self, function: Callable[..., torch.Tensor], weights: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = torch.nn.ParameterList(weights)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs, *self.weights)


Weights = tuple[torch.Tensor, ...]


def frozen(function: Callable[..., torch.Tensor], inputs: Weights, weights: Weights = ()) -> Any:
    with torch.no_grad():
        return torch.jit.freeze(torch.jit.trace(_Module(function, weights).eval(), inputs, check_trace=False))


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Leave only the rewrites of these names, so that a test sees what one does."""
    monkeypatch.setattr(rewrites, "REWRITES", tuple(each for each in rewrites.REWRITES if each.name in names))


def rewritten(
    function: Callable[..., torch.Tensor], inputs: Weights, weights: Weights = (), more: Weights = ()
) -> torch._C.Graph:
    """The graph of `function` after the rewrites, which still computes the same, for the sizes of `more` too."""
    module = frozen(function, inputs, weights)
    rewrites.apply(module.graph)
    module.graph.lint()
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for each in (inputs, more) if more else (inputs,):
            expected = function(*each, *weights)
            torch.testing.assert_close(module(*each), expected, atol=1e-5, rtol=1e-5)
    return module.graph


def kinds(graph: torch._C.Graph) -> Counter[str]:
    return Counter(node.kind() for node in graph.nodes())


def heads(batch: int = B, length: int = L) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(batch, H, length, D) for _ in range(3))


def bias(batch: int = B, length: int = L) -> torch.Tensor:
    return torch.randn(batch, 1, length, length)


def blocked(batch: int = B, length: int = L) -> torch.Tensor:
    return (torch.rand(batch, 1, 1, length) > 0.7).index_fill(3, torch.tensor([0]), False)


LOWEST = torch.finfo(torch.float32).min


def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.matmul(q, k.transpose(-1, -2))


def weights_of(scores: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.matmul(torch.softmax(scores, -1), v)


# Every form of scores that a model has: (q, k, v, mask) → output, and what makes the mask.
FORMS: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "bare": (lambda q, k, v, _: weights_of(scores(q, k), v), bias),
    "divided": (lambda q, k, v, m: weights_of(scores(q, k) / 8.0 + m, v), bias),
    "multiplied": (lambda q, k, v, m: weights_of(scores(q, k) * 0.3 + m, v), bias),
    "mask first": (lambda q, k, v, m: weights_of(m + scores(q, k), v), bias),
    "two masks": (lambda q, k, v, m: weights_of((scores(q, k) / 8.0).add_(m[:1]) + m, v), bias),
    "scaled after the bias": (lambda q, k, v, m: weights_of((scores(q, k) + m + 0) * 0.125 - 3 * m, v), bias),
    "subtracted alone": (lambda q, k, v, m: weights_of(scores(q, k) - m, v), bias),
    "filled": (lambda q, k, v, m: weights_of(scores(q / 8.0, k).masked_fill(m, LOWEST), v), blocked),
    "filled in place": (lambda q, k, v, m: weights_of(scores(q, k).masked_fill_(m, LOWEST), v), blocked),
    "bias, then filled": (lambda q, k, v, m: weights_of((scores(q, k) + k.sum()).masked_fill(m, LOWEST), v), blocked),
    "transposed by number": (lambda q, k, v, m: weights_of(torch.matmul(q, k.transpose(2, 3)) + m, v), bias),
    "cast": (lambda q, k, v, m: torch.matmul(f.softmax(scores(q, k) + m, -1, dtype=torch.float32).to(q.dtype), v), bias),
    "type_as": (lambda q, k, v, m: torch.matmul(torch.softmax((scores(q, k) + m).float(), -1).type_as(q), v), bias),
}


def filled_as(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    product = scores(q, k)
    product.masked_fill_(mask.expand_as(product), LOWEST)
    return weights_of(product, v)


FORMS["filled as large as the scores"] = (filled_as, blocked)


@pytest.mark.parametrize("form", FORMS)
def test_attention_becomes_one_operator(form: str) -> None:
    function, mask = FORMS[form]
    inputs, more = (*heads(), mask()), (*heads(1, 9), mask(1, 9))
    before = frozen(function, inputs).graph
    FileCheck().check("aten::matmul").check("aten::softmax").check("aten::matmul").check_not(ATTENTION).run(before)
    after = rewritten(function, inputs, more=more)
    FileCheck().check_count(ATTENTION, 1, exactly=True).check_not("aten::softmax").check_not("aten::matmul").run(after)


def test_a_mask_of_a_whole_row_gives_what_eager_gives() -> None:
    everything = torch.ones(B, 1, 1, L, dtype=torch.bool)
    rewritten(FORMS["filled"][0], (*heads(), blocked()), more=(*heads(), everything))


def merged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, relative: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attention over [batch · heads], as in DeBERTa-v2."""
    product = torch.bmm(q, k.transpose(-1, -2)) + relative
    product = product.view(-1, H, product.size(-2), product.size(-1)).masked_fill(mask, LOWEST)
    probabilities = torch.softmax(product, -1)
    return torch.bmm(probabilities.view(-1, probabilities.size(-2), probabilities.size(-1)), v)


def merged_inputs(batch: int, length: int) -> tuple[torch.Tensor, ...]:
    q, k, v = (each.flatten(0, 1) for each in heads(batch, length))
    return q, k, v, torch.randn(batch * H, length, length), blocked(batch, length)


def test_attention_over_merged_heads_becomes_one_operator_over_four_axes() -> None:
    FileCheck().check_count("aten::bmm", 2, exactly=True).run(frozen(merged, merged_inputs(B, L)).graph)
    after = rewritten(merged, merged_inputs(B, L), more=merged_inputs(2, 7))
    FileCheck().check_count("aten::unflatten", 3, exactly=True).check(ATTENTION).check("aten::flatten").run(after)
    assert not {"aten::bmm", "aten::matmul", "aten::softmax"} & set(kinds(after))


# Graphs that look like attention and must stay as they are.
MISSES: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "softmax over the queries": (lambda q, k, v, m: torch.matmul(torch.softmax(scores(q, k) + m, -2), v), bias),
    "softmax over an axis of unknown place": (lambda q, k, v, m: torch.matmul(torch.softmax(scores(q, k) + m, 3), v), bias),
    "scores that are bent": (lambda q, k, v, m: weights_of(torch.tanh(scores(q, k)) + m, v), bias),
    "a factor for every score": (lambda q, k, v, m: weights_of(scores(q, k) * m, v), bias),
    "a negative factor": (lambda q, k, v, _: weights_of(scores(q, k) * -0.5, v), bias),
    "a sum with a factor": (lambda q, k, v, m: weights_of(torch.add(scores(q, k), m, alpha=2), v), bias),
    "scores taken away": (lambda q, k, v, m: weights_of(m - scores(q, k), v), bias),
    "truth values that are added": (lambda q, k, v, m: weights_of(scores(q, k) + (m > 0), v), bias),
    "a fill that scores could outgrow": (lambda q, k, v, m: weights_of(scores(q, k).masked_fill(m, -1e4), v), blocked),
    "no product": (lambda q, _, v, m: weights_of(m + q.sum(), v), bias),
    "heads merged afterwards": (
        lambda q, k, v, _: torch.bmm(torch.softmax(scores(q, k), -1).view(-1, L, L), v.flatten(0, 1)),
        bias,
    ),
}


@pytest.mark.parametrize("miss", MISSES)
def test_what_only_looks_like_attention_is_left_alone(miss: str) -> None:
    function, mask = MISSES[miss]
    after = rewritten(function, (*heads(), mask()))
    FileCheck().check("aten::softmax").check_not(ATTENTION).run(after)


@pytest.mark.parametrize(("other", "left"), [(False, 0), (True, 1)])
def test_attention_is_not_given_the_shape_that_it_has(other: bool, left: int) -> None:
    def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        y = f.scaled_dot_product_attention(q, k, v)
        return y.reshape(y.shape[0], -1, (k if other else q).shape[2], v.shape[3]) * 2

    graph = rewritten(attended, heads(), more=heads(2, 7))
    assert (kinds(graph)[ATTENTION], kinds(graph)["aten::reshape"]) == (1, left)


def test_attention_whose_operands_are_overwritten_meanwhile_is_left_alone() -> None:
    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q = q.neg()
        product = scores(q, k)
        written = q.view(-1).add_(1)
        return weights_of(product, v) + written.sum()

    FileCheck().check("aten::add_").check("aten::softmax").check_not(ATTENTION).run(rewritten(function, heads()))


def test_attention_weights_that_are_needed_themselves_are_kept() -> None:
    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(scores(q, k), -1)
        return torch.matmul(weights, v).sum(-1) + weights.sum(-1)

    FileCheck().check("aten::softmax").check_not(ATTENTION).run(rewritten(function, heads()))


def test_a_mask_is_not_expanded_for_a_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "mask-expansion")
    after = rewritten(lambda x, m: x.neg().masked_fill(m.expand_as(x), 0.0), (torch.randn(2, 4), torch.ones(4) > 0))
    FileCheck().check("aten::masked_fill").check_not("aten::expand_as").run(after)
    after = rewritten(lambda x, m: m.expand_as(x) * 1, (torch.randn(2, 4), torch.ones(4)))
    FileCheck().check("aten::expand_as").run(after)


EQUATIONS = [(each, each.name.split()[1]) for each in EINSUM if " " in each.name]
SIZES = dict(zip("bdhijnst", (3, 8, 16, 5, 7, 2, 4, 6), strict=True))


@pytest.mark.parametrize(("rewrite", "equation"), EQUATIONS, ids=[equation for _, equation in EQUATIONS])
def test_einsums_become_products(rewrite: rewrites.Rewrite, equation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, rewrite.name)

    def operands(**sizes: int) -> list[torch.Tensor]:
        sides = equation.split("->")[0].split(",")
        return [torch.randn([{**SIZES, **sizes}[letter] for letter in side]) for side in sides]

    def function(*operands: torch.Tensor) -> torch.Tensor:
        return torch.einsum(equation, *operands)

    linear = rewrite.name.startswith("einsum-linear")
    inputs = operands()
    weights = (inputs.pop(),) if linear else ()
    more = tuple(operands(b=1, i=2, t=9)[: len(inputs)])
    FileCheck().check("aten::einsum").run(frozen(function, tuple(inputs), weights).graph)
    after = rewritten(function, tuple(inputs), weights, more)
    expected = {"linear": "aten::linear", "matmul": "aten::matmul", "permutation": "aten::permute"}
    FileCheck().check(expected[rewrite.name.split()[0].removeprefix("einsum-")]).check_not("aten::einsum").run(after)
    if linear:  # a product of two activations is none
        FileCheck().check("aten::einsum").run(rewritten(function, tuple(operands())))


def test_other_einsums_are_left_alone() -> None:
    FileCheck().check("aten::einsum").run(
        rewritten(lambda a, b: torch.einsum("ab,bc->ca", a, b), (torch.ones(2, 3), torch.ones(3, 4)))
    )


def test_a_permutation_that_changes_nothing_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "identity-permutation")
    assert "aten::permute" not in kinds(rewritten(lambda x: x.permute(0, 1, 2).neg(), (torch.randn(2, 3, 4),)))
    assert "aten::permute" in kinds(rewritten(lambda x: x.permute(0, 2, 1).neg(), (torch.randn(2, 3, 4),)))


def test_bmm_becomes_matmul(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "bmm")
    after = rewritten(torch.bmm, (torch.randn(2, 3, 4), torch.randn(2, 4, 5)))
    FileCheck().check("aten::matmul").check_not("aten::bmm").run(after)


def positions(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.matmul(x.permute(0, 2, 1, 3), weight.permute(0, 1, 3, 2))


def test_a_product_with_a_weight_is_given_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "product-with-weight")
    x, more, weight = torch.randn(B, L, H, D), torch.randn(1, 9, H, D), torch.randn(1, H, 6, D)
    after = rewritten(positions, (x,), (weight,), (more,))
    FileCheck().check("aten::expand").check("aten::matmul").run(after)
    # Of an activation nobody knows whether it is broadcast.
    FileCheck().check_not("aten::expand").check("aten::matmul").run(rewritten(positions, (x, weight)))
    # Axes are counted only where operators tell of them.
    FileCheck().check_not("aten::expand").check("aten::matmul").run(rewritten(torch.matmul, (x,), (weight[0, 0].T,)))


def test_a_product_is_not_computed_for_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product = torch.matmul(a.permute(0, 1, 3, 2), b.permute(0, 1, 3, 2))
        return torch.arange(product.size(3)) + 10 * product.size(2)

    only(monkeypatch, "size-of-product")
    a, b = torch.randn(B, H, D, L), torch.randn(B, H, 7, D)
    FileCheck().check("aten::matmul").run(frozen(function, (a, b)).graph)
    FileCheck().check("aten::size").check_not("aten::matmul").run(rewritten(function, (a, b), more=(a, b[:, :, :4])))
    unknown = rewritten(lambda a, b: torch.arange(torch.matmul(a, b).size(1)), (torch.randn(2, 3), torch.randn(3, 4)))
    FileCheck().check("aten::matmul").run(unknown)


@pytest.mark.parametrize("with_bias", [True, False])
def test_pack_linear(with_bias: bool) -> None:
    layer = torch.nn.Linear(4, 8, bias=with_bias).eval()
    inputs = (torch.randn(2, 4),)
    FileCheck().check_count("aten::linear", 1, exactly=True).run(frozen(layer, inputs).graph)
    after = rewritten(layer, inputs, more=(torch.randn(3, 5, 4),))
    FileCheck().check("ipex_prepack::linear_run").check_not("aten::linear").run(after)


def test_a_product_with_a_constant_matrix_is_a_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "matmul-linear", "addmm-linear")
    x, weight, row = torch.randn(3, 4), torch.randn(4, 8), torch.randn(8)
    after = rewritten(torch.matmul, (torch.randn(2, 3, 4),), (weight,), (torch.randn(5, 4),))
    FileCheck().check("aten::linear").check_not("aten::matmul").run(after)
    after = rewritten(lambda x, w, b: torch.addmm(b, x, w), (x,), (weight, row))
    FileCheck().check("aten::linear").check_not("aten::addmm").run(after)
    # A vector, heads, and what is not constant; a bias for each row of the batch, and one that is scaled.
    for operand in (weight[:, 0], torch.randn(2, 4, 8)):
        FileCheck().check("aten::matmul").run(rewritten(torch.matmul, (x,), (operand,)))
    FileCheck().check("aten::matmul").run(rewritten(torch.matmul, (x, weight)))
    for other, beta in ((torch.randn(3, 8), 1), (row, 2)):
        near = rewritten(lambda x, w, b, beta=beta: torch.addmm(b, x, w, beta=beta), (x,), (weight, other))
        FileCheck().check("aten::addmm").run(near)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", ["scaled-linear", "shifted-linear"])
def test_a_constant_for_each_output_goes_into_the_layer(name: str, with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, name)
    combine, operator = (torch.mul, "aten::mul") if name == "scaled-linear" else (torch.add, "aten::add")
    start = torch.randn(8) if with_bias else None

    def function(x: torch.Tensor, weight: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return combine(f.linear(x, weight, start), row)

    x, weight, row = torch.randn(2, 4), torch.randn(8, 4), torch.randn(8)
    FileCheck().check("aten::linear").check(operator).run(frozen(function, (x,), (weight, row)).graph)
    FileCheck().check("aten::linear").check_not(operator).run(rewritten(function, (x,), (weight, row)))
    # One for all, one for each row, and one that is not constant.
    for near_miss in (torch.randn(1), torch.randn(2, 8)):
        FileCheck().check("aten::linear").check(operator).run(rewritten(function, (x,), (weight, near_miss)))
    other = rewritten(lambda x, row, weight: function(x, weight, row), (x, row), (weight,))
    FileCheck().check("aten::linear").check(operator).run(other)


def test_a_weight_is_told_from_an_activation_however_deep_the_graph() -> None:
    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows = weight[: x.size(0)] * 1.5
        for _ in range(2000):
            x = x * x
        return rows + x

    total = frozen(function, (torch.rand(2, 3),), (torch.randn(4, 3),)).graph.findAllNodes("aten::add")[0]
    assert [matching.is_weight(each) for each in total.inputs()] == [True, False, True]


def test_constants_match_by_type_and_value() -> None:
    ones = torch._C.parse_ir(
        """
        graph():
            %a : int = prim::Constant[value=1]()
            %b : float = prim::Constant[value=1.]()
            %c : bool = prim::Constant[value=1]()
            %d : NoneType = prim::Constant()
            return (%a, %b, %c, %d)"""
    )
    values = list(ones.outputs())
    for i, content in enumerate((1, 1.0, True, None)):
        assert [matching.equals(value, content) for value in values] == [i == j for j in range(4)]


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """A norm as DeBERTa spells it."""
    wide = x.float()
    centred = wide - wide.mean(axis, keepdim=True)
    variance = centred.pow(2).mean(axis, keepdim=True)
    return weight * (centred / torch.sqrt(variance + 1e-7)).to(x.dtype) + bias


def test_a_norm_that_is_spelled_out_becomes_one_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "layer-norm")
    x, weights = torch.randn(3, 4, 8), (torch.randn(8), torch.randn(8))
    FileCheck().check("aten::mean").check("aten::sqrt").run(frozen(norm, (x,), weights).graph)
    FileCheck().check("aten::layer_norm").check_not("aten::mean").run(rewritten(norm, (x,), weights, (x[:1, :2],)))
    # Over another axis, with one weight for all, and with weights that are inputs.
    other = rewritten(lambda x, w, b: norm(x, w, b, 1), (torch.randn(3, 8, 8),), weights)
    for graph in (other, rewritten(norm, (x,), (torch.randn(1), torch.randn(1))), rewritten(norm, (x, *weights))):
        FileCheck().check("aten::mean").check_not("aten::layer_norm").run(graph)


def test_gelu_that_is_spelled_out_becomes_one_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "gelu")
    x = (torch.randn(3, 8),)
    exact = rewritten(lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), x)
    FileCheck().check("aten::gelu").check_not("aten::erf").run(exact)
    FileCheck().check("aten::erf").check_not("aten::gelu").run(rewritten(lambda x: x * 0.5 * (1.0 + torch.erf(x / 1.4)), x))
