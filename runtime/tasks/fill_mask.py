"""Fill-mask: the tokens that fit in place of the model's mask token.

Predictions are those of the fill-mask pipeline of transformers (``transformers/pipelines/fill_mask.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers

from cpuc.runtime.errors import BundleError, InputError
from cpuc.runtime.labels import activate, with_id
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.tasks import About, Row, option
from cpuc.runtime.text import Text, TextTask, tidy

ABOUT = About(
    takes="a string with the model's mask token in it, or a record with text",
    gives="for each mask the likeliest tokens: token, id, probability, and the text with the token filled in",
    example={"text": "The capital of France is [MASK]."},
    answer={
        "predictions": [
            {"score": 0.41, "token": 3000, "token_str": "paris", "sequence": "the capital of france is paris."},
        ]
    },
)
# Every token gives a score for each word of the vocabulary, a million bytes for the largest: batches are small.
BATCH_TOKENS = 256
CHUNK_RECORDS = 16


@dataclass(frozen=True)
class Options:
    top_k: int = option(5, "Give this many results to each record, as a list.", minimum=1)
    targets: str | None = option(None, "Choose among these tokens only, separated by commas (and no spaces).")


@dataclass(frozen=True)
class Prediction:
    """A token in place of the mask: its probability, id and text, and the whole text with it."""

    score: float
    token: int
    token_str: str
    sequence: str

    def to_json(self) -> dict[str, Any]:
        return {"score": self.score, "token": self.token, "token_str": self.token_str, "sequence": self.sequence}


@dataclass(frozen=True)
class Predictions:
    """For each mask of the text, in order, its predictions, best first."""

    masks: list[list[Prediction]]
    id: Any = None

    def to_json(self) -> dict[str, Any]:
        masks = [[prediction.to_json() for prediction in mask] for mask in self.masks]
        return with_id(self.id, {"predictions": masks[0] if len(masks) == 1 else masks})


class FillMask(TextTask):
    """See `cpuc.runtime.tasks.Task`."""

    name = "fill-mask"
    options_type = Options
    batch_budget = BATCH_TOKENS
    chunk_records = CHUNK_RECORDS

    def __init__(self, manifest: Manifest, tokenizer_json: bytes) -> None:
        super().__init__(manifest, tokenizer_json)
        mask = manifest.preprocessing.get("mask_token_id")
        if type(mask) is not int:
            raise BundleError("manifest.json.preprocessing: mask_token_id is missing or wrong")
        self._mask = mask
        self._tidy = manifest.preprocessing.get("clean_up_tokenization_spaces") is True

    def options(self, given: Mapping[str, Any]) -> Options:
        targets = given.get("targets")
        if isinstance(targets, list | tuple):
            given = {**given, "targets": ",".join(map(str, targets))}
        options: Options = super().options(given)
        if options.targets is not None:
            self._targets(options.targets)
        return options

    def _targets(self, targets: str) -> list[int]:
        """Ids of the tokens asked for. Raises InputError for one that is not a single token of the vocabulary."""
        tokenizer = self.encoder.tokenizer
        ids = []
        for target in filter(str.strip, targets.split(",")):
            token = tokenizer.token_to_id(target)
            if token is None:
                pieces = tokenizer.encode(target, add_special_tokens=False).ids
                if len(pieces) != 1:
                    raise InputError(f"targets: {target!r} is not one token of the model's vocabulary")
                token = pieces[0]
            if token not in ids:
                ids.append(token)
        if not ids:
            raise InputError("targets names no token")
        return ids

    def encode(self, record: Text, options: Options) -> list[Row]:  # noqa: ARG002
        encoding = self.encoder.encode(record.text, None, record.where, hint=False)
        if self._mask not in encoding.ids:
            mask = self.encoder.tokenizer.id_to_token(self._mask)
            raise InputError(f"{record.where}: field 'text' has no mask token: write {mask} where a word is missing")
        return [self.encoder.row(encoding)]

    def decode(self, record: Text, rows: list[Row], outputs: list[dict[str, np.ndarray]], options: Options) -> Predictions:
        encoding: tokenizers.Encoding = rows[0].context
        places = [i for i, token in enumerate(encoding.ids) if token == self._mask]
        probabilities = activate(outputs[0]["logits"][places], "softmax")
        candidates = None if options.targets is None else np.array(self._targets(options.targets))
        masks = []
        for place, scores in zip(places, probabilities, strict=True):
            chosen = np.arange(len(scores)) if candidates is None else candidates
            best = chosen[np.argsort(-scores[chosen], kind="stable")[: options.top_k]]
            masks.append([self._predict(encoding.ids, place, int(t), float(scores[t]), len(places) == 1) for t in best])
        return Predictions(masks, record.id)

    def _predict(self, ids: list[int], place: int, token: int, score: float, only: bool) -> Prediction:
        # With several masks the others would vanish from the text together with the special tokens.
        filled = self._decode([*ids[:place], token, *ids[place + 1 :]], skip_special_tokens=only)
        return Prediction(score, token, self._decode([token], skip_special_tokens=False), filled)

    def _decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        text = str(self.encoder.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))
        return tidy(text) if self._tidy else text


def load(manifest: Manifest, read: Callable[[str], bytes]) -> FillMask:
    """The task of `manifest`, whose extra files `read` gives by name."""
    return FillMask(manifest, read("tokenizer.json"))
