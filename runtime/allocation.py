"""How the C library's allocator treats the memory of weights and activations.

Every call of a model frees what it allocated. By default glibc hands such blocks back to the kernel, and the next call pays
for each page anew: thousands of page faults per call of BERT-base with 8 rows of 128 tokens, a tenth of its time in int8.

What is left is the translation of addresses: with pages of 4 KiB BERT-base is 1.02 to 1.09 times as slow as with those of
2 MiB, at every precision, on a Xeon with AMX. Linux gives such pages where they are asked for (transparent_hugepage/enabled is
"madvise" in most distributions), so the heap asks for the memory that a model will have.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import threading
from collections.abc import Iterator
from typing import Any

# The most that glibc itself adapts to (M_MMAP_THRESHOLD in mallopt(3)): larger blocks are no part of the heap.
_MMAP_THRESHOLD = 32 << 20
_KEPT = 256 << 20
# By what the heap grows. Of another thread's heaps, of 64 MiB each, glibc gives back none while the one before has less room
# than this.
_PADDING = 32 << 20
# mallopt takes an int; of larger models the rest is in ordinary pages.
_MOST = (2 << 30) - 1 - 2 * _KEPT
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MXFAST = -1, -2, -3, 1  # malloc.h
_OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")


_turn = threading.RLock()  # the limits are the process's


@contextlib.contextmanager
def heap_for(size: int) -> Iterator[None]:
    """Around the loading of a model of `size` bytes: it finds room at the end of the heap, in huge pages.

    From then on the heap of this process keeps 256 MiB of freed memory for its next allocations (``mallopt``). More of it goes
    back to the kernel if it lies at the end of the heap; what lies under a block in use stays, as it does with glibc's own
    limits. Pages that nobody has written to take no memory. Threads other than the first may have heaps of their own, which
    are not in huge pages; nor is a model that such a thread loads.

    Does nothing where the user has set one of the allocator's own variables, and with another C library than glibc. Where the
    process's memory is limited (``ulimit -v``, ``-d``), which counts room that is never used, none is taken in advance.
    """
    library = ctypes.CDLL(None)
    chosen = any(name in os.environ for name in _OWN_CHOICE) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not hasattr(library, "mallopt"):
        yield
        return
    room = min(size, _MOST) + _KEPT if _unlimited() and threading.current_thread() is threading.main_thread() else 0
    with _turn:
        try:
            library.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
            library.mallopt(_M_TRIM_THRESHOLD, room + _KEPT)
            library.mallopt(_M_TOP_PAD, max(room, _PADDING))
            library.mallopt(_M_MXFAST, 0)  # else freed memory is gathered again and again, for blocks that are small
            _grow(library, room)
            yield
        finally:
            library.mallopt(_M_TOP_PAD, _PADDING)
            library.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def _unlimited() -> bool:
    limits = (resource.getrlimit(each)[0] for each in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return all(limit == resource.RLIM_INFINITY for limit in limits)


def _grow(library: Any, size: int) -> None:
    """Have room for `size` bytes in the heap, and ask for huge pages as far as it had to grow.

    It is taken and given back in blocks: by one, M_TOP_PAD makes glibc's heap longer; another allocator keeps what it has.
    """
    library.sbrk.restype, library.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    begin = library.sbrk(0)
    blocks = [library.malloc(_MMAP_THRESHOLD - mmap.PAGESIZE) for _ in range(-(-size // _MMAP_THRESHOLD))]
    begin, end = begin + -begin % mmap.PAGESIZE, library.sbrk(0)
    if begin < end:
        library.madvise(begin, end - begin, mmap.MADV_HUGEPAGE)
    for block in blocks:
        library.free(block)
