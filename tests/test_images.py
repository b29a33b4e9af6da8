"""Images against their oracle, the image processors and ``load_image`` of transformers, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import io
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_utils import load_image

from cpuc.compiler.media import IMAGE_PROCESSORS, read_image_steps
from cpuc.compiler.media_samples import images
from cpuc.runtime.errors import BundleError, InputError, ModelError
from cpuc.runtime.images import MAX_PIXELS, ImageConfig, ImagePreprocessor, open_image

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
        assert levels.max() <= (1 if config.resample == "bilinear" else 2)
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


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def make_files() -> dict[str, bytes]:
    picture = Image.fromarray(images()[3])
    alpha = picture.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(picture.size))
    palette = picture.quantize(40)
    deep = Image.fromarray(np.arange(96 * 128, dtype=np.uint16).reshape(96, 128) * 5)
    files = {
        "jpeg": encode(picture, "JPEG"),
        "cmyk": encode(picture.convert("CMYK"), "JPEG"),
        "gray": encode(picture.convert("L"), "PNG"),
        "gray-alpha": encode(alpha.convert("LA"), "PNG"),
        "alpha": encode(alpha, "PNG"),
        "palette": encode(palette, "PNG"),
        "palette-transparent": encode(palette, "PNG", transparency=3),
        "palette-alphas": encode(palette, "PNG", transparency=bytes(range(40))),
        "gif": encode(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        "two-colours": encode(picture.convert("1"), "PNG"),
        "16-bit": encode(deep, "PNG"),
        "16-bit-tiff": encode(deep, "TIFF"),
        "webp": encode(alpha, "WEBP"),
        "bmp": encode(picture, "BMP"),
        "tiff": encode(picture, "TIFF", compression="tiff_lzw"),
        "ppm": encode(picture, "PPM"),
        "1x1": encode(picture.resize((1, 1)), "PNG"),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"orientation-{orientation}"] = encode(picture, "JPEG", exif=exif)
    return files


FILES = make_files()


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning:PIL")  # of the oracle
@pytest.mark.parametrize("name", FILES)
def test_open_image_equals_load_image(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(FILES[name])
    with Image.open(path) as opened:
        expected = load_image(opened)
    text = base64.b64encode(FILES[name]).decode()
    values = (str(path), f"data:image/png;base64,{text}", text, "\n".join(text[i : i + 76] for i in range(0, len(text), 76)))
    with Image.open(path) as opened:
        for value in (*values, opened):
            found = open_image(value, "the record")
            assert found.mode == "RGB"
            assert np.array_equal(found, expected)


def test_open_image_prints_no_warning() -> None:
    open_image(base64.b64encode(FILES["palette-alphas"]).decode(), "the record")


def test_open_image_takes_arrays() -> None:
    colours = images()[5]
    assert np.array_equal(open_image(colours, "the record"), colours)
    assert np.array_equal(open_image(colours[::2, ::-1, 0], "the record"), np.stack([colours[::2, ::-1, 0]] * 3, axis=-1))


def claim_size(width: int, height: int) -> str:
    """A PNG that says it is this large."""
    data = bytearray(encode(Image.new("RGB", (1, 1)), "PNG"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("missing.png", "no such file: 'missing.png'"),
        ("", "is empty"),
        ("picture4", "no such file: 'picture4'"),
        ("x" * 5001, "no such file: 'xxx"),
        ("a\0b", "no such file"),
        ("\ud800", "no such file"),
        ("/", "'/' is not a regular file"),
        ("/dev/null", "'/dev/null' is not a regular file"),
        ("https://example.org/cat.png", "opens no network addresses"),
        ("data:image/png,abc", "a data URL must be"),
        ("data:image/png;base64,", "the base64 data is empty"),
        ("data:image/png;base64,a", "invalid base64"),
        ("data:image/png;base64,ä", "invalid base64"),
        ("data:image/png;base64,bm90IGFuIGltYWdl", "not an image that can be read"),
        (base64.b64encode(FILES["jpeg"][:-300]).decode(), "broken or cut short"),
        (base64.b64encode(FILES["gray"][:1000]).decode(), "broken or cut short"),
        (base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode(), "not an image that can be read"),
        (claim_size(8193, 8192), "8193 × 8192 pixels"),
        (claim_size(12000, 12000), "more than 67108864 pixels"),
        (claim_size(60000, 60000), "more than 67108864 pixels"),
        (claim_size(5000, 5000), "broken or cut short"),
        (np.zeros((4, 4, 3), np.float32), "found float32 [4, 4, 3]"),
        (np.zeros((3, 4, 4), np.uint8), "found uint8 [3, 4, 4]"),
        (np.zeros((0, 4, 3), np.uint8), "4 × 0 pixels"),
        (Image.new("RGB", (0, 3)), "0 × 3 pixels"),
        (7, "found int"),
        (None, "found NoneType"),
        ({"path": "x"}, "found dict"),
    ],
)
def test_open_image_refuses(value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        open_image(value, "record 3: field 'image'")
    assert str(caught.value).startswith("record 3: field 'image': ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_open_image_names_the_file_that_is_empty_or_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    path.touch()
    with pytest.raises(InputError, match=r"x\.png' is empty"):
        open_image(str(path), "the record")
    path.write_bytes(b"x")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"cannot read .*x\.png'?: Permission denied"):
        open_image(str(path), "the record")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="the record: "):
        open_image(base64.b64encode(data).decode(), "the record")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["gray", "palette", "gif", "webp", "tiff", "orientation-5", "bmp", "ppm"]), st.data())
def test_damaged_files_give_an_image_or_an_input_error(name: str, choose: st.DataObject) -> None:
    data = bytearray(FILES[name])
    for _ in range(choose.draw(st.integers(1, 4))):
        # Headers and what follows them are where parsers go wrong.
        data[choose.draw(st.integers(0, min(len(data), 400) - 1))] = choose.draw(st.integers(0, 255))
    try:
        image = open_image(base64.b64encode(data).decode(), "the record")
    except InputError:
        return
    assert image.mode == "RGB"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_path_or_refused(text: str) -> None:
    with pytest.raises(InputError, match="the record: "):
        open_image(text, "the record")


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


def test_without_pillow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "cpuc.runtime.images")
    with pytest.raises(BundleError, match=r"images need Pillow: pip install 'cpuc\[image\]'"):
        importlib.import_module("cpuc.runtime.images")


def test_samples_are_images_and_always_the_same() -> None:
    first, second = images(), images()
    assert len(first) == 6
    for image, again in zip(first, second, strict=True):
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert np.array_equal(image, again)
        assert 30 < image.std() < 90
