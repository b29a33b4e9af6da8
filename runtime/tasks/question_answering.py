"""Extractive question answering: a question and a context in, spans of the context out.

Windows and decoding give what the question-answering pipeline of transformers 4.57 gave
(``transformers/pipelines/question_answering.py``; span scores after Chen et al., DrQA, 2017), with one difference:
a span that ends before it starts, which that pipeline could return with score 0, is never an answer.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers

from cpuc.runtime.errors import BundleError, InputError
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.records import reject_surrogates
from cpuc.runtime.tasks import Row, build_options

MASKED = -10000.0
DEFAULT_LENGTH, DEFAULT_STRIDE = 384, 128


@dataclass(frozen=True)
class Question:
    """A record: `id` is whatever the user gave, or None; `where` names it in errors."""

    question: str
    context: str
    id: Any = None
    where: str = "the record"


@dataclass(frozen=True)
class Answer:
    """A span: ``context[start:end] == answer``, offsets in Unicode code points, `score` a probability.

    `end` is exclusive. With ``allow_no_answer`` an empty `answer` from 0 to 0 says that there is none.
    """

    answer: str
    score: float
    start: int
    end: int
    id: Any = None

    def to_json(self) -> dict[str, Any]:
        return _with_id(self.id, {"answer": self.answer, "score": self.score, "start": self.start, "end": self.end})


@dataclass(frozen=True)
class Answers:
    """The best answers of one record, best first; what ``top_k`` asks for."""

    answers: list[Answer]
    id: Any = None

    def to_json(self) -> dict[str, Any]:
        return _with_id(self.id, {"answers": [dataclasses.replace(each, id=None).to_json() for each in self.answers]})


def _with_id(identity: Any, record: dict[str, Any]) -> dict[str, Any]:
    return record if identity is None else {"id": identity, **record}


@dataclass(frozen=True)
class Options:
    """Lengths are in tokens; None stands for 384 and 128, or less if the model allows less."""

    top_k: int | None = None
    max_seq_length: int | None = None
    doc_stride: int | None = None
    max_answer_length: int = 30
    allow_no_answer: bool = False


@dataclass(frozen=True)
class _Window:
    """What decoding needs of one window; the masks have shape [tokens]."""

    encoding: tokenizers.Encoding
    in_context: np.ndarray
    # The context, and CLS, whose probability is that of no answer.
    allowed: np.ndarray


def _check_manifest(manifest: Manifest) -> None:
    """Raise BundleError unless this task can run a bundle of this manifest."""
    inputs, outputs = {spec.name for spec in manifest.inputs}, {spec.name for spec in manifest.outputs}
    facts = manifest.preprocessing
    if not inputs <= {"input_ids", "attention_mask", "token_type_ids"} or not {"start_logits", "end_logits"} <= outputs:
        raise BundleError("manifest.json: inputs or outputs are not those of question answering")
    if "sequence" not in manifest.axes:
        raise BundleError("manifest.json: axis 'sequence' has no entry in 'axes'")
    if facts.get("padding_side") not in ("left", "right") or type(facts.get("cls_token_id")) not in (int, type(None)):
        raise BundleError("manifest.json.preprocessing: padding_side or cls_token_id is missing or wrong")


class QuestionAnswering:
    """See `cpuc.runtime.tasks.Task`."""

    def __init__(self, manifest: Manifest, tokenizer_json: bytes) -> None:
        _check_manifest(manifest)
        self._tokenizer_json = tokenizer_json.decode()
        self._tokenizer = self._make_tokenizer()
        self._names = [spec.name for spec in manifest.inputs]
        self._model_length = manifest.axes["sequence"].maximum
        # The side of a pair that the context is on: XLNet's tokenizers pad on the left and take the question last.
        self._side = int(manifest.preprocessing["padding_side"] == "right")
        self._cls_id: int | None = manifest.preprocessing["cls_token_id"]
        # Truncation is state of a tokenizer, and threads may ask for different windows: one tokenizer for each.
        self._splitting = functools.lru_cache(maxsize=16)(self._make_splitting_tokenizer)

    def _make_tokenizer(self) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer.from_str(self._tokenizer_json)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def _make_splitting_tokenizer(self, length: int, stride: int) -> tokenizers.Tokenizer:
        tokenizer = self._make_tokenizer()
        tokenizer.enable_truncation(length, stride=stride, strategy="only_second" if self._side else "only_first")
        return tokenizer

    def options(self, given: Mapping[str, Any]) -> Options:
        options: Options = build_options(Options, given, "question-answering")
        for name, value, minimum in (
            ("top_k", options.top_k, 1),
            ("max_seq_length", options.max_seq_length, 1),
            ("doc_stride", options.doc_stride, 0),
            ("max_answer_length", options.max_answer_length, 1),
        ):
            optional = value is None and name != "max_answer_length"
            if not optional and (type(value) is not int or value < minimum):
                raise InputError(f"{name} is {value!r}, must be a whole number of at least {minimum}")
        limit, length = self._model_length, options.max_seq_length
        if length is None:
            length = min(DEFAULT_LENGTH, limit or DEFAULT_LENGTH)
        elif limit is not None and length > limit:
            raise InputError(f"max_seq_length is {length}, but the model takes at most {limit} tokens")
        stride = min(DEFAULT_STRIDE, length // 2) if options.doc_stride is None else options.doc_stride
        return dataclasses.replace(options, max_seq_length=length, doc_stride=stride)

    def parse(self, value: Any, where: str) -> Question:
        if isinstance(value, Question):
            return value
        if not isinstance(value, dict):
            raise InputError(f'{where}: expected {{"question": …, "context": …}}, found {type(value).__name__}')
        if "id" in value:
            where = f"{where} (id {value['id']!r})"
        for name in ("question", "context"):
            if name not in value:
                raise InputError(f"{where}: field {name!r} is missing")
            if not isinstance(value[name], str):
                raise InputError(f"{where}: field {name!r} must be a string, found {type(value[name]).__name__}")
            if not value[name].strip():
                raise InputError(f"{where}: field {name!r} is empty")
            reject_surrogates(value[name], f"{where}: field {name!r}")
        reject_surrogates(json.dumps(value.get("id"), ensure_ascii=False), f"{where}: field 'id'")
        return Question(value["question"], value["context"], value.get("id"), where)

    def encode(self, record: Question, options: Options) -> list[Row]:
        rows = []
        for encoding in self._windows(record, options):
            ids = np.asarray(encoding.ids, np.int64)
            values = {
                "input_ids": ids,
                "token_type_ids": np.asarray(encoding.type_ids, np.int64),
                "attention_mask": np.ones_like(ids),
            }
            in_context = np.array([sequence == self._side for sequence in encoding.sequence_ids])
            allowed = in_context if self._cls_id is None else in_context | (ids == self._cls_id)
            rows.append(Row({name: values[name] for name in self._names}, _Window(encoding, in_context, allowed)))
        return rows

    def _windows(self, record: Question, options: Options) -> list[tokenizers.Encoding]:
        """The pair as one encoding, or several of a long context."""
        assert options.max_seq_length is not None and options.doc_stride is not None
        pair = (record.question, record.context) if self._side else (record.context, record.question)
        whole = self._tokenizer.encode(*pair)
        context = whole.sequence_ids.count(self._side)
        if not context:
            raise InputError(f"{record.where}: field 'context' has no text that the model's tokenizer knows")
        if len(whole) <= options.max_seq_length:
            return [whole]
        # tokenizers aborts where a stride is not shorter than its window.
        others = len(whole) - context
        room = options.max_seq_length - others
        if room <= options.doc_stride:
            raise InputError(
                f"{record.where}: the question takes {others} of {options.max_seq_length} tokens, which leaves "
                f"{max(room, 0)} for the context, no more than the stride of {options.doc_stride}: shorten the "
                "question, or give a larger --max-seq-length or a smaller --doc-stride"
            )
        first = self._splitting(options.max_seq_length, options.doc_stride).encode(*pair)
        return [first, *first.overflowing]

    def decode(
        self, record: Question, rows: list[Row], outputs: list[dict[str, np.ndarray]], options: Options
    ) -> Answer | Answers:
        found: dict[str, Answer] = {}
        no_answer = 1.0
        top_k = options.top_k or 1
        for row, output in zip(rows, outputs, strict=True):
            window: _Window = row.context
            start = _probabilities(output["start_logits"], window.allowed)
            end = _probabilities(output["end_logits"], window.allowed)
            no_answer = min(no_answer, float(start[0] * end[0]))
            allowed = window.allowed.copy()
            allowed[0] &= window.in_context[0]
            # Spans that align to the same words become one answer, so more are taken than asked for.
            for first, last, score in _best_spans(start, end, allowed, options.max_answer_length, top_k * 2 + 10):
                begin, stop = self._characters(window.encoding, first, last)
                text = record.context[begin:stop]
                known = found.get(text.lower())
                if known is None:
                    found[text.lower()] = Answer(text, score, begin, stop, record.id)
                else:
                    found[text.lower()] = dataclasses.replace(known, score=known.score + score)
        answers = list(found.values())
        if options.allow_no_answer:
            answers.append(Answer("", no_answer, 0, 0, record.id))
        answers = sorted(answers, key=lambda answer: answer.score, reverse=True)[:top_k]
        return answers[0] if options.top_k is None else Answers(answers, record.id)

    def _characters(self, encoding: tokenizers.Encoding, first: int, last: int) -> tuple[int, int]:
        """Character span of a token span, widened to whole words where the tokenizer knows words."""
        begin, end = encoding.token_to_word(first), encoding.token_to_word(last)
        if begin is not None and end is not None:
            head, tail = encoding.word_to_chars(begin, self._side), encoding.word_to_chars(end, self._side)
            if head is not None and tail is not None:
                return head[0], tail[1]
        return encoding.offsets[first][0], encoding.offsets[last][1]


def _probabilities(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Softmax over the allowed positions. Shapes [tokens]; float32."""
    masked = np.where(allowed, logits, np.float32(MASKED))
    exponentials = np.exp(masked - masked.max())
    return np.asarray(exponentials / exponentials.sum())


def _best_spans(
    start: np.ndarray, end: np.ndarray, allowed: np.ndarray, longest: int, count: int
) -> list[tuple[int, int, float]]:
    """The `count` best (first token, last token, probability), at most `longest` tokens each, best first."""
    longest = min(longest, len(start))
    ends = np.concatenate([end * allowed, np.zeros(longest - 1, end.dtype)])
    valid_ends = np.concatenate([allowed, np.zeros(longest - 1, bool)])
    view = np.lib.stride_tricks.sliding_window_view
    scores = np.where(
        allowed[:, None] & view(valid_ends, longest), start[:, None] * view(ends, longest), np.float32(-1)
    ).reshape(-1)
    best = np.argpartition(-scores, count)[:count] if count < len(scores) else np.arange(len(scores))
    best = best[np.argsort(-scores[best], kind="stable")]
    best = best[scores[best] >= 0]
    return [(int(i // longest), int(i // longest + i % longest), float(scores[i])) for i in best]


def load(manifest: Manifest, read: Callable[[str], bytes]) -> QuestionAnswering:
    """The task of `manifest`, whose extra files `read` gives by name."""
    return QuestionAnswering(manifest, read("tokenizer.json"))
