"""The engine of the rewrites: finds occurrences of a pattern in a graph and replaces them.

torch has one too (`_jit_pass_custom_pattern_based_rewrite_graph`), but its conditions can only be written in C++.
Operators are replaced where the last of a match stood. `apply` takes in-place operators out of the graph first; where one
is left that writes to what a match has read before, the match is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cpuc.compiler.rewrites.rewrite import Graph, Node, Rewrite, Value, Where

# Operators whose result has as many axes as their first operand, and those where the larger operand decides.
_RANK_KEEPERS = ("transpose", "contiguous", "to", "sqrt", "chunk", "div_", "prim::ListUnpack")
_BROADCASTS = ("add", "sub", "mul", "div")


def replace(rewrite: Rewrite, graph: Graph) -> int:
    """Rewrite every match of `rewrite` in `graph`; returns how many there were."""
    pattern, replacement = torch._C.parse_ir(rewrite.pattern), torch._C.parse_ir(rewrite.replacement)
    (result,) = pattern.outputs()
    fired = 0
    used: set[int] = set()
    disturbing = any(map(_is_in_place, _all_nodes(graph)))
    # Nodes are not destroyed before the loop is over: the list holds pointers to them.
    replaced: list[Node] = []
    for anchor in graph.findAllNodes(result.node().kind()):
        match = _Match()
        if not match.value(result, anchor.output()) or match.leaks() or match.inner & used:
            continue
        writes = Writes(graph) if disturbing else None
        with graph.insert_point_guard(anchor):
            values = {**match.names, "result": anchor.output()}
            if rewrite.where is not None:
                more = rewrite.where(graph, values)
                if more is None:
                    continue
                values.update(more)
            new = _insert(graph, replacement, values)
            if writes and writes.disturb(new, anchor):
                continue
            anchor.output().replaceAllUsesWith(new)
        used |= match.inner
        replaced += match.nodes
        fired += 1
    # Consumers come before what they consume. The pass below would keep operators that write to their operands.
    for node in sorted(replaced, key=functools.cmp_to_key(_latest_first)):
        node.destroy()
    torch._C._jit_pass_dce(graph)
    return fired


def _latest_first(one: Node, other: Node) -> int:
    return -1 if other.isBefore(one) else 1


def _is_in_place(node: Node) -> bool:
    """`x.add_(y)` and the like, and `x &= y`; `__and__` is not."""
    name: str = node.kind()
    return name.startswith("aten::__i") if name.endswith("__") else name.endswith("_")


class Writes:
    """The in-place operators that a graph has before something is inserted."""

    def __init__(self, graph: Graph) -> None:
        nodes = list(_all_nodes(graph))
        self.nodes = list(filter(_is_in_place, nodes))
        self.aliases: Any = graph.alias_db()
        self.known = {output.unique() for node in nodes for output in node.outputs()}

    def disturb(self, value: Value, anchor: Node) -> bool:
        """Whether something that `value`, made at `anchor`, is made of was written to after it had been made itself."""
        if value.unique() not in self.known and value.node().kind() != "prim::Param":
            return any(self.disturb(each, anchor) for each in value.node().inputs())
        return any(
            node.isBefore(anchor)
            and (value.node().kind() == "prim::Param" or value.node().isBefore(node))
            and self.may_write(node, value)
            for node in self.nodes
        )

    def between(self, value: Value, first: Node, last: Node) -> bool:
        """Whether something may be written to `value` after `first` and before `last`."""
        return any(first.isBefore(node) and node.isBefore(last) and self.may_write(node, value) for node in self.nodes)

    def ever(self, value: Value) -> bool:
        """Whether something may be written to `value` anywhere."""
        return any(self.may_write(node, value) for node in self.nodes)

    def may_write(self, node: Node, value: Value) -> bool:
        """Whether an in-place operator may write to `value`."""
        return bool(self.aliases.may_contain_alias(node.inputsAt(0), value))


def _all_nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes():
        yield node
        for block in node.blocks():
            yield from _all_nodes(block)


class _Match:
    """One attempt to find a pattern at one place."""

    def __init__(self) -> None:
        self.names: dict[str, Value] = {}
        self.inner: set[int] = set()  # the values that the matched operators make
        self.nodes: list[Node] = []

    def value(self, wanted: Value, found: Value) -> bool:
        """Whether `found`, with all that leads to it, is what the pattern's value `wanted` describes."""
        if wanted.node().kind() == "prim::Constant":
            return equals(found, wanted.toIValue())
        name = wanted.debugName()
        if name in self.names:
            return bool(self.names[name].unique() == found.unique())
        self.names[name] = found
        if wanted.node().kind() == "prim::Param":
            return True
        return wanted.offset() == found.offset() and self._node(wanted.node(), found.node())

    def _node(self, wanted: Node, found: Node) -> bool:
        shape = (wanted.kind(), wanted.inputsSize(), wanted.outputsSize())
        if shape != (found.kind(), found.inputsSize(), found.outputsSize()):
            return False
        self.nodes.append(found)
        self.inner.update(output.unique() for output in found.outputs())
        return all(self.value(*pair) for pair in zip(wanted.inputs(), found.inputs(), strict=True))

    def leaks(self) -> bool:
        """Whether a value other than the last is needed elsewhere, so that it would be computed twice."""
        for node in self.nodes[1:]:
            for use in (use for output in node.outputs() for use in output.uses()):
                if not any(output.unique() in self.inner for output in use.user.outputs()):
                    return True
        return False


def is_constant(value: Value) -> bool:
    """Whether `value` is known at compile time."""
    return bool(value.node().kind() == "prim::Constant")


def equals(value: Value, expected: Any) -> bool:
    """Whether `value` is a constant equal to `expected`."""
    if not is_constant(value):
        return False
    actual = value.toIValue()
    # True is not 1, and neither is 1.0.
    return type(actual) is type(expected) and bool(actual == expected)


def accepts(test: Callable[[Node], bool]) -> Where:
    """A condition that looks at the node which yields a match's result, and adds nothing."""
    return lambda _, values: {} if test(values["result"].node()) else None


def source(node: Node, *path: int) -> Node | None:
    """The node that is found by following the inputs of these positions upwards; None where there are fewer inputs."""
    for position in path:
        if node.inputsSize() <= position:
            return None
        node = node.inputsAt(position).node()
    return node


def insert(graph: Graph, kind: str, *inputs: Any) -> Value:
    """The output of a new operator where the graph is being written; inputs that are no values of it become constants."""
    values = [each if isinstance(each, torch._C.Value) else graph.insertConstant(each) for each in inputs]
    output: Value = graph.insertNode(graph.create(kind, values, 1)).output()
    return output


def constant(node: Node | None, position: int) -> Any:
    """The value of an input, where it is constant, or None. A tensor that came from a number is given as that number."""
    if node is None or node.inputsSize() <= position:
        return None
    return node.inputsAt(position).toIValue()


def constant_tensor(node: Node | None, position: int) -> torch.Tensor | None:
    """The value of an input, where it is a constant tensor."""
    value = constant(node, position)
    return value if isinstance(value, torch.Tensor) else None


def is_weight(value: Value) -> bool:
    """Whether no content of the inputs, only their sizes, goes into `value`."""
    waiting = [value]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop().node()
        if node.kind() == "prim::Param" or any(True for _ in node.blocks()):
            return False
        if node.kind() != "aten::size":
            new = [each for each in node.inputs() if each.unique() not in seen]
            seen.update(each.unique() for each in new)
            waiting += new
    return True


def rank(value: Value) -> int | None:
    """How many axes `value` has, where the operators that made it tell; a number has none."""
    node = value.node()
    operator = node.kind().removeprefix("aten::")
    if is_constant(value):
        content: Any = value.toIValue()
        return content.dim() if isinstance(content, torch.Tensor) else 0 if isinstance(content, int | float) else None
    if operator == "prim::NumToTensor":
        return 0
    if operator in ("permute", "view", "reshape"):
        sizes = node.inputsAt(1)
        return len(sizes.toIValue()) if is_constant(sizes) else int(sizes.node().inputsSize())
    if operator in _BROADCASTS:
        ranks = [rank(each) for each in (node.inputsAt(0), node.inputsAt(1))]
        return None if None in ranks else max(each for each in ranks if each is not None)
    return rank(node.inputsAt(0)) if operator in _RANK_KEEPERS else None


def _insert(graph: Graph, replacement: Graph, values: dict[str, Value]) -> Value:
    mapped = {value.unique(): values[value.debugName()] for value in replacement.inputs()}

    def replaced(value: Value) -> Value:
        return mapped[value.unique()]

    for node in replacement.nodes():
        clone = graph.insertNode(graph.createClone(node, replaced))
        mapped.update({old.unique(): new for old, new in zip(node.outputs(), clone.outputs(), strict=True)})
    (result,) = replacement.outputs()
    return mapped[result.unique()]
