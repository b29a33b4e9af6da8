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
# Debian packages that a build needs, each with the program, header or static library that shows that it is there.
PACKAGES = SOURCES / "packages-debian.txt"


def missing_packages() -> list[str]:
    """The packages, by Debian's names, that a build needs and this machine has not."""
    return [package for package, shows in _packages() if not _is_there(shows)]


def _packages() -> list[list[str]]:
    return [line.split() for line in PACKAGES.read_text().splitlines()]


def debian_version(package: str) -> str:
    """The installed version of a Debian package; "not known" without it or on another system."""
    if not shutil.which("dpkg-query"):
        return "not known"
    command = ["dpkg-query", "--show", "--showformat", "${Version}", package]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout or "not known"


def check_packages() -> None:
    """Raise CpucError naming the packages that are missing."""
    if missing := missing_packages():
        raise CpucError(f"building the native runtime needs {', '.join(missing)}: apt-get install {' '.join(missing)}")


def _is_there(name: str) -> bool:
    if name.endswith((".h", ".hpp")):
        return _has_header(name)
    return bool(find_library(name) if name.endswith(".a") else shutil.which(name))


def find_library(name: str) -> Path | None:
    """The file that the compiler links for `name`, such as ``libc.so.6``; None if it has none."""
    if not shutil.which("g++"):
        return None
    done = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    path = Path(done.stdout.strip())  # the name itself if it is not found
    return Path(os.path.realpath(path)) if path.is_absolute() and path.is_file() else None


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

    Raises CpucError naming the packages that are missing, or with the first error of the compiler.
    """
    check_packages()
    settings = {
        "CPUC_TORCH": package_folder("torch"),
        "CPUC_IPEX": package_folder("intel_extension_for_pytorch"),
        "CPUC_IPEX_VERSION": installed_versions()["ipex"],
        "CPUC_SANITIZE": "ON" if sanitize else "OFF",
    }
    options = [f"-D{name}={value}" for name, value in settings.items()]
    _run(["cmake", "-S", SOURCES, "-B", folder, *options], folder)
    # Static libraries of another version may be older files than what was linked to them: 'make' would leave it as it is.
    linked = "".join(f"{package} {debian_version(package)}\n" for package, _ in _packages())
    state = folder / "linked.txt"
    again = [] if state.is_file() and state.read_text() == linked else ["--clean-first"]
    _run(["cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1), *again], folder)
    state.write_text(linked)
    return folder


def install(folder: Path, target: Path) -> None:
    """Put what was built in `folder` into ``bin`` and ``lib`` of `target`, stripped, and to be found by relative paths."""
    _run(["cmake", "--install", folder, "--prefix", target, "--strip"], folder)


def package_folder(package: str) -> Path:
    """Where an installed Python package lies. Raises CpucError if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise CpucError(f"{package} is not installed: pip install cpuc")
    return Path(spec.origin).parent


def _run(command: list[str | Path], folder: Path) -> None:
    """Run a tool of the build in `folder`; what it prints is kept there in a file if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        log = folder / "failed.log"
        log.write_text(done.stdout)
        lines = done.stdout.splitlines() or ["it printed nothing"]
        first = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise CpucError(f"{command[0]} failed: {first.strip()} (all that it printed is in {log})")


def main() -> None:
    """``make native``: build in the folder that the command line names."""
    try:
        print(build(Path(sys.argv[1])) / "cpuc-run")
    except CpucError as error:
        sys.exit(f"cpuc: {error}")
