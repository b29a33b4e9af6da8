"""Run a model in this fresh process: ``python -m cpuc.compiler.fresh KIND ARGUMENT… < INPUTS.npz > OUTPUTS.npz``.

Arrays are named ``<batch>/<position>``. No file is written that a killed process could leave behind.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpuc.runtime.archive import reopened
from cpuc.runtime.libraries import load_ipex

Run = Callable[..., Sequence[torch.Tensor]]


def artifact(handle: str) -> Run:
    """What a server does: torch, IPEX's library, ``torch.jit.load``. `handle` is the number of the open file."""
    load_ipex()
    return torch.jit.load(reopened(int(handle)))  # type: ignore[no-any-return]


def original(folder: str, weights: str, task: str, kind: str, inputs: str, outputs: str) -> Run:
    """The original model, eager, without IPEX's library, which replaces kernels of torch; names are joined by commas."""
    from cpuc.compiler.capture import Named
    from cpuc.compiler.loading import load_original
    from cpuc.compiler.source import Snapshot, resolve

    model = load_original(resolve(folder), Snapshot(Path(folder), weights), task, kind).module
    return Named(model, inputs.split(","), outputs.split(","))


KINDS: dict[str, Callable[..., Run]] = {"artifact": artifact, "original": original}


def answer(run: Run, inputs: bytes) -> bytes:
    """The outputs (.npz) for every batch of `inputs` (.npz)."""
    results: dict[str, Any] = {}
    with np.load(io.BytesIO(inputs)) as arrays, torch.inference_mode(), torch.jit.optimized_execution(False):
        count = 1 + max(int(name.split("/")[0]) for name in arrays.files)
        for batch in range(count):
            names = sorted((name for name in arrays.files if name.startswith(f"{batch}/")), key=lambda n: int(n.split("/")[1]))
            for position, tensor in enumerate(run(*(torch.from_numpy(arrays[name]) for name in names))):
                results[f"{batch}/{position}"] = tensor.numpy()
    outputs = io.BytesIO()
    np.savez(outputs, **results)
    return outputs.getvalue()


if __name__ == "__main__":
    # Libraries that print, as oneDNN does if asked to, must not end up among the results.
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)
        output.write(answer(KINDS[sys.argv[1]](*sys.argv[2:]), sys.stdin.buffer.read()))
