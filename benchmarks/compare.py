"""cpuc against what a user would pick instead: latency, start, memory and size, engine by engine.

    python benchmarks/compare.py --peers .venv-peers/bin/python -o docs/benchmarks [--quick] [--data xquad-en-dev.json]

Every engine is a process of its own, which is stopped (SIGSTOP) while another one is timed, so that no idle thread spins.
In each round every engine wakes up with one call that does not count, and then makes the same calls with the same inputs; what
is compared is the median over the rounds, and the ratios round by round. Outputs have to agree with those of eager mode in
float32.

All but OpenVINO, which aborts with it, allocate with tcmalloc where it is installed (Debian: libtcmalloc-minimal4), as torch's
tuning guide and our README advise.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from engines import ENGINES
from models import IMAGE_CASES, MIXED, MODELS, REAL_TEXT, SIZE, TEXT_CASES, make_cases, make_model
from processes import ALLOCATOR, HERE, Process, command_of, environment, progress, started
from report import write_report
from worker import seconds_file

# How far outputs may be from eager's, as a part of their size.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.05, "int8": 0.5}
ROUNDS, SECONDS = {True: 5, False: 9}, 0.4

Cells = dict[str, dict[str, Any]]
Outputs = dict[str, np.ndarray]


def measure(workers: list[Process], case: str, precision: str, rounds: int, work: Path, expected: Outputs) -> Cells:
    """Of each engine the median of a call in seconds, its rounds, or why there is none.

    Args:
        workers: the first of them is right.
        case: whose calls they make.
        precision: says how far they may be off.
        rounds: of calls in turns.
        work: a folder for their outputs.
        expected: outputs by case; those of this one are added. Streams give what one call after the other gives.
    """
    cells: Cells = {}
    calls = {}
    for worker in workers:
        saved = work / "output.npy"
        first = worker.ask(case=case, calls=1, save=str(saved))
        if "error" in first:
            cells[worker.name] = {"error": first["error"]}
            continue
        output = np.load(saved)
        if worker is workers[0]:
            expected[case] = output
        calls[worker.name] = (case, max(1, min(20, int(SECONDS / first["seconds"][0]))))
        right = expected.get(case.replace("-streams", "-alone"))
        off = None if right is None else difference(output, right, worker.ready["hidden"])
        cells[worker.name] = {"difference": off}
        if off is not None and not off <= TOLERANCE[precision]:
            cells[worker.name] = {"error": f"its output is off by {off:.2g}"}
    timed = take_turns([worker for worker in workers if "error" not in cells[worker.name]], calls, rounds)
    return {name: each if "error" in each else each | timed[name] for name, each in cells.items()}


def take_turns(workers: list[Process], calls: Mapping[str, tuple[str, int]], rounds: int) -> Cells:
    """Time each worker's case, so many calls of it in each round."""
    cells: Cells = {worker.name: {} for worker in workers}
    rows: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for number in range(rounds):
        at = number % max(1, len(workers))
        for worker in workers[at:] + workers[:at]:
            case, count = calls[worker.name]
            answer = worker.ask(case=case, calls=count)
            if "error" in answer:
                cells[worker.name] = {"error": answer["error"]}
            else:
                rows[worker.name].append(statistics.median(answer["seconds"]))
                cells[worker.name]["peak_bytes"] = answer["peak"]
    for name, seconds in rows.items():
        if "error" not in cells[name]:
            cells[name] |= {"seconds": statistics.median(seconds), "rounds": seconds}
    return cells


def fastest_ways(workers: list[Process], cells: list[dict[str, Any]], rounds: int) -> Iterator[tuple[str, Cells]]:
    """Jobs that were measured in several ways once more, each engine in its fastest and all of them in turns."""
    for job in dict.fromkeys(cell["case"].partition("-")[0] for cell in cells if "-" in cell["case"]):
        ways = [cell for cell in cells if cell["case"].startswith(f"{job}-") and not cell["case"].endswith("-fixed")]
        best: dict[str, tuple[float, str]] = {}
        for cell in ways:
            for name, each in cell["engines"].items():
                if "seconds" in each:
                    best[name] = min(best.get(name, (math.inf, "")), (each["seconds"], cell["case"]))
        calls = {name: (case, max(1, min(20, int(SECONDS / seconds)))) for name, (seconds, case) in best.items()}
        timed = take_turns([worker for worker in workers if worker.name in calls], calls, rounds)
        off = {cell["case"]: cell["engines"] for cell in ways}
        yield (
            f"{job}-fastest",
            {
                name: each | {"way": calls[name][0].partition("-")[2], "difference": off[calls[name][0]][name]["difference"]}
                for name, each in timed.items()
            },
        )


def difference(output: np.ndarray, expected: np.ndarray, hidden: bool) -> float | None:
    """The root mean square of the difference over that of what is expected; None where the two are not the same thing."""
    if hidden or output.shape != expected.shape:
        return None
    return float(np.sqrt(np.mean((output - expected) ** 2) / np.mean(expected**2)))


def measure_starts(options: argparse.Namespace, source: Path, precision: str, cases: Path, case: str) -> dict[str, Any]:
    """From the start of a process to its first answer and end, seconds, and its peak memory; files are in the page cache."""
    names = [name for name in options.engines if precision in ENGINES[name].precisions and not ENGINES[name].one_shape]
    commands = {name: [*command_of(name, options, source, precision, cases), "once", case] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, int] = {}
    failed: dict[str, int] = {}
    for _ in range(ROUNDS[options.quick] + 1):
        for name, command in commands.items():
            begin = time.perf_counter()
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, env=environment(name)
            )
            if done.returncode == 0:
                seconds[name].append(time.perf_counter() - begin)
                peaks[name] = json.loads(done.stdout)["peak"]
            else:
                failed[name] = done.returncode
    return {
        name: {"error": f"its start failed: the process ended with {failed[name]}"}
        if name in failed
        else {"seconds": statistics.median(each[1:]), "rounds": each[1:], "peak_bytes": peaks[name]}
        for name, each in seconds.items()
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """The whole matrix, written whenever a model is done at a precision; see `report` for what is made of it."""
    result = known(options)
    for name in options.models:
        source = make_model(name, options.work)
        wanted = cases_of(options, source)
        cases = options.work / f"{source.name}.npz"
        for precision in options.precisions if wanted else []:
            progress(f"{name} {precision}")
            write_cases(options, source, wanted, cases)
            cells: list[dict[str, Any]] = []
            about = {"model": name, "precision": precision, "date": time.strftime("%Y-%m-%d"), "commit": commit()}
            rounds = ROUNDS[options.quick]
            with started(options, source, precision, cases) as workers:
                expected: Outputs = {}
                for case in wanted:
                    progress(f"{name} {precision} {case}")
                    engines = measure(workers, case, precision, rounds, options.work, expected)
                    cells.append({**about, "case": case, "engines": engines})
                cells += [{**about, "case": job, "engines": found} for job, found in fastest_ways(workers, cells, rounds)]
                for cell in cells:
                    put(result["cells"], cell)
                result["versions"] |= {each.name: each.ready["versions"] for each in workers if "versions" in each.ready}
                built = {worker.name: worker.ready for worker in workers}
            roofs = measure_roofs(options, source, precision, wanted)
            for cell in cells:
                cell["roof_seconds"] = roofs.get(cell["case"])
            one = next((case for case in wanted if case not in (*MIXED, *REAL_TEXT)), None)
            starts = measure_starts(options, source, precision, cases, one) if one else {}
            put(result["starts"], {"model": name, "precision": precision, "engines": starts, "built": built})
            write_report(result, options.output)
    return result


def measure_roofs(options: argparse.Namespace, source: Path, precision: str, wanted: list[str]) -> dict[str, float]:
    """Of cases of one size, the seconds that our artifact's arithmetic takes at this machine's peak, or reading its weights.

    Of int8 it is the static one.

    It is what `cpuc bench` tells; of the first model, its plot is kept.
    """
    bundle = options.work / source.name / f"cpuc-{precision}" / "model.pt"
    sizes: dict[str, list[str]] = {}
    for size in filter(None, map(SIZE.fullmatch, dict.fromkeys(wanted))):
        sizes.setdefault(size[1], []).append(size[2])
    found = {}
    for rows, lengths in sizes.items() if bundle.exists() else ():
        progress(f"{source.name} {precision}: the roof of {rows} rows")
        command = [sys.executable, "-c", "from cpuc.cli import program; program()", "bench", str(bundle), "--seconds", "1"]
        command += ["--json", "--batch-size", rows]
        if task_of(source) != "image-classification":
            command += [word for length in lengths for word in ("--seq-len", length)]
        if source.name == Path(options.models[0]).name and rows == next(iter(sizes)):
            options.output.mkdir(parents=True, exist_ok=True)
            command += ["--plot", str(options.output / f"roofline-{source.name}-{precision}.png"), "--force"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        results = json.loads(done.stdout)["results"] if done.returncode == 0 else []  # it has said why
        for length, each in zip(lengths, results, strict=False):
            if each["share_of_roof"] is not None:
                found[f"{rows}x{length}"] = each["share_of_roof"] * each["latency_ms"]["p50"] / 1e3
    return found


def known(options: argparse.Namespace) -> dict[str, Any]:
    """What was measured before, with `--add`, on a machine like this one."""
    here, file = machine(), options.output / "results.json"
    if not options.add or not file.exists():
        return {"machine": here, "cells": [], "starts": [], "versions": {}}
    result: dict[str, Any] = json.loads(file.read_text())
    for fact in ("cpu", "family", "isa", "threads"):
        there = result["machine"].get(fact, here[fact])  # older ones don't tell their family
        if there != here[fact]:
            sys.exit(f"--add: {file} is of another machine ({fact}: {there}, here {here[fact]}); give another --output")
    for cell in result["cells"]:
        cell.setdefault("date", result["machine"].get("date"))  # older ones had one for all
    result["machine"] = here
    return result


def commit() -> str:
    """Of cpuc's repository, with a sign if files differ from it."""
    done = subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def put(entries: list[dict[str, Any]], entry: dict[str, Any]) -> None:
    """Add `entry`, in the place of the one that it repeats."""

    def key(each: dict[str, Any]) -> tuple[Any, ...]:
        return each["model"], each["precision"], each.get("case")

    place = next((i for i, each in enumerate(entries) if key(each) == key(entry)), len(entries))
    entries[place : place + 1] = [entry]


def cases_of(options: argparse.Namespace, source: Path) -> list[str]:
    """What a model is measured on."""
    if options.cases:
        return list(options.cases)
    if source.name == "minilm-qa":
        return list(REAL_TEXT) if options.data else []
    if task_of(source) == "image-classification":
        return list(IMAGE_CASES)
    return [*TEXT_CASES, *(() if options.quick else MIXED)]


def task_of(source: Path) -> str:
    """Images are classified, texts asked questions of."""
    config = json.loads((source / "config.json").read_text())
    return "image-classification" if "image_size" in config else "question-answering"


def write_cases(options: argparse.Namespace, source: Path, wanted: list[str], cases: Path) -> None:
    """Write the inputs, whose signature our float32 bundle tells; it is made if it is not there."""
    bundle = options.work / source.name / "cpuc-fp32" / "model.pt"
    if not bundle.exists():
        import cpuc

        bundle.parent.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        cpuc.compile(str(source), bundle, task=task_of(source))
        seconds_file(bundle.parent).write_text(json.dumps(time.perf_counter() - begin))
    np.savez(cases, **make_cases(bundle, wanted, options.data))  # type: ignore[arg-type]


def machine() -> dict[str, Any]:
    """What the figures are of. Names of CPUs do not tell generations apart; families and models do."""
    from cpuc.compiler.benchmarking.machine import describe_machine

    text = Path("/proc/cpuinfo").read_text()
    numbers = [re.search(rf"^{key}\s*: (\d+)$", text, re.MULTILINE) for key in ("cpu family", "model")]
    family = " ".join(f"{word} {found[1]}" for word, found in zip(("family", "model"), numbers, strict=True) if found)
    facts = {"family": family, "system": platform.platform(), "allocator": ALLOCATOR or "the C library's"}
    with_it = ", ".join(name for name, engine in ENGINES.items() if engine.tcmalloc)
    return vars(describe_machine()) | facts | {"allocating": with_it}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path(sys.executable), help="the Python that has the peers")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "bench", help="where models are built, and kept")
    parser.add_argument("-o", "--output", type=Path, default=HERE.parent / "docs" / "benchmarks")
    parser.add_argument("--add", action="store_true", help="keep what the output folder has of other cells")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="5 rounds instead of 9, and unless asked for bert-base in float32 alone, without cpuc-tuned and mixed lengths",
    )
    parser.add_argument("--data", type=Path, help="a SQuAD file, for questions per second over real text")
    parser.add_argument("--models", nargs="+", help=f"of {', '.join(MODELS)} and minilm-qa, or folders of models")
    parser.add_argument("--precisions", nargs="+", choices=list(TOLERANCE))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), help="default: all, but cpuc-tuned with --quick")
    parser.add_argument("--cases", nargs="+", help="only these, rows by tokens (or pixels), such as 1x128")
    options = parser.parse_args()
    given = bool(options.models)
    options.models = options.models or (["bert-base"] if options.quick else [*MODELS, "minilm-qa"])
    options.engines = options.engines or [name for name in ENGINES if not (options.quick and name == "cpuc-tuned")]
    options.precisions = options.precisions or (["fp32"] if options.quick else list(TOLERANCE))
    for name in options.models:
        if name not in (*MODELS, "minilm-qa") and not (Path(name) / "config.json").exists():
            parser.error(f"--models: {name} is neither one of them nor a folder with a config.json")
    for case in options.cases or ():
        if case not in (*MIXED, *REAL_TEXT) and not SIZE.fullmatch(case):
            parser.error(f"--cases: {case} is neither rows by tokens, as 1x128, nor one of {', '.join((*MIXED, *REAL_TEXT))}")
        if case in REAL_TEXT and not options.data:
            parser.error(f"--cases: {case} needs --data")
    if "minilm-qa" in options.models and not options.cases and not options.data:
        if given:
            parser.error("--models: minilm-qa, for which questions are timed, needs --data")
        options.models.remove("minilm-qa")
        print("minilm-qa is left out: its questions need --data", file=sys.stderr)
    options.work.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    compare(parse())
