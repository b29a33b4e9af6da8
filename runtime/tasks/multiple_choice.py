"""Multiple choice: which of several continuations or answers fits a text.

Every choice is a row of its own, the text and the choice as a pair; a softmax over the rows' scores decides, as
``AutoModelForMultipleChoice`` is trained (Zellers et al., SWAG, 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpuc.runtime.errors import InputError
from cpuc.runtime.labels import activate, with_id
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.records import reject_surrogates
from cpuc.runtime.tasks import About, Row, option
from cpuc.runtime.text import TextTask, fields_of, string_field

ABOUT = About(
    takes="a record with text and a list of choices",
    gives="the number of the best choice (from 0), its text, and the probability of each",
    example={"text": "She put the dough into the oven.", "choices": ["It began to rise.", "It began to rain."]},
    answer={"choice": 0, "text": "It began to rise.", "scores": [0.97, 0.03]},
)


@dataclass(frozen=True)
class Options:
    truncate: bool = option(False, "Cut texts that are longer than the model allows.")


@dataclass(frozen=True)
class Choices:
    """A record: a text and what may follow it or answer it."""

    text: str
    choices: list[str]
    id: Any = None
    where: str = "the record"


@dataclass(frozen=True)
class Choice:
    """The best choice: its position, its text, and the probabilities of all."""

    choice: int
    text: str
    scores: list[float]
    id: Any = None

    def to_json(self) -> dict[str, Any]:
        return with_id(self.id, {"choice": self.choice, "text": self.text, "scores": self.scores})


class MultipleChoice(TextTask):
    """See `cpuc.runtime.tasks.Task`."""

    name = "multiple-choice"
    options_type = Options

    def parse(self, value: Any, where: str) -> Choices:
        if isinstance(value, Choices):
            return value
        record, where = fields_of(value, where, '{"text": …, "choices": […]}')
        text = string_field(record, "text", where)
        choices = record.get("choices")
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(each, str) and each for each in choices):
            raise InputError(f"{where}: field 'choices' must be a list of at least two strings that are not empty")
        for choice in choices:
            reject_surrogates(choice, f"{where}: field 'choices'")
        return Choices(text, choices, record.get("id"), where)

    def encode(self, record: Choices, options: Options) -> list[Row]:
        cut = "longest_first" if options.truncate else None
        return [
            self.encoder.row(self.encoder.encode(record.text, choice, f"{record.where}: choice {i}", cut=cut))
            for i, choice in enumerate(record.choices)
        ]

    def decode(
        self,
        record: Choices,
        rows: list[Row],  # noqa: ARG002
        outputs: list[dict[str, np.ndarray]],
        options: Options,  # noqa: ARG002
    ) -> Choice:
        scores = activate(np.array([output["logits"][0] for output in outputs]), "softmax")
        best = int(scores.argmax())
        return Choice(best, record.choices[best], [float(score) for score in scores], record.id)


def load(manifest: Manifest, read: Callable[[str], bytes]) -> MultipleChoice:
    """The task of `manifest`, whose extra files `read` gives by name."""
    return MultipleChoice(manifest, read("tokenizer.json"))
