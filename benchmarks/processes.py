"""The workers of a comparison: a process for each engine."""

from __future__ import annotations

import argparse
import contextlib
import ctypes.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines import ENGINES, OWN

HERE = Path(__file__).resolve().parent
ALLOCATOR = ctypes.util.find_library("tcmalloc_minimal")


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
    """A worker for each engine that has the precision; the first is float32 in eager mode, to compare outputs with."""
    names = [name for name in options.engines if precision in ENGINES[name].precisions and name != "eager"]
    names = ["eager", *names] if "eager" in options.engines and precision in ENGINES["eager"].precisions else names
    workers = [Process(name, command_of(name, options, source, precision, cases)) for name in names]
    if precision != "fp32" or "eager" not in names:
        workers.insert(0, Process("eager fp32", command_of("eager", options, source, "fp32", cases)))
    try:
        for worker in workers:
            progress(f"{source.name} {precision}: {worker.name}")
            worker.start()
        yield workers
    finally:
        for worker in workers:
            worker.stop()


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"{text} …", file=sys.stderr)
