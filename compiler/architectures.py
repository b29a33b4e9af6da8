"""The architectures that cpuc compiles, by the ``model_type`` of their configuration: one entry each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TEXT = frozenset(
    {
        "feature-extraction",
        "fill-mask",
        "multiple-choice",
        "question-answering",
        "sentence-embeddings",
        "text-classification",
        "token-classification",
        "zero-shot-classification",
    }
)


def _absolute(config: Any) -> int | None:
    """One learned position per token."""
    return int(config.max_position_embeddings)


def _guess(config: Any) -> int | None:
    """What most configurations call it."""
    value = getattr(config, "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None


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
            tokens in fp32, 1.2 times in bf16); "eager" leaves products and softmax to IPEX's patterns. None takes
            the first where the model has it.
    """

    tasks: frozenset[str]
    max_length: Callable[[Any], int | None]
    attention: str | None = "sdpa"


ARCHITECTURES = {
    "albert": Architecture(TEXT, _absolute),
    "bert": Architecture(TEXT, _absolute),
    "camembert": Architecture(TEXT, _after_padding),
    "distilbert": Architecture(TEXT, _absolute),
    "electra": Architecture(TEXT, _absolute),
    "mpnet": Architecture(TEXT, _after_padding, attention="eager"),
    "roberta": Architecture(TEXT, _after_padding),
    "xlm-roberta": Architecture(TEXT, _after_padding),
}

IMAGE = frozenset({"image-classification", "image-feature-extraction"})
AUDIO = frozenset({"audio-classification", "automatic-speech-recognition"})
ARCHITECTURES |= {
    "vit": Architecture(IMAGE, _guess),
    "resnet": Architecture(IMAGE, _guess, "eager"),
    "wav2vec2": Architecture(AUDIO, _guess),
    "audio-spectrogram-transformer": Architecture(AUDIO, _guess),
}
# What is assumed of an architecture that is not in the table (--allow-unlisted); verification decides.
UNLISTED = Architecture(TEXT, _guess, attention=None)
