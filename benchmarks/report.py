"""What is made of a comparison: its figures as JSON, tables, and two plots."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tabulate

OWN = ("cpuc", "cpuc-dynamic", "cpuc-tuned")
ROOF = """The *roof* is the time that our graph's arithmetic takes at this machine's measured peak, and no less than reading its
weights takes, unless they stay in the cache (`cpuc bench`; of int8, the static artifact's). Where the fastest peer has a share
of 0.8, that arithmetic allows no ratio above 1.25."""


def _seconds(cell: dict[str, Any]) -> float | None:
    value = cell.get("seconds")
    return None if value is None else float(value)


def merged(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cases that are one job in several ways (``mixed-…``, ``text-…``) become one, with each engine's fastest way."""
    jobs: dict[tuple[str, str, str], dict[str, Any]] = {}
    for cell in cells:
        job, _, way = cell["case"].partition("-")
        entry = jobs.setdefault((cell["model"], cell["precision"], job), {**cell, "case": job, "engines": {}})
        for name, each in cell["engines"].items():
            known = entry["engines"].get(name)
            if name.startswith("eager") and way == "fixed":
                entry["engines"][f"{name} padded to 384"] = each
            elif way != "fixed" and (known is None or (_seconds(each) or math.inf) < (_seconds(known) or math.inf)):
                entry["engines"][name] = {**each, "way": way}
    return list(jobs.values())


def against(cell: dict[str, Any]) -> dict[str, Any] | None:
    """The fastest of ours and of the peers, and the ratio of the two: median and quartiles by round."""
    timed = {name: each for name, each in cell["engines"].items() if _seconds(each)}
    ours = min((name for name in timed if name in OWN), key=lambda name: timed[name]["seconds"], default=None)
    peers = [name for name in timed if name not in OWN]
    if ours is None or not peers:
        return None
    best = min(peers, key=lambda name: timed[name]["seconds"])
    rounds = [a / b for a, b in zip(timed[best]["rounds"], timed[ours]["rounds"], strict=True)]
    low, _, high = statistics.quantiles(rounds, n=4)
    return {"ours": ours, "best": best, "ratio": timed[best]["seconds"] / timed[ours]["seconds"], "quartiles": (low, high)}


def _table(cells: list[dict[str, Any]]) -> str:
    names = sorted({name for cell in cells for name in cell["engines"]}, key=lambda name: (name in OWN, name))
    rows = []
    for cell in cells:
        found = against(cell)
        times = [_seconds(cell["engines"].get(name, {})) for name in names]
        last = (
            [f"{found['ratio']:.2f} ({found['quartiles'][0]:.2f}–{found['quartiles'][1]:.2f})", found["best"]]
            if found
            else ["–", "–"]
        )
        shown = ["–" if each is None else f"{each * 1e3:.1f}" for each in times]
        share = peers_share(cell)
        last.append("–" if share is None else f"{share:.2f}")
        rows.append([cell["model"], cell["precision"], cell["case"], *shown, *last])
    head = ["model", "precision", "case", *names, "ratio", "fastest peer", "its share of the roof"]
    return tabulate.tabulate(rows, head, "github", disable_numparse=True)


def peers_share(cell: dict[str, Any]) -> float | None:
    """What part of the fastest peer's time the arithmetic would take at this machine's peak."""
    found, roof = against(cell), cell.get("roof_seconds")
    return roof / cell["engines"][found["best"]]["seconds"] if found and roof else None


def _refused(cells: list[dict[str, Any]]) -> str:
    reasons = {
        (cell["model"], cell["precision"], name, each["error"])
        for cell in cells
        for name, each in cell["engines"].items()
        if "error" in each
    }
    return "\n".join(f"- {model}, {precision}, {name}: {why}" for model, precision, name, why in sorted(reasons))


def _starts(starts: list[dict[str, Any]]) -> str:
    rows = []
    for each in starts:
        for name, built in each["built"].items():
            start = each["engines"].get(name)
            if "error" in built or start is None:
                continue
            first, peak = f"{start['seconds']:.2f}", f"{start['peak_bytes'] / 1e6:.0f}"
            made = "–" if built["build_seconds"] is None else f"{built['build_seconds']:.0f}"
            size = f"{built['bytes'] / 1e6:.0f}"
            rows.append([each["model"], each["precision"], name, first, peak, size, made])
    head = ["model", "precision", "engine", "start to answer, s", "peak memory, MB", "files, MB", "made in, s"]
    return tabulate.tabulate(rows, head, "github", disable_numparse=True)


def _machine(machine: dict[str, Any]) -> str:
    cpu = f"{machine['threads']} threads of {machine['cpu']} ({machine['isa']})"
    allocator = machine.get("allocator", "the C library's")
    return f"Measured on {machine['date']}: {cpu}, {machine['system']}, allocator of eager, inductor and cpuc: {allocator}."


def _versions(versions: dict[str, dict[str, str]]) -> str:
    """Engines have environments of their own, and with them versions."""
    rows = [f"- {engine}: {', '.join(f'{name} {each}' for name, each in found.items())}" for engine, found in versions.items()]
    return "\n".join(rows)


def _means(cells: list[dict[str, Any]]) -> str:
    """Over all cells: the ratio, and the bound on it where the roof is known."""
    ratios = [found["ratio"] for cell in cells if (found := against(cell))]
    mean = f"Geometric mean over {len(ratios)} cells: {statistics.geometric_mean(ratios):.2f}." if ratios else ""
    shares = [share for cell in cells if (share := peers_share(cell))]
    if shares:
        mean += (
            f"\n\n{ROOF} Over {len(shares)} cells that bound is {1 / statistics.geometric_mean(shares):.2f} in geometric mean."
        )
    return mean


def write_report(result: dict[str, Any], folder: Path) -> None:
    """Write ``results.json``, ``README.md`` and the plots into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    cells = merged(result["cells"])
    lengths = {len(each["rounds"]) for cell in cells for each in cell["engines"].values() if "rounds" in each}
    rounds = " or ".join(map(str, sorted(lengths)))
    text = f"""# Benchmarks

cpuc against other engines, measured by benchmarks/compare.py, which says how; a model at a precision is one run, and `--add`
puts runs together. Medians of {rounds} rounds in milliseconds; *ratio* is that of the fastest peer to the fastest of ours,
above 1 we are faster, with the quartiles of the ratios round by round. Of openvino-static and cpuc-tuned (`--tune-shapes`) each
shape has a model of its own. {_means(cells)}

{_machine(result["machine"])}

{_versions(result["versions"])}

{_table(cells)}

`mixed` is 32 rows of real lengths, `text` windows of real paragraphs: all in one batch, one by one, one on each CPU, or like
with like in batches, whichever is fastest for the engine. CTranslate2 gives the encoder's hidden states, without a head.

Not measured:

{_refused(result["cells"]) or "nothing"}

## Start, memory and size

From the start of a process to the first answer, one row, with warm file caches; Python included.

{_starts(result["starts"])}

![time of each engine, cpuc = 1](latency.png) ![from the start of a process to its first answer](start.png)

## Share of the machine's peak

What `cpuc bench` says of the first model of a run at each precision: GFLOP/s over arithmetic intensity, under this machine's
measured peak and bandwidth.

{" ".join(f"![roofline, {each.stem.removeprefix('roofline-')}]({each.name})" for each in sorted(folder.glob("roofline-*.png")))}
"""
    (folder / "README.md").write_text(text)
    _plot(cells, folder / "latency.png")
    _plot_starts(result["starts"], folder / "start.png")


def _plot(cells: list[dict[str, Any]], path: Path) -> None:
    """Each engine's time over ours, cell by cell."""
    shown = [cell for cell in cells if against(cell)]
    if not shown:
        return
    names = sorted({name for cell in shown for name in cell["engines"] if name not in OWN})
    figure, axes = plt.subplots(figsize=(max(6, 1.1 * len(shown)), 4), layout="constrained")
    for name in names:
        points = [
            (i, each["seconds"] / cell["engines"][found["ours"]]["seconds"])
            for i, cell in enumerate(shown)
            if (each := cell["engines"].get(name, {})).get("seconds") and (found := against(cell))
        ]
        axes.plot(*zip(*points, strict=True), "o", label=name) if points else None
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(shown)), [f"{c['model']}\n{c['precision']} {c['case']}" for c in shown], rotation=60, fontsize=7)
    axes.set_ylabel("time, cpuc = 1")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_starts(starts: list[dict[str, Any]], path: Path) -> None:
    """Seconds from the start of a process to its first answer, a group of bars for each model and precision."""
    shown = [each for each in starts if each["engines"]]
    if not shown:
        return
    names = sorted({name for each in shown for name in each["engines"]}, key=lambda name: (name in OWN, name))
    figure, axes = plt.subplots(figsize=(max(6, 1.1 * len(shown)), 4), layout="constrained")
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        points = [(i, each["engines"][name]["seconds"]) for i, each in enumerate(shown) if name in each["engines"]]
        axes.bar([i + number * width for i, _ in points], [seconds for _, seconds in points], width, label=name)
    axes.set_xticks(range(len(shown)), [f"{each['model']}\n{each['precision']}" for each in shown], rotation=60, fontsize=7)
    axes.set_ylabel("start to first answer, s")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
