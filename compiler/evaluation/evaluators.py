"""The table of what can be evaluated: for each task its data, its scores, and the score that models are compared by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cpuc.compiler.evaluation import readers, scores
from cpuc.compiler.evaluation.datasets import (
    Dataset,
    FormError,
    check_numbers,
    read_label,
    read_label_set,
    read_lines,
    read_number,
)
from cpuc.runtime.errors import InputError
from cpuc.runtime.labels import read_labels
from cpuc.runtime.manifest import Manifest


@dataclass(frozen=True)
class Evaluator:
    """How a model is evaluated.

    Attributes:
        form: the data that it takes, in words.
        read: the data set in a file or folder, its first samples only if a limit is given; the model's labels come third.
        score: scores in points from the answers to a data set's records. NaN is a score that does not exist.
        primary: the score that models are compared by.
        compare: figures of how well two models' answers agree.
        size: what records are ordered by, so that those of one batch are of one length.
        check: raises InputError for a data set on which the scores do not exist.
        fixed: the options of the task that reading its answers relies on, from the model's labels.
    """

    form: str
    read: Callable[[Path, int | None, list[str]], Dataset]
    score: Callable[[Sequence[Any], Dataset], scores.Scores]
    primary: str
    compare: Callable[[Sequence[Any], Sequence[Any]], dict[str, float]] = scores.equal_answers
    size: Callable[[Mapping[str, Any]], int] = lambda record: sum(map(len, record.values()))
    check: Callable[[Dataset], None] = lambda _: None
    fixed: Callable[[Sequence[str]], dict[str, Any]] = lambda _: {}


@dataclass(frozen=True)
class TaskEvaluation:
    """A task's entry: `choose` gives the evaluator that fits a model, `options` are those that a user may give."""

    choose: Callable[[Manifest], Evaluator]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Target:
    """What a classifier tells of each record: the form of its labels, and the parts of an evaluator that depend on it."""

    label: str
    reference: Callable[..., Any]
    parts: dict[str, Any] = field(default_factory=dict)


_ONE_LABEL = _Target('"label": …', read_label, {"score": scores.score_labels, "primary": "accuracy"})
_LABEL_SET = _Target(
    '"labels": […]',
    read_label_set,
    {
        "score": scores.score_label_sets,
        "primary": "micro_f1",
        "compare": scores.equal_label_sets,
        "fixed": lambda labels: {"top_k": len(labels)},
    },
)
_NUMBER = _Target(
    '"score": 0.5',
    read_number,
    {
        "score": scores.score_numbers,
        "primary": "spearman",
        "compare": scores.closest_numbers,
        "check": check_numbers,
    },
)


def _target(manifest: Manifest) -> _Target:
    """One label, several, or a number: rerankers are models of one label whose score is a number."""
    labels, activation = read_labels(manifest), manifest.preprocessing["activation"]
    if activation == "softmax":
        return _ONE_LABEL
    if len(labels) == 1:
        return _NUMBER
    if activation == "sigmoid":
        return _LABEL_SET
    raise InputError(f"the model gives {len(labels)} numbers for each record (a regression), for which there is no metric")


def _classify_texts(manifest: Manifest) -> Evaluator:
    target = _target(manifest)
    read = partial(readers.read_samples, lines=read_lines, record=readers.text_record, reference=target.reference)
    return Evaluator(f'JSON Lines or a list of {{"text": …, {target.label}}}, with "text_pair" for pairs', read, **target.parts)


def _classify_media(manifest: Manifest, kind: str) -> Evaluator:
    target = _target(manifest)
    read = partial(
        readers.read_samples,
        lines=partial(readers.read_media, field=kind),
        record=lambda line: {kind: line.fields[kind]},
        reference=target.reference,
    )
    form = f'a folder with a subfolder for each label, or JSON Lines of {{"{kind}": path, {target.label}}}'
    return Evaluator(form, read, size=lambda record: Path(record[kind]).stat().st_size, **target.parts)


def _tag_words(manifest: Manifest) -> Evaluator:
    entities = readers.has_entities(read_labels(manifest))
    return Evaluator(
        form="CoNLL columns (token first, tag last, a blank line between sentences), or JSON Lines of "
        '{"tokens": […], "tags": […]}',
        read=partial(
            readers.read_samples,
            lines=readers.read_sentences,
            record=readers.sentence_record,
            reference=readers.read_tags,
        ),
        score=scores.score_entities if entities else scores.score_words,
        primary="f1" if entities else "accuracy",
        check=readers.check_entities if entities else lambda _: None,
        # Every token is told, those outside of entities too.
        fixed=lambda _: {"aggregation_strategy": "none", "ignore_labels": ""},
    )


_QUESTIONS = Evaluator(
    form="SQuAD's JSON, version 1.1 or 2.0, with the answers to its questions",
    read=readers.read_questions,
    score=scores.score_spans,
    primary="f1",
)
_SENTENCES = Evaluator(
    form='JSON Lines or a list of {"text": …, "text_pair": …, "score": 0.5}, or {"sentence1": …, "sentence2": …, "score": 0.5}',
    read=readers.read_pairs,
    score=scores.score_pairs,
    primary="spearman",
    compare=scores.closest_vectors,
    check=check_numbers,
)

EVALUATIONS = {
    "question-answering": TaskEvaluation(
        lambda _: _QUESTIONS, ("max_seq_length", "doc_stride", "max_answer_length", "allow_no_answer")
    ),
    "text-classification": TaskEvaluation(_classify_texts, ("truncate",)),
    "token-classification": TaskEvaluation(_tag_words, ("truncate",)),
    "sentence-embeddings": TaskEvaluation(lambda _: _SENTENCES, ("prompt_name",)),
    "image-classification": TaskEvaluation(partial(_classify_media, kind="image")),
    "audio-classification": TaskEvaluation(partial(_classify_media, kind="audio")),
}


def evaluator_for(manifest: Manifest) -> Evaluator:
    """How the model of `manifest` is evaluated. Raises InputError if its task has no metric."""
    return _entry(manifest.task).choose(manifest)


def check_options(task: str, given: Mapping[str, Any]) -> None:
    """Raise InputError for an option that has no meaning in an evaluation of `task`."""
    allowed = _entry(task).options
    for name in given:
        if name not in allowed:
            raise InputError(f"evaluating {task} has no option {name!r}; it has {', '.join(allowed) or 'none'}")


def _entry(task: str) -> TaskEvaluation:
    if task not in EVALUATIONS:
        raise InputError(f"{task} has no metric here; tasks that can be evaluated: {', '.join(EVALUATIONS)}")
    return EVALUATIONS[task]


def read_dataset(path: Path, manifest: Manifest, *, limit: int | None = None) -> Dataset:
    """Read labelled data for the model of `manifest`.

    Args:
        path: a file in the form that `Evaluator.form` tells, or a folder of images or sounds.
        limit: take so many samples from the beginning.

    Raises:
        InputError: the data is not of that form, has no labels or others than the model's; the message names the line.
    """
    evaluator = evaluator_for(manifest)
    labels = manifest.preprocessing.get("labels")
    try:
        dataset = evaluator.read(path, limit, labels if isinstance(labels, list) else [])
    except FormError as error:
        raise InputError(f"{error}. Evaluating {manifest.task} takes {evaluator.form}") from None
    evaluator.check(dataset)
    return dataset
