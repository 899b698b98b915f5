"""The interpreted core where there is no GIL: the same, with a lock round each section.

Loaded here on an interpreter that may have one: a pretended lack of it shows that
the locked sections are complete, callable and re-entrant.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
import threading
import time
from types import ModuleType
from typing import Any

import pytest
from core.kit import Caller, Clock, Refusal, Rig
from support import eventually

import fastpool._core_py
import fastpool._runtime


def copy_of(module: ModuleType) -> ModuleType:
    assert module.__spec__ is not None
    assert module.__spec__.loader is not None
    copy = importlib.util.module_from_spec(module.__spec__)
    module.__spec__.loader.exec_module(copy)
    return copy


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The core as it is made without a GIL."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    monkeypatch.setitem(sys.modules, "fastpool._runtime", copy_of(fastpool._runtime))
    return copy_of(fastpool._core_py)


def test_every_section_is_locked(core: ModuleType) -> None:
    """What changes states takes the lock first."""
    rig = Rig(core, 1)
    taken: list[int] = []

    class Spy:
        def __init__(self, lock: Any) -> None:
            self.lock = lock

        def __enter__(self) -> None:
            taken.append(1)
            self.lock.acquire()

        def __exit__(self, *args: object) -> None:
            self.lock.release()

    rig.core._mutex = Spy(rig.core._mutex)
    for step in (
        lambda: rig.acquire().release(),
        rig.core.deficit,
        rig.core.snapshot,
        lambda: rig.core.configure(timeout=1.0, max_size=2),
        lambda: rig.core.refuse(None, 0.0),
        rig.core.drain,
        rig.bury,
        lambda: rig.core.forget(rig.begin()),
        rig.core.shut,
    ):
        taken.clear()
        step()
        assert taken


def test_states_are_locked(core: ModuleType) -> None:
    """Test-and-set of BUSY has the lock of the core: a return looks, and ends the lease,
    in one step with it."""
    rig = Rig(core, 1)
    lease = rig.acquire()
    state = rig.entry_of(lease).state
    with rig.core._mutex:
        thread = threading.Thread(target=state.enter)
        thread.start()
        thread.join(0.05)
        assert state.flags == 0
    thread.join()
    assert state.flags == 1
    state.leave(0)
    lease.release()


def test_threads(core: ModuleType) -> None:
    """Waiting in line, hand-off and timeouts work as with a GIL."""
    rig = Rig(core, 1)
    lease = rig.acquire()
    served: list[object] = []
    callers = [Caller(rig, served, n).queue() for n in range(4)]
    with pytest.raises(Refusal, match="timeout"):
        rig.acquire(timeout=0.01)
    lease.release()
    for n, caller in enumerate(callers):
        eventually(lambda n=n: len(served) > n)
        caller.go()
    assert served == [0, 1, 2, 3]
    rig.check_whole()


def test_reentry(core: ModuleType) -> None:
    """A finalizer that takes a connection while its thread holds the lock does not hang."""
    rig = Rig(core, 2, Clock())
    before = gc.get_threshold()
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

    gc.set_threshold(1, 1, 1)
    try:
        stop = time.monotonic() + 0.2
        while time.monotonic() < stop:
            Greedy()
            with rig.connection():
                rig.try_acquire()
    finally:
        gc.set_threshold(*before)
    assert died > 5
    rig.check_whole()


def test_locks_that_a_fork_has_left_taken(core: ModuleType) -> None:
    """In a forked child nobody waits for a thread that is not there."""
    rig = Rig(core, 2)
    lease = rig.acquire()
    state = rig.entry_of(lease).state
    taken, over = threading.Event(), threading.Event()

    def hold(locks: tuple[Any, Any]) -> None:
        with locks[0], locks[1]:
            taken.set()
            over.wait(30)

    holder = threading.Thread(target=hold, args=((rig.core._mutex, state._mutex),))
    holder.start()
    try:
        assert taken.wait(30)
        rig.core.begin_in_child()
        assert rig.core._mutex.acquire(blocking=False)
        rig.core._mutex.release()
        assert state._mutex.acquire(blocking=False)
        state._mutex.release()
        lease.release()
        rig.check_serves()
    finally:
        over.set()
        holder.join()
