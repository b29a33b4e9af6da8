"""The architectures that cpuc compiles, by the ``model_type`` of their configuration: one entry each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

QUESTION_ANSWERING = frozenset({"question-answering"})


def _absolute(config: Any) -> int | None:
    """One learned position per token."""
    return int(config.max_position_embeddings)


def _after_padding(config: Any) -> int | None:
    """RoBERTa numbers positions from the padding id + 1, so its table has that many rows to spare."""
    return int(config.max_position_embeddings) - int(config.pad_token_id) - 1


@dataclass(frozen=True)
class Architecture:
    """`max_length` gives the longest sequence from a configuration, None where nothing bounds it."""

    tasks: frozenset[str]
    max_length: Callable[[Any], int | None]


ARCHITECTURES = {
    "albert": Architecture(QUESTION_ANSWERING, _absolute),
    "bert": Architecture(QUESTION_ANSWERING, _absolute),
    "camembert": Architecture(QUESTION_ANSWERING, _after_padding),
    "distilbert": Architecture(QUESTION_ANSWERING, _absolute),
    "electra": Architecture(QUESTION_ANSWERING, _absolute),
    "mpnet": Architecture(QUESTION_ANSWERING, _after_padding),
    "roberta": Architecture(QUESTION_ANSWERING, _after_padding),
    "xlm-roberta": Architecture(QUESTION_ANSWERING, _after_padding),
}
