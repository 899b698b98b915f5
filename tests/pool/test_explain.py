"""What a caller who gets nothing is told, what the log says, and what holders() knows."""

from __future__ import annotations

import _thread
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from pool.kit import PATIENCE, Caller, Clock, Refused, eventually, give_back, leases

from fastpool import Pool, PoolDeadlock, PoolTimeout, TooManyRequests, _house, stats
from fastpool.testing import StubConnection, StubDriver

Make = Callable[..., Pool[StubConnection]]
Spawn = Callable[[Callable[[], Any]], Caller]

HERE = f"{__file__}:"


def verdict(pool: Pool[StubConnection], timeout: float = 0.02) -> str | None:
    """What a caller of its own, who waits in vain, is told."""
    with ThreadPoolExecutor(1) as caller:
        error = caller.submit(pool.acquire, timeout).exception(PATIENCE)
    assert isinstance(error, PoolTimeout)
    assert "\n" not in str(error)
    return error.verdict


def refused(call: Callable[[], Any], kind: type[PoolTimeout] = PoolTimeout) -> PoolTimeout:
    """What *call* raises; exactly that kind."""
    with pytest.raises(PoolTimeout) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def working(driver: StubDriver) -> Any:
    """Makes a leased connection look as if a call were inside it, for as long as told."""

    class Work:
        def begin(self, lease: Any) -> None:
            lease.driver_connection._state.enter()

        def end(self, lease: Any) -> None:
            lease.driver_connection._state.leave(0)

    return Work()


# -- the verdict ---------------------------------------------------------------


def test_too_small(make: Make) -> None:
    """Connections that are just held, by threads that live, are too few."""
    pool = make(max_size=2)
    held = leases(pool, 2)
    assert verdict(pool) == "too small"
    give_back(held)


def test_leaked_by_age(make: Make, clock: Clock) -> None:
    """Held for longer than the leak_threshold, with nothing running on it: leaked."""
    pool = make(max_size=1, leak_threshold=5.0, check_after_idle=None)
    lease = pool.acquire()
    clock.now += 5.0
    error = refused(lambda: pool.acquire(0))
    assert error.verdict == "too small"
    clock.now += 0.5
    error = refused(lambda: pool.acquire(0))
    assert error.verdict == "leaked"
    assert f"leaked: the connection acquired at {HERE}" in str(error)
    lease.release()


def test_leaked_by_a_thread_that_ended(make: Make, spawn: Spawn) -> None:
    """A connection whose thread has ended is leaked, however young."""
    pool = make(max_size=1)
    lease = spawn(pool.acquire).result()
    eventually(lambda: not pool.holders()[0].alive)
    assert verdict(pool) == "leaked"
    lease.release()


def test_a_raw_thread_lives(make: Make) -> None:
    """A thread that the threading module does not know is alive all the same."""
    pool = make(max_size=1)
    held: list[Any] = []
    done = threading.Event()

    def hold() -> None:
        held.append(pool.acquire())
        done.wait(PATIENCE)

    _thread.start_new_thread(hold, ())
    eventually(lambda: held)
    (holder,) = pool.holders()
    assert holder.alive
    # An earlier raw thread with this identifier may have been given a name.
    assert holder.thread_name == "?" or holder.thread_name.startswith("Dummy-")
    assert verdict(pool) == "too small"
    done.set()
    held[0].release()


def test_database_slow(make: Make, working: Any) -> None:
    """Most connections in a call for most of the wait: the database is slow."""
    pool = make(max_size=3)
    held = leases(pool, 3)
    for lease in held[:2]:
        working.begin(lease)
    assert verdict(pool, 0.2) == "database slow"
    for lease in held[:2]:
        working.end(lease)
    assert verdict(pool, 0.2) == "too small"
    give_back(held)


def test_database_down(make: Make, driver: StubDriver) -> None:
    """Nothing established, and dials that fail: the database is down; the text says since when."""
    driver.fail("connect", Refused("nobody home"), times=1000)
    pool = make(connect_backoff=0.01)
    error = refused(lambda: pool.acquire(0.1))
    assert error.verdict == "database down"
    assert "no connection is established" in str(error)
    assert "no attempt to connect has succeeded for" in str(error)
    assert "last connect error: Refused: nobody home (" in str(error)
    assert error.facts.error == "Refused: nobody home"  # type: ignore[attr-defined]


def test_a_dial_that_hangs(make: Make, driver: StubDriver) -> None:
    """Nothing established while a dial is in flight is the database's doing, too."""
    driver.gates["connect"] = threading.Event()
    error = refused(lambda: make().acquire(0.1))
    assert error.verdict == "database down"
    assert "being dialled: 1" in str(error)


def test_room_but_no_connection(make: Make, driver: StubDriver) -> None:
    """With some established, failing dials for those that lack mean the database is down."""
    pool = make(max_size=3)
    lease = pool.acquire()
    driver.fail("connect", Refused("too many"), times=1000)
    assert verdict(pool, 0.1) == "database down"
    lease.release()


def test_a_try_says_nothing_yet(make: Make, driver: StubDriver) -> None:
    """Who does not wait at all, and comes first, gets no verdict."""
    driver.gates["connect"] = threading.Event()
    error = refused(lambda: make().acquire(0))
    assert error.verdict is None


def test_what_is_carried(make: Make, spawn: Spawn) -> None:
    """Holders and waiters with their sites, ages and threads are in the error, and its text."""
    pool = make(max_size=1)
    lease = pool.acquire()
    waiting = spawn(lambda: pool.acquire().release())
    eventually(lambda: pool.stats().waiting == 1)
    late = spawn(lambda: pool.acquire(0.05))
    late.join()
    error = late.error
    assert isinstance(error, PoolTimeout)
    assert (error.size, error.idle, error.waiting) == (1, 0, 1)
    facts: Any = error.facts
    (oldest,) = facts.waiters
    assert (facts.waiting, oldest.thread_id) == (1, waiting.thread.ident)
    assert oldest.site.startswith(HERE)
    assert f"longest waiting: {HERE}" in str(error)
    assert f"held by: {HERE}" in str(error)
    assert facts.holders == error.holders
    lease.release()
    waiting.result()


# -- holders -------------------------------------------------------------------


def test_what_a_holder_does(make: Make, working: Any) -> None:
    """A holder's connection is idle, idle in a transaction, or active since so long."""
    pool = make(max_size=1)
    lease = pool.acquire()
    assert (pool.holders()[0].state, pool.holders()[0].running) == ("idle", None)
    lease.run("BEGIN")
    assert (pool.holders()[0].state, pool.holders()[0].running) == ("idle in transaction", None)
    lease.run("COMMIT")
    working.begin(lease)
    (holder,) = pool.holders()
    assert holder.state == "active"
    assert holder.running is not None
    eventually(lambda: (pool.holders()[0].running or 0.0) > holder.running)
    working.end(lease)
    assert pool.holders()[0].state == "idle"
    lease.release()


def test_where_a_holder_is(make: Make, spawn: Spawn) -> None:
    """now_at is the user's own line, above the library's that it has called."""
    pool = make(max_size=1)
    done = threading.Event()
    line = 0

    def work() -> None:
        nonlocal line
        with pool.connection():
            line = work.__code__.co_firstlineno + 4
            done.wait(PATIENCE)

    caller = spawn(work)
    eventually(lambda: line and pool.holders()[0].now_at == f"{HERE}{line}")
    (holder,) = pool.holders()
    assert holder.site == f"{HERE}{line - 2}"
    done.set()
    caller.join()
    assert holder.now_at is None or holder.alive


def test_nothing_is_collected_while_frames_are_looked_at(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older interpreters hang or crash when finalizers run then; later it is as before."""
    seen: list[bool] = []

    class Frame:
        """One of the driver's, called by one of the user's."""

        f_globals: ClassVar = {"__name__": "pg8000.native"}

        @property
        def f_back(self) -> Any:
            seen.append(gc.isenabled())
            return sys._getframe()

    def look() -> dict[int, Any]:
        seen.append(gc.isenabled())
        assert pool.holders()[0].now_at is None  # who else looks meanwhile does not wait
        return {threading.get_ident(): Frame()}

    pool = make(max_size=1)
    monkeypatch.setattr(stats, "_COLLECTS", True)
    monkeypatch.setattr(sys, "_current_frames", look)
    for collects in (True, False):
        (gc.enable if collects else gc.disable)()
        try:
            with pool.connection():
                assert pool.holders()[0].now_at is not None
            assert gc.isenabled() == collects
        finally:
            gc.enable()
    assert seen == [False] * 4


def test_where_nobody_is(make: Make, spawn: Spawn) -> None:
    """A thread that has ended, or is in no code of the user's, is nowhere."""
    pool = make(max_size=1)
    lease = spawn(pool.acquire).result()
    eventually(lambda: not pool.holders()[0].alive)
    assert pool.holders()[0].now_at is None
    lease.release()
    with ThreadPoolExecutor(1) as workers:
        lease = workers.submit(pool.acquire).result(PATIENCE)
        # Back in the executor, whose code is the standard library's.
        eventually(lambda: pool.holders()[0].now_at is None)
        assert pool.holders()[0].alive
        lease.release()


def test_the_text_says_where_the_holder_is(make: Make, spawn: Spawn) -> None:
    """A timeout says what line the holder has come to since its acquire."""
    pool = make(max_size=1)
    done = threading.Event()

    def work() -> None:
        with pool.connection():
            done.wait(PATIENCE)

    caller = spawn(work)
    eventually(lambda: pool.stats().in_use)
    line = work.__code__.co_firstlineno
    eventually(lambda: (pool.holders()[0].now_at or "").endswith(f":{line + 2}"))
    error = refused(lambda: pool.acquire(0.01))
    assert f"{HERE}{line + 1} (thread" in str(error)
    assert f"now at {HERE}{line + 2}" in str(error)
    done.set()
    caller.join()


# -- the log -------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_exhaustion_is_logged_now_and_then(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first caller who gets nothing is logged, the next one after a while."""
    pool = make(name="orders", max_size=1, deadlock=None)
    with pool.connection():
        for _ in range(3):
            error = refused(lambda: pool.acquire(0.001))
        (message,) = warnings_of(caplog)
        assert message.startswith("pool 'orders': no connection within 0.001 s (size 1/1, ")
        assert "too small: " in message
        assert f"held by: {HERE}" in message
        monkeypatch.setattr(_house, "_SELDOM", 0.0)
        error = refused(lambda: pool.acquire(0.001))
    assert warnings_of(caplog)[1:] == [str(error)]


def test_a_try_is_not_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Who would not wait has not found the pool exhausted."""
    pool = make(max_size=1)
    with pool.connection():
        refused(lambda: pool.acquire(0))
    assert not caplog.records


def test_a_crowd_is_logged_now_and_then(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Of many who are refused because too many wait, the first is logged, with the verdict."""
    pool = make(max_size=1, min_size=1, max_waiting=0)
    pool.open(wait=True)
    with pool.connection():
        for _ in range(3):
            with pytest.raises(TooManyRequests):
                pool.acquire()
    (message,) = warnings_of(caplog)
    assert "0 callers wait already (max_waiting=0) (size 1/1, " in message
    assert "too small: " in message


def test_close_says_why(make: Make, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """What close() had to take away is named with the verdict, all of it."""
    pool = make(max_size=8, check_after_idle=None)
    held = leases(pool, 7)
    clock.now += 31.0
    pool.close(timeout=0.05)
    (message,) = warnings_of(caplog)
    assert "7 connections still in use (size 7/8, " in message
    assert ": leaked: the connection acquired at " in message
    assert message.count("(thread 'MainThread', 31.0 s, idle") == 7
    give_back(held)


def test_close_calls_no_pool_too_small(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Who is at work when a pool closes needs no larger one."""
    pool = make()
    lease = pool.acquire()
    pool.close(timeout=0.02)
    (message,) = warnings_of(caplog)
    assert "too small" not in message
    lease.release()


# -- leaks -------------------------------------------------------------------


def test_a_leak_is_described(make: Make, caplog: pytest.LogCaptureFixture, spawn: Spawn) -> None:
    """A leak's warning says who holds the connection, what it does, and where the thread is."""
    pool = make(leak_threshold=0.02)
    done = threading.Event()

    def work() -> None:
        with pool.transaction():
            done.wait(PATIENCE)

    caller = spawn(work)
    eventually(lambda: pool.holders())
    pool._house.keeper.tend()
    eventually(lambda: warnings_of(caplog))
    line = work.__code__.co_firstlineno
    (message,) = warnings_of(caplog)
    assert f"since its acquire at {HERE}{line + 1} (thread '{caller.thread.name}'" in message
    assert message.endswith(f" s, idle in transaction), now at {HERE}{line + 2}")
    done.set()
    caller.join()


@pytest.mark.parametrize("words", ["BEGIN", "SET x"])
def test_a_lease_lost_in_a_state(make: Make, driver: StubDriver, words: str) -> None:
    """A lease lost with a transaction or settings open is reported, and its connection closed."""
    pool = make(max_size=1)
    lease = pool.acquire()
    lease.run(words)
    with pytest.warns(ResourceWarning, match=rf"acquired at {HERE}\d+ was never released"):
        del lease
    eventually(lambda: pool.stats().closed == {"lost": 1})
    assert pool.run("SELECT 1") == "SELECT 1"
    assert driver.counts["connect"] == 2


def test_a_lease_lost_beside_waiters(make: Make, spawn: Spawn) -> None:
    """What the finalizer takes back goes to whoever waits."""
    pool = make(max_size=1)
    lease = pool.acquire()
    waiting = spawn(lambda: pool.run("SELECT 1"))
    eventually(lambda: pool.stats().waiting == 1)
    with pytest.warns(ResourceWarning, match="was never released"):
        del lease
    assert waiting.result() == "SELECT 1"


# -- deadlock ------------------------------------------------------------------


def test_threads_that_acquire_twice(make: Make) -> None:
    """N threads that each want two of N connections: one is told at once, the others finish."""
    count = 8
    pool = make(max_size=count, timeout=30.0)
    together = threading.Barrier(count)

    def work(number: int) -> str:
        with pool.connection() as first:
            first.run("SELECT 1")
            together.wait(PATIENCE)
            try:
                with pool.connection() as second:
                    return second.run("SELECT 2")
            except PoolDeadlock as error:
                errors.append(error)
                return "deadlock"

    errors: list[PoolDeadlock] = []
    began = time.monotonic()
    with ThreadPoolExecutor(count, thread_name_prefix="worker") as workers:
        results = list(workers.map(work, range(count)))
    assert time.monotonic() - began < PATIENCE < 30.0
    assert sorted(results) == ["SELECT 2"] * (count - 1) + ["deadlock"]
    (error,) = errors
    assert error.verdict is None
    text, line = str(error), work.__code__.co_firstlineno
    for number in range(count):
        assert f"thread 'worker_{number}' holds {HERE}{line + 1} and waits at {HERE}{line + 5}" in (
            text
        )
    facts: Any = error.facts
    assert len(error.holders) == len(facts.waiters) == count
    stats = pool.stats()
    assert (stats.timeouts, stats.cancelled, stats.waiting) == (0, 1, 0)


def test_a_thread_that_waits_for_itself(make: Make) -> None:
    """One thread that has taken everything and wants more is told at once."""
    pool = make(max_size=1, timeout=1000.0)
    with pool.connection():
        error = refused(pool.acquire, PoolDeadlock)
    assert error.timeout == pytest.approx(1000.0)  # the difference of two clock times
    assert pool.run("SELECT 1") == "SELECT 1"


def test_a_lease_dropped_in_a_cycle_is_no_holder(make: Make) -> None:
    """What only the garbage collector can give back is given back before anybody is
    told of a deadlock."""
    pool = make(max_size=1)
    gc.disable()
    try:
        cycle: list[Any] = [pool.acquire().__enter__()]
        cycle.append(cycle)
        del cycle
        with pytest.warns(ResourceWarning, match="never released"), pool.connection(PATIENCE):
            pass
    finally:
        gc.enable()
    assert pool.stats().idle == 1


def test_deadlock_log(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """With deadlock="log" each occurrence is logged once, and the caller waits."""
    pool = make(max_size=1, deadlock="log")
    for count in (1, 2):
        with pool.connection():
            for _ in range(2):
                refused(lambda: pool.acquire(0.01))
        messages = [m for m in warnings_of(caplog) if "deadlock: each of the 1 connections" in m]
        assert len(messages) == count


def test_deadlock_off(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """With deadlock=None the caller waits, and nothing is said of it."""
    pool = make(max_size=1, deadlock=None)
    with pool.connection():
        refused(lambda: pool.acquire(0.01))
    assert "deadlock" not in caplog.text


def test_greenlets_for_threads(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where threads cannot be told apart, since they are greenlets, nobody is told."""
    allocate = _thread.allocate_lock

    def patched() -> Any:
        return allocate()

    pool = make(max_size=1)
    with pool.connection():
        monkeypatch.setattr(_thread, "allocate_lock", patched)
        refused(lambda: pool.acquire(0.01))
        monkeypatch.undo()


def test_a_dispatcher_and_its_workers(make: Make) -> None:
    """Leases acquired by one thread and released by others are no deadlock."""
    pool = make(max_size=2)
    with ThreadPoolExecutor(2) as workers:
        jobs = []
        for number in range(200):
            lease = pool.acquire()

            def work(lease: Any = lease, number: int = number) -> str:
                try:
                    answer: str = lease.run(f"SELECT {number}")
                    return answer
                finally:
                    lease.release()

            jobs.append(workers.submit(work))
        assert [job.result(PATIENCE) for job in jobs] == [f"SELECT {n}" for n in range(200)]
