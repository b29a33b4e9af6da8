"""The coverage table says what the compiler's own table says; test_architectures.py holds its counts against the graphs."""

from __future__ import annotations

import pytest
import transformers
from conftest import coverage_rows

from cpuc.compiler.architectures import ARCHITECTURES
from cpuc.compiler.tasks import TASKS
from cpuc.runtime import tasks

# Heads that transformers has and that are not supported: an encoder with a decoder fills masks by writing the whole text.
LEFT_OUT = {("bart", "fill-mask"), ("mbart", "fill-mask")}


def test_the_table_lists_every_architecture_with_its_tasks() -> None:
    rows = coverage_rows()
    assert list(rows) == list(ARCHITECTURES)
    for kind, row in rows.items():
        assert row["tasks"] == ", ".join(sorted(ARCHITECTURES[kind].tasks))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_row_is_fused_throughout(kind: str) -> None:
    row = coverage_rows()[kind]
    for part in ("attention", "linear", "convolution"):
        fused, _, all_of_them = row[part].partition("/")
        assert fused == (all_of_them or "–")
    assert row["unfused"] == "–"
    assert float(row["speed fp32"]) > 0
    assert float(row["speed bf16"]) > 0


def test_every_task_is_in_the_compiler_and_in_the_runtime() -> None:
    assert sorted(TASKS) == tasks.names()
    assert set(TASKS) == {task for entry in ARCHITECTURES.values() for task in entry.tasks}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_architecture_has_the_tasks_that_transformers_has_heads_for(kind: str) -> None:
    config = transformers.CONFIG_MAPPING[kind]
    for task in ARCHITECTURES[kind].tasks:
        mapping = getattr(transformers, TASKS[task].auto_class)._model_mapping
        assert config in mapping, task
    modality = TASKS[next(iter(ARCHITECTURES[kind].tasks))].modality
    offered = {
        task
        for task, entry in TASKS.items()
        if entry.modality == modality and config in getattr(transformers, entry.auto_class)._model_mapping
    }
    plain = {"feature-extraction", "sentence-embeddings", "image-feature-extraction"}
    assert {(kind, task) for task in offered - ARCHITECTURES[kind].tasks - plain} <= LEFT_OUT
