"""The machine and the libraries that figures belong to."""

from __future__ import annotations

import os
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
    isa = torch.backends.cpu.get_cpu_capability()
    return Machine(cpu_name(), isa, torch.get_num_threads(), **installed_versions())


def cpu_name() -> str:
    """The CPU's name as the system gives it, of the first core."""
    return _fact("model name") or "unknown CPU"


def is_intel() -> bool:
    """Whether the CPU is Intel's, for whose CPUs alone MKL has AVX-512."""
    return _fact("vendor_id") == "GenuineIntel"


def has_vnni() -> bool:
    """Whether the CPU has instructions that add products of bytes, in AVX-512's encoding or AVX's, as the system says."""
    return bool({"avx512_vnni", "avx_vnni"} & set((_fact("flags") or "").split()))


def _fact(name: str) -> str | None:
    """What the system says of the first core."""
    try:
        found = re.search(rf"^{name}\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1].strip() if found else None


def cpu_count() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0))
