"""The shared libraries that the native program needs, found as the loader would, and copied."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cpuc.compiler import native
from cpuc.compiler.packaging import elf
from cpuc.runtime.errors import CpucError
from cpuc.runtime.libraries import ipex_library

# Which bin/cpuc-run executes.
LOADER = "ld-linux-x86-64.so.2"
PROGRAM = "cpuc-run"


def gather(folder: Path) -> dict[str, Path]:
    """Copy to `folder`, where the program and its library are, whatever else they need; returns where each came from, by name.

    What a file is linked to is followed from file to file, and so is IPEX's library, which the program loads when it runs.
    Raises CpucError naming the library that is not to be found.
    """
    ours = {path.name: path for path in sorted(folder.iterdir())}
    ipex = ipex_library()
    found = {**ours, ipex.name: ipex}
    wheels = [native.package_folder("torch") / "lib", ipex.parent]
    waiting = list(found)
    while waiting:
        source = found[waiting.pop()]
        facts = elf.read(source)
        for name in facts.needed:
            if name not in found:
                found[name] = _find(name, source, facts, wheels)
                waiting.append(name)
    if LOADER not in found:
        raise CpucError(f"none of the libraries needs {LOADER}: packages are for x86-64 and glibc only")
    for name in sorted(set(found) - set(ours)):
        _copy(found[name], folder / name)
    return {name: found[name] for name in sorted(set(found) - set(ours))}


def _find(name: str, source: Path, facts: elf.Elf, wheels: list[Path]) -> Path:
    """The file that `source` asks for: of the wheels, so that there is one OpenMP library only, or of the system."""
    folders = [*wheels, *(Path(folder.replace(elf.ORIGIN, str(source.parent))) for folder in facts.rpath)]
    for folder in folders:
        if (folder / name).is_file():
            return Path(os.path.normpath(folder / name))
    path = native.find_library(name)
    if path is None:
        raise CpucError(f"{source.name} needs {name}, which is neither in the installed wheels nor in the system")
    return path


def _copy(source: Path, target: Path) -> None:
    """A copy that is stripped, and that looks for what it needs beside itself."""
    if elf.read(source).symbols:
        command: list[str | Path] = ["strip", "--strip-unneeded", "-o", target, source]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"strip ended with code {done.returncode}"]
            raise CpucError(f"{target}: cannot be written: {said[-1]}")
    else:
        shutil.copyfile(source, target)
    elf.look_in_own_folder(target)


def oldest_kernel(folder: Path, names: Mapping[str, Path]) -> str:
    """The oldest Linux that all of these run on."""
    versions = [kernel for name in names if (kernel := elf.read(folder / name).kernel)]
    return max(versions, key=lambda text: [int(part) for part in text.split(".")])
