"""Short names of well-known models, per task: what users type for what the Hub calls it."""

from __future__ import annotations

SHORT_NAMES: dict[str, dict[str, str]] = {
    "question-answering": {
        "bert-base-uncased-squad-v1": "csarron/bert-base-uncased-squad-v1",
        "bert-base-cased-squad2": "deepset/bert-base-cased-squad2",
        "bert-large-uncased-squad": "google-bert/bert-large-uncased-whole-word-masking-finetuned-squad",
        "distilbert-base-cased-distilled-squad": "distilbert/distilbert-base-cased-distilled-squad",
        "distilbert-base-uncased-distilled-squad": "distilbert/distilbert-base-uncased-distilled-squad",
        "electra-base-squad2": "deepset/electra-base-squad2",
        "minilm-uncased-squad2": "deepset/minilm-uncased-squad2",
        "roberta-base-squad2": "deepset/roberta-base-squad2",
        "tinyroberta-squad2": "deepset/tinyroberta-squad2",
        "xlm-roberta-base-squad2": "deepset/xlm-roberta-base-squad2",
    },
}


def hub_id(name: str) -> str | None:
    """The Hub id behind a short name, or None."""
    return next((names[name] for names in SHORT_NAMES.values() if name in names), None)


def all_names() -> list[str]:
    """Every short name, sorted."""
    return sorted(name for names in SHORT_NAMES.values() for name in names)
