"""An evaluation from its files to its figures."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpuc.compiler.evaluation.datasets import Dataset
from cpuc.compiler.evaluation.evaluators import check_options, evaluator_for, read_dataset
from cpuc.compiler.evaluation.original import original_model
from cpuc.compiler.evaluation.running import Progress, Run, complete_options, run_models
from cpuc.compiler.evaluation.scores import check_libraries
from cpuc.runtime.bundle import open_bundle
from cpuc.runtime.errors import InputError
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.model import Model, load

ARTIFACT, ORIGINAL = "artifact", "original"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """The figures of an evaluation.

    Attributes:
        manifest: the artifact's.
        data: the file or folder of labelled data.
        primary: the name of the score that models are compared by.
        runs: what each model did: "artifact", and "original" if there was one to compare with.
        agreement: how well their answers agree: ``answers_equal``, the number of answers that are the same, scores aside;
            for numbers ``largest_difference`` and ``mean_difference``; for embeddings ``least_cosine`` and ``mean_cosine``.
            Empty without an original.
    """

    manifest: Manifest
    data: str
    primary: str
    runs: dict[str, Run]
    agreement: dict[str, float]

    @property
    def samples(self) -> int:
        return self.runs[ARTIFACT].samples

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.manifest.task,
            "precision": self.manifest.build.precision,
            "data": self.data,
            "samples": self.samples,
            "primary": self.primary,
            "models": {name: run.to_json() for name, run in self.runs.items()},
            "agreement": self.agreement or None,
        }


def evaluate(
    bundle: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    against: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    report: Report = lambda _: None,
    progress: Progress = lambda *_: None,
    **options: Any,
) -> Evaluation:
    """Run a labelled data set through an artifact and, if wanted, through the original model beside it.

    Args:
        bundle: the artifact.
        data: a file or folder of labelled data; its form depends on the task, and errors tell it.
        against: the model to compare with, a local folder, a Hub id or a short name; it runs eager and in float32.
        revision: its branch, tag or commit on the Hub.
        limit: take so many samples from the beginning of the data.
        report: called with the name of each stage as it begins.
        progress: called with the number of answers since the last call, and the number of all.
        options: the task's options, such as ``max_seq_length``.

    Returns:
        Scores in points (100 is perfect, for correlations too), throughput, and how well the answers agree.

    Raises:
        InputError: the data or an option is wrong. No model has run then.
        ModelError: the original cannot be found or loaded.
        CpucError: torchmetrics or seqeval is not installed.
    """
    check_libraries()
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}, must be at least 1")
    if revision is not None and against is None:
        raise InputError("--revision is of the model to compare with, and there is none: give --against")
    manifest = open_bundle(bundle).manifest
    evaluator = evaluator_for(manifest)
    options = {name: value for name, value in options.items() if value is not None}
    check_options(manifest.task, options)
    report("reading the data")
    dataset = read_dataset(Path(data), manifest, limit=limit)
    if not dataset.references and against is None:
        raise InputError(f"{dataset.source}: has no scores: add them, or give --against to compare with the original model")
    models = _load(bundle, dataset, options, against, revision, report)
    report("evaluating")
    runs = run_models(models, dataset, options, progress)
    agreement = evaluator.compare(*(run.answers for run in runs.values())) if against is not None else {}
    return Evaluation(manifest, dataset.source, evaluator.primary, runs, agreement)


def _load(
    bundle: str | os.PathLike[str],
    dataset: Dataset,
    options: dict[str, Any],
    against: str | None,
    revision: str | None,
    report: Report,
) -> dict[str, Model]:
    """The models to run, by name; the original is not looked for before the artifact takes every record."""
    report("loading the artifact")
    artifact = load(bundle, warm_up=False)
    report("checking the data")
    for _ in artifact.encoded(dataset.records, dataset.names, complete_options(dataset, options, artifact)):
        pass
    if against is None:
        return {ARTIFACT: artifact}
    report("loading the original model")
    return {ARTIFACT: artifact, ORIGINAL: original_model(against, artifact.manifest.task, revision)}
