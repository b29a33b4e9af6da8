"""Changes to a model before it is captured, where its Python code would not survive being traced."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True)
class _Positions:
    """A sequence of positions by what is asked of it; under tracing these are values of the graph."""

    first: Any
    last: Any
    length: Any


def funnel_positions(model: Any) -> None:
    """Funnel makes its relative positions from Python lists as long as the sequence; here they are computed."""
    for module in model.modules():
        if structure := getattr(module, "attention_structure", None):
            structure.stride_pool_pos = partial(_pooled, structure)
            structure.relative_pos = partial(_relative, structure)


def _positions(structure: Any, positions: Any) -> _Positions:
    if isinstance(positions, _Positions):
        return positions
    # Only the whole sequence, before any pooling, is still a list.
    return _Positions(0, structure.seq_len - 1, structure.seq_len)


def _pooled(structure: Any, positions: Any, block: int) -> _Positions:
    """Every second position; with a separate [CLS] it stands before the others, which begin at 1."""
    length, step = _positions(structure, positions).length, 2**block
    if not structure.config.separate_cls:
        pooled = (length + 1) // 2
        return _Positions(0, (pooled - 1) * step, pooled)
    others = (length - 1) // 2 if structure.config.truncate_seq else length // 2
    # Without others the last position is that of [CLS], 1 - step: the same formula gives it.
    return _Positions(1 - step, 1 + (others - 1) * step, 1 + others)


def _relative(
    structure: Any, positions: Any, stride: int, pooled: Any = None, shift: int = 1, device: torch.device | None = None
) -> torch.Tensor:
    """The distances from `pooled` to `positions`, from the largest down."""
    keys = _positions(structure, positions)
    queries = keys if pooled is None else _positions(structure, pooled)
    largest = queries.first - keys.first + shift * queries.length * stride
    return torch.arange(largest, queries.first - keys.last - 1, -stride, dtype=torch.long, device=device)


def last_end_of_text(model: Any) -> None:
    """BART classifies by the last end-of-text token of each row, and finds them by counting on all rows having as many.

    It checks that in Python, which a trace forgets; here each row looks for its own.
    """
    head = getattr(model, "classification_head", None)
    if head is None:
        return

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        hidden = model.model(input_ids, attention_mask=attention_mask)[0]
        ends = input_ids.eq(model.config.eos_token_id) * torch.arange(input_ids.shape[1])
        return {"logits": head(hidden.gather(1, ends.argmax(1)[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1))}

    model.forward = forward
