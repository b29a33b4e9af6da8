"""Who may run a graph at the same time as whom."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Turns:
    """Lets calls run side by side, or one of them alone. Who wants to be alone goes before those that come later."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together = 0
        self._waiting = 0
        self._taken = False

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A turn beside others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken and not self._waiting)
            self._together += 1
        try:
            yield
        finally:
            self._end(-1)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A turn while nobody else has one."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._taken and not self._together)
            finally:
                self._waiting -= 1
            self._taken = True
        try:
            yield
        finally:
            self._end(0)

    def _end(self, together: int) -> None:
        with self._changed:
            self._together += together
            self._taken = False
            self._changed.notify_all()


# libxsmm's kernels are made when a shape is met for the first time, and IPEX keeps them, for the whole process, in tables that
# have no lock. Whoever finds all that it needs there may go with others.
KERNELS = Turns()
