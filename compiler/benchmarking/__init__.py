"""Benchmarking: how fast an artifact is on this machine, what of the machine it uses, and where its time goes."""

from __future__ import annotations

from cpuc.compiler.benchmarking.pipeline import bench
from cpuc.compiler.benchmarking.report import Benchmark

__all__ = ["Benchmark", "bench"]
