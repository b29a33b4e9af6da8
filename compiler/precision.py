"""The precisions: how a float32 model is brought to each before capture, one entry each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """A numeric format for weights and activations.

    Attributes:
        dtype: of torch, for weights and activations; outputs are float32 always.
        isa: the lowest CPU capability the artifact runs on.
        tolerance: the largest root mean square of differences to eager float32 that a compile accepts, relative to
            the root mean square of eager's own values.
    """

    dtype: str
    isa: str
    tolerance: float


PRECISIONS = {
    # Rounding is 6e-8 per operation; a different order of summation over a few thousand of them stays below 1e-5.
    # Anything near 1e-4 is a wrong operator, not rounding.
    "fp32": Precision("float32", "AVX2", 1e-4),
    # 8 bits of significand: each rounding errs by up to 2**-9 = 0.2 %, and errors of some hundred roundings in a row
    # (about ten per layer) add up like a random walk: 0.002 * sqrt(240) = 3 % for 24 layers, doubled for margin.
    "bf16": Precision("bfloat16", "AVX512", 6e-2),
}
