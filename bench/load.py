"""Loads of many threads on one pool, and what came of them."""

from __future__ import annotations

import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .peers import Contender

__all__ = ["Load", "Work", "busy", "compute", "loops_in", "one_way", "quantile", "run_load"]

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


@dataclass(frozen=True)
class Work:
    """What each thread does between two checkouts. Times in seconds."""

    threads: int
    hold: float = 0.0
    compute: float = 0.0
    """On the processor, after the release."""

    def __str__(self) -> str:
        text = f"{self.threads} threads, hold {1e3 * self.hold:g} ms"
        return text + (f", compute {1e3 * self.compute:g} ms" if self.compute else "")


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

    def wait(self, q: float) -> float:
        return quantile(self.waits, q)

    def own_wait(self, q: float) -> float:
        """The wait less what the machine was late itself, at the same quantile."""
        late = quantile(self.stalls, q) + quantile(self.overshoots, q)
        return max(0.0, self.wait(q) - late)

    def summary(self) -> dict[str, float]:
        """Checkouts a second, waits in seconds, and the shares of the threads."""
        shares = {"least": min(self.shares), "most": max(self.shares)}
        waits = {name: self.wait(q) for name, q in QUANTILES.items()} if self.waits else {}
        return {"throughput": self.throughput, **waits, **shares}

    def __str__(self) -> str:
        text = f"{self.throughput:,.0f}/s, shares {self.unfairness:.3g}"
        for name, q in QUANTILES.items() if self.waits else ():
            text += f", {name} {1e3 * self.wait(q):.1f} ms"
        return text


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(int(q * len(values)), len(values) - 1)] if values else 0.0


def loops_in(seconds: float) -> int:
    """How often an empty loop goes round in *seconds* of computing. Counted in turns,
    since by the clock a thread that waits for the GIL would be computing, too."""
    turns = 100_000
    loop = f"for _ in range({turns}): pass"
    taken = min(timeit.repeat(loop, number=1, repeat=20, timer=time.thread_time))
    return round(turns * seconds / taken)


def compute(loops: int) -> None:
    for _ in range(loops):
        pass


@contextmanager
def busy(threads: int) -> Iterator[None]:
    """Other threads of this process that compute all the time."""
    over = False

    def burn() -> None:
        while not over:
            compute(1000)

    crowd = [threading.Thread(target=burn) for _ in range(threads)]
    for thread in crowd:
        thread.start()
    try:
        yield
    finally:
        over = True
        for thread in crowd:
            thread.join()


def one_way(
    acquire: Callable[[], object],
    release: Callable[[object], object],
    times: int = 20,
    loops: int = 0,
) -> list[float]:
    """Seconds from a release until the thread that was blocked has it.

    The releaser goes *loops* times round an empty loop, and blocks; then the processor
    is free.
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
        compute(loops)
        passed.acquire()
    receiver.join()
    return delays


def run_load(pool: Contender, seconds: float, work: Work) -> Load:
    """Threads that take a connection, hold it, give it back and compute, over and over.
    Without a hold only shares count."""
    acquire, release = pool.acquire, pool.release
    clock, sleep = time.perf_counter, time.sleep
    hold = work.hold
    loops = loops_in(work.compute) if work.compute else 0
    over = False
    start = threading.Barrier(work.threads + 1)
    load = Load()

    def churn() -> None:
        start.wait()
        served = 0
        while not over:
            release(acquire())
            served += 1
        load.shares.append(served)

    def serve() -> None:
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

    crowd = [threading.Thread(target=serve if hold else churn) for _ in range(work.threads)]
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
