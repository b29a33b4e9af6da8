"""The modules of sentence-transformers that follow an encoder, as modules that can be captured with it.

They compute what the classes of the same names in sentence-transformers compute.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cpuc.compiler.source import CONFIG, SENTENCE_TRANSFORMERS, Source, sentence_modules
from cpuc.runtime.errors import ModelError

# Names of a Pooling's modes, old settings (one flag each) and new ones (``pooling_mode``) alike.
MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# A Dense's activation, by the last part of its class's name.
ACTIVATIONS: dict[str, Callable[[], torch.nn.Module]] = {
    "Tanh": torch.nn.Tanh,
    "Identity": torch.nn.Identity,
    "ReLU": torch.nn.ReLU,
    "GELU": torch.nn.GELU,
    "Sigmoid": torch.nn.Sigmoid,
}


class Pooling(torch.nn.Module):
    """Token vectors [batch, tokens, hidden] and mask [batch, tokens] → [batch, hidden × modes], float32."""

    def __init__(self, modes: list[str]) -> None:
        super().__init__()
        self.modes = modes

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden, present = tokens.float(), mask.unsqueeze(-1).float()
        count = present.sum(1).clamp(min=1e-9)
        pooled = []
        for mode in self.modes:
            if mode == "cls":
                pooled.append(_take(hidden, mask.int().argmax(1)))
            elif mode == "lasttoken":
                positions = torch.arange(mask.shape[1], device=mask.device)
                pooled.append(_take(hidden, (mask * positions).argmax(1)))
            elif mode == "max":
                pooled.append(hidden.masked_fill(present == 0, float("-inf")).amax(1))
            elif mode == "weightedmean":
                weights = present * present.cumsum(1)
                pooled.append((hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9))
            else:
                pooled.append((hidden * present).sum(1) / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count))
        return torch.cat(pooled, 1)


def _take(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The vector of one position a row: [batch, tokens, hidden], [batch] → [batch, hidden]."""
    return hidden.gather(1, positions[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)


class Normalize(torch.nn.Module):
    """Vectors of length one."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(vectors, dim=1)


class Dense(torch.nn.Module):
    """A linear layer and its activation."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        self.activation = ACTIVATIONS[config.get("activation_function", "Tanh").split(".")[-1]]()

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.activation(self.linear(vectors.to(self.linear.weight.dtype)))
        return result


class Embedder(torch.nn.Module):
    """An encoder, its pooling, and what follows: inputs by name → ``{"embedding": [batch, dimensions]}``."""

    def __init__(self, model: Any, modules: list[torch.nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.pooling, *rest = modules
        self.rest = torch.nn.Sequential(*rest)

    def forward(self, return_dict: bool = True, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.model(**inputs, return_dict=return_dict).last_hidden_state
        return {"embedding": self.rest(self.pooling(hidden, inputs["attention_mask"]))}


def load_modules(source: Source, folder: Path) -> list[torch.nn.Module]:
    """The modules after the encoder that ``modules.json`` names. Raises ModelError for one that is unknown or damaged."""
    modules: list[torch.nn.Module] = []
    for path, kind in sentence_modules(source):
        try:
            modules.append(_load_module(kind, folder / path))
        except ModelError:
            raise
        except Exception as error:  # settings of any shape, weights damaged in any way
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{source.id}: {path}: the {kind} module cannot be loaded: {what}") from error
    if not modules or not isinstance(modules[0], Pooling) or any(isinstance(each, Pooling) for each in modules[1:]):
        raise ModelError(f"{source.id}: {SENTENCE_TRANSFORMERS}: expected a Transformer, one Pooling, then others")
    return modules


def _load_module(kind: str, place: Path) -> torch.nn.Module:
    if kind == "Normalize":
        return Normalize()
    if kind not in ("Pooling", "Dense"):
        raise ModelError(
            f"{place}: sentence-transformers module {kind!r} is not supported; supported: Pooling, Dense, Normalize"
        )
    config = json.loads((place / CONFIG).read_bytes())
    if kind == "Pooling":
        return Pooling(_modes(config, place))
    places = [config.get(name) or "sentence_embedding" for name in ("module_input_name", "module_output_name")]
    if config.get("use_residual") or places != ["sentence_embedding"] * 2:
        raise ModelError(f"{place}: use_residual, module_input_name and module_output_name are not supported")
    activation = config.get("activation_function", "Tanh").split(".")[-1]
    if activation not in ACTIVATIONS:
        raise ModelError(f"{place}: activation {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    dense = Dense(config)
    dense.load_state_dict(_weights(place))
    return dense


def _modes(config: dict[str, Any], place: Path) -> list[str]:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in MODES.items() if config.get(flag)]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if unknown := sorted(set(modes) - set(MODES.values())):
        raise ModelError(f"{place}: pooling mode {unknown[0]!r} is not supported; supported: {', '.join(MODES.values())}")
    if not modes or config.get("include_prompt") is False:
        raise ModelError(f"{place}: names no pooling mode, or leaves out the prompt (include_prompt), which is not supported")
    return modes


def _weights(place: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor]
    if (place / "model.safetensors").is_file():
        weights = load_file(place / "model.safetensors")
    else:
        weights = torch.load(place / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return weights
