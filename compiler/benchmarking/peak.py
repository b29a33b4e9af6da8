"""What this machine reaches in multiplications, by precision, and in reading memory: the roofs that a model is held against.

Two probes find the peak of a precision. Products of matrices, through the kernels that artifacts use: large ones, and ones
whose operands stay in the cache. And the CPU's own multiply-and-add instructions on registers alone, which is the limit of any
kernel. All of them run on as many threads as torch does; of several runs the fastest counts, since a peak is what the machine
does undisturbed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cpuc.compiler.benchmarking.instructions import fastest, probe
from cpuc.compiler.forms import int8_kernels
from cpuc.runtime.engine import cpu_offers
from cpuc.runtime.libraries import load_ipex, packing_for_fbgemm

# Rows, inner size, columns: small enough for the second cache of a core, the layers of BERT-base, and large.
GEMMS = ((512, 512, 512), (384, 768, 768), (384, 768, 3072), (1024, 1024, 1024), (2048, 2048, 2048))
SECONDS, LEAST_CALLS = 0.05, 2
PASSES = 2
# Much more than any cache holds.
READ_BYTES = 256 * 2**20
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
Product = Callable[[], torch.Tensor]
# Of rows, inner size and columns: the kernels' names, and a product by each.
Products = Callable[[int, int, int], Iterator[tuple[str, Product]]]


@dataclass(frozen=True)
class Peak:
    """Operations per second in one precision, a multiplication and an addition counted as two.

    Attributes:
        gemm: the best rate of a matrix product, and `shape` its rows, inner size and columns.
        kernel: what computed it.
        fma: the rate of `instruction` on registers; both are None where this machine has no probe for one.
    """

    precision: str
    gemm: float
    shape: tuple[int, int, int]
    kernel: str
    fma: float | None
    instruction: str | None

    @property
    def best(self) -> float:
        """The higher of both: the peak that shares are of."""
        return max(self.gemm, self.fma or 0)


@dataclass(frozen=True)
class Roofs:
    """The peaks of the precisions that this machine has, why it lacks the others, and what it reads of memory per second."""

    peaks: dict[str, Peak]
    skipped: dict[str, str]
    bandwidth: float
    cache: int | None


def measure_roofs(known: Roofs | None = None) -> Roofs:
    """Probe the machine; takes some seconds. Of what an earlier measurement found, the higher figures stay.

    A busy neighbour on a shared machine can halve all that is measured within a second: measure at several times.
    """
    load_ipex()
    peaks, skipped = dict(known.peaks) if known else {}, {}
    bandwidth = known.bandwidth if known else 0.0
    with torch.inference_mode():
        for _ in range(PASSES):
            for precision, products in _PRODUCTS.items():
                if precision == "bf16" and not cpu_offers("AVX512"):
                    skipped[precision] = "needs a CPU with AVX512"
                else:
                    peaks[precision] = _measure_peak(precision, products, peaks.get(precision))
            bandwidth = max(bandwidth, _measure_bandwidth())
    return Roofs(peaks, skipped, bandwidth, _last_cache())


def _measure_peak(precision: str, products: Products, known: Peak | None) -> Peak:
    best = (known.gemm, known.shape, known.kernel) if known else (0.0, (0, 0, 0), "")
    for shape in GEMMS:
        rows, inner, columns = shape
        for kernel, product in products(rows, inner, columns):
            best = max(best, (2 * rows * inner * columns / _least_seconds(product), shape, kernel))
    instruction = fastest(precision)
    rate = probe(instruction, torch.get_num_threads()) if instruction else None
    if instruction is None or rate is None:
        return Peak(precision, *best, None, None)
    return Peak(precision, *best, max(rate, known.fma or 0) if known else rate, instruction.name)


def _least_seconds(call: Callable[[], object]) -> float:
    """The shortest of as many calls as fit into the time for one probe, two at least, after one that is not counted."""
    call()
    times: list[float] = []
    while len(times) < LEAST_CALLS or sum(times) < SECONDS:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def _in_floats(dtype: torch.dtype) -> Products:
    def products(rows: int, inner: int, columns: int) -> Iterator[tuple[str, Product]]:
        x, weight = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
        packed = torch.ops.ipex_prepack.linear_prepack(weight, None, rows)
        yield "aten::mm", lambda: torch.mm(x, weight.t())
        yield "ipex_prepack::linear_run", lambda: torch.ops.ipex_prepack.linear_run(x, packed)

    return products


def _in_int8(rows: int, inner: int, columns: int) -> Iterator[tuple[str, Product]]:
    x = torch.randint(0, 256, (rows, inner), dtype=torch.uint8)
    # Sums of products of 8 and 7 bits fit into 16 bits, as those of artifacts do: CPUs without VNNI have no other way.
    weight = torch.randint(-64, 64, (columns, inner), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [rows, inner])
    scales, zeros = torch.ones(columns), torch.zeros(columns, dtype=torch.int64)
    output: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
    yield (
        "onednn::qlinear_pointwise",
        lambda: torch.ops.onednn.qlinear_pointwise(x, 1.0, 0, packed, scales, zeros, None, *output),
    )
    if int8_kernels() == "fbgemm":
        with packing_for_fbgemm():
            matrix = torch.ops.quantized.linear_prepack(
                torch.ops.aten._make_per_channel_quantized_tensor(weight, scales, zeros, 0), None
            )
        floats, multiply = x.float(), torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        yield "quantized::linear_with_input_q_dq_qweight_dq_output_fp32", lambda: multiply(floats, 1.0, 0, matrix)


_PRODUCTS: dict[str, Products] = {"fp32": _in_floats(torch.float32), "bf16": _in_floats(torch.bfloat16), "int8": _in_int8}


def _measure_bandwidth() -> float:
    """Bytes per second that all threads read of memory: the sum of a large array."""
    array = torch.ones(READ_BYTES // 4)
    return READ_BYTES / _least_seconds(array.sum)


def _last_cache() -> int | None:
    """Bytes of the cache before memory, None where the system does not tell."""
    try:
        return int(_CACHE.read_text().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return None
