"""What C gives the compiled core, for the interpreted one.

On CPython from 3.11 on, where there is a GIL, a straight-line section (no call, no
loop) cannot be interrupted: the interpreter looks for signals, other threads and a
due garbage collection only at calls and backward jumps. So :func:`section` costs
nothing there. Elsewhere it takes the core's lock, re-entrant because a finalizer may
come to the core while its own thread is inside. CPython 3.10 looks at every jump that
is taken: a section still cannot be broken off in the middle, since it changes nothing
before its last jump.
"""

from __future__ import annotations

import _thread
import functools
import itertools
import select
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import BuiltinFunctionType, FrameType
from typing import Any, TypeVar

__all__ = [
    "Mutexed",
    "caller",
    "coarse",
    "ident",
    "lives",
    "monotonic",
    "nap",
    "poll",
    "section",
    "site",
    "threadno",
    "threads_are_told_apart",
    "token",
]

F = TypeVar("F", bound=Callable[..., Any])

monotonic = time.monotonic
coarse = time.monotonic
ident = threading.get_ident
token = id
caller = sys._getframe

_ATOMIC = (
    sys.implementation.name == "cpython"
    and sys.version_info >= (3, 11)
    and getattr(sys, "_is_gil_enabled", lambda: True)()
)
_EVENTS = getattr(select, "POLLIN", 0) | getattr(select, "POLLRDHUP", 0)


class _Life:
    """Ends with its thread."""


_numbers = itertools.count(1)
_living: weakref.WeakValueDictionary[int, _Life] = weakref.WeakValueDictionary()


class _Number(threading.local):
    """One for each thread."""

    def __init__(self) -> None:
        self.own = next(_numbers)
        self.life = _living[self.own] = _Life()


# A number of the calling thread that no later thread gets, unlike its identifier.
threadno = functools.partial(getattr, _Number(), "own")


def lives(number: int) -> bool:
    """Has the thread with that number not ended?"""
    return number in _living


def threads_are_told_apart() -> bool:
    """Is a thread one flow of control? Not where greenlets stand in for threads
    (gevent, eventlet): while one of them waits, others run under its identifier."""
    return isinstance(_thread.allocate_lock, BuiltinFunctionType)


def poll(fd: int) -> int:
    """What the kernel knows of this socket now; 0 = alive and silent."""
    if not _EVENTS:
        return 0
    poller = select.poll()
    poller.register(fd, _EVENTS)
    ready = poller.poll(0)
    return ready[0][1] if ready else 0


def nap() -> None:
    """Give the processor to the thread that was just woken."""
    time.sleep(1e-9)


def site(skip: object, also: object, frame: FrameType | None) -> Any:
    """The first frame from *frame* up whose globals are neither *skip* nor *also*, or
    ``None``."""
    while frame is not None and (frame.f_globals is skip or frame.f_globals is also):
        frame = frame.f_back
    return frame


class Mutexed:
    """Base of objects with sections: the lock, where one is needed."""

    __slots__ = () if _ATOMIC else ("_mutex",)

    if not _ATOMIC:
        _mutex: threading.RLock

        def __new__(cls, *args: object, **kwargs: object) -> Any:
            self = super().__new__(cls)
            self._mutex = threading.RLock()
            return self

    def share(self, other: Mutexed) -> None:
        """Sections of both, from here on, are steps of one."""
        if not _ATOMIC:
            self._mutex = other._mutex

    def unlock(self) -> None:
        """In a forked child: a thread that is not here may have had the lock."""
        if not _ATOMIC:
            self._mutex = threading.RLock()


def section(method: F) -> F:
    """Mark a method whose body is one atomic step."""
    if _ATOMIC:
        return method

    @functools.wraps(method)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._mutex:
            return method(self, *args, **kwargs)

    return locked  # type: ignore[return-value]
