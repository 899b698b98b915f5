"""Giving back: clean, with work to do, for good; once, twice, by the wrong one."""

from __future__ import annotations

import gc
import threading
import weakref
from types import ModuleType
from typing import Any

import pytest
from core.conftest import MakeRig
from core.kit import STATUS, Clock, Refusal

DIRTY = 2
TRANSACTION = 4


def test_second_release_does_nothing(make: MakeRig) -> None:
    """A connection given back and handed to another is not taken from him."""
    rig = make(1)
    first = rig.acquire()
    first.release()
    second = rig.acquire()
    first.release()
    first.close()
    rig.checkout.release(first)
    assert second.name == 0
    assert rig.core.leased == 1
    second.release()
    assert rig.core.idle == 1


def test_release_by_another_thread(make: MakeRig) -> None:
    """Any thread may give a lease back."""
    rig = make(1)
    lease = rig.acquire()
    thread = threading.Thread(target=lease.release)
    thread.start()
    thread.join()
    rig.check_whole()


def test_foreign_pool(make: MakeRig) -> None:
    """A pool takes back its own leases only, and nothing else."""
    one, other = make(1), make(1)
    lease = one.acquire()
    with pytest.raises(ValueError, match="another pool"):
        other.checkout.release(lease)
    with pytest.raises(ValueError, match="another pool"):
        lease._entry_of(other.core)
    with pytest.raises(TypeError, match="expected what acquire"):
        one.checkout.release(lease.driver_connection)
    assert (one.core.leased, other.core.leased) == (1, 0)
    one.checkout.release(lease)
    one.check_whole()


def test_unsettled_is_settled(make: MakeRig) -> None:
    """What comes back with a flag set is settled by the house, then kept."""
    rig = make(1)
    seen = []

    def settle(entry: Any) -> None:
        seen.append((entry.status, entry.holder < 0, entry.state.serial & 1))
        entry.state.leave(0)

    rig.house.on_settle = settle
    lease = rig.acquire()
    rig.entry_of(lease).state.leave(TRANSACTION)
    lease.release()
    assert seen == [(STATUS["held"], True, 0)]
    rig.check_whole()
    assert rig.core.idle == 1


@pytest.mark.parametrize("cure", ["reason", "not done", "raise"])
def test_unsettled_for_good(make: MakeRig, cure: str) -> None:
    """What cannot be settled is closed, and an exception reaches the releaser."""
    rig = make(1)

    def settle(entry: Any) -> str | None:
        if cure == "raise":
            raise KeyboardInterrupt
        return "reset failed" if cure == "reason" else None

    rig.house.on_settle = settle
    lease = rig.acquire()
    rig.entry_of(lease).state.leave(DIRTY)
    if cure == "raise":
        with pytest.raises(KeyboardInterrupt):
            lease.release()
    else:
        lease.release()
    (entry,) = rig.core.closing
    assert entry.reason == {"reason": "reset failed", "not done": "broken", "raise": "error"}[cure]
    lease.release()
    rig.check_whole()


def test_settles_each_time(make: MakeRig) -> None:
    """With settles on the house sees each return, but not that of a pool's own thread."""
    rig = make(1, settles=True)
    assert rig.house.calls == []
    rig.acquire().release()
    assert rig.house.calls == ["settle"]


def test_idle_since_its_return(make: MakeRig) -> None:
    """The time it is idle begins with the return, also when that took some doing."""
    clock = Clock()
    rig = make(1, clock, settles=True)
    lease = rig.acquire()
    clock.now += 100
    lease.release()
    (entry,) = rig.core.idle_entries()
    assert entry.since == clock.now


def test_lease_is_dead_while_settled(make: MakeRig) -> None:
    """A second release, while the first one still settles, does nothing."""
    rig = make(1, settles=True)
    lease = rig.acquire()
    rig.house.on_settle = lambda entry: lease.release()
    lease.release()
    assert rig.house.calls == ["settle"]
    rig.check_whole()


@pytest.mark.parametrize("reason", ["drained", "max_lifetime", "max_uses", "max_idle"])
def test_not_kept(make: MakeRig, reason: str) -> None:
    """A connection that is old, over age, worn or surplus is closed at its return."""
    clock = Clock()
    rig = make(2, clock, max_uses=1 if reason == "max_uses" else -1)
    if reason == "max_idle":
        rig.core.configure(max_size=2, max_idle=1)
    lease = rig.acquire()
    if reason == "drained":
        rig.core.drain()
        rig.bury()
    elif reason == "max_lifetime":
        rig.core.limit_age(rig.entry_of(lease), clock.now + 5)
        clock.now += 5
    lease.release()
    assert [entry.reason for entry in rig.core.closing] == [reason]
    assert rig.house.calls[-1] == "disposed"
    rig.check_whole()


def test_block_commits(make: MakeRig) -> None:
    """A block that ends well with its transaction open is finished, then given back."""
    rig = make(1)
    order: list[str] = []
    rig.house.on_finish = lambda entry: (order.append("finish"), entry.state.leave(0))
    with rig.connection() as conn:
        rig.entry_of(conn).state.leave(TRANSACTION)
    assert rig.house.calls == ["finish"]
    rig.check_whole()


def test_block_that_raises_does_not_commit(make: MakeRig) -> None:
    """A block that raises is settled, not finished."""
    rig = make(1)
    rig.house.on_settle = lambda entry: entry.state.leave(0)

    def block() -> None:
        with rig.connection() as conn:
            rig.entry_of(conn).state.leave(TRANSACTION)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert rig.house.calls == ["settle"]
    rig.check_whole()


def test_acquired_block_does_not_commit(make: MakeRig) -> None:
    """A lease from acquire() only releases, also at the end of a block."""
    rig = make(1)
    rig.house.on_settle = lambda entry: entry.state.leave(0)
    with rig.acquire() as conn:
        rig.entry_of(conn).state.leave(TRANSACTION)
    assert rig.house.calls == ["settle"]


def test_commit_that_fails(make: MakeRig) -> None:
    """When finishing raises, the connection goes back all the same."""
    rig = make(1)

    def finish(entry: Any) -> None:
        entry.state.leave(0)
        raise OSError("commit")

    rig.house.on_finish = finish
    with pytest.raises(OSError, match="commit"), rig.connection() as conn:
        rig.entry_of(conn).state.leave(TRANSACTION)
    rig.check_whole()
    assert rig.core.idle == 1


def test_block_of_a_released_lease(make: MakeRig) -> None:
    """A block whose connection was given back inside it commits nobody's transaction."""
    rig = make(1)
    with rig.connection() as conn:
        conn.release()
        other = rig.acquire()
        rig.entry_of(other).state.leave(TRANSACTION)
    assert rig.house.calls == []
    assert rig.core.leased == 1
    rig.entry_of(other).state.leave(0)
    other.release()


def test_lost_lease_is_taken_back(make: MakeRig) -> None:
    """A lease dropped without release goes back, and the house is told where it came from."""
    rig = make(1)
    lease = rig.acquire()
    site = rig.entry_of(lease).site()
    del lease
    gc.collect()
    assert rig.house.calls == ["lost"]
    assert rig.house.sites == [site]
    rig.check_whole()
    assert rig.core.idle == 1


def test_lost_lease_that_is_not_clean(make: MakeRig) -> None:
    """A dropped lease with anything open is closed: a finalizer does no I/O."""
    rig = make(1)
    lease = rig.acquire()
    rig.entry_of(lease).state.leave(TRANSACTION)
    del lease
    gc.collect()
    assert [entry.reason for entry in rig.core.closing] == ["lost"]
    assert rig.house.calls == ["disposed", "lost"]
    rig.check_whole()


def test_lost_lease_serves_who_waits(make: MakeRig) -> None:
    """A dropped lease goes to the first in line, and it is the dropper who is named."""
    rig = make(1)
    lease = rig.acquire()
    site = rig.entry_of(lease).site()
    somebody = rig.waiter()
    somebody.join()
    del lease
    gc.collect()
    assert somebody.status == "assigned"
    assert rig.house.sites == [site]
    somebody.drop()
    rig.check_whole()


def test_lost_in_a_cycle(make: MakeRig) -> None:
    """A lease held by a cycle of the user's comes back when the cycle is collected."""
    rig = make(1)
    cycle: list[Any] = [rig.acquire()]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert rig.house.calls == ["lost"]
    rig.check_whole()


def test_clean_lease_tells_nobody(make: MakeRig) -> None:
    """The end of a lease that was given back, or that never held any, is silent."""
    rig = make(1)
    lease = rig.acquire()
    lease.release()
    unused = rig.connection()
    with rig.connection(), pytest.raises(Refusal):
        rig.acquire(timeout=0)
    before = list(rig.house.calls)
    del lease, unused
    gc.collect()
    assert rig.house.calls == before
    assert rig.core.snapshot()["waits"] == 0


def test_lease_cannot_be_made(core: ModuleType) -> None:
    """Only a pool makes leases, and the failed attempt leaves no noise behind."""
    with pytest.raises(TypeError, match="made by a pool"):
        core.Lease()
    gc.collect()


def test_dead_ones_are_forgotten(make: MakeRig, core: ModuleType) -> None:
    """A lease that is never given up keeps alive none of those that come and go."""
    rig = make(2, max_size=3)
    held = rig.acquire()
    gone = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            # The newer one is idle beside the older as that is closed.
            (old,) = rig.core.idle_entries()
            rig.dial()
            gone.append(weakref.ref(old.conn))
            rig.core.retire(old, 0, "test")
            del old
            rig.bury()
        assert [ref() for ref in gone] == [None] * 10
        entries = [o for o in gc.get_objects() if type(o) is core.Entry and o.reason == "test"]
        assert len(entries) <= 2
    finally:
        gc.enable()
    held.release()
