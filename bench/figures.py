"""What is measured, and what it has to reach: one function for each group of rows.

Targets are those of the compiled core unless a row says otherwise; on the interpreted
one the rows have none.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import math
import os
import select
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from statistics import median
from typing import Any

import fastpool
from fastpool.testing import LocalPostgres, StubConnection, StubDriver

from .measure import Effort, Load, alternate, interleave, loops_in, one_way, run_load
from .peers import PEERS, Contender, contenders, ours, visit
from .report import Row, Target, optimised_build

__all__ = ["GROUPS", "Bench"]

CONNECTIONS = 4
MANY = 10_000
NO_PEER = "no peer is installed"

Case = Callable[[], object]


class Bench(contextlib.ExitStack):
    """What the groups share; closing it ends the server."""

    def __init__(self, effort: Effort) -> None:
        super().__init__()
        self.effort = effort

    def progress(self, text: str) -> None:
        print(f"bench: {text}", file=sys.stderr, flush=True)

    @cached_property
    def postgres(self) -> LocalPostgres:
        return self.enter_context(LocalPostgres())

    def loads(self, pools: Mapping[str, Contender], threads: int, **work: Any) -> Loads:
        """The same load on every pool, in turns."""
        found: Loads = {name: [] for name in pools}
        for number in range(self.effort.rounds):
            self.progress(f"  {threads} threads, round {number + 1} of {self.effort.rounds}")
            for name, pool in pools.items():
                found[name].append(run_load(pool, threads, self.effort.load, **work))
        return found


Loads = dict[str, list[Load]]


def compiled(sign: str, limit: float) -> Target | None:
    """A target of the compiled core."""
    return (sign, limit) if fastpool.__impl__ == "c" else None


def less(values: list[float], *others: list[float]) -> list[float]:
    """*values* less all *others*, round by round."""
    return [first - sum(rest) for first, *rest in zip(values, *others, strict=True)]


def empty() -> None:
    pass


def checkout(bench: Bench) -> Iterator[Row]:
    """What a checkout costs one thread: default settings, each ``with`` in a function
    called afresh, less the call itself."""
    lock = threading.Lock()

    def locked() -> None:
        with lock:
            pass

    with contenders(CONNECTIONS) as peers, contextlib.ExitStack() as stack:
        del peers["fastpool"]
        cores = {}
        for core in ("c", "python"):
            with contextlib.suppress(ImportError):
                cores[core] = stack.enter_context(contextlib.closing(ours(core)))
        cases = {name: pool.visit for name, pool in {**peers, **cores}.items()}
        times = interleave(
            {"empty": empty, "lock": locked, **cases}, bench.effort, time.process_time
        )
    cost = {name: less(values, times["empty"]) for name, values in times.items()}
    mine = cost[fastpool.__impl__]
    limit = 1.25 if optimised_build() else 1.0
    yield Row("checkout / lock", mine, cost["lock"], target=compiled("<=", limit))
    wanted = (25, 35, 12) if sys.version_info < (3, 12) else (20, 25, 10)
    for peer, times_faster in zip(PEERS, wanted, strict=True):
        if peer in peers:
            yield Row(f"{peer} / checkout", cost[peer], mine, target=compiled(">=", times_faster))
    name = "interpreted core / DBUtils"
    if "DBUtils" in peers:
        yield Row(name, cost["python"], cost["DBUtils"], target=("<=", 0.8))
    else:
        yield Row(name, note="DBUtils is not installed")
    if "c" in cores:
        yield Row("compiled core / interpreted", cost["c"], cost["python"])


def socket_check(bench: Bench) -> Iterator[Row]:
    """A checkout of a real connection, whose socket is asked by one ``poll`` in C.

    A bare ``poll`` is the difference of two calls through ctypes that keep the GIL: of
    it, and of a C function that does nothing, called alike. A loop in C gives a sixth
    less, since here the system call slows down what comes after it.
    """
    from fastpool.drivers.pg8000 import Native

    driver = Native()
    libc = ctypes.PyDLL(None)
    for function in (libc.poll, libc.memchr):
        function.argtypes = (ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int)
    with single(bench.postgres.dsn, driver) as pool:
        lease = pool.acquire()
        events = select.POLLIN | getattr(select, "POLLRDHUP", 0)
        request = struct.pack("ihh", driver.fileno(lease.driver_connection), events, 0)
        lease.release()
        buffer = ctypes.create_string_buffer(request)
        address = ctypes.addressof(buffer)
        with contextlib.closing(ours()) as stub:
            cases: dict[str, Case] = {
                "empty": empty,
                "stub": stub.visit,
                "real": visit(pool),
                "poll": lambda: libc.poll(address, 1, 0),
                "nothing": lambda: libc.memchr(address, 1, 0),
            }
            times = interleave(cases, bench.effort, time.process_time)
    poll = less(times["poll"], times["nothing"])
    yield Row(
        "checkout with socket check, less poll / without",
        less(times["real"], times["empty"], poll),
        less(times["stub"], times["empty"]),
        target=compiled("<=", 2.0),
        note=f"a bare poll: {1e9 * median(poll):.0f} ns",
    )


def single(dsn: str, driver: Any = None) -> fastpool.Pool[Any]:
    """A pool of one real connection."""
    return fastpool.Pool(dsn, driver=driver, max_size=1)


def best(loads: Loads, merit: Callable[[Load], float]) -> str | None:
    """The peer with the most of *merit*, if there are peers."""
    peers = [name for name in loads if name != "fastpool"]
    return max(peers, key=lambda name: median(map(merit, loads[name])), default=None)


def throughput(name: str, loads: Loads, limit: float) -> Row:
    """Our throughput over the best peer's."""
    peer = best(loads, lambda load: load.throughput)
    if peer is None:
        return Row(name, note=NO_PEER)
    middle = {
        pool: sorted(found, key=lambda load: load.throughput)[len(found) // 2]
        for pool, found in loads.items()
    }
    note = "\n".join(f"{pool}: {load}" for pool, load in middle.items())
    left, right = ([load.throughput for load in loads[side]] for side in ("fastpool", peer))
    return Row(f"{name} / {peer}", left, right, "/s", compiled(">=", limit), note)


def fairness(bench: Bench) -> Iterator[Row]:
    """32 threads share 4 connections and hold each for 1 ms: the ideal wait is 8 ms."""
    with contenders(CONNECTIONS) as pools:
        loads = bench.loads(pools, 32, hold=0.001)
    mine = loads["fastpool"]
    for name, quantile, limit in (("worst", 1.0, 2.0), ("p99.9", 0.999, 1.5)):
        raw = 1e3 * median(load.wait(quantile) for load in mine)
        yield Row(
            f"32 threads: {name} wait / ideal",
            [load.own_wait(quantile) for load in mine],
            [0.008] * len(mine),
            target=compiled("<=", limit),
            note=f"{raw:.1f} ms with what the machine was late itself",
        )
    most, least = ([float(pick(load.shares)) for load in mine] for pick in (max, min))
    yield Row("32 threads: largest share / smallest", most, least, "", compiled("<=", 1.1))
    yield throughput("32 threads: throughput", loads, 0.95)


def zero_hold(bench: Bench) -> Iterator[Row]:
    """Threads that do nothing but check out and in."""
    with contenders(CONNECTIONS) as pools:
        for threads in (8, 32):
            yield throughput(
                f"zero hold, {threads} threads: throughput", bench.loads(pools, threads), 5
            )


def computing(bench: Bench) -> Iterator[Row]:
    """16 threads hold for 2 ms and compute for 1 ms after the release.

    The wait is compared with the fairest peer's: a starving pool's looks fine, since
    its starved threads finish no wait.
    """
    with contenders(CONNECTIONS) as pools:
        loads = bench.loads(pools, 16, hold=0.002, loops=loops_in(0.001))
    peer = best(loads, lambda load: -load.unfairness)
    if peer is None:
        yield Row("16 computing threads: p99 wait", note=NO_PEER)
    else:
        left, right = ([load.wait(0.99) for load in loads[side]] for side in ("fastpool", peer))
        name = f"16 computing threads: p99 wait / {peer}"
        yield Row(name, left, right, target=compiled("<=", 1.0))
    yield throughput("16 computing threads: throughput", loads, 0.95)


def handoff(bench: Bench) -> Iterator[Row]:
    """One connection, two threads: from the release until the other has it."""
    lock = threading.Lock()
    with contextlib.closing(ours(size=1)) as pool:
        samples = {
            "pool": lambda: one_way(pool.acquire, pool.release),
            "lock": lambda: one_way(lock.acquire, lambda _: lock.release()),
        }
        times = alternate(samples, bench.effort)
    yield Row("hand-off / raw lock's", times["pool"], times["lock"], target=compiled("<=", 1.3))


def pinned_and_not(
    bench: Bench, name: str, left: Case, right: Case, pids: list[int], limit: float
) -> Iterator[Row]:
    """*left* / *right* with this thread and the processes *pids* on one processor, and
    left alone: then medians flip between two modes a factor of 2 to 3 apart."""
    cases = {"left": left, "right": right}
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        try:
            for pid in (0, *pids):
                os.sched_setaffinity(pid, {max(allowed)})
            times = interleave(cases, bench.effort)
        finally:
            for pid in (0, *pids):
                os.sched_setaffinity(pid, allowed)
        yield Row(name, times["left"], times["right"], target=compiled("<=", limit))
    times = interleave(cases, bench.effort)
    yield Row(f"{name}, not pinned", times["left"], times["right"])


BACKEND = "SELECT pg_backend_pid()"


def run(bench: Bench) -> Iterator[Row]:
    """What a checkout adds to a statement."""
    with single(bench.postgres.dsn) as pool:

        def each() -> None:
            for _ in range(20):
                pool.run("SELECT 1")

        def held() -> None:
            with pool.connection() as conn:
                for _ in range(20):
                    conn.run("SELECT 1")

        name = "20 x pool.run / run on a held connection"
        yield from pinned_and_not(bench, name, each, held, [pool.run(BACKEND)[0][0]], 1.05)


def statement(bench: Bench) -> Iterator[Row]:
    """A statement with one parameter, on our connection and on pg8000's own."""
    import pg8000.native

    server = bench.postgres
    unix = f"{server.socket_dir}/.s.PGSQL.{server.port}"
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "unix": (server.unix_dsn, {"unix_sock": unix}),
        "TCP": (server.dsn, {"host": server.host, "port": server.port}),
    }
    for way, (dsn, address) in ways.items():
        stock = pg8000.native.Connection(server.user, database=server.dbname, **address)
        with single(dsn) as pool, pool.connection() as conn:
            pids = [conn.run(BACKEND)[0][0], stock.run(BACKEND)[0][0]]
            left, right = (
                lambda run=side.run: run("SELECT :a::int", a=1) for side in (conn, stock)
            )
            name = f"one parameter, {way}: ours / pg8000"
            yield from pinned_and_not(bench, name, left, right, pids, 0.5)
        stock.close()


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
    with filled(10) as few, filled(MANY) as lots:
        times = interleave({"few": visit(few), "lots": visit(lots)}, bench.effort, clock)
    yield Row("checkout, 10 000 idle / 10", times["lots"], times["few"], target=target)
    with filled(1) as calm, filled(1) as busy, calm.connection(), busy.connection():
        few_waiting, lots_waiting = _Queue(calm, 10), _Queue(busy, MANY)
        cases = {"few": few_waiting.come_and_go, "lots": lots_waiting.come_and_go}
        times = interleave(cases, bench.effort, clock)
        few_waiting.clear()
        lots_waiting.clear()
    yield Row("waiting, 10 000 waiters / 10", times["lots"], times["few"], target=target)


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


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def imports(bench: Bench) -> Iterator[Row]:
    """Processor time of an import in a fresh interpreter."""
    name = "import fastpool / import psycopg_pool"

    def sample(module: str) -> float:
        clock = "time.process_time()"
        code = f"import time; began = {clock}; import {module}; print({clock} - began)"
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
        return float(done.stdout)

    if importlib.util.find_spec("psycopg_pool") is None:
        yield Row(name, note=NO_PEER)
        return
    samples = {name: partial(sample, name) for name in ("fastpool", "psycopg_pool")}
    times = alternate(samples, replace(bench.effort, slices=3))
    yield Row(name, times["fastpool"], times["psycopg_pool"], target=("<=", 1.0))


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "checkout": checkout,
    "socket": socket_check,
    "fairness": fairness,
    "zero-hold": zero_hold,
    "computing": computing,
    "handoff": handoff,
    "run": run,
    "statement": statement,
    "many": many,
    "memory": memory,
    "import": imports,
}
