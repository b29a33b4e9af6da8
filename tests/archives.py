"""Bundles as an attacker would make them: a zip writer of the tests' own, every field of which can be made to lie."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpuc.runtime.bundle import MANIFEST, open_bundle

Fields = Mapping[str, Any]
_MARKS = {"local": b"PK\3\4", "central": b"PK\1\2", "end": b"PK\5\6"}
_LOCAL = {"version": "H", "flags": "H", "method": "H", "time": "H", "date": "H", "check": "L", "packed": "L", "size": "L"}
_CENTRAL = {"made": "H", **_LOCAL, "names": "H", "extras": "H", "comment": "H", "disk": "H", "internal": "H", "external": "L"}
_LAYOUT = {
    "local": {**_LOCAL, "names": "H", "extras": "H"},
    "central": {**_CENTRAL, "offset": "L"},
    "end": {"disk": "H", "first_disk": "H", "entries": "H", "total": "H", "size": "L", "place": "L", "comment": "H"},
}


@dataclass
class Member:
    """A member and what its headers say; `local` and `central` override single fields, `gap` bytes come before it."""

    name: bytes
    data: bytes
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    extra: bytes | None = None
    central_name: bytes | None = None
    gap: bytes = b""


def _record(kind: str, values: Fields) -> bytes:
    layout = _LAYOUT[kind]
    return _MARKS[kind] + struct.pack("<" + "".join(layout.values()), *(values.get(name, 0) for name in layout))


def pack(members: list[Member], end: Fields | None = None, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """A zip archive in cpuc's layout, but for what the members and `end` override.

    `before` comes before the central directory, `after` at the end of the file.
    """
    data, directory = bytearray(), bytearray()
    for member in members:
        data += member.gap
        offset = len(data)
        padding = -(offset + 30 + len(member.name) + 4) % 64
        extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding if member.extra is None else member.extra
        facts = {
            "version": 20,
            "date": 33,
            "check": zlib.crc32(member.data),
            "packed": len(member.data),
            "size": len(member.data),
            "names": len(member.name),
            "extras": len(extra),
            "made": 20,
            "external": 0o644 << 16,
            "offset": offset,
        }
        data += _record("local", {**facts, **member.local}) + member.name + extra + member.data
        name = member.name if member.central_name is None else member.central_name
        directory += _record("central", {**facts, "names": len(name), **member.central}) + name + extra
    data += before
    facts = {"entries": len(members), "total": len(members), "size": len(directory), "place": len(data)}
    return bytes(data + directory) + _record("end", {**facts, **(end or {})}) + after


def unpack(path: Path) -> list[Member]:
    """The members of a good bundle, to be packed again."""
    bundle = open_bundle(path)
    return [Member(f"cpuc/{name}".encode(), bundle.file.read(*place)) for name, place in bundle.members.items()]


def with_manifest(members: list[Member], change: Callable[[Any], Any], *, digests: bool = False) -> list[Member]:
    """The members with a manifest that `change` has edited or replaced.

    With `digests` it has those of the members as they are now.
    """
    manifest = json.loads(next(member.data for member in members if member.name == f"cpuc/{MANIFEST}".encode()))
    changed = change(manifest)
    manifest = manifest if changed is None else changed
    others = [member for member in members if member.name != f"cpuc/{MANIFEST}".encode()]
    if digests:
        manifest["members"] = {m.name.decode().removeprefix("cpuc/"): hashlib.sha256(m.data).hexdigest() for m in others}
    return [*others, Member(f"cpuc/{MANIFEST}".encode(), json.dumps(manifest).encode())]
