"""Scores are those of independent implementations, and models agree with their originals."""

from __future__ import annotations

import collections
import json
import re
import string
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from evaluation import QUESTIONS, TAGS, Models, Write, squad
from PIL import Image
from scipy import stats
from sklearn import metrics
from test_text_tasks import TEXTS

import cpuc
from cpuc.compiler import media_samples
from cpuc.compiler.evaluation import read_dataset, run_models
from cpuc.compiler.evaluation.datasets import Dataset
from cpuc.compiler.evaluation.scores import score_numbers
from cpuc.runtime.labels import Label


def test_ties_of_any_number_have_their_rank() -> None:
    count = 70_000  # sums of so many ranks take more than 32 bits
    answers = [Label("relevant", float(i % 1000)) for i in range(count)]
    dataset = Dataset("data", [], [], [float(i % 1000 > 989) for i in range(count)], ["relevant"])
    ranks = [np.array([answer.score for answer in answers]), np.array(dataset.references)]  # ties are alike in both
    assert score_numbers(answers, dataset)["spearman"] == pytest.approx(100 * np.corrcoef(*ranks)[0, 1], abs=1e-6)


def normalized(text: str) -> str:
    """As evaluate-v1.1.py and evaluate-v2.0.py do it."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def overlap(predicted: str, right: str) -> float:
    """F1 of the words of two answers."""
    one, other = normalized(predicted).split(), normalized(right).split()
    if not one or not other:
        return float(one == other)
    same = sum((collections.Counter(one) & collections.Counter(other)).values())
    return 2 * same / (len(one) + len(other))


def squad_scores(predicted: list[str], right: list[list[str]]) -> dict[str, float]:
    """Exact match and F1, in points."""
    pairs = list(zip(predicted, right, strict=True))
    exact = [max(normalized(answer) == normalized(text) for text in texts) for answer, texts in pairs]
    f1 = [max(overlap(answer, text) for text in texts) for answer, texts in pairs]
    return {"exact_match": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(f1))}


def test_questions_of_squad_2(fp32: Path, model: cpuc.Model, minilm: Path, write_data: Write) -> None:
    data = write_data("dev-v2.0.json", squad(QUESTIONS, marked=True))
    records = [{"question": question, "context": context} for context, question, _ in QUESTIONS]
    answers = [model(record, allow_no_answer=True, max_seq_length=64, doc_stride=16).answer for record in records]
    expected = squad_scores(answers, [[text for text in texts if normalized(text)] or [""] for _, _, texts in QUESTIONS])
    assert 20 < expected["f1"] < 100
    result = cpuc.evaluate(fp32, data, against=str(minilm), max_seq_length=64, doc_stride=16)
    for run in result.runs.values():
        assert [answer.answer for answer in run.answers] == answers
        assert run.scores == pytest.approx(expected, abs=1e-3)
        assert run.samples == len(QUESTIONS)
        # Windows of the long context count with all their tokens.
        assert run.tokens is not None and run.tokens > sum(len(re.findall(r"\w+", context)) for context, _, _ in QUESTIONS)
        assert run.seconds > 0
    assert result.agreement == {"answers_equal": len(QUESTIONS)}
    assert result.primary == "f1"
    # Whether the empty answer is one depends on all of the data.
    assert read_dataset(data, model.manifest, limit=2).options == {"allow_no_answer": True}


def test_questions_of_squad_1(fp32: Path, model: cpuc.Model, write_data: Write) -> None:
    possible = [question for question in QUESTIONS if question[2]]
    answers = [model({"question": question, "context": context}).answer for context, question, _ in possible]
    run = cpuc.evaluate(fp32, write_data("dev-v1.1.json", squad(possible, marked=False))).runs["artifact"]
    assert run.scores == pytest.approx(squad_scores(answers, [texts for *_, texts in possible]), abs=1e-3)
    # The copies on the Hub are flat and keep the answers in an object of lists.
    flat = [{"question": q, "context": c, "answers": {"text": texts, "answer_start": [0]}} for c, q, texts in possible]
    assert cpuc.evaluate(fp32, write_data("flat.jsonl", flat)).runs["artifact"].scores == run.scores


@pytest.mark.slow
def test_real_questions_are_answered_as_by_the_original(fp32: Path, minilm: Path, shared_data: Path) -> None:
    data = shared_data / "xquad-en-dev.json"
    calls: list[tuple[int, int]] = []
    result = cpuc.evaluate(fp32, data, against=str(minilm), limit=100, progress=lambda *call: calls.append(call))
    assert result.samples == 100
    assert result.agreement == {"answers_equal": 100}
    assert sum(count for count, _ in calls) == 200
    assert {total for _, total in calls} == {200}
    qas = [
        (qa["question"], paragraph["context"], [answer["text"] for answer in qa["answers"]])
        for article in json.loads(data.read_text())["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ][:100]
    answers = cpuc.load(fp32)([{"question": question, "context": context} for question, context, _ in qas])
    expected = squad_scores([answer.answer for answer in answers], [texts for *_, texts in qas])
    assert result.runs["artifact"].scores == pytest.approx(expected, abs=1e-3)


def test_two_labels(models: Models, write_data: Write) -> None:
    bundle, folder = models("verdicts")
    records = [{"text": text} for text in TEXTS] + [{"text": TEXTS[0], "text_pair": TEXTS[1]}]
    labels = ["bad", "good"]
    predicted = [labels.index(answer.label) for answer in cpuc.load(bundle)(records)]
    assert set(predicted) == {0, 1}
    # Some right, some wrong, by name and by position.
    right = [position if i % 3 else 1 - position for i, position in enumerate(predicted)]
    lines = [{**r, "label": labels[k] if i % 2 else k} for i, (r, k) in enumerate(zip(records, right, strict=True))]
    result = cpuc.evaluate(bundle, write_data("data.jsonl", lines), against=str(folder))
    expected = {
        "accuracy": metrics.accuracy_score(right, predicted),
        "macro_f1": metrics.f1_score(right, predicted, average="macro"),
        "f1_of_label_1": metrics.f1_score(right, predicted),
        "matthews": metrics.matthews_corrcoef(right, predicted),
    }
    for run in result.runs.values():
        assert run.scores == pytest.approx({name: 100 * value for name, value in expected.items()}, abs=1e-3)
    assert result.agreement == {"answers_equal": len(records)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = sum(len(tokenizer(record["text"], record.get("text_pair"))["input_ids"]) for record in records)
    assert result.runs["artifact"].tokens == result.runs["original"].tokens == tokens
    few = cpuc.evaluate(bundle, write_data("data.jsonl", lines), limit=1)
    assert few.samples == 1
    assert few.runs["artifact"].scores["matthews"] == metrics.matthews_corrcoef(right[:1], predicted[:1]) == 0


def test_several_labels_at_once(models: Models, write_data: Write) -> None:
    bundle, folder = models("topics")
    names = ["a", "b", "c"]
    given = [{each.label for each in answer.labels if each.score >= 0.5} for answer in cpuc.load(bundle)(TEXTS, top_k=3)]
    right = [{"a", "c"} if i % 2 else labels for i, labels in enumerate(given)]
    lines = [{"text": text, "labels": sorted(labels)} for text, labels in zip(TEXTS, right, strict=True)]
    result = cpuc.evaluate(bundle, write_data("data.jsonl", lines), against=str(folder))
    table = [np.array([[name in labels for name in names] for labels in each]) for each in (right, given)]
    expected = {
        "micro_f1": metrics.f1_score(*table, average="micro"),
        "macro_f1": metrics.f1_score(*table, average="macro", zero_division=0),
        "exact_match": metrics.accuracy_score(*table),
    }
    assert result.runs["artifact"].scores == pytest.approx({k: 100 * v for k, v in expected.items()}, abs=1e-3)
    assert result.agreement == {"answers_equal": len(TEXTS)}
    assert result.primary == "micro_f1"


def test_numbers(models: Models, write_data: Write) -> None:
    bundle, folder = models("reranker")
    records = [{"text": text, "text_pair": TEXTS[0]} for text in TEXTS]
    predicted = [answer.score for answer in cpuc.load(bundle)(records)]
    right = [len(text) / 7 for text in TEXTS]
    lines = [{**record, "score": number} for record, number in zip(records, right, strict=True)]
    result = cpuc.evaluate(bundle, write_data("data.jsonl", lines), against=str(folder))
    scores = result.runs["artifact"].scores
    assert scores["pearson"] == pytest.approx(100 * stats.pearsonr(predicted, right)[0], abs=1e-2)
    assert scores["spearman"] == pytest.approx(100 * stats.spearmanr(predicted, right)[0], abs=1e-3)
    assert result.primary == "spearman"
    assert 0 < result.agreement["largest_difference"] < 1e-4
    # A model that says one thing has no correlation.
    same = [{"text": TEXTS[0], "score": number} for number in (1, 2, 3)]
    figures = cpuc.evaluate(bundle, write_data("same.jsonl", same)).to_json()
    assert figures["models"]["artifact"]["scores"] == {"pearson": None, "spearman": None}


def test_pairs_of_sentences(models: Models, write_data: Write) -> None:
    bundle, folder = models("sentences")
    texts = [text for text in TEXTS if text.strip()]
    pairs = [(texts[0], text) for text in texts[1:]]
    vectors = {text: answer.embedding for text, answer in zip(texts, cpuc.load(bundle)(texts), strict=True)}
    cosines = [vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b]) for a, b in pairs]
    right = [float(len(text) % 5) for text in texts[1:]]
    lines = [{"sentence1": a, "sentence2": b, "score": s} for (a, b), s in zip(pairs, right, strict=True)]
    result = cpuc.evaluate(bundle, write_data("sts.jsonl", lines), against=str(folder))
    assert result.runs["artifact"].scores == pytest.approx(
        {"pearson": 100 * stats.pearsonr(cosines, right)[0], "spearman": 100 * stats.spearmanr(cosines, right)[0]}, abs=1e-3
    )
    assert result.samples == len(texts)
    assert 0.99999 < result.agreement["least_cosine"] <= result.agreement["mean_cosine"] < 1.00001
    bare = write_data("texts.jsonl", [{"text": text} for text in texts])
    compared = cpuc.evaluate(bundle, bare, against=str(folder))
    assert compared.runs["artifact"].scores == {}
    assert compared.agreement.keys() == result.agreement.keys()
    with pytest.raises(cpuc.InputError, match=r"texts.jsonl: has no scores: add them, or give --against"):
        cpuc.evaluate(bundle, bare)


SENTENCES = [
    ["Ada", "Lovelace", ",", "née", "Byron", ",", "lived", "at", "St.", "James's", "Square", ",", "London", "."],
    ["🥐", "東京", "costs", "3.50€", "unbelievably-long-words", ";", "O'Neil"],
    ["a"],
    ["Bread", "\N{ZERO WIDTH SPACE}", "and", "oil", "New York"],
]


def first_token_tags(folder: Path, name: str) -> list[list[str]]:
    """What transformers says of each word: the label of its first token, "O" if it has none."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    eager = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    tagged = []
    for words in SENTENCES:
        if name == "entities":
            encoding = tokenizer(words, is_split_into_words=True, return_tensors="pt")
            owners = encoding.word_ids()
        else:  # bytes see the space before a word
            pieces = [tokenizer.tokenize((" " if i else "") + word) for i, word in enumerate(words)]
            owners = [None, *(i for i, piece in enumerate(pieces) for _ in piece), None]
            encoding = tokenizer(" ".join(words), return_tensors="pt")
        with torch.inference_mode():
            best = eager(**encoding).logits[0].argmax(-1).tolist()
        assert len(owners) == len(best)
        tagged.append([TAGS[best[owners.index(i)]] if i in owners else "O" for i in range(len(words))])
    return tagged


@pytest.mark.parametrize("name", ["entities", "entities of bytes"])
def test_a_word_has_the_tag_of_its_first_token(models: Models, write_data: Write, name: str) -> None:
    bundle, folder = models(name)
    tagged = first_token_tags(folder, name)
    assert len({tag for tags in tagged for tag in tags}) > 2
    lines = [{"tokens": words, "tags": tags} for words, tags in zip(SENTENCES, tagged, strict=True)]
    result = cpuc.evaluate(bundle, write_data("data.jsonl", lines), against=str(folder))
    for run in result.runs.values():
        assert run.scores == {"precision": 100, "recall": 100, "f1": 100, "accuracy": 100}
    assert result.agreement == {"answers_equal": len(SENTENCES)}


def test_columns_of_conll(models: Models, write_data: Write) -> None:
    bundle, folder = models("entities")
    tagged = first_token_tags(folder, "entities")
    # Two sentences, the first with one tag wrong, one of its entities cut short, or an entity too many.
    words, tags = SENTENCES[0], list(tagged[0])
    tags[0] = "O" if tags[0].endswith("LOC") else "B-LOC"
    lines = ["-DOCSTART- -X- O O", "", *(f"{w} NN B-NP {t}" for w, t in zip(words, tags, strict=True)), "", ""]
    lines += ["-DOCSTART-\tO", "", f"a\t{tagged[2][0]}"]
    path = write_data("test.conll", "\n".join(lines) + "\n")
    result = cpuc.evaluate(bundle, path)
    assert result.samples == 2
    assert result.primary == "f1"
    assert result.runs["artifact"].scores["accuracy"] == pytest.approx(100 * len(words) / (len(words) + 1))
    assert result.runs["artifact"].scores["f1"] < 100
    assert cpuc.evaluate(bundle, path, limit=1).samples == 1


def test_tags_that_are_no_entities(models: Models, write_data: Write) -> None:
    bundle, _ = models("words")
    path = write_data("data.jsonl", [{"tokens": ["a"], "tags": ["NOUN"]}, {"tokens": ["a"], "tags": ["VERB"]}])
    result = cpuc.evaluate(bundle, path)
    assert result.runs["artifact"].scores == {"accuracy": 50}
    assert result.primary == "accuracy"


def test_images_in_folders_and_files(models: Models, tmp_path: Path, write_data: Write) -> None:
    bundle, folder = models("images")
    labels = ["bird", "cat", "dog"]
    files: list[tuple[str, str]] = []
    for i, image in enumerate(media_samples.images()):
        label = labels[i % 3]
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        files.append((f"data/{label}/{i}.png", label))
        Image.fromarray(image).save(tmp_path / files[-1][0])
    (tmp_path / "data" / ".hidden").write_text("nobody's")
    answers = cpuc.load(bundle)([str(tmp_path / file) for file, _ in files])
    predicted, right = [answer.label for answer in answers], [label for _, label in files]
    result = cpuc.evaluate(bundle, tmp_path / "data", against=str(folder))
    lines = write_data("data.jsonl", [{"image": file, "label": label} for file, label in files])
    for run in (*result.runs.values(), *cpuc.evaluate(bundle, lines).runs.values()):
        assert run.scores["accuracy"] == pytest.approx(100 * metrics.accuracy_score(right, predicted))
        macro = metrics.f1_score(right, predicted, average="macro", zero_division=0)
        assert run.scores["macro_f1"] == pytest.approx(100 * macro, abs=1e-3)
        assert run.tokens is None
    assert result.agreement == {"answers_equal": len(files)}
    # The first samples of a folder are not all of one label.
    chosen = read_dataset(tmp_path / "data", cpuc.open_bundle(bundle).manifest, limit=3)
    assert chosen.references == [0, 1, 2]
    (tmp_path / "data" / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(cpuc.InputError, match=r"cat/notes.txt: field 'image': not an image"):
        cpuc.evaluate(bundle, tmp_path / "data", against="no-such-model")
    (tmp_path / "data" / "fish").mkdir()
    Image.fromarray(media_samples.images()[0]).save(tmp_path / "data" / "fish" / "0.png")
    with pytest.raises(cpuc.InputError, match=r"fish/0.png: label 'fish' is not one of the model's: bird, cat, dog"):
        cpuc.evaluate(bundle, tmp_path / "data")


def test_sounds(models: Models, tmp_path: Path, write_data: Write) -> None:
    bundle, folder = models("sounds")
    lines = []
    for i, sound in enumerate(media_samples.sounds()[:3]):
        soundfile.write(tmp_path / f"{i}.wav", sound, 16_000, subtype="FLOAT")
        lines.append({"audio": f"{i}.wav", "label": i % 2})
    result = cpuc.evaluate(bundle, write_data("data.jsonl", lines), against=str(folder))
    predicted = [answer.label for answer in cpuc.load(bundle)([str(tmp_path / line["audio"]) for line in lines])]
    right = [["bell", "knock"][line["label"]] for line in lines]
    assert result.runs["artifact"].scores["accuracy"] == pytest.approx(100 * metrics.accuracy_score(right, predicted))
    assert result.agreement == {"answers_equal": 3}


def test_any_number_of_models_takes_turns(model: cpuc.Model, write_data: Write) -> None:
    data = read_dataset(write_data("dev.json", squad(QUESTIONS * 5, marked=True)), model.manifest)
    runs = run_models({"one": model, "two": model, "three": model}, data, {"max_seq_length": 128})
    assert list(runs) == ["one", "two", "three"]
    assert runs["one"].answers == runs["two"].answers == runs["three"].answers
    assert len(runs["one"].answers) == 5 * len(QUESTIONS)
