"""The original model: eager, float32, with its tokenizer, from a local snapshot."""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpuc.compiler.architectures import ARCHITECTURES
from cpuc.compiler.source import Snapshot, Source
from cpuc.compiler.tasks import TASKS
from cpuc.runtime.errors import ModelError
from cpuc.runtime.manifest import TensorSpec

# What a text task's encoding can provide.
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# A question, special tokens and some context have to fit.
SHORTEST = 32


@dataclass(frozen=True)
class Original:
    """The model to compile (a PreTrainedModel) and what its tokenizer says of itself."""

    model: Any
    tokenizer_json: bytes
    preprocessing: dict[str, Any]
    inputs: list[TensorSpec]
    max_length: int | None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and progress bars of the libraries below: none of them is about something a user can change."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def load_original(source: Source, snapshot: Snapshot, task: str, kind: str) -> Original:
    """Load weights and tokenizer without executing anything that the snapshot holds.

    Raises:
        ModelError: files that cannot be read, weights that do not fit the configuration, or no usable tokenizer.
    """
    with quiet():
        model = _load_model(source.id, snapshot, task)
        tokenizer = _load_tokenizer(source.id, snapshot.folder)
    limits = [ARCHITECTURES[kind].max_length(model.config), tokenizer.model_max_length]
    # Tokenizers without a limit of their own report 1e30.
    max_length = min((int(limit) for limit in limits if isinstance(limit, int | float) and limit < 1e9), default=None)
    if max_length is not None and max_length < SHORTEST:
        raise ModelError(f"{source.id}: takes only {max_length} tokens (model_max_length, max_position_embeddings)")
    return Original(
        model=model,
        tokenizer_json=tokenizer.backend_tokenizer.to_str().encode(),
        preprocessing={"padding_side": tokenizer.padding_side, "cls_token_id": tokenizer.cls_token_id},
        inputs=_signature(source.id, model, tokenizer),
        max_length=max_length,
    )


def _load_model(name: str, snapshot: Snapshot, task: str) -> Any:
    import torch
    import transformers

    try:
        model, info = getattr(transformers, TASKS[task].auto_class).from_pretrained(
            os.fspath(snapshot.folder),
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors="safetensors" in snapshot.weights,
            weights_only=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{name}: {snapshot.weights} holds more than tensors, or is damaged, and was not loaded: "
            "use a repository with safetensors"
        ) from error
    except Exception as error:  # transformers raises whatever config.json or the weights made it stumble over
        raise ModelError(
            f"{name}: config.json or {snapshot.weights} cannot be loaded: {type(error).__name__}: {_first_line(error)}"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{name}: the weights lack {missing[0]!r}{_and_more(missing)}: the model was not trained for {task}, "
            "or its configuration is of another model"
        )
    if mismatched := sorted(map(str, info["mismatched_keys"])):
        raise ModelError(f"{name}: weights of another shape than config.json says: {mismatched[0]}{_and_more(mismatched)}")
    # float32 whatever the repository stores, whatever its configuration says.
    return model.float().eval()


def _and_more(items: list[str]) -> str:
    return f" and {len(items) - 1} more" if len(items) > 1 else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _load_tokenizer(name: str, folder: Path) -> Any:
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            os.fspath(folder), use_fast=True, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises whatever its parsers met
        raise ModelError(f"{name}: the tokenizer cannot be loaded: {_first_line(error)}") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(f"{name}: the tokenizer has no fast form (tokenizer.json), which the runtime needs")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"{name}: has no vocabulary (tokenizer.json, vocab.txt or the like)")
    return tokenizer


def _signature(name: str, model: Any, tokenizer: Any) -> list[TensorSpec]:
    """The inputs, in the order of the model's ``forward``: those that the tokenizer makes for this model."""
    config = model.config
    largest = {
        "input_ids": model.get_input_embeddings().num_embeddings - 1,
        "attention_mask": 1,
        "token_type_ids": max(getattr(config, "type_vocab_size", 1) or 1, 1) - 1,
    }
    pads = {"input_ids": tokenizer.pad_token_id or 0, "attention_mask": 0, "token_type_ids": tokenizer.pad_token_type_id}
    wanted = set(tokenizer.model_input_names) & set(TEXT_INPUTS) | {"input_ids", "attention_mask"}
    names = [parameter for parameter in inspect.signature(model.forward).parameters if parameter in wanted]
    if tokenizer.vocab_size > largest["input_ids"] + 1:
        raise ModelError(
            f"{name}: the tokenizer knows {tokenizer.vocab_size} tokens, the model only {largest['input_ids'] + 1}: "
            "they do not belong together"
        )
    return [TensorSpec(each, "int64", ["batch", "sequence"], 0, largest[each], pads[each]) for each in names]
