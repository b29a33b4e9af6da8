"""The original model, eager and in float32, as a model of the runtime: what artifacts are evaluated against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cpuc.compiler.source import resolve, snapshot
from cpuc.compiler.tasks import TASKS, select
from cpuc.runtime.manifest import Manifest, TensorSpec
from cpuc.runtime.model import Model, pad_rows
from cpuc.runtime.tasks import Task, load_task


class EagerEngine:
    """Runs a model of transformers where the runtime has its engine."""

    def __init__(self, module: Any, manifest: Manifest) -> None:
        self.manifest = manifest
        self._module = module

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs by name, float32."""
        from cpuc.compiler.capture import run_eager
        from cpuc.compiler.loading import quiet

        names, outputs = ([spec.name for spec in specs] for specs in (self.manifest.inputs, self.manifest.outputs))
        with quiet():
            return run_eager(self._module, names, outputs, inputs)


def original_model(model: str, task: str, revision: str | None = None) -> Model:
    """Load a model as transformers does: float32, eager, with its default attention; decoding is the runtime's.

    Args:
        model: a local folder, a Hub id or a short name.
        task: what it is to answer, whatever its configuration names.
        revision: branch, tag or commit on the Hub.

    Raises:
        ModelError: the model cannot be found or loaded, or has no weights for the task.
    """
    source = resolve(model, revision)
    _, kind = select(source, task, allow_unlisted=True)
    files = snapshot(source, sentence=task == "sentence-embeddings")
    # The pipeline may evaluate what it compiles; loading imports torch and transformers, which take seconds.
    from cpuc.compiler.loading import load_original
    from cpuc.compiler.pipeline import describe

    original = load_original(source, files, task, kind, attention=None)
    manifest = describe(source, files, original, task, kind, "fp32")
    runtime_task = load_task(manifest, original.preprocessing.extra.__getitem__)
    return Model(EagerEngine(original.module, _with_outputs(manifest, original.module, runtime_task)), runtime_task)


def _with_outputs(manifest: Manifest, module: Any, task: Task) -> Manifest:
    """The manifest with the outputs that the model gives, and their sizes, which one row shows."""
    from cpuc.compiler.capture import given_outputs

    row = pad_rows([task.warm_up()], manifest.inputs, task.padding_side)
    given = given_outputs(module, [spec.name for spec in manifest.outputs], row)
    manifest = replace(manifest, outputs=[spec for spec in manifest.outputs if spec.name in given])
    arrays = EagerEngine(module, manifest).run(row)
    free = TASKS[manifest.task].outputs
    shapes = {name: [free[name].get(axis, size) for axis, size in enumerate(array.shape)] for name, array in arrays.items()}
    return replace(manifest, outputs=[TensorSpec(name, "float32", shape) for name, shape in shapes.items()])
