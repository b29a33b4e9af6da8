"""The rate of the CPU's multiply-and-add instructions on registers alone: the limit of any kernel.

There is no compiler where a model runs, so the loop is encoded here and run from memory of our own, as oneDNN does with its
kernels; the encodings are those of Intel's manual, volume 2. AMX has no probe: its tiles need a configuration of the process.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cpuc.runtime.engine import cpu_offers

# How long the threads run between two looks at the clock, and how often.
SECONDS, ROUNDS = 0.02, 4
_CLEAR_ALL = bytes.fromhex("c5fc77")  # vzeroall
_COUNT_DOWN = bytes.fromhex("48ffcf")  # dec rdi
_BACK = bytes.fromhex("0f85")  # jnz, followed by how far
_END = bytes.fromhex("c5f877 c3")  # vzeroupper; ret
# 0F 38 and 0F, and the prefixes 66 and F3, as VEX and EVEX write them.
_MAP_0F38, _MAP_0F = 2, 1
_66, _F3 = 1, 2


@dataclass(frozen=True)
class Instruction:
    """One way of multiplying and adding.

    Attributes:
        precision: of the operands.
        here: whether this CPU has it.
        body: machine code of the loop; chains on different registers, so many that no result is waited for.
        operations: of one run of the loop on one core; a multiplication and an addition are two.
    """

    name: str
    precision: str
    here: Callable[[], bool]
    body: bytes
    operations: int


def vex(opcode: int, place: int, prefix: int, target: int, one: int, other: int) -> bytes:
    """An AVX instruction on whole 256-bit registers ``ymm0`` to ``ymm15``: target, one, other."""
    high = (target < 8) << 7 | 1 << 6 | (other < 8) << 5
    return bytes([0xC4, high | place, (~one & 15) << 3 | 1 << 2 | prefix, opcode, 3 << 6 | (target & 7) << 3 | other & 7])


def evex(opcode: int, place: int, prefix: int, target: int, one: int, other: int) -> bytes:
    """An AVX-512 instruction on whole 512-bit registers ``zmm0`` to ``zmm15``: target, one, other; no mask."""
    high = (target < 8) << 7 | 1 << 6 | (other < 8) << 5 | 1 << 4
    middle = (~one & 15) << 3 | 1 << 2 | prefix
    return bytes([0x62, high | place, middle, 2 << 5 | 1 << 3, opcode, 3 << 6 | (target & 7) << 3 | other & 7])


def _repeated(encode: Callable[..., bytes], opcode: int, prefix: int) -> bytes:
    """Twelve chains: register i += register 14 · register 15."""
    return b"".join(encode(opcode, _MAP_0F38, prefix, i, 14, 15) for i in range(12))


def _in_bytes() -> bytes:
    """Six times the three instructions of CPUs without VNNI: pairs of bytes to 16 bits, pairs of those to 32, and the sum."""
    return b"".join(
        vex(0x04, _MAP_0F38, _66, 6 + i, 14, 15)  # vpmaddubsw
        + vex(0xF5, _MAP_0F, _66, 6 + i, 6 + i, 13)  # vpmaddwd
        + vex(0xFE, _MAP_0F, _66, i, i, 6 + i)  # vpaddd
        for i in range(6)
    )


def _has_bf16() -> bool:
    return cpu_offers("AVX512") and torch.cpu._is_avx512_bf16_supported()


def _has_vnni() -> bool:
    return cpu_offers("AVX512") and torch.cpu._is_vnni_supported()


def _without_amx(supported: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: supported() and not torch.cpu._is_amx_tile_supported()


# Of each precision the fastest comes first.
INSTRUCTIONS = [
    Instruction("vfmadd231ps zmm", "fp32", lambda: cpu_offers("AVX512"), _repeated(evex, 0xB8, _66), 12 * 32),
    Instruction("vfmadd231ps ymm", "fp32", lambda: cpu_offers("AVX2"), _repeated(vex, 0xB8, _66), 12 * 16),
    Instruction("vdpbf16ps zmm", "bf16", _without_amx(_has_bf16), _repeated(evex, 0x52, _F3), 12 * 64),
    Instruction("vpdpbusd zmm", "int8", _without_amx(_has_vnni), _repeated(evex, 0x50, _66), 12 * 128),
    Instruction("vpmaddubsw ymm", "int8", _without_amx(lambda: cpu_offers("AVX2")), _in_bytes(), 6 * 64),
]


def fastest(precision: str) -> Instruction | None:
    """The fastest of this CPU's instructions for a precision that there is a probe for."""
    return next((each for each in INSTRUCTIONS if each.precision == precision and each.here()), None)


def probe(instruction: Instruction, threads: int) -> float | None:
    """Operations per second of `threads` threads together, in the fastest of some rounds.

    None where the system lets no program run what it has written into memory.
    """
    code = _loop(instruction.body)
    try:
        memory = mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    memory.write(code)
    start = ctypes.c_char.from_buffer(memory)  # for as long as this lives, so does the memory
    run = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(ctypes.addressof(start))
    count, took = 1000, 0.0
    while took < SECONDS:
        count *= 2
        took = _timed(run, count, 1)
    took = min(_timed(run, count, threads) for _ in range(ROUNDS))
    return threads * count * instruction.operations / took


def _loop(body: bytes) -> bytes:
    """A function that takes how often `body` is to run, which must be once at least."""
    inner = body + _COUNT_DOWN + _BACK
    back = -(len(inner) + 4)
    return _CLEAR_ALL + inner + back.to_bytes(4, "little", signed=True) + _END


def _timed(run: Callable[[int], object], count: int, threads: int) -> float:
    """Seconds until all threads, which begin together, have run the loop; ctypes lets go of Python's lock meanwhile."""
    spans: list[tuple[float, float]] = []
    together = threading.Barrier(threads)

    def work() -> None:
        together.wait()
        begin = time.perf_counter()
        run(count)
        spans.append((begin, time.perf_counter()))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(end for _, end in spans) - min(begin for begin, _ in spans)
