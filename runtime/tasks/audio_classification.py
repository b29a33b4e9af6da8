"""Audio classification: the best labels of a sound.

Scores are those of the audio-classification pipeline of transformers (``transformers/pipelines/audio_classification.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cpuc.runtime.labels import Classifier
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.media_tasks import AudioTask
from cpuc.runtime.tasks import About, option

ABOUT = About(
    takes="the path of a sound, base64, or a record with audio, which may be samples with their sampling_rate",
    gives="the best label and its score; with --top-k a list of labels",
    example={"audio": "door.wav"},
    answer={"label": "knock", "score": 0.87},
)


@dataclass(frozen=True)
class Options:
    top_k: int | None = option(None, "Give this many results to each record, as a list.", minimum=1)


class AudioClassification(Classifier, AudioTask):
    """See `cpuc.runtime.tasks.Task`."""

    name = "audio-classification"
    options_type = Options


def load(manifest: Manifest, read: Callable[[str], bytes]) -> AudioClassification:  # noqa: ARG001
    """The task of `manifest`."""
    return AudioClassification(manifest)
