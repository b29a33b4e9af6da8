"""Linear layers in bfloat16 on a CPU with AMX: libxsmm's kernels for few rows, oneDNN's for many.

    tpp_linear_bias(x, blocks, bias)   →   if rows ≥ some:  linear_run(x, packed)
                                           else:            as it was

The artifact holds the weights once, in libxsmm's blocks. oneDNN's are packed from them when it is loaded, which takes as much
memory again: TorchScript's own hook for reading a module's state, which is part of the archive, does it.

Whole models with oneDNN's kernels against libxsmm's, in turns on two cores of a Xeon:

    batch x tokens    1x16    1x32    1x64    1x128         1x384         8x128
    BERT-base         0.78    0.96    1.10    1.12 – 1.18   1.08 – 1.10   1.13 – 1.17
    MiniLM-L6         0.71    0.93    1.03    0.99 – 1.06   0.99 – 1.08   1.16 – 1.28
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cpuc.compiler.branches import branch, copies, number, truth
from cpuc.compiler.modules import as_module
from cpuc.compiler.norms import norms_of
from cpuc.compiler.rewrites.matching import equals, insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value
from cpuc.compiler.xsmm import ADD, BIAS, GELU, GELU_TANH, RELU, SILU, operands, shape_of

# oneDNN's operator for each of libxsmm's, and what it takes between x and the weights.
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
# So many elements of the narrower of input and output make oneDNN's kernels the faster.
_MANY = 36864
# Pairs of numbers are copied at once: one by one took twice as long, 0.1 s for BERT-base. A view of another dtype would be read
# from the archive as one of other sizes. What number of rows oneDNN is told makes no difference.
_STATE = """
def __getstate__(self) -> bool:
    return self.training

def __setstate__(self, state: bool) -> None:
    weights, biases = stored_weights(), stored_biases()
    outputs = [w.size(0) * w.size(3) for w in weights]
    inputs = [w.size(1) * w.size(2) * 2 for w in weights]
    # [outputs / n, inputs / k, k / 2, n] pairs
    pairs = [
        torch.empty([0], dtype=torch.float32).set_(w, 0, w.size()[:4], [w.stride(d) // 2 for d in range(4)]) for w in weights
    ]
    self.packed = [
        torch.ops.ipex_prepack.linear_prepack(
            torch.empty([0], dtype=torch.bfloat16).set_(
                pairs[i].permute(0, 3, 1, 2).contiguous(), 0, [outputs[i], inputs[i]], [inputs[i], 1]
            ),
            biases[i] if len(biases[i]) > 0 else None,
            128,
        )
        for i in range(len(weights))
    ]
    self.training = state
"""


def use_both(graph: Graph) -> Packing | None:
    """Give layers of libxsmm in bfloat16 their second kernel in place.

    The graph gets one more input, what `Packing` packs. Returns None if there are no such layers.
    """
    nodes = [node for node in graph.nodes() if node.kind() in _OPERATORS and _is_large(operands(node)[1].toIValue())]
    if not nodes:
        return None
    overwritten = [node.kind() == ADD and _may_overwrite(node) for node in nodes]
    packing, conditions = Packing(), dict[tuple[str, int], Value]()
    packed = graph.addInput("packed")
    packed.setType(torch._C.ListType(packing.kind))
    for node, overwrite in zip(nodes, overwritten, strict=True):
        x, weight, bias = operands(node)
        outputs, inputs = shape_of(weight.toIValue())
        least = -(-_MANY // min(outputs, inputs)) * inputs
        if (x.debugName(), least) not in conditions:
            with graph.insert_point_guard(node):
                size = number(graph, "aten::numel", x)
                conditions[x.debugName(), least] = truth(graph, "aten::ge", size, least)
        index = packing.add(weight.toIValue(), bias.toIValue())
        many = functools.partial(_onednn, graph, node, packed, packing.kind, index, overwrite)
        branch(graph, node, [(conditions[x.debugName(), least], many)], functools.partial(copies, graph, [node]))
    return packing


def _onednn(graph: Graph, node: Node, packed: Value, kind: Any, index: int, overwrite: bool) -> Value:
    context = insert(graph, "aten::__getitem__", packed, index).setType(kind)
    x = node.inputsAt(0)
    operator, options = _OPERATORS[node.kind()]
    if node.kind() != ADD:
        return insert(graph, operator, x, *options, context)
    other, scale = node.inputsAt(1), node.inputsAt(4)
    if overwrite:
        return insert(graph, operator, x, other, scale, context)
    return insert(graph, "aten::add", insert(graph, _OPERATORS[BIAS][0], x, context), other, scale)


def _is_large(blocks: torch.Tensor) -> bool:
    return blocks.dtype == torch.bfloat16 and shape_of(blocks)[0] >= _LEAST


def _may_overwrite(node: Node) -> bool:
    """Whether what a layer adds to is a tensor of its own, which nobody else reads then: oneDNN's operator adds in place."""
    x, other = node.inputsAt(0), node.inputsAt(1)
    others = [use.user for use in other.uses() if use.user != node]
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
