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
    """How to capture models of one ``model_type``.

    Attributes:
        tasks: those that are tested.
        max_length: the longest sequence, from a configuration; None where nothing bounds it.
        attention: the form that transformers traces. "sdpa" leaves one torch operator, which was as fast as IPEX's
            fused scores and softmax for short sequences and faster for long ones (1.05 times for BERT-base at 384
            tokens in fp32, 1.2 times in bf16); "eager" leaves products and softmax to IPEX's patterns.
    """

    tasks: frozenset[str]
    max_length: Callable[[Any], int | None]
    attention: str = "sdpa"


ARCHITECTURES = {
    "albert": Architecture(QUESTION_ANSWERING, _absolute),
    "bert": Architecture(QUESTION_ANSWERING, _absolute),
    "camembert": Architecture(QUESTION_ANSWERING, _after_padding),
    "distilbert": Architecture(QUESTION_ANSWERING, _absolute),
    "electra": Architecture(QUESTION_ANSWERING, _absolute),
    "mpnet": Architecture(QUESTION_ANSWERING, _after_padding, attention="eager"),
    "roberta": Architecture(QUESTION_ANSWERING, _after_padding),
    "xlm-roberta": Architecture(QUESTION_ANSWERING, _after_padding),
}
