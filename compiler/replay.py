"""Run a staged artifact in this fresh process: ``python -m cpuc.compiler.replay ARTIFACT INPUTS.npz OUTPUTS.npz``.

Arrays are named ``<batch>/<position>``. It is what a server does: torch, IPEX's library, ``torch.jit.load``.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from cpuc.runtime.libraries import load_ipex


def replay(artifact: str, inputs: str, outputs: str) -> None:
    """Load `artifact`, run every batch of `inputs` (.npz) and write `outputs` (.npz)."""
    load_ipex()
    module = torch.jit.load(artifact)
    results = {}
    with np.load(inputs) as arrays, torch.inference_mode(), torch.jit.optimized_execution(False):
        count = 1 + max(int(name.split("/")[0]) for name in arrays.files)
        for batch in range(count):
            names = sorted((name for name in arrays.files if name.startswith(f"{batch}/")), key=lambda n: int(n.split("/")[1]))
            for position, tensor in enumerate(module(*(torch.from_numpy(arrays[name]) for name in names))):
                results[f"{batch}/{position}"] = tensor.numpy()
    np.savez(outputs, **results)


if __name__ == "__main__":
    replay(*sys.argv[1:4])
