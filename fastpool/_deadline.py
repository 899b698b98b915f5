"""A limit for everything in a block, and in what the block calls.

Such a limit is a time on ``time.monotonic()`` in a context variable: each thread,
and each asyncio task, has its own. It is looked up where somebody waits and where
bytes are sent, so it costs nothing where neither happens.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar, Token
from typing import Any

from . import errors

__all__ = ["current", "deadline", "lifted"]

_current: ContextVar[float] = ContextVar("fastpool_deadline", default=math.inf)

current = _current.get
"""The deadline in force here, on ``time.monotonic()``; ``math.inf`` for none."""


class deadline(contextlib.ContextDecorator):
    """Everything in the block is over *seconds* after it began, or raises.

    ::

        with fastpool.deadline(1.0):
            order = pool.run("SELECT ...")  # waiting, connecting, querying: all of it
            charge(order)  # and what it does with any pool of fastpool

    Inner ones can only shorten it. When it passes, a statement that runs is
    cancelled on the server and raises ``DeadlineExceeded``, whose ``outcome`` says
    whether it may have taken effect; nothing new is sent. See
    :meth:`Pool.connection` for what becomes of a transaction. It is no limit for
    code that neither waits for a pool nor talks to a database.

    *seconds*: 0 = already over, ``math.inf`` = no limit. Raises ``ConfigError``.
    Works as a decorator too; one object may be used again, but not by two threads
    at once.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = errors.seconds("deadline", seconds, "already over")
        self._tokens: list[Token[float]] = []

    def __call__(self, function: Any) -> Any:
        kinds = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
        if any(is_kind(function) for is_kind in kinds):
            raise TypeError(
                "a generator or coroutine function does its work after its return: "
                "use the with block inside it"
            )
        return super().__call__(function)

    def _recreate_cm(self) -> deadline:
        return type(self)(self._seconds)  # a decorated function may run in several threads

    def __enter__(self) -> deadline:
        self._tokens.append(_current.set(min(current(), time.monotonic() + self._seconds)))
        return self

    def __exit__(self, *_exc_info: Any) -> None:
        _current.reset(self._tokens.pop())

    @staticmethod
    def remaining() -> float:
        """Seconds until the deadline in force here; ``math.inf`` for none, negative
        when it has passed."""
        return current() - time.monotonic()


@contextlib.contextmanager
def lifted() -> Iterator[None]:
    """No deadline inside: for the pool's own work on a connection between two users."""
    token = _current.set(math.inf)
    try:
        yield
    finally:
        _current.reset(token)
