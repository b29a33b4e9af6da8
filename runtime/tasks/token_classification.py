"""Token classification: named entities, parts of speech, with character offsets.

Tokens, words and groups are those of the token-classification pipeline of transformers
(``transformers/pipelines/token_classification.py``), whose aggregation strategies these are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers

from cpuc.runtime.labels import activate, read_labels, with_id
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.tasks import About, Row, option
from cpuc.runtime.text import Text, TextTask

ABOUT = About(
    takes="a string, or a record with text",
    gives="entities with label, score, and offsets in Unicode characters",
    example={"text": "Ada Lovelace lived in London."},
    answer={"entities": [{"entity_group": "PER", "score": 0.99, "word": "Ada Lovelace", "start": 0, "end": 12}]},
)
STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True)
class Options:
    aggregation_strategy: str = option(
        "none",
        "How tokens become entities: none (every token), simple (adjacent tokens of one label), or whole words, "
        "labelled by their first token, the average of its scores, or its most certain token.",
        choices=STRATEGIES,
    )
    ignore_labels: str = option("O", "Labels to leave out, separated by commas.")
    truncate: bool = option(False, "Cut texts that are longer than the model allows.")


@dataclass(frozen=True)
class Entity:
    """A labelled span: ``text[start:end]``, in Unicode code points. `word` is what the tokenizer makes of its tokens.

    `index` is the token's position without aggregation, None with it.
    """

    label: str
    score: float
    word: str
    start: int
    end: int
    index: int | None = None

    def to_json(self) -> dict[str, Any]:
        where = {"word": self.word, "start": self.start, "end": self.end}
        if self.index is None:
            return {"entity_group": self.label, "score": self.score, **where}
        return {"entity": self.label, "score": self.score, "index": self.index, **where}


@dataclass(frozen=True)
class Entities:
    """The entities of one record, in the order of its text."""

    entities: list[Entity]
    id: Any = None

    def to_json(self) -> dict[str, Any]:
        return with_id(self.id, {"entities": [entity.to_json() for entity in self.entities]})


@dataclass(frozen=True)
class _Token:
    """A token or a word. `scores` has shape [labels]; `continues` says that it goes on with the word before it."""

    word: str
    scores: np.ndarray
    start: int
    end: int
    index: int
    continues: bool


@dataclass(frozen=True)
class _Span:
    """A token or word with the label it was given."""

    label: str
    score: np.floating[Any]
    token: _Token


class TokenClassification(TextTask):
    """See `cpuc.runtime.tasks.Task`."""

    name = "token-classification"
    options_type = Options

    def __init__(self, manifest: Manifest, tokenizer_json: bytes) -> None:
        super().__init__(manifest, tokenizer_json)
        self._labels = read_labels(manifest)
        self._unknown = manifest.preprocessing.get("unk_token_id")
        # A tokenizer that marks how words go on says which tokens make a word.
        self._knows_words = bool(getattr(self.encoder.tokenizer.model, "continuing_subword_prefix", None))

    def options(self, given: Mapping[str, Any]) -> Options:
        ignored = given.get("ignore_labels")
        if isinstance(ignored, list | tuple):
            given = {**given, "ignore_labels": ",".join(map(str, ignored))}
        options: Options = super().options(given)
        return options

    def decode(self, record: Text, rows: list[Row], outputs: list[dict[str, np.ndarray]], options: Options) -> Entities:
        scores = activate(outputs[0]["logits"], "softmax")
        tokens = self._tokens(record.text, rows[0].context, scores)
        strategy = options.aggregation_strategy
        if strategy in ("none", "simple"):
            spans = [self._label(token.scores, token) for token in tokens]
        else:
            spans = [self._label_word(word, strategy) for word in _words(tokens)]
        if strategy == "none":
            entities = [
                Entity(span.label, float(span.score), span.token.word, span.token.start, span.token.end, span.token.index)
                for span in spans
            ]
        else:
            entities = [self._merge(group) for group in _groups(spans)]
        ignored = {label.strip() for label in options.ignore_labels.split(",")}
        return Entities([entity for entity in entities if entity.label not in ignored], record.id)

    def _tokens(self, text: str, encoding: tokenizers.Encoding, scores: np.ndarray) -> list[_Token]:
        tokens = []
        for i, word in enumerate(encoding.tokens):
            if encoding.special_tokens_mask[i]:
                continue
            start, end = encoding.offsets[i]
            if encoding.ids[i] == self._unknown:
                word, continues = text[start:end], False
            else:
                adjacent = start > 0 and " " not in text[start - 1 : start + 1]
                continues = len(word) != end - start if self._knows_words else adjacent
            tokens.append(_Token(word, scores[i], start, end, i, continues))
        return tokens

    def _label(self, scores: np.ndarray, token: _Token) -> _Span:
        best = int(scores.argmax())
        return _Span(self._labels[best], scores[best], token)

    def _label_word(self, word: list[_Token], strategy: str) -> _Span:
        whole = _Token(
            self._join([token.word for token in word]), word[0].scores, word[0].start, word[-1].end, word[0].index, False
        )
        if strategy == "first":
            return self._label(word[0].scores, whole)
        if strategy == "max":
            return self._label(max(word, key=lambda token: float(token.scores.max())).scores, whole)
        return self._label(np.mean([token.scores for token in word], axis=0), whole)

    def _merge(self, group: list[_Span]) -> Entity:
        score = float(np.mean([span.score for span in group]))
        word = self._join([span.token.word for span in group])
        return Entity(group[0].label.split("-", 1)[-1], score, word, group[0].token.start, group[-1].token.end)

    def _join(self, tokens: list[str]) -> str:
        decoder = self.encoder.tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))


def _words(tokens: list[_Token]) -> list[list[_Token]]:
    words: list[list[_Token]] = []
    for token in tokens:
        if words and token.continues:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _groups(spans: list[_Span]) -> list[list[_Span]]:
    """Adjacent spans of one label; ``B-`` begins a new group, ``I-`` or no prefix goes on with it."""
    groups: list[list[_Span]] = []
    for span in spans:
        if groups and not span.label.startswith("B-") and _tag(span.label) == _tag(groups[-1][-1].label):
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _tag(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def load(manifest: Manifest, read: Callable[[str], bytes]) -> TokenClassification:
    """The task of `manifest`, whose extra files `read` gives by name."""
    return TokenClassification(manifest, read("tokenizer.json"))
