"""Text classification: one label of several, several labels at once, a regression, or the score of a pair.

Scores are those of the text-classification pipeline of transformers (``transformers/pipelines/text_classification.py``):
softmax over the labels, or a sigmoid of each for multi-label models and models of one label (rerankers), or the plain
value for a regression.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cpuc.runtime.labels import Classifier
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.tasks import About, option
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


class TextClassification(Classifier, TextTask):
    """See `cpuc.runtime.tasks.Task`."""

    name = "text-classification"
    options_type = Options

    def parse(self, value: Any, where: str) -> Text:
        return parse_text(value, where, pairs=True)


def load(manifest: Manifest, read: Callable[[str], bytes]) -> TextClassification:
    """The task of `manifest`, whose extra files `read` gives by name."""
    return TextClassification(manifest, read("tokenizer.json"))
