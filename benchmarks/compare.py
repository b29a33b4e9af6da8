"""cpuc against what a user would pick instead: latency, start, memory and size, engine by engine.

    python benchmarks/compare.py --peers .venv-peers/bin/python -o docs/benchmarks [--quick] [--data xquad-en-dev.json]

Every engine is a process of its own, which is stopped (SIGSTOP) while another one is timed, so that no idle thread spins.
In each round every engine wakes up with one call that does not count, and then makes the same calls with the same inputs; what
is compared is the median over the rounds, and the ratios round by round. Outputs have to agree with eager's.

eager, inductor and cpuc allocate with tcmalloc where it is installed (Debian: libtcmalloc-minimal4), as torch's tuning guide
and our README advise.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from engines import ENGINES, OWN
from models import IMAGE_CASES, MIXED, MODELS, REAL_TEXT, SIZE, TEXT_CASES, make_cases, make_model
from report import write_report
from worker import seconds_file

HERE = Path(__file__).resolve().parent
ALLOCATOR = ctypes.util.find_library("tcmalloc_minimal")
# How far outputs may be from eager's, as a part of their size.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.05, "int8": 0.5}
ROUNDS, SECONDS = {True: 5, False: 9}, 0.4


@dataclass
class Process:
    """A worker, stopped unless it is asked something."""

    name: str
    command: list[str]
    ready: dict[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(self.name),
        )
        self.ready = self._read()
        self._signal(signal.SIGSTOP)

    def ask(self, **wanted: Any) -> dict[str, Any]:
        """The worker's answer; what went wrong with it is under "error"."""
        if "error" in self.ready:
            return {"error": self.ready["error"]}
        self._signal(signal.SIGCONT)
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(wanted) + "\n")
            self._process.stdin.flush()
        answer = self._read()
        self._signal(signal.SIGSTOP)
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        self.ready = {"error": f"its process ended with {self._process.wait()}"}
        return self.ready

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def environment(name: str) -> dict[str, str]:
    """Of an engine's process; "eager fp32" is eager."""
    advised = ALLOCATOR and ENGINES[name.split()[0]].tcmalloc
    return os.environ | ({"LD_PRELOAD": ALLOCATOR} if advised else {})


def command_of(engine: str, options: argparse.Namespace, source: Path, precision: str, cases: Path) -> list[str]:
    python = sys.executable if engine in OWN else str(options.peers)
    work = options.work / source.name / f"{engine.removesuffix('-static')}-{precision}"
    return [python, str(HERE / "worker.py"), engine, str(source), precision, str(work), str(cases)]


@contextlib.contextmanager
def started(options: argparse.Namespace, source: Path, precision: str, cases: Path) -> Iterator[list[Process]]:
    """A worker for each engine that has the precision; float32 in eager mode is always there, to compare outputs with."""
    names = [name for name in options.engines if precision in ENGINES[name].precisions]
    workers = [Process(name, command_of(name, options, source, precision, cases)) for name in names]
    if "eager" not in names:
        workers.insert(0, Process("eager fp32", command_of("eager", options, source, "fp32", cases)))
    try:
        for worker in workers:
            progress(f"{source.name} {precision}: {worker.name}")
            worker.start()
        yield workers
    finally:
        for worker in workers:
            worker.stop()


def measure(workers: list[Process], case: str, precision: str, rounds: int, work: Path) -> dict[str, Any]:
    """Of each engine the median of a call in seconds, its rounds, or why there is none."""
    cells: dict[str, Any] = {}
    outputs: dict[str, np.ndarray] = {}
    calls = {}
    for worker in workers:
        saved = work / "output.npy"
        first = worker.ask(case=case, calls=1, save=str(saved))
        if "error" in first:
            cells[worker.name] = {"error": first["error"]}
            continue
        outputs[worker.name] = np.load(saved)
        calls[worker.name] = max(1, min(20, int(SECONDS / first["seconds"][0])))
        off = difference(outputs[worker.name], next(iter(outputs.values())), worker.ready["hidden"])
        cells[worker.name] = {"difference": off}
        if off is not None and off > TOLERANCE[precision]:
            cells[worker.name] = {"error": f"its output is off by {off:.2g}"}
    running = [worker for worker in workers if "error" not in cells[worker.name]]
    rows: dict[str, list[float]] = {worker.name: [] for worker in running}
    for number in range(rounds):
        for worker in running[number % len(running) :] + running[: number % len(running)]:
            answer = worker.ask(case=case, calls=calls[worker.name])
            if "error" in answer:
                cells[worker.name] = {"error": answer["error"]}
            else:
                rows[worker.name].append(statistics.median(answer["seconds"]))
                cells[worker.name]["peak_bytes"] = answer["peak"]
    for name, seconds in rows.items():
        if "error" not in cells[name]:
            cells[name] |= {"seconds": statistics.median(seconds), "rounds": seconds}
    return cells


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
    for _ in range(ROUNDS[options.quick] + 1):
        for name, command in commands.items():
            begin = time.perf_counter()
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, env=environment(name)
            )
            if done.returncode == 0:
                seconds[name].append(time.perf_counter() - begin)
                peaks[name] = json.loads(done.stdout)["peak"]
    return {
        name: {"seconds": statistics.median(each[1:]), "rounds": each[1:], "peak_bytes": peaks[name]}
        for name, each in seconds.items()
        if len(each) > 1
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
            with started(options, source, precision, cases) as workers:
                for case in wanted:
                    progress(f"{name} {precision} {case}")
                    engines = measure(workers, case, precision, ROUNDS[options.quick], options.work)
                    cells.append({"model": name, "precision": precision, "case": case, "engines": engines})
                    put(result["cells"], cells[-1])
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
    here = machine()
    if options.add and (options.output / "results.json").exists():
        result: dict[str, Any] = json.loads((options.output / "results.json").read_text())
        if result["machine"]["cpu"] == here["cpu"]:
            return result
    return {"machine": here, "cells": [], "starts": [], "versions": {}}


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
    """What the figures are of."""
    from cpuc.compiler.benchmarking.machine import describe_machine

    facts = {"system": platform.platform(), "date": time.strftime("%Y-%m-%d"), "allocator": ALLOCATOR or "the C library's"}
    return vars(describe_machine()) | facts


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"{text} …", file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path(sys.executable), help="the Python that has the peers")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "bench", help="where models are built, and kept")
    parser.add_argument("-o", "--output", type=Path, default=HERE.parent / "docs" / "benchmarks")
    parser.add_argument("--add", action="store_true", help="keep what the output folder has of other cells")
    parser.add_argument("--quick", action="store_true", help="bert-base in float32 only, fewer rounds")
    parser.add_argument("--data", type=Path, help="a SQuAD file, for questions per second over real text")
    parser.add_argument("--models", nargs="+", help=f"of {', '.join(MODELS)} and minilm-qa, or folders of models")
    parser.add_argument("--precisions", nargs="+", choices=list(TOLERANCE))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), help="default: all, but cpuc-tuned with --quick")
    parser.add_argument("--cases", nargs="+", help="only these, rows by tokens (or pixels), such as 1x128")
    options = parser.parse_args()
    options.models = options.models or (["bert-base"] if options.quick else [*MODELS, "minilm-qa"])
    options.engines = options.engines or [name for name in ENGINES if not (options.quick and name == "cpuc-tuned")]
    options.precisions = options.precisions or (["fp32"] if options.quick else list(TOLERANCE))
    for name in options.models:
        if name not in (*MODELS, "minilm-qa") and not (Path(name) / "config.json").exists():
            parser.error(f"--models: {name} is neither one of them nor a folder with a config.json")
    options.work.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    given = parse()
    compare(given)
