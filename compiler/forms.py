"""The ways in which a graph can compute the same, among which ``--tune`` chooses by measuring.

Defaults are what was best on most sizes and CPUs that were measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cpuc.compiler.benchmarking.machine import has_vnni, is_intel
from cpuc.runtime.engine import cpu_offers


@dataclass(frozen=True)
class Forms:
    """One way; as it is without arguments, what a row becomes does not depend on how many others there are.

    Attributes:
        layers: whose kernels compute linear layers: "libxsmm", "libxsmm-N" with weights in blocks of N outputs where that is
            not the usual number, "onednn", "by-rows" for either of them by their number, see `by_rows`, or "mkl", see `packed`.
        int8: whose kernels compute layers in int8, "onednn" or "fbgemm".
        residual: what adds the residual connection: the layer "norm" that follows, or the linear "layer" before it.
        attention: in float32, one kernel ("flash"), or "products" of whole matrices where `products` finds them faster.
    """

    layers: str = "libxsmm"
    int8: str = "onednn"
    residual: str = "layer"
    attention: str = "flash"


def defaults(dtype: torch.dtype, *, by_rows: bool = False) -> Forms:
    """What is taken without ``--tune``; `by_rows`: there are layers that could have that form, see there.

    On an EPYC (Zen 4) with AVX-512, a norm that adds made float32 1.08 times as fast with MiniLM and 1.03 with BERT-base at 16
    tokens, 1.01 at 128, and 0.99 to 1.01 at 384; in bfloat16 it was 0.98 to 1.02 throughout.

    IPEX's norm finds the variance in one pass. Where the mean of a row is 10 or 100 times its standard deviation, its relative
    errors are 3e-6 and 3e-4, torch's 5e-7 and 4e-6; below that they are alike. Such activations would show in the proof.

    Of attention, see `products`: with AVX-512 where MKL has none, which is on CPUs that are not Intel's.
    """
    products = cpu_offers("AVX512") and not is_intel()
    residual = norm_adds() and dtype == torch.float32
    return Forms(
        layers="by-rows" if by_rows else "libxsmm",
        int8=int8_kernels(),
        residual="norm" if residual else "layer",
        attention="products" if products else "flash",
    )


def norm_adds() -> bool:
    """Whether IPEX's layer norm that adds first is a kernel of its own on this CPU, and the better one.

    On a Xeon it is not, see `norms`: without it MiniLM is 1.00 to 1.03 times as fast in float32.
    """
    return cpu_offers("AVX512") and not is_intel()


def int8_kernels() -> str:
    """Whose kernels compute layers in int8 on this CPU, see `Forms` and `fbgemm`."""
    return "onednn" if cpu_offers("AVX512") or has_vnni() else "fbgemm"
