"""This machine's CPU."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cpuc.runtime.manifest import Tuning


def cpu_name() -> str:
    """Its name as the system gives it, of the first core."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else "unknown CPU"


def cpu_count() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def best_threads(tuning: Tuning | None) -> int | None:
    """How many threads a call is fastest on, as far as that was measured on such a machine; None is torch's own number.

    Who sets ``OMP_NUM_THREADS`` decides.
    """
    if tuning is None or "OMP_NUM_THREADS" in os.environ or (tuning.cpu, tuning.cpus) != (cpu_name(), cpu_count()):
        return None
    return tuning.threads
