"""What the tests of the pool share: threads whose outcome is kept, patience, a clock."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from support import need

from fastpool import Pool
from fastpool.testing import StubConnection

__all__ = [
    "PATIENCE",
    "Caller",
    "Clock",
    "Refused",
    "WrongPassword",
    "eventually",
    "filled",
    "give_back",
    "knocking",
    "leases",
]

PATIENCE = 10.0
"""Seconds for what must happen, and does so at once on an idle machine."""


def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Wait until *condition* holds; fail after ``PATIENCE``."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what or condition}"
        time.sleep(0.001)


class Caller:
    """A thread that makes one call; its outcome is kept."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._value: Any = None
        self.error: BaseException | None = None
        self.began = time.monotonic()
        self.took = 0.0
        """Seconds, once it has ended."""
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self.error = error
        self.took = time.monotonic() - self.began

    @property
    def ended(self) -> bool:
        return not self.thread.is_alive()

    def join(self) -> None:
        """Wait for its end, whatever that is."""
        self.thread.join(PATIENCE)
        assert self.ended, "the call never returned"

    def result(self) -> Any:
        """What the call returned, or raised."""
        self.join()
        if self.error is not None:
            raise self.error
        return self._value


@contextlib.contextmanager
def knocking(when: Callable[[], object], work: Callable[[], object]) -> Iterator[None]:
    """In the block, once *when* holds, *work* is done in a signal handler of this thread.

    A signal that comes just before the thread falls asleep does not wake it (CPython's
    locks do not look again), so it is sent until the handler was there.
    """
    need(hasattr(signal, "pthread_kill"), "pthread_kill()")
    handled = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if not handled.is_set():
            handled.set()
            work()

    def knock() -> None:
        eventually(when)
        while not handled.is_set():
            signal.pthread_kill(sleeper, signal.SIGUSR1)
            time.sleep(0.01)

    sleeper = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=knock)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)
        signal.signal(signal.SIGUSR1, before)


class Clock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Refused(ConnectionRefusedError):
    """A failure to connect that may pass."""


class WrongPassword(Exception):
    """A failure to connect that will not pass by itself."""

    permanent = True
    sqlstate = "28P01"


def filled(pool: Pool[Any]) -> None:
    """Open *pool* and wait until its threads have nothing left to do."""
    pool.open(wait=True)
    keeper = pool._house.keeper
    if pool.config.min_size:

        def looked() -> bool:
            keeper.tend()
            return keeper._asked

        eventually(looked, "the keeper's first look")
    eventually(lambda: pool.stats().idle == pool.config.min_size, "filled")


def leases(pool: Pool[StubConnection], count: int) -> list[Any]:
    """*count* connections, held."""
    return [pool.acquire(PATIENCE) for _ in range(count)]


def give_back(held: list[Any]) -> None:
    for lease in held:
        lease.release()
