"""``--precision auto``: budgets decide, the table says why, and nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Run, here
from evaluation import squad
from media_models import make_media_model
from test_text_tasks import named
from tiny import make_model

import cpuc
from cpuc.compiler import samples
from cpuc.compiler.precision import PRECISIONS
from cpuc.runtime.engine import cpu_offers


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


@pytest.mark.slow
@pytest.mark.parametrize("max_drop", [0, 100])
def test_a_budget_decides(max_drop: float, source: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    choice = cpuc.choose(str(source), path, eval_data=data, max_drop=max_drop)
    candidates = {each.precision: each for each in choice.candidates}
    assert (choice.metric, choice.score, choice.max_drop) == ("f1", pytest.approx(100), max_drop)
    assert {"fp32", here("int8"), here("int8-dynamic")} <= set(candidates)
    figures = {name: (each.score, each.drop, each.speed) for name, each in candidates.items()}
    scores, drops, speeds = ({name: values[i] for name, values in figures.items()} for i in range(3))
    assert all(each.problem is None for each in candidates.values())
    assert choice.precision == max((name for name in figures if drops[name] <= max_drop + 1e-6), key=speeds.__getitem__)
    assert scores["fp32"] == pytest.approx(100)
    # No int8 gets all of them.
    assert min(scores.values()) < 100
    assert cpuc.open_bundle(path).manifest.build.precision == choice.precision == choice.manifest.build.precision
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
    result = cli("compile", source, "-o", tmp_path / "model.pt", "--precision", "auto", "--max-drop", 100, "--json")
    assert result.returncode == 0, result.stderr
    manifest = json.loads(result.stdout)
    candidates = {each["precision"]: each for each in manifest["choice"]["candidates"]}
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


def test_texts_that_are_too_long_are_cut(tmp_path: Path, cli: Run) -> None:
    source = make_model(
        tmp_path / "source", "bert", "text-classification", **named(["bad", "good"]), max_position_embeddings=64
    )
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": "a bread " * n, "label": n % 2}) + "\n" for n in (1, 2, 50, 3, 60, 4, 7, 10)))
    for options in ["--eval-data", data], ["--calibrate", data]:
        result = cli(
            "compile", source, "-o", tmp_path / "model.pt", "--precision", "auto", "--max-drop", 100, *options, "--force"
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("  speed ") == sum(cpu_offers(entry.isa) for entry in PRECISIONS.values())


def test_data_that_cannot_be_read_is_told_before_the_rest_is_compiled(tmp_path: Path) -> None:
    source = make_media_model(tmp_path / "source", "vit", "image-classification", **named(["bad", "good"]))
    (tmp_path / "no.png").write_bytes(b"no image")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"image": str(tmp_path / "no.png"), "label": "bad"}) + "\n")
    stages: list[str] = []
    with pytest.raises(cpuc.InputError, match="line 1: field 'image': not an image"):
        cpuc.choose(str(source), tmp_path / "model.pt", eval_data=data, report=stages.append)
    assert {stage.partition(":")[0] for stage in stages} == {"fp32"}
    assert not (tmp_path / "model.pt").exists()


def test_data_without_labels_is_told_before_the_rest_is_compiled(minilm: Path, tmp_path: Path, cli: Run) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"text": "a review", "label": "good"}\n' * 3)
    result = cli("compile", minilm, "-o", tmp_path / "model.pt", "--precision", "auto", "--eval-data", wrong)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "wrong.jsonl" in result.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["wrong.jsonl"]


def test_too_little_memory_is_no_fault_of_a_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(*arguments: object, precision: str, **options: object) -> cpuc.Manifest:
        if precision != "fp32":
            raise MemoryError
        return real(*arguments, precision=precision, **options)  # type: ignore[arg-type]

    source, real = make_model(tmp_path / "source", "bert"), cpuc.compile
    monkeypatch.setattr("cpuc.compiler.choice.compile", compile)
    with pytest.raises(cpuc.CpucError, match="there is not enough memory to compile it"):
        cpuc.choose(str(source), tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()
