"""Fresh processes to run models in, see `fresh`, asked for from the process that compiles."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import IO

from cpuc.runtime.libraries import ipex_is_loaded


class Fresh:
    """Where fresh processes of one kind come from.

    A process of its own forks them. It is started when it is needed and ends by itself when it is not, or with this process;
    it has the environment of this one as it was then.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def start(self) -> None:
        """Let it begin to import what it will need, without waiting for it."""
        with self._lock:
            self._start()

    def run(self, arguments: Sequence[str], inputs: bytes, handles: Sequence[int] = ()) -> bytes:
        """What a fresh process answers to `inputs`, both .npz.

        Raises ChildProcessError with the last line that it wrote if it fails.
        """
        with self._lock, _files(3) as files:
            with open(files[0], "wb", closefd=False) as file:
                file.write(inputs)
            os.lseek(files[0], 0, os.SEEK_SET)
            try:
                code = self._ask(arguments, [*files, *handles])
            except BaseException:  # it may be in the middle of something
                self._stop()
                raise
            outputs, printed = (_content(handle) for handle in files[1:])
        if code:
            raise _failure(code, printed)
        return outputs

    def _ask(self, arguments: Sequence[str], handles: Sequence[int]) -> int:
        for _ in range(2):
            self._start()
            assert self._process
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(self._control, [json.dumps(arguments).encode()], handles)
                if answer := self._control.recv(64):
                    return int(answer)
            if code := self._process.wait():
                break
            # It ended for want of work just before it was given some.
        raise _failure(code, _content(self._printed.fileno()))

    def _start(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            if self._process.poll() is None:
                return
            self._stop()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._printed: IO[bytes] = os.fdopen(os.memfd_create("cpuc"), "rb")
        command = [sys.executable, "-P", "-m", "cpuc.compiler.fresh", self._kind]
        with theirs:
            # In a session of its own, Ctrl-C reaches it through this process only.
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=self._printed, stderr=self._printed, start_new_session=True
            )
        self._owner = os.getpid()
        atexit.register(self._stop)

    def _stop(self) -> None:
        if self._process is None or self._owner != os.getpid():
            return
        atexit.unregister(self._stop)
        self._control.close()
        self._printed.close()
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None


@contextlib.contextmanager
def _files(count: int) -> Iterator[list[int]]:
    """Open files in memory, which have no name."""
    with contextlib.ExitStack() as stack:
        handles = [os.memfd_create("cpuc") for _ in range(count)]
        for handle in handles:
            stack.callback(os.close, handle)
        yield handles


def _failure(code: int, printed: bytes) -> ChildProcessError:
    lines = printed.decode(errors="replace").strip().splitlines() or [f"it ended with code {code}"]
    return ChildProcessError(lines[-1])


def _content(handle: int) -> bytes:
    os.lseek(handle, 0, os.SEEK_SET)
    with open(handle, "rb", closefd=False) as file:
        return file.read()


# Originals never share a process with IPEX's library, nor artifacts with transformers.
ORIGINALS, ARTIFACTS = Fresh("original"), Fresh("artifact")


def start_processes() -> None:
    """Let begin what verification will need."""
    ARTIFACTS.start()
    if ipex_is_loaded():
        ORIGINALS.start()
