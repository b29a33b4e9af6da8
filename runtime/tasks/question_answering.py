"""Extractive question answering: a question and a context in, spans of the context out.

Windows and decoding give what the question-answering pipeline of transformers 4.57 gave
(``transformers/pipelines/question_answering.py``; span scores after Chen et al., DrQA, 2017), with one difference:
a span that ends before it starts, which that pipeline could return with score 0, is never an answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers

from cpuc.runtime.errors import BundleError, CpucError, InputError
from cpuc.runtime.labels import with_id
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.tasks import About, Row, option
from cpuc.runtime.text import TextTask, fields_of, string_field

ABOUT = About(
    takes="a question and a context; long contexts are split into windows; SQuAD's own JSON is read too",
    gives="the span of the context that answers: its text, probability, and offsets in Unicode characters",
    example={"question": "Who wrote it?", "context": "Ada Lovelace wrote it in London."},
    answer={"answer": "Ada Lovelace", "score": 0.98, "start": 0, "end": 12},
)
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
        return with_id(self.id, {"answer": self.answer, "score": self.score, "start": self.start, "end": self.end})


@dataclass(frozen=True)
class Answers:
    """The best answers of one record, best first; what ``top_k`` asks for."""

    answers: list[Answer]
    id: Any = None

    def to_json(self) -> dict[str, Any]:
        return with_id(self.id, {"answers": [dataclasses.replace(each, id=None).to_json() for each in self.answers]})


@dataclass(frozen=True)
class Options:
    """Lengths are in tokens; None stands for 384 and 128, or less if the model allows less."""

    top_k: int | None = option(None, "Give this many results to each record, as a list.", minimum=1)
    max_seq_length: int | None = option(None, "Tokens in a window.  [default: 384, or what the model allows]", minimum=1)
    doc_stride: int | None = option(None, "Tokens that windows of a long context share.  [default: 128]", minimum=0)
    max_answer_length: int = option(30, "Tokens in an answer.", minimum=1)
    allow_no_answer: bool = option(False, "Let the empty answer compete with the others.")


@dataclass(frozen=True)
class _Window:
    """What decoding needs of one window; the masks have shape [tokens]."""

    encoding: tokenizers.Encoding
    in_context: np.ndarray
    # The context, and CLS, whose probability is that of no answer.
    allowed: np.ndarray


class QuestionAnswering(TextTask):
    """See `cpuc.runtime.tasks.Task`."""

    name = "question-answering"
    options_type = Options
    outputs = ("start_logits", "end_logits")

    def __init__(self, manifest: Manifest, tokenizer_json: bytes) -> None:
        super().__init__(manifest, tokenizer_json)
        # The side of a pair that the context is on: XLNet's tokenizers pad on the left and take the question last.
        self._side = int(self.padding_side == "right")
        self._cls_id: int | None = manifest.preprocessing.get("cls_token_id")
        if type(self._cls_id) not in (int, type(None)):
            raise BundleError("manifest.json.preprocessing: cls_token_id is wrong")

    def options(self, given: Mapping[str, Any]) -> Options:
        options: Options = super().options(given)
        limit, length = self.encoder.maximum, options.max_seq_length
        if length is None:
            length = min(DEFAULT_LENGTH, limit or DEFAULT_LENGTH)
        elif limit is not None and length > limit:
            raise InputError(f"max_seq_length is {length}, but the model takes at most {limit} tokens")
        stride = min(DEFAULT_STRIDE, length // 2) if options.doc_stride is None else options.doc_stride
        return dataclasses.replace(options, max_seq_length=length, doc_stride=stride)

    def parse(self, value: Any, where: str) -> Question:
        if isinstance(value, Question):
            return value
        record, where = fields_of(value, where, '{"question": …, "context": …}')
        question, context = (string_field(record, name, where) for name in ("question", "context"))
        return Question(question, context, record.get("id"), where)

    def encode(self, record: Question, options: Options) -> list[Row]:
        rows = []
        for encoding in self._windows(record, options):
            in_context = np.array([sequence == self._side for sequence in encoding.sequence_ids])
            allowed = in_context if self._cls_id is None else in_context | (np.asarray(encoding.ids) == self._cls_id)
            rows.append(self.encoder.row(encoding, _Window(encoding, in_context, allowed)))
        return rows

    def _windows(self, record: Question, options: Options) -> list[tokenizers.Encoding]:
        """The pair as one encoding, or several of a long context."""
        assert options.max_seq_length is not None and options.doc_stride is not None
        pair = (record.question, record.context) if self._side else (record.context, record.question)
        whole = self.encoder.tokenize(*pair, record.where)
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
        strategy = "only_second" if self._side else "only_first"
        truncating = self.encoder.truncating(options.max_seq_length, options.doc_stride, strategy)
        first = self.encoder.tokenize(*pair, record.where, truncating)
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
        if not answers:
            raise CpucError(
                f"{record.where}: the model's scores are no numbers (NaN): compare it with its original: "
                "cpuc verify BUNDLE --against MODEL"
            )
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
    # Of equal scores, of which bfloat16 has many, the first spans are best. A partition alone leaves them in any order.
    least = -np.partition(-scores, count - 1)[count - 1] if count < len(scores) else 0.0
    best = np.flatnonzero(scores >= least)
    best = best[np.argsort(-scores[best], kind="stable")][:count]
    best = best[scores[best] >= 0]
    return [(int(i // longest), int(i // longest + i % longest), float(scores[i])) for i in best]


def load(manifest: Manifest, read: Callable[[str], bytes]) -> QuestionAnswering:
    """The task of `manifest`, whose extra files `read` gives by name."""
    return QuestionAnswering(manifest, read("tokenizer.json"))
