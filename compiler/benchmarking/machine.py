"""The machine and the libraries that figures belong to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

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
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    isa = torch.backends.cpu.get_cpu_capability()
    return Machine(names[0] if names else "unknown CPU", isa, torch.get_num_threads(), **installed_versions())
