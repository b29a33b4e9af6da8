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
    "text-classification": {
        "distilbert-base-uncased-finetuned-sst-2-english": "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        "twitter-roberta-base-sentiment-latest": "cardiffnlp/twitter-roberta-base-sentiment-latest",
        "ms-marco-MiniLM-L6-v2": "cross-encoder/ms-marco-MiniLM-L6-v2",
        "bge-reranker-base": "BAAI/bge-reranker-base",
    },
    "token-classification": {
        "bert-base-NER": "dslim/bert-base-NER",
        "xlm-roberta-large-finetuned-conll03-english": "FacebookAI/xlm-roberta-large-finetuned-conll03-english",
    },
    "fill-mask": {
        "bert-base-uncased": "google-bert/bert-base-uncased",
        "bert-base-cased": "google-bert/bert-base-cased",
        "distilbert-base-uncased": "distilbert/distilbert-base-uncased",
        "roberta-base": "FacebookAI/roberta-base",
        "xlm-roberta-base": "FacebookAI/xlm-roberta-base",
        "ModernBERT-base": "answerdotai/ModernBERT-base",
    },
    "sentence-embeddings": {
        "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2",
        "all-mpnet-base-v2": "sentence-transformers/all-mpnet-base-v2",
        "paraphrase-multilingual-MiniLM-L12-v2": "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        "bge-small-en-v1.5": "BAAI/bge-small-en-v1.5",
        "bge-base-en-v1.5": "BAAI/bge-base-en-v1.5",
        "e5-small-v2": "intfloat/e5-small-v2",
        "multilingual-e5-small": "intfloat/multilingual-e5-small",
    },
    "image-classification": {
        "vit-base-patch16-224": "google/vit-base-patch16-224",
        "resnet-50": "microsoft/resnet-50",
        "convnext-tiny-224": "facebook/convnext-tiny-224",
        "swin-tiny-patch4-window7-224": "microsoft/swin-tiny-patch4-window7-224",
    },
    "image-feature-extraction": {
        "dinov2-small": "facebook/dinov2-small",
        "dinov2-base": "facebook/dinov2-base",
    },
    "audio-classification": {
        "ast-finetuned-audioset": "MIT/ast-finetuned-audioset-10-10-0.4593",
    },
    "automatic-speech-recognition": {
        "wav2vec2-base-960h": "facebook/wav2vec2-base-960h",
        "hubert-large-ls960-ft": "facebook/hubert-large-ls960-ft",
    },
}


def hub_id(name: str) -> str | None:
    """The Hub id behind a short name, whatever its case, or None."""
    known = {short.lower(): full for names in SHORT_NAMES.values() for short, full in names.items()}
    return known.get(name.lower())


def all_names() -> list[str]:
    """Every short name, sorted."""
    return sorted(name for names in SHORT_NAMES.values() for name in names)
