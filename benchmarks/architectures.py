"""cpuc against OpenVINO and eager mode, architecture by architecture: docs/benchmarks/architectures.md.

    make architectures                                                       # all of them, in an hour
    python benchmarks/architectures.py --peers .venv-peers/bin/python bert   # their lines anew

The models are those of docs/coverage.md: two layers of the sizes of a base model and random weights, convolutional ones whole;
one text of 128 tokens, one image, or 3 seconds of sound. Engines and measurement are those of compare.py.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from compare import Cells, measure
from coverage import Subject, compiled, machine, subject_of
from processes import Process, command_of, progress

from cpuc.compiler.architectures import ARCHITECTURES
from cpuc.compiler.precision import PRECISIONS

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "benchmarks" / "architectures.md"
ENGINES = ("eager fp32", "openvino-static", "fused")
CASE = "one"
ROUNDS = 9
HEAD = """# Architectures

How many times as fast cpuc is as eager transformers (float32, its default attention) and as OpenVINO with a static shape, in
the same precision: ratios of medians of {rounds} rounds in turns, on {machine}. The models are those of
[coverage](../coverage.md): two layers of the sizes of a base model and random weights, convolutional ones whole. One text of
128 tokens, one image, or 3 seconds of sound. "–" means that OpenVINO does not convert the model, or to something that computes
something else; what is not listed has not been measured. `make architectures` measures and writes it.

| architecture | eager, fp32 | OpenVINO, fp32 | eager, bf16 | OpenVINO, bf16 |
|---|---|---|---|---|
"""


def write(subject: Subject, folder: Path) -> Path:
    """The model in Hugging Face layout in `folder`, its fused graphs beside it, and its one case; returns the file of that."""
    subject.make().save_pretrained(folder)
    for precision in ("fp32", "bf16"):
        work = folder / f"fused-{precision}"
        work.mkdir(exist_ok=True)
        (work / "graph.pt").write_bytes(compiled(subject, PRECISIONS[precision].dtype).saved())
    cases = folder.with_suffix(".npz")
    np.savez(cases, **{f"{CASE}/0/{name}": array for name, array in subject.timed.items()})
    return cases


def row(kind: str, options: argparse.Namespace) -> str:
    """The table's line of one architecture."""
    folder = options.work / kind
    shutil.rmtree(folder, ignore_errors=True)  # of another version, perhaps
    cases, found = write(subject_of(kind), folder), [kind]
    for precision in ("fp32", "bf16"):
        workers = [
            Process(name, command_of(name.split()[0], options, folder, "fp32" if " " in name else precision, cases))
            for name in ENGINES
        ]
        try:
            for worker in workers:
                worker.start()
            cells = measure(workers, CASE, precision, ROUNDS, options.work, {})
        finally:
            for worker in workers:
                worker.stop()
        found += [ratio(cells, name) for name in ENGINES[:-1]]
    shutil.rmtree(folder)
    return f"| {' | '.join(found)} |"


def ratio(cells: Cells, name: str) -> str:
    """How many times as long an engine takes."""
    own, other = cells[ENGINES[-1]], cells[name]
    if "error" in own:
        raise SystemExit(own["error"])
    return "–" if "error" in other else f"{other['seconds'] / own['seconds']:.2f}"


def main() -> None:
    """Measure, and write the table after each line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="architectures; all if there are none")
    parser.add_argument("--peers", type=Path, required=True, help="the Python of the other engines' environment")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench" / "architectures", help="where models are made")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    rows = {line.split()[1]: line for line in lines if line.startswith("| ") and line.split()[1] in ARCHITECTURES}
    for kind in options.kinds or ARCHITECTURES:
        progress(kind)
        rows[kind] = row(kind, options)
        ordered = [rows[kind] for kind in ARCHITECTURES if kind in rows]
        TABLE.write_text(HEAD.format(rounds=ROUNDS, machine=machine()) + "\n".join(ordered) + "\n")


if __name__ == "__main__":
    main()
