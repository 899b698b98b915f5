"""How things are measured: what is compared takes turns.

A round gives one value for each side. A side's value is the median of short slices, and
the sides take turns slice by slice, so that neither a busy moment nor a slow drift of
the machine falls on one of them alone.
"""

from __future__ import annotations

import os
import time
import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

__all__ = ["EFFORTS", "Case", "Effort", "alternate", "interleave", "pinned"]

_SLICE = 0.002

Case = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How much to measure: *rounds*, *slices* a round, seconds of each *load*; the whole
    *grid*, or the points of it that the plots show, or a *few*."""

    rounds: int
    slices: int = 15
    load: float = 1.0
    grid: str = "plots"


EFFORTS = {
    "smoke": Effort(1, slices=3, load=0.05, grid="few"),
    "quick": Effort(2, slices=5, load=0.3, grid="few"),
    "slice": Effort(5, load=0.6),
    "figures": Effort(9),
    "full": Effort(9, grid="whole"),
}
"""``smoke`` only sees that everything runs, in less than a minute; ``quick`` takes two,
``slice`` less than fifteen, ``full`` some hours; ``figures`` is what judges."""


def alternate(samples: Mapping[str, Callable[[], float]], effort: Effort) -> dict[str, list[float]]:
    """Call all samples in turns; for each, one median a round."""
    found: dict[str, list[float]] = {name: [] for name in samples}
    order = list(samples)
    for _ in range(effort.rounds):
        values: dict[str, list[float]] = {name: [] for name in samples}
        for _ in range(effort.slices):
            for name in order:
                values[name].append(samples[name]())
            order.append(order.pop(0))  # so that nobody always follows the same one
        for name in samples:
            found[name].append(median(values[name]))
    return found


def sampler(case: Case, clock: Callable[[], float]) -> Callable[[], float]:
    """Seconds a call of *case*, from as many calls as fill a slice."""
    timer = timeit.Timer(case, timer=clock)
    number = 1
    while (taken := timer.timeit(number)) < _SLICE / 4:
        number *= 2
    calls = max(1, round(number * _SLICE / taken))
    return lambda: timer.timeit(calls) / calls


def interleave(
    cases: Mapping[str, Case], effort: Effort, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds a call of each case, one value a round.

    *clock*: for what never waits, ``time.process_time`` leaves out other processes.
    """
    return alternate({name: sampler(case, clock) for name, case in cases.items()}, effort)


@contextmanager
def pinned(*pids: int) -> Iterator[None]:
    """This thread and the processes *pids* on one processor, where that can be done.

    Statements on loopback need it: left alone, their medians flip between two modes, a
    factor of 2 to 3 apart. What a pinned thread or process starts is pinned as well.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    everybody = (0, *pids)
    allowed = os.sched_getaffinity(0)
    try:
        for pid in everybody:
            os.sched_setaffinity(pid, {max(allowed)})
        yield
    finally:
        for pid in everybody:
            os.sched_setaffinity(pid, allowed)
