"""The text tasks answer as the pipelines of transformers do, eager and in float32, on the same random models."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import Run
from tiny import make_model

import cpuc
from cpuc.compiler import samples
from cpuc.compiler.tasks import TASKS

TEXTS = [
    *(record["text"] for record in samples.texts()),
    "Zoë 🥐 paid 3 € — in São Paulo, on 12.10.2021!",
    "naïve café\u0301 ﬁne\u00a0spaced  twice\nand a new line",
    "東京 is Tokyo; Привет, мир; مرحبا",
    "a",
]
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
VERDICTS = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
KINDS = ["bert", "roberta"]
Compiled = tuple[cpuc.Model, Any]


def compiled(folder: Path, kind: str, task: str, **overrides: Any) -> Compiled:
    """The artifact of a random model, and the oracle's pipeline for it."""
    make_model(folder / kind, kind, task, max_position_embeddings=600, **overrides)
    cpuc.compile(str(folder / kind), folder / "model.pt", task=task)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / kind)
    auto_class = getattr(transformers, TASKS[task].auto_class)
    eager = auto_class.from_pretrained(folder / kind, attn_implementation="eager")
    pipeline = transformers.pipeline(task, model=eager, tokenizer=tokenizer, device="cpu")
    return cpuc.load(folder / "model.pt", warm_up=False), pipeline


def named(labels: list[str]) -> dict[str, Any]:
    """The part of a configuration that names labels."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def assert_same(actual: Any, expected: Any) -> None:
    """Equal but for floats, which may differ by 1e-4."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(actual[key], value)
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float | np.floating):
        assert actual == pytest.approx(float(expected), abs=1e-4)
    else:
        assert actual == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "overrides",
    [
        {"num_labels": 3},
        {"num_labels": 4, "problem_type": "multi_label_classification"},
        {"num_labels": 1, "problem_type": "regression"},
        {"num_labels": 1},
    ],
    ids=["single", "multi-label", "regression", "reranker"],
)
def test_text_classification(kind: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    model, oracle = compiled(tmp_path, kind, "text-classification", **overrides)
    for answer, expected in zip(model(TEXTS), oracle(TEXTS), strict=True):
        assert_same(answer.to_json(), expected)
    for answer, expected in zip(model(TEXTS, top_k=3), oracle(TEXTS, top_k=3), strict=True):
        assert_same(answer.to_json(), {"labels": expected})
    pair = {"text": TEXTS[0], "text_pair": TEXTS[6]}
    assert_same(model(pair).to_json(), oracle(pair))


def test_bart_reads_the_last_end_of_each_text_however_many_there_are(tmp_path: Path) -> None:
    model, oracle = compiled(tmp_path, "bart", "text-classification", num_labels=3, eos_token_id=3)  # [SEP]
    records = [{"text": TEXTS[1], "text_pair": TEXTS[0]}, {"text": TEXTS[0]}, {"text": "bread [SEP] oil [SEP] snow"}]
    for record, answer in zip(records, model(records, top_k=3), strict=True):
        assert_same(answer.to_json(), {"labels": oracle(record, top_k=3)})


def test_truncation_keeps_the_side_that_the_tokenizer_names(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "bert", "bert", "text-classification", num_labels=3)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "truncation_side": "left"}))
    cpuc.compile(str(folder), tmp_path / "model.pt")
    model = cpuc.load(tmp_path / "model.pt", warm_up=False)
    assert_same(model("oil " * 300 + "bread " * 254, truncate=True).to_json(), model("bread " * 254).to_json())


@pytest.mark.parametrize("kind", KINDS)
def test_token_classification(kind: str, tmp_path: Path) -> None:
    model, oracle = compiled(tmp_path, kind, "token-classification", **named(LABELS))
    seen = set()
    for strategy in ("none", "simple", "first", "average", "max"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a byte-level tokenizer does not know words
            expected = oracle(TEXTS, aggregation_strategy=strategy)
        for answer, entities in zip(model(TEXTS, aggregation_strategy=strategy), expected, strict=True):
            assert_same(answer.to_json(), {"entities": entities})
            seen |= {entity.label for entity in answer.entities}
    # What a random model finds is chance, but it is more than one thing.
    assert seen & {"PER", "LOC"}
    assert len(seen) > 2, seen
    ignored = model(TEXTS[0], ignore_labels=["O", "I-LOC"]).entities
    assert ignored
    assert not {entity.label for entity in ignored} & {"O", "I-LOC"}


@pytest.mark.parametrize("kind", KINDS)
def test_fill_mask(kind: str, tmp_path: Path) -> None:
    model, oracle = compiled(tmp_path, kind, "fill-mask")
    mask = oracle.tokenizer.mask_token
    texts = [f"The bakery opens at {mask}.", f"{mask} kept the light.", f"Bread, {mask} 's, {mask} and {mask} !"]
    for text, expected in zip(texts, oracle(texts), strict=True):
        assert_same(model(text).to_json(), {"predictions": expected})
    # A byte-level tokenizer tells words by the space before them.
    targets = ["the", "of"] if kind == "bert" else [" the", " of"]
    assert_same(model(texts[0], targets=targets).to_json(), {"predictions": oracle(texts[0], targets=targets)})
    with pytest.raises(cpuc.InputError, match="the record: field 'text' has no mask token: write"):
        model("No mask here.")
    with pytest.raises(cpuc.InputError, match="targets: 'unheardof' is not one token"):
        model(texts[0], targets="unheardof")


@pytest.mark.parametrize("kind", KINDS)
def test_zero_shot_classification(kind: str, tmp_path: Path) -> None:
    model, oracle = compiled(tmp_path, kind, "zero-shot-classification", **named(VERDICTS))
    labels = ["food", "public transport", "weather"]
    for text in TEXTS:
        for multi_label in (False, True):
            expected = oracle(text, candidate_labels=labels, multi_label=multi_label)
            del expected["sequence"]
            answer = model({"text": text, "candidate_labels": labels}, multi_label=multi_label)
            assert_same(answer.to_json(), expected)
    expected = oracle(TEXTS[0], candidate_labels=labels[:1], hypothesis_template="It is about {}.")
    del expected["sequence"]
    answer = model(TEXTS[0], candidate_labels=labels[:1], hypothesis_template="It is about {}.")
    assert_same(answer.to_json(), expected)
    with pytest.raises(cpuc.InputError, match="the record: names no candidate_labels; give them there or with"):
        model(TEXTS[0])


@pytest.mark.parametrize("kind", KINDS)
def test_feature_extraction(kind: str, tmp_path: Path) -> None:
    model, oracle = compiled(tmp_path, kind, "feature-extraction")
    for text, answer in zip(TEXTS, model(TEXTS), strict=True):
        assert np.allclose(answer.features, np.array(oracle(text))[0], atol=1e-4)
    assert answer.to_json() == {"features": answer.features.tolist()}


def test_multiple_choice_equals_the_model(tmp_path: Path) -> None:
    make_model(tmp_path / "bert", "bert", "multiple-choice")
    cpuc.compile(str(tmp_path / "bert"), tmp_path / "model.pt")
    model = cpuc.load(tmp_path / "model.pt", warm_up=False)
    assert model.manifest.task == "multiple-choice"
    eager = transformers.AutoModelForMultipleChoice.from_pretrained(tmp_path / "bert", attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "bert")
    for record in samples.choices():
        pairs = [record["text"]] * len(record["choices"]), record["choices"]
        encoded = tokenizer(*pairs, padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits = eager(**{name: tensor[None] for name, tensor in encoded.items()}).logits[0]
        answer = model(record)
        assert answer.scores == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
        assert answer.choice == int(logits.argmax())
        assert answer.text == record["choices"][answer.choice]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a random classifier of texts of at most 400 tokens."""
    folder = tmp_path_factory.mktemp("classifier")
    make_model(folder / "bert", "bert", "text-classification", num_labels=3, max_position_embeddings=400)
    cpuc.compile(str(folder / "bert"), folder / "model.pt")
    return folder / "model.pt"


def test_a_text_that_is_too_long_is_refused_or_cut(classifier: Path) -> None:
    model = cpuc.load(classifier, warm_up=False)
    long = "bread " * 500
    with pytest.raises(cpuc.InputError, match="record 2: is 502 tokens long, the model takes at most 400: shorten it, or"):
        model(["short", long])
    assert_same(model(long, truncate=True).to_json(), model("bread " * 398).to_json())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (7, 'the record: expected a string or {"text": …, "text_pair": …}, found int'),
        ({}, "the record: field 'text' is missing"),
        ({"id": 3, "text": None}, "the record (id 3): field 'text' must be a string, found NoneType"),
        ({"text": "  "}, "the record: field 'text' is empty"),
        ({"text": "\ud800"}, "the record: field 'text' has half a surrogate pair at character 0"),
        ({"text": "a", "text_pair": 4}, "the record: field 'text_pair' must be a string, found int"),
    ],
)
def test_wrong_records(classifier: Path, record: Any, message: str) -> None:
    with pytest.raises(cpuc.InputError) as error:
        cpuc.load(classifier, warm_up=False)(record)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0, must be a whole number of at least 1"),
        ({"truncate": "yes"}, "truncate is 'yes', must be true or false"),
        ({"doc_stride": 5}, "text-classification has no option 'doc_stride'; it has top_k, truncate"),
    ],
)
def test_wrong_options(classifier: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(cpuc.InputError) as error:
        cpuc.load(classifier, warm_up=False)("text", **options)
    assert str(error.value) == message


def test_the_command_line_takes_strings_records_and_lines(classifier: Path, cli: Run) -> None:
    one = json.loads(cli("run", classifier, "--input", "-", stdin='"warm bread"').stdout)
    assert one == json.loads(cli("run", classifier, "--input", "-", stdin='{"text": "warm bread"}').stdout)
    lines = cli("run", classifier, "--input", "-", "--top-k", 2, stdin='{"id": 1, "text": "warm bread"}\n"cold"\n').stdout
    first, second = map(json.loads, lines.splitlines())
    assert first["id"] == 1
    assert_same(first["labels"][0], one)
    assert len(second["labels"]) == 2
    failed = cli("run", classifier, "--input", "-", "--allow-no-answer", stdin='"text"')
    assert failed.returncode == 1
    assert failed.stderr == "cpuc: text-classification has no option 'allow_no_answer'; it has top_k, truncate\n"
