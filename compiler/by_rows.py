"""Linear layers with libxsmm's kernels for few rows and oneDNN's for many: in bfloat16 with AMX, in float32 narrow ones.

    tpp_linear_bias(x, blocks, bias)          →   if rows ≥ some:  linear_run(x, packed)
                                                  else:            as it was
    gelu_(tpp_linear_bias(x, blocks, bias))   →   the same with linear_gelu_run

The artifact holds the weights once, in libxsmm's blocks. oneDNN's are packed from them when it is loaded, which takes as much
memory again: TorchScript's own hook for reading a module's state, which is part of the archive, does it.

Whole models with oneDNN's kernels against libxsmm's, in turns on two cores of a Xeon:

    batch x tokens    1x16    1x32    1x64    1x128         1x384         8x128
    BERT-base         0.78    0.96    1.10    1.12 – 1.18   1.08 – 1.10   1.13 – 1.17
    MiniLM-L6         0.71    0.93    1.03    0.99 – 1.06   0.99 – 1.08   1.16 – 1.28

In float32 on an EPYC (Zen 4) oneDNN's are the same or faster from 192 rows on. Before they multiply they copy rows, which
libxsmm's read where they lie: that is slow in some processes and not in others. So the ratio has two values.

    batch x tokens    1x16    1x64    1x128         1x192   1x384         8x128
    MiniLM-L6         0.83    0.96    0.99 – 1.02   1.00    1.00, 1.09    1.01 – 1.04, 1.10 – 1.16
    BERT-base         0.86    0.97    0.99 – 1.03   1.01    1.01          1.00 – 1.02

For BERT-base that would not be worth its memory. The two together make MiniLM-L6 1.00 and 1.07 times as fast at 1 x 384, and
1.02 and 1.07 times at 8 x 128.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from cpuc.compiler.benchmarking.machine import is_intel
from cpuc.compiler.branches import branch, copies, number, truth
from cpuc.compiler.modules import as_module
from cpuc.compiler.norms import norms_of
from cpuc.compiler.rewrites.matching import equals, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value
from cpuc.compiler.xsmm import ADD, BIAS, GELU, GELU_TANH, RELU, SILU, cut_of, operands, shape_of
from cpuc.runtime.engine import cpu_offers

# oneDNN's operator for each of libxsmm's, and what it takes between x and the weights. What follows a layer in float32, see
# `xsmm`, becomes part of it.
_RUN = "ipex_prepack::linear"
_OPERATORS: dict[str, tuple[str, tuple[str, ...]]] = {
    BIAS: (f"{_RUN}_run", ()),
    RELU: (f"{_RUN}_relu_run", ()),
    GELU: (f"{_RUN}_gelu_run", ("none",)),
    GELU_TANH: (f"{_RUN}_gelu_run", ("tanh",)),
    SILU: (f"{_RUN}_swish_run", ()),
    ADD: (f"{_RUN}_add_run", ()),
}
# A layer of fewer outputs takes no time worth saving.
_LEAST = 32
_FOLLOWS = {"aten::gelu_": GELU, "aten::silu_": SILU}
# So many elements of the narrower of input and output make oneDNN's kernels the faster in bfloat16, so many rows in float32.
_MANY = 36864
_MANY_ROWS = 192
# In float32, layers that have no more than so many inputs or outputs, and no fewer weights.
_NARROW, _WEIGHTS = 512, 1 << 17
# Pairs of numbers are copied at once: one by one took twice as long, 0.1 s for BERT-base. A view of another dtype would be read
# from the archive as one of other sizes. What number of rows oneDNN is told makes no difference.
_STATE = """
def numbers(self, w: Tensor) -> Tensor:
    # [outputs / n, inputs / k, k, n], or pairs [outputs / n, inputs / k, k / 2, n]
    if w.dim() == 4:
        return w
    return torch.empty([0], dtype=torch.float32).set_(w, 0, w.size()[:4], [w.stride(d) // 2 for d in range(4)])

def __getstate__(self) -> bool:
    return self.training

def __setstate__(self, state: bool) -> None:
    weights, biases = stored_weights(), stored_biases()
    outputs = [w.size(0) * w.size(3) for w in weights]
    inputs = [w.numel() // (w.size(0) * w.size(3)) for w in weights]
    each = [self.numbers(w) for w in weights]
    self.packed = [
        torch.ops.ipex_prepack.linear_prepack(
            torch.empty([0], dtype=weights[i].dtype).set_(
                each[i].permute(0, 3, 1, 2).contiguous(), 0, [outputs[i], inputs[i]], [inputs[i], 1]
            ),
            biases[i] if len(biases[i]) > 0 else None,
            128,
        )
        for i in range(len(weights))
    ]
    self.training = state
"""


def has_both(dtype: torch.dtype, outputs: int, inputs: int) -> bool:
    """Whether a layer of this size gets two kernels on this CPU."""
    if outputs < _LEAST:
        return False
    if dtype == torch.bfloat16:
        return torch.cpu._is_amx_tile_supported()
    narrow = min(outputs, inputs) <= _NARROW and outputs * inputs >= _WEIGHTS
    return dtype == torch.float32 and narrow and cpu_offers("AVX512") and not is_intel()


def use_both(graph: Graph) -> Packing | None:
    """Give layers of libxsmm their second kernel in place; of those that are for few rows or for many already, those that add.

    The graph gets one more input, what `Packing` packs. Returns None if there are no such layers.
    """
    nodes = list(_candidates(graph))
    if not nodes:
        return None
    overwritten = [node.kind() == ADD and _may_overwrite(node, never) for node, never in nodes]
    packing, conditions = Packing(), dict[tuple[str, int], Value]()
    packed = graph.addInput("packed")
    packed.setType(torch._C.ListType(packing.kind))
    for (node, never), overwrite in zip(nodes, overwritten, strict=True):
        _, weight, bias = operands(node)
        # What is inserted in one of several ways is not there for the others.
        condition = _is_many(graph, node, {} if never else conditions)
        index = packing.add(weight.toIValue(), bias.toIValue())
        follower = _follower(node)
        both = [node] if follower is None else [node, follower]
        many = functools.partial(_onednn, graph, node, follower, packed, packing.kind, index, overwrite)
        branch(graph, both[-1], [(condition, many)], functools.partial(copies, graph, both))
        if follower is not None:
            node.destroy()
    return packing


def _candidates(graph: Graph) -> Iterator[tuple[Node, list[Node]]]:
    """Layers, each with the operators that are never run with it: those of another way to compute the same."""
    for node in graph.nodes():
        if _is_large(node):
            yield node, []
        ways = [list(block.nodes()) for block in node.blocks()]
        for i, way in enumerate(ways):
            never = [other for j, others in enumerate(ways) if j != i for other in others]
            yield from ((each, never) for each in way if each.kind() == ADD and _is_large(each))


def _is_many(graph: Graph, node: Node, known: dict[tuple[str, int], Value]) -> Value:
    """Whether a layer is given many rows; inserted before it if it is not `known`."""
    x, weight, _ = operands(node)
    outputs, inputs = shape_of(weight.toIValue())
    rows = _MANY_ROWS if weight.toIValue().dtype == torch.float32 else -(-_MANY // min(outputs, inputs))
    key = x.debugName(), rows * inputs
    if key not in known:
        with graph.insert_point_guard(node):
            known[key] = truth(graph, "aten::ge", number(graph, "aten::numel", x), rows * inputs)
    return known[key]


def _follower(node: Node) -> Node | None:
    """What oneDNN's operator does too."""
    users = [use.user for use in node.output().uses()]
    return users[0] if node.kind() == BIAS and len(users) == 1 and users[0].kind() in _FOLLOWS else None


def _onednn(graph: Graph, node: Node, follower: Node | None, packed: Value, kind: Any, index: int, overwrite: bool) -> Value:
    context = insert(graph, "aten::__getitem__", packed, index).setType(kind)
    x = node.inputsAt(0)
    if follower is not None:
        operator, _ = _OPERATORS[_FOLLOWS[follower.kind()]]
        return insert(graph, operator, x, *(follower.inputsAt(i) for i in range(1, follower.inputsSize())), context)
    operator, options = _OPERATORS[node.kind()]
    if node.kind() != ADD:
        return insert(graph, operator, x, *options, context)
    other, scale = node.inputsAt(1), node.inputsAt(4)
    if overwrite:
        return insert(graph, operator, x, other, scale, context)
    return insert(graph, "aten::add", insert(graph, _OPERATORS[BIAS][0], x, context), other, scale)


def _is_large(node: Node) -> bool:
    """Whether it is a layer with two kernels. One that is filled up with zeros has one."""
    if node.kind() not in _OPERATORS or cut_of(node) is not None:
        return False
    blocks = operands(node)[1].toIValue()
    return has_both(blocks.dtype, *shape_of(blocks))


def _may_overwrite(node: Node, never: Sequence[Node]) -> bool:
    """Whether what a layer adds to is a tensor of its own, which nobody else reads then: oneDNN's operator adds in place.

    `never` are operators that are not run with it.
    """
    x, other = node.inputsAt(0), node.inputsAt(1)
    others = [use.user for use in other.uses() if use.user != node and use.user not in never]
    before = all(user.kind() in (*_OPERATORS, "aten::numel", "aten::size") and user.isBefore(node) for user in others)
    return bool(norms_of(other)) and before and x.debugName() != other.debugName() and equals(node.inputsAt(4), 1.0)


class Packing:
    """The weights that oneDNN packs when an artifact is loaded, each once however many layers share it.

    Attributes:
        kind: the type of what is packed.
    """

    def __init__(self) -> None:
        (schema,) = torch._C._jit_get_schemas_for_operator("ipex_prepack::linear_prepack")
        self.kind: Any = schema.returns[0].type
        self._stored: dict[tuple[int, bytes], tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, blocks: torch.Tensor, bias: torch.Tensor) -> int:
        """The place in the list of a weight that is stored in `blocks`, and of its bias, which may be empty."""
        key = blocks.data_ptr(), bias.view(torch.uint8).numpy().tobytes()
        self._stored.setdefault(key, (blocks, bias))
        return list(self._stored).index(key)

    def package(self, function: Callable[..., Any], names: Sequence[str]) -> Any:
        """A module whose ``forward`` takes `names` and calls `function` with them and the packed weights.

        What packs them reads the blocks that `function` reads too: an archive holds equal constants once.
        """
        weights, biases = (_listed(tensors) for tensors in zip(*self._stored.values(), strict=True))
        kind = torch._C.ListType(self.kind)
        return as_module(function, names, {"packed": (kind, [])}, _STATE, stored_weights=weights, stored_biases=biases)


def _listed(tensors: Sequence[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    graph: Any = torch._C.Graph()
    listed = graph.insertNode(graph.create("prim::ListConstruct", list(map(graph.insertConstant, tensors)), 1)).output()
    graph.registerOutput(listed.setType(torch._C.ListType.ofTensors()))
    function: Callable[[], list[torch.Tensor]] = torch._C._create_function_from_graph("listed", graph)
    return function
