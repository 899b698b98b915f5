"""What the core does for a host in trouble: a ceiling, suspicion, age, and late waiters."""

from __future__ import annotations

from core.conftest import MakeRig
from core.kit import Clock, Rig


def wait(rig: Rig, seconds: float) -> None:
    """Somebody waits for so long at most."""
    now = rig.core.now()
    waiter = rig.module.Waiter(1 << 40, 0, 0, None, -1, now, now + seconds, bool)
    assert rig.core._join(waiter, now, False, False) == 0


def dials(rig: Rig) -> int:
    """Begin all that are wanted; returns how many."""
    count = 0
    while rig.core.begin_dial() is not None:
        count += 1
    return count


def test_no_dial_begins_at_the_ceiling(make: MakeRig) -> None:
    """A server without room is asked for no more than is established, until regrow()."""
    rig = make(3, max_size=9, clock=Clock())
    rig.core.shrink()
    leases = [rig.acquire() for _ in range(3)]
    wait(rig, 60.0)
    assert (rig.core.ceiling, rig.core.deficit(), dials(rig)) == (3, 0, 0)
    rig.core.regrow()
    assert (rig.core.ceiling, rig.core.deficit(), dials(rig)) == (9, 1, 1)
    rig.check()
    leases[0].release()


def test_a_returned_connection_is_kept_at_the_ceiling(make: MakeRig) -> None:
    """The ceiling is about dials: nobody loses a connection to it."""
    rig = make(3, max_size=3)
    leases = [rig.acquire() for _ in range(3)]
    rig.core.shrink()
    for lease in leases:
        lease.release()
    rig.check()
    assert rig.core.idle == 3


def test_the_ceiling_leaves_room_for_one(make: MakeRig) -> None:
    """With nothing established one dial at a time goes on; and never above max_size."""
    rig = make(max_size=9, min_size=5, clock=Clock())
    rig.core.shrink()
    assert (rig.core.ceiling, dials(rig)) == (1, 1)
    full = make(2, max_size=2)
    full.core.configure(max_size=1)
    full.core.shrink()
    assert full.core.ceiling == 1


def test_new_settings_lift_the_ceiling(make: MakeRig) -> None:
    """What a reconfiguration allows is tried."""
    rig = make(2, max_size=9)
    rig.core.shrink()
    rig.core.configure(max_size=5)
    assert rig.core.ceiling == 5


def test_a_suspect_is_looked_at(make: MakeRig) -> None:
    """Once, at the next hand-out; one that is out is left to its holder."""
    rig = make(2)
    held = rig.acquire()
    for entry in list(rig.core.entries):
        rig.core.suspect(entry)
    rig.house.calls.clear()
    rig.acquire().release()
    assert rig.house.calls.count("admit") == 1
    rig.acquire().release()
    held.release()
    rig.acquire().release()
    assert rig.house.calls.count("admit") == 1


def test_an_outdated_entry_is_retired(make: MakeRig) -> None:
    """When it comes back; idle ones are looked at before they are handed out."""
    rig = make(2, max_idle=9)
    lease = rig.acquire()
    for entry in list(rig.core.entries):
        rig.core.outdate(entry)
    lease.release()
    assert [entry.reason for entry in rig.core.closing] == ["drained"]
    rig.house.on_admit = lambda entry: "drained" if entry.generation < 0 else None
    assert rig.try_acquire() is None
    rig.bury()
    rig.check_serves()


def test_no_dial_for_who_has_no_time(make: MakeRig) -> None:
    """Those who leave before a dial can end are not dialled for; others are."""
    clock = Clock()
    rig = make(max_size=9, clock=clock)
    wait(rig, 5.0)
    wait(rig, 5.0)
    wait(rig, 60.0)
    clock.now += 4.9995
    assert dials(rig) == 1


def test_one_dial_for_all_who_come_without_time(make: MakeRig) -> None:
    """They count as one who would not wait: a later caller finds what it left."""
    rig = make(max_size=9, clock=Clock())
    for _ in range(5):
        wait(rig, 0.0005)
    assert dials(rig) == 1
