"""The compiler: a Hugging Face model in, one bundle out."""

from __future__ import annotations

from cpuc.compiler.audit import Verification, verify
from cpuc.compiler.benchmarking import Benchmark, bench
from cpuc.compiler.choice import Choice, choose
from cpuc.compiler.evaluation import Evaluation, evaluate
from cpuc.compiler.packaging import Package, package
from cpuc.compiler.pipeline import compile

__all__ = [
    "Benchmark",
    "Choice",
    "Evaluation",
    "Package",
    "Verification",
    "bench",
    "choose",
    "compile",
    "evaluate",
    "package",
    "verify",
]
