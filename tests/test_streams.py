"""Streams: several batches of one process side by side."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Run

import cpuc

pytestmark = pytest.mark.alone

CPUS = sorted(os.sched_getaffinity(0))
needs_two = pytest.mark.skipif(len(CPUS) < 2, reason="one CPU is one stream")


def records() -> list[dict[str, str]]:
    """Questions on contexts of very different lengths."""
    question, *_ = json.loads((ROOT / "examples" / "q.json").read_text())
    words = question["context"].split()
    return [{**question, "context": " ".join(words[: 3 + i * len(words) // 12])} for i in range(12)]


def threads() -> dict[int, set[int]]:
    """The CPUs of each stream's thread."""
    found = [thread for thread in threading.enumerate() if thread.name.startswith("cpuc-stream")]
    return {thread.native_id: os.sched_getaffinity(thread.native_id) for thread in found if thread.native_id}


def until(true: Callable[[], Any]) -> bool:
    """Whether it becomes true within ten seconds."""
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    return bool(true())


@needs_two
def test_streams_answer_as_one_does_each_on_its_own_cpus(fp32: Path, model: cpuc.Model) -> None:
    assert until(lambda: not threads())
    before = torch.get_num_threads()
    streams = cpuc.load(fp32, streams=2)
    shares = list(threads().values())
    assert len(shares) == 2
    assert not shares[0] & shares[1]
    assert sorted(shares[0] | shares[1]) == CPUS
    assert (sorted(os.sched_getaffinity(0)), torch.get_num_threads()) == (CPUS, before)
    counted: list[int] = []
    answers = streams(records(), progress=counted.append)
    assert sum(counted) == 12
    for answer, expected in zip(answers, model(records()), strict=True):
        assert (answer.answer, answer.start, answer.end) == (expected.answer, expected.start, expected.end)
        assert answer.score == pytest.approx(expected.score, rel=1e-4, abs=1e-7)
    with ThreadPoolExecutor(6) as clients:
        alone = list(clients.map(streams, records()))
    assert [each.answer for each in alone] == [each.answer for each in answers]
    del streams
    assert until(lambda: not threads())


@needs_two
def test_an_error_reaches_the_caller_and_the_streams_go_on(tiny: Path) -> None:
    streams = cpuc.load(tiny, streams=2, warm_up=False)
    with pytest.raises(cpuc.InputError, match="is missing"):
        streams.raw({})
    assert len(streams([{"question": "Who?", "context": "Ada."}] * 3)) == 3


@needs_two
def test_the_command_line_has_streams(fp32: Path, cli: Run, tmp_path: Path) -> None:
    (tmp_path / "many.json").write_text(json.dumps(records()))
    one, two = (cli("run", fp32, "--input", tmp_path / "many.json", *more) for more in ((), ("--streams", "2")))
    assert (one.returncode, two.returncode) == (0, 0)
    assert [each["start"] for each in json.loads(one.stdout)] == [each["start"] for each in json.loads(two.stdout)]
    wrong = cli("run", fp32, "--input", tmp_path / "many.json", "--streams", len(CPUS) + 1)
    assert wrong.returncode == 1
    assert f"streams is {len(CPUS) + 1}, must be 1 to {len(CPUS)}" in wrong.stderr
    assert "--streams has no meaning with --raw" in cli("run", fp32, "--raw", "--input", "-", "--streams", "1").stderr


@pytest.mark.parametrize("count", [0, -1, len(CPUS) + 1])
def test_there_are_at_most_as_many_streams_as_cpus(tiny: Path, count: int) -> None:
    with pytest.raises(cpuc.InputError, match=f"streams is {count}, must be 1 to {len(CPUS)}"):
        cpuc.load(tiny, streams=count)
