"""Waiting: first come, first served, and a connection never given to somebody who has gone."""

from __future__ import annotations

import gc
import math
import threading
from typing import Any

import pytest
from core.conftest import MakeRig
from core.kit import FOREVER, Caller, Clock, Conn, Refusal, Rig, Somebody
from support import eventually

JOINED, NOT_OPEN, LOOK_AGAIN, CROWDED, REFUSED = range(5)


def queue(rig: Rig, count: int) -> list[Somebody]:
    """*count* callers in line, each a second after the last."""
    found = []
    for _ in range(count):
        somebody = rig.waiter()
        assert somebody.join() == JOINED
        found.append(somebody)
        rig.core.clock.now += 1
    return found


def test_threads_in_order(make: MakeRig) -> None:
    """Threads are served in the order in which they came to stand in line."""
    rig = make(1)
    lease = rig.acquire()
    served: list[object] = []
    callers = [Caller(rig, served, n).queue() for n in range(8)]
    lease.release()
    for n, caller in enumerate(callers):
        eventually(lambda n=n: len(served) == n + 1)
        assert rig.core.waiting == 7 - n
        caller.go()
    assert served == list(range(8))
    rig.check_whole()


def test_arrival_does_not_pass(make: MakeRig) -> None:
    """While somebody waits, a returned connection is never seen by one who just comes."""
    rig = make(1)
    lease = rig.acquire()
    somebody = rig.waiter()
    somebody.join()
    lease.release()
    assert somebody.status == "assigned"
    assert rig.try_acquire() is None
    somebody.drop()
    rig.check_whole()


def test_hand_off_has_no_gap(make: MakeRig) -> None:
    """A hand-off makes the waiter the holder in the same step, before he wakes."""
    rig = make(1)
    lease = rig.acquire()
    entry = rig.entry_of(lease)
    serial = entry.state.serial
    seen: list[object] = []
    somebody = rig.waiter(lambda: seen.append((entry.holder, rig.core.waiting)), thread=7)
    somebody.join()
    lease.release()
    assert seen == [(somebody.token, 0)]
    assert (entry.thread, entry.uses) == (7, 2)
    assert entry.state.serial > serial
    somebody.drop()


def test_each_serves_the_first(make: MakeRig) -> None:
    """A return, a finished dial and a keeper's work all serve the first in line."""
    rig = make(2, Clock(), max_size=3)
    lease = rig.acquire()
    (entry,) = rig.core.idle_entries()
    assert rig.core.hold(entry)
    first, second, third = queue(rig, 3)
    rig.core.put_below(entry)
    assert [s.status for s in (first, second, third)] == ["assigned", "waiting", "waiting"]
    lease.release()
    assert [s.status for s in (first, second, third)] == ["assigned", "assigned", "waiting"]
    rig.dial()
    assert third.status == "assigned"
    for somebody in (first, second, third):
        somebody.drop()
    rig.check_whole()
    assert rig.core.idle == 3


def test_return_beats_the_dial(make: MakeRig) -> None:
    """Who waits takes what comes first; the dial begun for him ends idle."""
    rig = make(1, max_size=2)
    lease = rig.acquire()
    somebody = rig.waiter()
    somebody.join()
    dialled = rig.core.begin_dial()
    lease.release()
    assert somebody.status == "assigned"
    rig.core.adopt(dialled, Conn("late"), -1)
    rig.core.put(dialled)
    assert [entry.conn.name for entry in rig.core.idle_entries()] == ["late"]
    somebody.drop()
    rig.check_whole()


def test_one_dial_for_each(make: MakeRig) -> None:
    """As many dials are wanted as callers wait, and not more than there is room for."""
    rig = make(max_size=3, clock=Clock())
    for expected in (1, 2, 3, 3):
        queue(rig, 1)
        assert rig.core.deficit() == expected
    assert [rig.core.begin_dial() is None for _ in range(4)] == [False, False, False, True]
    assert rig.core.deficit() == 0


def test_dials_in_flight_are_enough(make: MakeRig) -> None:
    """Where a dial is in flight for each who waits, no further one is wanted."""
    rig = make(max_size=9, clock=Clock())
    queue(rig, 2)
    assert [rig.core.begin_dial() is None for _ in range(3)] == [False, False, True]


def test_no_more_dials_than_slots(make: MakeRig) -> None:
    """However many wait, no dial is begun beyond max_size."""
    rig = make(max_size=2, clock=Clock())
    queue(rig, 5)
    assert [rig.core.begin_dial() is None for _ in range(3)] == [False, False, True]
    assert rig.core.deficit() <= 0


def test_timeout(make: MakeRig) -> None:
    """Who has waited long enough is told so, with how long it was, and has left the line."""
    rig = make(1)
    lease = rig.acquire()
    with pytest.raises(Refusal) as caught:
        rig.acquire(timeout=0.02)
    assert (caught.value.kind, caught.value.timeout) == ("timeout", 0.02)
    assert 0.02 <= caught.value.waited < FOREVER
    assert rig.core.waiting == 0
    seen = rig.core.snapshot()
    assert (seen["waits"], seen["timeouts"], sum(seen["histogram"])) == (1, 1, 1)
    lease.release()
    rig.check_whole()


def test_default_timeout(make: MakeRig) -> None:
    """Without a timeout of his own, a caller waits as long as the pool says."""
    rig = make(1, timeout=0.01)
    with rig.connection(), pytest.raises(Refusal) as caught:
        rig.acquire()
    assert caught.value.timeout == 0.01


def test_endless_wait(make: MakeRig) -> None:
    """Infinity is a timeout that the platform's lock would refuse, and it works."""
    rig = make(1)
    lease = rig.acquire()
    served: list[object] = []
    caller = Caller(rig, served, "x", timeout=math.inf).queue()
    lease.release()
    caller.go()
    assert served == ["x"]
    rig.check_whole()


def test_given_at_the_last_moment(make: MakeRig) -> None:
    """A connection given after the timeout but before the waiter left is used, not lost."""
    clock = Clock()
    rig = make(1, clock, max_size=2)
    lease = rig.acquire()

    def late() -> None:
        clock.now += 100
        lease.release()

    rig.house.on_wanted = late
    got = rig.acquire(timeout=1)
    assert got.name == 0
    assert rig.core.snapshot()["timeouts"] == 0
    got.release()
    rig.check_whole()


def test_gone_ones_get_nothing(make: MakeRig) -> None:
    """A waiter who left, in the middle of the line or at its ends, is not served."""
    rig = make(1, Clock())
    lease = rig.acquire()
    line = queue(rig, 5)
    for n in (0, 2, 4):
        line[n].leave(interrupted=n == 2)
    assert [w.token for w in rig.core.waiters()] == [line[1].token, line[3].token]
    lease.release()
    assert [s.status for s in line] == ["away", "assigned", "away", "waiting", "away"]
    line[1].drop()
    assert line[3].status == "assigned"
    line[3].drop()
    rig.check_whole()
    seen = rig.core.snapshot()
    assert (seen["timeouts"], seen["cancelled"]) == (2, 1)


def test_leaving_twice(make: MakeRig) -> None:
    """Who left once is not unlinked again."""
    rig = make(1, Clock())
    lease = rig.acquire()
    first, second = queue(rig, 2)
    first.leave()
    first.leave()
    assert [w.token for w in rig.core.waiters()] == [second.token]
    lease.release()
    second.drop()
    rig.check_whole()


class Interrupt(BaseException):
    """Whatever ends a wait from outside."""


@pytest.mark.parametrize("given", [False, True], ids=["waiting", "assigned"])
def test_interrupted(make: MakeRig, given: bool) -> None:
    """An interrupted waiter leaves the line; what he was just given goes to the next."""
    rig = make(1, max_size=2)
    lease = rig.acquire()
    next_one = rig.waiter()

    def interrupt() -> None:
        if given:
            lease.release()
            next_one.join()
        raise Interrupt

    rig.house.on_wanted = interrupt
    with pytest.raises(Interrupt):
        rig.acquire()
    gc.collect()
    assert "lost" not in rig.house.calls, "he did not give it back himself"
    if given:
        assert next_one.status == "assigned"
        next_one.drop()
    else:
        assert rig.core.snapshot()["cancelled"] == 1
        lease.release()
    rig.check_whole()


def test_max_waiting(make: MakeRig) -> None:
    """One caller more than may wait is refused at once; a try is not a caller who waits."""
    rig = make(1, Clock(), max_waiting=2)
    lease = rig.acquire()
    line = queue(rig, 2)
    with pytest.raises(Refusal, match="crowded"):
        rig.acquire(timeout=0.1)
    with pytest.raises(Refusal, match="timeout"):
        rig.acquire(timeout=0)
    assert rig.try_acquire() is None
    assert rig.core.snapshot()["crowded"] == 1
    line[0].leave()
    assert rig.waiter().join() == JOINED
    lease.release()


def test_nobody_may_wait(make: MakeRig) -> None:
    """With max_waiting 0 there is no line at all."""
    rig = make(1, max_waiting=0)
    with rig.connection(), pytest.raises(Refusal, match="crowded"):
        rig.acquire()


def test_failed_check_keeps_the_place(make: MakeRig) -> None:
    """Who was given a connection that proved unfit stands where he stood: first."""
    clock = Clock()
    rig = make(2, clock, max_size=3, max_waiting=2)
    dead, other = rig.acquire(), rig.acquire()
    line: list[Somebody] = []

    def admit(entry: Any) -> str | None:
        if entry.conn.name == "good":
            return None
        clock.now += 1
        line.extend(queue(rig, 2))
        return "dead"

    steps = iter([dead.release, lambda: rig.dial("good")])
    rig.core.configure(max_size=3, max_idle=9, max_waiting=2, vets=True)
    rig.house.on_admit, rig.house.on_wanted = admit, lambda: next(steps)()
    got = rig.acquire(timeout=1000)
    assert got.name == "good"
    assert [s.status for s in line] == ["waiting", "waiting"]
    got.release()
    other.release()
    for somebody in line:
        somebody.drop()
    rig.check_whole()


def test_several_come_back(make: MakeRig) -> None:
    """Those whose connections proved unfit keep the order among themselves."""
    rig = make(1, Clock())
    lease = rig.acquire()
    line = queue(rig, 4)
    for n in (0, 1, 2):
        line[n].leave()
    for n in (1, 0, 2):
        assert line[n].join(again=True) == JOINED
    assert [w.token for w in rig.core.waiters()] == [s.token for s in line]
    lease.release()


def test_dead_idle_ones_cost_no_place(make: MakeRig) -> None:
    """Who looked at a dead idle connection stands before those who came meanwhile."""
    clock = Clock()
    rig = make(1, clock, vets=True)
    line: list[Somebody] = []

    def admit(entry: Any) -> str | None:
        if entry.conn.name == "good":
            return None
        clock.now += 1
        line.extend(queue(rig, 1))
        return "dead"

    def wanted() -> None:
        rig.bury()
        rig.dial("good")

    rig.house.on_admit, rig.house.on_wanted = admit, wanted
    rig.core.configure(max_size=2, max_idle=9, vets=True)
    got = rig.acquire(timeout=5)
    assert got.name == "good"
    assert line[0].status == "waiting"
    got.release()
    line[0].drop()
    rig.check_whole()


def test_close_wakes_everybody(make: MakeRig) -> None:
    """Closing tells all who wait, at once, and leaves the line empty."""
    rig = make(1)
    lease = rig.acquire()
    callers = [Caller(rig, [], n).queue() for n in range(6)]
    rig.core.shut()
    for caller in callers:
        caller.end()
        assert isinstance(caller.outcome, Refusal)
        assert caller.outcome.kind == "closed"
    lease.release()
    assert [entry.reason for entry in rig.core.closing] == ["drained"]
    rig.check_whole()


def test_interrupted_close_can_be_ended(make: MakeRig) -> None:
    """Closing again does what an interrupt had left undone."""
    rig = make(2, Clock())
    lease, other = rig.acquire(), rig.acquire()

    def interrupt() -> None:
        raise Interrupt

    first, second = rig.waiter(interrupt), rig.waiter()
    first.join()
    second.join()
    with pytest.raises(Interrupt):
        rig.core.shut()
    assert second.status == "waiting"
    assert rig.core.shut() is False
    assert second.status == "failed"
    lease.release()
    other.release()
    rig.check_whole()


def test_drain_during_a_dial(make: MakeRig) -> None:
    """A connection dialled before a drain is not served after it."""
    rig = make(max_size=2)
    somebody = rig.waiter()
    somebody.join()
    entry = rig.core.begin_dial()
    rig.core.drain()
    rig.core.adopt(entry, Conn(), -1)
    rig.core.put(entry)
    assert [e.reason for e in rig.core.closing] == ["drained"]
    assert somebody.status == "waiting"
    assert rig.core.deficit() == 1
    rig.dial()
    assert somebody.status == "assigned"
    somebody.drop()
    rig.check_whole()


def test_refusal_fails_everybody(make: MakeRig) -> None:
    """While nothing is established, a hopeless dial fails all who wait, with its error."""
    rig = make(max_size=9)
    error = ValueError("password")
    callers = [Caller(rig, [], n).queue() for n in range(4)]
    rig.core.refuse(error, rig.core.now() + FOREVER)
    for caller in callers:
        caller.end()
        assert isinstance(caller.outcome, Refusal)
        assert (caller.outcome.kind, caller.outcome.error) == ("connect", error)
    rig.check_whole()


@pytest.mark.parametrize("where", ["held", "idle", "leased"])
def test_refusal_waits_for_the_established(make: MakeRig, where: str) -> None:
    """While a connection may come back, nobody is failed for a hopeless dial."""
    rig = make(1, Clock(), max_size=2)
    lease = rig.acquire()
    somebody = rig.waiter()
    somebody.join()
    if where == "leased":
        rig.core.refuse(ValueError(), rig.core.clock.now + 1)
        assert somebody.status == "waiting"
        lease.release()
        assert somebody.status == "assigned"
        somebody.drop()
        return
    somebody.leave()
    lease.release()
    if where == "held":
        assert rig.core.hold(rig.core.idle_entries()[0])
    rig.core.refuse(ValueError(), rig.core.clock.now + 1)
    if where == "held":
        assert rig.waiter().join() == JOINED
    else:
        assert rig.acquire().name == 0


def test_refusal_ends(make: MakeRig) -> None:
    """Arrivals get the known error until its time is over, or a dial succeeds."""
    clock = Clock()
    rig = make(clock=clock, max_size=2)
    error = ValueError("password")
    rig.core.refuse(error, clock.now + 1)
    for timeout in (0, 5):
        with pytest.raises(Refusal) as caught:
            rig.acquire(timeout=timeout)
        assert (caught.value.kind, caught.value.error) == ("connect", error)
    assert rig.core.deficit() == 0
    clock.now += 1
    somebody = rig.waiter()
    assert somebody.join() == JOINED
    rig.core.refuse(error, clock.now + 1)
    assert somebody.status == "failed"
    entry = rig.begin()
    rig.core.adopt(entry, Conn(), -1)
    assert rig.core.refusal is None
    rig.core.put(entry)
    rig.check_whole()


def test_last_reference_to_a_refusal(make: MakeRig) -> None:
    """What an old error drags behind it dies when the core's step is done, not inside it."""
    rig = make(max_size=3)
    seen: list[object] = []

    class Spy(Exception):
        def __del__(self) -> None:
            rig.check()
            seen.append(rig.core.refusal is self)

    rig.core.refuse(Spy(), 0.0)
    rig.core.refuse(Spy(), 0.0)
    assert seen == [False]
    entry = rig.begin()
    rig.core.adopt(entry, Conn(), -1)
    assert seen == [False, False]
    rig.core.put(entry)
    rig.check_whole()


def test_wait_is_measured(make: MakeRig) -> None:
    """Waits are summed, and counted in powers of two of a microsecond."""
    clock = Clock()
    rig = make(1, clock, max_size=2)
    lease = rig.acquire()

    def serve() -> None:
        clock.now += 3e-6
        lease.release()

    rig.house.on_wanted = serve
    got = rig.acquire(timeout=1)
    seen = rig.core.snapshot()
    assert seen["waits"] == 1
    assert seen["wait_time"] == seen["served_time"] == pytest.approx(3e-6, rel=1e-3)
    assert [n for n, count in enumerate(seen["histogram"]) if count] in ([2], [1])
    got.release()


def test_waiters_are_told(make: MakeRig) -> None:
    """Who waits is known: thread, time and place of the call, first in line first."""
    rig = make(1)
    lease = rig.acquire()
    callers = [Caller(rig, [], n).queue() for n in range(3)]
    waiters = rig.core.waiters()
    assert [w.thread for w in waiters] == [c.ident for c in callers]
    assert all(w.code is Caller.run.__code__ for w in waiters)
    lease.release()
    for caller in callers:
        caller.go()
    rig.check_whole()


def test_next_in_line_is_forgotten(make: MakeRig, core: Any) -> None:
    """The error of one who left does not keep alive those who stood around him."""
    clock = Clock()
    rig = make(1, clock, max_size=2)
    lease = rig.acquire()
    line = [rig.waiter()]
    clock.now += 1

    def wanted() -> None:
        clock.now += 1
        line[0].join()
        clock.now += 1

    rig.house.on_wanted = wanted
    with pytest.raises(Refusal, match="timeout") as caught:
        rig.acquire(timeout=1)
    (behind,) = line
    behind.leave()
    token = behind.token
    rig.house.on_wanted = bool
    del line[:], behind
    assert caught.value.__traceback__ is not None
    assert not [o for o in gc.get_objects() if type(o) is core.Waiter and o.token == token]
    lease.release()


def test_many_threads_one_connection(make: MakeRig) -> None:
    """A hundred hand-offs between ten threads leave everything whole, nobody served twice."""
    rig = make(1)
    inside: list[int] = []
    done = threading.Barrier(11)

    def work() -> None:
        for _ in range(10):
            with rig.connection():
                inside.append(1)
                assert len(inside) == 1
                inside.pop()
        done.wait(FOREVER)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(10)]
    for thread in threads:
        thread.start()
    done.wait(FOREVER)
    for thread in threads:
        thread.join()
    assert rig.core.snapshot()["acquires"] == 100
    rig.check_whole()
