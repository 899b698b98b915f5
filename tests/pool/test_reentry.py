"""The whole pool used while its own thread is inside it: signal handlers, finalizers."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from pool.kit import eventually, knocking
from support import need

from fastpool import ConnectionReleased, Pool, PoolClosed, PoolError, TransactionAborted
from fastpool.testing import StubConnection, StubDriver

Make = Callable[..., Pool[StubConnection]]

SECONDS = float(os.environ.get("STRESS_SECONDS", "1.0")) / 2


def steps_of(pool: Pool[StubConnection]) -> list[Callable[[], object]]:
    """All that one does with a pool, none of it for long."""

    def block() -> None:
        with pool.connection(0.001) as conn:
            assert conn.run("SELECT 1") == "SELECT 1"

    def transaction() -> None:
        with pool.transaction(0.001) as conn:
            conn.run("SELECT 1")

    def left_open() -> None:
        lease = pool.acquire(0.001)
        lease.run("BEGIN")
        lease.release()

    def dropped() -> None:
        pool.invalidate(pool.acquire(0))

    def try_it() -> None:
        lease = pool.try_acquire()
        if lease is not None:
            pool.release(lease)

    def resize() -> None:
        pool.resize(max_size=3)

    return [
        block,
        try_it,
        transaction,
        pool.stats,
        left_open,
        pool.holders,
        dropped,
        block,
        resize,
        pool.drain,
        lambda: pool.wait(0.001),
    ]


class Visitor:
    """Makes the steps one after the other, also from inside of one of them."""

    def __init__(self, pool: Pool[StubConnection]) -> None:
        self._steps = itertools.cycle(steps_of(pool))
        self._inside = False
        self.visits = 0

    def step(self) -> None:
        # Taken away by the close of a block that a visitor interrupted: it says so.
        with contextlib.suppress(PoolError, TransactionAborted):
            next(self._steps)()

    def visit(self) -> None:
        """One step, unless this is inside of such a visit."""
        if not self._inside:
            self._inside = True
            try:
                self.visits += 1
                self.step()
            finally:
                self._inside = False


@pytest.fixture
def pool(make: Make) -> Pool[StubConnection]:
    """Two connections, and more callers than that in one thread."""
    return make(driver=StubDriver(), max_size=2, min_size=1, timeout=0.001)


def test_signal_handlers(pool: Pool[StubConnection]) -> None:
    """A handler that does anything with the pool disturbs nothing of its thread's own use."""
    need(hasattr(signal, "setitimer"), "setitimer()")
    guest, host = Visitor(pool), Visitor(pool)

    def handle(number: int, frame: FrameType | None) -> None:
        guest.visit()

    before = signal.signal(signal.SIGALRM, handle)
    stop = time.monotonic() + SECONDS
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        while time.monotonic() < stop:
            host.step()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert guest.visits > 20
    whole(pool)


def test_finalizers(pool: Pool[StubConnection]) -> None:
    """Garbage that does anything with the pool as it dies disturbs nobody."""
    guest, host = Visitor(pool), Visitor(pool)

    class Mortal:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            if threading.current_thread() is threading.main_thread():
                guest.visit()

    with collecting_often():
        stop = time.monotonic() + SECONDS
        while time.monotonic() < stop:
            Mortal()
            host.step()
    assert guest.visits > 20
    whole(pool)


@contextlib.contextmanager
def collecting_often() -> Iterator[None]:
    """The collector runs at about every allocation."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(1, 1, 1)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@pytest.mark.parametrize("released", [False, True])
def test_a_handler_that_closes_the_pool(make: Make, released: bool) -> None:
    """A pool may be closed while its thread waits for it, or has just been served."""
    pool = make(max_size=1)
    lease = pool.acquire()

    def close() -> None:
        if released:
            lease.release()
        pool.close(0.01)

    # Released first, the connection was the waiter's, and then taken away.
    told = pytest.raises(ConnectionReleased if released else PoolClosed)
    with knocking(lambda: pool.stats().waiting == 1, close), told:
        pool.run("SELECT 1")
    lease.release()
    assert pool.stats().size == pool.stats().waiting == 0


def whole(pool: Pool[StubConnection]) -> None:
    """Nothing is held, nobody waits, and the pool serves."""
    gc.collect()
    eventually(lambda: pool.stats().in_use == pool.stats().checking == 0)
    assert pool.stats().waiting == 0
    assert pool.holders() == []
    with pool.connection(10.0) as conn:
        assert conn.run("SELECT 2") == "SELECT 2"
