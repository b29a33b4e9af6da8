"""Where a package goes: a folder or one tar file, whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tarfile
from pathlib import Path

from cpuc.compiler.packaging.contents import check_is_package
from cpuc.runtime.errors import CpucError
from cpuc.runtime.files import atomic_write, check_writable

# 1980: older times make some programs that unpack archives complain.
_TIME = 315532800


def check_target(target: Path, *, tar: bool, force: bool) -> None:
    """Raise CpucError early if the package could not be put to `target` at the end."""
    if tar:
        check_writable(target, force=force)
        return
    if os.path.lexists(target):
        if not force:
            raise CpucError(f"{target}: exists already; give --force to replace it, if it is a package")
        if not target.is_dir():
            raise CpucError(f"{target}: is not a folder; name another target")
        check_is_package(target)
    if not target.parent.is_dir():
        raise CpucError(f"{target.parent}: no such folder; create it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise CpucError(f"{target.parent}: no permission to write there")


def move_folder(folder: Path, target: Path, *, force: bool) -> None:
    """Give the finished `folder`, which lies in a temporary one beside `target`, its name; an old package takes its place."""
    check_target(target, tar=False, force=force)  # what has come meanwhile
    if not target.exists():
        folder.rename(target)
    elif not _exchange(folder, target):
        # Not in the temporary folder, which the next command would remove if this one were killed now.
        old = target.with_name(f".{target.name}.old-{os.getpid()}")
        target.rename(old)
        try:
            folder.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old)
    with contextlib.suppress(OSError):  # a file system that cannot
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names at once; False where the system or its C library cannot (before Linux 3.15 and glibc 2.28)."""
    exchange = 2  # RENAME_EXCHANGE of renameat2(2)
    here = -100  # AT_FDCWD
    try:
        call = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    return bool(call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def write_tar(folder: Path, target: Path, name: str, *, force: bool) -> None:
    """Write `folder` to an archive in which it is called `name`: the same bytes for the same files."""
    with atomic_write(target, force=force) as staged, tarfile.open(staged, "w", format=tarfile.GNU_FORMAT) as archive:
        for path in [folder, *sorted(folder.rglob("*"), key=str)]:
            inside = Path(name, path.relative_to(folder))
            info = archive.gettarinfo(path, str(inside))
            info.mtime, info.uid, info.gid, info.uname, info.gname = _TIME, 0, 0, "", ""
            if path.is_dir():
                archive.addfile(info)
                continue
            info.type, info.linkname, info.size = tarfile.REGTYPE, "", path.stat().st_size
            with path.open("rb") as file:
                archive.addfile(info, file)
