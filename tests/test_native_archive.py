"""The native reader of archives, under sanitizers: it lists and refuses what the Python reader does, in the same words."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpuc.runtime.errors import BundleError

archive = pytest.importorskip("cpuc.runtime.archive")

ROOT = Path(__file__).resolve().parent.parent
NEEDED = "extra/manifest.json"


@pytest.fixture(scope="module")
def reader() -> Path:
    """The program that lists archives, built with AddressSanitizer and UndefinedBehaviorSanitizer."""
    if not shutil.which("cmake") or not shutil.which("g++"):
        pytest.skip("needs cmake and g++")
    folder = ROOT / "build" / "native-sanitized"
    subprocess.run(["cmake", "-S", ROOT / "runtime" / "native", "-B", folder, "-DCPUC_SANITIZE=ON"], check=True)
    subprocess.run(["cmake", "--build", folder, "-j1"], check=True)
    return folder / "cpuc-read"


def make(names: tuple[str, ...] = ("data.pkl", "data/0", NEEDED)) -> bytes:
    """A small archive as the compiler writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name in names:
            archive.write_member(target, name, name.encode() * 3)
    return buffer.getvalue()


def changed() -> Iterator[bytes]:
    """Archives that are not whole, or not laid out as a bundle."""
    whole = make()
    yield from (whole[:size] for size in range(len(whole)))
    for place in range(len(whole)):
        for bit in range(8):
            yield whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
    # Lengths, sizes and offsets that lie.
    for place in range(len(whole) - 4):
        yield whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :]
    yield from (whole + b"x", b"x" + whole, whole + whole)
    yield make(("data.pkl", "DATA.pkl", NEEDED))
    yield make(("data.pkl",))
    yield make(("../data.pkl", NEEDED))
    yield make(("it's", 'a"b', NEEDED))


def python_says(path: Path) -> str:
    """What the Python reader answers, as the native program prints it."""
    try:
        file = archive.File(path)
        members = archive.list_members(file, NEEDED)
    except BundleError as error:
        return str(error)
    digests = {name: hashlib.sha256(file.read(*where)).hexdigest() for name, where in members.items()}
    return " ".join(["ok", *(f"{name}@{offset}+{size}={digests[name]}" for name, (offset, size) in members.items())])


def nameless(line: str) -> str:
    return re.sub(r"member .* is", "member ? is", line)


def native_says(reader: Path, paths: list[Path]) -> list[str]:
    done = subprocess.run([reader], input="".join(f"{path}\n" for path in paths), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_whole_archive_is_listed(reader: Path, tmp_path: Path) -> None:
    path = tmp_path / "whole.pt"
    path.write_bytes(make())
    (line,) = native_says(reader, [path])
    assert line.startswith(f"ok data.pkl@64+24={hashlib.sha256(b'data.pkl' * 3).hexdigest()} data/0@")
    assert line == python_says(path)


def test_malformed_archives_get_the_answer_of_python(reader: Path, tmp_path: Path) -> None:
    paths = []
    for index, data in enumerate(changed()):
        paths.append(tmp_path / f"{index}.pt")
        paths[-1].write_bytes(data)
    paths += [tmp_path / "absent.pt", tmp_path]
    expected = [python_says(path) for path in paths]
    assert sum(line.startswith("ok") for line in expected) < len(paths) // 2
    answers = native_says(reader, paths)
    assert len(answers) == len(expected)
    assert sum(line.isascii() for line in answers) > len(paths) * 0.9
    for line, other in zip(answers, expected, strict=True):
        # The native reader has no tables of what is printable beyond ASCII: such names are shown otherwise.
        assert (line == other) if line.isascii() else (nameless(line) == nameless(other))
