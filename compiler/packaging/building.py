"""The native programs that packages hold, built once for each version of the sources, of torch and of the compiler."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cpuc.compiler import native
from cpuc.runtime.errors import CpucError


@contextlib.contextmanager
def built(folder: Path | None) -> Iterator[Path]:
    """A build folder that is up to date, and stays so for as long as the block runs: another process waits.

    Args:
        folder: by default one in the user's cache.

    Raises CpucError naming packages that are missing, or with what the compiler says.
    """
    native.check_packages()
    folder = _cached() if folder is None else folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CpucError(f"{folder}: cannot be written: {error.strerror or error}: give another with --build-dir") from None
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield native.build(folder)
    finally:
        os.close(handle)


def _cached() -> Path:
    """The folder in the cache for what is installed now."""
    compiler = subprocess.run(["g++", "--version"], capture_output=True, check=False).stdout
    state = hashlib.sha256(compiler)
    # The build system remembers where everything lies.
    for place in (native.SOURCES, native.package_folder("torch"), native.package_folder("intel_extension_for_pytorch")):
        state.update(f"\n{place}".encode())
    for package in ("torch", "intel-extension-for-pytorch"):
        state.update(f"\n{importlib.metadata.version(package)}".encode())
    for path in sorted(native.SOURCES.rglob("*")):
        if path.is_file():
            state.update(f"\n{path.relative_to(native.SOURCES)}\n".encode() + path.read_bytes())
    # An empty value is as none, and a relative one has no meaning: the XDG base directory specification.
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = given if given.is_absolute() else Path.home() / ".cache"
    return cache / "cpuc" / f"native-{importlib.metadata.version('cpuc')}-{state.hexdigest()[:12]}"
