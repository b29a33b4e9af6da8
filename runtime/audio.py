"""Sounds to what audio models take: decoded, mixed to mono, resampled, and normalised or turned into filter bank features.

Measured against transformers 5.23 (torchaudio 2.8):

- ``Wav2Vec2FeatureExtractor``: equal bit by bit.
- ``ASTFeatureExtractor``: within 1e-6 of its numpy path before normalisation (natural logarithm of energies). Its other
  path, torchaudio, which it takes where torchaudio is installed, computes in float32: 1e-6 to 2e-5 away on average, up to
  1e-3 in bands near silence, where its own rounding is of that size. kaldi-native-fbank is no help here: it refuses 128 bands
  at 16 kHz.
- Resampling: transformers' pipelines resample files with ffmpeg's and arrays with torchaudio's windowed sinc of width 6.
  soxr's filter (quality "HQ") is steeper: it keeps more just below the Nyquist frequency and lets less alias. From 44.1 to
  16 kHz, tones up to 3 kHz come out 0.04 % (rms) from torchaudio's, speech with much hiss 4 %.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from cpuc.runtime import manifest
from cpuc.runtime.errors import BundleError, InputError
from cpuc.runtime.media import open_source

try:
    import soundfile
    import soxr
except (ImportError, OSError):  # soundfile raises OSError where its library does not load
    raise BundleError("sounds need soundfile and soxr: pip install 'cpuc[audio]'") from None

MAX_SECONDS = 600
LOWEST_RATE, HIGHEST_RATE = 1000, 192_000
# Samples of all channels that are decoded at a time: a file may claim a thousand channels.
_BLOCK = 2**20


@dataclass(frozen=True)
class FilterBank:
    """Log mel energies in frames of 25 ms every 10 ms, as AST takes them.

    Attributes:
        bins: mel bands from 20 Hz to half the sampling rate.
        frames: how many frames come out; zeros fill up, the rest is cut off.
        mean: of the energies, natural logarithm; subtracted if `AudioConfig.do_normalize`.
        std: the difference is divided by twice this.
    """

    bins: int
    frames: int
    mean: float
    std: float


@dataclass(frozen=True)
class AudioConfig:
    """What to do to a sound.

    Attributes:
        sampling_rate: of the model, in Hz.
        do_normalize: to zero mean and unit variance over the sound; with `filter_bank`, by its mean and std.
        padding_value: what fills a row up to the longest of its batch.
        return_attention_mask: whether the model was trained with a mask over such padding.
        filter_bank: null for models that take the waveform.
    """

    sampling_rate: int
    do_normalize: bool
    padding_value: float
    return_attention_mask: bool
    filter_bank: FilterBank | None

    @staticmethod
    def from_dict(values: Mapping[str, Any], where: str = "manifest.json.preprocessing.audio") -> AudioConfig:
        """Check and build from plain values, such as ``dataclasses.asdict`` and JSON give.

        Raises:
            BundleError: a field is missing, unknown, of a wrong type or out of range; the message names it below `where`.
        """
        config: AudioConfig = manifest.decode(AudioConfig, values, where)
        bank = config.filter_bank
        if not LOWEST_RATE <= config.sampling_rate <= HIGHEST_RATE:
            raise BundleError(f"{where}.sampling_rate: {config.sampling_rate} Hz is no rate of sounds")
        if not math.isfinite(config.padding_value):
            raise BundleError(f"{where}.padding_value: is not finite")
        if bank and not (4 <= bank.bins <= 1024 and 1 <= bank.frames <= 100 * MAX_SECONDS):
            raise BundleError(f"{where}.filter_bank: {bank.bins} bins by {bank.frames} frames is out of range")
        if bank and not (math.isfinite(bank.mean) and 0 < bank.std < math.inf):
            raise BundleError(f"{where}.filter_bank: mean or std makes no sense")
        return config


def open_audio(value: Any, where: str, sampling_rate: int) -> np.ndarray:
    """Mono samples at `sampling_rate`, float32 of shape [samples], full scale ±1 as decoded.

    Several channels of a file are averaged.

    Args:
        value: the path of a file that libsndfile reads (WAV, FLAC, Ogg, MP3, AIFF, …), a data URL or base64 of one, an array
            of floats [samples] at `sampling_rate`, or an object ``{"array": [...], "sampling_rate": 44100}`` with a list or
            an array, where ``raw`` may stand for ``array``, as the pipelines of transformers take it.
        where: what errors call the value, such as ``record 3: field 'audio'``.
        sampling_rate: of the model, in Hz.

    Raises:
        InputError: `value` is none of these or cannot be decoded, is empty, longer than ten minutes, or holds values that
            are not finite; or its sampling rate is missing or outside of 1 to 192 kHz.
    """
    if isinstance(value, str):
        samples, rate = _decode_file(value, where)
    elif isinstance(value, dict):
        samples, rate = _read_object(value, where)
    elif isinstance(value, np.ndarray):
        samples, rate = _read_array(value, where, sampling_rate), sampling_rate
    else:
        kinds = "a path, a data URL, base64, an array or an object"
        raise InputError(f"{where}: must be {kinds}, found {type(value).__name__}")
    if not np.isfinite(samples).all():
        raise InputError(f"{where}: the sound holds values that are not finite numbers")
    if rate != sampling_rate:
        samples = np.asarray(soxr.resample(samples, rate, sampling_rate, quality="HQ"), np.float32)
    if not len(samples):
        raise InputError(f"{where}: the sound is empty")
    return samples


def _read_object(value: dict[str, Any], where: str) -> tuple[np.ndarray, int]:
    names = [name for name in ("raw", "array") if value.get(name) is not None]
    # Data sets of the Hugging Face library have the path beside the array.
    if len(names) != 1 or set(value) - {"raw", "array", "sampling_rate", "path"}:
        raise InputError(f'{where}: an object must be {{"array": [...], "sampling_rate": ...}}, found {list(value)[:8]}')
    rate = value.get("sampling_rate")
    if type(rate) is not int or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise InputError(f"{where}: sampling_rate must be {LOWEST_RATE} to {HIGHEST_RATE} Hz, found {rate!r}")
    return _read_array(value[names[0]], where, rate), rate


def _read_array(value: Any, where: str, rate: int) -> np.ndarray:
    if not isinstance(value, (list, np.ndarray)):
        raise InputError(f"{where}: the samples must be a list of numbers, found {type(value).__name__}")
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        array = np.empty(1, object)
    # Integers in a list are JSON's way to write floats; an array of integers has a full scale that nobody told us.
    if array.dtype.kind not in ("fiu" if isinstance(value, list) else "f"):
        raise InputError(f"{where}: the samples must be floats of full scale ±1, found {array.dtype}")
    if array.ndim != 1:
        raise InputError(f"{where}: the samples must be a list of numbers or an array of one axis, found {array.ndim} axes")
    _check_length(len(array), rate, where)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused for that
        return np.ascontiguousarray(array, np.float32)


def _decode_file(value: str, where: str) -> tuple[np.ndarray, int]:
    with open_source(value, where) as file:
        try:
            with soundfile.SoundFile(_Source(file)) as sound:
                rate = sound.samplerate
                if LOWEST_RATE <= rate <= HIGHEST_RATE:
                    return _mix(sound, where), rate
        except InputError:
            raise
        except Exception as error:  # soundfile.LibsndfileError, and whatever nonsense in headers leads to
            reason = getattr(error, "error_string", error)
            raise InputError(f"{where}: not a sound that can be read (WAV, FLAC, Ogg, MP3, AIFF): {reason}") from None
    raise InputError(f"{where}: the sound has {rate} samples a second, must be {LOWEST_RATE} to {HIGHEST_RATE}")


class _Source:
    """A file as soundfile needs it: without a name, whose ending it would believe, and never failing to seek.

    libsndfile calls from C, where an exception would only be printed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):  # a damaged header points out of the file
            return self._file.tell()


def _mix(sound: soundfile.SoundFile, where: str) -> np.ndarray:
    """The mean of all channels, block by block: a file's header may lie about its length."""
    blocks: list[np.ndarray] = []
    total = 0
    while True:
        block = sound.read(max(1, _BLOCK // sound.channels), dtype="float32", always_2d=True)
        if not len(block):
            return np.concatenate(blocks) if blocks else np.empty(0, np.float32)
        total += len(block)
        _check_length(total, sound.samplerate, where)
        blocks.append(block.mean(axis=1, dtype=np.float32))


def _check_length(samples: int, rate: int, where: str) -> None:
    if samples > MAX_SECONDS * rate:
        raise InputError(f"{where}: the sound is longer than {MAX_SECONDS} seconds: cut it into pieces")


class AudioPreprocessor:
    """Does to sounds what an `AudioConfig` says; has no state beyond it, so threads may share one."""

    def __init__(self, config: AudioConfig) -> None:
        self.config = config

    def __call__(self, samples: np.ndarray, where: str = "the sound") -> np.ndarray:
        """Input values, float32: of shape [samples], or [frames, bins] where the model takes a filter bank.

        Args:
            samples: mono, float32 of shape [samples], at the config's sampling rate, as `open_audio` gives.
            where: what errors call them.

        Raises:
            InputError: the sound is shorter than the 25 ms of a frame, of which a filter bank needs one.
        """
        bank = self.config.filter_bank
        if bank is None:
            if not self.config.do_normalize:
                return samples
            # Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm, of the sound without padding
            return np.asarray((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))
        if len(samples) < _frame_lengths(self.config.sampling_rate)[0]:
            raise InputError(f"{where}: the sound is {len(samples)} samples long, and the model needs 25 ms")
        energies = _filter(samples, self.config.sampling_rate, bank.bins, bank.frames)
        values = np.zeros((bank.frames, bank.bins), np.float32)
        values[: len(energies)] = energies
        # ASTFeatureExtractor.normalize, which takes the padding along
        return (values - bank.mean) / (bank.std * 2) if self.config.do_normalize else values


def _frame_lengths(rate: int) -> tuple[int, int, int]:
    """Samples in a frame, from one frame to the next, and of its Fourier transform, as Kaldi rounds them."""
    length = int(rate * 25.0 * 0.001)
    return length, int(rate * 10.0 * 0.001), 1 << (length - 1).bit_length()


@functools.lru_cache(maxsize=8)
def _mel_weights(rate: int, bins: int) -> np.ndarray:
    """Triangles that are even on Kaldi's mel scale, shape [half the Fourier transform, bins]."""
    size = _frame_lengths(rate)[2]
    low, high = 1127 * np.log1p(np.array([20.0, rate / 2]) / 700)
    edges = np.linspace(low, high, bins + 2)
    mels = 1127 * np.log1p(np.arange(size // 2)[:, None] * (rate / size) / 700)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (mels - left) / (centre - left), (right - mels) / (right - centre)
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))


def _filter(samples: np.ndarray, rate: int, bins: int, limit: int) -> np.ndarray:
    """Log mel energies of at most `limit` frames, shape [frames, bins], float32.

    Equals ``torchaudio.compliance.kaldi.fbank(samples, window_type="hanning", num_mel_bins=bins)`` and Kaldi's
    ``compute-fbank-feats`` without dither, computed in float64.
    """
    length, shift, size = _frame_lengths(rate)
    frames = np.lib.stride_tricks.sliding_window_view(samples, length)[::shift][:limit].astype(np.float64)
    frames -= frames.mean(axis=1, keepdims=True)
    # Pre-emphasis; the first sample counts as its own predecessor.
    frames -= 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(frames * np.hanning(length), size)[:, :-1]) ** 2
    floor = np.finfo(np.float32).eps
    return np.asarray(np.log(np.maximum(power @ _mel_weights(rate, bins), floor)), np.float32)
