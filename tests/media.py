"""Small random models of images and sound with real layer shapes, and inputs for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers

_VIT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
_SPEECH = {**_VIT, "vocab_size": 32, "conv_dim": [64] * 7, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 64}
_STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_POST = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}


@dataclass(frozen=True)
class Case:
    """A model to build: its kind, its head, and what its configuration has beside the defaults."""

    kind: str
    head: str
    config: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("logits",)
    masked: bool = False

    def model(self) -> torch.nn.Module:
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(self.kind, **self.config)
        head = getattr(transformers, self.head)
        model = (head.from_config if self.head.startswith("Auto") else head)(config).eval()
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

    def inputs(self, batch: int, samples: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(batch * 1000 + samples)
        config = transformers.AutoConfig.for_model(self.kind, **self.config)
        if hasattr(config, "num_mel_bins"):
            shape = (batch, config.max_length, config.num_mel_bins)
            return {"input_values": generator.standard_normal(shape).astype(np.float32)}
        if hasattr(config, "conv_kernel"):
            values = generator.standard_normal((batch, samples)).astype(np.float32)
            if not self.masked:
                return {"input_values": values}
            lengths = np.linspace(samples, max(400, samples // 3), batch).astype(int)
            mask = (np.arange(samples)[None] < lengths[:, None]).astype(np.int64)
            return {"input_values": values * mask, "attention_mask": mask}
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        pixels = generator.standard_normal((batch, vision.num_channels, height, width)).astype(np.float32)
        return {"pixel_values": pixels}


IMAGE, BASE = "AutoModelForImageClassification", "AutoModel"
CTC, SOUND = "AutoModelForCTC", "AutoModelForAudioClassification"
HIDDEN, POOLED = ("last_hidden_state",), ("last_hidden_state", "pooler_output")
_SWIN = {"embed_dim": 64, "depths": [2, 2], "num_heads": [2, 4], "image_size": 112}
_CONVNEXT = {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1], "image_size": 96}
_RESNET = {"embedding_size": 32, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 1, 1]}

CASES = {
    "vit": Case("vit", IMAGE, _VIT),
    "vit-base": Case("vit", BASE, _VIT, POOLED),
    "deit": Case("deit", "DeiTForImageClassification", _VIT),
    "beit": Case(
        "beit",
        IMAGE,
        {
            **_VIT,
            "use_relative_position_bias": True,
            "layer_scale_init_value": 0.1,
            "use_mean_pooling": True,
            "image_size": 224,
        },
    ),
    "beit-shared": Case("beit", BASE, {**_VIT, "use_shared_relative_position_bias": True, "image_size": 224}, POOLED),
    "data2vec-vision": Case("data2vec-vision", IMAGE, {**_VIT, "use_relative_position_bias": True}),
    "swin": Case("swin", IMAGE, _SWIN),
    "swin-odd": Case("swin", BASE, {**_SWIN, "image_size": 96}, POOLED),
    "swinv2": Case("swinv2", IMAGE, {**_SWIN, "image_size": 128, "window_size": 8}),
    "convnext": Case("convnext", IMAGE, _CONVNEXT),
    "convnext-base": Case("convnext", BASE, _CONVNEXT, POOLED),
    "convnextv2": Case("convnextv2", IMAGE, _CONVNEXT),
    "resnet": Case("resnet", IMAGE, _RESNET),
    "resnet-basic": Case("resnet", BASE, {**_RESNET, "layer_type": "basic"}, POOLED),
    "dinov2": Case("dinov2", IMAGE, {**_VIT, "image_size": 112, "patch_size": 14}),
    "dinov2-base": Case("dinov2", BASE, {**_VIT, "image_size": 112, "patch_size": 14}, POOLED),
    "dinov2_with_registers": Case("dinov2_with_registers", IMAGE, {**_VIT, "image_size": 112, "patch_size": 14}),
    "dinov3_vit": Case("dinov3_vit", BASE, _VIT, POOLED),
    "clip_vision_model": Case("clip_vision_model", BASE, _VIT, POOLED),
    "siglip_vision_model": Case("siglip_vision_model", BASE, _VIT, POOLED),
    "siglip": Case("siglip", IMAGE, {"vision_config": _VIT, "text_config": _VIT}),
    "clip": Case("clip", IMAGE, {"vision_config": _VIT, "text_config": _VIT}),
    "mobilenet_v1": Case("mobilenet_v1", IMAGE, {}),
    "mobilenet_v2": Case("mobilenet_v2", IMAGE, {}),
    "mobilevit": Case("mobilevit", IMAGE, {"image_size": 128}),
    "levit": Case("levit", "LevitForImageClassificationWithTeacher"),
    "efficientnet": Case("efficientnet", IMAGE, {"image_size": 128}),
    "regnet": Case("regnet", IMAGE, {}),
    "wav2vec2": Case("wav2vec2", CTC, {**_SPEECH, **_POST}),
    "wav2vec2-stable": Case("wav2vec2", CTC, {**_SPEECH, **_STABLE}, masked=True),
    "wav2vec2-sound": Case("wav2vec2", SOUND, {**_SPEECH, **_STABLE}, masked=True),
    "wav2vec2-base": Case("wav2vec2", BASE, {**_SPEECH, **_POST}, HIDDEN),
    "hubert": Case("hubert", SOUND, {**_SPEECH, **_POST}),
    "hubert-stable": Case("hubert", CTC, {**_SPEECH, **_STABLE}, masked=True),
    "hubert-batch": Case("hubert", CTC, {**_SPEECH, **_POST, "conv_pos_batch_norm": True}),
    "wavlm": Case("wavlm", CTC, {**_SPEECH, **_POST}),
    "wavlm-stable": Case("wavlm", SOUND, {**_SPEECH, **_STABLE}, masked=True),
    "unispeech-sat": Case("unispeech-sat", CTC, {**_SPEECH, **_STABLE}, masked=True),
    "unispeech": Case("unispeech", CTC, {**_SPEECH, **_STABLE}, masked=True),
    "wav2vec2-conformer": Case("wav2vec2-conformer", CTC, {**_SPEECH, **_STABLE}, masked=True),
    "wav2vec2-conformer-rotary": Case(
        "wav2vec2-conformer", CTC, {**_SPEECH, **_STABLE, "position_embeddings_type": "rotary"}, masked=True
    ),
    "data2vec-audio": Case(
        "data2vec-audio", CTC, {**_VIT, "conv_dim": [64] * 7, "num_conv_pos_embedding_groups": 4}, masked=True
    ),
    "sew": Case("sew", CTC, {**_VIT, "conv_dim": [64] * 13, "num_conv_pos_embedding_groups": 4}),
    "audio-spectrogram-transformer": Case("audio-spectrogram-transformer", SOUND, _VIT),
}
