"""The installed program, run in processes that are forked from one which has imported torch and transformers already.

What a test sees is what a process of its own shows: an exit code, and what was printed. What it does not wait for are the
seconds of those imports. Limits, signals and the like are those of the process that forks.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

_MODULES = ["torch", "torch.distributed.fsdp", "transformers.modeling_utils", "cpuc.cli"]


@functools.cache
def _forking() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_MODULES)
    return context


def environment() -> dict[str, str]:
    """That of this process, but for what changes from test to test."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def run_forked(arguments: Sequence[str], stdin: str) -> subprocess.CompletedProcess[str]:
    """What ``cpuc`` does with these arguments."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("in", "out", "err")]
        paths[0].write_text(stdin)
        os.umask(mask := os.umask(0))
        process = _forking().Process(target=_program, args=(list(arguments), paths, Path.cwd(), mask))
        process.start()
        process.join()
        printed = [path.read_text() for path in paths[1:]]
    return subprocess.CompletedProcess(["cpuc", *arguments], process.exitcode or 0, *printed)


def _program(arguments: list[str], paths: list[Path], folder: Path, mask: int) -> None:
    from cpuc.cli import program

    for stream, (path, flags) in enumerate(zip(paths, (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT] * 2), strict=True)):
        handle = os.open(path, flags)
        os.dup2(handle, stream)
        os.close(handle)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 -- multiprocessing has closed the one before
    os.chdir(folder)
    os.umask(mask)
    sys.argv = ["cpuc", *arguments]
    try:
        program()
    except Exception:
        traceback.print_exc()  # as Python would, before it ends
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()  # which multiprocessing leaves out
