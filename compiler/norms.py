"""Whose kernels compute layer norms, and what adds the residual connection before them.

There are three. IPEX answers ``aten::layer_norm`` with oneDNN's, which is the fastest for many rows, but takes its time to set
up in each call. torch's own, ``aten::native_layer_norm``, does not. ``ipex::add_layernorm`` adds first, and is a kernel only
with AVX-512: elsewhere it is a sum and the first of these.

Microseconds on two cores; *sum* has an addition before it, and a call of the interpreter is counted:

    columns                      384                        768
    rows                          16    128    384   1024     16    128    384   1024
    EPYC (AVX2)   oneDNN          53     56     81    121     54     74    110    220
                  torch           22     37     80    154     23     53    109    272
    EPYC (Zen 5)  sum, oneDNN     15     17            40     15     21            68
                  IPEX, adding     6     25           181      6     28           197
    Xeon (AMX)    sum, oneDNN     33     44     82    249     35     57    171    518
                  sum, torch      17     34     79    261     20     51    173    522
                  IPEX, adding    18     55    136    410     19     61    188    552

oneDNN's takes parameters in float32 only, so that norms of a model in bfloat16 keep theirs (one kernel, no call counted):

    Xeon (AMX)    torch, bf16     12     25     61    153     11     38    104    403
                  torch           11     22     54    137     10     34     92    370
                  oneDNN          40     37     61    104     30     40     72    224
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from cpuc.compiler.branches import branch, copies, number, truth
from cpuc.compiler.quantization.layers import PLACEHOLDER
from cpuc.compiler.rewrites.matching import Writes, constant, constant_tensor, equals, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value
from cpuc.compiler.xsmm import ADD, BIAS

_NORM, _ADDING_NORM, _NATIVE_NORM = "aten::layer_norm", "ipex::add_layernorm", "aten::native_layer_norm"
# Where each has its weight; the bias is the next.
PARAMETERS = {_NORM: 2, _ADDING_NORM: 4, _NATIVE_NORM: 2}
# From so many rows on, oneDNN's kernel is no slower than IPEX's, which adds, and than torch's.
_MANY_TO_ADD, _MANY = 128, 256


def choose_norms(graph: Graph, *, adding: bool, summed: bool, residual: bool, by_rows: bool) -> None:
    """Give each layer norm the kernel that is fastest for the rows of a call, in place.

    layer_norm(x, …)         →   if rows ≥ 256:  as it was
                                 else:           native_layer_norm(x, …)
    add_layernorm(x, y, …)   →   if rows ≥ 128:  layer_norm(x + y, …)
                                 else:           as it was

    Weights and biases in bfloat16 become float32 first.

    Args:
        adding: whether IPEX's norm that adds has a use on this CPU; if not, the sum is taken out of it first.
        summed: so it is where one addend is a layer's in int8, which can add by itself (see `residual`).
        residual: let it also add what the linear layer before it adds.
        by_rows: whether the number of rows may decide; if not, torch's norm stays in the place of oneDNN's, whatever it is.
    """
    _widen(graph)
    for norm in graph.findAllNodes(_ADDING_NORM):
        if not adding or (summed and PLACEHOLDER in (norm.inputsAt(0).node().kind(), norm.inputsAt(1).node().kind())):
            _replace(graph, norm, functools.partial(_sum_and_norm, graph, norm))
    if adding and by_rows:
        _split_adding_norms(graph)
    if residual:
        _add_in_norm(graph)
    _split_norms(graph, by_rows=by_rows)


def _widen(graph: Graph) -> None:
    """Weights and biases in bfloat16 become float32: oneDNN's kernel takes no others, and torch's is no slower with them."""
    for kind, first in ((_NORM, 2), (_ADDING_NORM, 4)):
        for norm in graph.findAllNodes(kind):
            parameters = [constant_tensor(norm, first + i) for i in range(2)]
            with graph.insert_point_guard(norm):
                for i, parameter in enumerate(parameters):
                    if parameter is not None and parameter.dtype == torch.bfloat16:
                        norm.replaceInput(first + i, graph.insertConstant(parameter.float()))


def _add_in_norm(graph: Graph) -> None:
    """A residual connection of few rows is added by the layer norm after it, in place of the linear layer before it.

    layer_norm(tpp_linear_add(x, residual, …), …)   →   if rows ≥ 128:  as it was
                                                        else:           add_layernorm(tpp_linear_bias(x, …), residual, …)
    """
    writes = Writes(graph)
    rows = _Rows(graph, _MANY_TO_ADD)
    for norm in [norm for norm in graph.findAllNodes(_NORM) if _adds(norm, writes)]:
        layer = norm.inputsAt(0).node()
        many = functools.partial(copies, graph, (layer, norm))
        branch(graph, norm, [(rows.many(norm, layer.inputsAt(1)), many)], functools.partial(_adding_norm, graph, layer, norm))
    torch._C._jit_pass_dce(graph)


def _split_adding_norms(graph: Graph) -> None:
    rows = _Rows(graph, _MANY_TO_ADD)
    for norm in [node for node in graph.nodes() if node.kind() == _ADDING_NORM and constant(node, 4) is not None]:
        many, few = functools.partial(_sum_and_norm, graph, norm), functools.partial(copies, graph, (norm,))
        branch(graph, norm, [(rows.many(norm, norm.inputsAt(0)), many)], few)


def _split_norms(graph: Graph, *, by_rows: bool) -> None:
    rows = _Rows(graph, _MANY)
    for norm in [node for node in graph.nodes() if node.kind() == _NORM and _is_onednn(node)]:
        many, few = functools.partial(copies, graph, (norm,)), functools.partial(_native_norm, graph, norm)
        if by_rows:
            branch(graph, norm, [(rows.many(norm, norm.inputsAt(0)), many)], few)
        else:
            _replace(graph, norm, few)


def norms_of(value: Value) -> list[Node]:
    """The norm that gives a value, or both where the number of rows decides; empty if something else gives it."""
    source = value.node()
    if source.kind() != "prim::If" or source.outputsSize() != 1:
        return [source] if source.kind() in PARAMETERS and source.outputsAt(0).unique() == value.unique() else []
    given = [next(iter(block.outputs())) for block in source.blocks()]
    norms = [norm for each in given if len(each.uses()) == 1 for norm in norms_of(each)]
    return norms if len(norms) == len(given) else []


class _Rows:
    """Conditions for there being many rows, one for each number of columns: what has as many columns has as many rows. Where
    not, a call is only slower.
    """

    def __init__(self, graph: Graph, least: int) -> None:
        self._graph, self._least = graph, least
        self._known: dict[int, Value] = {}

    def many(self, norm: Node, x: Value) -> Value:
        """Whether a tensor that is normalised, or is as large, has many rows; inserted before `norm` if nothing says it yet."""
        columns = constant(norm, 4 if norm.kind() == _ADDING_NORM else 2).numel()
        if columns not in self._known:
            with self._graph.insert_point_guard(norm):
                size = number(self._graph, "aten::numel", x)
                self._known[columns] = truth(self._graph, "aten::ge", size, self._least * columns)
        return self._known[columns]


def _replace(graph: Graph, node: Node, make: Callable[[], Value]) -> None:
    with graph.insert_point_guard(node):
        node.output().replaceAllUsesWith(make())
    node.destroy()


def _adding_norm(graph: Graph, layer: Node, norm: Node) -> Value:
    x, residual, weight, bias, _, blocks = layer.inputs()
    shape, *parameters, _ = list(norm.inputs())[1:]
    y = insert(graph, BIAS, x, weight, bias, blocks)
    return insert(graph, _ADDING_NORM, y, residual, 1, shape, *parameters, False)


def _sum_and_norm(graph: Graph, norm: Node) -> Value:
    x, y, alpha, *parameters, _ = norm.inputs()
    return insert(graph, _NORM, insert(graph, "aten::add", x, y, alpha), *parameters, False)


def _native_norm(graph: Graph, norm: Node) -> Value:
    *inputs, _ = norm.inputs()
    made: Value = graph.insertNode(graph.create(_NATIVE_NORM, inputs, 3)).outputsAt(0)
    return made


def _adds(norm: Node, writes: Writes) -> bool:
    """Whether it has weight and bias, and alone reads the plain sum of a layer and of what is the same until then."""
    layer = norm.inputsAt(0).node()
    if layer.kind() != ADD or len(layer.output().uses()) != 1 or not equals(layer.inputsAt(4), 1.0):
        return False
    whole = constant(norm, 2) is not None and constant(norm, 3) is not None
    return whole and not any(writes.between(layer.inputsAt(i), layer, norm) for i in range(2))


def _is_onednn(norm: Node) -> bool:
    """Whether IPEX leaves it to oneDNN: weight and bias are there, in float32."""
    parameters = [constant(norm, i) for i in (2, 3)]
    return all(each is not None and each.dtype == torch.float32 for each in parameters)
