"""The architectures that cpuc compiles, by the ``model_type`` of their configuration: one entry each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

QUESTION_ANSWERING = frozenset({"question-answering"})
IMAGE = frozenset({"image-classification", "image-feature-extraction"})
FEATURES = frozenset({"image-feature-extraction"})
AUDIO = frozenset({"audio-classification", "automatic-speech-recognition"})
SPECTROGRAM = frozenset({"audio-classification"})

Shape = list[int | str]


def _absolute(config: Any) -> int | None:
    """One learned position per token."""
    return int(config.max_position_embeddings)


def _after_padding(config: Any) -> int | None:
    """RoBERTa numbers positions from the padding id + 1, so its table has that many rows to spare."""
    return int(config.max_position_embeddings) - int(config.pad_token_id) - 1


def _unbounded(_config: Any) -> int | None:
    """Nothing bounds it, or it is fixed."""
    return None


def _pixels(config: Any) -> dict[str, Shape]:
    """One size, where the configuration has one: positions are learnt for it. Without, any size from the image processor."""
    vision = getattr(config, "vision_config", config)
    size: Any = getattr(vision, "image_size", ["height", "width"])
    height, width = [size, size] if isinstance(size, int) else size
    return {"pixel_values": ["batch", vision.num_channels, height, width]}


def _waveform(config: Any) -> dict[str, Shape]:
    """Where features are normalised over a whole recording (norm "group"), padding counts, and models never saw a mask."""
    names = ["input_values", "attention_mask"] if getattr(config, "feat_extract_norm", "layer") == "layer" else ["input_values"]
    return {name: ["batch", "samples"] for name in names}


def _spectrogram(config: Any) -> dict[str, Shape]:
    return {"input_values": ["batch", config.max_length, config.num_mel_bins]}


def _receptive_field(config: Any) -> int:
    """The fewest samples that make one frame, or as many as SEW averages into one."""
    length = getattr(config, "squeeze_factor", 1)
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        length = (length - 1) * stride + kernel
    return int(length)


@dataclass(frozen=True)
class Architecture:
    """How to capture models of one ``model_type``.

    Attributes:
        tasks: those that are tested.
        max_length: the longest sequence, from a configuration; None where nothing bounds it.
        attention: the form that transformers traces. "sdpa" leaves one torch operator, which was as fast as IPEX's
            fused scores and softmax for short sequences and faster for long ones (1.05 times for BERT-base at 384
            tokens in fp32, 1.2 times in bf16); "eager" leaves products and softmax to IPEX's patterns and to our rewrites,
            and is what models have that know no other form, or no attention at all.
        inputs: axes of each input, from a configuration, in the order of the graph's arguments; None for tokens. What is
            named "attention_mask" is int64, all else float32.
        min_length: the shortest sequence, from a configuration; None where it is 1, or where nothing is free but the batch.
    """

    tasks: frozenset[str]
    max_length: Callable[[Any], int | None]
    attention: str = "sdpa"
    inputs: Callable[[Any], dict[str, Shape]] | None = None
    min_length: Callable[[Any], int] | None = None


def _image(attention: str = "sdpa", tasks: frozenset[str] = IMAGE) -> Architecture:
    return Architecture(tasks, _unbounded, attention, inputs=_pixels)


def _sound(attention: str = "sdpa") -> Architecture:
    return Architecture(AUDIO, _unbounded, attention, inputs=_waveform, min_length=_receptive_field)


ARCHITECTURES = {
    "albert": Architecture(QUESTION_ANSWERING, _absolute),
    "bert": Architecture(QUESTION_ANSWERING, _absolute),
    "camembert": Architecture(QUESTION_ANSWERING, _after_padding),
    "distilbert": Architecture(QUESTION_ANSWERING, _absolute),
    "electra": Architecture(QUESTION_ANSWERING, _absolute),
    "mpnet": Architecture(QUESTION_ANSWERING, _after_padding, attention="eager"),
    "roberta": Architecture(QUESTION_ANSWERING, _after_padding),
    "xlm-roberta": Architecture(QUESTION_ANSWERING, _after_padding),
    # Images.
    "beit": _image(),
    "clip": _image(),
    "clip_vision_model": _image(tasks=FEATURES),
    "convnext": _image("eager"),
    "convnextv2": _image("eager"),
    "data2vec-vision": _image(),
    "deit": _image(),
    "dinov2": _image(),
    "dinov2_with_registers": _image(),
    "dinov3_vit": _image(),
    "efficientnet": _image("eager"),
    "mobilenet_v1": _image("eager"),
    "mobilenet_v2": _image("eager"),
    "mobilevit": _image("eager"),
    "regnet": _image("eager"),
    "resnet": _image("eager"),
    "siglip": _image(),
    "siglip_vision_model": _image(tasks=FEATURES),
    "swin": _image(),
    "swinv2": _image("eager"),
    "vit": _image(),
    # Sound.
    "audio-spectrogram-transformer": Architecture(SPECTROGRAM, _unbounded, inputs=_spectrogram),
    "data2vec-audio": _sound(),
    "hubert": _sound(),
    "sew": _sound(),
    "unispeech": _sound(),
    "unispeech-sat": _sound(),
    "wav2vec2": _sound(),
    "wav2vec2-conformer": _sound(),
    "wavlm": _sound("eager"),
}
