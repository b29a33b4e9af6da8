"""Files as every command reads and writes them: streams by the name ``-``, targets that are whole or absent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cpuc.runtime.errors import CpucError, InputError

# Temporary files and folders beside targets. Each is locked for as long as its process lives.
_PREFIX = ".cpuc-staged-"


def name_of(source: str) -> str:
    """What errors call an input."""
    return "standard input" if source == "-" else source


def read_input(source: str) -> bytes:
    """The bytes of a file, or of standard input for ``-``. Raises InputError if it cannot be read."""
    if source == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed")
        try:
            return sys.stdin.buffer.read()
        except OSError as error:
            raise InputError(f"standard input cannot be read: {error.strerror}") from None
    try:
        return Path(source).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{source}: no such file") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}") from None


def check_output(output: str, *, force: bool) -> None:
    """The same as `check_writable`, for ``-`` too. Raises CpucError."""
    if output != "-":
        check_writable(Path(output), force=force)
    elif sys.stdout is None:
        raise InputError("standard output is closed")


def write_output(output: str, data: bytes, *, force: bool) -> None:
    """Write to a file, whole or not at all, or to standard output for ``-``. Raises CpucError if that fails."""
    if output != "-":
        with atomic_write(output, force=force) as path:
            path.write_bytes(data)
        return
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CpucError(f"standard output cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def atomic_write(target: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """A temporary path beside `target`, moved onto it when the block succeeds and removed when it does not.

    What processes that were killed have left beside the target is removed first.

    Raises CpucError if `target` exists, at the beginning or at the end, and `force` is not given, or if it cannot be written.
    """
    target = Path(os.path.realpath(target))  # through links, as any program writes
    check_writable(target, force=force)
    with temporary_beside(target) as folder:
        staged = Path(folder, "staged")
        with errors_told(target, folder):
            yield staged
            _sync(staged)
            _move(staged, target, force=force)


@contextlib.contextmanager
def errors_told(target: Path, folder: Path) -> Iterator[None]:
    """Errors of the system while `target` is written, in `folder`, as errors of ours, if they are about one of the two."""
    try:
        yield
    except OSError as error:
        about = [os.fspath(name) for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
        if about and not any(Path(name) == target or folder in Path(name).parents for name in about):
            raise
        raise CpucError(f"{target}: cannot be written: {error.strerror or error}") from error


def _sync(path: Path) -> None:
    """On the disk before its name is: after a crash of the machine the target is the old file or the new one."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move(staged: Path, target: Path, *, force: bool) -> None:
    if force:
        staged.replace(target)
        return
    try:
        os.link(staged, target)  # unlike a rename it fails if another process was faster
    except FileExistsError:
        raise CpucError(f"{target}: exists already; give --force to replace it") from None
    except OSError:  # a file system without links
        check_writable(target, force=False)
        staged.replace(target)


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, on the same file system; removed at the end.

    Raises CpucError if there can be none.
    """
    try:
        _sweep(target.parent)
        folder, lock = _locked_folder(target.parent)
    except OSError as error:
        raise CpucError(f"{target}: cannot be written: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder and the handle that locks it; another process may sweep it away before it is locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # a file system without locks: there nothing is swept either
            fcntl.flock(lock, fcntl.LOCK_SH)
        if folder.exists():
            return folder, lock
        os.close(lock)


def _sweep(parent: Path) -> None:
    """Remove the temporary folders of processes that are no more: nobody locks them.

    Hosts that share a folder must share its locks, as they do but on NFS mounted with ``nolock`` or ``local_lock``.
    """
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


def check_writable(target: Path, *, force: bool) -> None:
    """Raise CpucError early if `target` could not be written at the end."""
    target = Path(os.path.realpath(target))
    try:
        exists = target.exists()
    except OSError as error:
        raise CpucError(f"{target}: cannot be written: {error.strerror or error}") from error
    if target.is_dir():
        raise CpucError(f"{target}: is a folder; name a file")
    if exists and not target.is_file():
        raise CpucError(f"{target}: is not a regular file; name another, or - for standard output")
    if exists and not force:
        raise CpucError(f"{target}: exists already; give --force to replace it")
    folder = target.parent
    if not folder.is_dir():
        raise CpucError(f"{folder}: no such folder; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CpucError(f"{folder}: no permission to write there")
