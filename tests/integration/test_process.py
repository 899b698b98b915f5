"""What surrounds a pool: the end of the interpreter, and greenlets for threads."""

from __future__ import annotations

import importlib.util
import time

import pytest
from support import need, run_script

from fastpool.testing import FaultProxy, LocalPostgres

PREPARE = """
import os, sys, threading, time
import fastpool

pool = fastpool.Pool(os.environ["TEST_DSN"], min_size=2, max_size=3, name="ends")
pool.open(wait=True)

def until(condition):
    while not condition():
        time.sleep(0.001)

def daemon(work):
    threading.Thread(target=work, daemon=True).start()
"""

ENDS = {
    "idle": "",
    "held": """
lease = pool.acquire()
lease.run("BEGIN")
""",
    "in a block": """
def forever():
    with pool.connection() as conn:
        conn.run("BEGIN")
        time.sleep(60)

daemon(forever)
until(lambda: pool.stats().in_use == 1)
""",
    "in acquire": """
held = [pool.acquire() for _ in range(3)]
daemon(pool.acquire)
until(lambda: pool.stats().waiting == 1)
""",
    "in a query": """
daemon(lambda: pool.run("SELECT pg_sleep(:n::float8)", n=30))
until(lambda: pool.stats().in_use == 1)
""",
    "at work": """
def work():
    while True:
        pool.run("SELECT 1")

for _ in range(4):
    daemon(work)
until(lambda: pool.stats().acquires > 100)
""",
    "while it dials": """
import socket
mute = socket.create_server(("127.0.0.1", 0))
other = fastpool.Pool(f"postgresql://u@127.0.0.1:{mute.getsockname()[1]}/d", min_size=1)
other.open()
until(lambda: other.stats().dials == 1)
""",
    "with a listener": """
listener = fastpool.listen(pool, "jobs")
daemon(listener.get)
until(lambda: listener._conn is not None)
""",
    "closed at exit": """
import atexit
atexit.register(pool.close)
held = pool.acquire()
held.release()
""",
    "used in a finalizer": """
class Late:
    def __del__(self):
        try:
            pool.acquire(timeout=0.01).release()
        except fastpool.PoolError:
            pass

late = Late()
late.me = late
""",
}


@pytest.mark.parametrize("end", ENDS)
def test_interpreter_exit(server: LocalPostgres, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """A program that just ends, whatever its pool is doing, does so silently and at once."""
    monkeypatch.setenv("TEST_DSN", f"{server.dsn}?sslmode=disable")
    printed = run_script(f"{PREPARE}{ENDS[end]}\nprint(time.monotonic(), flush=True)")
    assert time.monotonic() - float(printed) < 1.0


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import logging, os, threading, time
import gevent
import fastpool
from fastpool import _runtime

logging.disable()  # over TLS: that the server does not prove who it is

assert not _runtime.threads_are_told_apart()
pool = fastpool.Pool(os.environ["TEST_DSN"], min_size=1, max_size=4, name="greenlets")
answers, pids, ticks, waited = [], set(), [], 0

def work(number):
    for n in range(4):
        with pool.connection() as conn:
            [[pid, answer, _]] = conn.run(
                "SELECT pg_backend_pid(), :n::int, pg_sleep(0.002)::text", n=number * 100 + n)
            pids.add(pid)
            assert answer == number * 100 + n
            answers.append(answer)

def tick():
    while True:
        ticks.append(time.monotonic())
        gevent.sleep(0.005)

with pool:
    ticking = gevent.spawn(tick)
    greenlets = [gevent.spawn(work, number) for number in range(40)]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(40, 50)]
    for thread in threads:
        thread.start()
    gevent.joinall(greenlets, raise_error=True)
    for thread in threads:
        thread.join()
    assert sorted(answers) == [m * 100 + n for m in range(50) for n in range(4)]
    assert 1 < len(pids) <= 4, pids
    stats = pool.stats()
    assert stats.waits > 20 and stats.waiting == 0, stats
    assert stats.created <= 4

    # Who waits, waits alone.
    held = [pool.acquire() for _ in range(4)]
    ticks.clear()
    began = time.monotonic()
    try:
        pool.acquire(timeout=0.3)
    except fastpool.PoolTimeout:
        pass
    else:
        raise AssertionError("a fifth connection")
    took = time.monotonic() - began
    assert 0.3 <= took < 1.0, took
    assert len(ticks) > 15, ticks
    waiter = gevent.spawn(pool.run, "SELECT 7")
    gevent.sleep(0.01)
    assert pool.stats().waiting == 1
    for lease in held:
        lease.release()
    assert waiter.get(timeout=5) == [[7]]

    # A query that the server ends is seen to be dead, and a deadline is one.
    with pool.connection() as conn:
        try:
            with fastpool.deadline(0.2):
                conn.run("SELECT pg_sleep(10)")
        except fastpool.DeadlineExceeded as error:
            assert error.outcome == "cancelled"
    with pool.connection() as conn:
        [[pid]] = conn.run("SELECT pg_backend_pid()")
    pool.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
             "WHERE application_name = 'greenlets' AND pid <> pg_backend_pid()")
    gevent.sleep(0.05)
    for n in range(8):
        assert pool.run("SELECT :n::int", n=n) == [[n]]
    ticking.kill()
    began = time.monotonic()
assert time.monotonic() - began < 2.0
assert pool.stats().size == 0
print("well")
"""


@pytest.mark.parametrize(
    "impl", [pytest.param("c", marks=pytest.mark.c_extension), "python"], ids=["c", "python"]
)
@pytest.mark.parametrize("way", ["disable", "require"])
def test_greenlets(
    server: LocalPostgres,
    tls_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    impl: str,
    way: str,
) -> None:
    """Where gevent stands in for threads, a pool serves greenlets as it serves threads:
    right answers, in turn, and who waits blocks nobody else."""
    need(importlib.util.find_spec("gevent"), "gevent")
    need(impl == "python" or importlib.util.find_spec("fastpool._core"), "the compiled core")
    dsn = server.dsn if way == "disable" else tls_proxy.dsn
    monkeypatch.setenv("TEST_DSN", f"{dsn}?sslmode={way}")
    monkeypatch.setenv("FASTPOOL_IMPL", impl)
    assert run_script(GREENLETS) == "well\n"
