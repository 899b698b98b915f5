"""Crowds: of idle connections, of waiters, of waiters that give up together."""

from __future__ import annotations

import _thread
import contextlib
import gc
import importlib
import importlib.util
import math
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import fastpool
from fastpool.testing import StubConnection, StubDriver

from ..load import quantile
from ..measure import alternate, interleave
from ..peers import Spec, contenders, visit
from ..report import Row, compiled
from ..stage import Bench

__all__ = ["cancellation", "imports", "many", "memory", "storm"]

MANY = 10_000
SIZES = (10, 100, 1000, MANY)
CROWD = 100
PATIENCE = 0.05
"""Seconds."""


class _Shared(StubDriver):
    """One connection for everybody, so that only the pool's own objects count."""

    def connect(self, params: Any, state: Any, deadline: float) -> StubConnection:
        if not self.connections:
            super().connect(params, state, deadline)
        return self.connections[0]


def filled(size: int) -> fastpool.Pool[StubConnection]:
    pool = fastpool.Pool(driver=_Shared(), min_size=size, max_size=size)
    pool.open(wait=True)
    return pool


class _Queue:
    """Callers in a pool's queue without their threads: the objects made for each."""

    def __init__(self, pool: fastpool.Pool[StubConnection], length: int) -> None:
        self._pool = pool
        self._core: Any = pool._core
        self._waiter = importlib.import_module(type(self._core).__module__).Waiter
        self._present = [self._come() for _ in range(length)]

    def _come(self) -> tuple[Any, Any]:
        lease = self._pool.connection()
        lock = _thread.allocate_lock()
        now, thread = time.monotonic(), threading.get_ident()
        waiter = self._waiter(id(lease), thread, 0, None, 0, now, math.inf, lock.release)
        self._core._join(waiter, now=now, tries=False, again=False)
        return lease, waiter

    def come_and_go(self) -> None:
        """A caller comes, waits in vain, and goes."""
        _, waiter = self._come()
        self._core._leave(waiter, 0.0, 0, False)

    def clear(self) -> None:
        for _, waiter in self._present:
            self._core._leave(waiter, 0.0, 0, False)


def many(bench: Bench) -> Iterator[Row]:
    """What a crowd costs, of idle connections and of waiters."""
    clock, target = time.process_time, compiled("<=", 1.2)
    with contextlib.ExitStack() as stack:
        pools = {size: stack.enter_context(filled(size)) for size in SIZES}
        cases = {f"{size}": visit(pool) for size, pool in pools.items()}
        idle = interleave(cases, bench.effort, clock)
    with contextlib.ExitStack() as stack:
        queues = {}
        for size in SIZES:
            pool = stack.enter_context(filled(1))
            stack.enter_context(pool.connection())
            queues[f"{size}"] = _Queue(pool, size)
            stack.callback(queues[f"{size}"].clear)
        cases = {name: queue.come_and_go for name, queue in queues.items()}
        waiting = interleave(cases, bench.effort, clock)
    for what, times in ("idle", idle), ("waiting", waiting):
        for name, values in times.items():
            bench.record("many", what=what, size=int(name), seconds=median(values))
    few, lots = f"{SIZES[0]}", f"{MANY}"
    yield Row("checkout, 10 000 idle / 10", idle[lots], idle[few], target=target)
    yield Row("waiting, 10 000 waiters / 10", waiting[lots], waiting[few], target=target)


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def memory(bench: Bench) -> Iterator[Row]:
    """Bytes of the pool's own objects, as tracemalloc counts them."""
    count, target = 2000, compiled("<=", 1.0)
    tracemalloc.start()
    try:
        with filled(1) as pool:
            before = traced()
            pool.resize(min_size=1 + count, max_size=1 + count)
            pool.wait()
            idle = (traced() - before) / count
        with filled(1) as pool, pool.connection():
            before = traced()
            queue = _Queue(pool, count)
            pairs = count * (sys.getsizeof((None, None)) + 8)  # the list is the bench's
            waiter = (traced() - before - pairs) / count
            queue.clear()
    finally:
        tracemalloc.stop()
    yield Row("memory of an idle connection / 512 B", [idle], [512.0], " B", target)
    yield Row("memory of a waiter / 512 B", [waiter], [512.0], " B", target)


def imports(bench: Bench) -> Iterator[Row]:
    """Processor time of an import in a fresh interpreter."""
    name = "import fastpool / import psycopg_pool"

    def sample(module: str) -> float:
        clock = "time.process_time()"
        code = f"import time; began = {clock}; import {module}; print({clock} - began)"
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
        return float(done.stdout)

    if importlib.util.find_spec("psycopg_pool") is None:
        yield Row(name, note="psycopg_pool is not installed")
        return
    samples = {name: partial(sample, name) for name in ("fastpool", "psycopg_pool")}
    times = alternate(samples, replace(bench.effort, slices=3))
    yield Row(name, times["fastpool"], times["psycopg_pool"], target=("<=", 1.0))


Span = tuple[float, float]


def crowd(act: Callable[[], object]) -> tuple[list[Span], list[threading.Thread]]:
    """100 threads that have begun to *act*, which raises in the end; and when each began
    and ended, to be read when they have been joined."""
    spans: list[Span] = []
    ready = threading.Barrier(CROWD + 1)

    def run() -> None:
        ready.wait()
        began = time.perf_counter()
        # Whatever this pool raises; it is the time that counts.
        with contextlib.suppress(Exception):
            act()
        spans.append((began, time.perf_counter()))

    threads = [threading.Thread(target=run) for _ in range(CROWD)]
    for thread in threads:
        thread.start()
    ready.wait()
    return spans, threads


def storm(bench: Bench) -> Iterator[Row]:
    """How late the 99th of 100 timeouts is, and what the first return after them costs:
    a pool may have to step over everybody who has gone."""
    late: dict[str, list[float]] = {}
    after: dict[str, list[float]] = {}
    with contenders(Spec(1, timeout=PATIENCE), both=True, bare=True) as pools:
        pools.pop("DBUtils", None)  # waits for ever
        bare = threading.Lock()
        pools["lock"] = replace(
            pools["lock"], acquire=partial(_or_raise, bare), release=lambda _: bare.release()
        )
        for number in range(bench.effort.rounds):
            bench.progress(f"storm, round {number + 1} of {bench.effort.rounds}")
            for name, pool in pools.items():
                held = pool.acquire()
                spans, threads = crowd(pool.acquire)
                for thread in threads:
                    thread.join()
                waited = [ended - began for began, ended in spans]
                late.setdefault(name, []).append(quantile(waited, 0.99) - PATIENCE)
                began = time.perf_counter()
                pool.release(held)
                after.setdefault(name, []).append(time.perf_counter() - began)
    for name in pools:
        bench.record("storm", pool=name, late=median(late[name]), after=median(after[name]))
    yield Row("storm: p99 lateness / bare lock's", late["fastpool"], late["lock"])
    for peer in ("psycopg_pool", "SQLAlchemy"):
        if peer in pools:
            yield Row(f"storm: first return / {peer}", after["fastpool"], after[peer])


def _or_raise(lock: threading.Lock) -> None:
    """Give up as a pool does."""
    if not lock.acquire(timeout=PATIENCE):
        raise TimeoutError


def cancellation(bench: Bench) -> Iterator[Row]:
    """A pool is closed while 100 callers wait: until the last of them is told."""
    told: dict[str, list[float]] = {}
    for _ in range(bench.effort.rounds):
        with contenders(Spec(1), both=True) as pools:
            for name in [name for name in pools if name in ("SQLAlchemy", "DBUtils")]:
                del pools[name]  # their waiters are not told
            for name, pool in pools.items():
                held = pool.acquire()
                spans, threads = crowd(pool.acquire)
                time.sleep(0.05)  # ample time to get in line
                closer = threading.Thread(target=pool.close)
                began = time.perf_counter()
                closer.start()
                for thread in threads:
                    thread.join()
                pool.release(held)
                closer.join()
                told.setdefault(name, []).append(max(ended for _, ended in spans) - began)
    for name, values in told.items():
        bench.record("cancellation", pool=name, seconds=median(values))
    if "psycopg_pool" in told:
        name = "100 waiters of a closed pool / psycopg_pool"
        yield Row(name, told["fastpool"], told["psycopg_pool"])
    else:
        yield Row("100 waiters of a closed pool", note="psycopg_pool is not installed")
