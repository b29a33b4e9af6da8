"""What the tasks on images and sounds share: records of either, and rows made of them.

The libraries that decode them are imported with the first model that needs them, because they are extras.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpuc.runtime.errors import BundleError, InputError
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.tasks import BaseTask, Row
from cpuc.runtime.text import fields_of

# Images in a batch; more of them leave the cache.
BATCH_IMAGES = 8
# Samples in a batch of waveforms, padding included: 20 s at 16 kHz.
BATCH_SAMPLES = 320_000
# Media records that are held decoded at a time.
CHUNK_RECORDS = 64


@dataclass(frozen=True)
class Media:
    """A record: a path, base64 or an array, not opened yet; `where` names it in errors."""

    value: Any
    id: Any = None
    where: str = "the record"


def _parse(value: Any, where: str, field: str, kinds: tuple[type, ...]) -> Media:
    if isinstance(value, Media):
        return value
    if not isinstance(value, dict):
        value = {field: value}
    elif field not in value and {"raw", "array"} & set(value):
        inner = {key: each for key, each in value.items() if key != "id"}
        value = {**({"id": value["id"]} if "id" in value else {}), field: inner}
    record, where = fields_of(value, where, f'a path or {{"{field}": …}}')
    if field not in record:
        raise InputError(f"{where}: field {field!r} is missing")
    found = record[field]
    if isinstance(found, str) and not found.strip():
        raise InputError(f"{where}: field {field!r} is empty")
    if not isinstance(found, (str, np.ndarray, *kinds)):
        raise InputError(f"{where}: field {field!r} must be a path or base64, found {type(found).__name__}")
    return Media(found, record.get("id"), where)


class ImageTask(BaseTask):
    """What every task on images is built on."""

    batch_budget = BATCH_IMAGES
    chunk_records = CHUNK_RECORDS
    padding_side = "right"

    def __init__(self, manifest: Manifest) -> None:
        from cpuc.runtime.images import ImageConfig, ImagePreprocessor

        config = ImageConfig.from_dict(manifest.preprocessing.get("image") or {})
        self._preprocess = ImagePreprocessor(config)
        self._shape = (3, *config.output_size)
        if [(spec.name, spec.shape) for spec in manifest.inputs] != [("pixel_values", ["batch", *self._shape])]:
            raise BundleError("manifest.json: the inputs are not those of a model of images")

    def warm_up(self) -> Row:
        return Row({"pixel_values": np.zeros(self._shape, np.float32)}, {})

    def parse(self, value: Any, where: str) -> Media:
        from PIL.Image import Image

        return _parse(value, where, "image", (Image,))

    def encode(self, record: Media, options: Any) -> list[Row]:  # noqa: ARG002
        from cpuc.runtime.images import open_image

        where = f"{record.where}: field 'image'"
        return [Row({"pixel_values": self._preprocess(open_image(record.value, where), where)}, {})]


class AudioTask(BaseTask):
    """What every task on sounds is built on: waveforms of any length, or filter banks of one."""

    chunk_records = CHUNK_RECORDS
    padding_side = "right"

    def __init__(self, manifest: Manifest) -> None:
        from cpuc.runtime.audio import AudioConfig, AudioPreprocessor

        self.config = AudioConfig.from_dict(manifest.preprocessing.get("audio") or {})
        self._preprocess = AudioPreprocessor(self.config)
        self._names = [spec.name for spec in manifest.inputs]
        if self._names not in (["input_values"], ["input_values", "attention_mask"]):
            raise BundleError("manifest.json: the inputs are not those of a model of sounds")
        self._shortest = 1 if self.config.filter_bank else self._read_shortest(manifest)
        self.batch_budget = BATCH_IMAGES if self.config.filter_bank else BATCH_SAMPLES
        # Kernel and stride of each convolution, which say how many frames come of how many samples.
        self.convolutions: Any = manifest.preprocessing.get("convolutions", [])
        pairs = isinstance(self.convolutions, list) and all(isinstance(pair, list) for pair in self.convolutions)
        if not pairs or not all(len(p) == 2 and all(type(n) is int and n > 0 for n in p) for p in self.convolutions):
            raise BundleError("manifest.json.preprocessing: convolutions is not a list of [kernel, stride]")

    @staticmethod
    def _read_shortest(manifest: Manifest) -> int:
        if "samples" not in manifest.axes:
            raise BundleError("manifest.json: axis 'samples' has no entry in 'axes'")
        return manifest.axes["samples"].minimum

    def frames(self, samples: int) -> int:
        """How many frames the model makes of a waveform."""
        for kernel, stride in self.convolutions:
            samples = (samples - kernel) // stride + 1
        return samples

    def warm_up(self) -> Row:
        # A filter bank makes as many frames of any sound, if it is as long as one.
        samples = self.config.sampling_rate if self.config.filter_bank else self._shortest
        return self._row(np.zeros(samples, np.float32), "the sound")

    def _row(self, samples: np.ndarray, where: str) -> Row:
        values = self._preprocess(samples, where)
        if self.config.filter_bank:
            return Row({"input_values": values}, {})
        inputs = {"input_values": values, "attention_mask": np.ones(len(values), np.int64)}
        sizes = {"samples": len(values), "frames": self.frames(len(values))}
        return Row({name: inputs[name] for name in self._names}, sizes)

    def parse(self, value: Any, where: str) -> Media:
        return _parse(value, where, "audio", (dict,))

    def encode(self, record: Media, options: Any) -> list[Row]:  # noqa: ARG002
        from cpuc.runtime.audio import open_audio

        where = f"{record.where}: field 'audio'"
        samples = open_audio(record.value, where, self.config.sampling_rate)
        if len(samples) < self._shortest:
            raise InputError(
                f"{where}: the sound is {len(samples)} samples long at {self.config.sampling_rate} Hz, "
                f"the model needs {self._shortest}"
            )
        return [self._row(samples, where)]


def collapse(frames: list[int]) -> list[tuple[int, int, int]]:
    """Runs of the same token, as CTC decodes them: (token, first frame, frame after the last)."""
    runs = []
    position = 0
    for token, run in itertools.groupby(frames):
        length = len(list(run))
        runs.append((token, position, position + length))
        position += length
    return runs
