"""The tasks on images and sounds answer as the pipelines of transformers do, on the same random models."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import transformers
from conftest import Run
from media_models import make_media_model
from PIL import Image
from test_text_tasks import assert_same

import cpuc
from cpuc.compiler import media_samples
from cpuc.compiler.tasks import TASKS


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of images of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(media_samples.images()):
        Image.fromarray(image).save(folder / f"{i}.png")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of sounds of several lengths."""
    folder = tmp_path_factory.mktemp("recordings")
    for i, sound in enumerate(media_samples.sounds()):
        soundfile.write(folder / f"{i}.wav", sound, 16_000, subtype="FLOAT")
    return sorted(map(str, folder.iterdir()))


def compiled(folder: Path, variant: str, task: str, **overrides: Any) -> tuple[cpuc.Model, Any]:
    """The artifact of a random model, and the oracle's pipeline for it."""
    make_media_model(folder / "model", variant, task, **overrides)
    manifest = cpuc.compile(str(folder / "model"), folder / "model.pt")
    assert manifest.task == task
    eager = getattr(transformers, TASKS[task].auto_class).from_pretrained(folder / "model", attn_implementation="eager")
    parts: dict[str, Any] = {}
    if TASKS[task].modality == "audio":
        parts["feature_extractor"] = transformers.AutoFeatureExtractor.from_pretrained(folder / "model")
    else:
        # The other backend rounds what it resizes to other levels.
        parts["image_processor"] = transformers.AutoImageProcessor.from_pretrained(folder / "model", backend="pil")
    if task == "automatic-speech-recognition":
        parts["tokenizer"] = transformers.AutoTokenizer.from_pretrained(folder / "model")
    return cpuc.load(folder / "model.pt"), transformers.pipeline(task, model=eager, device="cpu", **parts)


# Of the real 512 channels a model that listens takes seconds for each recording.
NARROW = {"conv_dim": [64] * 7}


def samples_of(path: str) -> dict[str, Any]:
    """A recording as the oracle takes it without ffmpeg."""
    return {"raw": soundfile.read(path, dtype="float32")[0], "sampling_rate": 16_000}


@pytest.mark.parametrize("variant", ["vit", "resnet"])
def test_image_classification(variant: str, pictures: list[str], tmp_path: Path) -> None:
    model, oracle = compiled(tmp_path, variant, "image-classification", num_labels=7)
    # Tall ones depend on the release of Pillow in the oracle: see cpuc.runtime.images.
    wide = [path for path, image in zip(pictures, media_samples.images(), strict=True) if image.shape[0] <= image.shape[1]]
    for answer, expected in zip(model(wide, top_k=5), oracle(wide), strict=True):
        assert_same(answer.to_json(), {"labels": expected})
    best = model(pictures[0])
    assert (best.label, best.score) == (
        model(pictures[0], top_k=1).labels[0].label,
        model(pictures[0], top_k=1).labels[0].score,
    )
    encoded = base64.b64encode(Path(pictures[0]).read_bytes()).decode()
    array = media_samples.images()[0]
    for other in ({"image": pictures[0]}, encoded, f"data:image/png;base64,{encoded}", array, Image.fromarray(array)):
        assert model(other) == best
    assert model({"id": 7, "image": array}).to_json() == {"id": 7, **best.to_json()}


@pytest.mark.parametrize("variant", ["vit", "resnet"])
def test_image_feature_extraction(variant: str, pictures: list[str], tmp_path: Path) -> None:
    model, oracle = compiled(tmp_path, variant, "image-feature-extraction")
    expected = np.array(oracle(pictures[0]))[0]
    assert np.allclose(model(pictures[0]).features, expected, atol=1e-4)
    pooled = np.array(oracle(pictures[0], pool=True)).ravel()
    assert np.allclose(model(pictures[0], pool=True).embedding, pooled, atol=1e-4)


@pytest.mark.parametrize("variant", ["wav2vec2", "wav2vec2/layer", "audio-spectrogram-transformer"])
def test_audio_classification(variant: str, recordings: list[str], tmp_path: Path) -> None:
    narrow = NARROW if variant.startswith("wav2vec2") else {}
    model, oracle = compiled(tmp_path, variant, "audio-classification", num_labels=6, **narrow)
    answers = model(recordings, top_k=5)
    for path, answer in zip(recordings, answers, strict=True):
        assert_same(answer.to_json(), {"labels": oracle(samples_of(path), top_k=5)})
    raw = soundfile.read(recordings[0], dtype="float32")[0]
    assert model({"raw": raw, "sampling_rate": 16_000, "id": 5}).id == 5
    best = model(recordings[0])
    for other in ({"audio": recordings[0]}, {"raw": raw.tolist(), "sampling_rate": 16_000}, raw):
        assert_same(model(other).to_json(), best.to_json())


@pytest.mark.parametrize("variant", ["wav2vec2", "wav2vec2/layer"])
def test_speech_recognition(variant: str, recordings: list[str], tmp_path: Path) -> None:
    model, oracle = compiled(tmp_path, variant, "automatic-speech-recognition", **NARROW)
    texts = [answer.text for answer in model(recordings)]
    assert texts == [oracle(samples_of(path))["text"] for path in recordings]
    assert len(set(texts)) > 1
    for kind in ("word", "char"):
        for path, answer in zip(recordings, model(recordings, return_timestamps=kind), strict=True):
            expected = oracle(samples_of(path), return_timestamps=kind)
            assert answer.text == expected["text"]
            assert [chunk.text for chunk in answer.chunks] == [chunk["text"] for chunk in expected["chunks"]]
            times = [(chunk.start, chunk.end) for chunk in answer.chunks]
            assert np.allclose(times, [chunk["timestamp"] for chunk in expected["chunks"]])


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of a classifier of images and one of sounds."""
    bundles = {}
    for variant, task in (("vit", "image-classification"), ("wav2vec2", "audio-classification")):
        folder = tmp_path_factory.mktemp(variant)
        make_media_model(folder / "model", variant, task, **(NARROW if variant == "wav2vec2" else {}))
        cpuc.compile(str(folder / "model"), folder / "model.pt")
        bundles[variant] = folder / "model.pt"
    return bundles


@pytest.mark.parametrize(
    ("variant", "record", "message"),
    [
        ("vit", 7, "record 1: field 'image' must be a path or base64, found int"),
        ("vit", {"picture": "a"}, "record 1: field 'image' is missing"),
        ("vit", {"image": ""}, "record 1: field 'image' is empty"),
        ("vit", {"id": "x", "image": "absent.png"}, "record 1 (id 'x'): field 'image': "),
        ("wav2vec2", {"audio": "absent.wav"}, "record 1: field 'audio': "),
        (
            "wav2vec2",
            {"audio": {"array": [0.1] * 399, "sampling_rate": 16000}},
            "is 399 samples long at 16000 Hz, the model needs",
        ),
        ("wav2vec2", None, "record 1: field 'audio' must be a path or base64, found NoneType"),
    ],
)
def test_wrong_records(classifiers: dict[str, Path], variant: str, record: Any, message: str) -> None:
    with pytest.raises(cpuc.InputError) as error:
        cpuc.load(classifiers[variant], warm_up=False)([record])
    assert message in str(error.value)


def test_the_command_line(classifiers: dict[str, Path], pictures: list[str], recordings: list[str], cli: Run) -> None:
    one = json.loads(cli("run", classifiers["vit"], "--input", "-", stdin=json.dumps(pictures[0])).stdout)
    assert set(one) == {"label", "score"}
    lines = "".join(json.dumps({"id": i, "audio": path}) + "\n" for i, path in enumerate(recordings))
    answers = cli("run", classifiers["wav2vec2"], "--input", "-", stdin=lines).stdout
    assert [json.loads(line)["id"] for line in answers.splitlines()] == list(range(len(recordings)))
