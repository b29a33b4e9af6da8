"""``--precision auto``: budgets decide, the table says why, and nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, here
from evaluation import squad
from media_models import make_media_model
from tiny import make_model

import cpuc
from cpuc.compiler import samples


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model: it has many near ties, which other precisions decide otherwise."""
    return make_model(tmp_path_factory.mktemp("source"), "bert")


@pytest.fixture(scope="module")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions that the float32 artifact answers as the data says."""
    folder = tmp_path_factory.mktemp("data")
    cpuc.compile(str(source), folder / "model.pt")
    records = samples.more_questions()[:30]
    answers = [answer.answer for answer in cpuc.load(folder / "model.pt")(records)]
    path = folder / "questions.json"
    questions = [(each["context"], each["question"], [answer]) for each, answer in zip(records, answers, strict=True)]
    path.write_text(json.dumps(squad(questions, marked=False)))
    return path


def compiled(cli: Run, *options: object) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What ``cpuc compile --json`` says: the manifest, and the candidates by precision."""
    result = cli("compile", *options, "--precision", "auto", "--json")
    assert result.returncode == 0, result.stderr
    manifest = json.loads(result.stdout)
    return manifest, {each["precision"]: each for each in manifest["choice"]["candidates"]}


@pytest.mark.slow
@pytest.mark.parametrize("max_drop", [0, 100])
def test_a_budget_decides(max_drop: float, source: Path, data: Path, tmp_path: Path, cli: Run) -> None:
    path = tmp_path / "model.pt"
    manifest, candidates = compiled(cli, source, "-o", path, "--eval-data", data, "--max-drop", max_drop)
    choice = manifest["choice"]
    assert (choice["metric"], choice["score"], choice["max_drop"]) == ("f1", 100, max_drop)
    assert {"fp32", here("int8"), here("int8-dynamic")} <= set(candidates)
    allowed = [each for each in candidates.values() if each["drop"] <= max_drop + 1e-6]
    assert choice["precision"] == max(allowed, key=lambda each: each["speed"])["precision"]
    assert candidates["fp32"]["score"] == pytest.approx(100)
    # No int8 gets all of them.
    assert min(each["score"] for each in candidates.values()) < 100
    assert (choice["precision"] == "fp32" or candidates[choice["precision"]]["drop"] <= 1e-6) if not max_drop else True
    assert cpuc.open_bundle(path).manifest.build.precision == choice["precision"] == manifest["build"]["precision"]
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.slow
def test_without_data_agreement_decides(tmp_path: Path, cli: Run) -> None:
    source = make_media_model(tmp_path / "source", "vit", "image-classification")
    result = cli("compile", source, "-o", tmp_path / "model.pt", "--precision", "auto", "--max-drop", "50")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("agreement of the original 100.00, may drop by 50")
    assert sum(line.startswith("* ") for line in lines) == 1
    assert "  fp32 " in result.stdout or "* fp32 " in result.stdout


def test_what_cannot_be_compiled_is_no_candidate(tmp_path: Path, cli: Run) -> None:
    source = make_media_model(tmp_path / "source", "resnet", "image-classification")
    manifest, candidates = compiled(cli, source, "-o", tmp_path / "model.pt", "--max-drop", 100)
    assert "convolutions" in candidates[here("int8")]["problem"]
    assert manifest["choice"]["precision"] in ("fp32", "bf16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "auto", "--max-drop", "-1"], "max_drop is -1.0, must be a number of points, at least 0"),
        (["--precision", "auto", "--eval-data", "none.json"], "none.json: no such file"),
        (["--precision", "auto", "--no-verify"], "--precision auto verifies always"),
        (["--eval-data", "none.json"], "--eval-data and --max-drop go with --precision auto"),
        (["--precision", "int8", "--max-drop", "1"], "--eval-data and --max-drop go with --precision auto"),
    ],
)
def test_wrong_options(options: list[str], message: str, minilm: Path, tmp_path: Path, cli: Run) -> None:
    result = cli("compile", minilm, "-o", tmp_path / "model.pt", *options)
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_data_without_labels_is_told_before_the_rest_is_compiled(minilm: Path, tmp_path: Path, cli: Run) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"text": "a review", "label": "good"}\n' * 3)
    result = cli("compile", minilm, "-o", tmp_path / "model.pt", "--precision", "auto", "--eval-data", wrong)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "wrong.jsonl" in result.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["wrong.jsonl"]
