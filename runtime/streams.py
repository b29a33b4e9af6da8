"""Streams: threads of one process that answer side by side from one copy of the weights.

A call on every CPU has to wait for its slowest thread at the end of each operator; calls of one CPU each have nobody to wait
for. So several streams answer more requests per second, and each request takes longer.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cpuc.runtime.errors import InputError

if TYPE_CHECKING:
    import numpy as np


class Streams:
    """Calls of an engine run on streams, each with its own share of this process's CPUs.

    Args:
        call: its `run`; others should not call it meanwhile, if latency matters.
        count: how many streams, from 1 to the number of CPUs that this process may use.

    Raises:
        InputError: `count` is out of these bounds.
    """

    def __init__(self, call: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]], count: int) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        if not 1 <= count <= len(cpus):
            raise InputError(f"streams is {count}, must be 1 to {len(cpus)}, the CPUs that this process may use")
        self.count = count
        self._call = call
        # Neighbours share caches: a stream gets neighbours.
        bounds = [len(cpus) * i // count for i in range(count + 1)]
        shares = [cpus[start:end] for start, end in itertools.pairwise(bounds)]
        self._pool = ThreadPoolExecutor(count, "cpuc-stream", _settle, (shares,))
        self._meeting = threading.Lock()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The engine's `run`, on the next stream that is free."""
        return self._pool.submit(self._call, inputs).result()

    def map(self, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        """`run` for each of `batches`, in their order, side by side."""
        return self._pool.map(self._call, batches)

    def everywhere(self, inputs: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """`run` once on every stream, at the same time."""
        together = threading.Barrier(self.count)

        def meet(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            together.wait()
            return self._call(inputs)

        with self._meeting:  # of two meetings, each would wait for streams that the other holds
            return list(self._pool.map(meet, [inputs] * self.count))


def _settle(shares: list[list[int]]) -> None:
    """Give the thread that has just started one of `shares`; threads that torch makes for it inherit it."""
    import torch

    share = shares.pop()
    os.sched_setaffinity(0, share)
    torch.set_num_threads(len(share))
