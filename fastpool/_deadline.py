"""A limit for everything in a block, and in what the block calls.

Such a limit is a time on ``time.monotonic()`` in a context variable: each thread,
and each asyncio task, has its own. It is looked up where somebody waits and where
bytes are sent, so it costs nothing where neither happens.

An interrupt (Ctrl-C) may strike at the very beginning or end of a block, and then
nobody resets the variable. So it only refers to the limit, whose life is the block's:
what is left of an interrupted block is no limit for what its thread does next.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
import weakref
from collections.abc import Iterator
from contextvars import ContextVar, Token
from typing import Any, NamedTuple

from . import errors

__all__ = ["current", "deadline", "lifted"]


class _Block:
    """Alive from the begin of a block to its end, however that comes."""

    __slots__ = ("__weakref__",)


class _Limit(NamedTuple):
    """What the variable holds: no limit any more, once the block is over."""

    block: weakref.ref[_Block]
    until: float
    outer: _Limit | None


_current: ContextVar[_Limit | None] = ContextVar("fastpool_deadline", default=None)


def _in_force() -> _Limit | None:
    limit = _current.get()
    while limit is not None and limit.block() is None:
        limit = limit.outer
    return limit


def current() -> float:
    """The deadline in force here, on ``time.monotonic()``; ``math.inf`` for none."""
    limit = _in_force()
    return math.inf if limit is None else limit.until


def _begin(block: _Block, until: float) -> Token[_Limit | None]:
    return _current.set(_Limit(weakref.ref(block), until, _in_force()))


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
        self._blocks: list[tuple[_Block, Token[_Limit | None]]] = []

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
        block = _Block()
        token = _begin(block, min(current(), time.monotonic() + self._seconds))
        self._blocks.append((block, token))
        return self

    def __exit__(self, *_exc_info: Any) -> None:
        _block, token = self._blocks.pop()
        _current.reset(token)

    @staticmethod
    def remaining() -> float:
        """Seconds until the deadline in force here; ``math.inf`` for none, negative
        when it has passed."""
        return current() - time.monotonic()


@contextlib.contextmanager
def lifted() -> Iterator[None]:
    """No deadline inside: for the pool's own work on a connection between two users."""
    block = _Block()
    token = _begin(block, math.inf)
    try:
        yield
    finally:
        _current.reset(token)
