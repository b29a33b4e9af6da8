"""Decoding against its oracle, the question-answering pipeline of transformers 4.57, and what it promises beyond."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import ROOT
from tiny import make_model

import cpuc

ORACLE = ROOT / ".venv-oracle" / "bin" / "python"
Records = list[dict[str, Any]]
# Options of the pipeline for options of ours.
PIPELINE = {
    "top_k": "top_k",
    "max_seq_length": "max_seq_len",
    "doc_stride": "doc_stride",
    "max_answer_length": "max_answer_len",
    "allow_no_answer": "handle_impossible_answer",
}


@pytest.fixture(scope="module")
def oracle() -> Iterator[Callable[..., list[Any]]]:
    """Runs the pipeline on records: ``oracle(folder, records, **options) -> one answer or list per record``."""
    if not ORACLE.exists():
        pytest.skip("make test installs transformers 4.57 in .venv-oracle")
    command = [ORACLE, ROOT / "tests" / "oracle.py"]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        assert process.stdin and process.stdout
        asked, answered = process.stdin, process.stdout

        def run(model: Path, records: Records, **options: Any) -> list[Any]:
            job = {
                "model": str(model),
                "records": records,
                "options": {PIPELINE[name]: value for name, value in options.items()},
            }
            asked.write(json.dumps(job) + "\n")
            asked.flush()
            line = answered.readline()
            if not line:
                said.seek(0)
                pytest.fail(said.read()[-2000:])
            answers: list[Any] = json.loads(line)
            return answers

        yield run


@pytest.fixture(scope="module")
def xquad(shared_data: Path) -> list[dict[str, Any]]:
    """Paragraphs of SQuAD's JSON."""
    data = json.loads((shared_data / "xquad-en-dev.json").read_text())
    return [paragraph for article in data["data"] for paragraph in article["paragraphs"]]


@pytest.fixture(scope="module")
def questions(xquad: list[dict[str, Any]]) -> Records:
    return [{"question": qa["question"], "context": p["context"]} for p in xquad for qa in p["qas"]]


@pytest.fixture(scope="module")
def long_questions(xquad: list[dict[str, Any]]) -> Records:
    """Contexts of five paragraphs: two to six windows."""
    joined = ["  \n".join(p["context"] for p in xquad[i : i + 5]) for i in range(30)]
    return [{"question": xquad[i]["qas"][0]["question"], "context": context} for i, context in enumerate(joined)]


@pytest.fixture(scope="module")
def multilingual(shared_data: Path) -> Records:
    lines = (shared_data / "xquad-multilingual.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines[::23]]
    return [{"question": each["question"], "context": each["context"]} for each in records]


def example_questions() -> Records:
    records: Records = json.loads((ROOT / "examples" / "q.json").read_text())
    return [{"question": each["question"], "context": each["context"]} for each in records]


def assert_same(expected: list[Any], actual: list[Any]) -> None:
    """Same answers, offsets and order; scores within 1e-4."""
    assert len(expected) == len(actual)
    for theirs, ours in zip(expected, actual, strict=True):
        several = theirs if isinstance(theirs, list) else [theirs]
        mine = ours.answers if hasattr(ours, "answers") else [ours]
        assert [(a["answer"], a["start"], a["end"]) for a in several] == [(a.answer, a.start, a.end) for a in mine]
        assert [a["score"] for a in several] == pytest.approx([a.score for a in mine], abs=1e-4)


@pytest.mark.slow
def test_answers_of_the_pipeline_on_xquad(
    oracle: Callable[..., list[Any]], model: cpuc.Model, minilm: Path, questions: Records
) -> None:
    some = questions[::2]
    assert len(some) == 313
    assert_same(oracle(minilm, some), model(some))


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 3},
        {"allow_no_answer": True},
        {"top_k": 5, "allow_no_answer": True, "max_answer_length": 5},
        {"max_seq_length": 100, "doc_stride": 30, "top_k": 2},
        {"max_seq_length": 512, "doc_stride": 0},
    ],
    ids=str,
)
def test_answers_of_the_pipeline_over_several_windows(
    options: dict[str, Any], oracle: Callable[..., list[Any]], model: cpuc.Model, minilm: Path, long_questions: Records
) -> None:
    records = long_questions[:10]
    assert_same(oracle(minilm, records, **options), model(records, **options))


def test_answers_of_the_pipeline_on_the_examples(oracle: Callable[..., list[Any]], model: cpuc.Model, minilm: Path) -> None:
    assert_same(oracle(minilm, example_questions(), top_k=2), model(example_questions(), top_k=2))


@pytest.mark.slow
def test_answers_of_the_pipeline_in_twelve_languages(
    oracle: Callable[..., list[Any]], model: cpuc.Model, minilm: Path, multilingual: Records
) -> None:
    assert_same(oracle(minilm, multilingual, top_k=4), model(multilingual, top_k=4))


@pytest.mark.parametrize(
    ("kind", "names"),
    [("roberta", ["input_ids", "attention_mask"]), ("albert", ["input_ids", "attention_mask", "token_type_ids"])],
)
def test_answers_of_the_pipeline_with_other_tokenizers(
    kind: str, names: list[str], oracle: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """Of bytes, and one that makes token types in version 4 only."""
    folder = make_model(tmp_path / kind, kind)
    for file, name, value in (
        ("tokenizer_config.json", "model_input_names", None),
        ("config.json", "transformers_version", "4.57.6"),
    ):
        facts = json.loads((folder / file).read_text()) | {name: value}
        (folder / file).write_text(json.dumps({key: fact for key, fact in facts.items() if fact is not None}))
    cpuc.compile(str(folder), tmp_path / "model.pt")
    assert [spec.name for spec in cpuc.open_bundle(tmp_path / "model.pt").manifest.inputs] == names
    records = [record for record in example_questions() if len(record["context"]) < 1500]
    options = {"max_seq_length": 200, "doc_stride": 50, "allow_no_answer": True}
    assert_same(oracle(folder, records, **options), cpuc.load(tmp_path / "model.pt")(records, **options))


@pytest.mark.parametrize(
    "context",
    [
        "🎉🎉 The café of Zoë is in Malmö.",
        "The e\u0301tude was written in Malmö by Zoe\u0308.",
        "👨‍👩‍👧‍👦 moved from Oslo to Malmö\u200b, in 1999.",
        "\u202bשלום\u202c The house stands in Malmö\t\r\n  near 北京。",
        "İstanbul and Malmö ﬁnd each other ½ way.",
    ],
)
def test_offsets_are_of_the_users_own_text(model: cpuc.Model, context: str) -> None:
    answers = model({"question": "Where is it?", "context": context}, top_k=10).answers
    assert len(answers) > 1
    for answer in answers:
        assert context[answer.start : answer.end] == answer.answer
        assert 0 <= answer.start < answer.end <= len(context)


def test_an_answer_late_in_a_long_context_is_found(model: cpuc.Model) -> None:
    filler = "The weather was mild and nothing of note happened that day. " * 150
    context = filler + "Ingrid Solberg repaired the lighthouse in 1902. " + filler
    answer = model({"question": "Who repaired the lighthouse?", "context": context})
    assert answer.answer == "Ingrid Solberg"
    assert context[answer.start : answer.end] == answer.answer


def test_batching_does_not_change_answers(model: cpuc.Model) -> None:
    records = example_questions()
    assert [a.answer for a in model(records)] == [model(record).answer for record in records]


def test_of_answers_with_equal_scores_the_first_are_given(tiny_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "indifferent"
    shutil.copytree(tiny_model, source)
    weights = safetensors.torch.load_file(source / "model.safetensors")
    head = {name: torch.zeros_like(tensor) for name, tensor in weights.items() if name.startswith("qa_outputs")}
    assert len(head) == 2
    safetensors.torch.save_file({**weights, **head}, source / "model.safetensors", {"format": "pt"})
    cpuc.compile(str(source), tmp_path / "model.pt")
    context = " ".join(f"{i}" for i in range(10, 60))
    found = cpuc.load(tmp_path / "model.pt", warm_up=False)({"question": "Which?", "context": context}, top_k=8).answers
    assert len({answer.score for answer in found}) == 1
    ends = [answer.end for answer in found]
    assert ends[0] == 2 and ends == sorted(ends) and all(answer.start == 0 for answer in found)


def test_every_answer_of_a_short_context_ends_after_it_starts(model: cpuc.Model) -> None:
    answers = model({"question": "Where?", "context": "In Oslo now"}, top_k=50).answers
    assert 1 < len(answers) <= 6
    assert all(answer.answer for answer in answers)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "Who?"}, "record 2: field 'context' is missing"),
        ({"id": "q7", "question": "Who?"}, "record 2 (id 'q7'): field 'context' is missing"),
        ({"question": 3, "context": "Ada"}, "record 2: field 'question' must be a string, found int"),
        ({"question": "Who?", "context": " \n"}, "record 2: field 'context' is empty"),
        ({"question": "", "context": "Ada"}, "record 2: field 'question' is empty"),
        ({"question": "Who?", "context": "Ada \ud83d"}, "record 2: field 'context' has half a surrogate pair at character 4"),
        ("Who?", "record 2: expected {"),
        ({"question": "Who? " * 200, "context": "Ada. " * 500}, "record 2: the question takes"),
    ],
)
def test_a_wrong_record_is_named(model: cpuc.Model, record: Any, message: str) -> None:
    with pytest.raises(cpuc.InputError) as error:
        model([{"question": "Who?", "context": "Ada wrote it."}, record])
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"doc_stride": -1}, "doc_stride is -1"),
        ({"max_seq_length": 513}, "max_seq_length is 513, but the model takes at most 512 tokens"),
        ({"max_answer_length": 0}, "max_answer_length is 0"),
        ({"stride": 3}, "question-answering has no option 'stride'"),
    ],
)
def test_a_wrong_option_is_named(model: cpuc.Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(cpuc.InputError, match=message):
        model({"question": "Who?", "context": "Ada wrote it."}, **options)


def test_a_question_longer_than_the_stride_leaves_room_is_refused_not_a_crash(model: cpuc.Model) -> None:
    record = {"question": "Who?", "context": "Ada wrote it. " * 50}
    with pytest.raises(cpuc.InputError, match="smaller --doc-stride"):
        model(record, max_seq_length=20, doc_stride=18)
    assert model(record, max_seq_length=20, doc_stride=5).answer
