"""Image classification: the best labels of an image.

Scores are those of the image-classification pipeline of transformers (``transformers/pipelines/image_classification.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cpuc.runtime.labels import Classifier
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.media_tasks import ImageTask
from cpuc.runtime.tasks import About, option

ABOUT = About(
    takes="the path of an image, base64, or a record with image; in Python also a Pillow image or an array",
    gives="the best label and its score; with --top-k a list of labels",
    example={"image": "cat.jpg"},
    answer={"label": "tabby", "score": 0.91},
)


@dataclass(frozen=True)
class Options:
    top_k: int | None = option(None, "Give this many results to each record, as a list.", minimum=1)


class ImageClassification(Classifier, ImageTask):
    """See `cpuc.runtime.tasks.Task`."""

    name = "image-classification"
    options_type = Options


def load(manifest: Manifest, read: Callable[[str], bytes]) -> ImageClassification:  # noqa: ARG001
    """The task of `manifest`."""
    return ImageClassification(manifest)
