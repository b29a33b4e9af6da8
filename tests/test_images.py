"""Opening of images against its oracle, ``load_image`` of transformers, and what is refused."""

from __future__ import annotations

import base64
import importlib
import io
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image

from cpuc.compiler.media_samples import images
from cpuc.runtime.errors import BundleError, InputError
from cpuc.runtime.images import open_image


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
