"""Zero-shot classification: labels that the user names, judged by a model of natural language inference.

Each label becomes a hypothesis ("This example is {}.") whose entailment the model scores (Yin et al., 2019). Scores are
those of the zero-shot-classification pipeline of transformers (``transformers/pipelines/zero_shot_classification.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpuc.runtime.errors import BundleError, InputError
from cpuc.runtime.labels import activate, read_labels, with_id
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.records import reject_surrogates
from cpuc.runtime.tasks import About, Row, option
from cpuc.runtime.text import TextTask, fields_of, string_field

ABOUT = About(
    takes="a record with text and candidate_labels, or a text with --candidate-labels for all records",
    gives="the labels and their probabilities, best first",
    example={"text": "The bread was still warm.", "candidate_labels": ["food", "politics", "sports"]},
    answer={"labels": ["food", "sports", "politics"], "scores": [0.94, 0.04, 0.02]},
)


@dataclass(frozen=True)
class Options:
    candidate_labels: str | None = option(None, "Labels for records that name none, separated by commas.")
    hypothesis_template: str = option("This example is {}.", "The sentence that a label stands in, at {}.")
    multi_label: bool = option(False, "Judge each label by itself, instead of sharing out a probability of 1.")
    truncate: bool = option(False, "Cut texts that are longer than the model allows.")


@dataclass(frozen=True)
class Candidates:
    """A record: a text and the labels to choose from; None stands for those of the option."""

    text: str
    candidate_labels: list[str] | None
    id: Any = None
    where: str = "the record"


@dataclass(frozen=True)
class Ranking:
    """The candidate labels of one record with their scores, best first."""

    labels: list[str]
    scores: list[float]
    id: Any = None

    def to_json(self) -> dict[str, Any]:
        return with_id(self.id, {"labels": self.labels, "scores": self.scores})


class ZeroShotClassification(TextTask):
    """See `cpuc.runtime.tasks.Task`."""

    name = "zero-shot-classification"
    options_type = Options

    def __init__(self, manifest: Manifest, tokenizer_json: bytes) -> None:
        super().__init__(manifest, tokenizer_json)
        labels = [label.lower() for label in read_labels(manifest)]
        entailment = [i for i, label in enumerate(labels) if label.startswith("entail")]
        if not entailment or len(labels) < 2:
            raise BundleError("manifest.json.preprocessing: labels has none that begins with 'entail'")
        self._entailment = entailment[0]
        self._contradiction = -1 if self._entailment == 0 else 0

    def options(self, given: Mapping[str, Any]) -> Options:
        labels = given.get("candidate_labels")
        if isinstance(labels, list | tuple):
            if any("," in label for label in labels if isinstance(label, str)):
                raise InputError("candidate_labels holds a comma: name such labels in the record")
            given = {**given, "candidate_labels": ",".join(map(str, labels))}
        options: Options = super().options(given)
        if options.hypothesis_template.count("{}") != 1:
            raise InputError(f"hypothesis_template is {options.hypothesis_template!r}, must have one {{}} for the label")
        return options

    def parse(self, value: Any, where: str) -> Candidates:
        if isinstance(value, Candidates):
            return value
        if isinstance(value, str):
            value = {"text": value}
        record, where = fields_of(value, where, 'a string or {"text": …, "candidate_labels": […]}')
        labels = record.get("candidate_labels")
        if isinstance(labels, str):
            labels = _split(labels)
        if labels is not None:
            _check_labels(labels, where)
        return Candidates(string_field(record, "text", where), labels, record.get("id"), where)

    def encode(self, record: Candidates, options: Options) -> list[Row]:
        labels = record.candidate_labels or _split(options.candidate_labels or "")
        if not labels:
            raise InputError(f"{record.where}: names no candidate_labels; give them there or with --candidate-labels")
        cut = "only_first" if options.truncate else None
        rows = []
        for label in labels:
            hypothesis = options.hypothesis_template.replace("{}", label)
            rows.append(self.encoder.row(self.encoder.encode(record.text, hypothesis, record.where, cut=cut), label))
        return rows

    def decode(self, record: Candidates, rows: list[Row], outputs: list[dict[str, np.ndarray]], options: Options) -> Ranking:
        logits = np.stack([output["logits"] for output in outputs])
        if options.multi_label or len(rows) == 1:
            scores = activate(logits[:, [self._contradiction, self._entailment]], "softmax")[:, 1]
        else:
            scores = activate(logits[:, self._entailment], "softmax")
        order = np.argsort(scores)[::-1]
        return Ranking([rows[i].context for i in order], [float(scores[i]) for i in order], record.id)


def _split(labels: str) -> list[str]:
    return [label.strip() for label in labels.split(",") if label.strip()]


def _check_labels(labels: Any, where: str) -> None:
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) and label.strip() for label in labels):
        raise InputError(f"{where}: field 'candidate_labels' must be a list of strings that are not empty")
    for label in labels:
        reject_surrogates(label, f"{where}: field 'candidate_labels'")


def load(manifest: Manifest, read: Callable[[str], bytes]) -> ZeroShotClassification:
    """The task of `manifest`, whose extra files `read` gives by name."""
    return ZeroShotClassification(manifest, read("tokenizer.json"))
