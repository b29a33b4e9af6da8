"""What the text tasks share: records of text, and the tokenizer that makes rows of them."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers

from cpuc.runtime.errors import BundleError, InputError
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.records import reject_surrogates
from cpuc.runtime.tasks import BaseTask, Row

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Tokens in a batch, padding included. Short rows share the cost of a call; beyond this, activations leave the cache
# (on two cores 2048 was as fast in bf16 and slower in fp32).
BATCH_TOKENS = 1024
# Records encoded at a time: enough to sort by length, few enough to keep memory flat on long files.
CHUNK_RECORDS = 1024


@dataclass(frozen=True)
class Text:
    """A record: `id` is whatever the user gave, or None; `where` names it in errors."""

    text: str
    pair: str | None = None
    id: Any = None
    where: str = "the record"


def fields_of(value: Any, where: str, example: str) -> tuple[dict[str, Any], str]:
    """A record that must be an object, and its name in errors with its id. `example` is the form that is expected."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected {example}, found {type(value).__name__}")
    if "id" in value:
        where = f"{where} (id {value['id']!r})"
        reject_surrogates(json.dumps(value["id"], ensure_ascii=False, default=str), f"{where}: field 'id'")
    return value, where


def string_field(record: dict[str, Any], name: str, where: str, *, blank: bool = False) -> str:
    """A string of the record. Raises InputError if it is missing, no string, not Unicode, or (unless `blank`) empty."""
    if name not in record:
        raise InputError(f"{where}: field {name!r} is missing")
    value = record[name]
    if not isinstance(value, str):
        raise InputError(f"{where}: field {name!r} must be a string, found {type(value).__name__}")
    if not blank and not value.strip():
        raise InputError(f"{where}: field {name!r} is empty")
    reject_surrogates(value, f"{where}: field {name!r}")
    return value


def parse_text(value: Any, where: str, *, pairs: bool = False) -> Text:
    """A string, or ``{"text": …}`` with an ``id`` if there is one and, with `pairs`, a ``text_pair``."""
    if isinstance(value, Text):
        return value
    if isinstance(value, str):
        value = {"text": value}
    example = 'a string or {"text": …' + (', "text_pair": …}' if pairs else "}")
    record, where = fields_of(value, where, example)
    pair = string_field(record, "text_pair", where) if pairs and record.get("text_pair") is not None else None
    return Text(string_field(record, "text", where), pair, record.get("id"), where)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of tokenizers, which has no class of its own for them, as errors of ours."""
    try:
        yield
    except BaseException as error:
        # A panic of Rust is not an Exception, and its class is in no module that can be imported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise BundleError(f"{what}: {error}") from None
        raise


class TextEncoder:
    """The bundle's tokenizer, and the rows of the model's signature that it makes. Calls may come from several threads.

    Raises BundleError if the manifest's inputs are not those of a text model.
    """

    def __init__(self, manifest: Manifest, tokenizer_json: bytes) -> None:
        self.names = [spec.name for spec in manifest.inputs]
        if not {"input_ids"} <= set(self.names) <= set(INPUTS) or "sequence" not in manifest.axes:
            raise BundleError("manifest.json: the inputs are not those of a text model")
        self.padding_side: str = manifest.preprocessing.get("padding_side", "")
        if self.padding_side not in ("left", "right"):
            raise BundleError("manifest.json.preprocessing: padding_side is missing or wrong")
        self._cut_side: str = manifest.preprocessing.get("truncation_side", "right")
        if self._cut_side not in ("left", "right"):
            raise BundleError("manifest.json.preprocessing: truncation_side is wrong")
        if any(spec.shape != ["batch", "sequence"] for spec in manifest.inputs):
            raise BundleError("manifest.json: the inputs are not those of a text model")
        self.maximum = manifest.axes["sequence"].maximum
        with _told("tokenizer.json cannot be read"):
            self._json = tokenizer_json.decode()
            self.tokenizer = self._make()
        # Truncation is state of a tokenizer, and threads may ask for different ones: one tokenizer for each.
        self.truncating = functools.lru_cache(maxsize=16)(self._make_truncating)

    def _make(self) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer.from_str(self._json)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def _make_truncating(self, length: int, stride: int, strategy: str, direction: str = "right") -> tokenizers.Tokenizer:
        tokenizer = self._make()
        tokenizer.enable_truncation(length, stride=stride, strategy=strategy, direction=direction)
        return tokenizer

    def tokenize(
        self, text: str, pair: str | None, where: str, tokenizer: tokenizers.Tokenizer | None = None
    ) -> tokenizers.Encoding:
        """The encoding of a text or a pair as it is, by one of `truncating` if given. Raises BundleError if that fails."""
        with _told(f"{where}: the bundle's tokenizer cannot encode it"):
            return (tokenizer or self.tokenizer).encode(text, pair)

    def row(self, encoding: tokenizers.Encoding, context: Any = None) -> Row:
        """The row of an encoding; `context` is the encoding itself unless decoding needs more."""
        ids = np.asarray(encoding.ids, np.int64)
        values = {
            "input_ids": ids,
            "token_type_ids": np.asarray(encoding.type_ids, np.int64),
            "attention_mask": np.ones_like(ids),
        }
        inputs = {name: values[name] for name in self.names}
        return Row(inputs, {"sequence": len(ids)}, encoding if context is None else context)

    def encode(
        self, text: str, pair: str | None, where: str, *, cut: str | None = None, length: int | None = None, hint: bool = True
    ) -> tokenizers.Encoding:
        """Encode a text or a pair.

        Args:
            cut: how to shorten what is too long ("longest_first", "only_first"); None refuses it.
            length: the most tokens, or what the model takes if that is less.
            hint: whether the task has the option that cuts.

        Raises InputError if the text is longer than that or has no token.
        """
        limit = min((each for each in (length, self.maximum) if each is not None), default=None)
        encoding = self.tokenize(text, pair, where)
        if limit is not None and len(encoding) > limit:
            if cut is None:
                raise InputError(
                    f"{where}: is {len(encoding)} tokens long, the model takes at most {limit}: shorten it"
                    + (", or give --truncate (truncate=True)" if hint else "")
                )
            encoding = self._cut(text, pair, where, cut, limit)
        if not len(encoding):
            raise InputError(f"{where}: has no text that the model's tokenizer knows")
        return encoding

    def _cut(self, text: str, pair: str | None, where: str, cut: str, limit: int) -> tokenizers.Encoding:
        if cut == "only_first" and pair is not None:
            # tokenizers aborts where nothing of the first text would be left.
            rest = len(self.tokenize("", pair, where))
            if rest >= limit:
                raise InputError(f"{where}: the second text alone takes {rest} tokens, the model takes at most {limit}")
        return self.tokenize(text, pair, where, self.truncating(limit, 0, cut, self._cut_side))


# What tokenizers of old WordPiece and CTC models are asked to tidy up when they decode, in this order
# (PreTrainedTokenizerBase.clean_up_tokenization in transformers).
_SPACED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def tidy(text: str) -> str:
    """`text` without the spaces before punctuation and contractions that joining tokens leaves."""
    for spaced in _SPACED:
        text = text.replace(spaced, spaced.strip())
    return text


class TextTask(BaseTask):
    """What every text task is built on: `encoder`, and how its rows are batched. Records are texts unless it says otherwise."""

    batch_budget = BATCH_TOKENS
    chunk_records = CHUNK_RECORDS

    def __init__(self, manifest: Manifest, tokenizer_json: bytes) -> None:
        self.encoder = TextEncoder(manifest, tokenizer_json)
        self.padding_side = self.encoder.padding_side

    def warm_up(self) -> Row:
        """A row that the model can run, whatever the task."""
        return self.encoder.row(self.encoder.tokenize("warm up", None, "the text to warm up with"))

    def parse(self, value: Any, where: str) -> Any:
        return parse_text(value, where)

    def encode(self, record: Any, options: Any) -> list[Row]:
        """One row; options that have a ``truncate`` which is set cut what is too long."""
        cut = "longest_first" if getattr(options, "truncate", False) else None
        return [self.encoder.row(self.encoder.encode(record.text, record.pair, record.where, cut=cut))]
