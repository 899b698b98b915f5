"""What the tests of the pool share: threads whose outcome is kept, patience, a clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from support import PATIENCE, eventually, knocking

from fastpool import Pool
from fastpool.testing import StubConnection

__all__ = [
    "PATIENCE",
    "Caller",
    "Clock",
    "Full",
    "Refused",
    "WrongPassword",
    "eventually",
    "filled",
    "give_back",
    "knocking",
    "leases",
]


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


class Clock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Refused(ConnectionRefusedError):
    """A failure to connect that may pass."""


class Full(Exception):
    """The server has no room."""

    sqlstate = "53300"


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
