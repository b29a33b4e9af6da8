"""Models and labelled data for the tests of evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from media_models import make_media_model
from test_embeddings import sentence_folder
from test_text_tasks import named
from tiny import make_model

import cpuc

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXT = "text-classification"
# So large random weights that a model says not the same of everything.
DECIDED = {"initializer_range": 0.3}
# Random models by name: task, kind and configuration.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "verdicts": (TEXT, "bert", {**named(["bad", "good"]), **DECIDED}),
    "topics": (TEXT, "bert", {**named(["a", "b", "c"]), **DECIDED, "problem_type": "multi_label_classification"}),
    "reranker": (TEXT, "bert", {"num_labels": 1}),
    "regression": (TEXT, "bert", {"num_labels": 2, "problem_type": "regression"}),
    "entities": ("token-classification", "bert", {**named(TAGS), **DECIDED}),
    "entities of bytes": ("token-classification", "roberta", {**named(TAGS), **DECIDED}),
    "words": ("token-classification", "bert", named(["NOUN", "VERB"])),
    "images": ("image-classification", "vit", {**named(["bird", "cat", "dog"]), **DECIDED}),
    "sounds": ("audio-classification", "wav2vec2", named(["bell", "knock"])),
    "masks": ("fill-mask", "bert", {}),
    "sentences": ("sentence-embeddings", "bert", {}),
}
Models = Callable[[str], tuple[Path, Path]]
Write = Callable[[str, Any], Path]


def model_maker(scratch: Path) -> Models:
    """Gives the bundle and the folder of a model in MODELS, made when first asked for."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in made:
            task, kind, settings = MODELS[name]
            folder = scratch / name
            if task == "sentence-embeddings":
                folder.mkdir()
                sentence_folder(folder, {"pooling_mode_mean_tokens": True})
            else:
                (make_media_model if task.startswith(("image", "audio")) else make_model)(folder, kind, task, **settings)
            cpuc.compile(str(folder), folder / "model.pt", task=task, verify=False)
            made[name] = folder / "model.pt", folder
        return made[name]

    return make


def data_writer(folder: Path) -> Write:
    """Writes data to a file: text as it is, a list as JSON Lines, anything else as JSON."""

    def put(name: str, data: Any) -> Path:
        path = folder / name
        lines = "\n".join(json.dumps(line) for line in data) if isinstance(data, list) else json.dumps(data)
        path.write_text(data if isinstance(data, str) else lines)
        return path

    return put


ADA = "Ada Lovelace wrote the first program in London in 1843, for a machine of Charles Babbage."
TEA = "The tea came to Assam by ship; it was sold in Calcutta. " * 12
QUESTIONS: list[tuple[str, str, list[str]]] = [
    (ADA, "Who wrote the first program?", ["Lady Lovelace", "ada lovelace."]),
    (ADA, "Where was it written?", ["the London"]),
    (ADA, "Whose machine was it?", ["Babbage, of London"]),
    (TEA, "Where was the tea sold?", ["Calcutta", "the"]),
    (TEA, "How did the tea come?", ["by a ship"]),
    (TEA, "What is the colour of the moon on Sundays?", []),
    (ADA, "What did the cheese cost?", []),
    (ADA, "Which word is no answer?", ["The", "..."]),
]


def squad(questions: list[tuple[str, str, list[str]]], *, marked: bool) -> dict[str, Any]:
    """SQuAD's JSON, of version 2.0 if questions are marked as possible or not."""
    paragraphs = []
    for i, (context, question, texts) in enumerate(questions):
        item = {"id": str(i), "question": question, "answers": [{"text": text, "answer_start": 0} for text in texts]}
        paragraphs.append({"context": context, "qas": [{**item, "is_impossible": not texts} if marked else item]})
    return {"version": "v2.0" if marked else "1.1", "data": [{"title": "all", "paragraphs": paragraphs}]}
