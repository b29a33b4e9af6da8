"""What the compiler knows of each task: one entry each, beside the runtime's file of the same task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpuc.compiler import adapters, samples
from cpuc.compiler.architectures import ARCHITECTURES, UNLISTED, Architecture
from cpuc.compiler.source import Source, is_sentence_model
from cpuc.runtime.errors import ModelError

TOKENS = {0: "batch", 1: "sequence"}
BATCH = {0: "batch"}


@dataclass(frozen=True)
class CompilerTask:
    """How to load, trace and verify a task.

    Attributes:
        auto_class: the class of transformers that builds the model with its head.
        heads: endings of the class names in a configuration's ``architectures``; none for a task that is only taken
            with ``--task``.
        outputs: attributes of the model's output, with the name of each free axis by position; those that a model does
            not give are left out, except the first.
        records: sample records in the form that the runtime's task takes, from the manifest's ``preprocessing``.
        calibration: the same, more of them, to choose scales of int8 by; None takes `records`.
        modality: what the task is about: text, image or audio.
        adapt: wraps the model before it is captured, given its source and folder; None takes it as it is.
        facts: what decoding needs to know of the model, for the manifest's ``preprocessing``.
    """

    auto_class: str
    heads: tuple[str, ...]
    outputs: dict[str, dict[int, str]]
    records: Callable[[dict[str, Any]], list[Any]]
    modality: str = "text"
    adapt: Callable[[Any, Source, Path], Any] | None = None
    facts: Callable[[Any], dict[str, Any]] = lambda _: {}
    calibration: Callable[[dict[str, Any]], list[Any]] | None = None

    @property
    def logits(self) -> bool:
        """Whether the outputs are logits."""
        return all(name.endswith("logits") for name in self.outputs)


def _labels(config: Any) -> dict[str, Any]:
    labels = config.id2label
    if sorted(labels) != list(range(len(labels))):
        raise ModelError(f"config.json: id2label must number its labels from 0, found {', '.join(map(str, labels))[:80]}")
    return {"labels": [str(labels[i]) for i in range(len(labels))]}


def _sound_scores(config: Any) -> dict[str, Any]:
    """The same for sounds, where one label is no special case."""
    facts = _scores(config)
    one = config.num_labels == 1 and config.problem_type not in ("regression", "multi_label_classification")
    return {**facts, "activation": "softmax"} if one else facts


def _scores(config: Any) -> dict[str, Any]:
    """Labels, and what turns logits into scores, as the pipelines of transformers choose it."""
    if config.problem_type == "regression":
        activation = "none"
    elif config.problem_type == "multi_label_classification" or config.num_labels == 1:
        activation = "sigmoid"
    else:
        activation = "softmax"
    return {**_labels(config), "activation": activation}


def _entailment(config: Any) -> dict[str, Any]:
    facts = _labels(config)
    if not any(label.lower().startswith("entail") for label in facts["labels"]):
        raise ModelError(
            f"zero-shot-classification needs a model of natural language inference; no label of this one begins with "
            f"'entail': {', '.join(facts['labels'][:5])}"
        )
    return facts


TASKS = {
    "question-answering": CompilerTask(
        auto_class="AutoModelForQuestionAnswering",
        heads=("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
        outputs={"start_logits": TOKENS, "end_logits": TOKENS},
        records=lambda _: samples.questions(),
        calibration=lambda _: samples.more_questions(),
    ),
    "text-classification": CompilerTask(
        auto_class="AutoModelForSequenceClassification",
        heads=("ForSequenceClassification",),
        outputs={"logits": BATCH},
        records=lambda _: samples.texts(),
        calibration=lambda _: samples.more_texts(),
        facts=_scores,
    ),
    "zero-shot-classification": CompilerTask(
        auto_class="AutoModelForSequenceClassification",
        heads=(),
        outputs={"logits": BATCH},
        records=lambda _: samples.candidates(),
        calibration=lambda _: samples.more_candidates(),
        facts=_entailment,
    ),
    "token-classification": CompilerTask(
        auto_class="AutoModelForTokenClassification",
        heads=("ForTokenClassification",),
        outputs={"logits": TOKENS},
        records=lambda _: samples.texts(),
        calibration=lambda _: samples.more_texts(),
        facts=_labels,
    ),
    "fill-mask": CompilerTask(
        auto_class="AutoModelForMaskedLM",
        heads=("ForMaskedLM", "WithLMHeadModel"),
        outputs={"logits": TOKENS},
        records=lambda facts: samples.masked(facts["mask_token"]),
        calibration=lambda facts: samples.more_masked(facts["mask_token"]),
    ),
    "multiple-choice": CompilerTask(
        auto_class="AutoModelForMultipleChoice",
        heads=("ForMultipleChoice",),
        outputs={"logits": BATCH},
        records=lambda _: samples.choices(),
        calibration=lambda _: samples.more_choices(),
        adapt=adapters.one_choice,
    ),
    "sentence-embeddings": CompilerTask(
        auto_class="AutoModel",
        heads=(),
        outputs={"embedding": BATCH},
        records=lambda _: samples.texts(),
        calibration=lambda _: samples.more_texts(),
        adapt=adapters.embedding,
    ),
    "feature-extraction": CompilerTask(
        auto_class="AutoModel",
        heads=("Model",),
        outputs={"last_hidden_state": TOKENS},
        records=lambda _: samples.texts(),
        calibration=lambda _: samples.more_texts(),
    ),
    "image-classification": CompilerTask(
        auto_class="AutoModelForImageClassification",
        heads=("ForImageClassification", "ForImageClassificationWithTeacher"),
        outputs={"logits": BATCH},
        records=lambda _: samples.images(),
        modality="image",
        facts=_scores,
    ),
    "image-feature-extraction": CompilerTask(
        auto_class="AutoModel",
        heads=("Model",),
        outputs={"last_hidden_state": BATCH, "pooler_output": BATCH},
        records=lambda _: samples.images(),
        modality="image",
    ),
    "audio-classification": CompilerTask(
        auto_class="AutoModelForAudioClassification",
        heads=("ForSequenceClassification", "ForAudioClassification"),
        outputs={"logits": BATCH},
        records=lambda _: samples.sounds(),
        modality="audio",
        facts=_sound_scores,
    ),
    "automatic-speech-recognition": CompilerTask(
        auto_class="AutoModelForCTC",
        heads=("ForCTC",),
        outputs={"logits": {0: "batch", 1: "frames"}},
        records=lambda _: samples.sounds(),
        modality="audio",
    ),
}


def select(source: Source, task: str | None, *, allow_unlisted: bool = False) -> tuple[str, str]:
    """The (task, architecture) to compile a model for, from its configuration and the user's ``--task``.

    Raises:
        ModelError: the task or the architecture is not supported; the message says which are.
    """
    name, config = source.id, source.config
    if task is not None and task not in TASKS:
        raise ModelError(f"task {task!r} is not supported; supported: {', '.join(TASKS)}")
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ModelError(f"{name}: config.json names no model_type, so its architecture is unknown")
    if kind not in ARCHITECTURES and not allow_unlisted:
        raise ModelError(
            f"{name}: architecture {kind!r} is not supported; supported: {', '.join(sorted(ARCHITECTURES))}. "
            "It may compile all the same: try --allow-unlisted"
        )
    if "quantization_config" in config:
        raise ModelError(f"{name}: the weights are quantised already; compile the original model instead")
    architecture = architecture_of(kind)
    if task is None:
        task = _task_of_model(source, architecture)
    if task not in architecture.tasks:
        raise ModelError(f"{name}: {kind} is not supported for {task}; supported: {', '.join(_for_task(task))}")
    return task, kind


def architecture_of(kind: str) -> Architecture:
    """The table's entry for a ``model_type``, or what is assumed of one that is not in it."""
    return ARCHITECTURES.get(kind, UNLISTED)


def _task_of_model(source: Source, architecture: Architecture) -> str:
    if is_sentence_model(source):
        return "sentence-embeddings"
    name, classes = source.id, source.config.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else None
    if first is None:
        raise ModelError(f"{name}: config.json names no architectures, so the task is unknown: give --task")
    fitting = [task for task, entry in TASKS.items() if _has_head(first, entry.heads)]
    # Several modalities share a head: what the architecture can do decides.
    for task in fitting:
        if task in architecture.tasks:
            return task
    if fitting:
        return fitting[0]
    heads = ", ".join(f"…{head} ({task})" for task, entry in TASKS.items() for head in entry.heads)
    raise ModelError(f"{name}: the model is a {first}, which no supported task uses; supported: {heads}")


def _has_head(name: str, heads: tuple[str, ...]) -> bool:
    """Whether a class's name ends in one of `heads`; a Model with heads is no bare Model."""
    bare = not name.endswith(("HeadModel", "HeadsModel"))
    return any(name.endswith(head) and (bare or head != "Model") for head in heads)


def _for_task(task: str) -> list[str]:
    return sorted(kind for kind, architecture in ARCHITECTURES.items() if task in architecture.tasks)
