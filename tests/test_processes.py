"""Originals and artifacts run in processes that are forked from one that stays: what becomes of it, and of them."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import cpuc
from cpuc.compiler.processes import ARTIFACTS
from cpuc.runtime.errors import CpucError


def children(pid: int) -> list[int]:
    """The processes that `pid` has started, whichever of its threads did."""
    try:
        return [int(each) for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def state(pid: int) -> str:
    """The letter that ``ps`` shows; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def ended(*pids: int) -> None:
    """Wait until none of these processes is there any more."""
    until = time.monotonic() + 60
    while running := [pid for pid in pids if state(pid) not in ("Z", "X", "")]:
        assert time.monotonic() < until, running
        time.sleep(0.01)


def forking(kind: str) -> list[int]:
    """Those of this process that fork others of a kind."""
    ends = f"\0cpuc.compiler.fresh\0{kind}\0".encode()
    return [pid for pid in children(os.getpid()) if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(ends)]


def test_compiles_of_one_process_share_it(tiny: Path, tiny_model: Path, tmp_path: Path) -> None:
    cpuc.compile(str(tiny_model), tmp_path / "second.pt")
    first = forking("artifact"), forking("original")
    assert [len(pids) for pids in first] == [1, 1]
    cpuc.compile(str(tiny_model), tmp_path / "third.pt")
    assert (forking("artifact"), forking("original")) == first
    assert (tmp_path / "third.pt").read_bytes() == (tmp_path / "second.pt").read_bytes() == tiny.read_bytes()


@pytest.mark.parametrize(("kind", "end"), [("artifact", signal.SIGKILL), ("original", signal.SIGTERM)])
def test_one_that_was_killed_is_started_again(kind: str, end: int, tiny: Path, tiny_model: Path, tmp_path: Path) -> None:
    cpuc.compile(str(tiny_model), tmp_path / "before.pt")
    (killed,) = forking(kind)
    os.kill(killed, end)
    while state(killed) != "Z":
        time.sleep(0.01)
    cpuc.compile(str(tiny_model), tmp_path / "after.pt")
    assert forking(kind) != [killed]
    assert (tmp_path / "after.pt").read_bytes() == tiny.read_bytes()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("kind", ["artifact", "original"])
def test_a_killed_run_is_an_error_and_nothing_is_written(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    cpuc.compile(str(tiny_model), tmp_path / "before.pt")
    (source,) = forking(kind)
    done = threading.Event()

    def kill() -> None:
        while not done.is_set():
            for pid in children(source):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(CpucError, match="could not be finished: it ended with code -9: it needs memory") as failed:
            cpuc.compile(str(tiny_model), tmp_path / "after.pt")
        assert failed.value.exit_code == 1  # which is not that of an artifact that disagrees
    finally:
        done.set()
        killer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["before.pt"]
    cpuc.compile(str(tiny_model), tmp_path / "after.pt")
    assert forking(kind) == [source]


@pytest.mark.usefixtures("tiny")
def test_no_room_for_what_the_artifact_gives_is_no_disagreement(tiny_model: Path, tmp_path: Path) -> None:
    cpuc.compile(str(tiny_model), tmp_path / "before.pt")
    (source,) = forking("artifact")
    limit = resource.prlimit(source, resource.RLIMIT_FSIZE)
    resource.prlimit(source, resource.RLIMIT_FSIZE, (1000, limit[1]))  # what it forks inherits it
    try:
        with pytest.raises(CpucError, match=r"could not be finished: .*room in the temporary folder \(TMPDIR\)") as failed:
            cpuc.compile(str(tiny_model), tmp_path / "after.pt")
        assert failed.value.exit_code == 1
    finally:
        resource.prlimit(source, resource.RLIMIT_FSIZE, limit)
    assert [path.name for path in tmp_path.iterdir()] == ["before.pt"]


@pytest.mark.usefixtures("tiny")
def test_one_that_is_killed_at_work_takes_its_work_along(tiny_model: Path, tmp_path: Path) -> None:
    cpuc.compile(str(tiny_model), tmp_path / "before.pt")
    (source,) = forking("original")
    at_work: list[int] = []

    def kill() -> None:
        while not at_work:
            at_work.extend(children(source))
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            while str(Path(f"/proc/{at_work[0]}/fd/0").readlink()).startswith("socket:"):
                pass  # it has not begun
            os.kill(at_work[0], signal.SIGSTOP)
        os.kill(source, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(CpucError, match="ended with code -9"):
        cpuc.compile(str(tiny_model), tmp_path / "after.pt")
    killer.join()
    ended(source, *at_work)


@pytest.mark.parametrize("before", ["import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)", "import os; os.close(2)"])
def test_a_process_that_ignores_children_or_has_no_standard_error(before: str, tiny_model: Path, tmp_path: Path) -> None:
    script = f"{before}\nimport cpuc\nfor i in range(2):\n    cpuc.compile({str(tiny_model)!r}, str(i), force=True)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


@pytest.mark.usefixtures("tiny")
def test_ctrl_c_ends_both(tiny_model: Path, tmp_path: Path) -> None:
    cpuc.compile(str(tiny_model), tmp_path / "before.pt")
    (source,) = forking("original")
    done, main = threading.Event(), threading.get_ident()

    def interrupt() -> None:
        while not (running := children(source)):
            if done.is_set():
                return
        with contextlib.suppress(ProcessLookupError):
            os.kill(running[0], signal.SIGSTOP)  # it has not ended when this process is told to
        signal.pthread_kill(main, signal.SIGINT)

    # A shell that runs the tests in the background has its children ignore Ctrl-C.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    waiting = threading.Thread(target=interrupt)
    waiting.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            cpuc.compile(str(tiny_model), tmp_path / "after.pt")
    finally:
        done.set()
        waiting.join()
        signal.signal(signal.SIGINT, usual)
    assert [path.name for path in tmp_path.iterdir()] == ["before.pt"]
    assert forking("original") == []
    cpuc.compile(str(tiny_model), tmp_path / "after.pt")


def test_they_end_with_a_compile_that_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("cpuc"), "compile", tiny_model, "-o", tmp_path / "model.pt"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (run := [pid for source in children(process.pid) for pid in children(source)]):
            assert process.poll() is None
        (source,) = children(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(run[0], signal.SIGSTOP)
        process.kill()
    ended(source, *run)


@pytest.mark.usefixtures("tiny")
def test_without_a_temporary_folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuc.compile(str(tiny_model), tmp_path / "before.pt")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    for _ in range(2):
        with pytest.raises(cpuc.CpucError, match=r"^no process to verify in can be started: .*TMPDIR"):
            cpuc.compile(str(tiny_model), tmp_path / "after.pt")
        ARTIFACTS.stop()
    assert [path.name for path in tmp_path.iterdir()] == ["before.pt"]


def test_two_threads_at_once(tiny: Path, tiny_model: Path, tmp_path: Path) -> None:
    targets = [tmp_path / "one.pt", tmp_path / "other.pt"]
    threads = [threading.Thread(target=cpuc.compile, args=(str(tiny_model), target)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(target.read_bytes() == tiny.read_bytes() for target in targets)
