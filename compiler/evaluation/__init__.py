"""Evaluation: a labelled data set through artifacts and their original, to scores, agreement and throughput."""

from __future__ import annotations

from cpuc.compiler.evaluation.datasets import Dataset
from cpuc.compiler.evaluation.evaluators import EVALUATIONS, read_dataset
from cpuc.compiler.evaluation.original import original_model
from cpuc.compiler.evaluation.pipeline import Evaluation, evaluate
from cpuc.compiler.evaluation.running import Run, run_models

__all__ = ["EVALUATIONS", "Dataset", "Evaluation", "Run", "evaluate", "original_model", "read_dataset", "run_models"]
