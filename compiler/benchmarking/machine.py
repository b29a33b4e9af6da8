"""The machine and the libraries that figures belong to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cpuc.runtime.cpu import cpu_name
from cpuc.runtime.libraries import installed_versions


@dataclass(frozen=True)
class Machine:
    """`cpu` is its name as the system gives it, `isa` what torch uses of it, `threads` how many torch runs on."""

    cpu: str
    isa: str
    threads: int
    torch: str
    ipex: str


def describe_machine() -> Machine:
    """This machine, as it runs artifacts."""
    isa = torch.backends.cpu.get_cpu_capability()
    return Machine(cpu_name(), isa, torch.get_num_threads(), **installed_versions())
