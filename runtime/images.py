"""Images to what vision models take: decoded, resized, cropped and normalised as transformers' image processors do it.

Measured against transformers 5.23 (Pillow 13, torchvision 0.23), whose processors come with two backends:

- Backend "pil": equal to 1e-6, except that Pillow 13 resizes an image whose height shrinks much more than its width
  vertically first (python-pillow/Pillow#9549), where every earlier release, torch's kernel and this module go
  horizontally first. The order changes about a fifth of the pixels, most by one of 255 levels, so it is fixed here: an
  artifact must not answer otherwise under another Pillow.
- Backend "torchvision", the default where torchvision is installed: its bicubic resize, and its bilinear one on a CPU with
  AVX2 but without AVX-512, uses weights of 16 bits where Pillow has 22. That moves 0.2 to 1 % of the values (6 % at most)
  by one level of 255, hardly ever by two; all others are equal bit by bit. On other CPUs torchvision's bilinear resize
  computes in float32 without rounding between its two passes, which moves 10 to 25 % of the values by one level: it differs
  as much from itself on another CPU.
- Crops: an image smaller than its crop by an odd number gets the extra row or column of zeros after it, like in the backend
  "torchvision"; the backend "pil" puts it before.
- Resampling "lanczos", for which torchvision before 0.27 silently takes bicubic, is Lanczos here. "nearest" differs from
  torchvision where the middle of a pixel falls between two others and float32 rounds down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpuc.runtime import manifest
from cpuc.runtime.errors import BundleError, InputError
from cpuc.runtime.media import open_source

try:
    from PIL import Image, ImageOps
except ImportError:
    raise BundleError("images need Pillow: pip install 'cpuc[image]'") from None

# 8192 × 8192, which is 256 MiB as Pillow holds it, and less than Pillow's own bound for decompression bombs.
MAX_PIXELS = 2**26
# What people put images in. Pillow knows forty more, one of which runs Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
RESAMPLING = {each.name.lower(): each for each in Image.Resampling}
CHANNELS = ("RGB", "BGR")


@dataclass(frozen=True)
class ImageConfig:
    """What to do to an image, in the order of the fields; null leaves a step out.

    Attributes:
        size: [height, width] to resize to, whatever the aspect ratio.
        shortest_edge: length in pixels of the shorter edge after resizing, the other in proportion; excludes `size`.
        resample: the filter of both, a key of `RESAMPLING`.
        crop_size: [height, width] to cut from the middle; zeros fill what the image does not have.
        rescale_factor: what the values of 0 to 255 are multiplied with.
        image_mean: subtracted after that, for red, green and blue.
        image_std: what the difference is divided by.
        channels: the order of the channels in the result, one of `CHANNELS`.
    """

    size: list[int] | None
    shortest_edge: int | None
    resample: str
    crop_size: list[int] | None
    rescale_factor: float | None
    image_mean: list[float] | None
    image_std: list[float] | None
    channels: str

    @staticmethod
    def from_dict(values: Mapping[str, Any], where: str = "manifest.json.preprocessing.image") -> ImageConfig:
        """Check and build from plain values, such as ``dataclasses.asdict`` and JSON give.

        Raises:
            BundleError: a field is missing, unknown, of a wrong type or out of range; the message names it below `where`.
        """
        config: ImageConfig = manifest.decode(ImageConfig, values, where)
        if trouble := _find_trouble(config):
            raise BundleError(f"{where}.{trouble}")
        return config

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) in pixels of every image that comes out."""
        height, width = self.crop_size or self.size or (0, 0)
        return height, width


def _find_trouble(config: ImageConfig) -> str | None:
    """The first field that makes no sense, and why."""
    for name, size in (("size", config.size), ("crop_size", config.crop_size)):
        if size is not None and (len(size) != 2 or min(size) < 1 or math.prod(size) > MAX_PIXELS):
            return f"{name}: {size} is no [height, width] of at most {MAX_PIXELS} pixels"
    if config.shortest_edge is not None and not 1 <= config.shortest_edge <= math.isqrt(MAX_PIXELS):
        return f"shortest_edge: {config.shortest_edge} is no size"
    if config.shortest_edge is not None and config.size is not None:
        return "shortest_edge: excludes size"
    if config.size is None and config.crop_size is None:
        return "crop_size: is null and so is size: images would come out in sizes of their own"
    if config.resample not in RESAMPLING:
        return f"resample: {config.resample!r} is not one of {', '.join(RESAMPLING)}"
    if config.rescale_factor is not None and not 0 < config.rescale_factor < math.inf:
        return f"rescale_factor: {config.rescale_factor} is no factor"
    if (config.image_mean is None) != (config.image_std is None):
        return "image_mean: goes with image_std"
    for name, values in (("image_mean", config.image_mean), ("image_std", config.image_std)):
        if values is not None and (len(values) != 3 or not all(map(math.isfinite, values))):
            return f"{name}: {values} is not three numbers"
    if config.image_std is not None and min(config.image_std) <= 0:
        return f"image_std: {config.image_std} is not positive"
    return None if config.channels in CHANNELS else f"channels: {config.channels!r} is not one of {', '.join(CHANNELS)}"


def open_image(value: Any, where: str) -> Image.Image:
    """An upright RGB image, as the image pipelines of transformers see it (``transformers.image_utils.load_image``).

    The EXIF orientation is applied; of several frames the first is taken; transparency is dropped, not blended.

    Args:
        value: the path of an AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP file, a data URL or base64 of one, a
            Pillow image, or a uint8 array of shape [height, width, 3] or [height, width].
        where: what errors call the value, such as ``record 3: field 'image'``.

    Raises:
        InputError: `value` is none of these, cannot be read, is broken or cut short, or has no or more than 2**26 pixels.
    """
    if isinstance(value, str):
        with open_source(value, where) as file:
            try:
                image = Image.open(file, formats=FORMATS)
            except (Image.DecompressionBombError, Image.DecompressionBombWarning):
                raise InputError(f"{where}: the image has more than {MAX_PIXELS} pixels") from None
            except Exception:  # Pillow lets through what its parsers meet in broken headers.
                raise InputError(f"{where}: not an image that can be read; formats: {', '.join(FORMATS)}") from None
            return _to_rgb(image, where)
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or not (value.ndim == 2 or (value.ndim == 3 and value.shape[2] == 3)):
            found = f"{value.dtype} {list(value.shape)}"
            raise InputError(f"{where}: an array must be uint8 [height, width, 3] or [height, width], found {found}")
        _check_size((value.shape[1], value.shape[0]), where)
        return _to_rgb(Image.fromarray(value), where)
    if isinstance(value, Image.Image):
        return _to_rgb(value, where)
    raise InputError(f"{where}: must be a path, a data URL, base64, an image or an array, found {type(value).__name__}")


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    _check_size(image.size, where)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            # The same colours by a way on which Pillow prints no warning.
            image = image.convert("RGBA")
        return image.convert("RGB")
    except Exception as error:  # Decoding happens here, and Pillow's decoders raise what they meet.
        raise InputError(f"{where}: the image is broken or cut short: {error}") from None


def _check_size(size: tuple[int, int], where: str) -> None:
    width, height = size
    if not 0 < width * height <= MAX_PIXELS:
        raise InputError(f"{where}: the image is {width} × {height} pixels, must be 1 to {MAX_PIXELS} in all")


class ImagePreprocessor:
    """Does to images what an `ImageConfig` says; has no state beyond it, so threads may share one."""

    def __init__(self, config: ImageConfig) -> None:
        self.config = config
        self._resample = RESAMPLING[config.resample]
        factor = config.rescale_factor
        self._scale = None if factor is None else np.float32(factor)
        self._mean = self._std = None
        if config.image_mean is not None and config.image_std is not None:
            # One subtraction and one division in float32 as in transformers' TorchvisionBackend, which gets its bits equal.
            inverse = np.float32(1.0 if factor is None else 1.0 / factor)
            self._mean = np.array(config.image_mean, np.float32)[:, None, None] * inverse
            self._std = np.array(config.image_std, np.float32)[:, None, None] * inverse

    def __call__(self, image: Image.Image, where: str = "the image") -> np.ndarray:
        """Pixel values of shape [3, height, width], float32, of `ImageConfig.output_size`.

        Args:
            image: an RGB image, as `open_image` gives.
            where: what errors call it.

        Raises:
            InputError: the image is so narrow that resizing it would take more than 2**26 pixels.
        """
        resized = _resize(image, self._find_size(image), self._resample, where)
        pixels = np.asarray(resized)
        if self.config.crop_size is not None:
            pixels = _crop(pixels, self.config.crop_size)
        values = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
        if self._mean is not None and self._std is not None:
            values -= self._mean
            values /= self._std
        elif self._scale is not None:
            values *= self._scale
        return values if self.config.channels == "RGB" else np.ascontiguousarray(values[::-1])

    def _find_size(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) to resize to; the longer edge is rounded down, as in ``get_resize_output_image_size``."""
        if self.config.size is not None:
            return self.config.size[1], self.config.size[0]
        width, height = image.size
        edge = self.config.shortest_edge
        if edge is None:
            return width, height
        return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)


def _resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling, where: str) -> Image.Image:
    """Resize to (width, height), in a pass along the rows and one along the columns, each rounded to uint8."""
    width, height = size
    if max(width * height, width * image.height) > MAX_PIXELS:
        raise InputError(f"{where}: an image of {image.width} × {image.height} pixels is too narrow for this model")
    if resample is Image.Resampling.NEAREST:
        return image.resize(size, resample)
    return image.resize((width, image.height), resample).resize(size, resample)


def _crop(pixels: np.ndarray, size: list[int]) -> np.ndarray:
    """The middle of shape [*size, 3] of an array [height, width, 3], zeros where it has nothing."""
    top, left = ((have - want) // 2 if have > want else 0 for have, want in zip(pixels.shape, size, strict=False))
    pixels = pixels[top : top + size[0], left : left + size[1]]
    missing = [want - have for have, want in zip(pixels.shape, size, strict=False)]
    return np.pad(pixels, [*((each // 2, each - each // 2) for each in missing), (0, 0)]) if any(missing) else pixels
