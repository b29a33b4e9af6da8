"""Where only the number of rows is free, all other sizes are constants, and so is what is made of them alone.

A graph asks tensors for their sizes wherever the model's code did, and makes masks and tables of positions of them, in every
call anew. Of images of one size these are the same always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cpuc.compiler.quantization import watch
from cpuc.compiler.rewrites.matching import Writes
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value


def fix_sizes(graph: Graph, batch: Sequence[torch.Tensor]) -> None:
    """Make constants of the sizes in a traced graph that do not depend on the number of rows, and of what is made of them.

    Args:
        graph: of a frozen module, changed in place; its first input is the module.
        batch: inputs for it, of the sizes that it will meet but for the number of rows.
    """
    passes: Any = torch._C  # whose annotations lack some

    def asked(graph: Graph) -> list[Value]:
        return [node.output() for node in graph.findAllNodes("aten::size") if node.inputsSize() == 2]

    runs = [watch(graph, asked, [tensor.repeat_interleave(rows, 0) for tensor in batch]) for rows in (1, 2, 5)]
    for value, *sizes in zip(asked(graph), *runs, strict=True):
        if len(set(sizes)) == 1:
            _become(graph, value, sizes[0])
    passes._jit_pass_remove_mutation(graph)
    passes._jit_pass_constant_propagation(graph)
    # That pass stops at operators that write to their operands, such as those that fill a table part by part.
    found = watch(graph, _made_of_constants, batch)
    for value, tensor in zip(_made_of_constants(graph), found, strict=True):
        _become(graph, value, tensor.clone())
    passes._jit_pass_dce(graph)


def _become(graph: Graph, value: Value, constant: int | torch.Tensor) -> None:
    with graph.insert_point_guard(value.node()):
        value.replaceAllUsesWith(graph.insertConstant(constant))


def _made_of_constants(graph: Graph) -> list[Value]:
    """The tensors that are made of no input but are operands of what is. None of them is written to."""
    writes, nodes = Writes(graph), list(graph.nodes())
    free = {value.unique() for value in list(graph.inputs())[1:]}
    count = -1
    while count != len(free):
        count = len(free)
        for node in nodes:
            if _is_free(node, free):
                free |= {output.unique() for output in node.outputs()}
        for node in writes.nodes:
            if node.inputsAt(0).unique() not in free and _is_free(node, free):
                free |= {value.unique() for each in nodes for value in each.outputs() if writes.may_write(node, value)}
    operands = {value.unique(): value for node in nodes if _is_free(node, free) for value in node.inputs()}
    return [value for unique, value in operands.items() if unique not in free and _is_made(value) and not writes.ever(value)]


def _is_free(node: Node, free: set[int]) -> bool:
    """Whether it takes an input, or something made of one. An expanded constant stays small as it is."""
    return node.kind() == "aten::expand" or any(value.unique() in free for value in node.inputs())


def _is_made(value: Value) -> bool:
    return value.node().kind() not in ("prim::Constant", "prim::Param") and isinstance(value.type(), torch._C.TensorType)
