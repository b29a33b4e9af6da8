"""A process of one engine: answers commands, one JSON object a line on standard input, with one on standard output.

    python worker.py ENGINE SOURCE PRECISION WORK CASES [once CASE]

CASES is an .npz file: ``name/index/input`` holds an input of one call of a case; a case may take several calls. With `once`
the worker loads, answers one case and ends, for whoever measures its whole life.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from engine import Arrays, Engine, UnsupportedError
from engines import ENGINES, versions


def read_cases(path: Path) -> dict[str, list[dict[str, np.ndarray]]]:
    """The calls of each case."""
    cases: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    with np.load(path) as archive:
        for key in archive.files:
            name, index, value = key.split("/")
            cases.setdefault(name, {}).setdefault(int(index), {})[value] = archive[key]
    return {name: [calls[i] for i in sorted(calls)] for name, calls in cases.items()}


class Runner:
    """Runs the calls of a case: those of streams side by side, any others one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, case: str, calls: list[Arrays]) -> list[np.ndarray]:
        if not case.endswith("-streams"):
            return [self._engine.run(each) for each in calls]
        if self._pool is None:
            count = len(os.sched_getaffinity(0))
            self._engine.start_streams(count)
            self._pool = ThreadPoolExecutor(count)
        return list(self._pool.map(self._engine.run_on_stream, calls))


def command(
    engine: Engine, run: Runner, cases: dict[str, list[dict[str, np.ndarray]]], wanted: dict[str, Any]
) -> dict[str, Any]:
    """The answer to one command: ``{"case", "calls", "save"}``."""
    case, calls = wanted["case"], cases[wanted["case"]]
    if engine.one_shape and len({next(iter(each.values())).shape for each in calls}) > 1:
        raise UnsupportedError("compiled for one shape at a time")
    outputs = run(case, calls)  # wakes what slept
    if wanted.get("save"):
        np.save(wanted["save"], np.concatenate([each.ravel() for each in outputs]).astype(np.float32))
    seconds = []
    for _ in range(wanted["calls"]):
        begin = time.perf_counter()
        run(case, calls)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds}


def seconds_file(work: Path) -> Path:
    """Where it stands how long it took to make what is in `work`."""
    return work.with_name(work.name + "-seconds.json")


def build(engine: Engine) -> float | None:
    """Make what the engine deploys; the seconds that it took, now or when it was made. None if nothing is made."""
    measured, there = seconds_file(engine.work), bool(engine.files())
    begin = time.perf_counter()
    engine.build()
    if not there:
        measured.write_text(json.dumps(time.perf_counter() - begin))
    return float(json.loads(measured.read_text())) if measured.exists() else None


def peak() -> int:
    """The most memory that this process had, in bytes. What getrusage says begins with the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    name, source, precision, work, file, *once = sys.argv[1:]
    # Libraries print; what is read by a program goes elsewhere.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    cases = read_cases(Path(file))
    calibration = cases.pop("calibration", [])
    engine = ENGINES[name](Path(source), precision, Path(work), next(iter(cases.values()))[0], calibration)
    run = Runner(engine)
    if once:
        engine.load()
        run(once[1], cases[once[1]])
        answers.write(json.dumps({"peak": peak()}) + "\n")
        os._exit(0)
    try:
        if precision not in engine.precisions:
            raise UnsupportedError(f"has no {precision}")
        ready = {"build_seconds": build(engine), "versions": versions(name), "hidden": engine.hidden}
        engine.load()
        ready["bytes"] = sum(path.stat().st_size for path in engine.files())
    except Exception as error:
        ready = {"error": _said(error)}
    answers.write(json.dumps(ready) + "\n")
    for line in sys.stdin:
        try:
            result = command(engine, run, cases, json.loads(line))
        except Exception as error:
            result = {"error": _said(error)}
        result["peak"] = peak()
        answers.write(json.dumps(result) + "\n")
    os._exit(0)


def _said(error: Exception) -> str:
    if not isinstance(error, UnsupportedError):
        traceback.print_exc()
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    main()
