"""Sounds against their oracle, the feature extractors of transformers, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor
from transformers.models.audio_spectrogram_transformer import feature_extraction_audio_spectrogram_transformer as ast

from cpuc.compiler.media import FEATURE_EXTRACTORS, read_audio_steps
from cpuc.compiler.media_samples import SAMPLING_RATE, sounds
from cpuc.runtime import audio
from cpuc.runtime.audio import AudioConfig, AudioPreprocessor, FilterBank, open_audio
from cpuc.runtime.errors import BundleError, InputError, ModelError

# torchaudio announces its own end.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torchaudio")

Config = dict[str, Any]
AST = {"feature_extractor_type": "ASTFeatureExtractor"}
WAVEFORM = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "feature_size": 1}
# What the files of well-known repositories look like.
WAVEFORMS: dict[str, Config] = {
    "wav2vec2": {
        "do_normalize": True,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "sampling_rate": 16000,
    },
    "lv60": {**WAVEFORM, "do_normalize": True, "return_attention_mask": True, "padding_value": 0},
    "not-normalised": {**WAVEFORM, "do_normalize": False},
}
FILTER_BANKS: dict[str, Config] = {
    "audioset": {**AST, "do_normalize": True, "max_length": 1024, "mean": -4.2677393, "std": 4.5689974, "num_mel_bins": 128},
    "speech-commands": {**AST, "max_length": 128, "mean": -6.845978, "std": 5.5654526},
    "defaults": AST,
    "not-normalised": {**AST, "do_normalize": False, "max_length": 300},
    "64-bins": {**AST, "num_mel_bins": 64},
}


@pytest.fixture
def repository(tmp_path: Path) -> Callable[[Config], Path]:
    """A folder with such a preprocessor_config.json, and the config.json of a wav2vec2."""

    def write(config: Config) -> Path:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
        return tmp_path

    return write


@pytest.fixture(scope="module")
def recordings() -> list[np.ndarray]:
    """Like speech, noise, near silence, silence, a constant, a click, and the shortest that makes a frame or two."""
    random = np.random.default_rng(0)
    click = np.zeros(16_000)
    click[8000] = 1
    noise = random.standard_normal(24_000)
    others = [0.1 * noise, 1e-5 * noise, np.zeros(9000), np.ones(9000), click, noise[:400], noise[:559], noise[:560]]
    return sounds() + [each.astype(np.float32) for each in others]


def make(folder: Path) -> AudioPreprocessor:
    steps = read_audio_steps(folder, "tiny")
    return AudioPreprocessor(AudioConfig.from_dict(json.loads(json.dumps(steps))))


def ask(oracle: Any, samples: np.ndarray) -> np.ndarray:
    return np.asarray(oracle(samples, sampling_rate=SAMPLING_RATE, return_tensors="np")["input_values"][0])


@pytest.mark.parametrize("name", WAVEFORMS)
def test_waveforms_are_equal_bit_by_bit(name: str, repository: Callable[..., Path], recordings: list[np.ndarray]) -> None:
    folder = repository(WAVEFORMS[name])
    preprocess, oracle = make(folder), AutoFeatureExtractor.from_pretrained(folder)
    assert preprocess.config.return_attention_mask == oracle.return_attention_mask
    for samples in recordings:
        before = samples.copy()
        found = preprocess(samples)
        assert found.dtype == np.float32
        assert np.array_equal(found, ask(oracle, samples))
        assert np.array_equal(samples, before)


def test_waveforms_of_a_batch_are_normalised_without_their_padding(repository: Callable[..., Path]) -> None:
    folder = repository(WAVEFORMS["lv60"])
    preprocess, oracle = make(folder), AutoFeatureExtractor.from_pretrained(folder)
    batch = sounds()[:2]
    expected = oracle(batch, sampling_rate=SAMPLING_RATE, padding=True, return_tensors="np")
    for samples, row, mask in zip(batch, expected["input_values"], expected["attention_mask"], strict=True):
        assert mask.sum() == len(samples)
        assert abs(preprocess(samples) - row[: len(samples)]).max() < 1e-6
        assert (row[len(samples) :] == preprocess.config.padding_value).all()


@pytest.mark.filterwarnings("ignore:At least one mel filter:UserWarning")  # of the oracle
@pytest.mark.parametrize("name", FILTER_BANKS)
def test_filter_banks_equal_the_numpy_path(
    name: str, repository: Callable[..., Path], recordings: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository(FILTER_BANKS[name])
    monkeypatch.setattr(ast, "is_speech_available", lambda: False)
    preprocess, oracle = make(folder), AutoFeatureExtractor.from_pretrained(folder)
    for samples in recordings:
        found, expected = preprocess(samples), ask(oracle, samples)
        assert found.dtype == expected.dtype == np.float32
        assert found.shape == expected.shape == (oracle.max_length, oracle.num_mel_bins)
        assert abs(found - expected).max() < 4e-6


@pytest.mark.parametrize("name", FILTER_BANKS)
def test_filter_banks_are_near_the_torchaudio_path(
    name: str, repository: Callable[..., Path], recordings: list[np.ndarray]
) -> None:
    folder = repository(FILTER_BANKS[name])
    preprocess, oracle = make(folder), AutoFeatureExtractor.from_pretrained(folder)
    # Differences before normalisation, where a constant is left as rounding noise by one and as zeros by the other.
    scale = 2 * oracle.std if oracle.do_normalize else 1
    for samples in recordings:
        if samples.std():
            difference = scale * abs(preprocess(samples) - ask(oracle, samples))
            assert difference.max() < 5e-3
            assert difference.mean() < 5e-5


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_filter_banks_at_other_rates_equal_torchaudio(rate: int) -> None:
    from torchaudio.compliance.kaldi import fbank

    samples = sounds()[2]
    config = AudioConfig(rate, False, 0.0, False, FilterBank(80, 10_000, 0.0, 1.0))
    expected = fbank(torch.from_numpy(samples)[None], sample_frequency=rate, window_type="hanning", num_mel_bins=80).numpy()
    found = AudioPreprocessor(config)(samples)
    assert abs(found[: len(expected)] - expected).max() < 5e-3
    assert not found[len(expected) :].any()


def test_a_filter_bank_needs_a_frame(repository: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="record 2: the sound is 399 samples long, and the model needs 25 ms"):
        make(repository(AST))(np.zeros(399, np.float32), "record 2")


def encode(samples: np.ndarray, kind: str = "WAV", rate: int = SAMPLING_RATE, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "OGG", "MP3"])
def test_open_audio_decodes(kind: str, tmp_path: Path) -> None:
    samples = sounds()[1]
    data = encode(samples, kind)
    path = tmp_path / "sound.raw"  # a name that says nothing, or what is wrong
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    for value in (str(path), text, f"data:audio/x;base64,{text}"):
        found = open_audio(value, "the record", SAMPLING_RATE)
        assert found.dtype == np.float32
        assert found.ndim == 1
        if kind in ("OGG", "MP3"):
            assert len(samples) <= len(found) < len(samples) + 3000
        else:
            assert abs(found - samples).max() <= 1 / 32768


def test_open_audio_averages_channels_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    samples = random.uniform(-1, 1, (10_007, 3)).astype(np.float32)
    monkeypatch.setattr(audio, "_BLOCK", 1000)
    text = base64.b64encode(encode(samples, subtype="FLOAT")).decode()
    assert abs(open_audio(text, "the record", SAMPLING_RATE) - samples.mean(axis=1)).max() < 1e-6


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_open_audio_resamples(rate: int) -> None:
    time = np.arange(rate) / rate
    tones = (np.sin(2 * np.pi * 440 * time) / 2 + np.sin(2 * np.pi * 2000 * time) / 4).astype(np.float32)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) / 2 + np.sin(2 * np.pi * 2000 * np.arange(16000) / 16000) / 4
    text = base64.b64encode(encode(tones, rate=rate, subtype="FLOAT")).decode()
    for value in (text, {"array": tones, "sampling_rate": rate}, {"raw": tones.tolist(), "sampling_rate": rate}):
        found = open_audio(value, "the record", SAMPLING_RATE)
        assert found.dtype == np.float32
        assert len(found) == 16000
        assert abs(found - expected)[500:-500].max() < 1e-3


def test_open_audio_takes_arrays_and_objects() -> None:
    samples = sounds()[0]
    for value in (
        samples,
        samples.astype(np.float64),
        {"array": samples, "sampling_rate": 16000, "path": "x.wav"},
        {"raw": samples.tolist(), "sampling_rate": 16000},
    ):
        found = open_audio(value, "the record", 16000)
        assert found.dtype == np.float32
        assert np.array_equal(found, samples)
    assert open_audio({"array": [0, 1, -1], "sampling_rate": 16000}, "the record", 16000).tolist() == [0, 1, -1]


SHORT = np.zeros(100, np.float32)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("missing.wav", "no such file: 'missing.wav'"),
        ("https://example.org/a.wav", "opens no network addresses"),
        ("data:audio/wav;base64,bm90IGEgc291bmQ=", "not a sound that can be read (WAV, FLAC, Ogg, MP3, AIFF)"),
        (base64.b64encode(encode(SHORT)[:30]).decode(), "not a sound that can be read"),
        (base64.b64encode(encode(SHORT[:0])).decode(), "the sound is empty"),
        (base64.b64encode(encode(SHORT + np.float32("nan"), subtype="FLOAT")).decode(), "not finite numbers"),
        (base64.b64encode(encode(SHORT, rate=500)).decode(), "500 samples a second, must be 1000 to 192000"),
        (base64.b64encode(encode(SHORT, rate=400_000)).decode(), "400000 samples a second"),
        (np.zeros(0, np.float32), "the sound is empty"),
        (np.full(9, np.inf, np.float32), "not finite numbers"),
        (np.full(9, 1e300), "not finite numbers"),
        (np.zeros((2, 9), np.float32), "found 2 axes"),
        (np.array(1.0), "found 0 axes"),
        (np.zeros(9, np.int16), "floats of full scale ±1, found int16"),
        (np.zeros(9, complex), "found complex128"),
        ([0.0, 1.0], "found list"),
        (b"RIFF", "found bytes"),
        (None, "found NoneType"),
        ({"array": [], "sampling_rate": 16000}, "the sound is empty"),
        ({"array": [0.0], "sampling_rate": 48000}, "the sound is empty"),
        ({"array": [0.0]}, "sampling_rate must be 1000 to 192000 Hz, found None"),
        ({"array": [0.0], "sampling_rate": "16000"}, "found '16000'"),
        ({"array": [0.0], "sampling_rate": True}, "found True"),
        ({"array": [0.0], "sampling_rate": 0}, "found 0"),
        ({"sampling_rate": 16000}, "an object must be"),
        ({"array": [0.0], "raw": [0.0], "sampling_rate": 16000}, "an object must be"),
        ({"array": [0.0], "sampling_rate": 16000, "stride": 3}, "an object must be"),
        ({"array": "x.wav", "sampling_rate": 16000}, "must be a list of numbers, found str"),
        ({"array": ["a"], "sampling_rate": 16000}, "found <U1"),
        ({"array": [None], "sampling_rate": 16000}, "found object"),
        ({"array": [True, False], "sampling_rate": 16000}, "found bool"),
        ({"array": [[0.0], [0.0, 1.0]], "sampling_rate": 16000}, "found object"),
        ({"array": [[0.0, 1.0]], "sampling_rate": 16000}, "found 2 axes"),
        ({"array": [10**400], "sampling_rate": 16000}, "found object"),
    ],
)
def test_open_audio_refuses(value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        open_audio(value, "record 3: field 'audio'", SAMPLING_RATE)
    assert str(caught.value).startswith("record 3: field 'audio': ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_open_audio_refuses_what_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "MAX_SECONDS", 1)
    whole, longer = np.zeros(16_000, np.float32), np.zeros(16_001, np.float32)
    for wrap in (np.array, lambda x: base64.b64encode(encode(x)).decode(), lambda x: {"array": x, "sampling_rate": 16000}):
        assert len(open_audio(wrap(whole), "the record", 16000)) == 16_000
        with pytest.raises(InputError, match="the record: the sound is longer than 1 seconds"):
            open_audio(wrap(longer), "the record", 16000)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="the record: "):
        open_audio("data:audio/wav;base64," + base64.b64encode(data).decode(), "the record", SAMPLING_RATE)


FILES = {kind: encode(sounds()[0], kind) for kind in ("WAV", "FLAC", "AIFF", "OGG")}


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_damaged_files_give_a_sound_or_an_input_error(kind: str, choose: st.DataObject) -> None:
    data = bytearray(FILES[kind])
    for _ in range(choose.draw(st.integers(1, 4))):
        data[choose.draw(st.integers(0, 199))] = choose.draw(st.integers(0, 255))
    try:
        samples = open_audio(base64.b64encode(data).decode(), "the record", SAMPLING_RATE)
    except InputError:
        return
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()


GOOD = dataclasses.asdict(AudioConfig(16000, True, 0.0, False, FilterBank(128, 1024, -4.0, 4.0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_rate": 0}, "sampling_rate: 0 Hz"),
        ({"sampling_rate": 16000.0}, "sampling_rate: expected int"),
        ({"padding_value": float("nan")}, "padding_value"),
        ({"do_normalize": 1}, "do_normalize: expected bool"),
        ({"filter_bank": {**GOOD["filter_bank"], "bins": 0}}, "filter_bank: 0 bins"),
        ({"filter_bank": {**GOOD["filter_bank"], "frames": 10**9}}, "1000000000 frames"),
        ({"filter_bank": {**GOOD["filter_bank"], "std": 0.0}}, "filter_bank: mean or std"),
        ({"filter_bank": {"bins": 128}}, "filter_bank: field 'frames' is missing"),
        ({"depth": 1}, "unknown field 'depth'"),
    ],
)
def test_config_names_the_field_that_is_wrong(changes: Config, message: str) -> None:
    assert dataclasses.asdict(AudioConfig.from_dict(GOOD)) == GOOD
    with pytest.raises(BundleError) as caught:
        AudioConfig.from_dict({**GOOD, **changes})
    assert str(caught.value).startswith("manifest.json.preprocessing.audio")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"feature_extractor_type": "SeamlessM4TFeatureExtractor"}, "'SeamlessM4TFeatureExtractor' is not supported"),
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, f"supported: {', '.join(FEATURE_EXTRACTORS)}"),
        ({"feature_extractor_type": "MyFeatureExtractor", "auto_map": {"AutoFeatureExtractor": "a.B"}}, "cannot be read"),
        ({**WAVEFORM, "feature_size": 2}, "feature_size must be 1"),
        ({**WAVEFORM, "padding_side": "left"}, "padding_side"),
        ({**WAVEFORM, "sampling_rate": 1}, "sampling_rate: 1 Hz"),
        ({**AST, "std": 0}, "mean or std"),
    ],
)
def test_extractors_that_do_something_else_are_refused(
    config: Config, message: str, repository: Callable[[Config], Path]
) -> None:
    with pytest.raises(ModelError, match=r"^tiny: ") as caught:
        read_audio_steps(repository(config), "tiny")
    assert message in str(caught.value)


def test_a_repository_without_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^tiny: preprocessor_config\.json cannot be read"):
        read_audio_steps(tmp_path, "tiny")


@pytest.mark.parametrize("module", ["soundfile", "soxr"])
def test_without_libraries_the_error_says_what_to_install(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "cpuc.runtime.audio")
    with pytest.raises(BundleError, match=r"sounds need soundfile and soxr: pip install 'cpuc\[audio\]'"):
        importlib.import_module("cpuc.runtime.audio")


def test_samples_are_sounds_and_always_the_same() -> None:
    first, second = sounds(), sounds()
    assert [len(sound) / SAMPLING_RATE for sound in first] == [0.5, 1.0, 1.7, 2.5, 4.0, 6.0]
    for sound, again in zip(first, second, strict=True):
        assert sound.dtype == np.float32
        assert 0.4 < abs(sound).max() <= 0.5
        assert np.array_equal(sound, again)
