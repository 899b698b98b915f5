"""How things are measured: what is compared takes turns.

A round gives one value for each side. A side's value is the median of short slices, and
the sides take turns slice by slice, so that neither a busy moment nor a slow drift of
the machine falls on one of them alone.
"""

from __future__ import annotations

import threading
import time
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

from .peers import Contender

__all__ = ["Effort", "Load", "alternate", "interleave", "loops_in", "one_way", "run_load"]

_SLICE = 0.002


@dataclass(frozen=True)
class Effort:
    """How much to measure: *rounds*, *slices* a round, seconds of each *load*."""

    rounds: int
    slices: int = 15
    load: float = 1.0


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


def interleave(
    cases: Mapping[str, Callable[[], object]],
    effort: Effort,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds a call of each case, one value a round.

    *clock*: for what never waits, ``time.process_time`` leaves out other processes.
    """

    def sample(case: Callable[[], object]) -> Callable[[], float]:
        timer = timeit.Timer(case, timer=clock)
        number = 1
        while (taken := timer.timeit(number)) < _SLICE / 4:
            number *= 2
        calls = max(1, round(number * _SLICE / taken))
        return lambda: timer.timeit(calls) / calls

    return alternate({name: sample(case) for name, case in cases.items()}, effort)


def one_way(
    acquire: Callable[[], object], release: Callable[[object], object], times: int = 20
) -> float:
    """Seconds from a release until the thread that was blocked has it: a median.

    The releaser blocks afterwards, so that the processor is free.
    """
    held, passed = threading.Semaphore(0), threading.Semaphore(0)
    released = 0.0
    delays = []

    def receive() -> None:
        for _ in range(times):
            held.acquire()
            mine = acquire()
            delays.append(time.perf_counter() - released)
            release(mine)
            passed.release()

    receiver = threading.Thread(target=receive)
    receiver.start()
    for _ in range(times):
        mine = acquire()
        held.release()
        time.sleep(0.0003)  # ample time for the receiver to block
        released = time.perf_counter()
        release(mine)
        passed.acquire()
    receiver.join()
    return median(delays)


@dataclass
class Load:
    """What came of a load. Times in seconds."""

    seconds: float = 0.0
    shares: list[int] = field(default_factory=list)
    """Checkouts of each thread."""
    waits: list[float] = field(default_factory=list)
    """Of each checkout."""
    stalls: list[float] = field(default_factory=list)
    """How much longer than asked each hold took."""
    overshoots: list[float] = field(default_factory=list)
    """How much longer than asked a bare timed lock took, beside the load."""

    @property
    def throughput(self) -> float:
        return sum(self.shares) / self.seconds

    @property
    def unfairness(self) -> float:
        """The largest share over the smallest."""
        return max(self.shares) / max(1, min(self.shares))

    def wait(self, quantile: float) -> float:
        return _quantile(self.waits, quantile)

    def own_wait(self, quantile: float) -> float:
        """The wait less what the machine was late itself, at the same quantile."""
        late = _quantile(self.stalls, quantile) + _quantile(self.overshoots, quantile)
        return max(0.0, self.wait(quantile) - late)

    def __str__(self) -> str:
        text = f"{self.throughput:,.0f}/s, shares {self.unfairness:.3g}"
        for name, quantile in ("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("worst", 1.0):
            text += f", {name} {1e3 * self.wait(quantile):.1f} ms" if self.waits else ""
        return text


def _quantile(values: list[float], quantile: float) -> float:
    return sorted(values)[min(int(quantile * len(values)), len(values) - 1)] if values else 0.0


def loops_in(seconds: float) -> int:
    """How often an empty loop goes round in *seconds* of computing. Counted in turns,
    since by the clock a thread that waits for the GIL would be computing, too."""
    turns = 100_000
    loop = f"for _ in range({turns}): pass"
    taken = min(timeit.repeat(loop, number=1, repeat=20, timer=time.thread_time))
    return round(turns * seconds / taken)


def run_load(
    pool: Contender, threads: int, seconds: float, hold: float = 0.0, loops: int = 0
) -> Load:
    """*threads* that take a connection, hold it for *hold* seconds, give it back and
    go *loops* times round an empty loop, over and over. Without a hold only shares count."""
    acquire, release = pool.acquire, pool.release
    clock, sleep = time.perf_counter, time.sleep
    over = False
    start = threading.Barrier(threads + 1)
    load = Load()

    def churn() -> None:
        start.wait()
        served = 0
        while not over:
            release(acquire())
            served += 1
        load.shares.append(served)

    def work() -> None:
        start.wait()
        served = 0
        while not over:
            asked = clock()
            conn = acquire()
            given = clock()
            sleep(hold)
            held = clock()
            release(conn)
            load.waits.append(given - asked)
            load.stalls.append(held - given - hold)
            served += 1
            for _ in range(loops):
                pass
        load.shares.append(served)

    def watch() -> None:
        lock = threading.Lock()
        lock.acquire()
        while not over:
            asked = clock()
            lock.acquire(timeout=0.005)
            load.overshoots.append(clock() - asked - 0.005)

    crowd = [threading.Thread(target=work if hold else churn) for _ in range(threads)]
    crowd += [threading.Thread(target=watch)] if hold else []
    for thread in crowd:
        thread.start()
    start.wait()
    began = clock()
    sleep(seconds)
    load.seconds = clock() - began
    over = True
    for thread in crowd:
        thread.join()
    return load
