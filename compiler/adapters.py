"""What some tasks put around a model before it is captured, so that the graph gives what the task needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from cpuc.compiler.source import Source


def one_choice(model: Any, source: Source, folder: Path) -> torch.nn.Module:  # noqa: ARG001 - what every adapter is given
    """A multiple-choice model that takes one choice a row: logits of shape [rows, 1].

    Models of transformers take [batch, choices, tokens], with all choices of all records padded to one length.
    """
    import torch

    class OneChoice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, return_dict: bool = True, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            rows = {name: tensor.unsqueeze(1) for name, tensor in inputs.items()}
            return {"logits": self.model(**rows, return_dict=return_dict).logits}

    return OneChoice()


def embedding(model: Any, source: Source, folder: Path) -> torch.nn.Module:
    """An encoder followed by the modules of its sentence-transformers folder: ``embedding`` of shape [batch, dimensions]."""
    from cpuc.compiler.embeddings import Embedder, load_modules

    return Embedder(model, load_modules(source, folder))
