"""The core called while its own thread is inside it: finalizers, collections, signals."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
from core.conftest import MakeRig
from core.kit import Refusal, Rig
from support import knocking

SECONDS = float(os.environ.get("STRESS_SECONDS", "1.0")) / 2


@contextlib.contextmanager
def collecting_often() -> Iterator[None]:
    """The collector runs at about every allocation."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()  # for good: tests/conftest.py
    gc.set_threshold(1, 1, 1)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def turn(rig: Rig) -> None:
    """A hit, a miss, a wait in vain."""
    with rig.connection() as conn:
        conn.run("select")
        rig.try_acquire()
    with contextlib.suppress(Refusal):
        rig.acquire(timeout=0.00001).release()


def turn_or_none(rig: Rig) -> None:
    """A hit, if there is one to be had."""
    lease = rig.try_acquire()
    if lease is not None:
        lease.release()


def test_finalizers_that_acquire(make: MakeRig) -> None:
    """Garbage that takes and gives back connections as it dies disturbs nobody."""
    rig = make(2)
    died = 0

    class Greedy:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            nonlocal died
            died += 1
            lease = rig.try_acquire()
            if lease is not None:
                lease.release()

    with collecting_often():
        stop = time.monotonic() + SECONDS
        while time.monotonic() < stop:
            Greedy()
            turn(rig)
            rig.check()
    assert died > 10
    rig.check_serves()


def test_cycles_that_drop_leases(make: MakeRig) -> None:
    """Leases that die in the middle of anything give their connections back."""
    rig = make(3)
    lost = 0
    with collecting_often():
        stop = time.monotonic() + SECONDS
        while time.monotonic() < stop:
            lease = rig.try_acquire()
            if lease is not None:
                cycle: list[Any] = [lease]
                cycle.append(cycle)
                lost += 1
            del lease
            cycle = []
            turn_or_none(rig)
            gc.disable()  # or a lease dies between two looks of the check
            rig.check()
            gc.enable()
    gc.collect()
    assert lost > 10
    assert rig.house.calls.count("lost") == lost
    rig.check_serves()


def test_connections_that_die(make: MakeRig) -> None:
    """A connection whose death takes another one, inside the taking of that one."""
    rig = make(max_size=3, vets=True)
    died = 0

    class Mortal:
        def __del__(self) -> None:
            nonlocal died
            died += 1
            turn_or_none(rig)
            rig.check()

    def dial() -> None:
        entry = rig.begin()
        rig.core.adopt(entry, Mortal(), -1)
        rig.core.put(entry)

    def admit(entry: Any) -> str | None:
        # Out of the pool while the caller still looks at it: he drops it, and the
        # connection with it, as he takes the next.
        if entry.uses > 1:
            rig.core.detach(entry, entry.holder)
            return "detached"
        return None

    for _ in range(50):
        while rig.core.size < 3:
            dial()
        rig.house.on_admit = lambda entry: None
        for lease in [rig.acquire() for _ in range(3)]:
            lease.release()
        rig.house.on_admit = admit
        del lease
        assert rig.try_acquire() is None
        gc.collect()
        rig.check()
    assert died == 150
    rig.check_whole()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer()")
def test_signal_handler_that_acquires(make: MakeRig) -> None:
    """A handler that takes a connection at any moment disturbs the thread it interrupts."""
    rig = make(2)
    handled = 0
    inside = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal handled, inside
        if not inside:
            inside = True
            handled += 1
            turn_or_none(rig)
            with contextlib.suppress(Refusal):
                rig.acquire(timeout=0.00001).release()
            inside = False

    before = signal.signal(signal.SIGALRM, handle)
    stop = time.monotonic() + SECONDS
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        while time.monotonic() < stop:
            turn(rig)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled > 20
    rig.check_serves()


def test_signal_while_waiting(make: MakeRig) -> None:
    """A handler that gives a connection back ends the wait of the thread it interrupted."""
    rig = make(1)
    lease = rig.acquire()
    with knocking(lambda: rig.core.waiting == 1, lease.release), rig.connection() as conn:
        assert conn.name == 0
    rig.check_whole()
