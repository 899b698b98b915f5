"""Deadlines: how long one use of a pool may take in all, and what becomes of it then."""

# ruff: noqa: PT012, SIM117 - what raises is the end of a block, or a call inside it

from __future__ import annotations

import contextlib
import contextvars
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from pool.kit import PATIENCE, Caller, Clock, eventually, filled

import fastpool
from fastpool import (
    ConfigError,
    ConnectionReleased,
    DeadlineExceeded,
    Pool,
    PoolTimeout,
    RetryPolicy,
    TransactionAborted,
    _deadline,
)
from fastpool.testing import StubConnection, StubDriver, StubError

Make = Callable[..., Pool[StubConnection]]
Spawn = Callable[[Callable[[], Any]], Caller]

GONE = 0.0
"""A deadline that has passed when it begins."""


def flags(conn: Any) -> int:
    """What the connection's state object says."""
    found: int = conn.driver_connection._state.flags
    return found


# -- the context's deadline ----------------------------------------------------


def test_no_deadline_is_infinite() -> None:
    """Outside any block there is none."""
    assert fastpool.deadline.remaining() == math.inf


def test_inner_ones_only_shorten() -> None:
    """An inner deadline may come earlier than the outer one, never later."""
    with fastpool.deadline(100):
        assert 99 < fastpool.deadline.remaining() <= 100
        with fastpool.deadline(1000):
            assert fastpool.deadline.remaining() <= 100
        with fastpool.deadline(10):
            assert fastpool.deadline.remaining() <= 10
        with fastpool.deadline(math.inf):
            assert fastpool.deadline.remaining() <= 100
        assert fastpool.deadline.remaining() > 10
    assert fastpool.deadline.remaining() == math.inf


def test_a_deadline_can_be_used_again() -> None:
    """It counts from each entry, also when it is entered inside itself."""
    limit = fastpool.deadline(100)
    for _ in range(2):
        with limit, limit:
            assert 99 < fastpool.deadline.remaining() <= 100
    assert fastpool.deadline.remaining() == math.inf


def test_a_deadline_decorates() -> None:
    """Around a function it counts from each call."""

    @fastpool.deadline(100)
    def left() -> float:
        return fastpool.deadline.remaining()

    assert 99 < left() <= 100
    assert fastpool.deadline.remaining() == math.inf


def test_what_works_after_its_return_is_not_decorated() -> None:
    """A generator or coroutine function would have no limit at all."""

    async def later() -> None: ...

    def lazy() -> Iterator[int]:
        yield 1

    for function in (later, lazy):
        with pytest.raises(TypeError, match="after its return"):
            fastpool.deadline(1)(function)


def test_each_thread_has_its_own(spawn: Spawn) -> None:
    """Another thread is not bound by this one's."""
    with fastpool.deadline(1):
        assert spawn(fastpool.deadline.remaining).result() == math.inf


@pytest.mark.parametrize("seconds", [-1, math.nan, True, "1", None])
def test_what_is_no_time_is_refused(make: Make, seconds: Any) -> None:
    """A deadline that is no number of seconds is an error that names it, at once."""
    with pytest.raises(ConfigError, match="deadline: expected seconds >= 0"):
        fastpool.deadline(seconds)
    if seconds is not None:
        for call in (make().connection, make().acquire, make().within):
            with pytest.raises(ConfigError, match="deadline: expected seconds >= 0"):
                call(deadline=seconds)


def ready(make: Make, **settings: Any) -> Pool[StubConnection]:
    """A pool with a connection that need not be waited for."""
    pool = make(min_size=1, **settings)
    filled(pool)
    return pool


# -- waiting -------------------------------------------------------------------


def waits(pool: Pool[StubConnection]) -> list[Callable[[], Any]]:
    """All ways to wait under a deadline that is over soon."""

    def around(call: Callable[[], Any]) -> Callable[[], Any]:
        def under() -> Any:
            with fastpool.deadline(0.01):
                return call()

        return under

    def block(**limits: float) -> None:
        with pool.connection(**limits):
            pass

    def transaction() -> None:
        with pool.transaction(deadline=0.01):
            pass

    return [
        lambda: block(deadline=0.01),
        lambda: pool.acquire(deadline=0.01),
        transaction,
        lambda: pool.within(deadline=0.01).run("SELECT"),
        around(block),
        around(lambda: block(timeout=PATIENCE)),
        around(lambda: block(deadline=PATIENCE)),
        around(lambda: pool.run("SELECT")),
        around(lambda: pool.ping(PATIENCE)),
    ]


@pytest.mark.parametrize("way", range(9))
def test_the_wait_ends_with_the_deadline(make: Make, way: int) -> None:
    """Whoever waits when the deadline passes is told so, and that nothing was sent."""
    pool = make(max_size=1, timeout=PATIENCE, deadlock=None)
    with pool.connection():
        with pytest.raises(DeadlineExceeded, match=r"no connection before the deadline") as caught:
            waits(pool)[way]()
    assert caught.value.outcome == "not_sent"
    assert isinstance(caught.value, TimeoutError)
    assert "test_deadlines.py" in str(caught.value)  # who held it
    assert pool.stats().timeouts == 1


def test_the_shorter_of_both_says_which_it_was(make: Make) -> None:
    """A timeout before the deadline is a PoolTimeout."""
    pool = make(max_size=1, deadlock=None)
    with pool.connection():
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.01, deadline=PATIENCE)
        with pytest.raises(DeadlineExceeded):
            pool.acquire(timeout=PATIENCE, deadline=0.01)
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0, deadline=GONE)


def test_a_hit_waits_for_nothing(make: Make) -> None:
    """An idle connection is handed out whatever the time; its first statement refuses."""
    pool = make(min_size=1)
    filled(pool)
    with pool.connection(deadline=GONE) as conn:
        with pytest.raises(DeadlineExceeded, match="before the statement") as caught:
            conn.run("SELECT 1")
    assert caught.value.outcome == "not_sent"
    assert pool.stats().idle == 1


def test_a_deadline_counts_from_the_checkout(make: Make) -> None:
    """A view's deadline is that of each call, not of the view."""
    view = make().within(deadline=100)
    for _ in range(2):
        with view.connection() as conn:
            deadline = conn.driver_connection._state.deadline  # type: ignore[attr-defined]
            assert 99 < deadline - time.monotonic() <= 100


def test_the_next_user_has_no_deadline(make: Make) -> None:
    """A deadline ends with its lease, at a hit and at a hand-off."""
    pool = make(max_size=1)
    with pool.connection(deadline=PATIENCE):
        pass
    with pool.connection() as conn:
        assert conn.driver_connection._state.deadline == math.inf  # type: ignore[attr-defined]


def test_a_hand_off_brings_the_deadline(make: Make, spawn: Spawn) -> None:
    """Who has waited for the connection has the rest of the time for its statements."""
    pool = make(max_size=1)
    held = pool.acquire()

    def use() -> float:
        with pool.connection(deadline=100) as conn:
            until: float = conn.driver_connection._state.deadline  # type: ignore[attr-defined]
            return until - time.monotonic()

    caller = spawn(use)
    eventually(lambda: pool.stats().waiting)
    held.release()
    assert 90 < caller.result() < 100


def test_a_ping_at_checkout_is_part_of_it(make: Make, driver: StubDriver) -> None:
    """A check that would last longer than the deadline is given up with it."""
    pool = make(check="ping", max_size=1, min_size=1, ping_timeout=PATIENCE, connect_backoff=0.01)
    filled(pool)
    driver.gates["ping"] = threading.Event()
    driver.gates["connect"] = threading.Event()
    with pytest.raises(DeadlineExceeded):
        pool.acquire(deadline=0.02)
    eventually(lambda: pool.stats().closed == {"dead": 1})


def test_with_no_time_left_nothing_is_checked(make: Make, driver: StubDriver) -> None:
    """A connection is not taken for dead because its caller is too late to ask."""
    pool = make(check="ping", min_size=1)
    filled(pool)
    pings = driver.counts["ping"]
    with pytest.raises(DeadlineExceeded):
        pool.acquire(deadline=GONE)
    assert (driver.counts["ping"], pool.stats().idle, pool.stats().closed) == (pings, 1, {})


def test_a_suspect_stays_one(make: Make, driver: StubDriver) -> None:
    """Who was too late to look has not looked: the next caller does."""
    pool = make(min_size=1, max_size=1)
    filled(pool)
    [entry] = pool._core.idle_entries()
    pool._core.suspect(entry)
    pings = driver.counts["ping"]
    with pytest.raises(DeadlineExceeded):
        pool.acquire(deadline=GONE)
    pool.acquire().release()
    assert driver.counts["ping"] == pings + 1


def test_a_rollback_that_fails_hides_nothing(make: Make, driver: StubDriver) -> None:
    """Too late to commit, or aborted: that is said, also when the ROLLBACK gets no answer."""
    pool = make(max_size=1)
    for block in (pool.connection, pool.transaction):
        with pytest.raises(DeadlineExceeded) as caught, block() as conn:
            if block == pool.connection:
                conn.run("BEGIN")
            conn._state.deadline = GONE
            driver.fail("control")
        assert caught.value.outcome == "not_sent"
        with pytest.raises(TransactionAborted) as aborted, block() as conn:
            if block == pool.connection:
                conn.run("BEGIN")
            with contextlib.suppress(StubError):
                conn.run("FAIL")
            driver.fail("control")
        assert aborted.value.outcome == "rolled_back"


def test_after_connect_at_a_late_return(make: Make) -> None:
    """The hook that prepares a reset connection for the next user has time to do so."""
    pool = make(max_size=1, after_connect=lambda conn: conn.run("SELECT 1"))
    with pool.connection(deadline=100) as conn:
        conn.run("SET a = 1")
        conn._state.deadline = GONE
    assert (pool.stats().idle, pool.stats().closed) == (1, {})


def test_an_old_deadline_does_not_concern_the_keeper(
    make: Make, driver: StubDriver, clock: Clock
) -> None:
    """The keeper pings a connection whose last user's deadline has passed long ago."""
    pool = ready(make, check_after_idle=10.0)
    with pool.connection(deadline=GONE):
        pass
    pings = driver.counts["ping"]
    clock.now += 6.0
    pool._house.keeper.tend()
    eventually(lambda: driver.counts["ping"] > pings)
    assert pool.stats().closed == {}


# -- transactions --------------------------------------------------------------


def test_too_late_to_commit_is_rolled_back(make: Make, driver: StubDriver) -> None:
    """No COMMIT is sent after the deadline: the transaction is rolled back, and said so."""
    pool = ready(make)
    with pytest.raises(DeadlineExceeded, match="rolled back") as caught:
        with pool.connection(deadline=0.05) as conn:
            conn.run("BEGIN")
            eventually(lambda: time.monotonic() > conn.driver_connection._state.deadline)  # type: ignore[attr-defined]
    assert caught.value.outcome == "not_sent"
    assert driver.connections[0].statements == ["BEGIN", "ROLLBACK"]
    with pytest.raises(DeadlineExceeded), fastpool.deadline(0.05), pool.transaction():
        eventually(lambda: fastpool.deadline.remaining() < 0)
    assert driver.connections[0].statements == ["BEGIN", "ROLLBACK"] * 2
    assert pool.stats().idle == 1


def test_a_commit_without_an_answer_is_unknown(make: Make, driver: StubDriver) -> None:
    """A COMMIT gets the time that is left and the budget; then nobody knows."""
    pool = ready(make, cancel_budget=0.01)
    with pytest.raises(DeadlineExceeded, match="COMMIT was sent") as caught:
        with pool.transaction(deadline=0.2):
            driver.gates["control"] = threading.Event()
    assert caught.value.outcome == "unknown"
    assert driver.counts["cancel"] == 0
    eventually(lambda: pool.stats().closed == {"broken": 1})


def test_a_late_rollback_is_sent(make: Make, driver: StubDriver) -> None:
    """A block that raises after its deadline is rolled back all the same, nested or not."""
    pool = ready(make)
    with pytest.raises(KeyError), pool.transaction(deadline=0.05):
        with fastpool.deadline(0.05):
            eventually(lambda: fastpool.deadline.remaining() < 0)
            raise KeyError
    assert driver.connections[0].statements == ["BEGIN", "ROLLBACK"]
    assert pool.stats().idle == 1


def test_a_return_does_not_outlast_the_deadline(make: Make, driver: StubDriver) -> None:
    """A rollback that hangs is given up with the budget; the connection is closed."""
    pool = ready(make, cancel_budget=0.02)
    conn = pool.acquire(deadline=0.01)
    conn.run("BEGIN")
    driver.gates["control"] = threading.Event()
    began = time.monotonic()
    conn.release()
    assert time.monotonic() - began < PATIENCE / 2
    eventually(lambda: pool.stats().closed == {"reset": 1})


def test_hooks_at_return_have_their_own_time(make: Make) -> None:
    """What the pool does between two users is not refused because the last was late."""
    seen = []

    def clean(conn: Any) -> bool:
        conn.run("SELECT 1")
        seen.append(fastpool.deadline.remaining())
        return True

    pool = ready(make, after_release=clean)
    with fastpool.deadline(GONE + 0.05), pool.connection(deadline=0.05):
        eventually(lambda: fastpool.deadline.remaining() < 0)
    assert seen == [math.inf]
    assert pool.stats().idle == 1


def test_retries_respect_it(make: Make, driver: StubDriver) -> None:
    """No attempt is waited for that could only begin after the deadline."""
    pool = make()
    policy = RetryPolicy(max_attempts=5, initial_wait=1e6, max_wait=1e6, jitter="none")
    error = StubError("serialization")
    error.sqlstate = "40001"  # type: ignore[attr-defined]
    attempts = 0

    def fail(conn: Any) -> None:
        nonlocal attempts
        attempts += 1
        raise error

    with pytest.raises(StubError), fastpool.deadline(PATIENCE):
        pool.run_in_transaction(fail, policy=policy)
    assert attempts == 1


# -- cancelling ----------------------------------------------------------------


def test_cancel_asks_the_driver(make: Make, driver: StubDriver) -> None:
    """A cancel that has ended leaves the connection as it was, for the next user too."""
    pool = make()
    with pool.connection() as conn:
        conn.cancel()  # type: ignore[attr-defined]
        conn.run("SELECT 1")
    assert driver.counts["cancel"] == 1
    assert (pool.stats().idle, pool.stats().closed) == (1, {})


def test_nobody_gets_it_before_the_cancel_has_ended(
    make: Make, driver: StubDriver, spawn: Spawn
) -> None:
    """A connection whose cancel request is still on its way is held back at its return."""
    gate = driver.gates["cancel"] = threading.Event()
    pool = make(max_size=1, cancel_budget=PATIENCE)
    lease = pool.acquire()
    canceller = spawn(lambda: lease.cancel(PATIENCE))
    eventually(lambda: driver.counts["cancel"])
    waiting = spawn(lambda: pool.run("SELECT 1"))
    releasing = spawn(lease.release)
    eventually(lambda: pool.stats().checking)
    assert not waiting.ended
    gate.set()
    for caller in (canceller, releasing, waiting):
        caller.result()
    assert len(driver.connections) == 1


def test_lost_sight_of_is_closed(make: Make, driver: StubDriver) -> None:
    """A cancel request that failed may still arrive: nobody else gets the connection."""
    pool = make(max_size=1)
    for error in (OSError("no way"), KeyboardInterrupt()):
        driver.fail("cancel", error)
        lease = pool.acquire()
        with pytest.raises(type(error)):
            lease.cancel()
        lease.run("SELECT 1")  # its own user may go on
        lease.release()
    eventually(lambda: pool.stats().closed == {"cancelled": 2})
    with pool.connection() as conn:
        assert conn.number == 3


def test_an_endless_cancel_is_not_waited_for(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """A return waits cancel_budget for it, then closes the connection."""
    gate = driver.gates["cancel"] = threading.Event()
    pool = make(max_size=1, cancel_budget=0.02)
    lease = pool.acquire()
    canceller = spawn(lambda: lease.cancel(PATIENCE))
    eventually(lambda: driver.counts["cancel"])
    lease.release()
    eventually(lambda: pool.stats().closed == {"cancelled": 1})
    gate.set()
    canceller.result()


def test_a_released_lease_cancels_nobody(make: Make, driver: StubDriver) -> None:
    """After the release there is nothing of this lease to cancel."""
    pool = make(max_size=1)
    lease = pool.acquire()
    lease.release()
    with pool.connection():
        with pytest.raises(ConnectionReleased):
            lease.cancel()
    with pool.acquire() as conn, pytest.raises(ConfigError, match="timeout"):
        conn.cancel(-1)  # type: ignore[attr-defined]
    assert driver.counts["cancel"] == 0


def test_an_interrupt_leaves_no_deadline_behind(spawn: Spawn) -> None:
    """Wherever a block is interrupted, at its very begin or end too, its thread is free of
    the deadline afterwards, and under the outer one still."""

    class Interrupt(BaseException):
        pass

    def blocks() -> None:
        with fastpool.deadline(100.0), fastpool.deadline(0.0), _deadline.lifted():
            pass

    def struck(point: int) -> bool:
        """Interrupt *blocks* at that point; False when it has no so many."""
        left = point

        def look(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename != _deadline.__file__:
                return look
            frame.f_trace_opcodes = True
            if event in ("call", "opcode"):
                left -= 1
                if left == 0:
                    raise Interrupt
            return look

        before = sys.gettrace()
        sys.settrace(look)
        try:
            blocks()
        except Interrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    def strike_everywhere() -> int:
        point = 1
        with fastpool.deadline(1000.0):
            outer = _deadline.current()
            while struck(point):
                assert _deadline.current() == outer, point
                point += 1
        assert _deadline.current() == math.inf
        return point

    # In a thread of its own: where a handler of exceptions is struck, which no real
    # interrupt does, CPython goes on handling that exception.
    assert spawn(strike_everywhere).result() > 100


def test_a_block_that_is_left_for_good() -> None:
    """A limit lives as long as its block, whoever still has the variable's copy."""
    block = fastpool.deadline(0.0)
    block.__enter__()
    copied = contextvars.copy_context()
    assert copied.run(_deadline.current) < math.inf
    del block
    assert _deadline.current() == copied.run(_deadline.current) == math.inf
