"""Speech recognition with connectionist temporal classification (Graves et al., 2006): the likeliest token of every frame.

Texts and times are those of the automatic-speech-recognition pipeline of transformers for models of this kind, without a
language model (``transformers/pipelines/automatic_speech_recognition.py``, ``Wav2Vec2CTCTokenizer``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpuc.runtime.errors import BundleError
from cpuc.runtime.labels import with_id
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.media_tasks import AudioTask, Media, collapse
from cpuc.runtime.tasks import About, Row, option
from cpuc.runtime.text import tidy

ABOUT = About(
    takes="the path of a recording, base64, or a record with audio, which may be samples with their sampling_rate",
    gives="the text; with --return-timestamps also its words or characters with the seconds they begin and end at",
    example={"audio": "speech.wav"},
    answer={"text": "THE BREAD WAS STILL WARM"},
)


@dataclass(frozen=True)
class Options:
    return_timestamps: str | None = option(None, "Say when each word, or each char, is spoken.", choices=("word", "char"))


@dataclass(frozen=True)
class Chunk:
    """A word or character, and the seconds from the beginning of the sound at which it begins and ends."""

    text: str
    start: float
    end: float

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, "timestamp": [self.start, self.end]}


@dataclass(frozen=True)
class Transcript:
    """The text of a recording; `chunks` is None unless timestamps were asked for."""

    text: str
    chunks: list[Chunk] | None = None
    id: Any = None

    def to_json(self) -> dict[str, Any]:
        chunks = {} if self.chunks is None else {"chunks": [chunk.to_json() for chunk in self.chunks]}
        return with_id(self.id, {"text": self.text, **chunks})


class AutomaticSpeechRecognition(AudioTask):
    """See `cpuc.runtime.tasks.Task`."""

    name = "automatic-speech-recognition"
    options_type = Options

    def __init__(self, manifest: Manifest, vocabulary: bytes) -> None:
        super().__init__(manifest)
        facts = manifest.preprocessing
        try:
            self._tokens: list[str] = json.loads(vocabulary)
        except (ValueError, RecursionError):
            raise BundleError("vocabulary.json is not valid JSON") from None
        if not isinstance(self._tokens, list) or not all(isinstance(token, str) for token in self._tokens):
            raise BundleError("vocabulary.json: is no list of tokens")
        names = ("pad_token", "word_delimiter_token", "replace_word_delimiter_char")
        if not all(isinstance(facts.get(name), str) for name in names):
            raise BundleError(f"manifest.json.preprocessing: one of {', '.join(names)} is missing or wrong")
        self._blank, self._delimiter, self._space = (str(facts[name]) for name in names)
        self._unknown = str(facts.get("unk_token") or "")
        self._lower = facts.get("do_lower_case") is True
        self._tidy = facts.get("clean_up_tokenization_spaces") is True
        # Seconds from one frame to the next.
        self._step = float(np.prod([stride for _, stride in self.convolutions])) / self.config.sampling_rate

    def decode(
        self,
        record: Media,
        rows: list[Row],  # noqa: ARG002
        outputs: list[dict[str, np.ndarray]],
        options: Options,
    ) -> Transcript:
        best = outputs[0]["logits"].argmax(-1).tolist()
        # Ids past the vocabulary are unknown tokens, as in transformers.
        runs = [(self._tokens[t] if t < len(self._tokens) else self._unknown, start, end) for t, start, end in collapse(best)]
        spoken = [
            (self._space if token == self._delimiter else token, start, end)
            for token, start, end in runs
            if token != self._blank
        ]
        text = "".join(token for token, _, _ in spoken).strip()
        text = text.lower() if self._lower else text
        chunks = None
        if options.return_timestamps:
            pieces = spoken if options.return_timestamps == "char" else _words(spoken, self._space)
            chunks = [Chunk(piece, start * self._step, end * self._step) for piece, start, end in pieces]
        return Transcript(tidy(text) if self._tidy else text, chunks, record.id)


def _words(spoken: list[tuple[str, int, int]], space: str) -> list[tuple[str, int, int]]:
    """Characters joined to words, from the first one's begin to the last one's end."""
    words: list[tuple[str, int, int]] = []
    inside = False
    for token, start, end in spoken:
        if token == space:
            inside = False
        elif inside:
            words[-1] = (words[-1][0] + token, words[-1][1], end)
        else:
            words.append((token, start, end))
            inside = True
    return words


def load(manifest: Manifest, read: Callable[[str], bytes]) -> AutomaticSpeechRecognition:
    """The task of `manifest`, whose extra files `read` gives by name."""
    return AutomaticSpeechRecognition(manifest, read("vocabulary.json"))
