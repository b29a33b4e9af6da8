"""The module that an artifact in int8 is: weights in int8 as its state, packed anew whenever it is loaded.

oneDNN packs weights for the CPU it runs on, so packed ones cannot be stored: the archive holds plain int8, and TorchScript's
own hook for reading a module's state, which is part of the archive, packs them (about 0.1 s for BERT-base).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_STATE = """
def __getstate__(self) -> Tuple[List[Tensor], bool]:
    return (self.weights, self.training)

def __setstate__(self, state: Tuple[List[Tensor], bool]) -> None:
    packed: List[Tensor] = []
    for weight in state[0]:
        packed.append(torch.ops.onednn.qlinear_prepack(weight, None))
    self.packed = packed
    self.weights = []
    self.training = state[1]
"""


def package(function: Callable[..., Any], names: Sequence[str], weights: list[torch.Tensor]) -> Any:
    """A TorchScript module whose ``forward`` takes `names` and calls `function` with them and the packed `weights`.

    A compilation unit of its own gives it the same name in every archive; `torch.jit.script` counts.
    """
    unit = torch._C.CompilationUnit()
    new: Any = torch._C.ScriptModule  # annotated without arguments
    module = new("__torch__.Artifact", unit, True)
    tensors = torch._C.ListType.ofTensors()
    module._register_attribute("training", torch._C.BoolType.get(), False)
    module._register_attribute("weights", tensors, weights)
    module._register_attribute("packed", tensors, [])
    arguments = ", ".join(names)
    forward = f"def forward(self, {arguments}):\n    return function({arguments}, self.packed)\n"
    known = {"function": function, "torch": torch}
    kind = torch._C.ConcreteModuleType.from_jit_type(module._type())
    for source in (_STATE, forward):
        module._define(kind, source, known.get)
    torch._C._jit_pass_inline(module._get_method("forward").graph)
    return module
