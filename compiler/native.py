"""Building the native runtime, with the distribution's compiler, against the installed torch: ``make native``."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from cpuc.runtime.errors import CpucError
from cpuc.runtime.libraries import installed_versions

SOURCES = Path(__file__).resolve().parent.parent / "runtime" / "native"
# Debian packages that a build needs, each with the program or header that shows that it is there.
PACKAGES = SOURCES / "packages-debian.txt"


def missing_packages() -> list[str]:
    """The packages, by Debian's names, that a build needs and this machine has not."""
    lines = [line.split() for line in PACKAGES.read_text().splitlines()]
    return [
        package
        for package, shows in lines
        if not (_has_header(shows) if shows.endswith((".h", ".hpp")) else shutil.which(shows))
    ]


def _has_header(name: str) -> bool:
    if not shutil.which("g++"):
        return False
    command = ["g++", "-x", "c++", "-E", "-include", name, os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def build(folder: Path, *, sanitize: bool = False) -> Path:
    """Configure and build in `folder`, what has changed since the last time; returns it.

    Args:
        sanitize: build only what needs no torch, with AddressSanitizer and UndefinedBehaviorSanitizer, and the programs that
            tests use; else ``libcpuc.so`` and ``cpuc-run``.

    Raises CpucError naming the packages that are missing, or with the last lines of the compiler.
    """
    if missing := missing_packages():
        raise CpucError(f"building the native runtime needs {', '.join(missing)}: apt-get install {' '.join(missing)}")
    settings = {
        "CPUC_TORCH": _folder_of("torch"),
        "CPUC_IPEX": _folder_of("intel_extension_for_pytorch"),
        "CPUC_IPEX_VERSION": installed_versions()["ipex"],
        "CPUC_SANITIZE": "ON" if sanitize else "OFF",
    }
    options = [f"-D{name}={value}" for name, value in settings.items()]
    _run(["cmake", "-S", SOURCES, "-B", folder, *options])
    _run(["cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1)])
    return folder


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise CpucError(f"{package} is not installed: pip install cpuc")
    return Path(spec.origin).parent


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise CpucError(f"{command[0]} failed:\n" + "\n".join(done.stdout.splitlines()[-20:]))


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1])) / "cpuc-run")
    except CpucError as error:
        sys.exit(f"cpuc: {error}")
