"""Image feature extraction: the vision encoder's last hidden states, or its one pooled vector.

Values are those of the image-feature-extraction pipeline of transformers
(``transformers/pipelines/image_feature_extraction.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpuc.runtime.errors import InputError
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.media_tasks import ImageTask, Media
from cpuc.runtime.tasks import About, Row, option
from cpuc.runtime.vectors import Embedding, Features

ABOUT = About(
    takes="the path of an image, base64, or a record with image; in Python also a Pillow image or an array",
    gives="a list of vectors, one for each patch; with --pool one vector",
    example={"image": "cat.jpg"},
    answer={"features": [[0.12, -0.4], [0.03, 0.55]]},
)


@dataclass(frozen=True)
class Options:
    pool: bool = option(False, "Give one vector for an image, where the model has one.")


class ImageFeatureExtraction(ImageTask):
    """See `cpuc.runtime.tasks.Task`."""

    name = "image-feature-extraction"
    options_type = Options
    outputs = ("last_hidden_state",)

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._pools = any(spec.name == "pooler_output" for spec in manifest.outputs)

    def options(self, given: Mapping[str, Any]) -> Options:
        options: Options = super().options(given)
        if options.pool and not self._pools:
            raise InputError("pool has no meaning here: the model has no pooled vector")
        return options

    def decode(
        self,
        record: Media,
        rows: list[Row],  # noqa: ARG002
        outputs: list[dict[str, np.ndarray]],
        options: Options,
    ) -> Features | Embedding:
        if options.pool:
            return Embedding(outputs[0]["pooler_output"].reshape(-1), record.id)
        return Features(np.array(outputs[0]["last_hidden_state"]), record.id)


def load(manifest: Manifest, read: Callable[[str], bytes]) -> ImageFeatureExtraction:  # noqa: ARG001
    """The task of `manifest`."""
    return ImageFeatureExtraction(manifest)
