"""Calls timed in turns, so that all of them meet the same states of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

Call = Callable[[], object]
# Called with what was done since the last call and how much there is in all, in steps.
Progress = Callable[[int, int], None]
# Calls of each kind that are not timed: oneDNN generates code for a number of rows when it first meets it.
WARM_UP = 3
LEAST_ROUNDS = 5
_STEPS = 100


def take_turns(
    groups: Sequence[Mapping[str, Call]], seconds: float, progress: Progress = lambda *_: None
) -> list[dict[str, list[float]]]:
    """Time each group's calls until it has had `seconds`, and at least five rounds.

    In a round every call of a group is made once, and who begins changes from round to round. The next round is always that of
    the group that has had the least time: all of them share the whole of the measurement, and quick ones get more rounds.

    Returns:
        for each group the seconds of every round, by the call's name.
    """
    for group in groups:
        for call in group.values():
            for _ in range(WARM_UP):
                call()
    rounds: list[dict[str, list[float]]] = [{name: [] for name in group} for group in groups]
    spent = [0.0] * len(groups)
    counts = [0] * len(groups)
    shown = 0
    while waiting := [i for i in range(len(groups)) if spent[i] < seconds or counts[i] < LEAST_ROUNDS]:
        i = min(waiting, key=spent.__getitem__)
        names = list(groups[i])
        turn = counts[i] % len(names)
        for name in names[turn:] + names[:turn]:
            begin = time.perf_counter()
            groups[i][name]()
            took = time.perf_counter() - begin
            rounds[i][name].append(took)
            spent[i] += took
        counts[i] += 1
        done = int(_STEPS * sum(min(each, seconds) for each in spent) / (seconds * len(groups)))
        progress(done - shown, _STEPS)
        shown = done
    return rounds
