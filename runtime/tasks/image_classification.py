"""Image classification: the best labels of an image.

Scores are those of the image-classification pipeline of transformers (``transformers/pipelines/image_classification.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpuc.runtime.labels import Label, LabelDecoder, Labels
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.media_tasks import ImageTask, Media
from cpuc.runtime.tasks import About, Row, build_options, option

ABOUT = About(
    takes="the path of an image, base64, or a record with image; in Python also a Pillow image or an array",
    gives="the best label and its score; with --top-k a list of labels",
    example={"image": "cat.jpg"},
    answer={"label": "tabby", "score": 0.91},
)


@dataclass(frozen=True)
class Options:
    top_k: int | None = option(None, "Give this many results to each record, as a list.", minimum=1)


class ImageClassification(ImageTask):
    """See `cpuc.runtime.tasks.Task`."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._decoder = LabelDecoder(manifest)

    def options(self, given: Mapping[str, Any]) -> Options:
        options: Options = build_options(Options, given, "image-classification")
        return options

    def decode(
        self,
        record: Media,
        rows: list[Row],  # noqa: ARG002
        outputs: list[dict[str, np.ndarray]],
        options: Options,
    ) -> Label | Labels:
        return self._decoder.decode(outputs[0]["logits"], options.top_k, record.id)


def load(manifest: Manifest, read: Callable[[str], bytes]) -> ImageClassification:  # noqa: ARG001
    """The task of `manifest`."""
    return ImageClassification(manifest)
