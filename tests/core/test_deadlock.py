"""When every connection is held by a thread that waits for one, the last to come is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from core.conftest import MakeRig
from core.kit import FOREVER, Caller, Clock, Refusal, Rig
from support import eventually

UNTANGLED, DOUBTFUL, TANGLED = range(3)
OTHERS = 1 << 50
"""The number of a thread that is none, as an entry and a waiter have it."""


class Deadlock(Exception):
    """What the house of these tests raises."""


def raising(rig: Rig) -> Rig:
    rig.house.on_deadlock = lambda: Deadlock()
    return rig


def take(rig: Rig) -> Any:
    """A lease for a with block, used."""
    lease = rig.connection().__enter__()
    use(rig, lease)
    return lease


def mine(rig: Rig, lease: Any) -> int:
    """Whose *lease* is; not for a with block."""
    who: int = rig.entry_of(lease).who
    return who & ~1


def use(rig: Rig, lease: Any) -> None:
    """One call goes into the connection, and out."""
    state = rig.entry_of(lease).state
    state.enter()
    state.leave(0)


def when_waiting(rig: Rig, count: int, call: Callable[[], object]) -> threading.Thread:
    """A thread, yet to be started, that does it once so many wait."""
    return threading.Thread(target=lambda: (eventually(lambda: rig.core.waiting == count), call()))


def elsewhere(call: Callable[[], object]) -> int:
    """Do it in another thread, that ends; its identifier."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(30)
    assert thread.ident is not None
    return thread.ident


def asked(rig: Rig) -> int:
    return rig.house.calls.count("deadlock")


@pytest.mark.parametrize("count", [1, 2, 8])
def test_one_of_all_is_told(make: MakeRig, count: int) -> None:
    """Of N threads that each want two of N connections one is told, and the others go on."""
    rig = raising(make(count))
    together = threading.Barrier(count)
    told: list[int] = []
    served: list[int] = []

    def work(number: int) -> None:
        with rig.connection() as first:
            use(rig, first)
            together.wait(FOREVER)
            try:
                with rig.connection():
                    served.append(number)
            except Deadlock:
                told.append(number)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread still waits"
    assert len(told) == 1
    assert sorted(told + served) == list(range(count))
    rig.check_serves()
    seen = rig.core.snapshot()
    assert (seen["cancelled"], seen["timeouts"], seen["waiting"]) == (1, 0, 0)
    assert sum(seen["histogram"]) == seen["waits"]


def test_a_thread_with_several(make: MakeRig) -> None:
    """One thread may hold more than one: two with half of them each are deadlocked too."""
    rig = make(4, Clock())
    held = [take(rig) for _ in range(2)]
    theirs = [rig.waiter(who=OTHERS + 1) for _ in range(2)]
    spare = [take(rig) for _ in range(2)]
    for somebody, lease in zip(theirs, spare, strict=True):
        somebody.join()
        lease.release()
    first, last = rig.waiter(who=mine(rig, held[0])), rig.waiter(who=OTHERS)
    first.join()
    assert rig.core.deadlocked(first.waiter) == UNTANGLED
    last.join()
    assert rig.core.deadlocked(last.waiter) == DOUBTFUL  # the others' are not used yet
    assert rig.core.deadlocked(first.waiter) == UNTANGLED, "only the last to come is told"
    for somebody in (first, last, *theirs):
        somebody.drop()


def test_the_last_to_come_may_stand_further_up(make: MakeRig) -> None:
    """Who found an unfit connection stands before later ones; it still came last."""
    clock = Clock()
    rig = make(2, clock)
    lease = take(rig)
    theirs, other = rig.waiter(who=OTHERS + 1), take(rig)
    theirs.join()
    other.release()
    clock.now += 1
    first, last = rig.waiter(who=OTHERS), rig.waiter(who=mine(rig, lease), age=0.5)
    first.join()
    last.join(again=True)
    assert rig.core.waiters() == [last.waiter, first.waiter]
    assert rig.core.deadlocked(last.waiter) == DOUBTFUL  # the others' are not used yet
    assert rig.core.deadlocked(first.waiter) == UNTANGLED
    for somebody in (first, last, theirs):
        somebody.drop()
    lease.release()


def test_bystanders_change_nothing(make: MakeRig) -> None:
    """Who waits without holding anything closes no circle, and hides none."""
    rig = make(1, Clock())
    lease = take(rig)
    before, after = rig.waiter(who=OTHERS), rig.waiter(who=OTHERS + 2)
    somebody = rig.waiter(who=mine(rig, lease))
    before.join()
    assert rig.core.deadlocked(before.waiter) == UNTANGLED
    somebody.join()
    after.join()
    assert rig.core.deadlocked(somebody.waiter) == TANGLED
    assert rig.core.deadlocked(after.waiter) == UNTANGLED
    for one in (before, somebody, after):
        one.drop()
    lease.release()


def test_used_last_by_another_thread(make: MakeRig) -> None:
    """A connection that another thread has used may come back from there: no alarm."""
    rig = make(1, Clock())
    lease = take(rig)
    somebody = rig.waiter(who=mine(rig, lease))
    somebody.join()
    elsewhere(lambda: use(rig, lease))
    assert rig.core.deadlocked(somebody.waiter) == UNTANGLED
    use(rig, lease)
    assert rig.core.deadlocked(somebody.waiter) == TANGLED
    somebody.drop()
    lease.release()


def test_the_last_users_use_is_forgotten(make: MakeRig) -> None:
    """Who used a connection under an earlier lease has no part in this one."""
    rig = make(1, Clock())
    lease = take(rig)
    elsewhere(lambda: use(rig, lease))
    lease.release()
    lease = rig.connection().__enter__()
    somebody = rig.waiter(who=mine(rig, lease))
    somebody.join()
    assert rig.core.deadlocked(somebody.waiter) == DOUBTFUL
    somebody.drop()
    lease.release()


def test_not_used_yet(make: MakeRig) -> None:
    """One thread that has acquired everything, for no block and unused, acquires for others."""
    rig = make(1, Clock())
    lease = rig.acquire()
    somebody = rig.waiter(who=mine(rig, lease))
    somebody.join()
    assert rig.core.deadlocked(somebody.waiter) == UNTANGLED
    use(rig, lease)
    assert rig.core.deadlocked(somebody.waiter) == TANGLED
    somebody.drop()
    lease.release()


@pytest.mark.parametrize("used", [False, True])
def test_a_block_not_used_yet(make: MakeRig, used: bool) -> None:
    """A with block may be ended by another thread than the one that entered it, as in a web
    framework's pool of threads: that one gets half a second to show."""
    rig = raising(make(1))
    block = rig.connection().__enter__()
    somebody = rig.waiter(who=mine(rig, block))
    somebody.join()
    assert rig.core.deadlocked(somebody.waiter) == DOUBTFUL
    somebody.leave()
    worker = when_waiting(rig, 1, lambda: use(rig, block))
    if used:
        worker.start()
    with pytest.raises(Refusal if used else Deadlock):
        rig.acquire(timeout=0.6)
    if used:
        worker.join()
    block.release()
    somebody.drop()


@pytest.mark.parametrize("mine", [True, False])
def test_a_block_begun_later(make: MakeRig, mine: bool) -> None:
    """A with block on an acquired lease tells of the thread that acquired, and of no other."""
    rig = raising(make(1))
    lease = rig.acquire()
    if mine:
        lease.__enter__()
    else:
        elsewhere(lease.__enter__)
    with pytest.raises(Deadlock if mine else Refusal):
        rig.acquire(timeout=0.01)
    lease.release()


def test_a_hooks_use_is_none(make: MakeRig) -> None:
    """What a hook does with a connection at its checkout says nothing of who will use it."""
    rig = make(1, Clock(), vets=True)
    rig.house.on_admit = lambda entry: entry.state.enter() or entry.state.leave(0)
    lease = rig.acquire()
    somebody = rig.waiter(who=mine(rig, lease))
    somebody.join()
    assert rig.core.deadlocked(somebody.waiter) == UNTANGLED
    somebody.drop()
    lease.release()


@pytest.mark.parametrize("used", [False, True])
def test_several_have_not_used_theirs(make: MakeRig, used: bool) -> None:
    """Two threads with one unused connection each get half a second; others may use them."""
    rig = raising(make(2))
    lease = rig.acquire()
    theirs, other = rig.waiter(who=OTHERS), rig.acquire()
    theirs.join()
    other.release()
    waiting = rig.waiter(who=OTHERS)
    waiting.join()
    somebody = rig.waiter(who=mine(rig, lease))
    somebody.join()
    assert rig.core.deadlocked(somebody.waiter) == DOUBTFUL
    somebody.leave()
    worker = when_waiting(rig, 2, lambda: use(rig, lease))
    if used:
        worker.start()
    with pytest.raises(Refusal if used else Deadlock):
        rig.acquire(timeout=0.6)
    assert asked(rig) == (not used)
    if used:
        worker.join()
    waiting.drop()
    theirs.drop()
    lease.release()
    rig.check_whole()


def test_served_in_the_time_of_grace(make: MakeRig) -> None:
    """What comes back within that half second is taken at once."""
    rig = raising(make(2))
    lease = rig.acquire()
    theirs, other = rig.waiter(who=OTHERS), rig.acquire()
    theirs.join()
    other.release()
    waiting = rig.waiter(lambda: None, who=OTHERS)
    waiting.join()

    worker = when_waiting(rig, 2, lambda: (waiting.leave(), theirs.drop()))
    worker.start()
    second = rig.acquire(timeout=FOREVER)
    worker.join()
    assert asked(rig) == 0
    second.release()
    lease.release()
    rig.check_whole()


def test_acquired_by_another_thread(make: MakeRig) -> None:
    """A thread may wait that holds nothing, since another acquired for it: no alarm."""
    rig = raising(make(1))
    held: list[Any] = []
    elsewhere(lambda: held.append(rig.acquire()))
    use(rig, held[0])
    with pytest.raises(Refusal, match="timeout"):
        rig.acquire(timeout=0.01)
    assert asked(rig) == 0
    held.pop().release()


def test_another_thread_of_that_name(make: MakeRig) -> None:
    """A thread that got the identifier of one that ended is not taken for it."""
    rig = raising(make(1))
    held: list[Any] = []
    first = elsewhere(lambda: held.append(take(rig)))
    assert rig.entry_of(held[0]).thread == first
    outcomes: list[str] = []

    def wait() -> None:
        if threading.get_ident() == first:
            try:
                rig.acquire(timeout=0.01)
            except Refusal as refusal:
                outcomes.append(refusal.kind)

    for _ in range(1000):
        elsewhere(wait)
        if outcomes:
            break
    assert outcomes == ["timeout"], "no identifier was used twice" if not outcomes else ""
    assert asked(rig) == 0
    held.pop().release()


@pytest.mark.parametrize("what", ["running", "dialling", "closing", "held", "resized"])
def test_something_still_moves(make: MakeRig, what: str) -> None:
    """While a connection can still come from somewhere, nobody is told."""
    rig = raising(make(2, Clock()))
    lease, other = take(rig), take(rig)
    number, entry = mine(rig, lease), rig.entry_of(other)
    if what == "running":
        theirs = rig.waiter(who=OTHERS + 1)
        theirs.join()
        other.release()
    elif what == "dialling":
        rig.core.retire(entry, entry.holder, "test")
        rig.bury()
        rig.begin()
    elif what == "closing":
        rig.core.retire(entry, entry.holder, "test")
    elif what == "held":
        other.release()
        assert rig.core.hold(entry)
    else:
        rig.core.configure(max_size=3, max_idle=9)
    somebody = rig.waiter(who=number)
    somebody.join()
    assert rig.core.deadlocked(somebody.waiter) == UNTANGLED
    somebody.drop()
    lease.release()


def test_a_smaller_maximum(make: MakeRig) -> None:
    """More leases than max_size, since it was lowered, can be deadlocked just the same."""
    rig = make(2, Clock())
    leases = [take(rig), take(rig)]
    rig.core.configure(max_size=1, max_idle=9)
    somebody = rig.waiter(who=mine(rig, leases[0]))
    somebody.join()
    assert rig.core.deadlocked(somebody.waiter) == TANGLED
    somebody.drop()
    for lease in leases:
        lease.release()


def test_a_thread_that_waits_twice(make: MakeRig) -> None:
    """A signal handler that waits in a waiting thread does not count for another thread."""
    rig = make(2, Clock())
    lease = take(rig)
    theirs, other = rig.waiter(who=OTHERS + 1), take(rig)
    theirs.join()
    other.release()
    outer, inner = (rig.waiter(who=mine(rig, lease)) for _ in range(2))
    outer.join()
    inner.join()
    assert rig.core.waiting == rig.core.leased == 2
    assert rig.core.deadlocked(inner.waiter) == UNTANGLED
    for somebody in (inner, outer, theirs):
        somebody.drop()
    lease.release()


def test_who_has_been_served(make: MakeRig) -> None:
    """Who has a connection already, or has left, is in no deadlock."""
    rig = make(1, Clock())
    lease = take(rig)
    number = mine(rig, lease)
    served, gone = rig.waiter(who=number), rig.waiter(who=number)
    served.join()
    gone.join()
    gone.leave()
    assert rig.core.deadlocked(gone.waiter) == UNTANGLED
    lease.release()
    assert served.status == "assigned"
    assert rig.core.deadlocked(served.waiter) == UNTANGLED
    served.drop()


def test_who_only_tries(make: MakeRig) -> None:
    """Who would not wait, or uses a pool that has room, is not asked about."""
    rig = raising(make(1))
    with rig.connection():
        assert rig.try_acquire() is None
        with pytest.raises(Refusal, match="timeout"):
            rig.acquire(timeout=0)
    assert asked(rig) == 0


def test_who_waits_elsewhere(make: MakeRig) -> None:
    """A thread that waits in one pool and holds the other's connection is in no circle."""
    rig, other = raising(make(1)), raising(make(1))
    lease = other.acquire()
    caller = Caller(rig, served := [], "holds here")
    caller.start()
    eventually(lambda: served)
    with pytest.raises(Refusal, match="timeout"):
        rig.acquire(timeout=0.01)
    assert asked(rig) == asked(other) == 0
    caller.go()
    lease.release()


def test_the_house_lets_it_wait(make: MakeRig) -> None:
    """With no exception from the house the caller waits, and is served or times out."""
    rig = make(1)
    with rig.connection(), pytest.raises(Refusal, match="timeout"):
        rig.acquire(timeout=0.01)
    assert asked(rig) == 1
    rig.check_whole()


def test_overtaken_by_a_release(make: MakeRig) -> None:
    """What comes back while the house finds its words goes to who waits; nobody is told."""
    rig = make(1)
    lease = take(rig)

    def words() -> BaseException:
        lease.release()
        return Deadlock()

    rig.house.on_deadlock = words
    second = rig.acquire(timeout=FOREVER)
    assert repr(lease) == "<Lease released>"
    second.release()
    rig.check_whole()


def test_asked_by_a_thread_that_waits(make: MakeRig) -> None:
    """The exception leaves no trace in the queue: whoever stands there is served next."""
    rig = raising(make(1))
    served: list[object] = []
    with rig.connection():
        caller = Caller(rig, served, "next").queue()
        with pytest.raises(Deadlock):
            rig.acquire()
        assert [waiter.thread for waiter in rig.core.waiters()] == [caller.ident]
    eventually(lambda: served == ["next"])
    caller.go()
    rig.check_whole()
