"""How the C library's allocator treats the memory of activations.

Every call of a model frees what it allocated. By default glibc hands such blocks back to the kernel, and the next call pays
for each page anew: thousands of page faults per call of BERT-base with 8 rows of 128 tokens, a tenth of its time in int8.
"""

from __future__ import annotations

import ctypes
import os

# The first is the most that glibc itself adapts to (M_MMAP_THRESHOLD in mallopt(3)).
_MMAP_THRESHOLD, _TRIM_THRESHOLD = 32 << 20, 256 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Let the heap of this process keep 256 MiB of freed memory for its next allocations (``mallopt``).

    More of it goes back to the kernel if it lies at the end of the heap; what lies under a block in use stays, as it does
    with glibc's own limits. Does nothing where the user has set one of the allocator's own variables, and with another C
    library than glibc.
    """
    chosen = os.environ.keys() & {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
