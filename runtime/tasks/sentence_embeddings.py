"""Sentence embeddings: one vector for a text, from a model of sentence-transformers.

Pooling and normalisation are part of the graph. Texts are cut at the length that the model's own settings name and get
the prompt that they name, as ``SentenceTransformer.encode`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpuc.runtime.errors import BundleError, InputError
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.tasks import About, Row, option
from cpuc.runtime.text import Text, TextTask
from cpuc.runtime.vectors import Embedding

ABOUT = About(
    takes="a string, or a record with text",
    gives="one vector",
    example={"text": "The bread was still warm."},
    answer={"embedding": [0.051, -0.022, 0.018]},
)


@dataclass(frozen=True)
class Options:
    prompt_name: str | None = option(None, "Which of the model's prompts to put before each text.  [default: the model's own]")


class SentenceEmbeddings(TextTask):
    """See `cpuc.runtime.tasks.Task`."""

    name = "sentence-embeddings"
    options_type = Options
    outputs = ("embedding",)

    def __init__(self, manifest: Manifest, tokenizer_json: bytes) -> None:
        super().__init__(manifest, tokenizer_json)
        facts = manifest.preprocessing
        self._length = facts.get("max_seq_length")
        self._lower = facts.get("do_lower_case") is True
        self._prompts: Any = facts.get("prompts")
        self._default = facts.get("default_prompt_name")
        bounded = self._length is None or (type(self._length) is int and self._length > 0)
        if not bounded or not isinstance(self._prompts, dict):
            raise BundleError("manifest.json.preprocessing: max_seq_length or prompts is missing or wrong")
        if not all(isinstance(prompt, str) for prompt in self._prompts.values()) or not isinstance(self._default, str | None):
            raise BundleError("manifest.json.preprocessing: a prompt or default_prompt_name is no string")

    def options(self, given: Mapping[str, Any]) -> Options:
        options: Options = super().options(given)
        if options.prompt_name is not None and options.prompt_name not in self._prompts:
            known = ", ".join(self._prompts) or "none"
            raise InputError(f"prompt_name is {options.prompt_name!r}; the model's prompts: {known}")
        return options

    def encode(self, record: Text, options: Options) -> list[Row]:
        text = self._prompts.get(options.prompt_name or self._default, "") + record.text
        text = text.lower() if self._lower else text
        return [self.encoder.row(self.encoder.encode(text, None, record.where, cut="longest_first", length=self._length))]

    def decode(
        self,
        record: Text,
        rows: list[Row],  # noqa: ARG002
        outputs: list[dict[str, np.ndarray]],
        options: Options,  # noqa: ARG002
    ) -> Embedding:
        return Embedding(np.array(outputs[0]["embedding"]), record.id)


def load(manifest: Manifest, read: Callable[[str], bytes]) -> SentenceEmbeddings:
    """The task of `manifest`, whose extra files `read` gives by name."""
    return SentenceEmbeddings(manifest, read("tokenizer.json"))
