"""Small random models of images and sounds with real layer shapes, in Hugging Face layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from cpuc.compiler.tasks import TASKS

TRANSFORMER: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}
WAVE = {**TRANSFORMER, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 64}
LARGE = {**WAVE, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
IMAGE = {**TRANSFORMER, "image_size": 64, "patch_size": 16}
# Configuration by model_type; a suffix after a slash names a variant.
SIZES: dict[str, dict[str, Any]] = {
    "vit": IMAGE,
    "resnet": {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [2, 2], "layer_type": "bottleneck"},
    "wav2vec2": WAVE,
    "wav2vec2/layer": LARGE,
    "wav2vec2-conformer": WAVE,
    "audio-spectrogram-transformer": {**TRANSFORMER, "max_length": 1024, "num_mel_bins": 128},
}
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", *"EATOINSHRDLU'"]
AUDIO = ("audio-classification", "automatic-speech-recognition")


def make_media_model(folder: Path, variant: str, task: str, **overrides: Any) -> Path:
    """Write a random model with the head for `task`, and its preprocessor, to `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    kind, _, _ = variant.partition("/")
    sizes = {**SIZES[variant], **overrides}
    if task in AUDIO:
        _write_extractor(folder, kind, masked=sizes.get("feat_extract_norm") == "layer")
    else:
        transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    if task == "automatic-speech-recognition":
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
        transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
        sizes |= {"vocab_size": len(VOCABULARY), "pad_token_id": 0}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **sizes)
    model = getattr(transformers, TASKS[task].auto_class).from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Fresh biases are zero and fresh norms are one: a graph that dropped or swapped them would go unnoticed.
            parameter.add_(torch.randn_like(parameter), alpha=0.02 if "weight" in name else 0.1)
    model.save_pretrained(folder)
    return folder


def _write_extractor(folder: Path, kind: str, *, masked: bool) -> None:
    if kind == "audio-spectrogram-transformer":
        transformers.ASTFeatureExtractor().save_pretrained(folder)
    else:
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masked).save_pretrained(folder)
