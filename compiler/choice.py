"""``--precision auto``: compile at every precision that this CPU runs, and keep the fastest that is accurate enough."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpuc.compiler.calibration import choose_records, cutting, read_calibration
from cpuc.compiler.evaluation.evaluators import evaluator_for, read_dataset
from cpuc.compiler.evaluation.original import original_model
from cpuc.compiler.evaluation.running import complete_options, run_models, take_turns
from cpuc.compiler.evaluation.scores import check_libraries
from cpuc.compiler.pipeline import Report, compile
from cpuc.compiler.precision import PRECISIONS, check_cpu
from cpuc.compiler.verification import without_scores
from cpuc.runtime import bundle
from cpuc.runtime.engine import cpu_offers
from cpuc.runtime.errors import CpucError, InputError, ModelError, ParityError
from cpuc.runtime.files import atomic_write, check_writable, temporary_beside
from cpuc.runtime.manifest import Manifest
from cpuc.runtime.model import Model, load
from cpuc.runtime.records import Records
from cpuc.runtime.tasks import load_task

ORIGINAL = "original"
AGREEMENT = "agreement"


@dataclass(frozen=True)
class Candidate:
    """How one precision did.

    Attributes:
        score: of the metric, in points; None if it could not be compiled.
        drop: the original's score less this one.
        speed: samples a second over that of the original, measured in turns.
        problem: why it could not be compiled.
    """

    precision: str
    score: float | None = None
    drop: float | None = None
    speed: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Choice:
    """What was chosen, and the table that decided; `score` is the original's."""

    manifest: Manifest
    precision: str
    metric: str
    max_drop: float
    score: float
    candidates: list[Candidate]

    def to_json(self) -> dict[str, Any]:
        """The table, without the manifest."""
        table = {name: value for name, value in asdict(self).items() if name not in ("manifest", "candidates")}
        table["score"] = _or_none(self.score)
        table["candidates"] = [
            {**asdict(each), "score": _or_none(each.score), "drop": _or_none(each.drop)} for each in self.candidates
        ]
        return table

    def describe(self) -> list[str]:
        """The table for a person, line by line."""
        lines = [f"{self.metric} of the original {self.score:.2f}, may drop by {self.max_drop:g}; speed against it:"]
        for each in self.candidates:
            figures = each.problem
            if each.score is not None and each.drop is not None and each.speed is not None:
                figures = f"{self.metric} {each.score:.2f} ({0.0 - round(each.drop, 2):+.2f})  speed {each.speed:.2f}"
            lines.append(f"{'*' if each.precision == self.precision else ' '} {each.precision:<18} {figures}")
        return lines


def _or_none(score: float | None) -> float | None:
    """JSON has no NaN, which a score is that does not exist."""
    return None if score is None or math.isnan(score) else score


def choose(
    model: str,
    output: str | os.PathLike[str],
    *,
    eval_data: str | os.PathLike[str] | None = None,
    max_drop: float = 0.5,
    calibrate: str | os.PathLike[str] | None = None,
    task: str | None = None,
    revision: str | None = None,
    force: bool = False,
    allow_unlisted: bool = False,
    report: Report = lambda _: None,
    warn: Report = lambda _: None,
) -> Choice:
    """Compile at every precision that this CPU runs, and write the fastest whose score drops by no more than `max_drop`.

    Args:
        model, output, calibrate, task, revision, force, allow_unlisted, report, warn: as for `compile`.
        eval_data: labelled data as for `evaluate`; without it the score is how many answers on the calibration sample agree
            with the original's (for answers that are numbers, their cosine), in percent.
        max_drop: in points, at least 0.

    Raises:
        what `compile` and `evaluate` raise; ParityError if no precision is accurate enough. Nothing is written then.
    """
    _check_options(eval_data, max_drop)
    given = read_calibration(calibrate, "int8")
    check_cpu("fp32")
    target = Path(os.path.realpath(output))
    check_writable(target, force=force)
    shared: dict[str, Any] = {"task": task, "revision": revision, "allow_unlisted": allow_unlisted}
    with temporary_beside(target) as folder:
        paths = {name: folder / f"{name}.pt" for name, entry in PRECISIONS.items() if cpu_offers(entry.isa)}
        first, *others = paths
        # What float32 cannot do nothing can, and labelled data that does not fit is told before the rest is tried.
        manifest = compile(model, paths[first], precision=first, report=_named(report, first), warn=warn, **shared)
        measure = _agreement(paths[first], given) if eval_data is None else _evaluation(paths[first], Path(eval_data))
        report("loading the original model")
        models = {ORIGINAL: original_model(model, manifest.task, revision)}
        problems = {name: _compile(model, paths[name], name, calibrate, report, shared) for name in others}
        models |= {name: load(path, warm_up=False) for name, path in paths.items() if not problems.get(name)}
        report("comparing the precisions")
        metric, scores, seconds = measure(models)
        candidates = [_candidate(name, problems.get(name), scores, seconds) for name in paths]
        best = _fastest(candidates, metric, max_drop)
        with atomic_write(target, force=force) as staged:
            paths[best].replace(staged)
    return Choice(models[best].manifest, best, metric, max_drop, scores[ORIGINAL], candidates)


def _check_options(eval_data: str | os.PathLike[str] | None, max_drop: float) -> None:
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise InputError(f"max_drop is {max_drop}, must be a number of points, at least 0")
    if eval_data is not None:
        check_libraries()
        if not Path(eval_data).exists():
            raise InputError(f"{eval_data}: no such file")


def _named(report: Report, precision: str) -> Report:
    return lambda stage: report(f"{precision}: {stage}")


def _compile(
    model: str, path: Path, precision: str, calibrate: str | os.PathLike[str] | None, report: Report, shared: dict[str, Any]
) -> str | None:
    """Compile at one precision; returns what is wrong if that is not possible."""
    scheme = PRECISIONS[precision].int8
    given = calibrate if scheme and not scheme.dynamic else None
    try:
        compile(model, path, precision=precision, calibrate=given, report=_named(report, precision), **shared)
    except (ModelError, ParityError) as error:
        return str(error)
    except (CpucError, OSError):  # a full disk is no fault of the precision
        raise
    except Exception as error:
        from cpuc.compiler.fresh import lacks_room  # imports torch, as compile does

        what = (str(error).strip() or "-").splitlines()[0]
        if lacks_room(error):
            raise CpucError(f"{precision}: there is not enough memory to compile it: {what}") from error
        # an operator that does not exist in this dtype: others may do
        return f"unexpected {type(error).__name__}: {what}"
    return None


# What is measured of models by name: the metric, and the points and seconds of each.
Measured = tuple[str, dict[str, float], dict[str, float]]
Measure = Callable[[Mapping[str, Model]], Measured]


def _evaluation(path: Path, data: Path) -> Measure:
    """Scores on labelled data, which is read and checked now; texts that are too long are cut."""
    opened = bundle.open_bundle(path)
    manifest = opened.manifest
    dataset = read_dataset(data, manifest)
    if not dataset.references:
        raise InputError(f"{data}: has no labels or scores to choose by: add them, or leave out --eval-data")
    metric = evaluator_for(manifest).primary
    options = cutting(load_task(manifest, opened.read))
    artifact = load(path, warm_up=False)
    for _ in artifact.encoded(dataset.records, dataset.names, complete_options(dataset, options, artifact)):
        pass

    def measure(models: Mapping[str, Model]) -> Measured:
        runs = run_models(models, dataset, options)
        return metric, {name: run.scores[metric] for name, run in runs.items()}, {n: run.seconds for n, run in runs.items()}

    return measure


def _agreement(path: Path, given: Records | None) -> Measure:
    """Agreement with the original on the calibration sample."""
    opened = bundle.open_bundle(path)
    manifest = opened.manifest
    task = load_task(manifest, opened.read)
    chosen = choose_records(task, manifest, given)
    records, names = [each.value for each in chosen], [each.name for each in chosen]
    # Of one label only the score tells anything.
    words = len(manifest.preprocessing.get("labels", "")) != 1
    options = cutting(task)
    if (getattr(task.options({}), "top_k", None) or 1) > 1:
        options["top_k"] = 1  # in which order the others follow is chance

    def measure(models: Mapping[str, Model]) -> Measured:
        answers, seconds = take_turns(models, records, names, options, lambda record: len(str(record)))
        plain = {name: [_without_id(answer.to_json()) for answer in each] for name, each in answers.items()}
        scores = {name: agreement(plain[ORIGINAL], each, words=words) for name, each in plain.items()}
        return AGREEMENT, scores, seconds

    return measure


def _without_id(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "id"}


def agreement(ones: Sequence[Any], others: Sequence[Any], *, words: bool) -> float:
    """How well answers, as JSON, agree, in percent.

    Answers that say something in words agree if they say the same, scores aside. Vectors agree by their cosine, numbers by how
    far all of them together are from the others, root mean square.

    Args:
        words: whether strings in the answers tell anything.
    """
    if words and any(map(_has_words, ones)):
        return 100 * float(np.mean([without_scores(a) == without_scores(b) for a, b in zip(ones, others, strict=True)]))
    a, b = ([np.array(list(_numbers(answer))) for answer in answers] for answers in (ones, others))
    if [len(x) for x in a] != [len(y) for y in b]:
        return 0.0
    if all(len(x) > 1 for x in a):
        return 100 * float(np.mean([_cosine(x, y) for x, y in zip(a, b, strict=True)]))
    x, y = np.concatenate(a), np.concatenate(b)
    return 100 * max(0.0, 1 - float(np.linalg.norm(x - y)) / max(float(np.linalg.norm(x)), 1e-12))


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y) / max(float(np.linalg.norm(x)) * float(np.linalg.norm(y)), 1e-12)


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in JSON that are not whole."""
    if isinstance(value, float):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _numbers(item)


def _has_words(value: Any) -> bool:
    """Whether JSON says more than numbers."""
    if isinstance(value, dict | list):
        return any(map(_has_words, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str)


def _candidate(precision: str, problem: str | None, scores: Mapping[str, float], seconds: Mapping[str, float]) -> Candidate:
    if problem is not None:
        return Candidate(precision, problem=problem)
    drop = scores[ORIGINAL] - scores[precision]
    return Candidate(precision, scores[precision], drop, seconds[ORIGINAL] / seconds[precision])


def _fastest(candidates: Sequence[Candidate], metric: str, max_drop: float) -> str:
    """The precision of the fastest candidate that is accurate enough; a score that does not exist is not."""
    if all(each.drop is None or math.isnan(each.drop) for each in candidates):
        raise InputError(f"{metric} does not exist on this data (all labels are the same, or all predictions): give more")
    # Sums of a few hundred scores that are the same differ in their last digits.
    allowed = [each for each in candidates if each.drop is not None and each.drop <= max_drop + 1e-6]
    if not allowed:
        raise ParityError(f"at no precision does {metric} drop by {max_drop:g} points or less: nothing was written")
    return max(allowed, key=lambda each: each.speed or 0.0).precision
