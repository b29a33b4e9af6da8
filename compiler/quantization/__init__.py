"""Quantisation: linear layers of a captured graph are computed in int8, as many as an error budget allows.

Weights are symmetric with one scale per output channel. Activations are asymmetric uint8 with one calibrated scale per
tensor (static), or symmetric int8 with one scale per token, found while running (dynamic). Everything else stays in
floating point.

    observe      run the calibration sample, keep rows of each layer's input
    solve        scales and smoothing (SmoothQuant) that lose least, layer by layer, and
    splitting    copies of neurons that give much more than all others
    select       which layers stay in floating point, so that the outputs' error holds the budget
    (smoothing   factors that can go into weights before, outside of this package)
    (residual    sums that layers can do, too)
    lower        the graph's placeholders become oneDNN's int8 operators, whose weights are packed when the artifact is loaded
    fbgemm       or FBGEMM's
"""

from __future__ import annotations

from cpuc.compiler.quantization.fbgemm import Fbgemm
from cpuc.compiler.quantization.layers import calling
from cpuc.compiler.quantization.lower import Lowering, lower
from cpuc.compiler.quantization.observe import operands, watch
from cpuc.compiler.quantization.quantize import Quantized, quantize

__all__ = ["Fbgemm", "Lowering", "Quantized", "calling", "lower", "operands", "quantize", "watch"]
