"""The same model, options and versions give the same bytes: in one process or several, in any folder, at any time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import here

import cpuc
from cpuc.runtime.libraries import load_ipex


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_in_one_process_and_in_another(tiny_model: Path, tmp_path: Path, cli: Any, precision: str) -> None:
    precision = here(precision)
    copy = tmp_path / "elsewhere" / tiny_model.name
    copy.mkdir(parents=True)
    for file in sorted(tiny_model.iterdir(), reverse=True):
        (copy / file.name).write_bytes(file.read_bytes())
    load_ipex()
    cpuc.compile(str(tiny_model), tmp_path / "here.pt", precision=precision)
    # Two seconds, the resolution of a zip file's times.
    time.sleep(2)
    done = cli("compile", copy, "-o", tmp_path / "there.pt", "--precision", precision, TMPDIR=str(tmp_path), PYTHONHASHSEED="7")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "here.pt").read_bytes() == (tmp_path / "there.pt").read_bytes()


def test_a_proof_does_not_depend_on_what_the_process_has_loaded(tiny: Path, tiny_model: Path, tmp_path: Path) -> None:
    """IPEX's library replaces kernels that the original model would run with."""
    script = """
import sys
import cpuc
from cpuc.runtime.libraries import load_ipex
load_ipex()
cpuc.compile(sys.argv[1], sys.argv[2])
"""
    subprocess.run([sys.executable, "-c", script, tiny_model, tmp_path / "model.pt"], check=True)
    assert (tmp_path / "model.pt").read_bytes() == tiny.read_bytes()
