"""One side of a comparison: a program that measures the fastpool that it can import.

It is run in the place of each revision, so it uses nothing but what all of them have.
Its first line says which fastpool that is, and on which core. Requests are lines on
stdin, ``[case, dsn, seconds]``; the answer to each is a line with the nanoseconds a call
took. A whole number instead of seconds: so many calls. ``probe.py CASE N`` does a case
N times and ends: for callgrind.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import fastpool
from fastpool.testing import StubDriver

Case = Callable[[], object]

PROBED = ("connection", "acquire", "try_acquire", "run", "socket", "handoff")
STATEMENTS = ("connect", "select_1", "parameter", "transaction")
WAITING = ("handoff", *STATEMENTS)


def stub_pool(sockets: bool = False) -> Any:
    pool: Any = fastpool.Pool(driver=StubDriver(sockets=sockets), min_size=1, max_size=1)
    pool.open(wait=True)
    return pool


def connection() -> Case:
    pool = stub_pool()

    def case() -> None:
        with pool.connection():
            pass

    return case


def acquire() -> Case:
    pool = stub_pool()
    return lambda: pool.acquire().release()


def try_acquire() -> Case:
    pool = stub_pool()
    return lambda: pool.try_acquire().release()


def run() -> Case:
    pool = stub_pool()
    return lambda: pool.run("")


def socket() -> Case:
    pool = stub_pool(sockets=True)

    def case() -> None:
        with pool.connection():
            pass

    return case


def handoff() -> Case:
    """100 checkouts by each of two threads that share one connection."""
    pool = stub_pool()

    def work() -> None:
        for _ in range(100):
            with pool.connection():
                time.sleep(0)  # the other thread is waiting by now

    def case() -> None:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return case


def connect(dsn: str) -> Case:
    pool: Any = fastpool.Pool(dsn, min_size=0, max_size=1)
    return lambda: pool.detach(pool.acquire()).close()


def select_1(dsn: str) -> Case:
    pool: Any = fastpool.Pool(dsn, min_size=1, max_size=1)
    return lambda: pool.run("SELECT 1")


def parameter(dsn: str) -> Case:
    pool: Any = fastpool.Pool(dsn, min_size=1, max_size=1)
    return lambda: pool.run("SELECT :a::int", a=1)


def transaction(dsn: str) -> Case:
    pool: Any = fastpool.Pool(dsn, min_size=1, max_size=1)

    def case() -> None:
        with pool.transaction() as conn:
            for n in range(3):
                conn.run("SELECT :a::int", a=n)

    return case


def make(name: str, dsn: str) -> Case:
    case: Case = globals()[name](dsn) if name in STATEMENTS else globals()[name]()
    return case


def often(case: Case, times: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds for *times* calls."""
    began = clock()
    for _ in range(times):
        case()
    return clock() - began


def nanoseconds(case: Case, seconds: float, waits: bool) -> float:
    """A call, by the best of many short slices that fill *seconds*: the one that others
    disturbed least. What never *waits* is measured on the processor's clock."""
    clock = time.perf_counter if waits else time.process_time
    times = 1
    while (taken := often(case, times, clock)) < seconds / 50:
        times *= 2
    slices = min(25, max(3, round(seconds / taken)))
    return 1e9 * min(often(case, times, clock) / times for _ in range(slices))


def serve() -> None:
    cases: dict[tuple[str, str], Case] = {}
    print(json.dumps([fastpool.__file__, fastpool.__impl__]), flush=True)
    for line in sys.stdin:
        name, dsn, amount = json.loads(line)
        if (name, dsn) not in cases:
            cases[name, dsn] = make(name, dsn)
            cases[name, dsn]()
        case = cases[name, dsn]
        if isinstance(amount, int):
            print(often(case, amount), flush=True)
        else:
            print(nanoseconds(case, amount, name in WAITING), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        often(make(sys.argv[1], ""), int(sys.argv[2]))
    else:
        serve()
