"""What the comparison asks of an engine.

Imported by the workers: the peers' environment has no cpuc, and cpuc's has no peers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

Arrays = Mapping[str, np.ndarray]


class UnsupportedError(Exception):
    """Why an engine has nothing to show for a model, a precision or a case."""


class Engine:
    """A loaded model.

    Attributes:
        precisions: those that the engine has.
        one_shape: whether each shape is compiled for itself, so that cases of many shapes are not for it.
        hidden: whether it gives hidden states of the encoder instead of the head's outputs, which are not compared then.
        tcmalloc: whether it gets that allocator; with it OpenVINO 2026.4 aborts.
    """

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    one_shape: ClassVar[bool] = False
    hidden: ClassVar[bool] = False
    tcmalloc: ClassVar[bool] = False

    def __init__(
        self, source: Path, precision: str, work: Path, example: Arrays, calibration: list[dict[str, np.ndarray]]
    ) -> None:
        self.source, self.precision, self.work = source, precision, work
        self.example, self.calibration = example, calibration
        work.mkdir(parents=True, exist_ok=True)

    def build(self) -> None:
        """Make what a server would deploy, in `work`, unless it is there."""

    def load(self) -> None:
        """What a server's process does when it starts."""
        raise NotImplementedError

    def run(self, arrays: Arrays) -> np.ndarray:
        """The first output."""
        raise NotImplementedError

    def start_streams(self, count: int) -> None:  # noqa: ARG002
        """Load what `run_on_stream` takes, for `count` threads at once, each of which has its share of the CPUs."""
        raise UnsupportedError("has no streams")

    def run_on_stream(self, arrays: Arrays) -> np.ndarray:
        """As `run`, from one of several threads."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """What is deployed."""
        return [path for path in self.work.rglob("*") if path.is_file()]

    def exportable(self, attention: str = "sdpa") -> Any:
        """The same with plain outputs. Models of images and sound need their parts' names inside."""
        import torch

        model = self.model(attention)
        if "input_ids" in self.example:
            model.config.return_dict = False
            return model

        class Outputs(torch.nn.Module):
            config = model.config

            def __init__(self) -> None:
                super().__init__()
                self.model = model

        class OfImages(Outputs):
            def forward(self, pixel_values: torch.Tensor) -> Any:
                return _tensors(self.model(pixel_values=pixel_values))

        class OfSound(Outputs):
            def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
                return _tensors(self.model(input_values=input_values, attention_mask=attention_mask))

        return (OfImages if "pixel_values" in self.example else OfSound)().eval()

    def model(self, attention: str = "sdpa") -> Any:
        """The original, in float32 and in eager mode; `attention` is transformers' ``attn_implementation``, where it has it."""
        import transformers

        transformers.logging.set_verbosity_error()
        kind = getattr(transformers, json.loads((self.source / "config.json").read_text())["architectures"][0])
        if not kind._supports_sdpa:
            attention = "eager"
        return kind.from_pretrained(self.source, dtype="float32", attn_implementation=attention).eval()


def _tensors(outputs: Any) -> tuple[Any, ...]:
    return tuple(each for each in outputs.values() if hasattr(each, "dtype"))
