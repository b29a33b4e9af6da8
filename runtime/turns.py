"""Who may run a graph at the same time as whom."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Turns:
    """Lets calls run side by side, or one of them alone. Who wants to be alone goes before those that come later.

    Attributes:
        together: the context of a turn beside others.
        alone: that of a turn while nobody else has one.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._waiting = 0
        self._taken = False
        self.together = _Turn(self._begin_together, self._end_together)
        self.alone = _Turn(self._begin_alone, self._end_alone)

    def _begin_together(self) -> None:
        with self._changed:
            while self._taken or self._waiting:
                self._changed.wait()
            self._running += 1

    def _begin_alone(self) -> None:
        with self._changed:
            self._waiting += 1
            try:
                while self._taken or self._running:
                    self._changed.wait()
            finally:
                self._waiting -= 1
            self._taken = True

    def _end_together(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def _end_alone(self) -> None:
        with self._changed:
            self._taken = False
            self._changed.notify_all()


class _Turn:
    """A context. contextlib would make one of a generator, at 10 us of each call of a model."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin, self._end = begin, end

    def __enter__(self) -> None:
        self._begin()

    def __exit__(self, *_: object) -> None:
        self._end()


# libxsmm's kernels are made when a shape is met for the first time, and IPEX keeps them, for the whole process, in tables that
# have no lock. Whoever finds all that it needs there may go with others.
KERNELS = Turns()
