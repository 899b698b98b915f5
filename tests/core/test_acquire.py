"""Taking a connection that is there, and being told that there is none."""

from __future__ import annotations

import gc
import math
import os
import socket
import threading
from typing import Any

import pytest
from core.conftest import MakeRig
from core.kit import STATUS, Clock, Conn, House, Refusal

from fastpool.errors import ConfigError


def test_newest_first(make: MakeRig) -> None:
    """Idle connections are a stack: the one given back last is served first."""
    rig = make(3)
    a, b, c = (rig.acquire() for _ in range(3))
    names = [lease.name for lease in (a, b, c)]
    for lease in (b, c, a):
        lease.release()
    served = [rig.acquire() for _ in range(3)]
    assert [lease.name for lease in served] == [names[0], names[2], names[1]]


def test_fifo_order(make: MakeRig) -> None:
    """With fifo the one that has been idle longest is served first."""
    rig = make(3, fifo=True)
    for expected in (0, 1, 2, 0, 1, 2):
        with rig.connection() as conn:
            assert conn.name == expected


def test_a_hit_asks_nobody(make: MakeRig) -> None:
    """Taking a silent, young connection and giving it back clean asks the house nothing."""
    rig = make(1)
    with rig.connection() as conn:
        conn.run("select")
    assert rig.house.calls == []


def test_who_when_where(make: MakeRig) -> None:
    """A leased entry tells the thread that took it, the time, and the uses so far."""
    clock = Clock()
    rig = make(1, clock)
    for use in (1, 2):
        clock.now += 1
        lease = rig.acquire()
        entry = rig.entry_of(lease)
        assert entry.thread == threading.get_ident()
        assert entry.since == clock.now
        assert entry.uses == use
        assert entry.holder > 1
        clock.now += 1
        lease.release()
        assert (entry.holder, entry.since) == (0, clock.now)


def test_try_acquire(make: MakeRig) -> None:
    """A try takes what is idle, else gets None at once and wants one dial."""
    rig = make(1, max_size=2)
    lease = rig.try_acquire()
    assert lease.name == 0
    assert rig.try_acquire() is None
    assert rig.house.calls == ["queueing", "wanted"]
    assert rig.core.deficit() == 1
    assert rig.core.waiting == 0


def test_many_tries_want_one_dial(make: MakeRig) -> None:
    """However many callers do not wait, one dial answers them, and none is wanted after it."""
    rig = make(max_size=5)
    for _ in range(4):
        assert rig.try_acquire() is None
    entry = rig.core.begin_dial()
    assert rig.core.begin_dial() is None
    rig.core.adopt(entry, Conn(), -1)
    rig.core.put(entry)
    assert rig.core.deficit() == 0


def test_timeout_of_zero(make: MakeRig) -> None:
    """A timeout of 0 is a try that raises."""
    rig = make()
    with pytest.raises(Refusal) as caught:
        rig.acquire(timeout=0)
    assert (caught.value.kind, caught.value.timeout) == ("timeout", 0)
    assert rig.core.snapshot()["timeouts"] == 1
    assert rig.core.snapshot()["waits"] == 0


@pytest.mark.parametrize("timeout", [-1, math.nan, True, "1", [], -math.inf])
@pytest.mark.parametrize("method", ["acquire", "connection"])
def test_bad_timeout(make: MakeRig, method: str, timeout: Any) -> None:
    """A timeout that is no number of seconds is refused before anything happens."""
    rig = make(1)
    with pytest.raises(ConfigError, match="timeout: expected seconds >= 0"):
        getattr(rig, method)(timeout=timeout)
    assert rig.core.idle == 1


@pytest.mark.parametrize("timeout", [None, 0, 5, 0.5, math.inf])
@pytest.mark.parametrize("method", ["acquire", "connection"])
def test_good_timeout(make: MakeRig, method: str, timeout: Any) -> None:
    """Whole and broken seconds, infinity and None are timeouts."""
    rig = make(1)
    with getattr(rig, method)(timeout=timeout) as conn:
        assert conn.name == 0


def test_first_acquire_opens(make: MakeRig, core: Any) -> None:
    """The first caller of a new core opens it through the house."""
    house = House()
    new = core.Core(house)
    new.configure(max_size=1)
    house.on_open = new.start
    assert core.Checkout(new).try_acquire() is None
    assert house.calls == ["queueing", "open", "queueing", "wanted"]


def test_closed(make: MakeRig) -> None:
    """A closed core refuses, also the caller who only tries."""
    rig = make(1)
    assert rig.core.shut() is True
    for take in (rig.acquire, rig.try_acquire, lambda: rig.acquire(timeout=0)):
        with pytest.raises(Refusal, match="closed"):
            take()
    assert rig.core.shut() is False


@pytest.fixture
def pair() -> Any:
    """A connection's two ends."""
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_silent_socket_is_not_looked_at(make: MakeRig, pair: Any) -> None:
    """An open, silent socket is served without asking the house."""
    rig = make(max_size=1)
    rig.dial(fd=pair[0].fileno())
    with rig.connection():
        pass
    assert rig.house.calls == []


@pytest.mark.skipif(os.name != "posix", reason="needs poll()")
@pytest.mark.parametrize("event", ["closed", "bytes"])
def test_suspect_socket_is_looked_at(make: MakeRig, pair: Any, event: str) -> None:
    """A socket that is closed, or has something to say, is shown to the house first."""
    rig = make(max_size=1)
    rig.dial(fd=pair[0].fileno())
    if event == "closed":
        pair[1].close()
    else:
        pair[1].send(b"N")
    with rig.connection():
        pass
    assert rig.house.calls == ["admit"]


def test_polling_can_be_off(make: MakeRig, pair: Any) -> None:
    """With polls off nobody asks the socket."""
    rig = make(max_size=1, polls=False)
    rig.dial(fd=pair[0].fileno())
    pair[1].close()
    with rig.connection():
        pass
    assert rig.house.calls == []


def test_silent_for_long_is_looked_at(make: MakeRig) -> None:
    """A connection is due for a closer look check_after seconds after its return."""
    clock = Clock()
    rig = make(1, clock, check_after=30)
    clock.now += 29
    rig.acquire().release()
    clock.now += 29
    rig.acquire().release()
    assert rig.house.calls == []
    clock.now += 30
    rig.acquire().release()
    assert rig.house.calls == ["admit"]


def test_limit_of_age_is_looked_at(make: MakeRig) -> None:
    """A connection past its age is shown to the house, however young its last use."""
    clock = Clock()
    rig = make(1, clock)
    (entry,) = rig.core.entries
    rig.core.limit_age(entry, clock.now + 10)
    clock.now += 9
    rig.acquire().release()
    assert rig.house.calls == []
    clock.now += 1
    rig.acquire().release()
    assert rig.house.calls == ["admit", "disposed"]


def test_unfit_ones_are_passed_over(make: MakeRig) -> None:
    """What the house finds unfit is closed, with its reason, and the next one tried."""
    rig = make(3, vets=True)
    rig.house.on_admit = lambda entry: None if entry.conn.name == 0 else "dead"
    lease = rig.acquire()
    assert lease.name == 0
    assert [entry.reason for entry in rig.core.closing] == ["dead", "dead"]
    lease.release()
    rig.check()


def test_none_is_fit(make: MakeRig) -> None:
    """When every idle connection proves unfit, the caller is one who found none."""
    rig = make(2, vets=True)
    rig.house.on_admit = lambda entry: "dead"
    assert rig.try_acquire() is None
    assert len(rig.core.closing) == 2
    rig.bury()
    rig.check()


def test_look_is_told_the_callers_limit(make: MakeRig) -> None:
    """The house learns until when the caller waits: its own time, the pool's, or no end."""
    clock = Clock()
    rig = make(1, clock, vets=True, timeout=7.0)
    for timeout in (3.0, None, math.inf, 0):
        rig.acquire(timeout).release()
    rig.try_acquire().release()
    assert rig.house.limits == [
        clock.now + 3.0,
        clock.now + 7.0,
        math.inf,
        # Who only tries waits for no connection; the answer of one is another matter.
        math.inf,
        math.inf,
    ]


def test_no_look_after_the_callers_time(make: MakeRig) -> None:
    """A look that took all of the caller's time is its last, and what is idle stays."""
    clock = Clock()
    rig = make(3, clock, vets=True)

    def slow(entry: Any) -> str:
        clock.now += 2
        return "dead"

    rig.house.on_admit = slow
    began = clock.now
    with pytest.raises(Refusal, match="timeout") as caught:
        rig.acquire(4)
    assert (caught.value.timeout, caught.value.waited) == (4, 4)
    assert rig.house.limits == [began + 4] * 2
    assert (rig.core.idle, len(rig.core.closing), rig.core.timeouts) == (1, 2, 1)
    rig.bury()
    rig.check()


def test_look_after_a_wait_has_the_rest(make: MakeRig) -> None:
    """Time spent in the queue counts as well."""
    clock = Clock()
    rig = make(1, clock, vets=True, max_size=1)
    held = rig.acquire()
    began = clock.now

    def serve() -> None:
        clock.now += 3
        held.release()

    rig.house.on_wanted = serve
    rig.core.configure(max_size=2, vets=True)
    rig.acquire(5).release()
    assert rig.house.limits[-1] == began + 5


def test_look_that_raises(make: MakeRig) -> None:
    """An exception of the closer look goes to the caller, the connection back."""
    rig = make(1, vets=True)

    def broken(entry: Any) -> str | None:
        assert entry.status == STATUS["leased"]
        raise LookupError("hook")

    rig.house.on_admit = broken
    with pytest.raises(LookupError, match="hook"):
        rig.acquire()
    gc.collect()
    assert "lost" not in rig.house.calls, "only the finalizer gave it back"
    rig.check()
    assert rig.core.idle == 1


def test_raising_look_and_raising_release(make: MakeRig) -> None:
    """When giving back fails too, both exceptions are told and the slot is not lost."""
    rig = make(1, vets=True, settles=True)

    def admit(entry: Any) -> str | None:
        raise LookupError("admit")

    def settle(entry: Any) -> str | None:
        raise OSError("settle")

    rig.house.on_admit, rig.house.on_settle = admit, settle
    with pytest.raises(OSError, match="settle") as caught:
        rig.acquire()
    assert isinstance(caught.value.__context__, LookupError)
    assert [entry.reason for entry in rig.core.closing] == ["error"]
    rig.check_whole()


def test_refill_is_wanted(make: MakeRig) -> None:
    """Taking one of the connections kept warm asks for another."""
    rig = make(2, max_size=3, min_idle=2)
    rig.house.calls.clear()
    with rig.connection():
        assert rig.house.calls == ["wanted"]
        assert rig.core.deficit() == 1


def test_counts(make: MakeRig) -> None:
    """Every hand-out is counted, and only those."""
    rig = make(1)
    for _ in range(3):
        rig.acquire().release()
    held = rig.acquire()
    rig.try_acquire()
    assert rig.core.snapshot()["acquires"] == 4
    held.release()
