"""Convolutions of images of one size, packed for one image and for several.

    convolution_run(x, packed for one)   →   if more than one image:  convolution_run(x, packed for eight)
                                             else:                    as it was

oneDNN chooses the order of a weight by the size of the whole input, and brings it there in every call where it was packed for
another. Of most convolutions that is the same order; the others are packed for both. In turns with what was packed for one
image only, on an EPYC (Zen 4):

    images                    1      2      4      8      16     32     size of the file
    ResNet-50, float32       1.00   1.40   1.21   1.11   1.05   1.02    1.07
    RegNet-Y, float32        1.00   2.68   1.87   1.47   1.24   1.12    1.35
    MobileNet-V2, bfloat16   1.04   1.75   1.44   1.23   1.10   1.06    1.07
    EfficientNet, bfloat16   1.00   1.52   1.30   1.15   1.08   1.04    1.07

Weights that are packed for both are in the file twice, and in memory. Which orders differ is found on the CPU that compiles; on
another it may be others, and those that are packed for both stay right.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from cpuc.compiler.branches import branch, copies, number, truth
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

_PACKED = "ConvolutionOpContext"
_SEVERAL = 8


def pack_for_several(graph: Graph) -> None:
    """Give convolutions of a fused graph their second weight in place, where its order differs from the first one's.

    Args:
        graph: its first input is the images, of one size; convolutions are packed for one image, and no operator has two.
    """
    uses = [(node, value) for node in graph.nodes() for value in node.inputs() if _is_packed(value)]
    packed = {value.unique(): value for _, value in uses}
    others = {unique: other for unique, value in packed.items() if (other := _other(value)) is not None}
    if not others:
        return
    with graph.insert_point_guard(next(iter(graph.nodes()))):
        several = truth(graph, "aten::gt", number(graph, "aten::size", next(iter(graph.inputs())), 0), 1)
    for node, value in uses:
        if value.unique() in others:
            ways = [(several, functools.partial(_with, graph, node, value, others[value.unique()]))]
            branch(graph, node, ways, functools.partial(copies, graph, [node]))


def _is_packed(value: Value) -> bool:
    return value.node().kind() == "prim::Constant" and str(value.type()).endswith(_PACKED)


def _other(value: Value) -> Any:
    """The weight packed for several images, if it is in another order then."""
    packed: Any = value.toIValue()
    *settings, size = packed._get_method("__getstate__")()
    other = torch.ops.ipex_prepack.convolution_prepack(*settings, [size[0] * _SEVERAL, *size[1:]])
    return None if torch.equal(_memory(packed), _memory(other)) else other


def _memory(packed: Any) -> torch.Tensor:
    """The bytes of a packed weight as they lie in memory."""
    storage = packed._get_method("get_weight")().untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _with(graph: Graph, node: Node, value: Value, other: Any) -> Value:
    return copies(graph, [node], {value.unique(): graph.insertConstant(other)})
