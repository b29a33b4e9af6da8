"""Files that are made to break the reader: each is refused with a message, quickly, in bounded memory, and nothing runs."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import pytest
from archives import Member, pack, unpack, with_manifest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cpuc
from cpuc.runtime.archive import File, list_members, write_member
from cpuc.runtime.bundle import MANIFEST, open_bundle

EVERY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(path: Path) -> None:
    """Open a bundle and check all that can be checked without running it."""
    open_bundle(path).check_digests()


def refused(path: Path, data: bytes, message: str = "bundle|damaged|do not use") -> None:
    path.write_bytes(data)
    with pytest.raises(cpuc.BundleError, match=message) as error:
        check(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 2000


def test_packing_again_gives_a_good_bundle(tiny: Path, tmp_path: Path) -> None:
    """What the other tests rely on: the tests' own writer and the compiler's agree on the layout."""
    (tmp_path / "again.pt").write_bytes(pack(unpack(tiny)))
    check(tmp_path / "again.pt")
    assert cpuc.load(tmp_path / "again.pt").manifest == cpuc.load(tiny).manifest


def test_cut_at_every_boundary(tiny: Path, tmp_path: Path) -> None:
    data = tiny.read_bytes()
    places = {0, 1, len(data) - 1, len(data) - 22}
    for offset, size in open_bundle(tiny).members.values():
        places |= {offset - 1, offset, offset + 1, offset + size - 1, offset + size, offset + size + 1}
    for place in sorted(places):
        refused(tmp_path / "cut.pt", data[:place], "cut short|not a cpuc bundle")
        refused(tmp_path / "cut.pt", data[place:] if place else b"")


@pytest.mark.slow
def test_a_flipped_bit_anywhere(tiny: Path, tmp_path: Path) -> None:
    """Every byte of the headers and of the directory, and a sample of all others, padding too."""
    data = bytearray(tiny.read_bytes())
    members = open_bundle(tiny).members
    generator = random.Random(0)
    last = sum(list(members.values())[-1])
    places = set(range(last, len(data))) | {generator.randrange(len(data)) for _ in range(500)}
    end = 0
    for name, (offset, size) in members.items():
        padding = end + 30 + len(f"cpuc/{name}") + 4  # up to a page of it, of which a sample is enough
        places |= {*range(end, padding), *generator.sample(range(padding, offset), min(16, offset - padding))}
        end = offset + size
    path = tmp_path / "flipped.pt"
    path.write_bytes(data)
    unnoticed = set()
    with path.open("r+b") as file:
        for place in sorted(places):
            bit = 1 << generator.randrange(8)
            os.pwrite(file.fileno(), bytes([data[place] ^ bit]), place)
            try:
                check(path)
            except cpuc.BundleError:
                pass
            else:
                unnoticed.add(place)
            os.pwrite(file.fileno(), bytes([data[place]]), place)
    # What a reader passes over: padding, and the versions and the system of the creator. torch must read the same nevertheless.
    assert len(unnoticed) < len(places) / 2
    copy = bytearray(data)
    for place in unnoticed:
        copy[place] ^= 0xFF
    path.write_bytes(copy)
    record, bundle = {"question": "Who?", "context": "Ada wrote it."}, open_bundle(path)
    assert cpuc.load(path, warm_up=False)(record) == cpuc.load(tiny, warm_up=False)(record)
    assert (bundle.members, bundle.manifest) == (members, open_bundle(tiny).manifest)


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def _with_text(text: str) -> Callable[[list[Member]], bytes]:
    """The proof's tolerance in the manifest's text replaced by something else."""
    return lambda m: pack(
        [*m[:-1], replace(m[-1], data=re.sub(rb'"tolerance": [0-9.e-]+', lambda _: text.encode(), m[-1].data))]
    )


LIES: dict[str, tuple[Callable[[list[Member]], bytes], str]] = {
    "a byte before the first member": (lambda m: b"x" + pack(m), "cut short|damaged"),
    "a shell script before it": (lambda m: pack([replace(m[0], gap=b"#!/bin/sh\n"), *m[1:]]), "damaged"),
    "bytes between members": (lambda m: pack([m[0], replace(m[1], gap=bytes(64)), *m[2:]]), "damaged"),
    "bytes before the directory": (lambda m: pack(m, before=b"hidden"), "belong to no member"),
    "bytes after the end": (lambda m: pack(m, after=b"hidden"), "cut short"),
    "a comment": (lambda m: pack(m, {"comment": 2}, after=b"hi"), "cut short"),
    "two archives, one behind the other": (lambda m: pack(m) + pack(m), "cut short|damaged"),
    "fewer entries than members": (lambda m: pack(m, {"entries": len(m) - 1, "total": len(m) - 1}), "more than its entries"),
    "more entries than members": (lambda m: pack(m, {"entries": 60000, "total": 60000}), "damaged"),
    "another number of entries in all": (lambda m: pack(m, {"total": 1}), "cut short"),
    "several disks": (lambda m: pack(m, {"disk": 1}), "cut short"),
    "a directory elsewhere": (lambda m: pack(m, {"place": 0}), "cut short"),
    "a directory that is too long": (lambda m: pack(m, {"size": 2**32 - 1}), "cut short"),
    "a size beyond the end": (lambda m: pack(_first(m, size=2**31, packed=2**31)), "damaged"),
    "a size of 2**64 - 1": (lambda m: pack(_wide(m, 2**64 - 1)), "damaged"),
    "a size that is 0": (lambda m: pack(_first(m, size=0, packed=0)), "damaged|belong"),
    "a member over another": (lambda m: pack([m[0], replace(m[1], central={"offset": 0}), *m[2:]]), "damaged"),
    "a member in the directory": (lambda m: pack([*m[:-1], replace(m[-1], central={"offset": 2**31})]), "damaged"),
    "another size in its own header": (lambda m: pack([replace(m[0], local={"size": 1}), *m[1:]]), "damaged"),
    "another checksum in its own header": (lambda m: pack([replace(m[0], local={"check": 1}), *m[1:]]), "damaged"),
    "another name in the directory": (lambda m: pack([replace(m[0], central_name=m[0].name[:-1] + b"x"), *m[1:]]), "damaged"),
    "a file that is a folder": (lambda m: pack([replace(m[0], central={"external": 0o644 << 16 | 0x10}), *m[1:]]), "damaged"),
    "other attributes": (lambda m: pack([replace(m[0], central={"external": 0}), *m[1:]]), "damaged"),
    "a file that says it is text": (lambda m: pack([replace(m[0], central={"internal": 1}), *m[1:]]), "damaged"),
    "compression": (lambda m: pack(_first(m, method=8)), "compressed"),
    "encryption": (lambda m: pack(_first(m, flags=1)), "encrypted"),
    "sizes that come later": (lambda m: pack(_first(m, flags=8)), "compressed"),
    "a bomb": (lambda m: pack(_first(m, method=8, size=2**32 - 2)), "compressed"),
    "another extra field": (lambda m: pack([replace(m[0], extra=struct.pack("<HH", 0x7075, 0)), *m[1:]]), "damaged"),
    "an extra field that is too long": (lambda m: pack([replace(m[0], extra=b"FB\xff\xffZ"), *m[1:]]), "damaged"),
    "a name outside": (lambda m: pack([*m[:-1], Member(b"cpuc/../../etc/passwd", b""), m[-1]]), "misplaced"),
    "an absolute name": (lambda m: pack([*m[:-1], Member(b"/cpuc/x", b""), m[-1]]), "misplaced"),
    "an empty part": (lambda m: pack([*m[:-1], Member(b"cpuc//x", b""), m[-1]]), "misplaced"),
    "a folder": (lambda m: pack([*m[:-1], Member(b"cpuc/x/", b""), m[-1]]), "misplaced"),
    "no name": (lambda m: pack([*m[:-1], Member(b"", b""), m[-1]]), "misplaced"),
    "another top": (lambda m: pack([*m[:-1], Member(b"CPUC/x", b""), m[-1]]), "misplaced"),
    "a backslash": (lambda m: pack([*m[:-1], Member(b"cpuc/..\\x", b""), m[-1]]), "misplaced"),
    "a NUL": (lambda m: pack([*m[:-1], Member(b"cpuc/data.pkl\0", b""), m[-1]]), "misplaced"),
    "a letter that is no ASCII": (lambda m: pack([*m[:-1], Member("cpuc/é".encode(), b""), m[-1]]), "misplaced"),
    "a name twice": (lambda m: pack([m[0], *m]), "there twice"),
    "a name twice, in capitals": (lambda m: pack([Member(b"cpuc/DATA.PKL", b""), *m]), "there twice"),
    "two manifests": (lambda m: pack([*m, m[-1]]), "there twice"),
    "no manifest": (lambda m: pack(m[:-1]), "no manifest.json"),
    "a manifest that is not last": (lambda m: pack([m[-1], *m[:-1]]), "not the last"),
    "a member that is missing": (lambda m: pack(m[1:]), "not in both"),
    "a member that is not listed": (lambda m: pack([*m[:-1], Member(b"cpuc/extra/x", b""), m[-1]]), "not in both"),
    "a manifest of 100 MB": (lambda m: pack([*m[:-1], replace(m[-1], data=b" " * 100_000_000)]), "larger than 4194304 bytes"),
    "a manifest that is nested": (lambda m: pack([*m[:-1], replace(m[-1], data=b'{"a":' * 500_000)]), "not valid JSON"),
    "a manifest that is nested and closed": (
        lambda m: pack(with_manifest(m, lambda facts: facts["preprocessing"].update(deep=_deep(200)))),
        "nested too deeply",
    ),
    "a number without end": (_with_text('"tolerance": 1e999'), "not valid JSON"),
    "a number of 401 digits": (_with_text('"tolerance": 1' + "0" * 400), "not valid JSON"),
    "half a surrogate pair": (_with_text('"tolerance": "\\ud800"'), "not valid JSON"),
    "a byte order mark": (lambda m: pack([*m[:-1], replace(m[-1], data=b"\xef\xbb\xbf" + m[-1].data)]), "not valid JSON"),
    "a manifest that is a number": (lambda m: pack([*m[:-1], replace(m[-1], data=b"1" * 4_000_000)]), "not valid JSON"),
    "a manifest that is not UTF-8": (lambda m: pack([*m[:-1], replace(m[-1], data=b"\xff\xfe")]), "not valid JSON"),
    "an empty manifest": (lambda m: pack([*m[:-1], replace(m[-1], data=b"")]), "not valid JSON"),
    "a signature of 1 MB": (lambda m: pack([*m, Member(b"cpuc/extra/signature.json", b" " * 1_000_000)]), "larger than 4096"),
    "nothing at all": (lambda _: pack([]), "no manifest.json"),
}


def _first(members: list[Member], **fields: int) -> list[Member]:
    """Both headers of the first member say so."""
    return [replace(members[0], local=fields, central=fields), *members[1:]]


def _wide(members: list[Member], size: int) -> list[Member]:
    """The same in zip64's way."""
    fields = {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF}
    extra = struct.pack("<HHQQ", 1, 16, size, size)
    return [replace(members[0], local=fields, central=fields, extra=extra), *members[1:]]


@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_lies(tiny: Path, tmp_path: Path, lie: str) -> None:
    make, message = LIES[lie]
    refused(tmp_path / "bad.pt", make(unpack(tiny)), message)


def test_a_list_of_members_without_end(tiny: Path, tmp_path: Path) -> None:
    many = [Member(b"cpuc/%06d" % i + b"x" * 200, b"") for i in range(65_000)]
    refused(tmp_path / "many.pt", pack([*many, *unpack(tiny)][-65_000:]), "list of members takes")


def test_large_archives_have_another_end(tiny: Path, tmp_path: Path) -> None:
    """Zip64's end record, as Python writes it for more than 65535 members, and a lie in each of its fields."""
    members = [*(Member(b"cpuc/%d" % i, b"") for i in range(66_000)), *unpack(tiny)]
    plain = pack(members, {"entries": 0xFFFF, "total": 0xFFFF})
    end = len(plain) - 22
    size, place = struct.unpack_from("<LL", plain, end + 12)

    def large(**lies: int) -> bytes:
        facts = {
            "length": 44,
            "disk": 0,
            "first": 0,
            "entries": len(members),
            "total": len(members),
            "size": size,
            "place": place,
        }
        facts |= {"at": end, "disks": 1, **lies}
        record = struct.pack(
            "<4sQHHLLQQQQ",
            b"PK\6\6",
            facts["length"],
            45,
            45,
            *(facts[n] for n in ("disk", "first", "entries", "total", "size", "place")),
        )
        return plain[:end] + record + struct.pack("<4sLQL", b"PK\6\7", 0, facts["at"], facts["disks"]) + plain[end:]

    refused(tmp_path / "large.pt", large(), "not in both")  # it was read: what is wrong is the manifest
    for lies in ({"length": 45}, {"disk": 1}, {"total": 5}, {"size": size + 1}, {"place": 2**63}, {"at": 0}, {"disks": 2}):
        refused(tmp_path / "lies.pt", large(**lies), "cut short")
    refused(tmp_path / "lies.pt", large(entries=5, total=5), "more than its entries")
    refused(tmp_path / "lies.pt", large(entries=2**63, total=2**63), "damaged")


def test_sizes_near_the_limit_of_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's writer takes 64 bits from a limit on, which is lowered here, and for its local headers from 5 % below."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10_000)
    for size in (9000, 9400, 9523, 9524, 9700, 10_000, 10_001, 20_000):
        path = tmp_path / f"{size}.pt"
        with zipfile.ZipFile(path, "w") as target:
            for name in ("data.pkl", "constants/0", "extra/manifest.json"):
                write_member(target, name, bytes(size))
        members = list_members(File(path), "extra/manifest.json")
        assert [(offset % 64, found) for offset, found in members.values()] == [(0, size)] * 3


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "pipe", tmp_path / "loop", tmp_path, Path("/dev/zero"), Path("/proc/self/mem"), Path("a\0b")):
        with pytest.raises(cpuc.BundleError, match=r"cannot be read|not a cpuc bundle"):
            open_bundle(path)


def test_a_hostile_file_takes_no_memory_and_no_torch(tiny: Path, tmp_path: Path) -> None:
    members = unpack(tiny)
    bad = [
        pack([*members[:-1], replace(members[-1], data=b"[" * 100_000_000)]),
        pack([*members[:-1], replace(members[-1], data=b"[" * 4_000_000)]),
        LIES["more entries than members"][0](members),
        LIES["a size of 2**64 - 1"][0](members),
        LIES["a bomb"][0](members),
    ]
    script = """
import re, sys
import cpuc
from cpuc.runtime.bundle import open_bundle
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
before = peak()
for path in sys.argv[1:]:
    try: open_bundle(path)
    except cpuc.BundleError: pass
    else: sys.exit(path)
print(peak() - before < 100, "torch" in sys.modules)
"""
    paths = []
    for i, data in enumerate(bad):
        paths.append(tmp_path / f"{i}.pt")
        paths[-1].write_bytes(data)
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True False\n", "")


def test_nothing_of_an_altered_bundle_is_executed(tiny: Path, tmp_path: Path) -> None:
    """A pickle that would write a file, in the place of torch's own."""
    marker = tmp_path / "executed"
    evil = b"cos\nsystem\n(S'touch %s'\ntR." % str(marker).encode()
    members = [replace(m, data=evil) if m.name.endswith(b"data.pkl") else m for m in unpack(tiny)]
    refused(tmp_path / "evil.pt", pack(members), "data.pkl' does not match its SHA-256")
    # Digests and all: then torch's own unpickler, which calls no functions, is what stops it.
    (tmp_path / "evil.pt").write_bytes(pack(with_manifest(members, lambda _: None, digests=True)))
    check(tmp_path / "evil.pt")
    with pytest.raises(cpuc.BundleError, match="torch cannot load the graph"):
        cpuc.load(tmp_path / "evil.pt")
    assert not marker.exists()


def test_a_bundle_that_is_replaced_while_it_is_loaded(tiny: Path, tmp_path: Path) -> None:
    """What was checked is what is loaded, whatever lies under its name by then."""
    from cpuc.runtime.engine import Engine

    path = tmp_path / "model.pt"
    path.write_bytes(tiny.read_bytes())
    opened = open_bundle(path)
    (tmp_path / "other").write_bytes(b"something else")
    (tmp_path / "other").replace(path)
    assert Engine(opened).manifest == open_bundle(tiny).manifest


def test_where_the_list_of_open_files_is_not_mounted(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cpuc.runtime import archive
    from cpuc.runtime.engine import Engine

    arrays = {name: np.ones((1, 5), np.int64) for name in ("input_ids", "attention_mask")}
    expected = cpuc.load(tiny).raw(arrays)
    monkeypatch.setattr(archive.Path, "exists", lambda path: not str(path).startswith("/proc"))
    for name, array in Engine(open_bundle(tiny)).run(arrays).items():
        np.testing.assert_array_equal(array, expected[name])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [(value, key) for key, _ in items] + [place for _, inner in items for place in _places(inner)]


@EVERY
@given(st.data())
def test_any_manifest_is_read_or_refused(tiny: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Including the task that is made of it; nothing but our own errors comes out."""
    from cpuc.runtime.tasks import load_task

    def change(manifest: Any) -> None:
        places = [place for place in _places(manifest) if place[0] is not manifest["members"]]
        for container, key in data.draw(
            st.lists(st.sampled_from(places), min_size=1, max_size=2, unique_by=lambda p: (id(p[0]), p[1]))
        ):
            if data.draw(st.booleans()):
                container[key] = data.draw(JSON)
            elif isinstance(container, dict):
                container.pop(key, None)

    path = tmp_path / "bad.pt"
    path.write_bytes(pack(with_manifest(unpack(tiny), change)))
    try:
        bundle = open_bundle(path)
        load_task(bundle.manifest, bundle.read)
    except cpuc.BundleError:
        pass


@EVERY
@given(st.data())
def test_any_change_of_the_bytes_is_harmless_or_refused(tiny: Path, tmp_path: Path, data: st.DataObject) -> None:
    good = tiny.read_bytes()
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of them where the structure is.
        begin = data.draw(st.sampled_from([0, len(good) - 6000]))
        place = begin + data.draw(st.integers(0, len(good) - 1 - begin))
        size = data.draw(st.integers(0, 40))
        changed[place : place + size] = data.draw(st.binary(max_size=40))
    path = tmp_path / "changed.pt"
    path.write_bytes(changed)
    try:
        check(path)
    except cpuc.BundleError:
        return
    bundle, original = open_bundle(path), open_bundle(tiny)
    assert bundle.manifest == original.manifest
    assert {name: bundle.file.read(*place) for name, place in bundle.members.items() if name != MANIFEST} == {
        name: original.file.read(*place) for name, place in original.members.items() if name != MANIFEST
    }


@pytest.mark.parametrize("seed", sorted(fuzz.SEEDS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once(seed: Path) -> None:
    assert not fuzz.run(seed.parent.name, seed.read_bytes())


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_the_fuzzer_begins_with_good_inputs(tmp_path: Path, target: str) -> None:
    """Each target takes what it should, or it would find nothing."""
    fuzz.write_corpus(target, tmp_path)
    taken = [fuzz.run(target, path.read_bytes()) for path in sorted(tmp_path.iterdir())]
    assert any(taken)


def test_a_bomb_of_tensors(tmp_path: Path, tiny: Path, cli: Any) -> None:
    (tmp_path / "bomb.npz").write_bytes(pack([Member(b"input_ids.npy", b"", central={"size": 2**32 - 2})]))
    done = cli("run", tiny, "--raw", "-i", tmp_path / "bomb.npz")
    assert (done.returncode, done.stdout) == (1, "")
    assert "takes 4294967294 bytes unpacked" in done.stderr and "give fewer rows" in done.stderr
