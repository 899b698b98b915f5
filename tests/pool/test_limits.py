"""How many connections there are, and how long callers wait for one."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from pool.kit import PATIENCE, Caller, eventually, filled, give_back, leases

from fastpool import ConfigError, Pool, PoolTimeout, TooManyRequests
from fastpool.drivers.base import DIRTY
from fastpool.testing import StubConnection, StubDriver

Make = Callable[..., Pool[StubConnection]]
Spawn = Callable[[Callable[[], Any]], Caller]


def test_nothing_is_dialled_before_it_is_wanted(make: Make, driver: StubDriver) -> None:
    """Making a pool dials nothing, and opening it only fills up to min_size."""
    pool = make(min_size=3)
    assert driver.counts["connect"] == 0
    filled(pool)
    assert (pool.stats().idle, driver.counts["connect"]) == (3, 3)


def test_default_sizes() -> None:
    """Left alone a pool keeps 5 connections and makes 25 at most."""
    config = Pool(driver=StubDriver()).config
    assert (config.min_size, config.max_size, config.min_idle, config.max_idle) == (5, 25, 0, 25)


def test_filling_uses_all_diallers(make: Make, driver: StubDriver) -> None:
    """The first fill runs connect_concurrency dials at a time, no more."""
    gate = driver.gates["connect"] = threading.Event()
    pool = make(min_size=8, connect_concurrency=3)
    pool.open()
    eventually(lambda: driver.counts["connect"] == 3)
    assert pool.stats().connecting == 3
    gate.set()
    pool.wait()
    assert (driver.most_open, pool.stats().idle) == (8, 8)


def test_one_dialler_dials_one_at_a_time(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """connect_concurrency=1 means one dial in flight, however many wait."""
    gate = driver.gates["connect"] = threading.Event()
    pool = make(max_size=5, connect_concurrency=1)
    callers = [spawn(lambda: pool.acquire().release()) for _ in range(5)]
    eventually(lambda: pool.stats().waiting == 5 and pool.stats().connecting)
    assert pool.stats().connecting == 1
    gate.set()
    for caller in callers:
        caller.result()


def test_max_size_is_never_exceeded(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """However many callers come, there are max_size connections at most."""
    pool = make(max_size=4)
    callers = [spawn(lambda: pool.acquire().release()) for _ in range(20)]
    for caller in callers:
        caller.result()
    assert driver.most_open <= 4


def test_min_idle_is_refilled_at_once(make: Make, driver: StubDriver) -> None:
    """After a burst min_idle connections are idle again, without waiting for a tick."""
    pool = make(min_idle=2, max_size=10, health_check_period=1000.0)
    pool.open()
    eventually(lambda: pool.stats().idle == 2)
    held = []
    for _ in range(3):
        held.append(pool.try_acquire())
        eventually(lambda: pool.stats().idle == 2 and pool.stats().size == 2 + len(held))
    give_back(held)
    assert driver.most_open == 5


def test_min_idle_stops_at_max_size(make: Make) -> None:
    """min_idle is served only while there is room."""
    pool = make(min_idle=2, max_size=3)
    held = leases(pool, 2)
    eventually(lambda: pool.stats().idle == 1)
    assert pool.stats().size == 3
    give_back(held)


def test_surplus_idle_is_closed_at_return(make: Make) -> None:
    """More idle connections than max_idle are closed when they come back."""
    pool = make(max_size=5, max_idle=2)
    give_back(leases(pool, 5))
    eventually(lambda: pool.stats().size == 2)
    assert pool.stats().closed == {"max_idle": 3}


@pytest.mark.parametrize(("order", "expected"), [("lifo", [3, 2, 1]), ("fifo", [1, 2, 3])])
def test_idle_order(make: Make, order: str, expected: list[int]) -> None:
    """lifo hands out the last one returned, fifo the one that is idle longest."""
    pool = make(max_size=3, idle_order=order, connect_concurrency=1)
    give_back(leases(pool, 3))
    held = leases(pool, 3)
    assert [conn.number for conn in held] == expected
    give_back(held)


# -- waiting ---------------------------------------------------------------------


def test_the_pools_timeout(make: Make) -> None:
    """Who gets nothing waits for the pool's timeout, and learns the pool's state."""
    pool = make(max_size=1, timeout=0.1, deadlock=None)
    with pool.connection():
        began = time.monotonic()
        with pytest.raises(PoolTimeout, match=r"within 0\.1 s \(size 1/1, idle 0") as caught:
            pool.acquire()
        assert time.monotonic() - began >= 0.1
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert (error.timeout, error.size, error.idle, error.waiting) == (0.1, 1, 0, 0)
    assert error.waited is not None
    assert error.waited >= 0.1
    assert error.__cause__ is None


@pytest.mark.parametrize("call", ["acquire", "connection", "transaction", "within", "run"])
def test_timeout_of_one_call(make: Make, call: str) -> None:
    """A call's own timeout wins over the pool's, however it is made."""
    pool = make(max_size=1, timeout=PATIENCE, deadlock=None)
    ways: dict[str, Callable[[], Any]] = {
        "acquire": lambda: pool.acquire(timeout=0.05),
        "connection": lambda: pool.connection(timeout=0.05).__enter__(),
        "transaction": lambda: pool.transaction(0.05).__enter__(),
        "within": lambda: pool.within(timeout=0.05).acquire(),
        "run": lambda: pool.within(timeout=0.05).run("SELECT 1"),
    }
    with pool.connection(), pytest.raises(PoolTimeout, match=r"within 0\.05 s"):
        ways[call]()


def test_timeout_zero_tries(make: Make, driver: StubDriver) -> None:
    """With timeout=0 nobody waits, but a later try finds the connection dialled for it."""
    gate = driver.gates["connect"] = threading.Event()
    pool = make()
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)
    assert pool.try_acquire() is None
    gate.set()
    eventually(lambda: pool.stats().idle == 1)
    lease = pool.try_acquire()
    assert lease is not None
    lease.release()
    assert driver.counts["connect"] == 1


def test_no_limit(make: Make, spawn: Spawn) -> None:
    """math.inf waits as long as it takes, per call and as the pool's setting."""
    pool = make(max_size=1, timeout=math.inf)
    lease = pool.acquire()
    callers = [
        spawn(lambda: pool.acquire().release()),
        spawn(lambda: pool.acquire(timeout=math.inf).release()),
    ]
    eventually(lambda: pool.stats().waiting == 2)
    lease.release()
    for caller in callers:
        caller.result()


@pytest.mark.parametrize("timeout", [-1, math.nan, "1", True])
def test_a_wrong_timeout_is_refused(make: Make, timeout: Any) -> None:
    """What is no number of seconds is refused by name, before anything happens."""
    pool = make()
    for call in (pool.acquire, pool.connection, pool.transaction):
        with pytest.raises(ConfigError, match="timeout"):
            call(timeout).__enter__()
    with pytest.raises(ConfigError, match="timeout"):
        pool.within(timeout=timeout)
    assert pool.stats().dials == 0


def test_max_waiting(make: Make, spawn: Spawn) -> None:
    """One caller more than max_waiting is refused at once; the others are served."""
    pool = make(name="orders", max_size=1, max_waiting=2)
    lease = pool.acquire()
    callers = [spawn(lambda: pool.acquire().release()) for _ in range(2)]
    eventually(lambda: pool.stats().waiting == 2)
    said = r"'orders': 2 callers wait already \(max_waiting=2"
    with pytest.raises(TooManyRequests, match=said) as refused:
        pool.acquire(timeout=PATIENCE)
    assert vars(refused.value) == {"size": 1, "idle": 0, "waiting": 2, "max_waiting": 2}
    assert pool.stats().rejected == 1
    lease.release()
    for caller in callers:
        caller.result()


def test_max_waiting_zero(make: Make) -> None:
    """With max_waiting=0 nobody waits, but who is refused has a connection dialled."""
    pool = make(max_waiting=0)
    with pytest.raises(TooManyRequests):
        pool.acquire()
    eventually(lambda: pool.stats().idle == 1)
    pool.acquire().release()


def test_first_come_first_served(make: Make, spawn: Spawn) -> None:
    """Callers are served in the order in which they began to wait."""
    pool = make(max_size=1)
    lease = pool.acquire()
    served: list[int] = []

    def call(number: int) -> None:
        with pool.connection():
            served.append(number)

    callers: list[Caller] = []
    for number in range(10):
        callers.append(spawn(partial(call, number)))
        eventually(lambda: pool.stats().waiting == len(callers))
    lease.release()
    for caller in callers:
        caller.result()
    assert served == list(range(10))


def test_who_has_given_up_gets_nothing(make: Make, spawn: Spawn) -> None:
    """A caller that timed out leaves the line, and no connection is handed to it."""
    pool = make(max_size=1)
    lease = pool.acquire()
    gone = [spawn(lambda: pool.acquire(timeout=0.02)) for _ in range(3)]
    for caller in gone:
        caller.join()
        assert isinstance(caller.error, PoolTimeout)
    assert pool.stats().waiting == 0
    stays = spawn(lambda: pool.run("SELECT 1"))
    eventually(lambda: pool.stats().waiting == 1)
    lease.release()
    assert stays.result() == "SELECT 1"


def test_a_spike_makes_few_connections(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """Short calls while a dial takes long are served by returns, not by more connections."""
    pool = make(min_size=1, max_size=40)
    filled(pool)
    gate = driver.gates["connect"] = threading.Event()
    callers = [spawn(lambda: pool.acquire().release()) for _ in range(50)]
    for caller in callers:
        caller.result()
    gate.set()
    eventually(lambda: pool.stats().connecting == 0)
    assert driver.counts["connect"] <= 1 + pool.config.connect_concurrency


# -- what a checkout looks at ------------------------------------------------------


def test_max_uses(make: Make) -> None:
    """A connection is replaced after max_uses checkouts."""
    pool = make(max_size=1, max_uses=2)
    numbers = []
    for _ in range(5):
        with pool.connection() as conn:
            numbers.append(conn.number)
    assert numbers == [1, 1, 2, 2, 3]
    eventually(lambda: pool.stats().closed == {"max_uses": 2})


def test_socket_check_finds_the_dead(make: Make) -> None:
    """With check="socket" no connection that the server closed is handed out, without a ping."""
    driver = StubDriver(sockets=True)
    pool = make(driver=driver, min_size=3, max_size=3)
    filled(pool)
    keeper = pool._house.keeper
    keeper.pause()  # it sees all of them dead, or none: who lives beside a dead one is pinged
    eventually(lambda: keeper._running is None)
    for conn in driver.connections:
        conn.kill()
    keeper.resume()
    held = leases(pool, 3)
    assert all(conn.number > 3 and conn.run("SELECT 1") for conn in held)
    give_back(held)
    assert driver.counts["ping"] == 0
    eventually(lambda: pool.stats().closed == {"dead": 3})


def test_no_check(make: Make) -> None:
    """With check=None nothing is looked at."""
    driver = StubDriver(sockets=True)
    pool = make(driver=driver, check=None)
    pool.acquire().release()
    driver.connections[0].kill()
    with pool.connection() as conn:
        assert conn.number == 1
    assert driver.counts["ping"] == 0


def test_ping_check(make: Make, driver: StubDriver) -> None:
    """With check="ping" each checkout asks the server, and a failing one takes the next."""
    pool = make(check="ping")
    pool.acquire().release()
    pool.acquire().release()
    assert driver.counts["ping"] == 2
    driver.connections[0].kill()
    with pool.connection() as conn:
        assert conn.number == 2
    # Each is timed, the one that found out too; a socket that is closed needs no ping.
    stats = pool.stats()
    assert sum(stats.check_histogram) == driver.counts["ping"]
    assert 0 < stats.check_time < PATIENCE


class BlocksOnce(threading.Event):
    """A gate that holds the first to come for as long as that one waits."""

    def wait(self, timeout: float | None = None) -> bool:
        done = super().wait(timeout)
        self.set()
        return done


def test_ping_timeout(make: Make, driver: StubDriver) -> None:
    """A ping without an answer ends after ping_timeout, and the connection is replaced."""
    pool = make(max_size=1, check="ping", ping_timeout=0.05)
    pool.acquire().release()
    driver.gates["ping"] = BlocksOnce()
    began = time.monotonic()
    with pool.connection() as conn:
        assert time.monotonic() - began >= 0.05
        assert conn.number == 2


# -- what a return undoes ------------------------------------------------------------


@pytest.mark.parametrize(
    ("reset", "run", "expected"),
    [
        ("smart", ["SELECT 1"], []),
        ("smart", ["BEGIN"], ["ROLLBACK"]),
        ("smart", ["SET a = 1"], ["DISCARD ALL"]),
        ("smart", ["BEGIN", "SET a = 1"], ["ROLLBACK", "DISCARD ALL"]),
        ("rollback", ["BEGIN", "SET a = 1"], ["ROLLBACK"]),
        ("rollback", ["SELECT 1"], []),
        ("discard", ["SELECT 1"], ["DISCARD ALL"]),
        ("discard", ["BEGIN"], ["ROLLBACK", "DISCARD ALL"]),
    ],
)
def test_reset(
    make: Make, driver: StubDriver, reset: str, run: list[str], expected: list[str]
) -> None:
    """A return undoes what the reset setting says, and keeps the connection."""
    pool = make(reset=reset)
    lease = pool.acquire()
    for sql in run:
        lease.run(sql)
    lease.release()
    assert driver.connections[0].statements == run + expected
    assert pool.stats().idle == 1


def test_reset_by_function(make: Make, driver: StubDriver) -> None:
    """A function resets after the rollback, and what it leaves open is committed."""
    pool = make(reset=lambda conn: (conn.run("BEGIN"), conn.run("MINE")))
    lease = pool.acquire()
    lease.run("BEGIN")
    lease.release()
    expected = ["BEGIN", "ROLLBACK", "BEGIN", "MINE", "COMMIT"]
    assert driver.connections[0].statements == expected
    assert pool.stats().idle == 1


def test_reset_by_a_function_that_raises(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that could not be reset is closed, and the error is logged."""
    pool = make(reset=lambda conn: conn.run("FAIL"))
    pool.acquire().release()
    eventually(lambda: pool.stats().size == 0)
    assert pool.stats().closed == {"reset": 1}
    assert "could not be reset" in caplog.text


def test_client_side_state_is_put_back(make: Make, driver: StubDriver) -> None:
    """State kept in the client is restored at return, without a statement."""
    pool = make()
    with pool.connection() as conn:
        conn.run("NOTICE")
    assert driver.counts["restore"] == 1
    assert driver.connections[0].statements == ["NOTICE"]
    assert pool.stats().idle == 1


def test_a_lost_connection_is_not_kept(make: Make, driver: StubDriver) -> None:
    """A connection that lost sync is closed at its return, whatever the block did."""
    pool = make()
    with pool.connection() as conn, pytest.raises(Exception, match="lost"):
        conn.run("LOSE")
    with pool.connection() as conn:
        assert conn.number == 2
    eventually(lambda: driver.connections[0].closed)


def test_nothing_is_said_out_of_step(make: Make, driver: StubDriver) -> None:
    """On a connection that lost sync inside a transaction not even a rollback is tried."""
    pool = make()
    lease = pool.acquire()
    lease.run("BEGIN")
    driver.connections[0]._state.flags |= DIRTY
    lease.release()
    eventually(lambda: pool.stats().closed == {"broken": 1})
    assert driver.connections[0].statements == ["BEGIN"]


def test_a_failing_rollback_closes(make: Make, driver: StubDriver) -> None:
    """A connection whose rollback fails is closed, and its release does not raise."""
    pool = make()
    lease = pool.acquire()
    lease.run("BEGIN")
    driver.connections[0].kill()
    lease.release()
    eventually(lambda: pool.stats().size == 0)


def test_session_settings_and_name_reach_the_driver(make: Make, driver: StubDriver) -> None:
    """Dials get the session settings, and the pool's name for application_name."""
    pool = make(name="orders", session_settings={"statement_timeout": 5})
    pool.acquire().release()
    named = make("application_name=mine", name="orders")
    named.acquire().release()
    set_by_hand = make("application_name=mine", application_name="other")
    set_by_hand.acquire().release()
    assert driver.params[0]["session_settings"] == {"statement_timeout": "5"}
    names = [params["application_name"] for params in driver.params]
    assert names == ["orders", "mine", "other"]


def test_a_return_beneath_a_call(make: Make, spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that has begun through a lease, and not reached the wire when another thread
    gives it back, ends on a closed connection and never in the next user's session."""
    begun, given_back = threading.Event(), threading.Event()

    def slow(conn: StubConnection) -> Any:
        begun.set()
        given_back.wait(PATIENCE)
        return conn.run("SELECT 'late'")

    monkeypatch.setattr(StubConnection, "slow", slow, raising=False)
    pool = make(max_size=1)
    lease = pool.acquire()
    caller = spawn(lambda: lease.slow())
    assert begun.wait(PATIENCE)
    lease.release()
    with pool.connection(PATIENCE) as conn:
        conn.run("BEGIN")
        given_back.set()
        with pytest.raises(Exception, match=r"given back|closed"):
            caller.result()
        conn.run("SELECT 1")
        assert conn.statements == ["BEGIN", "SELECT 1"]
    assert pool.stats().closed == {"broken": 1}


@pytest.mark.parametrize("ends", ["block", "transaction"])
def test_a_return_beneath_a_commit(make: Make, spawn: Spawn, driver: StubDriver, ends: str) -> None:
    """A block whose connection another thread gives back while it is about to commit
    commits nothing of the next user's."""
    pool = make(max_size=1)
    about_to, given_back = threading.Event(), threading.Event()
    turnaround = pool._house.turnaround
    commit = turnaround.commit

    def slowly(entry: Any) -> None:
        about_to.set()
        given_back.wait(PATIENCE)
        commit(entry)

    turnaround.commit = slowly  # type: ignore[method-assign]

    def work() -> None:
        if ends == "block":
            with pool.connection() as conn:
                held.append(conn)
                conn.run("BEGIN")
        else:
            with pool.transaction() as conn:
                held.append(conn)

    held: list[Any] = []
    worker = spawn(work)
    assert about_to.wait(PATIENCE)
    held.pop().release()
    with pool.connection(PATIENCE) as conn:
        conn.run("BEGIN")
        turnaround.commit = commit  # type: ignore[method-assign]
        given_back.set()
        with pytest.raises(Exception):  # noqa: B017, PT011  its connection is closed
            worker.result()
        assert conn.statements == ["BEGIN"]
    assert pool.stats().closed == {"broken": 1}
    assert driver.connections[-1].statements == ["BEGIN", "COMMIT"]
