"""Feature extraction: the encoder's last hidden state of every token, special tokens included.

Values are those of the feature-extraction pipeline of transformers (``transformers/pipelines/feature_extraction.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cpuc.runtime.manifest import Manifest
from cpuc.runtime.tasks import About, Row, option
from cpuc.runtime.text import Text, TextTask
from cpuc.runtime.vectors import Features

ABOUT = About(
    takes="a string, or a record with text",
    gives="a list of vectors, one for each token",
    example={"text": "The bread was still warm."},
    answer={"features": [[0.12, -0.4], [0.03, 0.55]]},
)


@dataclass(frozen=True)
class Options:
    truncate: bool = option(False, "Cut texts that are longer than the model allows.")


class FeatureExtraction(TextTask):
    """See `cpuc.runtime.tasks.Task`."""

    name = "feature-extraction"
    options_type = Options
    outputs = ("last_hidden_state",)

    def decode(
        self,
        record: Text,
        rows: list[Row],  # noqa: ARG002
        outputs: list[dict[str, np.ndarray]],
        options: Options,  # noqa: ARG002
    ) -> Features:
        return Features(np.array(outputs[0]["last_hidden_state"]), record.id)


def load(manifest: Manifest, read: Callable[[str], bytes]) -> FeatureExtraction:
    """The task of `manifest`, whose extra files `read` gives by name."""
    return FeatureExtraction(manifest, read("tokenizer.json"))
