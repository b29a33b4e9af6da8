"""Fresh processes to run models in, see `fresh`, asked for from the process that compiles."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import IO, Any

from cpuc.runtime.errors import CpucError
from cpuc.runtime.libraries import ipex_is_loaded


class Fresh:
    """Where fresh processes of one kind come from.

    A process of its own forks them. It is started when it is needed and ends by itself when it is not, or with this process;
    it has the environment of this one as it was then.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._forget()
        # Somebody else's fork of this process has neither the server nor whoever holds the lock.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def start(self) -> None:
        """Let it begin to import what it will need, without waiting for it."""
        if self._lock.acquire(blocking=False):  # else it is there
            try:
                self._started()
            finally:
                self._lock.release()

    def run(self, arguments: Sequence[str], inputs: bytes, handles: Sequence[int] = ()) -> bytes:
        """What a fresh process answers to `inputs`, both .npz.

        Raises ChildProcessError with the last line that it wrote if it fails, and CpucError if there can be none, or if it was
        killed or had not enough memory or room.
        """
        with self._lock, contextlib.ExitStack() as stack:
            try:
                files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
                files[0].write(inputs)
                files[0].seek(0)
            except OSError as error:
                raise _impossible(error) from None
            try:
                code = self._ask(arguments, [*(file.fileno() for file in files), *handles])
            except BaseException:  # it may be in the middle of something
                self.stop()
                raise
            outputs, printed = map(_content, files[1:])
        if code:
            raise _failure(code, printed)
        return outputs

    def _ask(self, arguments: Sequence[str], handles: Sequence[int]) -> int:
        for _ in range(2):
            server = self._started()
            if (answer := server.ask(json.dumps(arguments), handles)) is not None:
                return answer
            code, printed = server.stop()
            self._server = None
            if code:
                break
            # It ended for want of work just before it was given some.
        raise _failure(code, printed)

    def _started(self) -> _Server:
        if self._server is not None and self._server.has_ended():
            self.stop()
        if self._server is None:
            try:
                self._server = _Server(self._kind)
            except OSError as error:
                raise _impossible(error) from None
            atexit.register(self.stop)
        return self._server

    def stop(self) -> None:
        """End it, and what it has forked."""
        atexit.unregister(self.stop)
        if self._server is not None:
            self._server.stop()
            self._server = None


class _Server:
    """The process that forks."""

    def __init__(self, kind: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, contextlib.ExitStack() as undo:
            self._printed: IO[bytes] = undo.enter_context(tempfile.TemporaryFile())
            # Not in the place of a standard stream that is closed, which libraries write to.
            self._control = undo.enter_context(socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 3)))
            # In a session of its own, Ctrl-C reaches it through this process only.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cpuc.compiler.fresh", kind],
                stdin=theirs.fileno(),
                stdout=self._printed,
                stderr=self._printed,
                start_new_session=True,
            )
            undo.pop_all()

    def ask(self, message: str, handles: Sequence[int]) -> int | None:
        """The exit code of the process that it forks; None if it has ended before that."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._control, [message.encode()], handles)
            if answer := self._control.recv(64):
                return int(answer)
        self.has_ended(0)
        return None

    def has_ended(self, how: int = os.WNOHANG) -> bool:
        """Whether it has; it is left to be waited for, so that its number stays its own."""
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | how) is not None
        except ChildProcessError:  # this process ignores SIGCHLD
            return True

    def stop(self) -> tuple[int, bytes]:
        """End it, and what it has forked. Returns its exit code, and what it printed."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code, printed = self._process.wait(), _content(self._printed)
        self._control.close()
        self._printed.close()
        return code, printed


def _failure(code: int, printed: bytes) -> ChildProcessError | CpucError:
    """What a process died of; that it was killed, or lacked room, says nothing of what ran in it."""
    lines = printed.decode(errors="replace").strip().splitlines() or [f"it ended with code {code}"]
    if code not in (-signal.SIGKILL, os.EX_TEMPFAIL):
        return ChildProcessError(lines[-1])
    return CpucError(
        f"verification could not be finished: {lines[-1]}: it needs memory for the model once more, and room in the temporary "
        "folder (TMPDIR)"
    )


def _impossible(error: OSError) -> CpucError:
    return CpucError(
        f"no process to verify in can be started: {error.strerror or error}: "
        "it needs room in the temporary folder (TMPDIR), and to be allowed as one more process"
    )


def _content(file: IO[Any]) -> bytes:
    file.seek(0)
    content: bytes = file.read()
    return content


# Originals never share a process with IPEX's library, nor artifacts with transformers.
ORIGINALS, ARTIFACTS = Fresh("original"), Fresh("artifact")


def start_processes() -> None:
    """Let begin what verification will need."""
    ARTIFACTS.start()
    if ipex_is_loaded():
        ORIGINALS.start()
