"""cpuc, as the README says it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from engine import Arrays, Engine, UnsupportedError


class Cpuc(Engine):
    """What this repository makes."""

    precisions = ("fp32", "bf16", "int8")
    tcmalloc = True
    scheme: ClassVar[str] = ""

    def build(self) -> None:
        self._compile(self.work / "model.pt")

    def _compile(self, bundle: Path, *options: str) -> None:
        if bundle.exists():
            return
        task = "image-classification" if "pixel_values" in self.example else "question-answering"
        program = [sys.executable, "-c", "from cpuc.cli import program; program()"]
        command = [
            *program,
            "compile",
            str(self.source),
            "-o",
            str(bundle),
            "--precision",
            self._own(),
            "--task",
            task,
            *options,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnsupportedError(done.stderr.strip().splitlines()[-1])

    def _own(self) -> str:
        from cpuc.compiler.precision import PRECISIONS
        from cpuc.runtime.engine import cpu_offers

        name = self.precision + self.scheme
        return f"{name}-fp32" if PRECISIONS[name].int8 and not cpu_offers(PRECISIONS[name].isa) else name

    def load(self) -> None:
        import cpuc

        self._model = cpuc.load(self.work / "model.pt", warm_up=False)
        self._names = [spec.name for spec in self._model.manifest.inputs]

    def run(self, arrays: Arrays) -> np.ndarray:
        return self._answer(self._model, arrays)

    def start_streams(self, count: int) -> None:
        import cpuc

        self._streams = cpuc.load(self.work / "model.pt", warm_up=False, streams=count)

    def run_on_stream(self, arrays: Arrays) -> np.ndarray:
        return self._answer(self._streams, arrays)

    def _answer(self, model: Any, arrays: Arrays) -> np.ndarray:
        return next(iter(model.raw({name: arrays[name] for name in self._names}).values()))


class CpucDynamic(Cpuc):
    """The same with activations scaled while running."""

    precisions = ("int8",)
    scheme = "-dynamic"


class CpucTuned(Cpuc):
    """An artifact for each shape, in the forms that are fastest for that."""

    one_shape = True

    def build(self) -> None:
        """Shapes are not known yet."""

    def load(self) -> None:
        self._by_shape: dict[tuple[int, ...], Any] = {}

    def start_streams(self, count: int) -> None:  # noqa: ARG002
        raise UnsupportedError("compiled for one shape at a time")

    def run(self, arrays: Arrays) -> np.ndarray:
        import cpuc

        shape = next(iter(arrays.values())).shape
        if shape not in self._by_shape:
            size = "x".join(map(str, shape[:1] if "pixel_values" in arrays else shape))
            bundle = self.work / f"{size}.pt"
            self._compile(bundle, "--tune-shapes", size)
            self._by_shape[shape] = cpuc.load(bundle, warm_up=False)
        model = self._by_shape[shape]
        return next(iter(model.raw({spec.name: arrays[spec.name] for spec in model.manifest.inputs}).values()))


class Fused(Engine):
    """A fused graph in `work`, which takes inputs in the order of a case: of models that are no artifact."""

    tcmalloc = True

    def load(self) -> None:
        import torch

        from cpuc.runtime.libraries import load_ipex

        load_ipex()
        self._graph: Any = torch.jit.load(self.work / "graph.pt")

    def run(self, arrays: Arrays) -> np.ndarray:
        import torch

        with torch.inference_mode(), torch.jit.optimized_execution(False):
            return np.asarray(self._graph(*map(torch.from_numpy, arrays.values()))[0])
