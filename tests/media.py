"""Small random models of images and sound with real layer shapes, and inputs for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import transformers

from cpuc.compiler.architectures import ARCHITECTURES, Architecture

IMAGE, BASE, CTC, SOUND = (f"AutoModel{head}" for head in ("ForImageClassification", "", "ForCTC", "ForAudioClassification"))
LOGITS, HIDDEN, POOLED = ("logits",), ("last_hidden_state",), ("last_hidden_state", "pooler_output")
LAYERS = 2

_VIT: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 512}
_FINE = {**_VIT, "image_size": 112, "patch_size": 14}
_BOTH = {"vision_config": _VIT, "text_config": _VIT}
_SWIN = {"embed_dim": 64, "depths": [2, 2], "num_heads": [2, 4]}
_CONVNEXT = {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1], "image_size": 96}
_RESNET = {"embedding_size": 32, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 1, 1]}
_SPEECH = {**_VIT, "vocab_size": 32, "conv_dim": [64] * 7, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 64}
# The two forms of the family: features normalised over the recording without a mask, or frame by frame with one.
_GROUP = {**_SPEECH, "feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
_LAYER = {**_SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


@dataclass(frozen=True)
class Case:
    """A model to build.

    Attributes:
        attentions: how many layers of attention it has.
        unfused: what stays unfused.
    """

    kind: str
    head: str
    settings: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = LOGITS
    attentions: int = LAYERS
    unfused: dict[str, int] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.kind]

    @cached_property
    def config(self) -> Any:
        # Enough labels for a mean over them to say something.
        return transformers.AutoConfig.for_model(self.kind, **{"num_labels": 32, **self.settings})

    def model(self) -> torch.nn.Module:
        """The same weights every time, none of them zero or one."""
        torch.manual_seed(0)
        head = getattr(transformers, self.head)
        model = (head.from_config if self.head.startswith("Auto") else head)(self.config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Fresh biases are zero and fresh norms are one: a graph that dropped or swapped them would go unnoticed.
                parameter.add_(torch.randn_like(parameter), alpha=0.02 if "weight" in name else 0.1)
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.add_(torch.randn_like(buffer), alpha=0.1)
                if name.endswith("running_var"):
                    buffer.mul_(torch.rand_like(buffer) + 0.5)
        return model

    def shapes(self) -> dict[str, list[int | str]]:
        """Axes of each input; models whose configuration names no size take any, as the image processor decides."""
        if self.architecture.inputs is not None:
            return self.architecture.inputs(self.config)
        vision = getattr(self.config, "vision_config", self.config)
        size: Any = getattr(vision, "image_size", ["height", "width"])
        return {"pixel_values": ["batch", vision.num_channels, *([size, size] if isinstance(size, int) else size)]}

    def inputs(self, batch: int, length: int) -> dict[str, np.ndarray]:
        """Noise; where there is a mask, every row but the first is padded. `length` is of every free axis but the batch."""
        generator = np.random.default_rng(batch * 1000 + length)
        shapes = self.shapes()
        arrays = {}
        for name, shape in shapes.items():
            size = [batch if axis == "batch" else length if isinstance(axis, str) else axis for axis in shape]
            arrays[name] = generator.standard_normal(size).astype(np.float32)
        if "attention_mask" in shapes:
            valid = np.linspace(length, max(self.least, length // 3), batch).astype(int)
            mask = np.arange(length)[None, :] < valid[:, None]
            arrays = {"input_values": arrays["input_values"] * mask, "attention_mask": mask.astype(np.int64)}
        return arrays

    @property
    def least(self) -> int:
        return self.architecture.min_length(self.config) if self.architecture.min_length else 1

    @property
    def example(self) -> dict[str, np.ndarray]:
        """What it is traced with."""
        return self.inputs(3, 5003 if self.architecture.min_length else 101)

    @property
    def unseen(self) -> list[tuple[int, int]]:
        """Batches and lengths other than the example's."""
        if self.architecture.min_length:
            return [(1, self.least), (4, 1600), (2, 16000), (5, 3001), (1, 70001)]
        return [(1, 64), (2, 75), (5, 96)]


CASES = {
    "vit": Case("vit", IMAGE, _VIT),
    "vit-features": Case("vit", BASE, _VIT, POOLED),
    "deit": Case("deit", "DeiTForImageClassification", _VIT),
    "beit": Case("beit", IMAGE, {**_VIT, "use_relative_position_bias": True, "use_mean_pooling": True}),
    "beit-features": Case("beit", BASE, {**_VIT, "use_shared_relative_position_bias": True}, POOLED),
    "data2vec-vision": Case("data2vec-vision", IMAGE, {**_VIT, "use_relative_position_bias": True}),
    "swin": Case("swin", IMAGE, {**_SWIN, "image_size": 112}, attentions=4),
    "swin-padded-windows": Case("swin", BASE, {**_SWIN, "image_size": 96}, POOLED, attentions=4),
    "swinv2": Case("swinv2", IMAGE, {**_SWIN, "image_size": 128, "window_size": 8}, attentions=4),
    "swinv2-padded-windows": Case("swinv2", BASE, {**_SWIN, "image_size": 112, "window_size": 8}, POOLED, attentions=4),
    "convnext": Case("convnext", IMAGE, _CONVNEXT, attentions=0),
    "convnext-features": Case("convnext", BASE, _CONVNEXT, POOLED, attentions=0),
    "convnextv2": Case("convnextv2", IMAGE, _CONVNEXT, attentions=0),
    "resnet": Case("resnet", IMAGE, _RESNET, attentions=0),
    "resnet-basic-features": Case("resnet", BASE, {**_RESNET, "layer_type": "basic"}, POOLED, attentions=0),
    "regnet": Case("regnet", IMAGE, {**_RESNET, "groups_width": 32}, attentions=0),
    "dinov2": Case("dinov2", IMAGE, _FINE),
    "dinov2-features": Case("dinov2", BASE, _FINE, POOLED),
    "dinov2-swiglu": Case("dinov2", IMAGE, {**_FINE, "use_swiglu_ffn": True}),
    "dinov2_with_registers": Case("dinov2_with_registers", IMAGE, _FINE),
    "clip": Case("clip", IMAGE, _BOTH),
    "clip-features": Case("clip_vision_model", BASE, _VIT, POOLED),
    "siglip": Case("siglip", IMAGE, _BOTH),
    "siglip-features": Case("siglip_vision_model", BASE, _VIT, POOLED, attentions=LAYERS + 1),
    "mobilenet_v1": Case("mobilenet_v1", IMAGE, {"image_size": 96}, attentions=0),
    "mobilenet_v2": Case("mobilenet_v2", IMAGE, {"image_size": 96}, attentions=0),
    "mobilevit": Case("mobilevit", IMAGE, {"image_size": 128}, attentions=9),
    "efficientnet": Case(
        "efficientnet",
        IMAGE,
        {"image_size": 96, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
        attentions=0,
    ),
    "wav2vec2": Case("wav2vec2", CTC, _GROUP),
    "wav2vec2-masked": Case("wav2vec2", CTC, _LAYER),
    "wav2vec2-sound": Case("wav2vec2", SOUND, _LAYER),
    "wav2vec2-features": Case("wav2vec2", BASE, _GROUP, HIDDEN),
    "hubert": Case("hubert", SOUND, _GROUP),
    "hubert-masked": Case("hubert", CTC, _LAYER),
    "hubert-batch-norm": Case("hubert", CTC, {**_GROUP, "conv_pos_batch_norm": True}),
    "wavlm": Case("wavlm", CTC, _GROUP),
    "wavlm-masked": Case("wavlm", SOUND, _LAYER),
    "unispeech": Case("unispeech", CTC, _LAYER),
    "unispeech-sat": Case("unispeech-sat", CTC, _LAYER),
    # Its relative positions are a product of their own, which the attention adds.
    "wav2vec2-conformer": Case("wav2vec2-conformer", CTC, _LAYER),
    "wav2vec2-conformer-rotary": Case("wav2vec2-conformer", CTC, {**_LAYER, "position_embeddings_type": "rotary"}),
    "data2vec-audio": Case("data2vec-audio", CTC, _SPEECH),
    "sew": Case("sew", CTC, {**_SPEECH, "conv_dim": [64] * 13}),
    "ast": Case("audio-spectrogram-transformer", SOUND, _VIT),
}
