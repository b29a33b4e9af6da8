"""What a rewrite is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

# torch's classes of these names, of whose methods its annotations know few.
Graph: TypeAlias = Any
Node: TypeAlias = Any
Value: TypeAlias = Any

Values = Mapping[str, Value]
# Called with the graph, its insertion point before the match, and what the pattern's inputs matched; "result" is what it
# returns.
Where = Callable[[Graph, Values], Values | None]


@dataclass(frozen=True)
class Rewrite:
    """Every occurrence of `pattern` becomes `replacement`; both are TorchScript IR.

    Attributes:
        name: for messages and tests.
        pattern: the operators to look for. A constant in it matches constants of the same type and value.
        replacement: its inputs are among those of the pattern and what `where` adds.
        where: what a pattern cannot say. It refuses a match with None, before it has changed anything, or returns
            further values for the replacement.
    """

    name: str
    pattern: str
    replacement: str
    where: Where | None = None
