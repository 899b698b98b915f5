"""The states of an entry: the drawing's steps, the counters, and no other step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from core.conftest import MakeRig
from core.kit import STATUS, Clock, Conn, Rig

HOUSE = 1
NOBODY = 0


def in_state(rig: Rig, state: str) -> tuple[Any, Any]:
    """An entry in that state, and the lease that holds it, if one does."""
    entry, lease = rig.begin(), None
    if state == "connecting":
        return entry, None
    rig.core.adopt(entry, Conn(), -1)
    if state == "held":
        return entry, None
    rig.core.put(entry)
    if state == "leased":
        lease = rig.acquire()
    elif state in ("closing", "closed"):
        rig.core.retire(entry, NOBODY, "test")
    if state == "closed":
        rig.bury()
    assert entry.status == STATUS[state]
    return entry, lease


# What takes an entry from one state to the next: (name, step, {from: to}). A state
# that is not named stays as it is. retire() works for the holder it is told.
Step = Callable[[Rig, Any], object]
STEPS: list[tuple[str, Step, dict[str, str]]] = [
    ("adopt", lambda rig, e: rig.core.adopt(e, Conn(), -1), {"connecting": "held"}),
    ("forget", lambda rig, e: rig.core.forget(e), {"connecting": "closed"}),
    ("hold", lambda rig, e: rig.core.hold(e), {"idle": "held"}),
    ("put", lambda rig, e: rig.core.put(e), {"held": "idle"}),
    ("put below", lambda rig, e: rig.core.put_below(e), {"held": "idle"}),
    ("retire idle", lambda rig, e: rig.core.retire(e, NOBODY, "x"), {"idle": "closing"}),
    ("retire held", lambda rig, e: rig.core.retire(e, HOUSE, "x"), {"held": "closing"}),
    ("retire leased", lambda rig, e: rig.core.retire_leased("x"), {"leased": "closing"}),
    ("retire all idle", lambda rig, e: rig.core.retire_idle("x"), {"idle": "closing"}),
    ("detach", lambda rig, e: rig.core.detach(e, e.holder), {"leased": "closed"}),
    ("bury", lambda rig, e: rig.core.bury(e), {"closing": "closed"}),
    ("drain", lambda rig, e: rig.core.drain(), {"idle": "closing"}),
    ("shut", lambda rig, e: rig.core.shut(), {"idle": "closing"}),
]


@pytest.mark.parametrize("state", STATUS)
@pytest.mark.parametrize(("step", "moves"), [s[1:] for s in STEPS], ids=[s[0] for s in STEPS])
def test_steps(make: MakeRig, state: str, step: Step, moves: dict[str, str]) -> None:
    """Each step moves an entry as drawn or not at all, and the counters go with it."""
    rig = make(max_size=2)
    entry, lease = in_state(rig, state)
    step(rig, entry)
    assert entry.status == STATUS[moves.get(state, state)]
    rig.check()
    del lease


@pytest.mark.parametrize("status", ["connecting", "held", "idle", "leased", "closing", "closed"])
def test_wrong_holder(make: MakeRig, status: str) -> None:
    """Nobody retires, detaches or puts what another has."""
    rig = make(max_size=2)
    entry, lease = in_state(rig, status)
    for stranger in (NOBODY, HOUSE, 4096, -4096, -entry.holder):
        if stranger == entry.holder and status != "connecting":
            continue
        assert rig.core.retire(entry, stranger, "x") is False
        assert rig.core.detach(entry, stranger) is False
    if status != "held":
        rig.core.put(entry)
    assert entry.status == STATUS[status]
    rig.check()
    del lease


def test_from_dial_to_grave(make: MakeRig) -> None:
    """One entry through all its states, the counters beside it."""
    rig = make(max_size=1)
    seen = []

    def look() -> None:
        rig.check()
        now = rig.core.snapshot()
        seen.append(next(part for part in (*STATUS, "size") if now.get(part)))

    entry = rig.begin()
    look()
    rig.core.adopt(entry, Conn(), 5)
    assert (entry.fd, entry.generation) == (5, rig.core.generation)
    look()
    rig.core.put(entry)
    rig.core.configure(max_size=1, polls=False)
    look()
    lease = rig.acquire()
    look()
    lease.release()
    rig.core.retire(entry, NOBODY, "over")
    look()
    rig.bury()
    assert seen == ["connecting", "held", "idle", "leased", "closing"]
    assert rig.core.size == 0
    assert entry.reason == "over"
    assert entry.conn is None


def test_failed_dial(make: MakeRig) -> None:
    """A failed dial frees its slot at once."""
    rig = make(max_size=1)
    entry = rig.begin()
    assert rig.core.begin_dial() is None
    rig.core.forget(entry)
    rig.check_whole()
    assert rig.core.size == 0
    assert rig.core.deficit() == 0


def test_closing_takes_its_slot(make: MakeRig) -> None:
    """While a server may still count a connection, its slot is taken."""
    rig = make(1)
    rig.core.drain()
    rig.core.ask()
    assert rig.core.begin_dial() is None
    rig.bury()
    assert rig.core.begin_dial() is not None


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"max_size": 5}, 0),
        ({"max_size": 5, "min_size": 3}, 3),
        ({"max_size": 5, "min_idle": 2}, 2),
        ({"max_size": 5, "min_size": 3, "min_idle": 4}, 4),
        ({"max_size": 2, "min_size": 2, "min_idle": 2}, 2),
    ],
)
def test_deficit(make: MakeRig, settings: dict[str, int], wanted: int) -> None:
    """As many dials are wanted as the settings ask for, dials in flight counted."""
    rig = make(**settings)
    assert rig.core.deficit() == wanted
    dials = [rig.core.begin_dial() for _ in range(wanted)]
    assert None not in dials
    assert rig.core.begin_dial() is None
    for entry in dials:
        rig.core.adopt(entry, Conn(), -1)
        rig.core.put(entry)
    assert rig.core.deficit() == 0


def test_lowered_limit(make: MakeRig) -> None:
    """With more connections than the new limit none is dialled, and none is lost."""
    rig = make(3)
    rig.core.configure(max_size=1, max_idle=9)
    rig.core.ask()
    assert rig.core.deficit() <= 0
    assert rig.core.begin_dial() is None
    rig.check()
    assert rig.core.idle == 3


def test_shrinking(make: MakeRig) -> None:
    """With more connections than the new limit just so many are closed as they come back."""
    rig = make(4)
    leases = [rig.acquire() for _ in range(4)]
    somebody = rig.waiter()
    rig.core.configure(max_size=2, max_idle=9)
    somebody.join()
    for lease in leases:
        lease.release()
    assert [entry.reason for entry in rig.core.closing] == ["max_idle"] * 2
    assert somebody.status == "assigned"
    assert rig.core.idle == 1
    somebody.drop()
    rig.check_whole()


def test_new_and_closed_dial_nothing(make: MakeRig, core: Any) -> None:
    """Before it is opened and after it is closed a core wants no dial."""
    new = core.Core()
    new.configure(max_size=3, min_size=3)
    assert new.deficit() == 0
    assert new.start() is True
    assert new.start() is False
    assert new.deficit() == 3
    rig = make(max_size=3, min_size=3)
    rig.core.shut()
    assert rig.core.deficit() == 0
    assert rig.core.begin_dial() is None


def test_put_below(make: MakeRig) -> None:
    """What was only looked after goes under all others, its idle time untouched."""
    clock = Clock()
    rig = make(3, clock, check_after=10)
    top, _, bottom = rig.core.idle_entries()
    since = top.since
    assert rig.core.hold(top)
    clock.now += 5
    rig.core.put_below(top)
    assert rig.core.idle_entries()[1:] == [bottom, top]
    assert top.since == since
    assert top.due == clock.now + 10


def test_put_below_is_checked(make: MakeRig) -> None:
    """What became old or dirty while it was looked after is not idle again."""
    rig = make(2)
    first, second = rig.core.idle_entries()
    assert rig.core.hold(first)
    assert rig.core.hold(second)
    first.state.leave(2)
    rig.core.put_below(first)
    rig.core.drain()
    rig.core.put_below(second)
    assert [(e, e.reason) for e in rig.core.closing] == [(first, "broken"), (second, "drained")]
    rig.check_whole()


def test_put_below_serves_who_waits(make: MakeRig) -> None:
    """Who began to wait while a connection was looked after gets it."""
    rig = make(1)
    (entry,) = rig.core.idle_entries()
    assert rig.core.hold(entry)
    somebody = rig.waiter()
    somebody.join()
    rig.core.put_below(entry)
    assert somebody.status == "assigned"
    rig.check()
    somebody.drop()


def test_taken_from_the_middle(make: MakeRig) -> None:
    """Entries leave the middle and the ends of the idle ring without hurting the rest."""
    rig = make(5)
    entries = rig.core.idle_entries()
    for n in (2, 0, 4):
        assert rig.core.hold(entries[n])
        rig.check()
    assert rig.core.idle_entries() == [entries[1], entries[3]]
    assert rig.core.hold(entries[0]) is False


def test_retire_leased(make: MakeRig) -> None:
    """Every leased connection is taken away, its lease is dead, and others are left alone."""
    rig = make(3)
    lease, other = rig.acquire(), rig.acquire()
    held = {rig.entry_of(lease), rig.entry_of(other)}
    assert set(rig.core.retire_leased("closed")) == held
    assert rig.core.idle == 1
    lease.release()
    other.release()
    assert len(rig.core.closing) == 2
    rig.check_whole()


def test_detach(make: MakeRig) -> None:
    """A detached connection is its holder's: out of the pool, not closed, its slot free."""
    rig = make(1)
    lease = rig.acquire()
    entry, conn = rig.entry_of(lease), lease.driver_connection
    assert rig.core.detach(entry, entry.holder)
    lease.release()
    assert (entry.conn, entry.status) == (conn, STATUS["closed"])
    assert not rig.core.closing
    rig.check_whole()
    assert rig.core.size == 0


def test_repr(make: MakeRig) -> None:
    """An entry says what it is."""
    rig = make(1)
    (entry,) = rig.core.entries
    assert repr(entry) == "<Entry idle uses=0 conn=<Conn 0>>"
