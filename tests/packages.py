"""What tests of packages share: packages in other places, what their programs answer, and what their libraries ask for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

import cpuc
from cpuc.compiler.packaging.check import compare
from cpuc.runtime.tensors import parse_tensors

Ran = subprocess.CompletedProcess[str]


def copied(dist: Path, target: Path) -> Path:
    """The package in another place: the same files by other names."""
    shutil.copytree(dist, target, copy_function=os.link)
    return target


def run(*command: object, **settings: Any) -> Ran:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **settings)


def right(done: Ran, dist: Path, model: cpuc.Model) -> bool:
    """Whether this is the Python runtime's answer to the example."""
    assert (done.returncode, done.stderr) == (0, "")
    example = (dist / "example.json").read_text()
    answer = json.loads(done.stdout)
    if model.manifest.inputs[0].name in json.loads(example):
        expected: Any = model.raw(parse_tensors(example.encode(), "example.json", model.manifest))
        return answer.keys() == expected.keys() and all(
            np.allclose(answer[name], expected[name], atol=1e-4) for name in expected
        )
    return compare(model(json.loads(example)).to_json(), answer, "the answer") < 1e-4


def nothing_left(folder: Path, *expected: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(expected)


def dynamic(path: Path) -> dict[str, list[str]]:
    """What readelf finds in a file's dynamic section, by kind."""
    done = run("readelf", "--dynamic", "--wide", path, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == 0
    found: dict[str, list[str]] = {}
    for kind, value in re.findall(r"\((\w+)\) .*\[(.*)\]", done.stdout):
        found.setdefault(kind, []).append(value)
    return found


def packaged(bundle: Path, target: Path, programs: Path, **settings: Any) -> cpuc.Package:
    return cpuc.package(bundle, target, build_folder=programs, **settings)
