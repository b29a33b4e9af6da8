"""What a model's files say of turning a user's input into tensors: the signature, and what the runtime needs of it."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpuc.compiler.architectures import Architecture, receptive_field, waveform
from cpuc.compiler.source import SENTENCE_SETTINGS, Source
from cpuc.compiler.tasks import TASKS
from cpuc.runtime.errors import ModelError
from cpuc.runtime.manifest import Axis, TensorSpec
from cpuc.runtime.text import INPUTS

# A question, special tokens and some context have to fit.
SHORTEST = 32


@dataclass(frozen=True)
class Preprocessing:
    """The signature's inputs and axes, the manifest's ``preprocessing``, and the bundle's extra files by name."""

    inputs: list[TensorSpec]
    axes: dict[str, Axis]
    facts: dict[str, Any]
    extra: dict[str, bytes] = field(default_factory=dict)


def read_preprocessing(source: Source, folder: Path, task: str, model: Any, architecture: Architecture) -> Preprocessing:
    """Read what the task needs from the model's folder. Raises ModelError if it is not there or does not fit."""
    preprocessing = _READERS[TASKS[task].modality](source, folder, model, architecture, task)
    preprocessing.facts.update(TASKS[task].facts(model.config))
    if task == "sentence-embeddings":
        facts = _sentence_facts(source, folder)
        preprocessing.facts.update(facts)
        # It overrides the tokenizer's own limit, not the model's.
        limits = [facts["max_seq_length"], architecture.max_length(model.config)]
        if facts["max_seq_length"] is not None:
            shortest = preprocessing.axes["sequence"].minimum
            preprocessing.axes["sequence"] = Axis(shortest, min(limit for limit in limits if limit is not None))
    if task == "fill-mask" and preprocessing.facts["mask_token"] is None:
        raise ModelError(f"{source.id}: the tokenizer has no mask token, which fill-mask needs")
    if task == "automatic-speech-recognition":
        facts, vocabulary = _ctc_vocabulary(source.id, folder)
        preprocessing.facts.update(facts)
        preprocessing.extra["vocabulary.json"] = vocabulary
    return preprocessing


def _read_text(source: Source, folder: Path, model: Any, architecture: Architecture, task: str) -> Preprocessing:
    tokenizer, stored = _load_tokenizer(source.id, folder)
    limits = [architecture.max_length(model.config), tokenizer.model_max_length]
    # Tokenizers without a limit of their own report 1e30.
    longest = min((int(limit) for limit in limits if isinstance(limit, int | float) and limit < 1e9), default=None)
    if longest is not None and longest < SHORTEST:
        raise ModelError(f"{source.id}: takes only {longest} tokens (model_max_length, max_position_embeddings)")
    shortest = architecture.min_length(model.config) if architecture.min_length else 1
    bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    facts = {
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "cls_token_id": tokenizer.cls_token_id,
        "unk_token_id": tokenizer.unk_token_id,
        "mask_token_id": tokenizer.mask_token_id,
        "mask_token": tokenizer.mask_token,
        # transformers leaves the text of byte-pair tokenizers alone, whatever they ask for.
        "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces) and not bpe,
    }
    return Preprocessing(
        inputs=_text_inputs(source, model, tokenizer, task),
        axes={"batch": Axis(1, None), "sequence": Axis(shortest, longest)},
        facts=facts,
        extra={"tokenizer.json": stored},
    )


def _load_tokenizer(name: str, folder: Path) -> tuple[Any, bytes]:
    """The tokenizer, and its ``tokenizer.json``."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            os.fspath(folder), use_fast=True, local_files_only=True, trust_remote_code=False
        )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        stored = None if backend is None else backend.to_str().encode()  # a part in Python code raises
    except Exception as error:  # transformers raises whatever its parsers met
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{name}: the tokenizer cannot be loaded: {what}") from error
    if stored is None:
        raise ModelError(f"{name}: the tokenizer has no fast form (tokenizer.json), which the runtime needs")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"{name}: has no vocabulary (tokenizer.json, vocab.txt or the like)")
    return tokenizer, stored


def _is_old(config: Mapping[str, Any]) -> bool:
    """Whether a model was saved, and so trained, by transformers 4 or an older one."""
    major = str(config.get("transformers_version") or "").partition(".")[0]
    return not major.isdigit() or int(major) < 5


def _text_inputs(source: Source, model: Any, tokenizer: Any, task: str) -> list[TensorSpec]:
    """The inputs, in the order of the model's ``forward``: those that the tokenizer makes for this model."""
    config = model.config
    largest = {
        "input_ids": model.get_input_embeddings().num_embeddings - 1,
        "attention_mask": 1,
        "token_type_ids": max(getattr(config, "type_vocab_size", 1) or 1, 1) - 1,
    }
    pads = {"input_ids": tokenizer.pad_token_id or 0, "attention_mask": 0, "token_type_ids": tokenizer.pad_token_type_id}
    wanted = set(tokenizer.model_input_names) & set(INPUTS) | {"input_ids", "attention_mask"}
    if task == "question-answering" and "model_input_names" not in tokenizer.init_kwargs and _is_old(source.config):
        # Version 4 let tokenizers make them that version 5 does not.
        types = max(tokenizer.backend_tokenizer.encode("a", "b").type_ids, default=0)
        if 0 < types <= largest["token_type_ids"]:
            wanted.add("token_type_ids")
    if getattr(config, "type_vocab_size", None) == 0:
        wanted.discard("token_type_ids")  # models as DeBERTa take them, but have no table of them
    names = [parameter for parameter in inspect.signature(model.forward).parameters if parameter in wanted]
    if tokenizer.vocab_size > largest["input_ids"] + 1:
        raise ModelError(
            f"{source.id}: the tokenizer knows {tokenizer.vocab_size} tokens, the model only {largest['input_ids'] + 1}: "
            "they do not belong together"
        )
    return [TensorSpec(each, "int64", ["batch", "sequence"], 0, largest[each], pads[each]) for each in names]


def _sentence_facts(source: Source, folder: Path) -> dict[str, Any]:
    """What sentence-transformers reads beside the modules: the length that texts are cut at, and prompts."""

    def read(file: str) -> dict[str, Any]:
        try:
            value = json.loads((folder / file).read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, OSError, RecursionError) as error:
            raise ModelError(f"{source.id}: {file} is not valid JSON ({error})") from None
        return value if isinstance(value, dict) else {}

    encoder = next(filter(None, map(read, SENTENCE_SETTINGS)), {})
    settings = read("config_sentence_transformers.json")
    length, prompts = encoder.get("max_seq_length"), settings.get("prompts") or {}
    if not (length is None or (type(length) is int and length >= SHORTEST // 2)) or not isinstance(prompts, dict):
        raise ModelError(f"{source.id}: max_seq_length ({length!r}) or the prompts make no sense")
    return {
        "max_seq_length": length,
        "do_lower_case": bool(encoder.get("do_lower_case")),
        "prompts": {str(name): str(prompt) for name, prompt in prompts.items()},
        "default_prompt_name": settings.get("default_prompt_name"),
    }


def _read_image(source: Source, folder: Path, model: Any, architecture: Architecture, task: str) -> Preprocessing:  # noqa: ARG001
    from cpuc.compiler.media import read_image_steps
    from cpuc.runtime.images import ImageConfig

    steps = read_image_steps(folder, source.id)
    shape: list[int | str] = ["batch", 3, *ImageConfig.from_dict(steps).output_size]
    return Preprocessing([TensorSpec("pixel_values", "float32", shape)], {"batch": Axis(1, None)}, {"image": steps})


def _read_audio(source: Source, folder: Path, model: Any, architecture: Architecture, task: str) -> Preprocessing:  # noqa: ARG001
    from cpuc.compiler.media import read_audio_steps

    steps = read_audio_steps(folder, source.id)
    if bank := steps["filter_bank"]:
        spec = TensorSpec("input_values", "float32", ["batch", bank["frames"], bank["bins"]])
        return Preprocessing([spec], {"batch": Axis(1, None)}, {"audio": steps})
    config = model.config
    if not hasattr(config, "conv_kernel"):
        raise ModelError(f"{source.id}: a {config.model_type} does not take the samples that its feature extractor gives")
    inputs = [
        TensorSpec(name, "int64", shape, 0, 1, 0) if name == "attention_mask" else TensorSpec(name, "float32", shape, pad=0)
        for name, shape in (architecture.inputs or waveform)(config).items()
    ]
    convolutions = [list(pair) for pair in zip(config.conv_kernel, config.conv_stride, strict=True)]
    if getattr(config, "add_adapter", False):
        convolutions += [[1, config.adapter_stride]] * config.num_adapter_layers
    axes = {
        "batch": Axis(1, None),
        "samples": Axis((architecture.min_length or receptive_field)(config), architecture.max_length(config)),
        "frames": Axis(1, None),
    }
    return Preprocessing(inputs, axes, {"audio": steps, "convolutions": convolutions})


def _ctc_vocabulary(name: str, folder: Path) -> tuple[dict[str, Any], bytes]:
    """What decoding needs of a CTC tokenizer, and its tokens in the order of their ids as JSON."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            os.fspath(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises whatever its parsers met
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{name}: the tokenizer cannot be loaded: {what}") from error
    kind = type(tokenizer).__name__
    if kind != "Wav2Vec2CTCTokenizer":
        raise ModelError(f"{name}: tokenizer {kind!r} is not supported for speech; supported: Wav2Vec2CTCTokenizer")
    facts = {
        "pad_token": tokenizer.pad_token,
        "unk_token": tokenizer.unk_token,
        "word_delimiter_token": tokenizer.word_delimiter_token,
        "replace_word_delimiter_char": tokenizer.replace_word_delimiter_char,
        "do_lower_case": bool(tokenizer.do_lower_case),
        "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
    }
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return facts, json.dumps(tokens, ensure_ascii=False).encode()


_READERS = {"text": _read_text, "image": _read_image, "audio": _read_audio}
