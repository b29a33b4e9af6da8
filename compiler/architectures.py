"""The architectures that cpuc compiles, by the ``model_type`` of their configuration: one entry each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TEXT = frozenset(
    {
        "feature-extraction",
        "fill-mask",
        "multiple-choice",
        "question-answering",
        "sentence-embeddings",
        "text-classification",
        "token-classification",
        "zero-shot-classification",
    }
)
# Where transformers lacks a head, or what it has was not seen to work.
NO_CHOICE = TEXT - {"multiple-choice"}
NO_QUESTIONS = NO_CHOICE - {"question-answering"}
# An encoder with a decoder, which fills masks by writing the whole text.
DECODED = NO_CHOICE - {"fill-mask", "token-classification"}
HEADS = TEXT - {"feature-extraction", "sentence-embeddings"}
IMAGE = frozenset({"image-classification", "image-feature-extraction"})
IMAGE_CLASSES = frozenset({"image-classification"})
IMAGE_FEATURES = frozenset({"image-feature-extraction"})
AUDIO = frozenset({"audio-classification", "automatic-speech-recognition"})
SPECTROGRAM = frozenset({"audio-classification"})

Shape = list[int | str]


def _absolute(config: Any) -> int | None:
    """One learned position per token."""
    return int(config.max_position_embeddings)


def _guess(config: Any) -> int | None:
    """What most configurations call it."""
    value = getattr(config, "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None


def _after_padding(config: Any) -> int | None:
    """RoBERTa numbers positions from the padding id + 1, so its table has that many rows to spare."""
    return int(config.max_position_embeddings) - int(config.pad_token_id) - 1


def _buckets(config: Any) -> int | None:
    """DeBERTa-v2 puts any distance into one of a fixed number of buckets, and may have learned positions besides."""
    relative = config.relative_attention and config.position_buckets > 0 and not config.position_biased_input
    return None if relative else int(config.max_position_embeddings)


def _unbounded(_config: Any) -> int | None:
    """Relative positions of any distance, or a size that is fixed."""
    return None


def _pooled_twice(_config: Any) -> int:
    """Funnel fails where its pooling has nothing to pool."""
    return 3


def waveform(config: Any) -> dict[str, Shape]:
    """Where features are normalised over a whole recording (norm "group"), padding counts, and models never saw a mask."""
    names = ["input_values", "attention_mask"] if getattr(config, "feat_extract_norm", "layer") == "layer" else ["input_values"]
    return {name: ["batch", "samples"] for name in names}


def _bare_waveform(_config: Any) -> dict[str, Shape]:
    """Padding changes what these models give even under a mask: they are fed one length at a time."""
    return {"input_values": ["batch", "samples"]}


def _spectrogram(config: Any) -> dict[str, Shape]:
    return {"input_values": ["batch", config.max_length, config.num_mel_bins]}


def receptive_field(config: Any, frames: int = 1) -> int:
    """The fewest samples that make so many frames, of which SEW averages several into one."""
    length = frames * getattr(config, "squeeze_factor", 1)
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        length = (length - 1) * stride + kernel
    return int(length)


def _positions_of_frames(config: Any) -> int | None:
    """Conformer makes its table of relative positions longer where it has to, which a trace does not."""
    relative = config.position_embeddings_type == "relative"
    return receptive_field(config, config.max_source_positions + 1) - 1 if relative else None


def _funnel(model: Any) -> None:
    from cpuc.compiler.adaptations import funnel_positions  # imports torch

    funnel_positions(model)


def _bart(model: Any) -> None:
    from cpuc.compiler.adaptations import last_end_of_text  # imports torch

    last_end_of_text(model)


@dataclass(frozen=True)
class Architecture:
    """How to capture models of one ``model_type``.

    Attributes:
        tasks: those that are tested.
        max_length: the longest sequence, in tokens or samples, from a configuration; None where nothing bounds it.
        attention: the form that transformers traces. "sdpa" leaves one torch operator, which was as fast as IPEX's
            fused scores and softmax for short sequences and faster for long ones (1.05 times for BERT-base at 384
            tokens in fp32, 1.2 times in bf16); "eager" is for models that have no other, or no attention at all:
            `rewrites.attention` makes the same operator of products and softmax. None takes the first where the model
            has it.
        inputs: axes of each input, from a configuration, in the order of the graph's arguments; None where the tokenizer or
            the image processor decides. What is named "attention_mask" is int64, all else float32.
        min_length: the shortest sequence, from a configuration; None where it is 1, or where nothing is free but the batch.
        adapt: changes the model's Python code where a trace of it would be wrong; see `adaptations`.
    """

    tasks: frozenset[str]
    max_length: Callable[[Any], int | None]
    attention: str | None = "sdpa"
    inputs: Callable[[Any], dict[str, Shape]] | None = None
    min_length: Callable[[Any], int] | None = None
    adapt: Callable[[Any], None] | None = None

    def prepare(self, model: Any) -> None:
        """Make a model of transformers ready for capture."""
        form = self.attention
        if form is None:
            form = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
        model.set_attn_implementation(form)
        if self.adapt:
            self.adapt(model)


def _image(attention: str = "sdpa", tasks: frozenset[str] = IMAGE) -> Architecture:
    return Architecture(tasks, _unbounded, attention)


def _sound(
    attention: str = "sdpa",
    inputs: Callable[[Any], dict[str, Shape]] = waveform,
    max_length: Callable[[Any], int | None] = _unbounded,
) -> Architecture:
    return Architecture(AUDIO, max_length, attention, inputs, min_length=receptive_field)


ARCHITECTURES = {
    "albert": Architecture(TEXT, _absolute),
    "bart": Architecture(DECODED, _absolute, adapt=_bart),
    "bert": Architecture(TEXT, _absolute),
    "camembert": Architecture(TEXT, _after_padding),
    "convbert": Architecture(TEXT, _absolute, attention="eager"),
    "data2vec-text": Architecture(TEXT, _after_padding),
    "deberta": Architecture(NO_CHOICE, _absolute, attention="eager"),
    "deberta-v2": Architecture(TEXT, _buckets, attention="eager"),
    "distilbert": Architecture(TEXT, _absolute),
    "electra": Architecture(TEXT, _absolute),
    "ernie": Architecture(TEXT, _absolute),
    "esm": Architecture(NO_QUESTIONS, _after_padding),
    "eurobert": Architecture(NO_QUESTIONS, _absolute),
    "flaubert": Architecture(TEXT, _absolute, attention="eager"),
    "funnel": Architecture(HEADS, _unbounded, attention="eager", min_length=_pooled_twice, adapt=_funnel),
    "gte": Architecture(NO_QUESTIONS, _absolute),
    "jina_embeddings_v3": Architecture(NO_CHOICE, _absolute),
    "mbart": Architecture(DECODED, _absolute, adapt=_bart),
    "megatron-bert": Architecture(TEXT, _absolute, attention="eager"),
    "mobilebert": Architecture(TEXT, _absolute),
    "modernbert": Architecture(TEXT, _absolute),
    "mpnet": Architecture(TEXT, _after_padding, attention="eager"),
    "nomic_bert": Architecture(NO_QUESTIONS, _absolute),
    "rembert": Architecture(TEXT, _absolute, attention="eager"),
    "roberta": Architecture(TEXT, _after_padding),
    "roberta-prelayernorm": Architecture(TEXT, _after_padding),
    "roformer": Architecture(TEXT, _absolute, attention="eager"),
    "squeezebert": Architecture(TEXT, _absolute, attention="eager"),
    "xlm": Architecture(TEXT, _absolute, attention="eager"),
    "xlm-roberta": Architecture(TEXT, _after_padding),
    "xlm-roberta-xl": Architecture(TEXT, _after_padding),
    "xlnet": Architecture(TEXT - {"fill-mask"}, _unbounded, attention="eager"),
    # Images.
    "beit": _image(),
    "clip": _image(tasks=IMAGE_CLASSES),
    "clip_vision_model": _image(tasks=IMAGE_FEATURES),
    "convnext": _image("eager"),
    "convnextv2": _image("eager"),
    "data2vec-vision": _image(),
    "deit": _image(),
    "dinov2": _image(),
    "dinov2_with_registers": _image(),
    "efficientnet": _image("eager"),
    "mobilenet_v1": _image("eager"),
    "mobilenet_v2": _image("eager"),
    "mobilevit": _image("eager"),
    "regnet": _image("eager"),
    "resnet": _image("eager"),
    "siglip": _image(tasks=IMAGE_CLASSES),
    "siglip_vision_model": _image(tasks=IMAGE_FEATURES),
    "swin": _image(),
    "swinv2": _image("eager"),
    "vit": _image(),
    # Sound.
    "audio-spectrogram-transformer": Architecture(SPECTROGRAM, _unbounded, inputs=_spectrogram),
    "data2vec-audio": _sound(inputs=_bare_waveform),
    "hubert": _sound(),
    "sew": _sound(),
    "unispeech": _sound(),
    "unispeech-sat": _sound(),
    "wav2vec2": _sound(),
    "wav2vec2-conformer": _sound(inputs=_bare_waveform, max_length=_positions_of_frames),
    "wavlm": _sound("eager"),
}

# What is assumed of an architecture that is not in the table (--allow-unlisted); verification decides.
UNLISTED = Architecture(TEXT | IMAGE | AUDIO, _guess, attention=None)
