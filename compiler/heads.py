"""The operators around attention: what makes heads of the rows of a tensor, and rows of heads again."""

from __future__ import annotations

from cpuc.compiler.rewrites.matching import equals
from cpuc.compiler.rewrites.rewrite import Node, Value

_VIEWS = ("aten::view", "aten::reshape")


def cuts_of(node: Node, position: int) -> list[Node]:
    """What makes heads of query, key or value: a slice, if there is one, a view and a transposition."""
    turn = node.inputsAt(position).node()
    if not _turns(turn) or turn.inputsAt(0).node().kind() not in _VIEWS:
        return []
    view = turn.inputsAt(0).node()
    part = view.inputsAt(0).node()
    return [*([part] if part.kind() == "aten::slice" else []), view, turn]


def joins_of(node: Node) -> list[Node]:
    """What makes rows of the output: a transposition and a view, and copies where they are needed."""
    nodes = [user for user in [_only_user(node.outputsAt(0))] if user and _turns(user) and not node.outputsAt(1).uses()]
    views = 0
    while nodes and (user := _only_user(nodes[-1].output())):
        views += user.kind() in _VIEWS
        if views > 1 or user.kind() not in (*_VIEWS, "aten::contiguous"):
            break
        nodes.append(user)
    return nodes if views else []


def _turns(node: Node) -> bool:
    return bool(node.kind() == "aten::transpose" and equals(node.inputsAt(1), 1) and equals(node.inputsAt(2), 2))


def _only_user(value: Value) -> Node | None:
    uses = list(value.uses())
    return uses[0].user if len(uses) == 1 else None
