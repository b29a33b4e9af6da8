"""The licences of everything in a package, copied from where each was installed from."""

from __future__ import annotations

import csv
import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cpuc.compiler.native import debian_version
from cpuc.runtime.errors import CpucError, printable
from cpuc.runtime.manifest import Manifest

# Debian packages that are linked into our own files: static libraries and headers.
LINKED = ("libc6-dev", "libcli11-dev", "libssl-dev", "libstdc++6", "libutf8proc-dev", "nlohmann-json3-dev")
WHEELS = ("cpuc", "torch", "intel-extension-for-pytorch")
_NAMES = re.compile(r"(licen[cs]e|notice|copying|third[-_]?party)[^/]*", re.IGNORECASE)
_DOCUMENTS = Path("/usr/share/doc")
_COMMON = re.compile(r"/usr/share/common-licenses/([A-Za-z0-9.+-]*[A-Za-z0-9])")


@dataclass(frozen=True)
class Component:
    """Something in the package: its name and version where it comes from, and the files in ``licenses`` that are its own."""

    name: str
    version: str
    licenses: list[str]


def collect(folder: Path, libraries: Mapping[str, Path], manifest: Manifest) -> list[Component]:
    """Write the licences of the program, of `libraries` (where each came from, by name) and of the model to `folder`.

    Raises CpucError naming what has no licence to be found: a package must not be given away without.
    """
    folder.mkdir()
    wheels, packages = _owners(libraries.values())
    components = [_wheel(name, folder) for name in sorted({*WHEELS, *wheels})]
    components += [_package(name, folder) for name in sorted({*LINKED, *packages})]
    _copy_common(folder)
    source = manifest.source
    stated = printable(source.license or "not stated")
    about = f"model.pt was compiled from {printable(source.id)}. Its licence, as its manifest states it: {stated}\n"
    (folder / "model").mkdir()
    (folder / "model" / "LICENSE.txt").write_text(about)
    return components


def _owners(paths: Iterable[Path]) -> tuple[set[str], set[str]]:
    """The wheels and the Debian packages that these files belong to."""
    left = {path.resolve() for path in paths}
    names = {path.name for path in left}
    wheels = set()
    for distribution in importlib.metadata.distributions():
        files = [file for file in _files(distribution) if file.rpartition("/")[2] in names]
        owned = {Path(str(distribution.locate_file(file))).resolve() for file in files} & left
        if owned:
            wheels.add(re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower())
            left -= owned
    return wheels, {_debian_owner(path) for path in left}


def _files(distribution: importlib.metadata.Distribution) -> list[str]:
    """The files of an installed wheel. (`Distribution.files` makes an object of each, of which torch has 20 000.)"""
    record = distribution.read_text("RECORD")
    if record is None:  # a working copy of the sources
        return [str(file) for file in distribution.files or []]
    return [row[0] for row in csv.reader(record.splitlines()) if row]


def _debian_owner(path: Path) -> str:
    # Packages list files by the names that they had before /lib became a link to /usr/lib.
    for name in (str(path), str(path).removeprefix("/usr")):
        done = _run("dpkg-query", "--search", name)
        if done is not None:
            return done.split(":")[0]
    raise CpucError(f"{path}: no Debian package has this file, so that its licence is not known: it cannot be packaged")


def _run(*command: str) -> str | None:
    """What a program prints; None if it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _wheel(name: str, folder: Path) -> Component:
    distribution = importlib.metadata.distribution(name)
    split = [(file, *file.rpartition("/")[::2]) for file in _files(distribution)]
    files = [
        file for file, folder_name, base in split if (".dist-info" in folder_name or not folder_name) and _NAMES.fullmatch(base)
    ]
    sources = {re.sub(r".*\.dist-info/(licenses/)?", "", file): Path(str(distribution.locate_file(file))) for file in files}
    return Component(name, distribution.version, _copy(name, sources, folder))


def _package(name: str, folder: Path) -> Component:
    return Component(name, debian_version(name), _copy(name, {"copyright": _DOCUMENTS / name / "copyright"}, folder))


def _copy(name: str, sources: Mapping[str, Path], folder: Path) -> list[str]:
    """Copy files by their names below `folder`; returns the paths there."""
    there = {inside: source for inside, source in sources.items() if source.is_file()}
    if not there:
        where = next(iter(sources.values()), "its wheel")
        raise CpucError(f"{name}: its licence is not in {where}, and the package needs it: install {name} again")
    for inside, source in there.items():
        target = folder / name / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return [f"{name}/{inside}" for inside in there]


def _copy_common(folder: Path) -> None:
    """The texts that Debian keeps once for all packages, whose own files only name them."""
    named = {match for path in folder.glob("*/copyright") for match in _COMMON.findall(path.read_text(errors="replace"))}
    (folder / "common").mkdir()
    for name in sorted(named):
        source = Path("/usr/share/common-licenses", name)
        if source.is_file():
            shutil.copyfile(source, folder / "common" / name)
