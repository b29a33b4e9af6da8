"""Answers and references to scores, by torchmetrics, seqeval and scipy.

Every score is in points: 100 is perfect. Correlations too are times 100, so that a drop is read the same way everywhere.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from cpuc.compiler.evaluation.datasets import Dataset
from cpuc.compiler.verification import without_scores
from cpuc.runtime.errors import CpucError
from cpuc.runtime.labels import Label, Labels
from cpuc.runtime.tasks.question_answering import Answer
from cpuc.runtime.tasks.token_classification import Entities
from cpuc.runtime.vectors import Embedding

Scores = dict[str, float]
LIBRARIES = ("torchmetrics", "seqeval", "scipy")
# From this probability on a label of several counts as given.
THRESHOLD = 0.5


def check_libraries() -> None:
    """Raise CpucError unless the libraries of metrics are installed."""
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise CpucError(f"evaluation needs {' and '.join(missing)}: pip install 'cpuc[eval]'")


def score_spans(answers: Sequence[Answer], dataset: Dataset) -> Scores:
    """Exact match and F1 of SQuAD (Rajpurkar et al., 2016 and 2018)."""
    from torchmetrics.functional.text import squad

    predictions = [{"id": str(i), "prediction_text": answer.answer} for i, answer in enumerate(answers)]
    targets = [{"id": str(i), "answers": {"text": right}} for i, right in enumerate(dataset.references)]
    result = squad(predictions, targets)
    return {name: float(result[name]) for name in ("exact_match", "f1")}


def score_labels(answers: Sequence[Label], dataset: Dataset) -> Scores:
    """Accuracy, F1 averaged over the labels, for two labels F1 of the second one too, and Matthews' correlation."""
    import torch
    from torchmetrics.functional import classification as metrics

    predicted = torch.tensor([dataset.labels.index(answer.label) for answer in answers])
    expected = torch.tensor(dataset.references)
    # torchmetrics counts no fewer than two.
    count = max(len(dataset.labels), 2)
    # The correlation does not exist where one side has one label only. There torchmetrics makes up a limit from the counts;
    # scikit-learn, and with it GLUE, gives 0.
    one_sided = min(len(predicted.unique()), len(expected.unique())) < 2
    scores = {
        "accuracy": metrics.multiclass_accuracy(predicted, expected, count, average="micro"),
        "macro_f1": metrics.multiclass_f1_score(predicted, expected, count, average="macro"),
        "matthews": 0 if one_sided else metrics.multiclass_matthews_corrcoef(predicted, expected, count),
    }
    if len(dataset.labels) == 2:
        scores["f1_of_label_1"] = metrics.binary_f1_score(predicted, expected)
    return _points(scores)


def score_label_sets(answers: Sequence[Labels], dataset: Dataset) -> Scores:
    """F1 over all labels of all records, F1 averaged over the labels, and how often all labels of a record are right."""
    import torch
    from torchmetrics.functional import classification as metrics

    given = [_given(answer) for answer in answers]
    predicted = torch.tensor([[int(label in labels) for label in dataset.labels] for labels in given])
    expected, count = torch.tensor(dataset.references), len(dataset.labels)
    return _points(
        {
            "micro_f1": metrics.multilabel_f1_score(predicted, expected, count, average="micro"),
            "macro_f1": metrics.multilabel_f1_score(predicted, expected, count, average="macro"),
            "exact_match": metrics.multilabel_exact_match(predicted, expected, count),
        }
    )


def score_numbers(answers: Sequence[Label], dataset: Dataset) -> Scores:
    """How the model's values correlate with the given ones; NaN if they are all the same."""
    return _correlations([answer.score for answer in answers], dataset.references)


def score_pairs(answers: Sequence[Embedding], dataset: Dataset) -> Scores:
    """How the cosines of pairs correlate with the given scores; none for data without."""
    if not dataset.references:
        return {}
    vectors = np.stack([answer.embedding for answer in answers])
    first, second, scores = zip(*dataset.references, strict=True)
    return _correlations(_cosines(vectors[list(first)], vectors[list(second)]).tolist(), scores)


def score_entities(answers: Sequence[Entities], dataset: Dataset) -> Scores:
    """Precision, recall and F1 of whole entities as conlleval counts them, and the share of right words."""
    from seqeval import metrics

    expected, predicted = _expected_tags(dataset), _predicted_tags(answers, dataset)
    precision, recall, f1, _ = metrics.sequence_labeling.precision_recall_fscore_support(
        expected, predicted, average="micro", zero_division=0
    )
    accuracy = metrics.accuracy_score(expected, predicted)
    return _points({"precision": precision, "recall": recall, "f1": f1, "accuracy": accuracy})


def score_words(answers: Sequence[Entities], dataset: Dataset) -> Scores:
    """The share of words that got the right tag."""
    from seqeval import metrics

    return _points({"accuracy": metrics.accuracy_score(_expected_tags(dataset), _predicted_tags(answers, dataset))})


def _expected_tags(dataset: Dataset) -> list[list[str]]:
    return [[tag for _, tag in sentence] for sentence in dataset.references]


def _predicted_tags(answers: Sequence[Entities], dataset: Dataset) -> list[list[str]]:
    """The label of each word's first token; "O" for a word of which the tokenizer keeps nothing.

    A space belongs to the word after it, as tokenizers have it that make a token of it.
    """
    sentences = []
    for answer, sentence in zip(answers, dataset.references, strict=True):
        tags, tokens, start, i = [], answer.entities, 0, 0
        for word, _ in sentence:
            while i < len(tokens) and tokens[i].end < start:
                i += 1
            end = start + len(word)
            tags.append(tokens[i].label if i < len(tokens) and tokens[i].start < end else "O")
            start = end + 1
        sentences.append(tags)
    return sentences


def equal_answers(first: Sequence[Any], second: Sequence[Any]) -> dict[str, float]:
    """How many answers of two models are the same, scores aside."""
    pairs = zip(first, second, strict=True)
    return {"answers_equal": sum(without_scores(a.to_json()) == without_scores(b.to_json()) for a, b in pairs)}


def equal_label_sets(first: Sequence[Labels], second: Sequence[Labels]) -> dict[str, float]:
    """How many records two models give the same labels."""
    return {"answers_equal": sum(_given(a) == _given(b) for a, b in zip(first, second, strict=True))}


def closest_numbers(first: Sequence[Label], second: Sequence[Label]) -> dict[str, float]:
    """How far the values of two models lie apart."""
    differences = [abs(a.score - b.score) for a, b in zip(first, second, strict=True)]
    return {"largest_difference": max(differences), "mean_difference": sum(differences) / len(differences)}


def closest_vectors(first: Sequence[Embedding], second: Sequence[Embedding]) -> dict[str, float]:
    """The cosines between the embeddings of two models."""
    cosines = _cosines(*(np.stack([answer.embedding for answer in answers]) for answers in (first, second)))
    return {"least_cosine": float(cosines.min()), "mean_cosine": float(cosines.mean())}


def _given(answer: Labels) -> set[str]:
    return {label.label for label in answer.labels if label.score >= THRESHOLD}


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The cosine between each two rows; shapes [rows, dimensions]."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(axis=1) / np.maximum(lengths, 1e-12))


def _correlations(predicted: Sequence[float], expected: Sequence[float]) -> Scores:
    from scipy import stats  # torchmetrics adds ranks up in 32 bits: 65,536 equal scores are too many

    if len(set(predicted)) < 2 or not np.isfinite(predicted).all():
        return dict.fromkeys(("pearson", "spearman"), float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that values lie close together
        correlations = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}
        return _points({name: correlate(predicted, expected).statistic for name, correlate in correlations.items()})


def _points(scores: dict[str, Any]) -> Scores:
    return {name: 100 * float(value) for name, value in scores.items()}
