"""Preprocessing of images against its oracle, the image processors of transformers in both backends."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from transformers import AutoImageProcessor

from cpuc.compiler.media import IMAGE_PROCESSORS, read_image_steps
from cpuc.compiler.media_samples import images
from cpuc.runtime.errors import BundleError, InputError, ModelError
from cpuc.runtime.images import MAX_PIXELS, ImageConfig, ImagePreprocessor

Config = dict[str, Any]
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
FLAGS = {"do_normalize": True, "do_resize": True}

# What the files of well-known repositories look like: the formats of several years.
REPOSITORIES: dict[str, Config] = {
    "vit": {**FLAGS, **HALVES, "resample": 2, "size": 224},
    "vit-typed": {**FLAGS, **HALVES, "image_processor_type": "ViTImageProcessor", "size": {"height": 384, "width": 384}},
    "vit-fast": {**FLAGS, **HALVES, "image_processor_type": "ViTImageProcessorFast", "size": {"height": 64, "width": 80}},
    "deit": {
        **{**FLAGS, **IMAGENET, "feature_extractor_type": "DeiTFeatureExtractor", "resample": 3, "size": 256},
        **{"crop_size": 224, "do_center_crop": True},
    },
    "beit": {**FLAGS, **HALVES, "feature_extractor_type": "BeitFeatureExtractor", "do_center_crop": False, "size": 224},
    "swin": {**FLAGS, **IMAGENET, "feature_extractor_type": "ViTFeatureExtractor", "resample": 3, "size": 224},
    "resnet": {**FLAGS, **IMAGENET, "feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "size": 224},
    "convnext-384": {**FLAGS, **IMAGENET, "feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": None, "size": 384},
    "dinov2": {
        **{**FLAGS, **IMAGENET, "image_processor_type": "BitImageProcessor", "resample": 3, "do_convert_rgb": True},
        **{"crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_rescale": True},
        **{"rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 256}},
    },
    "clip": {
        **{**FLAGS, "feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 224, "do_center_crop": True},
        **{"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]},
        **{"resample": 3, "size": 224},
    },
    "levit": {**FLAGS, **IMAGENET, "feature_extractor_type": "LevitFeatureExtractor", "do_center_crop": True, "size": 224},
    "mobilevit": {
        **{"feature_extractor_type": "MobileViTFeatureExtractor", "do_resize": True, "do_center_crop": True},
        **{"do_flip_channel_order": True, "size": 288, "crop_size": 256, "resample": 2},
    },
    "mobilenet": {**FLAGS, **HALVES, "feature_extractor_type": "MobileNetV2FeatureExtractor", "size": {"shortest_edge": 256}},
    "poolformer": {**FLAGS, **IMAGENET, "feature_extractor_type": "PoolFormerFeatureExtractor", "crop_pct": 0.95, "size": 224},
    "poolformer-oblong": {"image_processor_type": "PoolFormerImageProcessor", "size": {"height": 180, "width": 200}},
    "efficientnet": {
        **{**FLAGS, "image_processor_type": "EfficientNetImageProcessor", "include_top": True, "resample": 3},
        **{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.47853944, 0.4732864, 0.47434163], "size": {"height": 224}},
    },
    "efficientnet-offset": {"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True, "include_top": False},
    "segformer": {**FLAGS, **IMAGENET, "feature_extractor_type": "SegformerFeatureExtractor", "size": 512},
    "lanczos": {**FLAGS, **HALVES, "image_processor_type": "ViTImageProcessor", "resample": 1},
    "nearest": {**FLAGS, **HALVES, "image_processor_type": "ViTImageProcessor", "resample": 0},
    "no-normalize": {"image_processor_type": "ViTImageProcessor", "do_normalize": False},
    "no-rescale": {"image_processor_type": "ViTImageProcessor", "do_rescale": False},
    "other-factor": {"image_processor_type": "ViTImageProcessor", "rescale_factor": 1 / 127.5, "image_mean": 0.5},
}
REPOSITORIES["efficientnet"]["size"]["width"] = 224
REPOSITORIES |= {kind: {"image_processor_type": kind} for kind in IMAGE_PROCESSORS}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Landscape, portrait, tiny, and noise, the hardest to resize alike."""
    random = np.random.default_rng(0)
    sizes = ((1, 1), (7, 60), (60, 7), (33, 47), (224, 224), (431, 240))
    noise = [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    return [Image.fromarray(array) for array in images()[:3] + noise]


@pytest.fixture
def repository(tmp_path: Path) -> Callable[[Config], Path]:
    """A folder with such a preprocessor_config.json, and the config.json of a ViT."""

    def write(config: Config) -> Path:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        (tmp_path / "config.json").write_text('{"model_type": "vit"}')
        return tmp_path

    return write


@pytest.fixture
def rows_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow resizes in the order of every release before 13, which is also torch's."""
    resize = Image.Image.resize

    def in_two_passes(image: Image.Image, size: tuple[int, int], resample: int, **_: Any) -> Image.Image:
        if resample == Image.Resampling.NEAREST:
            return resize(image, size, resample)
        return resize(resize(image, (size[0], image.height), resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", in_two_passes)


def make(folder: Path) -> ImagePreprocessor:
    steps = read_image_steps(folder, "tiny")
    return ImagePreprocessor(ImageConfig.from_dict(json.loads(json.dumps(steps))))


@pytest.mark.usefixtures("rows_first")
@pytest.mark.parametrize("name", REPOSITORIES)
def test_equals_the_pillow_backend(name: str, repository: Callable[..., Path], pictures: list[Image.Image]) -> None:
    folder = repository(REPOSITORIES[name])
    preprocess, oracle = make(folder), AutoImageProcessor.from_pretrained(folder, backend="pil")
    for picture in pictures:
        expected = oracle(picture, return_tensors="np")["pixel_values"][0]
        found = preprocess(picture)
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        assert found.shape == expected.shape == (3, *preprocess.config.output_size)
        scale = max(1, abs(expected).max())
        assert abs(found - expected).max() <= 1e-6 * scale


def test_pillow_backend_of_wide_images_as_installed(repository: Callable[..., Path], pictures: list[Image.Image]) -> None:
    folder = repository(REPOSITORIES["dinov2"])
    preprocess, oracle = make(folder), AutoImageProcessor.from_pretrained(folder, backend="pil")
    for picture in (each for each in pictures if each.width >= each.height):
        assert abs(preprocess(picture) - oracle(picture, return_tensors="np")["pixel_values"][0]).max() <= 1e-6


@pytest.mark.parametrize("name", [name for name in REPOSITORIES if name not in ("lanczos", "nearest")])
def test_is_near_the_default_backend(name: str, repository: Callable[..., Path], pictures: list[Image.Image]) -> None:
    folder = repository(REPOSITORIES[name])
    preprocess, oracle = make(folder), AutoImageProcessor.from_pretrained(folder)
    assert oracle.backend == "torchvision"
    config = preprocess.config
    # How far apart two neighbouring levels of uint8 come out.
    step = np.float32(config.rescale_factor or 1) / np.array(config.image_std or [1, 1, 1], np.float32)[:, None, None]
    share = []
    for picture in pictures:
        difference = abs(preprocess(picture) - oracle(picture, return_tensors="np")["pixel_values"][0]) / step
        levels = difference.round()
        assert abs(difference - levels).max() < 1e-3
        assert levels.max() <= 2
        share.append((levels > 0).mean())
    # torchvision's bilinear resize does not round between its passes where the CPU has AVX-512.
    assert np.mean(share) < (0.25 if config.resample == "bilinear" else 0.01)


@pytest.mark.parametrize("crop", [(31, 40), (40, 31), (64, 65), (7, 300), (300, 301)])
@pytest.mark.parametrize(("normalize", "rescale"), [(True, True), (True, False), (False, True)])
def test_equals_the_default_backend_bit_by_bit_without_resizing(
    crop: tuple[int, int], normalize: bool, rescale: bool, repository: Callable[..., Path], pictures: list[Image.Image]
) -> None:
    config = {"image_processor_type": "BitImageProcessor", "do_resize": False, "do_normalize": normalize, "do_rescale": rescale}
    folder = repository({**config, "crop_size": {"height": crop[0], "width": crop[1]}})
    preprocess, oracle = make(folder), AutoImageProcessor.from_pretrained(folder)
    for picture in pictures:
        assert np.array_equal(preprocess(picture), oracle(picture, return_tensors="np")["pixel_values"][0])


def test_narrow_images_take_no_memory(repository: Callable[..., Path]) -> None:
    preprocess = make(repository(REPOSITORIES["dinov2"]))
    with pytest.raises(InputError, match="record 2: an image of 1 × 10000 pixels is too narrow"):
        preprocess(Image.new("RGB", (1, 10_000)), "record 2")
    preprocess = make(repository(REPOSITORIES["vit"]))
    assert preprocess(Image.new("RGB", (1, 100_000))).shape == (3, 224, 224)
    with pytest.raises(InputError, match="too narrow"):
        preprocess(Image.new("RGB", (1, MAX_PIXELS // 224 + 1)), "record 2")


GOOD = dataclasses.asdict(ImageConfig([224, 224], None, "bicubic", None, 1 / 255, [0.5] * 3, [0.5] * 3, "RGB"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": [224]}, "size: [224] is no"),
        ({"size": [0, 224]}, "size: [0, 224]"),
        ({"size": [2**20, 2**20]}, "size"),
        ({"size": "224"}, "size: expected"),
        ({"size": [1.5, 2]}, "size"),
        ({"crop_size": [1, 2, 3]}, "crop_size"),
        ({"size": None}, "crop_size: is null and so is size"),
        ({"shortest_edge": 256}, "shortest_edge: excludes size"),
        ({"shortest_edge": -1, "size": None, "crop_size": [1, 1]}, "shortest_edge: -1"),
        ({"resample": "best"}, "resample: 'best' is not one of nearest, "),
        ({"rescale_factor": 0.0}, "rescale_factor: 0.0"),
        ({"rescale_factor": float("inf")}, "rescale_factor"),
        ({"image_mean": None}, "image_mean: goes with"),
        ({"image_mean": [1.0, 2.0]}, "image_mean: [1.0, 2.0]"),
        ({"image_mean": [float("nan")] * 3}, "image_mean"),
        ({"image_std": [1.0, 0.0, 1.0]}, "image_std"),
        ({"channels": "RGBA"}, "channels: 'RGBA'"),
        ({"depth": 1}, "unknown field 'depth'"),
    ],
)
def test_config_names_the_field_that_is_wrong(changes: Config, message: str) -> None:
    assert dataclasses.asdict(ImageConfig.from_dict(GOOD)) == GOOD
    with pytest.raises(BundleError) as caught:
        ImageConfig.from_dict({**GOOD, **changes})
    assert str(caught.value).startswith("manifest.json.preprocessing.image")
    assert message in str(caught.value)
    with pytest.raises(BundleError, match="field 'size' is missing"):
        ImageConfig.from_dict({name: value for name, value in GOOD.items() if name != "size"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "DetrImageProcessor"}, "'DetrImageProcessor' is not supported; supported: BeitImage"),
        ({"image_processor_type": "MyImageProcessor"}, "cannot be read"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "sizes of their own"),
        ({"image_processor_type": "BitImageProcessor", "do_center_crop": False}, "sizes of their own"),
        ({"image_processor_type": "BitImageProcessor", "do_pad": True}, "do_pad is not supported"),
        ({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 9, "longest_edge": 10}}, "longest_edge"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5]}, "image_mean"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 17}, "17"),
        ({"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True, "crop_size": 9}, "do_center_crop"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 9, "width": 9}}, "without shortest_edge"),
        ({"auto_map": {"AutoImageProcessor": "code.Processor"}, "image_processor_type": "Processor"}, "cannot be read"),
    ],
)
def test_processors_that_do_something_else_are_refused(
    config: Config, message: str, repository: Callable[[Config], Path]
) -> None:
    with pytest.raises(ModelError, match=r"^tiny: ") as caught:
        read_image_steps(repository(config), "tiny")
    assert message in str(caught.value)


def test_a_repository_without_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^tiny: preprocessor_config\.json cannot be read"):
        read_image_steps(tmp_path, "tiny")
    (tmp_path / "preprocessor_config.json").write_text("[")
    with pytest.raises(ModelError, match=r"^tiny: preprocessor_config\.json cannot be read"):
        read_image_steps(tmp_path, "tiny")


@pytest.mark.parametrize("kind", IMAGE_PROCESSORS)
def test_the_backends_have_the_same_defaults(kind: str) -> None:
    default, pillow = getattr(transformers, kind)().to_dict(), getattr(transformers, f"{kind}Pil")().to_dict()
    assert default == pillow


def test_reading_a_repository_needs_no_torchvision(repository: Callable[..., Path]) -> None:
    folder = repository({**REPOSITORIES["dinov2"], "image_processor_type": "BitImageProcessorFast"})
    code = """if True:
        import json, pathlib, sys
        sys.modules["torchvision"] = None
        from cpuc.compiler.media import read_image_steps
        print(json.dumps(read_image_steps(pathlib.Path(sys.argv[1]), "tiny")))"""
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == read_image_steps(folder, "tiny")
