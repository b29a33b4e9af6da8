"""Small random models with real layer shapes (heads of 64), in Hugging Face layout: right for shapes and coverage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from cpuc.compiler import samples
from cpuc.compiler.tasks import TASKS

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 256,
}
# Configuration beside SIZES, by model_type.
EXTRA: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 64},
    "distilbert": {
        "dim": 128,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 512,
        "max_position_embeddings": 256,
    },
    "electra": {"embedding_size": 64},
}
ROBERTA_LIKE = ("camembert", "mpnet", "roberta", "xlm-roberta")


def make_model(folder: Path, kind: str, task: str = "question-answering", **overrides: Any) -> Path:
    """Write a random model of `kind` with the head for `task`, and a tokenizer, to `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, special = _byte_level() if kind in ROBERTA_LIKE else _word_piece()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1_000_000, **special}
    if kind not in ("bert", "albert", "electra"):
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    sizes = {} if kind == "distilbert" else SIZES
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=tokenizer.get_vocab_size(),
        pad_token_id=tokenizer.token_to_id(special["pad_token"]),
        **{**sizes, **EXTRA.get(kind, {}), **overrides},
    )
    torch.manual_seed(0)
    model = getattr(transformers, TASKS[task].auto_class).from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Fresh biases are zero and fresh norms are one: a graph that dropped or swapped them would go unnoticed.
            parameter.add_(torch.randn_like(parameter), alpha=0.05 if "weight" in name else 0.2)
    model.save_pretrained(folder)
    return folder


def _texts() -> list[str]:
    return [record[field] for record in samples.questions() for field in ("question", "context")]


def _word_piece() -> tuple[Tokenizer, dict[str, str]]:
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=list(special.values()), show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ids)
    return tokenizer, special


def _byte_level() -> tuple[Tokenizer, dict[str, str]]:
    special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ids)
    return tokenizer, special
