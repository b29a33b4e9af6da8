"""The shared libraries that an artifact's operators live in, loaded without importing their Python packages."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from cpuc.runtime.errors import BundleError

_lock = threading.Lock()
_loaded = False
_packing = threading.Lock()


def installed_versions() -> dict[str, str]:
    """Release numbers of torch and IPEX as installed, build tags such as ``+cpu`` cut off."""
    versions = {}
    for key, package in (("torch", "torch"), ("ipex", "intel-extension-for-pytorch")):
        try:
            versions[key] = importlib.metadata.version(package).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            raise BundleError(f"{package} is not installed: pip install cpuc installs the version it needs") from None
    return versions


def ipex_library() -> Path:
    """Path of IPEX's CPU library inside the installed package. Raises BundleError if it is not there."""
    spec = importlib.util.find_spec("intel_extension_for_pytorch")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "lib" / "libintel-ext-pt-cpu.so"
        if path.is_file():
            return path
    raise BundleError("intel-extension-for-pytorch is not installed, or has no CPU library: pip install cpuc")


def ipex_is_loaded() -> bool:
    """Whether this process has IPEX's library, loaded by us or by an import of its package."""
    return _loaded or "intel_extension_for_pytorch" in sys.modules


def load_ipex() -> None:
    """Register IPEX's operators and graph passes with torch, once per process.

    The library is loaded directly: importing its Python package takes seconds and prints notices. Loading prints
    one as well (it replaces autocast kernels), which no user can act on; it is shown only if loading fails.
    """
    global _loaded
    with _lock:
        if _loaded:
            return
        import torch

        path = ipex_library()
        with stderr_to_file() as captured:
            try:
                torch.ops.load_library(str(path))
            except OSError as error:
                details = captured() or str(error)
                raise BundleError(f"{path}: cannot be loaded under torch {torch.__version__}: {details}") from None
        _loaded = True


@contextlib.contextmanager
def packing_for_fbgemm() -> Iterator[None]:
    """Around ``torch.jit.load``: for whose kernels torch packs layers in int8 is a setting of the process.

    Users may change it. It does not matter once they are packed, nor to graphs that have no layers of FBGEMM's.
    """
    from torch.backends import quantized

    with _packing:
        chosen = quantized.engine
        if "fbgemm" in quantized.supported_engines:
            quantized.engine = "fbgemm"
        try:
            yield
        finally:
            quantized.engine = chosen


@contextlib.contextmanager
def stderr_to_file() -> Iterator[Callable[[], str]]:
    """Send file descriptor 2, where C++ code writes, to a file in memory; yields a function that reads it."""
    sys.stderr.flush() if sys.stderr else None
    try:
        saved = os.dup(2)
    except OSError:  # a daemon without standard error
        yield lambda: ""
        return
    # A temporary file would need a folder that can be written, which a container may not have.
    with os.fdopen(os.memfd_create("stderr"), "w+b") as file:
        os.dup2(file.fileno(), 2)

        def captured() -> str:
            file.seek(0)
            return file.read().decode(errors="replace").strip()

        try:
            yield captured
        finally:
            os.dup2(saved, 2)
            os.close(saved)
