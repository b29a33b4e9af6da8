"""``cpuc package``: an artifact, the native program and all that it needs, in one folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpuc.compiler import native
from cpuc.compiler.packaging import libraries, texts
from cpuc.compiler.packaging.building import built
from cpuc.compiler.packaging.check import USER, Check, check
from cpuc.compiler.packaging.contents import FACTS, MODEL, Contents, list_files, needs_proc, write_sums
from cpuc.compiler.packaging.licenses import collect
from cpuc.compiler.packaging.target import check_target, move_folder, write_tar
from cpuc.runtime.bundle import Bundle, open_bundle
from cpuc.runtime.engine import check_cpu, check_versions
from cpuc.runtime.errors import ParityError, printable
from cpuc.runtime.files import errors_told, temporary_beside
from cpuc.runtime.summary import megabytes
from cpuc.runtime.tasks import load_task

_LISTED = 8
Report = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """What was written, and how it was tried.

    Attributes:
        path: the folder or the tar file.
        contents: what is in it.
        check: how the packaged program was compared with the Python runtime.
    """

    path: str
    contents: Contents
    check: Check

    def to_json(self) -> dict[str, Any]:
        check = self.check
        verified = {
            "where": check.where,
            "empty_root": check.empty,
            "raw": check.reason,
            "largest_difference": check.difference,
        }
        return {"path": self.path, **self.contents.to_dict(), "verified": verified}

    def describe(self) -> list[str]:
        """What is in it, for a person, line by line."""
        contents, check = self.contents, self.check
        manifest = contents.manifest
        largest = sorted(contents.files.items(), key=lambda item: -item[1])[:_LISTED]
        rest = contents.size - sum(size for _, size in largest)
        rows = [*largest, (f"{len(contents.files) - len(largest)} other files", rest)]
        answers = f"named tensors only (--raw): {check.reason}" if check.raw else f"records of {manifest.task}"
        lines = [
            f"{self.path}: {manifest.task}, {manifest.architecture}, {manifest.build.precision}, {megabytes(contents.size)}, "
            f"without the model {megabytes(contents.size - contents.model_size)}",
            *(f"  {megabytes(size):>10}  {name}" for name, size in rows),
            f"answers: {answers}",
            f"needs: Linux {contents.kernel} on x86-64 with {manifest.build.isa}" + (", /proc" if needs_proc(manifest) else ""),
            f"verified: answers as 'cpuc run' does in {check.where}; largest difference {check.difference:.2g}",
        ]
        return [printable(line) for line in lines]


def package(
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    tar: bool = False,
    trust: str | os.PathLike[str] | None = None,
    force: bool = False,
    build_folder: str | os.PathLike[str] | None = None,
    report: Report = lambda _: None,
    warn: Report = lambda _: None,
) -> Package:
    """Write a folder with which a machine without Python, torch or a C library of its own answers from a bundle.

    The native program is built first, if that has not been done. The package is run before it gets its name: in a root that
    holds nothing else, where the machine allows that, and its answer is compared with that of this runtime.

    Args:
        bundle: the bundle to package.
        output: the folder to write; its parent must exist.
        tar: write one archive instead, called `output` with ``.tar`` at its end.
        trust: a PEM file with an Ed25519 public key; the bundle must be signed by it.
        force: replace `output`: a package, or a file if it is to be a tar file.
        build_folder: where the native program is built; by default a folder in the user's cache.
        report: called with the name of each stage as it begins.
        warn: called with what a user should know of the package, if there is something.

    Raises:
        BundleError: the bundle is damaged, or this machine cannot run it.
        ParityError: the package does not answer as this runtime does; nothing is written.
        InputError: a key that cannot be read.
        CpucError: a tool is missing, or the output cannot be written.
    """
    shown = _name(os.fspath(output), tar)
    target = Path(os.path.realpath(shown))
    check_target(target, tar=tar, force=force)
    report("checking the bundle")
    opened = _opened(bundle, trust)
    report("building the native program")
    with (
        built(None if build_folder is None else Path(build_folder)) as programs,
        temporary_beside(target) as staging,
        errors_told(target, staging),
    ):
        contents, checked = _assemble(folder := staging / "top" / "package", opened, programs, report, warn)
        if tar:
            report("writing the archive")
            write_tar(folder, target, target.stem, force=force)
        else:
            move_folder(folder, target, force=force)
    return Package(shown, contents, checked)


def _opened(path: str | os.PathLike[str], trust: str | os.PathLike[str] | None) -> Bundle:
    """A bundle that is whole, and that this machine can run."""
    bundle = open_bundle(path, trust=trust)
    bundle.check_digests()
    load_task(bundle.manifest, bundle.read)
    check_versions(bundle)
    check_cpu(bundle)
    return bundle


def _name(output: str, tar: bool) -> str:
    name = output.rstrip("/") or "/"
    return f"{name}.tar" if tar and not name.endswith(".tar") else name


def _assemble(folder: Path, bundle: Bundle, programs: Path, report: Report, warn: Report) -> tuple[Contents, Check]:
    """Fill `folder`, whose parent holds nothing else, and try it."""
    report("copying libraries")
    native.install(programs, folder)
    found = libraries.gather(folder / "lib")
    components = collect(folder / "licenses", found, bundle.manifest)
    _copy_model(bundle, folder / MODEL)
    _set_modes(folder)
    report("answering in an empty root")
    try:
        checked = check(folder, bundle, warn)
    except ParityError as error:
        raise ParityError(f"{error}: nothing was written") from None
    (folder / "example.json").write_text(checked.example)
    (folder / "Dockerfile").write_text(texts.dockerfile(USER, checked.raw))
    contents = Contents(bundle.manifest, libraries.oldest_kernel(folder / "lib", found), components, list_files(folder))
    (folder / "README.md").write_text(texts.readme(contents, checked.raw))
    (folder / FACTS).write_text(json.dumps(contents.to_dict(), indent=2, ensure_ascii=False) + "\n")
    write_sums(folder)
    _set_modes(folder)
    return contents, checked


def _copy_model(bundle: Bundle, path: Path) -> None:
    """The very file that was checked, whatever lies under its name by now."""
    with path.open("wb") as target, os.fdopen(os.dup(bundle.file.handle), "rb") as source:
        source.seek(0)
        shutil.copyfileobj(source, target, 1 << 20)


def _set_modes(folder: Path) -> None:
    """Anybody may read and run it, as the user of a container does, whatever this user's own files are like."""
    executable = {folder / "bin" / libraries.PROGRAM, folder / "lib" / libraries.LOADER}
    for path in [folder.parent, folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path in executable else 0o644)
