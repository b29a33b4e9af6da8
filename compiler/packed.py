"""Linear layers in float32 on MKL's product of packed matrices, for one number of rows.

    tpp_linear_bias(x, blocks, bias)             →   mkl_sgemm_run(x, packed)
    tpp_linear_relu(x, blocks, bias)             →   relu(mkl_sgemm_run(x, packed))
    tpp_linear_add(x, y, blocks, bias, scale)    →   mkl_sgemm_run(x, packed) + scale · y

MKL packs a matrix for a number of rows of the other. With any other, IPEX takes MKL's product of plain matrices, which on a
Xeon is 0.6 to 0.8 times as fast as libxsmm's for 8 and 16 rows, and 0.95 to 1.1 times for 128 to 1024: hence a form for
`tuning`, which knows a size to expect, and no default. The artifact holds plain weights; packed when it is loaded, they take as
much memory again, and of BERT-base 0.8 s.

Whole models with packed layers against libxsmm's, in turns on two cores of a Xeon:

    batch x tokens    1x16    1x128    1x384    8x128
    BERT-base         0.98     1.14     1.09     1.06
    MiniLM-L6         0.99     1.07     1.09
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from cpuc.compiler.quantization import watch
from cpuc.compiler.rewrites.matching import insert
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value
from cpuc.compiler.xsmm import ADD, BIAS, RELU, operands, shape_of

_RUN = "ipex_prepack::mkl_sgemm_run"
_LEAST = 32  # a layer of fewer outputs takes no time worth saving


def use_packed(graph: Graph, batch: Sequence[torch.Tensor]) -> None:
    """Give layers of libxsmm in float32 this form in place, packed for the numbers of rows that they have with `batch`.

    A layer that has copies in both branches of one operator is computed once, before it.
    """

    def pick(graph: Graph) -> list[Value]:
        return [node.inputsAt(0) for node, _ in _layers(graph.nodes())]

    sources = watch(graph, pick, batch)
    contexts: dict[tuple[int, int, int], Any] = {}
    products: dict[tuple[str, ...], Value] = {}
    for (node, outermost), source in zip(_layers(graph.nodes()), sources, strict=True):
        x, weight, bias = operands(node)
        key = tuple(value.debugName() for value in (outermost.outputsAt(0), x, weight, bias))
        if key not in products:
            blocks, start, rows = weight.toIValue(), bias.toIValue(), source.numel() // source.shape[-1]
            shared = blocks.data_ptr(), start.data_ptr(), rows
            if shared not in contexts:
                plain = blocks.permute(0, 3, 1, 2).reshape(shape_of(blocks))
                contexts[shared] = torch.ops.ipex_prepack.mkl_sgemm_prepack(plain, start if len(start) else None, rows)
            with graph.insert_point_guard(outermost):
                products[key] = insert(graph, _RUN, x, graph.insertConstant(contexts[shared]))
        made = products[key]
        with graph.insert_point_guard(node):
            if node.kind() == ADD:
                made = insert(graph, "aten::add", made, node.inputsAt(1), node.inputsAt(4))
            elif node.kind() == RELU:
                made = insert(graph, "aten::relu", made)
        node.output().replaceAllUsesWith(made)
        node.destroy()
    torch._C._jit_pass_dce(graph)


def _layers(nodes: Any, outermost: Node | None = None) -> Iterator[tuple[Node, Node]]:
    """The layers to pack, each with the operator of the whole graph that it is in, if not one itself."""
    for node in list(nodes):
        for block in node.blocks():
            yield from _layers(block.nodes(), outermost or node)
        if node.kind() in (BIAS, RELU, ADD):
            blocks = operands(node)[1].toIValue()
            if blocks.dtype == torch.float32 and shape_of(blocks)[0] >= _LEAST:
                yield node, outermost or node
