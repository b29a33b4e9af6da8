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
# What is left for calls at the end of the heap, and how much may be free there before some of it goes back.
_KEPT, _FREED = 256 << 20, 512 << 20
# By what the heap grows. Of another thread's heaps, of 64 MiB each, glibc gives back none while the one before has less room
# than this.
_PADDING = 32 << 20
# mallopt takes an int; of larger models the rest is in ordinary pages.
_MOST = (2 << 30) - 1 - _KEPT - _FREED
# When a block of that size is freed, glibc compares the limit (FASTBIN_CONSOLIDATION_THRESHOLD, 64 KiB, in malloc.c).
_GATHERED = 1 << 20
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MXFAST = -1, -2, -3, 1  # malloc.h
_OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")


_turn = threading.Lock()  # the limits are the process's
_loading = 0


def _begin_child() -> None:
    """Of a fork: other threads are not there, nor what they were loading."""
    global _loading
    _loading = 0
    _turn.release()


os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_begin_child)


@contextlib.contextmanager
def heap_for(size: int) -> Iterator[None]:
    """Around the loading of a model of `size` bytes: it finds room at the end of the heap, in huge pages.

    From then on the heap of this process keeps up to 512 MiB of freed memory for its next allocations (``mallopt``). If
    there is more, all but 32 MiB goes back to the kernel, as far as it lies at the end of the heap; what lies under a block
    in use stays, as it does with glibc's own limits. Of the room in huge pages, 256 MiB are left for the calls and for
    what is packed beside the weights. Pages that
    nobody has written to take no memory. Threads other than the first may have heaps of their own, which are not in huge
    pages; nor is a model that such a thread loads.

    Does nothing where the user has set one of the allocator's own variables, and with another C library than glibc. Where the
    process's memory is limited (``ulimit -v``, ``-d``), which counts room that is never used, none is taken in advance.
    """
    global _loading
    library = _c_library()
    chosen = any(name in os.environ for name in _OWN_CHOICE) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not hasattr(library, "mallopt"):
        yield
        return
    room = min(size, _MOST) + _KEPT if _unlimited() and threading.current_thread() is threading.main_thread() else 0
    try:
        with _turn:
            _loading += 1
            if room or _loading == 1:
                library.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
                library.mallopt(_M_TRIM_THRESHOLD, room + _FREED)
                library.mallopt(_M_TOP_PAD, max(room, _PADDING))
                library.mallopt(_M_MXFAST, 0)  # else freed memory is gathered again and again, for blocks that are small
                _grow(library, room)
                library.mallopt(_M_TOP_PAD, _PADDING)
        yield
    finally:
        with _turn:
            _loading = max(0, _loading - 1)  # it may have begun before a fork
            if not _loading:
                _shrink(library)


def _c_library() -> Any:
    library: Any = ctypes.CDLL(None)
    library.sbrk.restype, library.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


def _shrink(library: Any) -> None:
    """Leave `_KEPT` bytes at the end of the heap.

    Later, at its limit, glibc would leave the padding alone, and by what the heap grew then it would be in ordinary pages.
    (malloc_trim would give back pages between the weights too, and take their huge pages apart.)
    """
    library.mallopt(_M_TOP_PAD, _KEPT)
    library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
    library.free(library.malloc(_GATHERED))
    library.mallopt(_M_TOP_PAD, _PADDING)
    library.mallopt(_M_TRIM_THRESHOLD, _FREED)


def _unlimited() -> bool:
    limits = (resource.getrlimit(each)[0] for each in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return all(limit == resource.RLIM_INFINITY for limit in limits)


def _grow(library: Any, size: int) -> None:
    """Have room for `size` bytes in the heap, and ask for huge pages as far as it had to grow.

    It is taken and given back in blocks: by one, M_TOP_PAD makes glibc's heap longer; another allocator keeps what it has.
    """
    begin = library.sbrk(0)
    blocks = [library.malloc(_MMAP_THRESHOLD - mmap.PAGESIZE) for _ in range(-(-size // _MMAP_THRESHOLD))]
    begin, end = begin + -begin % mmap.PAGESIZE, library.sbrk(0)
    if begin < end:
        library.madvise(begin, end - begin, mmap.MADV_HUGEPAGE)
    for block in blocks:
        library.free(block)
