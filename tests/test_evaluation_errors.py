"""Wrong data, options and models of an evaluation are told before anything runs; what the command prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Run
from evaluation import ADA, QUESTIONS, TEXT, Models, Write, squad

import cpuc


@pytest.mark.parametrize(
    ("name", "file", "data", "parts"),
    [
        ("verdicts", "x.jsonl", "", ["x.jsonl: holds no records"]),
        ("verdicts", "x.json", "[]", ["x.json: holds no records"]),
        ("verdicts", "x.jsonl", [{"text": "a"}], ["line 1: field 'label' is missing", "takes JSON Lines", '"label"']),
        ("verdicts", "x.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": "ugly"}],
         ["x.jsonl: line 2: label 'ugly' is not one of the model's: bad, good"]),
        ("verdicts", "x.jsonl", [{"text": "a", "label": -1}], ["line 1: label -1 is not"]),
        ("verdicts", "x.jsonl", [{"text": "a", "label": True}], ["line 1: label True is not"]),
        ("verdicts", "x.jsonl", [{"text": " ", "label": 0}], ["line 1: field 'text' is empty"]),
        ("verdicts", "x.jsonl", ["text"], ["line 1: expected an object, found str"]),
        ("verdicts", "x.json", squad(QUESTIONS, marked=True), ["record 1: field 'text' is missing", f"{TEXT} takes"]),
        ("verdicts", "x.jsonl", [{"text": "bread " * 300, "label": 0}], ["x.jsonl: line 1: is 302 tokens long", "--truncate"]),
        ("topics", "x.jsonl", [{"text": "a", "labels": ["a", "z"]}], ["line 1: label 'z' is not one of the model's: a, b, c"]),
        ("topics", "x.jsonl", [{"text": "a", "labels": [0, 0, 1]}], ["line 1: a label occurs twice", "zeros and ones"]),
        ("reranker", "x.jsonl", [{"text": "a", "score": 1}], ["needs at least 2 samples", "found 1"]),
        ("reranker", "x.jsonl", [{"text": "a", "score": 1}] * 3, ["found 3 samples, all of one score"]),
        ("reranker", "x.jsonl", [{"text": "a", "score": "high"}], ["line 1: field 'score' must be a number, found 'high'"]),
        ("regression", "x.jsonl", [{"text": "a", "score": 1}], ["gives 2 numbers for each record"]),
        ("sentences", "x.jsonl", [{"text": "a", "text_pair": "b"}], ["line 1: field 'score' or 'label' is missing"]),
        ("sentences", "x.jsonl", [{"text": "a", "text_pair": "b", "score": 1}], ["needs at least 2 samples"]),
        ("entities", "x.conll", "Ada B-PER\nwrote\n", ["line 2: expected a token and its tag, found 'wrote'", "takes CoNLL"]),
        ("entities", "x.conll", "\n-DOCSTART- O\n", ["holds no sentence"]),
        ("entities", "x.conll", "a O\n\nAda B-ORG\n", ["line 3: tag 'B-ORG' of 'Ada' is not one of the model's: O, B-PER"]),
        ("entities", "x.conll", "Ada O\nwrote O\n", ["no word is tagged as an entity"]),
        ("entities", "x.conll", "Ada U-PER\n", ["line 1: tag 'U-PER' of 'Ada' must be O, or begin with B-, I-, E- or S-"]),
        ("entities", "x.jsonl", [{"tokens": ["Ada", "wrote"], "tags": ["O"]}], ["line 1: has 2 tokens, but 1 in field 'tags'"]),
        ("entities", "x.jsonl", [{"tokens": ["Ada"], "ner_tags": [1]}], ["field 'ner_tags' must hold names", "found 1"]),
        ("words", "x.conll", "Ada ADJ\n", ["line 1: tag 'ADJ' of 'Ada' is not one of the model's: NOUN, VERB"]),
        ("images", "x.jsonl", [{"image": "absent.png", "label": "cat"}], ["line 1: field 'image': no such file", "absent.png"]),
        ("masks", "x.jsonl", [{"text": "[MASK]"}], ["fill-mask has no metric here", "question-answering, text-classification"]),
    ],
)  # fmt: skip
def test_wrong_data_is_told_before_anything_runs(
    models: Models, write_data: Write, name: str, file: str, data: Any, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = models(name)
    monkeypatch.setattr(cpuc.Model, "raw", None)
    with pytest.raises(cpuc.InputError) as caught:
        # That there is no such original would be told if it came to loading it.
        cpuc.evaluate(bundle, write_data(file, data), against="./no-such-model")
    for part in parts:
        assert part in str(caught.value)


def test_questions_without_answers_are_not_labelled(fp32: Path, write_data: Write) -> None:
    for answers in ({}, {"answers": []}):
        path = write_data("x.json", {"data": [{"paragraphs": [{"context": ADA, "qas": [{"question": "Who?", **answers}]}]}]})
        with pytest.raises(cpuc.InputError, match=r"answers' is missing|no question has an answer: the data is not labelled"):
            cpuc.evaluate(fp32, path)
    with pytest.raises(cpuc.InputError, match=r"x.jsonl: line 1: field 'answers' must be a list of objects"):
        cpuc.evaluate(fp32, write_data("x.jsonl", [{"question": "Who?", "context": ADA, "answers": [3]}]))


def test_wrong_options_and_models_are_told(fp32: Path, minilm: Path, models: Models, write_data: Write) -> None:
    data = write_data("dev.json", squad(QUESTIONS, marked=True))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"top_k": 3}, "evaluating question-answering has no option 'top_k'; it has max_seq_length, doc_stride"),
        ({"max_seq_length": 1000}, "max_seq_length is 1000, but the model takes at most 512"),
        ({"limit": 0}, "limit is 0, must be at least 1"),
        ({"revision": "main"}, "give --against"),
        (
            {"against": str(models("verdicts")[1])},
            "the weights lack 'qa_outputs.bias' and 1 more: the model was not trained for question-answering",
        ),
    ]
    for options, message in cases:
        with pytest.raises(cpuc.CpucError, match=message):
            cpuc.evaluate(fp32, data, **options)
    texts = write_data("texts.jsonl", [{"text": "a", "label": 0}])
    with pytest.raises(
        cpuc.InputError, match=r"the original model \(topics\) cannot be compared: labels a, b, c instead of bad, good"
    ):
        cpuc.evaluate(models("verdicts")[0], texts, against=str(models("topics")[1]))
    with pytest.raises(cpuc.InputError, match="is a folder"):
        cpuc.evaluate(fp32, minilm)
    with pytest.raises(cpuc.InputError, match="no such file"):
        cpuc.evaluate(fp32, minilm / "absent.json")


def test_missing_libraries_are_named(fp32: Path, write_data: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seqeval", None)
    with pytest.raises(cpuc.CpucError, match=r"evaluation needs seqeval: pip install 'cpuc\[eval\]'"):
        cpuc.evaluate(fp32, write_data("dev.json", squad(QUESTIONS, marked=True)))


def test_the_command_prints_a_table_or_json(cli: Run, fp32: Path, minilm: Path, write_data: Write) -> None:
    data = write_data("dev.json", squad(QUESTIONS, marked=True))
    done = cli("eval", fp32, "--data", data, "--against", minilm, "--doc-stride", "64")
    assert (done.returncode, done.stderr) == (0, "")
    title, header, *rows = done.stdout.splitlines()
    assert title == "question-answering, bert, fp32: 8 samples of dev.json"
    assert header.split() == ["artifact", "original"]
    assert [row.split("  ")[0] for row in rows] == ["exact match", "f1", "samples/s", "tokens/s", "answers equal"]
    assert rows[-1].endswith("8 of 8")
    done = cli("eval", fp32, "--data", data, "--json", "--limit", "4")
    assert done.stderr == ""
    figures = json.loads(done.stdout)
    assert list(figures) == ["task", "precision", "data", "samples", "primary", "models", "agreement"]
    assert figures["samples"] == 4
    assert figures["agreement"] is None
    [run] = figures["models"].values()
    assert run["samples_per_second"] == pytest.approx(4 / run["seconds"])
    assert set(run["scores"]) == {"exact_match", "f1"}
    absent = cli("eval", fp32, "--data", ROOT / "absent.json")
    assert (absent.returncode, absent.stdout) == (1, "")
    assert absent.stderr.endswith("absent.json: no such file\n")
    assert cli("eval", fp32).returncode == 2
