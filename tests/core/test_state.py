"""The state object between driver and core."""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import Any

import pytest
from core.conftest import MakeRig

from fastpool.drivers.base import BUSY, TRANSACTION
from fastpool.errors import ConnectionBusy, ConnectionReleased


def test_enter_and_leave(make: MakeRig) -> None:
    """Entering sets BUSY beside the other flags; leaving replaces them all."""
    rig = make(1)
    lease = rig.acquire()
    state = rig.entry_of(lease).state
    state.leave(TRANSACTION)
    state.enter()
    assert state.flags == BUSY | TRANSACTION
    state.leave(0)
    assert state.flags == 0
    lease.release()


def test_second_call_is_refused(make: MakeRig) -> None:
    """While a call is inside, another gets ConnectionBusy and changes nothing."""
    rig = make(1)
    lease = rig.acquire()
    state = rig.entry_of(lease).state
    state.enter()
    with pytest.raises(ConnectionBusy, match="one thread at a time"):
        state.enter()
    assert state.flags == BUSY
    state.leave(0)
    state.enter()
    state.leave(0)
    lease.release()


def test_not_leased(make: MakeRig, core: ModuleType) -> None:
    """Without a lease nobody enters: before the first, between two, after the last."""
    rig = make(1)
    (entry,) = rig.core.entries
    for _ in range(2):
        with pytest.raises(ConnectionReleased):
            entry.state.enter()
        assert entry.state.flags == 0
        rig.acquire().release()
    rig.core.drain()
    with pytest.raises(ConnectionReleased):
        entry.state.enter()
    with pytest.raises(ConnectionReleased):
        core.State().enter()


def test_serial_of_an_earlier_lease(make: MakeRig) -> None:
    """What was taken from an earlier lease cannot use a later one, also after a hand-off."""
    rig = make(1)
    lease = rig.acquire()
    state = rig.entry_of(lease).state
    first = state.serial
    state.enter(first)
    state.leave(0)
    somebody = rig.waiter()
    somebody.join()
    lease.release()
    assert somebody.status == "assigned"
    with pytest.raises(ConnectionReleased):
        state.enter(first)
    state.enter(state.serial)
    state.leave(0)
    somebody.drop()


def test_serial_grows(make: MakeRig) -> None:
    """The serial is odd while leased, even otherwise, and never the same twice."""
    rig = make(1, settles=True)
    (entry,) = rig.core.entries
    rig.house.on_settle = lambda e: seen.append(e.state.serial)
    seen = [entry.state.serial]
    for _ in range(3):
        lease = rig.acquire()
        seen.append(entry.state.serial)
        assert seen[-1] & 1
        lease.release()
        seen.append(entry.state.serial)
    rig.core.drain()
    seen.append(entry.state.serial)
    assert seen == sorted(set(seen))
    assert [serial & 1 for serial in seen] == [0, *[1, 0, 0] * 3, 0]


def test_grant(make: MakeRig) -> None:
    """A hook may use a connection of the pool's own thread, until that ends."""
    rig = make(1)
    (entry,) = rig.core.entries
    assert rig.core.hold(entry)
    entry.state.grant()
    granted = entry.state.serial
    entry.state.enter(granted)
    entry.state.leave(0)
    entry.state.revoke()
    with pytest.raises(ConnectionReleased):
        entry.state.enter(granted)
    rig.core.put(entry)
    rig.check()


def test_one_of_two_threads_enters(make: MakeRig) -> None:
    """Two threads that enter at once: exactly one is inside, every time."""
    rig = make(1)
    lease = rig.acquire()
    state = rig.entry_of(lease).state
    rounds = 300
    barrier = threading.Barrier(2)
    entered: list[int] = []

    def work(number: int) -> None:
        for _ in range(rounds):
            barrier.wait()
            try:
                state.enter()
            except ConnectionBusy:
                pass
            else:
                entered.append(number)
            barrier.wait()
            if number == 0:
                state.leave(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(entered) == rounds
    lease.release()


def test_release_looks_and_ends_in_one_step(make: MakeRig) -> None:
    """Who enters beside a release is inside before it, and seen, or comes too late."""
    rig = make(1)
    rig.house.on_settle = lambda entry: "in use"

    def use(state: Any, serial: int, barrier: threading.Barrier, outcome: list[str]) -> None:
        barrier.wait()
        try:
            state.enter(serial)
        except ConnectionReleased:
            outcome.append("too late")
        else:
            outcome.append("inside")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            lease = rig.acquire()
            state = rig.entry_of(lease).state
            barrier = threading.Barrier(2)
            outcome: list[str] = []
            thread = threading.Thread(target=use, args=(state, state.serial, barrier, outcome))
            thread.start()
            barrier.wait()
            lease.release()
            thread.join()
            if outcome == ["inside"]:
                assert [entry.reason for entry in rig.core.closing] == ["in use"]
                rig.bury()
                rig.dial()
            else:
                assert rig.core.idle == 1
    finally:
        sys.setswitchinterval(interval)
    rig.check_whole()
