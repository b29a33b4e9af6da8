"""What the compiler knows of each task: one entry each, beside the runtime's file of the same task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cpuc.compiler import samples
from cpuc.compiler.architectures import ARCHITECTURES
from cpuc.runtime.errors import ModelError


@dataclass(frozen=True)
class CompilerTask:
    """How to load, trace and verify a task.

    Attributes:
        auto_class: the class of transformers that builds the model with its head.
        head: the ending of the class names in a configuration's ``architectures``.
        outputs: attributes of the model's output, with the axes of each.
        records: sample records in the form that the runtime's task takes.
    """

    auto_class: str
    head: str
    outputs: dict[str, list[int | str]]
    records: Callable[[], list[dict[str, Any]]]


TASKS = {
    "question-answering": CompilerTask(
        auto_class="AutoModelForQuestionAnswering",
        head="ForQuestionAnswering",
        outputs={"start_logits": ["batch", "sequence"], "end_logits": ["batch", "sequence"]},
        records=samples.questions,
    ),
}


def select(name: str, config: dict[str, Any], task: str | None) -> tuple[str, str]:
    """The (task, architecture) to compile a model for, from its ``config.json`` and the user's ``--task``.

    Raises:
        ModelError: the task or the architecture is not supported; the message says which are.
    """
    if task is not None and task not in TASKS:
        raise ModelError(f"task {task!r} is not supported; supported: {', '.join(TASKS)}")
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ModelError(f"{name}: config.json names no model_type, so its architecture is unknown")
    if kind not in ARCHITECTURES:
        raise ModelError(f"{name}: architecture {kind!r} is not supported; supported: {', '.join(sorted(ARCHITECTURES))}")
    if "quantization_config" in config:
        raise ModelError(f"{name}: the weights are quantised already; compile the original model instead")
    if task is None:
        task = _task_of_head(name, config.get("architectures"))
    if task not in ARCHITECTURES[kind].tasks:
        raise ModelError(f"{name}: {kind} is not supported for {task}; supported: {', '.join(_for_task(task))}")
    return task, kind


def _task_of_head(name: str, classes: Any) -> str:
    first = classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else None
    if first is None:
        raise ModelError(f"{name}: config.json names no architectures, so the task is unknown: give --task")
    for task, entry in TASKS.items():
        if first.endswith(entry.head):
            return task
    heads = ", ".join(f"…{entry.head} ({task})" for task, entry in TASKS.items())
    raise ModelError(f"{name}: the model is a {first}, which no supported task uses; supported: {heads}")


def _for_task(task: str) -> list[str]:
    return sorted(kind for kind, architecture in ARCHITECTURES.items() if task in architecture.tasks)
