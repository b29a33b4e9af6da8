"""Models that run in fresh processes, and the process that forks them: ``python -m cpuc.compiler.fresh KIND``.

It has imported what takes seconds to import, loaded no model and computed nothing; what it forks is as good as a process of
its own, and there at once. Each request is a message on the Unix socket that is its standard input: arguments as a JSON list,
and open files, for inputs (.npz), outputs (.npz), what is printed, and what the kind takes besides. The answer is the exit
code. It ends when the socket is closed, or when nothing more is asked for a while.

Arrays are named ``<batch>/<position>``. No file is written that a killed process could leave behind.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpuc.runtime.archive import reopened
from cpuc.runtime.libraries import load_ipex

Run = Callable[..., Sequence[torch.Tensor]]
_IDLE = 60.0  # seconds
_LONGEST, _MOST = 1 << 16, 16  # of messages, bytes and open files


def artifact(handle: str) -> Run:
    """What a server does: torch, IPEX's library, ``torch.jit.load``. `handle` is the number of the open file."""
    load_ipex()
    return torch.jit.load(reopened(int(handle)))  # type: ignore[no-any-return]


def original(folder: str, weights: str, task: str, kind: str, inputs: str, outputs: str) -> Run:
    """The original model, eager, without IPEX's library, which replaces kernels of torch; names are joined by commas."""
    from cpuc.compiler.capture import Named
    from cpuc.compiler.loading import load_original
    from cpuc.compiler.source import Snapshot, resolve

    model = load_original(resolve(folder), Snapshot(Path(folder), weights), task, kind).module
    return Named(model, inputs.split(","), outputs.split(","))


@dataclass(frozen=True)
class Kind:
    """What makes the model, from arguments and the numbers of open files, and the modules that it will import."""

    load: Callable[..., Run]
    modules: tuple[str, ...] = ()


KINDS = {
    "artifact": Kind(artifact),
    "original": Kind(original, ("cpuc.compiler.capture", "cpuc.compiler.loading", "transformers.modeling_utils")),
}


def answer(run: Run, inputs: bytes) -> bytes:
    """The outputs (.npz) for every batch of `inputs` (.npz)."""
    results: dict[str, Any] = {}
    with np.load(io.BytesIO(inputs)) as arrays, torch.inference_mode(), torch.jit.optimized_execution(False):
        count = 1 + max(int(name.split("/")[0]) for name in arrays.files)
        for batch in range(count):
            names = sorted((name for name in arrays.files if name.startswith(f"{batch}/")), key=lambda n: int(n.split("/")[1]))
            for position, tensor in enumerate(run(*(torch.from_numpy(arrays[name]) for name in names))):
                results[f"{batch}/{position}"] = tensor.numpy()
    outputs = io.BytesIO()
    np.savez(outputs, **results)
    return outputs.getvalue()


def serve(control: socket.socket, kind: Kind) -> None:
    """Fork a process for each request, one after the other."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as daemons have it, nobody could wait for a child
    for module in kind.modules:
        importlib.import_module(module)
    patience = None  # a compile may take long until it asks
    while select.select([control], [], [], patience)[0]:
        message, handles, *_ = socket.recv_fds(control, _LONGEST, _MOST)
        if not message:
            return
        patience = _IDLE
        code = _forked(control, kind, json.loads(message), handles)
        try:
            control.send(str(code).encode())
        except BrokenPipeError:
            return


def _forked(control: socket.socket, kind: Kind, arguments: list[str], handles: list[int]) -> int:
    """The exit code of a process that answers a request; it ends early if nobody waits for it any more."""
    reading, writing = os.pipe()  # closed by the end of who writes to it, which is the child alone
    child = os.fork()
    if not child:
        control.detach()
        _work(kind, arguments, *handles)
    try:
        for handle in (writing, *handles):
            os.close(handle)
        if reading not in select.select([reading, control.fileno()], [], [])[0]:
            os.kill(child, signal.SIGKILL)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(reading)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code


def _work(kind: Kind, arguments: list[str], inputs: int, outputs: int, printed: int, *others: int) -> None:
    """Answer a request and end the process."""
    for stream, handle in enumerate((inputs, printed, printed)):
        os.dup2(handle, stream)
    try:
        with open(outputs, "wb") as results:
            results.write(answer(kind.load(*arguments, *map(str, others)), sys.stdin.buffer.read()))
    except BaseException as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        os._exit(os.EX_TEMPFAIL if lacks_room(error) else 1)
    os._exit(0)


def lacks_room(error: BaseException) -> bool:
    """Whether the machine is short of something, which says nothing of the model."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EAGAIN)
    return isinstance(error, MemoryError) or any(said in str(error) for said in ("can't allocate memory", "bad_alloc"))


if __name__ == "__main__":
    try:
        serve(socket.socket(fileno=0), KINDS[sys.argv[1]])
    except (OSError, MemoryError) as failure:
        traceback.print_exc()
        sys.exit(os.EX_TEMPFAIL if lacks_room(failure) else 1)
