"""How a repository wants its images and sounds: its preprocessor_config.json as what the runtime's preprocessors do.

transformers' own classes read the file, whatever its format, and fill in their defaults. What a class does beyond the common
steps is written here as those steps with other numbers, so the runtime knows no classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpuc.runtime.errors import BundleError, ModelError

Steps = dict[str, Any]


def read_image_steps(folder: Path, name: str) -> Steps:
    """The fields of `cpuc.runtime.images.ImageConfig` for the model in `folder`.

    Args:
        folder: holds preprocessor_config.json or processor_config.json, and config.json for files that name no class.
        name: the model's name, for errors.

    Raises:
        ModelError: there is no such file, or the processor does something that the runtime does not.
        BundleError: Pillow is not installed.
    """
    from cpuc.runtime.images import ImageConfig

    # Of the two backends this one needs no torchvision; their fields and defaults are the same.
    processor = _load("AutoImageProcessor", folder, name, backend="pil")
    kind = type(processor).__name__.removesuffix("Pil")
    if kind not in IMAGE_PROCESSORS:
        raise ModelError(f"{name}: image processor {kind!r} is not supported; supported: {', '.join(IMAGE_PROCESSORS)}")
    try:
        steps = _common_steps(processor)
        IMAGE_PROCESSORS[kind](processor, steps)
        ImageConfig.from_dict(steps, "steps")
    except (BundleError, TypeError, ValueError) as error:
        raise ModelError(f"{name}: its {kind} cannot be used: {error}") from None
    return steps


def read_audio_steps(folder: Path, name: str) -> Steps:
    """The fields of `cpuc.runtime.audio.AudioConfig` for the model in `folder`.

    Args:
        folder: holds preprocessor_config.json or processor_config.json, and config.json for files that name no class.
        name: the model's name, for errors.

    Raises:
        ModelError: there is no such file, or the feature extractor does something that the runtime does not.
        BundleError: soundfile or soxr is not installed.
    """
    from cpuc.runtime.audio import AudioConfig

    extractor = _load("AutoFeatureExtractor", folder, name)
    kind = type(extractor).__name__
    if kind not in FEATURE_EXTRACTORS:
        raise ModelError(f"{name}: feature extractor {kind!r} is not supported; supported: {', '.join(FEATURE_EXTRACTORS)}")
    steps: Steps = {
        "sampling_rate": extractor.sampling_rate,
        "do_normalize": extractor.do_normalize,
        "padding_value": extractor.padding_value,
        "return_attention_mask": extractor.return_attention_mask,
        "filter_bank": FEATURE_EXTRACTORS[kind](extractor),
    }
    try:
        if extractor.feature_size != 1 or extractor.padding_side != "right":
            raise ValueError("feature_size must be 1 and padding_side 'right'")
        AudioConfig.from_dict(steps, "steps")
    except (BundleError, ValueError) as error:
        raise ModelError(f"{name}: its {kind} cannot be used: {error}") from None
    return steps


def _load(auto_class: str, folder: Path, name: str, **options: Any) -> Any:
    import transformers

    try:
        with warnings.catch_warnings():
            # AST without torchaudio warns that one of its bands is empty, as it is with torchaudio.
            warnings.simplefilter("ignore")
            return getattr(transformers, auto_class).from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, **options
            )
    except Exception as error:  # what a broken file makes these classes raise is anything
        reason = str(error).strip().split("\n")[0][:300]
        raise ModelError(f"{name}: preprocessor_config.json cannot be read: {reason}") from None


def _common_steps(processor: Any) -> Steps:
    """What transformers' ``TorchvisionBackend`` does with the fields that all processors have."""
    size = dict(processor.size or {}) if processor.do_resize else {}
    crop = dict(processor.crop_size or {}) if processor.do_center_crop else {}
    if set(size) not in (set(), {"height", "width"}, {"shortest_edge"}) or set(crop) not in (set(), {"height", "width"}):
        raise ValueError(f"size {size} or crop_size {crop} is of a kind that is not supported")
    if getattr(processor, "do_pad", None):
        raise ValueError("do_pad is not supported")
    return {
        "size": [size["height"], size["width"]] if "height" in size else None,
        "shortest_edge": size.get("shortest_edge"),
        "resample": _resampling(processor.resample),
        "crop_size": [crop["height"], crop["width"]] if crop else None,
        "rescale_factor": float(processor.rescale_factor) if processor.do_rescale else None,
        "image_mean": _triple(processor.image_mean) if processor.do_normalize else None,
        "image_std": _triple(processor.image_std) if processor.do_normalize else None,
        "channels": "RGB",
    }


def _resampling(value: Any) -> str:
    from PIL import Image

    # The backends take bilinear where the file says null.
    return Image.Resampling(2 if value is None else int(value)).name.lower()


def _triple(value: Any) -> list[float]:
    return [float(each) for each in value] if isinstance(value, (list, tuple)) else [float(value)] * 3


def _nothing_else(processor: Any, steps: Steps) -> None:
    """The processor does the common steps."""


def _convnext(processor: Any, steps: Steps) -> None:
    """Below 384 pixels it resizes to more than it keeps; from 384 on it squeezes the image into a square."""
    if steps["crop_size"] or (processor.do_resize and not steps["shortest_edge"]):
        raise ValueError("do_center_crop, or a size without shortest_edge, is not supported")
    if edge := steps["shortest_edge"]:
        square = [edge, edge]
        narrow = edge < 384
        steps |= {
            "size": None if narrow else square,
            "shortest_edge": int(edge / processor.crop_pct) if narrow else None,
            "crop_size": square if narrow else None,
        }


def _levit(_: Any, steps: Steps) -> None:
    if edge := steps["shortest_edge"]:
        steps["shortest_edge"] = int((256 / 224) * edge)


def _poolformer(processor: Any, steps: Steps) -> None:
    """Resizes to 1 / crop_pct of the size; a square size means the shorter edge."""
    share = processor.crop_pct
    if share is None or not processor.do_resize:
        return
    height, width = steps["size"] or [steps["shortest_edge"]] * 2
    if height == width:
        steps |= {"size": None, "shortest_edge": int(height / share)}
    else:
        steps["size"] = [int(height / share), int(width / share)]


def _mobilevit(processor: Any, steps: Steps) -> None:
    """Never normalises, whatever the file says."""
    channels = "BGR" if processor.do_flip_channel_order else "RGB"
    steps |= {"image_mean": None, "image_std": None, "channels": channels}


def _efficientnet(processor: Any, steps: Steps) -> None:
    """With rescale_offset it subtracts 1 after rescaling; with include_top it divides by the deviation once more."""
    mean, std = steps["image_mean"] or [0.0] * 3, steps["image_std"] or [1.0] * 3
    if processor.rescale_offset and processor.do_rescale:
        mean = [each + 1 for each in mean]
    if processor.include_top:
        std = [each * again for each, again in zip(std, _triple(processor.image_std), strict=True)]
    steps |= {"image_mean": mean, "image_std": std}


def _segformer(_: Any, steps: Steps) -> None:
    """Never crops, whatever the file says."""
    steps["crop_size"] = None


# Class of transformers → what it does beyond the common steps. Swin, DINOv2 and many others use one of these.
IMAGE_PROCESSORS: dict[str, Callable[[Any, Steps], None]] = {
    "BeitImageProcessor": _nothing_else,
    "BitImageProcessor": _nothing_else,
    "BlipImageProcessor": _nothing_else,
    "CLIPImageProcessor": _nothing_else,
    "ConvNextImageProcessor": _convnext,
    "DeiTImageProcessor": _nothing_else,
    "EfficientNetImageProcessor": _efficientnet,
    "LevitImageProcessor": _levit,
    "MobileNetV1ImageProcessor": _nothing_else,
    "MobileNetV2ImageProcessor": _nothing_else,
    "MobileViTImageProcessor": _mobilevit,
    "PoolFormerImageProcessor": _poolformer,
    "PvtImageProcessor": _nothing_else,
    "SegformerImageProcessor": _segformer,
    "SiglipImageProcessor": _nothing_else,
    "ViTImageProcessor": _nothing_else,
}

# Class of transformers → the fields of `cpuc.runtime.audio.FilterBank`, or None where the model takes the waveform.
FEATURE_EXTRACTORS: dict[str, Callable[[Any], Steps | None]] = {
    "ASTFeatureExtractor": lambda extractor: {
        "bins": extractor.num_mel_bins,
        "frames": extractor.max_length,
        "mean": extractor.mean,
        "std": extractor.std,
    },
    "Wav2Vec2FeatureExtractor": lambda _: None,
}
