"""What a package holds: ``package.json``, by which it is known again, and ``SHA256SUMS``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpuc.compiler.packaging.licenses import Component
from cpuc.runtime.errors import CpucError
from cpuc.runtime.manifest import Manifest

MODEL, SUMS, FACTS = "model.pt", "SHA256SUMS", "package.json"
_FORMAT = 1


@dataclass(frozen=True)
class Contents:
    """What is in a package.

    Attributes:
        manifest: the model's.
        kernel: the oldest Linux that the package runs on.
        components: what was put in beside the model.
        files: the size of each file, by its path in the package; without those that are written from this.
    """

    manifest: Manifest
    kernel: str
    components: list[Component]
    files: dict[str, int]

    @property
    def size(self) -> int:
        return sum(self.files.values())

    @property
    def model_size(self) -> int:
        return self.files[MODEL]

    def to_dict(self) -> dict[str, Any]:
        """What package.json says."""
        manifest, proc = self.manifest, needs_proc(self.manifest)
        model = {"source": dataclasses.asdict(manifest.source), "task": manifest.task, "architecture": manifest.architecture}
        return {
            "package_format": _FORMAT,
            "cpuc_version": manifest.cpuc_version,
            "model": {**model, "precision": manifest.build.precision},
            "needs": {"system": "Linux", "kernel": self.kernel, "machine": "x86_64", "isa": manifest.build.isa, "proc": proc},
            "components": [dataclasses.asdict(component) for component in self.components],
            "files": self.files,
            "size": self.size,
        }


def needs_proc(manifest: Manifest) -> bool:
    """Whether an artifact runs only where /proc tells what the CPU is: FBGEMM looks there, and nowhere else."""
    return any(name.startswith("quantized::") for name in manifest.build.fused)


def list_files(folder: Path) -> dict[str, int]:
    """The size of each file below `folder`, by its path there, sorted."""
    paths = (Path(top, name) for top, _, names in os.walk(folder) for name in names)
    return dict(sorted((str(path.relative_to(folder)), path.stat().st_size) for path in paths))


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file, as ``sha256sum --check`` reads it, and bring all of them to the disk."""
    lines = []
    for name in list_files(folder):
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
            os.fsync(file.fileno())
    (folder / SUMS).write_text("".join(lines))


def check_is_package(folder: Path) -> None:
    """Raise CpucError unless `folder` is a package with nothing of anybody else in it: only then may it be replaced."""
    refusal = f"{folder}: is not a package that 'cpuc package' wrote, and is left alone: name another target"
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        listed = {line[66:] for line in (folder / SUMS).read_text().splitlines()}
    except (OSError, ValueError):
        raise CpucError(refusal) from None
    if not isinstance(facts, dict) or "package_format" not in facts:
        raise CpucError(refusal)
    held = {str(Path(top, name)) for top, folders, names in os.walk(folder) for name in [*names, *_bare(top, folders)]}
    held = {os.path.relpath(name, folder) for name in held}
    if foreign := sorted(held - listed - {SUMS}):
        raise CpucError(f"{folder}: holds {foreign[0]!r}, which is not of the package: move it away first")


def _bare(top: str, folders: list[str]) -> list[str]:
    """Folders that `os.walk` would not show as anything: links, and those with nothing in them."""
    return [name for name in folders if Path(top, name).is_symlink() or not any(Path(top, name).iterdir())]
