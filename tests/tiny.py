"""Small random models with real layer shapes (heads of 64), in Hugging Face layout: right for shapes and coverage."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from cpuc.compiler import samples
from cpuc.compiler.tasks import TASKS
from cpuc.runtime.text import INPUTS

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 256,
}
_BART: dict[str, Any] = {
    "d_model": 128,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "max_position_embeddings": 256,
}
_XLM: dict[str, Any] = {"emb_dim": 128, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 256}
# Configuration instead of SIZES, where an architecture has its own names for sizes, by model_type.
INSTEAD: dict[str, dict[str, Any]] = {
    "bart": _BART,
    "distilbert": {"dim": 128, "n_layers": 2, "n_heads": 2, "hidden_dim": 512, "max_position_embeddings": 256},
    "flaubert": _XLM,
    "funnel": {"d_model": 128, "n_head": 2, "d_head": 64, "d_inner": 512, "block_sizes": [1, 1], "num_decoder_layers": 1},
    "mbart": _BART,
    "xlm": _XLM,
    "xlnet": {"d_model": 128, "n_layer": 2, "n_head": 2, "d_inner": 512},
}
_DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "max_relative_positions": -1,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
}
# Configuration beside SIZES.
EXTRA: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 64},
    "convbert": {"embedding_size": 64},
    "deberta": _DEBERTA,
    "deberta-v2": {**_DEBERTA, "position_buckets": 32, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "electra": {"embedding_size": 64},
    "esm": {"mask_token_id": 4, "position_embedding_type": "rotary"},
    "mobilebert": {"embedding_size": 64, "intra_bottleneck_size": 128, "num_feedforward_networks": 2},
    # One layer sees everything, the other its neighbours.
    "modernbert": {"local_attention": 32, "global_attn_every_n_layers": 2},
    "rembert": {"input_embedding_size": 64},
    "squeezebert": {"embedding_size": 128},
}
ROBERTA_LIKE = ("camembert", "mpnet", "roberta", "xlm-roberta")


def new_model(kind: str, task: str | None = None, vocab_size: int = 800, pad: int = 1, **overrides: Any) -> Any:
    """A random model of `kind`, in evaluation mode, with the head for `task`.

    By default that is question answering, or token classification for models that have no such head.
    """
    config = transformers.AutoConfig.for_model(
        kind, **{"vocab_size": vocab_size, "pad_token_id": pad, **INSTEAD.get(kind, SIZES), **EXTRA.get(kind, {}), **overrides}
    )
    if task is None:
        answers = type(config) in transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING
        task = "question-answering" if answers else "token-classification"
    torch.manual_seed(0)
    model = getattr(transformers, TASKS[task].auto_class).from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Fresh biases are zero and fresh norms are one: a graph that dropped or swapped them would go unnoticed.
            parameter.add_(torch.randn_like(parameter), alpha=0.05 if "weight" in name else 0.2)
    return model


def random_tokens(model: Any, batch: int, sequence: int) -> dict[str, np.ndarray]:
    """Random inputs for `model`; every row but the first is padded."""
    generator = np.random.default_rng(batch * 1000 + sequence)
    valid = np.arange(sequence)[None, :] < np.linspace(sequence, 1, batch).astype(int)[:, None]
    random = {
        "input_ids": np.where(valid, generator.integers(5, 800, (batch, sequence)), 1),
        "attention_mask": valid.astype(np.int64),
        "token_type_ids": np.where(valid, generator.integers(0, segments(model), (batch, sequence)), 0),
    }
    names = inspect.signature(model.forward).parameters
    return {name: random[name] for name in INPUTS if name in names}


def segments(model: Any) -> int:
    """How many token types there are; two where the configuration has no number of them."""
    return max(getattr(model.config, "type_vocab_size", 2) or 1, 1)


def make_model(folder: Path, kind: str, task: str = "question-answering", **overrides: Any) -> Path:
    """Write a random model of `kind` with the head for `task`, and a tokenizer, to `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, special = _byte_level() if kind in ROBERTA_LIKE else _word_piece()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1_000_000, **special}
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    pad = tokenizer.token_to_id(special["pad_token"])
    new_model(kind, task, tokenizer.get_vocab_size(), pad, **overrides).save_pretrained(folder)
    return folder


def _texts() -> list[str]:
    return [record[field] for record in samples.questions() for field in ("question", "context")]


def _word_piece() -> tuple[Tokenizer, dict[str, str]]:
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in _texts() for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({character for word in counts for character in word})
    # The trainer of such vocabularies gives another one in each process.
    pieces = [*special.values(), *characters, *(f"##{each}" for each in characters)]
    pieces += sorted(word for word, count in counts.items() if count > 1)
    pieces += sorted(f"##{word[-3:]}" for word in counts if len(word) > 5)
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
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
