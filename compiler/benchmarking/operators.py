"""Where the time of a call goes: its operators, as torch's profiler records them."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cpuc.runtime.libraries import stderr_to_file

# Calls to profile: as many as fit into a second.
SECONDS, LEAST_CALLS, MOST_CALLS = 1.0, 3, 20
# What the interpreter needs between operators, and operators that record nothing.
REST = "between operators"
_CALL, _GRAPH = "cpuc::call", "forward"
# What IPEX records some of its operators as: dil_add_layernorm is ipex::add_layernorm in the graph.
_DIL = re.compile(r"^dil_")


@dataclass(frozen=True)
class Operator:
    """One kind of operator in a call of the model.

    Attributes:
        calls: how often a call of the model runs it.
        seconds: that it takes in one call of the model, all of its calls together, with what they call in turn.
        share: of the time of all operators.
    """

    name: str
    calls: float
    seconds: float
    share: float


def profile(call: Callable[[], object]) -> list[Operator]:
    """The operators of a graph that `call` runs once, longest first. The profiler's own time is in theirs."""
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as profiler

    begin = time.perf_counter()
    call()
    count = min(MOST_CALLS, max(LEAST_CALLS, int(SECONDS / (time.perf_counter() - begin))))
    with stderr_to_file():  # it tells that there is no GPU
        with profiler(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
            for _ in range(count):
                with record_function(_CALL):
                    call()
        events: Any = profiled.events()
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in events:
        if event.cpu_parent is None or event.cpu_parent.name != _CALL or event.name != _GRAPH:
            continue
        seconds[REST] += event.self_cpu_time_total
        for child in event.cpu_children:
            name = _DIL.sub("ipex::", child.name)
            seconds[name] += child.cpu_time_total
            calls[name] += 1
    total = seconds.total()
    return [Operator(name, calls[name] / count, s / count / 1e6, s / total) for name, s in seconds.most_common()]
