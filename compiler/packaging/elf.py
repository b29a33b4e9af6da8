"""As much of ELF as packaging needs: what a file asks for, where it looks for it, and how old a kernel may be."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cpuc.runtime.errors import CpucError

ORIGIN = "$ORIGIN"
_HEADER = struct.Struct("<16sHHLQQQLHHHHHH")
_SEGMENT = struct.Struct("<LLQQQQQQ")
_SECTION = struct.Struct("<LLQQQQLLQQ")
_DYNAMIC = struct.Struct("<qQ")
_NOTE = struct.Struct("<LLL")
_PT_LOAD, _PT_DYNAMIC, _PT_NOTE = 1, 2, 4
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_SHT_SYMTAB, _X86_64 = 2, 62


@dataclass(frozen=True)
class Elf:
    """What a shared library or a program says of itself.

    Attributes:
        needed: the names of the libraries that it is linked to.
        rpath: folders of RPATH and RUNPATH, as they are written.
        symbols: whether it has a symbol table that only debuggers and linkers read.
        kernel: the oldest Linux that it runs on, if it names one, as the C library does.
    """

    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    symbols: bool
    kernel: str | None


def read(path: Path) -> Elf:
    """Raises CpucError if the file is none that a 64-bit Intel machine loads."""
    with path.open("rb") as file:
        image = _Image(path, file)
        paths = (image.string(value) for tag, value in image.dynamic if tag in (_DT_RPATH, _DT_RUNPATH))
        return Elf(
            needed=tuple(image.string(value) for tag, value in image.dynamic if tag == _DT_NEEDED),
            rpath=tuple(folder for text in paths for folder in text.split(":") if folder),
            symbols=image.has_symbols(),
            kernel=image.kernel(),
        )


def look_in_own_folder(path: Path) -> None:
    """Have a file look for libraries in its own folder only, if it names folders at all: its RPATH becomes ``$ORIGIN``.

    What stands before that in the RPATH is skipped, the string stays where it is. The folders of wheels are relative, too, and
    would be looked for beside the package. Raises CpucError if the RPATH does not end with ``$ORIGIN``.
    """
    with path.open("r+b") as file:
        image = _Image(path, file)
        for index, (tag, value) in enumerate(image.dynamic):
            if tag not in (_DT_RPATH, _DT_RUNPATH):
                continue
            text = image.string(value)
            if text.split(":")[-1] != ORIGIN:
                raise CpucError(f"{path}: looks for libraries in {text}, and not in its own folder at last: cannot be packaged")
            file.seek(image.dynamic_offset + index * _DYNAMIC.size)
            file.write(_DYNAMIC.pack(_DT_RPATH, value + len(text.encode()) - len(ORIGIN)))


class _Image:
    """An open ELF file, of which only the parts that are asked for are read."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        ident, _, machine, _, _, segments, sections, _, _, _, count, _, section_count, _ = self._unpack(_HEADER, 0)
        if ident[:6] != b"\x7fELF\x02\x01" or machine != _X86_64:
            raise CpucError(f"{path}: is no program or library for x86-64")
        self._segments = [self._unpack(_SEGMENT, segments + i * _SEGMENT.size) for i in range(count)]
        self._sections = [self._unpack(_SECTION, sections + i * _SECTION.size) for i in range(section_count)]
        self.dynamic_offset = 0
        self.dynamic: list[tuple[int, int]] = []
        for kind, _, offset, _, _, size, _, _ in self._segments:
            if kind == _PT_DYNAMIC:
                self.dynamic_offset = offset
                self.dynamic = [self._unpack(_DYNAMIC, place) for place in range(offset, offset + size, _DYNAMIC.size)]
        strings = [self._place(value) for tag, value in self.dynamic if tag == _DT_STRTAB]
        self._strings = strings[0] if strings else 0

    def _unpack(self, form: struct.Struct, place: int) -> Any:
        self._file.seek(place)
        data = self._file.read(form.size)
        if len(data) < form.size:
            raise CpucError(f"{self._path}: is no program or library, or cut short")
        return form.unpack(data)

    def _place(self, address: int) -> int:
        """Where in the file the byte lies that is at `address` in memory."""
        for kind, _, offset, start, _, size, _, _ in self._segments:
            if kind == _PT_LOAD and start <= address < start + size:
                return int(offset + address - start)
        raise CpucError(f"{self._path}: is damaged: an address lies in none of its segments")

    def string(self, index: int) -> str:
        """The string of the dynamic section at `index`."""
        self._file.seek(self._strings + index)
        text = b""
        while b"\0" not in text:
            if not (more := self._file.read(256)):
                raise CpucError(f"{self._path}: is damaged: a name has no end")
            text += more
        return text[: text.index(b"\0")].decode()

    def has_symbols(self) -> bool:
        return any(kind == _SHT_SYMTAB for _, kind, *_ in self._sections)

    def kernel(self) -> str | None:
        """The version in the note by which the C library refuses older kernels."""
        for kind, _, offset, _, _, size, _, _ in self._segments:
            place = offset
            while kind == _PT_NOTE and place + _NOTE.size <= offset + size:
                name_size, text_size, what = self._unpack(_NOTE, place)
                name_at = place + _NOTE.size
                text_at = name_at + (name_size + 3) // 4 * 4
                place = text_at + (text_size + 3) // 4 * 4
                self._file.seek(name_at)
                if what == 1 and self._file.read(name_size) == b"GNU\0" and text_size >= 16:
                    return ".".join(map(str, self._unpack(struct.Struct("<LLLL"), text_at)[1:]))
        return None
