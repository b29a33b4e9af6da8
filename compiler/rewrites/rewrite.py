"""What a rewrite is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rewrite:
    """Every occurrence of `pattern` becomes `replacement`."""

    name: str
    pattern: str
    replacement: str
