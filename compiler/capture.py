"""Capture: an eager model and example inputs become a frozen TorchScript graph, free in batch and sequence."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cpuc.runtime.errors import CpucError, ModelError

Inputs = Mapping[str, np.ndarray]


class Named(torch.nn.Module):
    """Calls a model by keyword and returns its outputs as float32, both in a fixed order.

    Pixels and sound come in as float32 whatever the model's precision is: the cast is part of the graph.
    """

    def __init__(self, model: torch.nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cast = (tensor.to(self.dtype) if tensor.is_floating_point() else tensor for tensor in tensors)
        result: Any = self.model(**dict(zip(self.inputs, cast, strict=True)), return_dict=True)
        return tuple(result[name].float() for name in self.outputs)


def to_dtype(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """`model` in `dtype`, but for the frequencies of rotary positions, which transformers keeps in float32.

    Angles are products of them with positions, so that a rounded one would be off by more than a turn thousands of tokens on.
    """
    kept = {name: buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    model.to(dtype)
    for name, buffer in kept.items():
        place, _, last = name.rpartition(".")
        setattr(model.get_submodule(place), last, buffer)
    return model


def to_tensors(inputs: Inputs, names: Sequence[str]) -> list[torch.Tensor]:
    """The arrays as tensors, in the order of `names`."""
    return [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names]


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Around a run of the original model, which may stumble over anything: that becomes a ModelError."""
    try:
        yield
    except CpucError:  # it has not run
        raise
    except Exception as error:
        raise ModelError(f"the original model does not run: {(str(error).strip() or repr(error)).splitlines()[0]}") from error


def given_outputs(model: torch.nn.Module, names: Sequence[str], batch: Inputs) -> list[str]:
    """Which of the outputs `names` the model gives. Raises ModelError if it does not run."""
    with explained(), torch.inference_mode():
        result: Any = model(**{name: torch.from_numpy(array) for name, array in batch.items()}, return_dict=True)
    return [name for name in names if result.get(name) is not None]


def run_eager(model: torch.nn.Module, inputs: Sequence[str], outputs: Sequence[str], batch: Inputs) -> dict[str, np.ndarray]:
    """The model's own outputs, float32, by name."""
    with torch.inference_mode():
        result = Named(model, inputs, outputs)(*to_tensors(batch, inputs))
    return {name: tensor.numpy() for name, tensor in zip(outputs, result, strict=True)}


def capture(model: torch.nn.Module, inputs: Sequence[str], outputs: Sequence[str], example: Inputs) -> torch.jit.ScriptModule:
    """Trace and freeze.

    Args:
        model: in evaluation mode, in the precision that the artifact is to have.
        inputs: names of the arguments, in the order that the graph is to take them.
        outputs: attributes of the model's result that the graph returns, as float32.
        example: one batch. It should have several rows and padding, so that no special case is traced.

    Returns:
        A frozen module whose weights are constants of its graph.
    """
    named = Named(model, inputs, outputs).eval()
    with torch.no_grad(), warnings.catch_warnings():
        # The tracer warns of every Python value that depends on a shape; verification on other shapes decides.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(named, tuple(to_tensors(example, inputs)), check_trace=False, strict=False)
        frozen: torch.jit.ScriptModule = torch.jit.freeze(traced)
        return frozen
