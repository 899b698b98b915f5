"""What the dialling threads sleep on: no call is lost, and no sleep lasts too long."""

from __future__ import annotations

import _thread
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from pool.kit import PATIENCE, Caller, eventually

from fastpool._opener import Calls

Spawn = Callable[[Callable[[], Any]], Caller]


def test_a_call_that_was_made_before() -> None:
    """Nobody sleeps while there is one."""
    calls = Calls()
    calls.make()
    calls.make()
    assert (len(calls), calls.take(None), calls.take(None), len(calls)) == (2, True, True, 0)


def test_no_call() -> None:
    """A sleep ends when its time is over, however short it is."""
    calls = Calls()
    for seconds in (0.0, 1e-9, 0.001):
        calls.make()
        assert calls.take(seconds)
        assert not calls.take(seconds)
        assert not calls._asleep


def test_no_more_than_asked_for() -> None:
    """A bound on calls holds, and whoever sleeps is woken all the same."""
    calls = Calls()
    for _ in range(3):
        calls.make(2)
    assert len(calls) == 2


def test_all_who_sleep(spawn: Spawn) -> None:
    """Several calls that come at once wake as many."""
    calls = Calls()
    callers = [spawn(lambda: calls.take(PATIENCE)) for _ in range(3)]
    eventually(lambda: len(calls._asleep) == 3)
    for _ in callers:
        calls.make()
    assert [caller.result() for caller in callers] == [True] * 3


@pytest.mark.parametrize("struck", [0, 1, 2])
def test_an_interrupt_in_a_call(spawn: Spawn, struck: int) -> None:
    """Whether it strikes before, after or in the middle of a call, the next one wakes all
    for whom there is one."""
    calls = Calls()
    callers = [spawn(lambda: calls.take(PATIENCE)) for _ in range(2)]
    eventually(lambda: len(calls._asleep) == 2)
    if struck > 0:
        calls._made.append(None)  # and nobody was told
    if struck > 1:
        calls._asleep[0].release()  # and that one has not run yet
    calls.make(2)
    calls.make(2)
    assert [caller.result() for caller in callers] == [True] * 2


def test_an_interrupt_of_any_kind() -> None:
    """One that looks like an error that a call might have met reaches its thread."""

    class Injector:
        def __init__(self, point: int, error: type[BaseException]) -> None:
            self.left, self.error, self.struck = point, error, False

        def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
            if event == "c_return" and arg is not sys.setprofile:
                self.left -= 1
                if self.left < 0 and not self.struck:
                    self.struck = True
                    raise self.error

    for error in (RuntimeError, KeyboardInterrupt):
        for point in range(100):
            calls = Calls()
            lock = _thread.allocate_lock()
            lock.acquire()
            calls._asleep.append(lock)
            injector, raised = Injector(point, error), False
            sys.setprofile(injector)
            try:
                calls.make()
            except error:
                raised = True
            finally:
                sys.setprofile(None)
            assert raised is injector.struck
            if not raised:
                break
        assert point > 1
        assert not lock.locked()


def test_who_is_woken_wakes_the_next(spawn: Spawn) -> None:
    """One is told of two calls; the other learns of its own from that one."""
    calls = Calls()
    callers = [spawn(lambda: calls.take(3 * PATIENCE)) for _ in range(2)]
    eventually(lambda: len(calls._asleep) == 2)
    calls._made.append(None)
    calls.make()
    try:
        eventually(lambda: len(calls) == 0)
    finally:
        calls.make()  # who still sleeps need not
    assert [caller.result() for caller in callers] == [True] * 2
