"""The module that an artifact is whose weights are packed anew whenever it is loaded.

What is packed is for the CPU it runs on and cannot be stored. TorchScript's own hook for reading a module's state, which is
part of the archive, packs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def as_module(
    function: Callable[..., Any], names: Sequence[str], attributes: Mapping[str, tuple[Any, Any]], state: str, **known: Any
) -> Any:
    """A TorchScript module whose ``forward`` takes `names` and calls `function` with them and its attribute ``packed``.

    Args:
        function: of a graph.
        names: of its inputs, but for the last.
        attributes: type and value of each attribute, ``packed`` among them.
        state: the source of ``__getstate__`` and ``__setstate__``; they may set the attribute ``training``.
        known: functions that `state` calls.

    A compilation unit of its own gives it the same name in every archive; `torch.jit.script` counts.
    """
    unit = torch._C.CompilationUnit()
    new: Any = torch._C.ScriptModule  # annotated without arguments
    module = new("__torch__.Artifact", unit, True)
    module._register_attribute("training", torch._C.BoolType.get(), False)
    for name, (kind, value) in attributes.items():
        module._register_attribute(name, kind, value)
    arguments = ", ".join(names)
    forward = f"def forward(self, {arguments}):\n    return function({arguments}, self.packed)\n"
    concrete = torch._C.ConcreteModuleType.from_jit_type(module._type())
    for source in (state, forward):
        module._define(concrete, source, {"function": function, "torch": torch, **known}.get)
    for method in module._method_names():
        torch._C._jit_pass_inline(module._get_method(method).graph)
    return module
