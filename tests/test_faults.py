"""Commands that are killed, that meet each other, or that may not write: the old file or the new one, no litter for long."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from keys import Keys

import cpuc
from cpuc.runtime.bundle import open_bundle
from cpuc.runtime.files import atomic_write

CPUC = Path(sys.executable).with_name("cpuc")

# Signs, and kills itself at the n-th thing that it asks of the system. Prints how many there were if it lives.
KILLED = """
import os, signal, sys
import cpuc
bundle, key, output, limit = sys.argv[1:]
private = cpuc.read_private_key(key)
import concurrent.futures.thread, zipfile
count = 0
def hook(event, arguments):
    global count
    if event in ("open", "shutil.rmtree") or event.startswith(("os.", "fcntl.", "tempfile.")):
        count += 1
        if count == int(limit):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
cpuc.sign(bundle, private, None if output == "-" else output)
print(count)
"""


def whole(path: Path) -> bool:
    open_bundle(path).check_digests()
    return True


@pytest.mark.slow
@pytest.mark.parametrize("replaces", [False, True])
def test_killed_at_every_step_of_writing(tiny: Path, keys: Keys, tmp_path: Path, replaces: bool) -> None:
    target = tmp_path / "model.pt"
    old = tiny.read_bytes()
    source = tiny
    if replaces:
        target.write_bytes(old)
        source = target
    outcomes = set()
    for limit in range(1, 200):
        command = [sys.executable, "-c", KILLED, source, keys.private, "-" if replaces else target, str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        if target.exists():
            outcomes.add("old" if target.read_bytes() == old else "new")
            assert whole(target)
            if replaces:
                target.write_bytes(old)
            else:
                target.unlink()
        else:
            assert not replaces
            outcomes.add("none")
    assert int(done.stdout) < limit
    assert outcomes == ({"old", "new"} if replaces else {"none", "new"})
    # The last one was not killed: it has removed what the others left.
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert open_bundle(target, trust=keys.public).trusted


@pytest.mark.slow
def test_compiles_killed_at_random(tiny: Path, tiny_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    target.write_bytes(b"old")
    command = [CPUC, "compile", tiny_model, "-o", target, "--force"]
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    takes = time.monotonic() - began
    new = target.read_bytes()
    assert new == tiny.read_bytes()
    generator = random.Random()
    for _ in range(3):
        target.write_bytes(b"old")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(generator.uniform(0.3, 1.0) * takes)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert target.read_bytes() in (b"old", new)
    subprocess.run(command, check=True, capture_output=True)
    assert target.read_bytes() == new
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--force"]], ids=["once", "force"])
def test_two_compiles_to_one_target(tiny: Path, tiny_model: Path, tmp_path: Path, options: list[str]) -> None:
    command = [CPUC, "compile", tiny_model, "-o", tmp_path / "model.pt", *options]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = sorted((process.communicate()[1], process.returncode) for process in processes)
    assert ends[0] == ("", 0)
    if options:
        assert ends[1] == ("", 0)
    else:
        assert ends[1][1] == 1 and "exists already; give --force" in ends[1][0]
    assert (tmp_path / "model.pt").read_bytes() == tiny.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_only_what_nobody_writes_is_swept(tmp_path: Path) -> None:
    left, living, other = (tmp_path / name for name in (".cpuc-staged-left", ".cpuc-staged-living", ".cpuc-other"))
    for folder in (left, living, other):
        folder.mkdir()
        (folder / "staged").write_text("half")
    (tmp_path / ".cpuc-staged-link").symlink_to(other)
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    with atomic_write(tmp_path / "model.pt") as path:
        path.write_text("whole")
    os.close(lock)
    assert not left.exists()
    assert (living / "staged").exists() and (other / "staged").exists()
    assert (tmp_path / "model.pt").read_text() == "whole"


def test_sweeping_meets_folders_that_are_being_made(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from cpuc.runtime.files import temporary_beside
for _ in range(500):
    with temporary_beside(Path(sys.argv[1])) as folder:
        (folder / "staged").write_text("half")
"""
    command = [sys.executable, "-c", script, tmp_path / "model.pt"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 3
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    with pytest.raises(cpuc.CpucError, match="exists already"), atomic_write(target) as path:
        path.write_text("mine")
        target.write_text("theirs")
    assert target.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    target.write_text("old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), atomic_write(target, force=True) as path:
            path.write_text("half")
            raise error
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_folder_that_may_not_be_written(tiny: Path, keys: Keys, cli: Any) -> None:
    script = """
import os, sys
import cpuc
from cpuc.runtime.files import atomic_write
if os.getuid() == 0:
    os.setuid(65534)
for force in (False, True):
    try:
        with atomic_write(sys.argv[1], force=force): pass
    except cpuc.CpucError as error: print(error)
"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        done = subprocess.run([sys.executable, "-c", script, folder / "model.pt"], capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == (f"{folder}: no permission to write there\n" * 2, "")
        folder.chmod(0o755)
    done = cli("sign", tiny, "--key", keys.private, "-o", "/proc/model.pt")
    assert done.returncode == 1 and done.stderr.startswith("cpuc: /proc") and len(done.stderr.splitlines()) == 1
