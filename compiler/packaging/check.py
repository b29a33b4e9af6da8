"""The last step of packaging: the packaged program answers, in a root that holds nothing else, as the Python runtime does."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from cpuc.compiler.packaging.contents import needs_proc
from cpuc.runtime.bundle import Bundle
from cpuc.runtime.engine import Engine
from cpuc.runtime.errors import InputError, ParityError
from cpuc.runtime.model import Model, pad_rows
from cpuc.runtime.records import format_answers, parse_records
from cpuc.runtime.tasks import Task, load_task, task_module
from cpuc.runtime.tensors import format_tensors, parse_tensors

TOLERANCE = 1e-4
# Of nobody: the package must do with no more rights than a container's user has.
USER = 65532
_NOT_EMPTY = "an empty root could not be had, because chroot and user namespaces are not allowed here: the package ran in place"


@dataclass(frozen=True)
class Check:
    """How the packaged program was tried, and with what outcome.

    Attributes:
        where: the kind of root.
        empty: whether that root held nothing but the package.
        raw: whether it was asked for named tensors; `reason` is why it does not answer records of this task.
        example: what it was asked, as JSON.
        difference: the largest between numbers of its answer and of the Python runtime's.
    """

    where: str
    empty: bool
    raw: bool
    reason: str | None
    example: str
    difference: float


@dataclass(frozen=True)
class _Root:
    """A way to run a program of the package: the command that stands before it, and the package's name there."""

    where: str
    empty: bool
    command: list[str]
    package: str

    def run(self, folder: Path, arguments: list[str], stdin: str) -> subprocess.CompletedProcess[str]:
        """Run the program of the package in `folder` with an empty environment."""
        command = [*self.command, f"{self.package}/bin/cpuc-run", f"{self.package}/model.pt", *arguments]
        return subprocess.run(
            command, input=stdin, capture_output=True, encoding="utf-8", check=False, env={}, cwd=folder.parent
        )


def check(folder: Path, bundle: Bundle, warn: Callable[[str], None]) -> Check:
    """Ask the program in `folder`, whose parent holds nothing else, and the Python runtime the same, and compare.

    It is asked for the example of the task or, if it says that it does not answer that, for the outputs of a small input.

    Args:
        warn: called with a remark if there can be no empty root on this machine.

    Raises ParityError if the program fails, or answers something else.
    """
    root = next(_roots(folder))
    if not root.empty:
        warn(_NOT_EMPTY)
    elif needs_proc(bundle.manifest):
        _give_proc(folder.parent)
    task = load_task(bundle.manifest, bundle.read)
    engine = Engine(bundle)
    example = _record(bundle)
    done = root.run(folder, ["-i", "-"], example)
    reason = _only_raw(done, root)
    if reason is None:
        records = parse_records(example.encode(), "the example")
        try:
            expected = format_answers(Model(engine, task).answers(records.values, records.names, {}), records.form)
        except InputError as error:  # a model may be too small for it
            reason = str(error)
    if reason is not None:
        example = _tensors(bundle, task)
        done = root.run(folder, ["--raw", "-i", "-"], example)
        inputs = parse_tensors(example.encode(), "the example", bundle.manifest)
        expected = format_tensors(engine.run(inputs), npz=False).decode()
    if done.returncode:
        raise ParityError(f"the packaged program does not run in {root.where}: {_last_line(done)}")
    try:
        difference = compare(json.loads(expected), json.loads(done.stdout), "the answer")
    except ValueError as error:
        raise ParityError(f"the packaged program does not give the answer of 'cpuc run': {error}") from None
    return Check(root.where, root.empty, reason is not None, reason, example, difference)


def _give_proc(root: Path) -> None:
    """What FBGEMM reads of /proc, in a root without."""
    facts = root / "proc" / "cpuinfo"
    facts.parent.mkdir()
    facts.write_bytes(Path("/proc/cpuinfo").read_bytes())
    facts.parent.chmod(0o755)  # whatever the umask is
    facts.chmod(0o644)


def _record(bundle: Bundle) -> str:
    """The example of the bundle's task, as JSON."""
    text = json.dumps(task_module(bundle.manifest.task).ABOUT.example, ensure_ascii=False) + "\n"
    mask = bundle.manifest.preprocessing.get("mask_token_id")
    if bundle.manifest.task == "fill-mask" and type(mask) is int:  # models spell it differently
        token = tokenizers.Tokenizer.from_buffer(bundle.read("tokenizer.json")).id_to_token(mask)
        text = text.replace("[MASK]", token or "[MASK]")
    return text


def _only_raw(done: subprocess.CompletedProcess[str], root: _Root) -> str | None:
    """Why the program answers named tensors only; None if it does not say so."""
    said = _last_line(done).removeprefix(f"{root.package}/model.pt: ")
    return said if done.returncode and said.endswith("use --raw") else None


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
    return lines[-1].removeprefix("cpuc: ")


def _roots(folder: Path) -> Iterator[_Root]:
    """Ways to have a root that holds nothing but `folder`, as far as this machine allows, the strictest first."""
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    chroot, unshare = shutil.which("chroot", path=places), shutil.which("unshare", path=places)
    top = str(folder.parent)
    if chroot and os.geteuid() == 0:
        before = [chroot, f"--userspec={USER}:{USER}"]
        if _works([*before, "/"]):
            yield _Root(f"an empty root, as user {USER}", True, [*before, top], f"/{folder.name}")
    if unshare:
        before = [unshare, "--user", "--map-root-user", "--root"]
        if _works([*before, "/"]):
            yield _Root("an empty root in a user namespace", True, [*before, top], f"/{folder.name}")
    yield _Root("its place on this machine, without environment", False, [], str(folder))


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _tensors(bundle: Bundle, task: Task) -> str:
    """A small input of the model, as JSON of named tensors."""
    rows = [task.warm_up()] * (2 if "batch" in bundle.manifest.axes else 1)
    return format_tensors(pad_rows(rows, bundle.manifest.inputs, task.padding_side), npz=False).decode()


def compare(ours: Any, theirs: Any, where: str) -> float:
    """The largest difference between numbers of two JSON values that are otherwise equal.

    Raises ValueError naming the place where they differ, numbers by more than `TOLERANCE`, small ones in size, large ones
    relative to them.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict) and list(ours) == list(theirs):
        return max((compare(ours[name], theirs[name], f"{where}.{name}") for name in ours), default=0.0)
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return max((compare(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(ours, theirs, strict=True))), default=0.0)
    if isinstance(ours, float) and type(theirs) in (int, float):
        if math.isclose(ours, theirs, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            return float(abs(ours - theirs))
    elif type(ours) is type(theirs) and not isinstance(ours, dict | list) and ours == theirs:
        return 0.0
    raise ValueError(f"{where} is {_short(theirs)}, not {_short(ours)}")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
