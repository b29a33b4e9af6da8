"""Several models on one data set, block by block, so that all of them meet the same state of the machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpuc.compiler.evaluation.datasets import Dataset, listed
from cpuc.compiler.evaluation.evaluators import evaluator_for
from cpuc.compiler.evaluation.scores import Scores
from cpuc.runtime.errors import InputError
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.model import Model

# Called with the number of answers since the last call, and how many there will be in all.
Progress = Callable[[int, int], None]
# Records in a block: as many blocks as the models need to take turns, each large enough to fill batches.
MOST_RECORDS, LEAST_RECORDS, BLOCKS = 256, 16, 8


@dataclass(frozen=True)
class Run:
    """What one model did on a data set.

    Attributes:
        answers: in the order of the data set's records.
        scores: in points; NaN is a score that does not exist.
        seconds: wall time of tokenising, running and decoding.
        samples: how many records it answered.
        tokens: how many tokens it was given, padding excluded; None for a model that takes none.
    """

    answers: list[Any]
    scores: Scores
    seconds: float
    samples: int
    tokens: int | None

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds

    @property
    def tokens_per_second(self) -> float | None:
        return None if self.tokens is None else self.tokens / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Figures without answers; a score that does not exist is null."""
        scores = {name: None if math.isnan(value) else round(value, 4) for name, value in self.scores.items()}
        return {
            "scores": scores,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "samples_per_second": self.samples_per_second,
            "tokens_per_second": self.tokens_per_second,
        }


def run_models(
    models: Mapping[str, Model], dataset: Dataset, options: Mapping[str, Any], progress: Progress = lambda *_: None
) -> dict[str, Run]:
    """Evaluate models of one task, by name, on the same data.

    Records are ordered by length and cut in blocks; each block is answered by every model, and who begins changes from
    block to block.

    Args:
        options: the task's, for all models; what the data asks for is added.
        progress: called with the number of answers since the last call and the number of all, of all models.

    Raises:
        InputError: a record that a model does not take, or models whose answers mean different things.
    """
    first = next(iter(models.values()))
    for name, model in models.items():
        _check_alike(first.manifest, model.manifest, name)
    evaluator = evaluator_for(first.manifest)
    given = complete_options(dataset, options, first)
    tokens = {name: count_tokens(model, dataset, given) for name, model in models.items()}
    answers, seconds = take_turns(models, dataset.records, dataset.names, given, evaluator.size, progress)
    return {
        name: Run(answers[name], evaluator.score(answers[name], dataset), seconds[name], len(dataset.records), tokens[name])
        for name in models
    }


def take_turns(
    models: Mapping[str, Model],
    records: Sequence[Any],
    names: Sequence[str],
    options: Mapping[str, Any],
    size: Callable[[Any], int],
    progress: Progress = lambda *_: None,
) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """The answers of each model, in the order of `records`, and the seconds that they took it.

    `names` are those of the records in errors, `size` is what they are ordered by.
    """
    for model in models.values():
        model.warm_up()
    answers: dict[str, list[Any]] = {name: [None] * len(records) for name in models}
    seconds = dict.fromkeys(models, 0.0)
    total = len(models) * len(records)
    turn = list(models)
    for block in blocks([size(record) for record in records]):
        some = [records[i] for i in block], [names[i] for i in block]
        for name in turn:
            begin = time.perf_counter()
            found = list(models[name].answers(*some, options, lambda count: progress(count, total)))
            seconds[name] += time.perf_counter() - begin
            for i, answer in zip(block, found, strict=True):
                answers[name][i] = answer
        turn = [*turn[1:], turn[0]]
    return answers, seconds


def _check_alike(first: Manifest, other: Manifest, name: str) -> None:
    """Raise InputError unless both models are of one task and, if they have labels, of the same ones."""
    for fact, one, two in (
        ("task", first.task, other.task),
        *((fact, first.preprocessing.get(fact), other.preprocessing.get(fact)) for fact in ("labels", "activation")),
    ):
        if one != two:
            raise InputError(
                f"the {name} model ({other.source.id}) cannot be compared: {fact} {_short(two)} instead of {_short(one)}"
            )


def _short(fact: Any) -> str:
    return listed(fact) if isinstance(fact, list) else str(fact)


def complete_options(dataset: Dataset, options: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The user's options, with what the data asks for and what reading the answers relies on."""
    return {**dataset.options, **options, **evaluator_for(model.manifest).fixed(dataset.labels)}


def count_tokens(model: Model, dataset: Dataset, options: Mapping[str, Any]) -> int | None:
    """The tokens that `model` makes of the records, padding excluded; None if it takes none."""
    if "sequence" not in model.manifest.axes:
        return None
    encoded = model.encoded(dataset.records, dataset.names, options)
    return sum(row.sizes["sequence"] for rows in encoded for row in rows)


def blocks(sizes: list[int]) -> Iterator[list[int]]:
    """Positions of records in blocks of like size, largest first, as the batches inside them are."""
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    size = min(MOST_RECORDS, max(LEAST_RECORDS, math.ceil(len(order) / BLOCKS)))
    for start in range(0, len(order), size):
        yield order[start : start + size]
