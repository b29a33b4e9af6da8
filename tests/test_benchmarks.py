"""The comparison with other engines, from its command line, with the two that need no environment of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

COMPARE = [sys.executable, str(ROOT / "benchmarks" / "compare.py")]


@pytest.mark.slow
def test_two_engines_are_compared(tiny_model: Path, tmp_path: Path) -> None:
    options = ["--quick", "--engines", "eager", "cpuc", "--models", str(tiny_model), "--cases", "2x8", "2x11"]
    command = [*COMPARE, *options, "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [cell["case"] for cell in result["cells"]] == ["2x8", "2x11"]
    for cell in result["cells"]:
        for name in ("eager", "cpuc"):
            assert len(cell["engines"][name]["rounds"]) == 5
            assert min(cell["engines"][name]["rounds"]) > 0
        assert 0 < cell["engines"]["cpuc"]["difference"] < 1e-3
        assert 0 < cell["roof_seconds"] < cell["engines"]["cpuc"]["seconds"]
    (start,) = result["starts"]
    assert start["engines"]["eager"]["peak_bytes"] > start["built"]["eager"]["bytes"]
    assert start["built"]["cpuc"]["bytes"] == (tmp_path / "work" / tiny_model.name / "cpuc-fp32" / "model.pt").stat().st_size
    report = (tmp_path / "out" / "README.md").read_text()
    assert "| 2x11 " in report
    assert "that arithmetic allows no ratio above 1.25" in report
    assert (tmp_path / "out" / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([*COMPARE, "--models", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{tmp_path} is neither one of them nor a folder with a config.json" in done.stderr
