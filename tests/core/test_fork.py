"""A core in a forked child: nothing of the parent's connections, and whole."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from core.conftest import MakeRig
from core.kit import STATUS, Clock, Refusal, Rig
from core.test_states import in_state

from fastpool import ConnectionReleased

ME = threading.get_ident()


def child_of(rig: Rig) -> list[Any]:
    """What a fork does to the core in the child; the connections of the parent."""
    connections: list[Any] = rig.core.begin_in_child()
    rig.check()
    return connections


@pytest.mark.parametrize("state", STATUS)
def test_entries_are_forgotten(make: MakeRig, state: str) -> None:
    """Whatever a connection was doing, its slot is free, and its socket to be dropped."""
    rig = make(max_size=2)
    entry, lease = in_state(rig, state)
    conn = entry.conn
    assert child_of(rig) == ([] if conn is None else [conn])
    assert entry.status == STATUS["closed"]
    assert entry.holder == 0
    assert (rig.core.size, list(rig.core.entries), list(rig.core.closing)) == (0, [], [])
    for step in (rig.core.put, rig.core.put_below, rig.core.bury, rig.core.forget, rig.core.hold):
        step(entry)
    assert rig.core.adopt(entry, conn, -1) is False
    assert rig.core.retire(entry, 1, "late") is False
    if lease is not None:
        lease.release()
    del lease
    rig.check_serves()


def test_leases_are_dead(make: MakeRig) -> None:
    """No comparison finds a lease of the parent's alive, nor what was taken from it."""
    rig = make(2)
    leases = [rig.acquire(), rig.acquire()]
    states = [rig.entry_of(lease).state for lease in leases]
    serials = [state.serial for state in states]
    taken = [lease.run for lease in leases]
    child_of(rig)
    for lease, run in zip(leases, taken, strict=True):
        with pytest.raises(ConnectionReleased):
            run("SELECT 1")
        with pytest.raises(ConnectionReleased):
            lease.run  # noqa: B018
    for state, serial in zip(states, serials, strict=True):
        with pytest.raises(ConnectionReleased):
            state.enter()
        with pytest.raises(ConnectionReleased):
            state.enter(serial)
    del lease, run
    leases.clear()
    taken.clear()
    assert "lost" not in rig.house.calls
    rig.check_serves()


def test_a_block_ends_without_a_word(make: MakeRig) -> None:
    """Leaving a block that the parent entered asks the house for nothing."""
    rig = make(1)
    with rig.connection():
        state = next(iter(rig.core.entries)).state
        state.leave(4)  # a transaction
        child_of(rig)
        rig.house.calls.clear()
    assert rig.house.calls == []
    rig.check_serves()


def test_waiters_of_other_threads_are_gone(make: MakeRig) -> None:
    """Who waits in the thread that forked keeps its place, nobody else is served."""
    rig = make(1)
    lease = rig.acquire()
    woken: list[int] = []
    waiters = []
    for number, thread in enumerate([7, ME, 7, ME, 7]):
        waiters.append(rig.waiter(lambda number=number: woken.append(number), thread))
        waiters[-1].join()
    child_of(rig)
    assert rig.core.waiting == 2
    assert rig.core.waiters() == [waiters[1].waiter, waiters[3].waiter]
    rig.core.configure(max_size=2, max_idle=2)
    rig.dial()
    rig.dial()
    assert woken == [1, 3]
    for waiter in (waiters[1], waiters[3]):
        assert waiter.status == "assigned"
        waiter.leave()
        waiter.drop()
    del lease
    rig.check_serves()


def test_counters_start_at_zero(make: MakeRig) -> None:
    """What the parent did is not counted twice; settings and phase stay."""
    clock = Clock()
    rig = make(1, clock=clock, timeout=3.0, max_size=1)
    for seconds in (0.0, 1.0):
        lease = rig.acquire()
        clock.now += seconds
        lease.release()
    assert sum(rig.core.snapshot()["use_histogram"]) == 2
    lease = rig.acquire()
    with pytest.raises(Refusal):
        rig.acquire(timeout=0.001)
    rig.try_acquire()
    rig.core.refuse(OSError(), 1e18)
    generation = rig.core.generation
    child_of(rig)
    seen = rig.core.snapshot()
    assert seen.pop("histogram") == seen.pop("use_histogram") == (0,) * 40
    assert (seen.pop("min_size"), seen.pop("max_size")) == (0, 1)
    assert set(seen.values()) == {0}
    assert rig.core.deficit() == 0
    assert rig.core.refusal is None
    assert (rig.core.phase, rig.core.timeout) == (1, 3.0)
    assert rig.core.generation > generation
    del lease


@pytest.mark.parametrize("phase", ["new", "closed"])
def test_the_phase_stays(make: MakeRig, phase: str, core: Any) -> None:
    """What was not opened can be, and what was closed cannot."""
    unopened = core.Core()
    if phase == "closed":
        unopened.start()
        unopened.shut()
    unopened.begin_in_child()
    assert unopened.start() is (phase == "new")


def test_a_half_done_step_is_no_obstacle(make: MakeRig) -> None:
    """Rings and gauges are made anew, whatever a thread that is gone has left of them."""
    rig = make(3)
    lease = rig.acquire()
    core = rig.core
    entries = core.idle_entries()
    core.entries.discard(entries[0])  # still in the ring, and counted
    child_of(rig)
    assert core.idle_entries() == []
    del lease
    rig.check_serves()
