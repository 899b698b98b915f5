"""Pools' threads, at a fork and at the interpreter's end.

A child shares its parent's sockets, and has none of its threads. So before a
fork the pools' threads that only wait are ended (Python 3.12 and later warn of a
fork beside other threads); afterwards the parent has them again, and the child
starts with every pool as at birth: connections of its own, threads when they are
needed, and nothing that a thread of the parent may have left locked. What the
parent is doing with its sessions goes on; the child drops its copies of their
sockets without a word.

What is to be done is the pools' own business; here is when, and for whom. A
program that is started (``subprocess``) inherits nothing of a pool.

The interpreter's end leaves the threads alone, but for one thing: a thread that has
been started and not yet run would find its interpreter freed, and crash. So those
are waited for, and none is started any more.
"""

from __future__ import annotations

import _thread
import atexit
import os
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from ._logs import Log

__all__ = ["Forkable", "register", "start_thread"]

_log = Log()

MOMENT = 0.05
"""Seconds that a fork waits for threads: long enough for one that only waits. One
that dials goes on in the parent."""
_LOOK = 0.0002
LAST_MOMENT = 0.5
"""Seconds that the interpreter's end waits for threads to begin."""


class Forkable(Protocol):
    """What is told of a fork."""

    def before_fork(self) -> None:
        """End the threads that only wait, and start none."""

    def after_fork_in_parent(self) -> None:
        """Go on as before."""

    def after_fork_in_child(self) -> None:
        """Begin anew; there is no other thread."""


# Looked at while other threads come and go: never iterated over, only copied.
_forkables: weakref.WeakValueDictionary[int, Forkable] = weakref.WeakValueDictionary()
_threads: set[_Thread] = set()
_ending = False


def register(forkable: Forkable) -> None:
    """Tell *forkable* of forks as long as it lives."""
    _forkables[id(forkable)] = forkable


def start_thread(run: Callable[[], None]) -> None:
    """Start a pool's thread, which a fork may have to wait for.

    Raises ``RuntimeError`` when there is no room for one, or the interpreter ends.
    """
    thread = _Thread()
    for other in list(_threads):
        if other.gone():
            _threads.discard(other)
    try:
        _threads.add(thread)
        if _ending:  # asked after it was added, and added to after that is set
            raise RuntimeError("the interpreter is ending")
        _thread.start_new_thread(thread.run, (run,))
    except BaseException:  # no room, or an interrupt, which may strike after the start
        _threads.discard(thread)
        if thread.ident:
            _threads.add(thread)
        raise


class _Thread:
    """A thread, from before its start until the system has forgotten it."""

    def __init__(self) -> None:
        self.ident = 0
        self._native = 0
        self._over = False

    def run(self, run: Callable[[], None]) -> None:
        self.ident = _thread.get_ident()
        self._native = _thread.get_native_id()
        _threads.add(self)  # if it was taken out after the start, that was before this
        try:
            run()
        finally:
            self._over = True

    def gone(self) -> bool:
        """Its last Python code is run, and, where that can be seen, it has ended.
        Greenlets have the identifier of the thread that asks."""
        native = self._native
        return self._over and (
            native == _thread.get_native_id() or not os.path.exists(f"/proc/self/task/{native}")
        )


def _all() -> list[Forkable]:
    found = [reference() for reference in _forkables.valuerefs()]
    return [forkable for forkable in found if forkable is not None]


def _tell(step: Callable[[Forkable], None]) -> None:
    """Every one is told, whatever goes wrong with another."""
    for forkable in _all():
        try:
            step(forkable)
        except Exception:
            _log.exception("fork", "a fork was not quite prepared for")


def _wait(condition: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(_LOOK)


def _before() -> None:
    _tell(lambda forkable: forkable.before_fork())
    me = _thread.get_ident()  # a hook that forks
    waited_for = [thread for thread in list(_threads) if thread.ident != me]
    _wait(lambda: all(thread.gone() for thread in waited_for), MOMENT)


def _after_in_parent() -> None:
    _tell(lambda forkable: forkable.after_fork_in_parent())


def _after_in_child() -> None:
    _threads.clear()
    _tell(lambda forkable: forkable.after_fork_in_child())


def _at_exit() -> None:
    global _ending
    _ending = True
    _wait(lambda: all(thread.ident for thread in list(_threads)), LAST_MOMENT)


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
