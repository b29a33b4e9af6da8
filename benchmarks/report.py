"""What is made of a comparison: its figures as JSON, tables, and two plots."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tabulate
from engines import ENGINES, OWN

ROOF = """The *roof* is the time that our graph's arithmetic takes at this machine's measured peak, and no less than reading its
weights takes, unless they stay in the cache (`cpuc bench`; of int8, the static artifact's). Where the fastest peer has a share
of 0.8, that arithmetic allows no ratio above 1.25."""


def _seconds(cell: dict[str, Any]) -> float | None:
    value = cell.get("seconds")
    return None if value is None else float(value)


def merged(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cases that are one job in several ways (``mixed-…``, ``text-…``) become one, with each engine's fastest way.

    Those ways were measured together once more (``…-fastest``), but in results of before 2026-11-30.
    """
    jobs: dict[tuple[str, str, str], dict[str, Any]] = {}
    for cell in sorted(cells, key=lambda cell: cell["case"].endswith("-fastest")):
        job, _, way = cell["case"].partition("-")
        entry = jobs.setdefault((cell["model"], cell["precision"], job), {**cell, "case": job, "engines": {}})
        for name, each in cell["engines"].items():
            known = entry["engines"].get(name)
            together = {**each, "measured": cell["case"]}
            if name.startswith("eager") and way == "fixed":
                entry["engines"][f"{name} padded to 384"] = together
            elif way == "fastest" or (
                way != "fixed" and (known is None or (_seconds(each) or math.inf) < (_seconds(known) or math.inf))
            ):
                entry["engines"][name] = together
    for (model, precision, job), entry in jobs.items():
        wide = jobs[model, "fp32", job]["engines"] if precision != "fp32" and (model, "fp32", job) in jobs else {}
        entry["wider"] = {
            f"{name} fp32": {**each, "measured": "fp32"}
            for name, each in wide.items()
            if name not in (*OWN, "eager") and "padded" not in name
        }
    _cap_roofs(jobs)
    return list(jobs.values())


def _cap_roofs(jobs: dict[tuple[str, str, str], dict[str, Any]]) -> None:
    """So many rows take at most so many times what one takes: each number of rows had a probe of the peak of its own."""
    for (model, precision, case), entry in jobs.items():
        rows, _, size = case.partition("x")
        single = jobs.get((model, precision, f"1x{size}"), {}).get("roof_seconds")
        if entry.get("roof_seconds") and single:
            entry["roof_seconds"] = min(entry["roof_seconds"], int(rows) * single)


def against(cell: dict[str, Any]) -> dict[str, Any] | None:
    """The fastest of ours and of the peers, and the ratio of the two: median and quartiles by round.

    Where a peer is faster in float32 than any at the precision, that is what its users would take, and it is the peer. Of what
    was not measured in turns the ratio is that of the medians, without quartiles.
    """
    timed = {name: each for name, each in {**cell["wider"], **cell["engines"]}.items() if _seconds(each)}
    ours = min((name for name in timed if name in OWN), key=lambda name: timed[name]["seconds"], default=None)
    peers = [name for name in timed if name not in OWN]
    if ours is None or not peers:
        return None
    best = min(peers, key=lambda name: timed[name]["seconds"])
    found = {"ours": timed[ours], "best": best, "peer": timed[best], "quartiles": None}
    if timed[best]["measured"] != timed[ours]["measured"]:
        return {**found, "ratio": timed[best]["seconds"] / timed[ours]["seconds"]}
    rounds = [a / b for a, b in zip(timed[best]["rounds"], timed[ours]["rounds"], strict=True)]
    low, middle, high = statistics.quantiles(rounds, n=4)
    return {**found, "ratio": middle, "quartiles": (low, high)}


def _table(cells: list[dict[str, Any]]) -> str:
    names = sorted({name for cell in cells for name in cell["engines"]}, key=lambda name: (name in OWN, name))
    rows = []
    for cell in cells:
        times = [_seconds(cell["engines"].get(name, {})) for name in names]
        shown = ["–" if each is None else f"{each * 1e3:.1f}" for each in times]
        rows.append([cell["model"], cell["precision"], cell["case"], *shown, *_ratio(cell), cell.get("date") or "–"])
    head = [
        "model",
        "precision",
        "case",
        *names,
        "ratio",
        "fastest peer",
        "its share of the roof",
        "off: peer, ours",
        "measured",
    ]
    return tabulate.tabulate(rows, head, "github", disable_numparse=True)


def _ratio(cell: dict[str, Any]) -> list[str]:
    found, share = against(cell), peers_share(cell)
    if not found:
        return ["–"] * 4
    ratio, spread = f"{found['ratio']:.2f}", found["quartiles"]
    if spread:
        ratio += f" ({spread[0]:.2f}–{spread[1]:.2f})"
    off = ["–" if (each := found[whose].get("difference")) is None else f"{each:.1g}" for whose in ("peer", "ours")]
    return [ratio, found["best"], "–" if share is None else f"{share:.2f}", ", ".join(off)]


def peers_share(cell: dict[str, Any]) -> float | None:
    """What part of the fastest peer's time the arithmetic would take at this machine's peak."""
    found, roof = against(cell), cell.get("roof_seconds")
    return roof / found["peer"]["seconds"] if found and roof else None


def _refused(result: dict[str, Any]) -> str:
    """What was tried and failed, and peers that were not run though they have the precision."""
    reasons = {
        (name, engine["error"], each["model"], each["precision"])
        for each in (*result["cells"], *result["starts"])
        for name, engine in each["engines"].items()
        if "error" in engine
    }
    ran: dict[tuple[str, str], set[str]] = {}
    for cell in result["cells"]:
        ran.setdefault((cell["model"], cell["precision"]), set()).update(cell["engines"])
    reasons |= {
        (name, "not run", *at)
        for at, names in ran.items()
        for name, engine in ENGINES.items()
        if at[1] in engine.precisions and name not in (*names, *OWN) and not (engine.one_shape and at[0] == "minilm-qa")
    }
    where: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name, why, model, precision in sorted(reasons):
        where.setdefault((name, why), {}).setdefault(model, []).append(precision)
    rows = []
    for (name, why), models in where.items():
        listed = "; ".join(f"{model} {', '.join(precisions)}" for model, precisions in models.items())
        rows.append(f"- {name}, {why}: {listed}")
    return "\n".join(rows)


def _starts(starts: list[dict[str, Any]]) -> str:
    rows = []
    for each in starts:
        for name, built in each["built"].items():
            start = each["engines"].get(name)
            if "error" in built or start is None or "error" in start:
                continue
            first, peak = f"{start['seconds']:.2f}", f"{start['peak_bytes'] / 1e6:.0f}"
            made = "–" if built["build_seconds"] is None else f"{built['build_seconds']:.0f}"
            size = f"{built['bytes'] / 1e6:.0f}"
            rows.append([each["model"], each["precision"], name, first, peak, size, made])
    head = ["model", "precision", "engine", "start to answer, s", "peak memory, MB", "files, MB", "made in, s"]
    return tabulate.tabulate(rows, head, "github", disable_numparse=True)


def _machine(machine: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    """Results of before 2026-11-30 have one date for all cells, and don't tell commits."""
    dates = sorted({date for cell in cells if (date := cell.get("date") or machine.get("date"))}) or ["at an unknown time"]
    commits = ", ".join(dict.fromkeys(cell["commit"] for cell in cells if "commit" in cell))
    with_it = machine.get("allocating", "eager, inductor and cpuc")
    return (
        f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}: {machine['threads']} threads of {machine['cpu']} "
        f"({', '.join(filter(None, (machine['isa'], machine.get('family'))))}), {machine['system']}, allocator of {with_it}: "
        f"{machine['allocator']}.{f' Commits of cpuc: {commits}.' if commits else ''}"
    )


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
above 1 we are faster: median and quartiles of the ratios round by round. A peer in float32 that is faster than all at the
precision is the fastest peer; it was measured in another run, and the ratio is that of medians. *off* is by how much outputs
differ from those of eager mode in float32: root mean squares, as a part of theirs. Of openvino-static, inductor and cpuc-tuned
(`--tune-shapes`) each shape has a model of its own. {_means(cells)}

{_machine(result["machine"], result["cells"])}

{_versions(result["versions"])}

{_table(cells)}

`mixed` is 32 rows of real lengths, `text` windows of real paragraphs: all in one batch, one by one, one on each CPU, or like
with like in batches, whichever is fastest for the engine. CTranslate2 gives the encoder's hidden states, without a head.

Not measured:

{_refused(result) or "nothing"}

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
            (i, each["seconds"] / found["ours"]["seconds"])
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
    shown = [{**each, "engines": {n: e for n, e in each["engines"].items() if "error" not in e}} for each in starts]
    shown = [each for each in shown if each["engines"]]
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
