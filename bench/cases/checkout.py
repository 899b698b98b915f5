"""What a checkout costs one thread."""

from __future__ import annotations

import contextlib
import ctypes
import select
import struct
import sys
import threading
import time
import timeit
from collections.abc import Iterator
from statistics import median

import fastpool
from fastpool.testing import StubDriver

from ..measure import Case, alternate, interleave
from ..peers import PEERS, Spec, contenders, ours, visit
from ..report import Row, compiled, optimised_build
from ..stage import Bench

__all__ = ["checkout", "scraped", "socket_check"]


def less(values: list[float], *others: list[float]) -> list[float]:
    """*values* less all *others*, round by round."""
    return [first - sum(rest) for first, *rest in zip(values, *others, strict=True)]


def empty() -> None:
    pass


def checkout(bench: Bench) -> Iterator[Row]:
    """What a checkout costs: default settings, each ``with`` in a function called
    afresh, less the call itself."""
    lock = threading.Lock()

    def locked() -> None:
        with lock:
            pass

    with contenders(Spec(4), bare=True) as peers, contextlib.ExitStack() as stack:
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
    for name, values in cost.items():
        bench.record("checkout", pool=name, seconds=median(values))
    mine = cost[fastpool.__impl__]
    limit = 1.25 if optimised_build() else 1.0
    yield Row("checkout / lock", mine, cost["lock"], target=compiled("<=", limit))
    wanted = (25, 35, 12) if sys.version_info < (3, 12) else (20, 25, 10)
    for peer, times_faster in zip(PEERS, wanted, strict=True):
        name = f"{peer} / checkout"
        if peer in peers:
            yield Row(name, cost[peer], mine, target=compiled(">=", times_faster))
        else:
            yield Row(name, note=f"{peer} is not installed")
    name = "interpreted core / DBUtils"
    if "DBUtils" in peers:
        yield Row(name, cost["python"], cost["DBUtils"], target=("<=", 0.8))
    else:
        yield Row(name, note="DBUtils is not installed")
    yield Row("queue.Queue / checkout", cost["queue.Queue"], mine)
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
    with fastpool.Pool(bench.postgres.dsn, driver=driver, max_size=1) as pool:
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


def scraped(bench: Bench) -> Iterator[Row]:
    """Checkouts while another thread reads the metrics every 10 ms, by the wall clock."""
    from fastpool.ops import exposition

    on, over = threading.Event(), threading.Event()
    with fastpool.Pool(driver=StubDriver(), min_size=1, max_size=4) as pool:
        pool.wait()

        def scrape() -> None:
            while not over.wait(0.01):
                if on.is_set():
                    exposition(pool)

        timer = timeit.Timer(visit(pool))
        calls = max(1, round(0.1 / (timer.timeit(1000) / 1000)))

        def watched() -> float:
            on.set()
            try:
                return timer.timeit(calls)
            finally:
                on.clear()

        scraper = threading.Thread(target=scrape)
        scraper.start()
        try:
            samples = {"watched": watched, "alone": lambda: timer.timeit(calls)}
            times = alternate(samples, bench.effort)
        finally:
            over.set()
            scraper.join()
    left, right = ([t / calls for t in times[name]] for name in ("watched", "alone"))
    name = "checkout, metrics read every 10 ms / never"
    yield Row(name, left, right, target=("<=", 1.05))
