"""The compiler: a Hugging Face model in, one bundle out."""

from __future__ import annotations

from cpuc.compiler.choice import Choice, choose
from cpuc.compiler.evaluation import Evaluation, evaluate
from cpuc.compiler.pipeline import compile

__all__ = ["Choice", "Evaluation", "choose", "compile", "evaluate"]
