"""The architectures that cpuc compiles, by the ``model_type`` of their configuration: one entry each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

QUESTION_ANSWERING = frozenset({"question-answering"})
# What transformers has of these instead of a head for question answering.
CLASSIFICATION = frozenset({"text-classification", "token-classification", "fill-mask", "feature-extraction"})


def _absolute(config: Any) -> int | None:
    """One learned position per token."""
    return int(config.max_position_embeddings)


def _after_padding(config: Any) -> int | None:
    """RoBERTa numbers positions from the padding id + 1, so its table has that many rows to spare."""
    return int(config.max_position_embeddings) - int(config.pad_token_id) - 1


def _buckets(config: Any) -> int | None:
    """DeBERTa-v2 puts any distance into one of a fixed number of buckets, and may have learned positions besides."""
    relative = config.relative_attention and config.position_buckets > 0 and not config.position_biased_input
    return None if relative else int(config.max_position_embeddings)


def _unbounded(_: Any) -> int | None:
    """Relative positions of any distance."""
    return None


def _funnel(model: Any) -> None:
    from cpuc.compiler.adaptations import funnel_positions  # imports torch

    funnel_positions(model)


@dataclass(frozen=True)
class Architecture:
    """How to capture models of one ``model_type``.

    Attributes:
        tasks: those that are tested.
        max_length: the longest sequence, from a configuration; None where nothing bounds it.
        attention: the form that transformers traces. "sdpa" leaves one torch operator, which was as fast as IPEX's
            fused scores and softmax for short sequences and faster for long ones (1.05 times for BERT-base at 384
            tokens in fp32, 1.2 times in bf16); "eager" is for models that have no other: `rewrites.attention` makes
            the same operator of their products and softmax.
        adapt: changes the model's Python code where the trace would take a shape for a constant; see `adaptations`.
    """

    tasks: frozenset[str]
    max_length: Callable[[Any], int | None]
    attention: str = "sdpa"
    adapt: Callable[[Any], None] | None = None

    def prepare(self, model: Any) -> None:
        """Make a model of transformers ready for capture."""
        model.set_attn_implementation(self.attention)
        if self.adapt:
            self.adapt(model)


ARCHITECTURES = {
    "albert": Architecture(QUESTION_ANSWERING, _absolute),
    "bart": Architecture(QUESTION_ANSWERING, _absolute),
    "bert": Architecture(QUESTION_ANSWERING, _absolute),
    "camembert": Architecture(QUESTION_ANSWERING, _after_padding),
    "convbert": Architecture(QUESTION_ANSWERING, _absolute, attention="eager"),
    "data2vec-text": Architecture(QUESTION_ANSWERING, _after_padding),
    "deberta": Architecture(QUESTION_ANSWERING, _absolute, attention="eager"),
    "deberta-v2": Architecture(QUESTION_ANSWERING, _buckets, attention="eager"),
    "distilbert": Architecture(QUESTION_ANSWERING, _absolute),
    "electra": Architecture(QUESTION_ANSWERING, _absolute),
    "ernie": Architecture(QUESTION_ANSWERING, _absolute),
    "esm": Architecture(CLASSIFICATION, _after_padding),
    "eurobert": Architecture(CLASSIFICATION, _absolute),
    "flaubert": Architecture(QUESTION_ANSWERING, _absolute, attention="eager"),
    "funnel": Architecture(QUESTION_ANSWERING, _unbounded, attention="eager", adapt=_funnel),
    "gte": Architecture(CLASSIFICATION, _absolute),
    "jina_embeddings_v3": Architecture(QUESTION_ANSWERING, _absolute),
    "mbart": Architecture(QUESTION_ANSWERING, _absolute),
    "megatron-bert": Architecture(QUESTION_ANSWERING, _absolute, attention="eager"),
    "mobilebert": Architecture(QUESTION_ANSWERING, _absolute),
    "modernbert": Architecture(QUESTION_ANSWERING, _absolute),
    "mpnet": Architecture(QUESTION_ANSWERING, _after_padding, attention="eager"),
    "nomic_bert": Architecture(CLASSIFICATION, _absolute),
    "rembert": Architecture(QUESTION_ANSWERING, _absolute, attention="eager"),
    "roberta": Architecture(QUESTION_ANSWERING, _after_padding),
    "roberta-prelayernorm": Architecture(QUESTION_ANSWERING, _after_padding),
    "roformer": Architecture(QUESTION_ANSWERING, _absolute, attention="eager"),
    "squeezebert": Architecture(QUESTION_ANSWERING, _absolute, attention="eager"),
    "xlm": Architecture(QUESTION_ANSWERING, _absolute, attention="eager"),
    "xlm-roberta": Architecture(QUESTION_ANSWERING, _after_padding),
    "xlm-roberta-xl": Architecture(QUESTION_ANSWERING, _after_padding),
    "xlnet": Architecture(QUESTION_ANSWERING, _unbounded, attention="eager"),
}
