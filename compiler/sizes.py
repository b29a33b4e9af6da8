"""Where only the number of rows is free, all other sizes are constants, and so is what is made of them alone.

A graph asks tensors for their sizes wherever the model's code did, and makes masks and tables of positions of them, in every
call anew. Of images of one size these are the same always. A bias of attention is kept where it is small: the twelve of
BEiT-base take 22 MB for images of 224 pixels, and would take 192 for images of 384.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from cpuc.compiler.quantization import watch
from cpuc.compiler.rewrites.attention import SHAPE
from cpuc.compiler.rewrites.matching import Writes, replace
from cpuc.compiler.rewrites.rewrite import Graph, Node, Value

_MOST = 4 << 20  # bytes of a constant


def fix_sizes(graph: Graph, batch: Sequence[torch.Tensor]) -> None:
    """Make constants of the sizes in a traced graph that do not depend on the number of rows, and of what is made of them.

    Args:
        graph: of a frozen module, changed in place; its first input is the module.
        batch: inputs for it, of the sizes that it will meet but for the number of rows.
    """
    passes: Any = torch._C  # whose annotations lack some
    replace(SHAPE, graph)  # it knows a shape by the sizes that are asked for

    def asked(graph: Graph) -> list[Value]:
        nodes = graph.findAllNodes("aten::size", recurse=False)
        return [node.output() for node in nodes if node.inputsSize() == 2]

    runs = [watch(graph, asked, [_rows(tensor, count) for tensor in batch]) for count in (1, 2, 5)]
    for value, *sizes in zip(asked(graph), *runs, strict=True):
        if len(set(sizes)) == 1:
            _become(graph, value, sizes[0])
    passes._jit_pass_remove_mutation(graph)
    passes._jit_pass_constant_propagation(graph)
    # That pass stops at operators that write to their operands, such as those that fill a table part by part.
    large: set[int] = set()
    while too_large := {_place(graph, value) for value, tensor in _made(graph, batch, large) if tensor.nbytes > _MOST}:
        large |= too_large
    for value, tensor in _made(graph, batch, large):
        _become(graph, value, tensor.clone())
    passes._jit_pass_dce(graph)


def _rows(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """So many rows of its kind. Numbers are other ones, since a size may depend on them."""
    rows = tensor[:1].repeat_interleave(count, 0)
    return torch.randn_like(rows) if tensor.is_floating_point() else rows


def _made(graph: Graph, batch: Sequence[torch.Tensor], large: Collection[int]) -> list[tuple[Value, torch.Tensor]]:
    """What `_made_of_constants` finds, and what it is."""
    tensors = watch(graph, lambda copy: _made_of_constants(copy, large), batch)
    made = zip(_made_of_constants(graph, large), tensors, strict=True)
    return [(value, tensor) for value, tensor in made if isinstance(tensor, torch.Tensor)]  # a trace calls numbers tensors too


def _become(graph: Graph, value: Value, constant: int | torch.Tensor) -> None:
    with graph.insert_point_guard(value.node()):
        value.replaceAllUsesWith(graph.insertConstant(constant))


def _place(graph: Graph, value: Value) -> int:
    """Which of the graph's operators gives a value: the same in a copy."""
    return next(place for place, node in enumerate(graph.nodes()) if node == value.node())


def _made_of_constants(graph: Graph, large: Collection[int]) -> list[Value]:
    """The tensors that are made of no input but are operands of what is. None of them is written to.

    What the operators at the places `large` give, is not to be one of them.
    """
    writes, nodes = Writes(graph), list(graph.nodes())
    free = {value.unique() for value in list(graph.inputs())[1:]}
    free |= {output.unique() for place in large for output in nodes[place].outputs()}
    written: set[int] = set()  # the places of operators in `writes.nodes` whose writes have been followed
    count = -1
    while count != len(free):
        count = len(free)
        for node in nodes:
            if _is_free(node, free):
                free |= {output.unique() for output in node.outputs()}
        for place, node in enumerate(writes.nodes):
            if place not in written and _is_free(node, free):
                written.add(place)
                free |= {value.unique() for each in nodes for value in each.outputs() if writes.may_write(node, value)}
    operands = {value.unique(): value for node in nodes if _is_free(node, free) for value in node.inputs()}
    return [value for unique, value in operands.items() if unique not in free and _is_made(value) and not writes.ever(value)]


def _is_free(node: Node, free: set[int]) -> bool:
    """Whether it takes an input, or something made of one. An expanded constant stays small as it is."""
    if node.kind() == "aten::expand" or node.isNondeterministic() or any(True for _ in node.blocks()):
        return True
    return any(value.unique() in free for value in node.inputs())


def _is_made(value: Value) -> bool:
    return value.node().kind() not in ("prim::Constant", "prim::Param") and isinstance(value.type(), torch._C.TensorType)
