"""The precisions: how a float32 model is brought to each before capture, one entry each."""

from __future__ import annotations

from dataclasses import dataclass

from cpuc.runtime.errors import ModelError


@dataclass(frozen=True)
class Limit:
    """How far outputs may be from float32 on the calibration sample, as root mean square.

    Attributes:
        relative: to the outputs' own.
        absolute: of logits, whose differences of one mean a factor of e in a probability, however large they are themselves.
    """

    relative: float
    absolute: float = float("inf")


# So much in the difference of two logits moves a probability by up to 1.1 points. Of 625 answers of examples/minilm-qa, to
# XQuAD's questions, 602 stay as they are with it and 6 layers in floating point, 606 with 0.04 and 8 layers, 601 with 0.05 and
# 4. F1 is 62.44, 62.66 and 62.13, eager's 62.53; a standard deviation of the difference is 0.3. (Embeddings were in bfloat16
# then; in int8, with the limit as it is, 604 answers stay, and F1 is 62.64.)
LOGITS = Limit(relative=0.05, absolute=0.045)
# An error of 5 % turns a vector by a cosine of 0.9988; of some texts it is twice as large.
FEATURES = Limit(relative=0.05)


@dataclass(frozen=True)
class Int8:
    """How linear layers are brought to int8.

    Attributes:
        dynamic: activations are scaled while running, row by row, instead of by a calibration sample.
        rest: of torch, what attention and the layers that stay in floating point compute in.
    """

    dynamic: bool
    rest: str


@dataclass(frozen=True)
class Precision:
    """A numeric format for weights and activations.

    Attributes:
        dtype: of torch, that the model is captured in; outputs are float32 always.
        isa: the lowest CPU capability the artifact runs on.
        tolerance: the largest root mean square of differences to eager float32 that a compile accepts, relative to
            the root mean square of eager's own values.
        int8: what becomes of linear layers, if they are quantised.
    """

    dtype: str
    isa: str
    tolerance: float
    int8: Int8 | None = None


PRECISIONS = {
    # Rounding is 6e-8 per operation; a different order of summation over a few thousand of them stays below 1e-5.
    # Anything near 1e-4 is a wrong operator, not rounding.
    "fp32": Precision("float32", "AVX2", 1e-4),
    # 8 bits of significand: each rounding errs by up to 2**-9 = 0.2 %, and errors of some hundred roundings in a row
    # (about ten per layer) add up like a random walk: 0.002 * sqrt(240) = 3 % for 24 layers, doubled for margin.
    "bf16": Precision("bfloat16", "AVX512", 6e-2),
    # On inputs that the sample does not resemble the error may be several times the limit; this is surely wrong.
    "int8": Precision("float32", "AVX512", 0.2, Int8(dynamic=False, rest="bfloat16")),
    "int8-dynamic": Precision("float32", "AVX512", 0.2, Int8(dynamic=True, rest="bfloat16")),
    # For CPUs without bfloat16 instructions.
    "int8-fp32": Precision("float32", "AVX2", 0.2, Int8(dynamic=False, rest="float32")),
    "int8-dynamic-fp32": Precision("float32", "AVX2", 0.2, Int8(dynamic=True, rest="float32")),
}


def slow_here(precision: str) -> str | None:
    """What there is to say if this CPU runs a precision, but not fast: bfloat16 without instructions for it."""
    import torch

    entry = PRECISIONS[precision]
    if entry.isa != "AVX512" or torch.cpu._is_avx512_bf16_supported():
        return None
    return (
        f"this CPU has no bfloat16 instructions: {precision} will be slow on it, and is meant for CPUs with AVX512_BF16; "
        "int8-fp32 needs none"
    )


def check_cpu(precision: str) -> None:
    """Raise ModelError if this CPU cannot run what would be compiled: it could be neither fused nor verified."""
    from cpuc.runtime.engine import cpu_offers  # imports torch

    needed = PRECISIONS[precision].isa
    if not cpu_offers(needed):
        here = [name for name, entry in PRECISIONS.items() if cpu_offers(entry.isa)]
        raise ModelError(
            f"precision {precision} needs a CPU with {needed}, which this one lacks: compile on another machine"
            + (f", or choose of {', '.join(here)}" if here else "")
        )
