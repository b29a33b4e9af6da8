"""Text classification: one label of several, several labels at once, a regression, or the score of a pair.

Scores are those of the text-classification pipeline of transformers (``transformers/pipelines/text_classification.py``):
softmax over the labels, or a sigmoid of each for multi-label models and models of one label (rerankers), or the plain
value for a regression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpuc.runtime.labels import Label, LabelDecoder, Labels
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.tasks import About, Row, build_options, option
from cpuc.runtime.text import Text, TextTask, parse_text

ABOUT = About(
    takes="a string, or a record with text and, for models of pairs and rerankers, text_pair",
    gives="the best label and its score; with --top-k a list of labels",
    example={"text": "The bread was still warm."},
    answer={"label": "POSITIVE", "score": 0.997},
)


@dataclass(frozen=True)
class Options:
    top_k: int | None = option(None, "Give this many results to each record, as a list.", minimum=1)
    truncate: bool = option(False, "Cut texts that are longer than the model allows.")


class TextClassification(TextTask):
    """See `cpuc.runtime.tasks.Task`."""

    def __init__(self, manifest: Manifest, tokenizer_json: bytes) -> None:
        super().__init__(manifest, tokenizer_json)
        self._decoder = LabelDecoder(manifest)

    def options(self, given: Mapping[str, Any]) -> Options:
        options: Options = build_options(Options, given, "text-classification")
        return options

    def parse(self, value: Any, where: str) -> Text:
        return parse_text(value, where, pairs=True)

    def encode(self, record: Text, options: Options) -> list[Row]:
        cut = "longest_first" if options.truncate else None
        return [self.encoder.row(self.encoder.encode(record.text, record.pair, record.where, cut=cut))]

    def decode(
        self,
        record: Text,
        rows: list[Row],  # noqa: ARG002
        outputs: list[dict[str, np.ndarray]],
        options: Options,
    ) -> Label | Labels:
        return self._decoder.decode(outputs[0]["logits"], options.top_k, record.id)


def load(manifest: Manifest, read: Callable[[str], bytes]) -> TextClassification:
    """The task of `manifest`, whose extra files `read` gives by name."""
    return TextClassification(manifest, read("tokenizer.json"))
