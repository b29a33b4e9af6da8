"""The arithmetic of an artifact: what its matrix products, convolutions and attention do for given inputs.

It is counted in the artifact's own graph: a copy of it gives, beside its outputs, the sizes of what each such operator takes
and gives. A multiplication and an addition are two operations, as ``torch.utils.flop_counter`` counts them; softmax, norms
and activations, a few thousandths of the whole, are none.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cpuc.compiler.fusion import HEAVY
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value
from cpuc.compiler.xsmm import cut_of

Shape = Sequence[int]
# Operations, and elements of weights that are read, from the sizes of some inputs, of the weight, and of the output.
Rule = Callable[..., tuple[int, int]]
# Of torch's dtypes, as graphs number them: what a product of them is computed in, and how many bytes a weight takes.
PRECISIONS = {0: ("int8", 1), 1: ("int8", 1), 6: ("fp32", 4), 15: ("bf16", 2)}


def _linear(x: Shape, y: Shape) -> tuple[int, int]:
    return 2 * math.prod(x) * y[-1], x[-1] * y[-1]


def _convolution(x: Shape, weight: Shape, y: Shape) -> tuple[int, int]:  # noqa: ARG001
    return 2 * math.prod(y) * math.prod(weight[1:]), math.prod(weight)


def _transposed(x: Shape, weight: Shape, y: Shape) -> tuple[int, int]:  # noqa: ARG001
    return 2 * math.prod(x) * math.prod(weight[1:]), math.prod(weight)


def _product(x: Shape, y: Shape) -> tuple[int, int]:
    return 2 * math.prod(y) * x[-1], 0


def _attention(query: Shape, key: Shape, value: Shape, y: Shape) -> tuple[int, int]:  # noqa: ARG001
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]), 0


def _joined_attention(x: Shape, y: Shape) -> tuple[int, int]:
    return 4 * math.prod(y) * x[-2], 0


# Names of operators, the inputs whose sizes tell, and the rule; a packed weight's size comes after them.
RULES: list[tuple[str, tuple[int, ...], Rule]] = [
    (r"ipex_prepack::(linear|mkl_sgemm)(_\w+)?_run|ipex::linear_swish_customized|aten::linear", (0,), _linear),
    (r"torch_ipex::tpp_linear(_\w+)?|onednn::qlinear_pointwise|quantized::linear_\w+", (0,), _linear),
    (r"ipex_prepack::convolution(_(?!bottleneck)\w+)?_run", (0,), _convolution),
    (r"ipex_prepack::conv_transpose(_\w+)?_run", (0,), _transposed),
    (r"aten::(conv[123]d|mkldnn_convolution|_convolution_mode|_?convolution)", (0, 1), _convolution),
    (r"aten::conv_transpose[123]d|aten::_?convolution transposed", (0, 1), _transposed),
    (r"aten::(matmul|mm|bmm|mv|dot|inner)|ipex::matmul(_\w+)?", (0,), _product),
    (r"aten::(addmm|addmv|baddbmm)|(torch_)?ipex::bmm_add", (1,), _product),
    (r"ipex::(\w+_)?mha_scores_calc(_v2)?", (0,), _product),
    (r"aten::scaled_dot_product_attention|torch_ipex::flash_attention", (0, 1, 2), _attention),
    (r"ipex::bert_flash_mha", (0,), _joined_attention),
]
# Fused operators without a product, and what HEAVY lists beside products.
_NO_PRODUCT = (
    r"ipex::(add_layernorm|batch_norm|max_pool2d|maskedfill_softmax|RMSNorm|softmax_?|split_tensor)"
    r"|torch_ipex::add_softmax_|aten::_?softmax"
)
# What convolutions are packed into.
_CONTEXTS = ("ConvolutionOpContext", "ConvTransposeOpContext")
# The seventh input says whether they are transposed.
_BOTH = ("aten::_convolution", "aten::convolution")
_FUSED = r"(ipex|ipex_prepack|torch_ipex|onednn|quantized|mkldnn)::"
# These round what they read themselves.
_INT8 = "quantized::"
# The dtype that stands for an operator in a branch that was not taken.
_NOT_RUN = -1


@dataclass
class Arithmetic:
    """What one call computes.

    Attributes:
        operations: by precision ("fp32", "bf16", "int8").
        by_operator: the same by the operator's name in the graph.
        weight_bytes: of the weights of linear layers and convolutions, all of which a call reads.
        uncounted: operators with products that there is no rule for, and how many: then the rest is a lower bound.
    """

    operations: Counter[str] = field(default_factory=Counter)
    by_operator: Counter[str] = field(default_factory=Counter)
    weight_bytes: int = 0
    uncounted: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.operations.total()


@dataclass(frozen=True)
class _Counted:
    """A node whose sizes are asked for: `asked` is how many lists of them the graph gives for it, after its dtype."""

    kind: str
    rule: Rule
    asked: int
    weight: Shape | None


def count(module: Any, inputs: Sequence[torch.Tensor]) -> Arithmetic:
    """Run the graph of a loaded artifact once on `inputs`, in the order of its signature, and count."""
    graph = module.graph.copy()
    arithmetic = Arithmetic()
    counted = list(_ask(graph, arithmetic))
    graph.makeMultiOutputIntoTuple()
    function = torch._C._create_function_from_graph("counted", graph)
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        given = iter(function(module._c, *inputs)[1:] if counted else ())
    for each in counted:
        dtype, shapes = next(given), [next(given) for _ in range(each.asked)]
        if dtype == _NOT_RUN:
            continue
        precision, size = ("int8", 1) if each.kind.startswith(_INT8) else PRECISIONS.get(dtype, ("fp32", 4))
        if each.weight is not None:
            shapes.insert(-1, each.weight)
        operations, weights = each.rule(*shapes)
        arithmetic.operations[precision] += operations
        arithmetic.by_operator[each.kind] += operations
        arithmetic.weight_bytes += weights * size
    return arithmetic


def _ask(graph: Graph, arithmetic: Arithmetic) -> Iterator[_Counted]:
    """Make `graph` give the dtype and the sizes of every product in it; what cannot be counted goes into `arithmetic`."""
    yield from _ask_all(graph, graph, arithmetic, graph.registerOutput)


def _ask_all(graph: Graph, block: Any, arithmetic: Arithmetic, give: Callable[[Value], object]) -> Iterator[_Counted]:
    """The same for the operators of a block; `give` makes a value in it an output of the graph."""
    for node in list(block.nodes()):
        yield from _ask_one(graph, node, arithmetic, give)
        for i, inner in enumerate(node.blocks()):
            if node.kind() != "prim::If":
                arithmetic.uncounted.update(filter(_has_product, _kinds(inner)))
                continue
            yield from _ask_all(graph, inner, arithmetic, functools.partial(_give_out, graph, node, i, give))


def _ask_one(graph: Graph, node: Node, arithmetic: Arithmetic, give: Callable[[Value], object]) -> Iterator[_Counted]:
    """The same for one operator."""
    name = _name(node)
    found = next(((positions, rule) for names, positions, rule in RULES if re.fullmatch(names, name)), None)
    weight = _packed_weight(node)
    if found is None or weight == ():
        arithmetic.uncounted.update([node.kind()] if _has_product(node.kind()) else [])
        return
    positions, rule = found
    tensors = [*(node.inputsAt(i) for i in positions), _wanted(node)]
    last = tensors[-1].node()
    give(_tell(graph, last, "prim::dtype", tensors[0], torch._C.IntType.get()))
    for tensor in tensors:
        give(_tell(graph, last, "aten::size", tensor, torch._C.ListType.ofInts()))
    yield _Counted(node.kind(), rule, len(tensors), weight if rule in (_convolution, _transposed) else None)


def _wanted(node: Node) -> Value:
    """What an operator is there for: of a layer that is filled up with zeros, what comes before them."""
    output: Value = (cut_of(node) or node).outputsAt(0)
    return output


def _give_out(graph: Graph, node: Node, index: int, give: Callable[[Value], object], value: Value) -> None:
    """Give a value of the branch `index` of `node`, or an empty one if another branch is taken."""
    for i, branch in enumerate(node.blocks()):
        with graph.insert_point_guard(branch):
            branch.registerOutput(value if i == index else _nothing(graph, value))
    give(node.addOutput().setType(value.type()))


def _nothing(graph: Graph, like: Value) -> Value:
    if str(like.type()) == "int":
        return graph.insertConstant(_NOT_RUN)
    return graph.insertNode(graph.create("prim::ListConstruct", [], 1)).output().setType(like.type())


def _name(node: Node) -> str:
    """A node's kind; of the operator that is both a convolution and its transpose, which one it is."""
    kind: str = node.kind()
    return f"{kind} transposed" if kind in _BOTH and node.inputsAt(6).toIValue() else kind


def _tell(graph: Graph, node: Node, kind: str, tensor: Value, result: Any) -> Value:
    """What `kind` says of `tensor`, right after `node`, so that the tensor itself need not be kept."""
    new = graph.create(kind, [tensor], 1)
    new.insertAfter(node)
    return new.output().setType(result)


def _packed_weight(node: Node) -> Shape | None:
    """The sizes of the weight in a node's packed context; None without such a context, () if it is made in the graph."""
    for value in node.inputs():
        if str(value.type()).endswith(_CONTEXTS):
            context = value.toIValue()
            # A context's state is what it was packed from: weight, bias, strides and so on; and its class.
            return () if context is None else tuple(context.__getstate__()[0][0].shape)
    return None


def _has_product(kind: str) -> bool:
    return bool((kind in HEAVY or re.match(_FUSED, kind)) and not re.fullmatch(_NO_PRODUCT, kind))


def _kinds(block: Any) -> Iterator[str]:
    for node in block.nodes():
        yield node.kind()
        for inner in node.blocks():
            yield from _kinds(inner)
