"""The native runtime: it refuses what the Python runtime refuses, in the same words, and gives the same numbers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import pytest
from archives import Member, pack, unpack, with_manifest
from conftest import needs_avx512, packed_twice
from keys import Keys, make_keys
from native_tokenizer import built
from test_bad_bundles import LIES
from test_robustness import HIDDEN, hidden_kernels, of_hidden_kernels

import cpuc
from cpuc.runtime.bundle import open_bundle
from cpuc.runtime.tensors import format_tensors, parse_tensors

pytestmark = pytest.mark.slow
# What the tiny model takes.
ONE = json.dumps({"input_ids": [[1]], "attention_mask": [[1]]})


@pytest.fixture(scope="module")
def reader() -> Path:
    """The program that reads bundles, under sanitizers."""
    return built("native-sanitized", sanitize=True) / "cpuc-read"


@pytest.fixture(scope="module")
def program() -> Path:
    """cpuc-run."""
    return built("native") / "cpuc-run"


def python_says(path: Path, trust: Path | None) -> str:
    """What the Python runtime finds, as the native program prints it."""
    try:
        bundle = open_bundle(path, trust=trust)
        bundle.check_digests()
    except cpuc.CpucError as error:
        return str(error)
    digests = {name: hashlib.sha256(bundle.file.read(*place)).hexdigest() for name, place in bundle.members.items()}
    return " ".join(["ok", *(f"{name}@{o}+{size}={digests[name]}" for name, (o, size) in sorted(bundle.members.items()))])


def native_says(reader: Path, cases: list[tuple[Path, Path | None]]) -> list[str]:
    lines = "".join(f"{path}\n" if trust is None else f"{path}\t{trust}\n" for path, trust in cases)
    done = subprocess.run([reader], input=lines.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(errors="replace").split("\n")[:-1]


def same(ours: str, theirs: str) -> bool:
    """Whether both say the same. Words about JSON are the libraries' own; names that are no ASCII are shown otherwise."""
    for pattern in (r"(is not valid JSON).*", r"(signature.json is not readable).*", r"(holds no Ed25519 signature).*"):
        ours, theirs = (re.sub(pattern, r"\1", text, flags=re.DOTALL) for text in (ours, theirs))
    if not (ours.isascii() and theirs.isascii()):
        ours, theirs = (re.sub(r"member .* is ", "member ? is ", text) for text in (ours, theirs))
    return ours == theirs


def compare(reader: Path, cases: list[tuple[Path, Path | None]]) -> list[str]:
    expected = [python_says(*case) for case in cases]
    answers = native_says(reader, cases)
    assert len(answers) == len(expected)
    assert [(a, b) for a, b in zip(answers, expected, strict=True) if not same(a, b)] == []
    return answers


def changed(whole: bytes) -> Iterator[bytes]:
    """A small bundle cut short anywhere, with a bit flipped in every byte, and with sizes that lie."""
    yield from (whole[:size] for size in range(0, len(whole), 3))
    for place in range(len(whole)):
        yield whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        yield whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :]


def test_bundles_that_are_not_whole(reader: Path, tmp_path: Path) -> None:
    paths: list[tuple[Path, Path | None]] = []
    for index, data in enumerate([fuzz.bundle(), *changed(fuzz.bundle())]):
        paths.append((tmp_path / f"{index}.pt", None))
        paths[-1][0].write_bytes(data)
    answers = compare(reader, [*paths, (tmp_path / "absent.pt", None), (tmp_path, None)])
    assert answers[0].startswith("ok data.pkl@")
    assert sum(line.startswith("ok") for line in answers) < len(answers) / 5


def test_archives_that_lie(reader: Path, tiny: Path, tmp_path: Path) -> None:
    members = unpack(tiny)
    cases: list[tuple[Path, Path | None]] = [(tiny, None)]
    for i, (make, _) in enumerate(LIES.values()):
        cases.append((tmp_path / f"{i}.pt", None))
        cases[-1][0].write_bytes(make(members))
    answers = compare(reader, cases)
    assert [line.startswith("ok") for line in answers] == [True] + [False] * len(LIES)


def manifests() -> Iterator[Any]:
    """Manifests with one thing that is wrong."""
    good = fuzz.manifest()
    values = [None, True, 0, -1, 2**31 + 1, 2**63, 1.5, "x", [], {}, [3], {"a": 1}]

    def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            yield (*path, key)
            yield from places(inner, (*path, key))

    for path in places(good):
        for value in [*values, ...]:
            copy = json.loads(json.dumps(good))
            container = copy
            for key in path[:-1]:
                container = container[key]
            if value is ...:
                del container[path[-1]]
                if isinstance(container, dict):
                    container[f"{path[-1]}_"] = 1
            else:
                container[path[-1]] = value
            yield copy


def test_manifests_that_are_wrong(reader: Path, tmp_path: Path) -> None:
    cases: list[tuple[Path, Path | None]] = []
    members = [Member(b"cpuc/extra/manifest.json", b"")]
    texts = [json.dumps(value).encode() for value in manifests()]
    texts += [
        b"",
        b"[",
        b"3",
        b"{}",
        b'{"format_version": 4}',
        b'{"format_version": 2}',
        b"\xff",
        b"[" * 3_000_000,
        b'{"a":NaN}',
        *(text.encode() for text in (f"{json.dumps(fuzz.manifest())}\0", f"{json.dumps(fuzz.manifest())}\0}}", "\0")),
    ]
    for i, text in enumerate(texts):
        cases.append((tmp_path / f"{i}.pt", None))
        cases[-1][0].write_bytes(pack([replace(members[0], data=text)]))
    answers = compare(reader, cases)
    assert sum(": expected " in line for line in answers) > 100
    assert sum("unknown field" in line for line in answers) > 20


def test_signatures(reader: Path, tiny: Path, keys: Keys, tmp_path: Path) -> None:
    signed = tmp_path / "signed.pt"
    cpuc.sign(tiny, cpuc.read_private_key(keys.private), signed)
    other = make_keys(tmp_path, "other")
    members = unpack(signed)
    good = json.loads(members[-1].data)
    cases: list[tuple[Path, Path | None]] = [(signed, keys.public), (signed, None), (signed, other.public), (tiny, keys.public)]
    cases += [(signed, tmp_path / "absent"), (signed, keys.private), (signed, tiny), (signed, tmp_path)]
    changes: list[Any] = [
        {"algorithm": "rsa"},
        {"signature": good["signature"][:-4] + "AAA="},
        {"signature": good["signature"].lower()},
        {"signature": "AAAA"},
        {"signature": " " + good["signature"]},
        {"public_key": "A" * 43 + "="},
        {"public_key": 3},
        {"more": "x"},
    ]
    texts = [json.dumps({**good, **change}) for change in changes] + [json.dumps(good) + "\0", json.dumps(good) + "\0x"]
    for i, text in enumerate(texts):
        cases.append((tmp_path / f"{i}.pt", keys.public))
        cases[-1][0].write_bytes(pack([*members[:-1], replace(members[-1], data=text.encode())]))
    altered = with_manifest(members[:-1], lambda m: m["source"].update(id="other"))
    cases.append((tmp_path / "altered.pt", keys.public))
    cases[-1][0].write_bytes(pack([*altered, members[-1]]))
    answers = compare(reader, cases)
    assert [line.startswith("ok") for line in answers] == [True, True] + [False] * (len(cases) - 2)


def run(program: Path, *arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [program, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 7), (3, 40), (2, 512)])
def test_the_same_numbers_to_the_last_digit(program: Path, fp32: Path, model: cpuc.Model, rows: int, length: int) -> None:
    ids = np.random.default_rng(0).integers(0, 30522, (rows, length)).tolist()
    ones, zeros = np.ones((rows, length), int).tolist(), np.zeros((rows, length), int).tolist()
    text = json.dumps({"token_type_ids": zeros, "input_ids": ids, "attention_mask": ones})
    done = run(program, fp32, "--raw", "-i", "-", stdin=text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == format_tensors(model.raw(parse_tensors(text.encode(), "-", model.manifest)), npz=False).decode()


@pytest.mark.parametrize(
    "text",
    [
        '{"input_ids": [[1, 2], [3]], "attention_mask": [[1]]}',
        '{"input_ids": [[1.5]]}',
        '{"input_ids": [[true]]}',
        '{"input_ids": [[null]]}',
        '{"input_ids": [[1]], "attention_mask": [[1]]}',
        '{"input_ids": [[1]], "ids": [[1]]}',
        '{"input_ids": [[-1]], "attention_mask": [[1]], "token_type_ids": [[0]]}',
        '{"input_ids": [[30522]], "attention_mask": [[1]], "token_type_ids": [[0]]}',
        '{"input_ids": [[1, 2]], "attention_mask": [[1]], "token_type_ids": [[0]]}',
        '{"input_ids": [1], "attention_mask": [[1]], "token_type_ids": [[0]]}',
        '{"input_ids": [[]], "attention_mask": [[]], "token_type_ids": [[]]}',
        '{"input_ids": [[[1]]], "attention_mask": [[1]], "token_type_ids": [[0]]}',
    ],
)
def test_wrong_tensors_are_named_in_the_same_words(program: Path, fp32: Path, model: cpuc.Model, text: str) -> None:
    done = run(program, fp32, "--raw", "-i", "-", stdin=text)
    with pytest.raises(cpuc.InputError) as error:
        model.raw(parse_tensors(text.encode(), "standard input", model.manifest))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"cpuc: {error.value}\n")


def test_the_program_takes_a_key_to_trust(program: Path, tiny: Path, keys: Keys, tmp_path: Path) -> None:
    signed = tmp_path / "signed.pt"
    cpuc.sign(tiny, cpuc.read_private_key(keys.private), signed)
    good = run(program, signed, "--raw", "-i", "-", "--trust", keys.public, stdin=ONE)
    assert (good.returncode, good.stderr) == (0, "") and json.loads(good.stdout)
    offset, size = open_bundle(signed).members["constants/0"]
    data = bytearray(signed.read_bytes())
    data[offset + size // 2] ^= 1
    (tmp_path / "altered.pt").write_bytes(data)
    for bundle, options, message in (
        (tiny, ["--trust", keys.public], "is not signed"),
        (signed, ["--trust", make_keys(tmp_path, "other").public], "is signed by SHA256:"),
        (signed, ["--trust", keys.public, "--no-check-digests"], "a signature covers digests"),
        (tmp_path / "altered.pt", ["--trust", keys.public], "'constants/0' does not match its SHA-256"),
        (tmp_path / "altered.pt", [], "'constants/0' does not match its SHA-256"),
    ):
        done = run(program, bundle, "--raw", "-i", "-", *options, stdin=ONE)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_code_is_compared_before_any_of_it_runs(program: Path, fbgemm: Path, keys: Keys, tmp_path: Path) -> None:
    signed, altered = tmp_path / "signed.pt", tmp_path / "altered.pt"
    cpuc.sign(fbgemm, cpuc.read_private_key(keys.private), signed)
    members = unpack(signed)
    (place,) = (i for i, member in enumerate(members) if b"def __setstate__" in member.data)
    # Large as weights are, which are compared while torch loads them.
    code = re.sub(rb"(def __setstate__\([^)]*\) -> \w+:\n)", rb'\1    print("it ran")\n', members[place].data) + b"#" * 300_000
    members[place] = replace(members[place], data=code)
    altered.write_bytes(pack(members))
    for options in [], ["--trust", keys.public]:
        done = run(program, altered, "--raw", "-i", "-", *options, stdin=ONE)
        assert (done.returncode, done.stdout) == (1, "") and "does not match its SHA-256" in done.stderr
    assert "it ran" in run(program, altered, "--raw", "-i", "-", "--no-check-digests", stdin=ONE).stdout


def test_other_versions_and_cpus_are_refused(program: Path, tiny: Path, tmp_path: Path) -> None:
    for name, change, message in (
        ("torch", {"torch": "2.9.0"}, "compiled with torch 2.9.0, but this program has 2.8.0"),
        ("ipex", {"ipex": "2.7.0"}, "compiled with intel-extension-for-pytorch 2.7.0"),
        ("isa", {"isa": "AVX1024"}, "needs CPU capability 'AVX1024'"),
    ):
        (tmp_path / f"{name}.pt").write_bytes(pack(with_manifest(unpack(tiny), lambda m, c=change: m["build"].update(c))))
        done = run(program, tmp_path / f"{name}.pt", "--raw", "-i", "-", stdin=ONE)
        assert (done.returncode, done.stdout) == (1, "") and message in done.stderr
    done = run(program, tiny, "--raw", "-i", "-", stdin=ONE, ATEN_CPU_CAPABILITY="default")
    assert done.returncode == 1 and "needs a CPU with AVX2, which this one lacks" in done.stderr


@of_hidden_kernels
def test_kernels_that_are_hidden_are_named(program: Path, tmp_path: Path, sizes: dict[str, int], rows: int) -> None:
    needs_avx512()
    done = run(program, *hidden_kernels(tmp_path, sizes, rows), ONEDNN_MAX_CPU_ISA="AVX2")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"bf16.pt: {HIDDEN}" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_call_that_needs_more_memory_than_there_is_says_so(program: Path, tiny: Path) -> None:
    text = json.dumps(dict.fromkeys(("input_ids", "attention_mask"), [[1] * 256] * 6000))
    done = run(Path("prlimit"), f"--as={3 << 30}", program, tiny, "--raw", "-i", "-", stdin=text, OMP_NUM_THREADS="2")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "cpuc: out of memory\n")


def test_usage(program: Path, tiny: Path) -> None:
    done = run(program, "--help")
    assert done.returncode == 0 and "cpuc-run model.pt --raw" in done.stdout
    assert run(program, tiny).returncode == 2
    assert run(program, tiny, "--raw", "-i", "/absent").stderr == "cpuc: /absent: no such file\n"
    libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "libpython" not in libraries and "libtorch_python" not in libraries


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_output_is_written_leaves_nothing(program: Path, tiny: Path, tmp_path: Path, number: int) -> None:
    tensors, folder = tmp_path / "in.json", tmp_path / "out"
    tensors.write_text(json.dumps({spec.name: [[1] * 256] * 400 for spec in open_bundle(tiny).manifest.inputs}))
    folder.mkdir()
    command = [program, tiny, "--raw", "-i", tensors, "-o", folder / "out.json", "--force"]
    for _ in range(50):  # until one is stopped in the middle
        process = subprocess.Popen(command, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
        while process.poll() is None and not list(folder.glob("*/staged")):
            pass
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # it takes a moment
        written = list(folder.glob("*/staged"))
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        process.wait()
        if written:
            break
        (folder / "out.json").unlink(missing_ok=True)
    assert written
    assert process.returncode == -number
    assert list(folder.iterdir()) == []


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def peak(program: Path, bundle: Path) -> int:
    """The most memory, in bytes, that it takes to answer. Linux counts the parent's too, so that is a small one."""
    ids = json.dumps({spec.name: [[1] * 8] for spec in open_bundle(bundle).manifest.inputs})
    command = [sys.executable, "-c", PEAK, program, bundle, "--raw", "-i", "-"]
    return min(int(subprocess.run(command, input=ids, capture_output=True, text=True, check=True).stdout) for _ in range(3))


def test_weights_are_not_in_memory_twice(program: Path, fp32: Path, tiny: Path, tmp_path: Path) -> None:
    # The same members, but none of them at the beginning of a page, so that they are read.
    (tmp_path / "unaligned.pt").write_bytes(pack(unpack(fp32)))
    weights, libraries = fp32.stat().st_size, peak(program, tiny)
    for bundle in (fp32, tmp_path / "unaligned.pt"):
        assert peak(program, bundle) - libraries < 1.2 * weights + packed_twice()
    assert peak(program, fp32) < weights + (350 << 20)
