"""What a pool concludes from one connection's end, and what a server in trouble gets."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pool.kit import Caller, Full, WrongPassword, eventually, filled, give_back, leases

from fastpool import ConfigError, ConnectFailed, Pool, PoolTimeout, _opener
from fastpool.drivers.base import Role
from fastpool.testing import StubConnection, StubDriver, StubError

Make = Callable[..., Pool[StubConnection]]
Spawn = Callable[[Callable[[], Any]], Caller]

PRIMARY, READ_ONLY, STANDBY = Role(False, False), Role(False, True), Role(True, True)


class Starting(Exception):
    """The server starts or stops."""

    sqlstate = "57P03"


@pytest.fixture
def driver() -> StubDriver:
    return StubDriver(sockets=True)


def kill(driver: StubDriver, pool: Pool[StubConnection], words: list[str]) -> None:
    """End sessions with these words, those first that are handed out next."""
    idle = [entry.conn for entry in pool._core.idle_entries()]
    for conn, word in zip(idle, words, strict=False):
        conn.kill(word)


def three(make: Make, **settings: Any) -> Pool[StubConnection]:
    """A pool of three idle connections, left alone by its keeper; until
    ``gates["connect"]`` is set there are no others."""
    pool = make(**{"min_size": 3, "max_size": 3, "health_check_period": 1000.0, **settings})
    filled(pool)
    keeper = pool._house.keeper
    eventually(lambda: 0.0 < keeper._due - pool._core.now() < math.inf, "it has looked")
    driver: Any = pool._house.driver
    driver.gates["connect"] = threading.Event()
    return pool


# -- evidence --------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["57P01", "57P02", "57P03", ""])
def test_one_end_has_the_others_pinged_once(make: Make, driver: StubDriver, word: str) -> None:
    """After one session's end by its host each idle sibling gets one ping, and is served."""
    pool = three(make)
    kill(driver, pool, [word])
    siblings = {conn.number for conn in driver.connections if not conn.closed}
    for _ in range(3):
        held = leases(pool, 2)
        assert {lease.number for lease in held} == siblings
        give_back(held)
        assert driver.counts["ping"] == 2


@pytest.mark.parametrize("word", ["57P05", "25P03", "25P04", "08006"])
def test_one_sessions_own_end(make: Make, driver: StubDriver, word: str) -> None:
    """A session's time-out is its own: no sibling is pinged, however many end so."""
    pool = three(make)
    kill(driver, pool, [word, word])
    give_back(leases(pool, 1))
    assert driver.counts["ping"] == 0
    assert sum(conn.closed for conn in driver.connections) == 2


def test_idle_sessions_that_the_server_ends(
    make: Make, driver: StubDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """That the server is less patient than the pool is said once, however many it ends."""
    pool = three(make)
    kill(driver, pool, ["57P05", "57P05"])
    give_back(leases(pool, 1))
    eventually(lambda: pool.stats().closed == {"dead": 2})
    (record,) = caplog.records
    assert "has ended an idle session (idle_session_timeout)" in record.getMessage()


def test_two_ends_close_the_rest_unasked(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """A second proof within a second: nobody pings what is left, it is replaced."""
    pool = three(make)
    kill(driver, pool, ["57P01", "57P01"])
    waiting = spawn(pool.acquire)
    eventually(lambda: pool.stats().closed == {"dead": 3})
    driver.gates["connect"].set()
    lease = waiting.result()
    assert lease.number > 3
    assert driver.counts["ping"] == 0
    lease.release()


def test_an_end_in_use_is_judged_at_the_return(make: Make, driver: StubDriver) -> None:
    """What its holder lost makes the idle ones suspect when it comes back."""
    pool = three(make)
    lease = pool.acquire()
    lease.driver_connection.kill("57P01")
    with pytest.raises(StubError):
        lease.run("SELECT 1")
    lease.release()
    give_back(leases(pool, 2))
    assert driver.counts["ping"] == 2


def test_an_interrupted_user_is_no_evidence(make: Make, driver: StubDriver) -> None:
    """A connection that is out of step, but not ended by its server, concerns nobody else."""
    pool = three(make)
    with pytest.raises(StubError):
        pool.run("LOSE")
    give_back(leases(pool, 2))
    assert driver.counts["ping"] == 0


def test_old_ends_cost_new_connections_nothing(make: Make, driver: StubDriver) -> None:
    """Leases from before a restart come back dead after it: the new ones are not doubted."""
    pool = make(min_size=0, max_size=6, health_check_period=1000.0)
    held = leases(pool, 4)
    for lease in held:
        lease.driver_connection.kill("57P01")
    held.pop().release()  # the trouble is seen,
    give_back([pool.acquire()])  # and over
    give_back(held)
    give_back([pool.acquire()])
    assert driver.counts["ping"] == 0
    assert driver.counts["connect"] == 5


def test_the_keeper_gives_evidence_too(make: Make, driver: StubDriver) -> None:
    """What it sorts out as dead makes the others suspect as well."""
    pool = three(make)
    kill(driver, pool, ["", ""])
    pool._house.keeper.tend()
    eventually(lambda: pool.stats().closed == {"dead": 3})
    assert driver.counts["ping"] == 0


def test_other_hosts_are_not_concerned(make: Make, driver: StubDriver) -> None:
    """Connections to another host are neither pinged nor closed."""
    pool = three(make, conninfo="host=a,b")
    entries = pool._core.idle_entries()
    entries[2].host = 1
    kill(driver, pool, ["57P01", "57P01"])
    survivor = entries[2].conn
    lease = pool.acquire()
    assert lease.driver_connection is survivor
    assert driver.counts["ping"] == 0
    lease.release()


# -- the kind of server ----------------------------------------------------------------


def test_read_only_where_read_write_is_wanted(make: Make, driver: StubDriver) -> None:
    """One write fails on a server that became read-only; no later caller gets it."""
    pool = three(make, conninfo="target_session_attrs=read-write", timeout=0.2)
    driver.server_role = READ_ONLY
    with pytest.raises(StubError, match="read-only"):
        pool.run("WRITE")
    with pytest.raises(PoolTimeout):
        pool.run("WRITE")
    driver.gates["connect"].set()
    for _ in range(3):
        with pytest.raises(PoolTimeout, match="is a primary, read-only"):
            pool.run("WRITE")
    assert driver.counts["ping"] == 1  # its second proof closed the third unasked
    assert pool.stats().closed.keys() == {"role", "dead"}
    driver.server_role = PRIMARY
    with pool.connection(timeout=5.0) as conn:
        assert conn.run("WRITE") == "WRITE"


@pytest.mark.parametrize("wanted", ["read-only", "standby", "prefer-standby"])
def test_a_replica_may_refuse_writes(make: Make, driver: StubDriver, wanted: str) -> None:
    """Where a replica is wanted its refusal is no news, and costs nothing."""
    driver.server_role = STANDBY
    pool = make(f"target_session_attrs={wanted}", max_size=1)
    for _ in range(3):
        with pytest.raises(StubError, match="read-only"):
            pool.run("WRITE")
    assert (len(driver.connections), pool.stats().closed) == (1, {})


def test_a_write_in_vain_costs_its_connection(make: Make, driver: StubDriver) -> None:
    """With any kind of server wanted, the one that refused a write is not kept either."""
    pool = make(max_size=1)
    driver.server_role = STANDBY
    with pytest.raises(StubError):
        pool.run("WRITE")
    eventually(lambda: pool.stats().closed == {"role": 1})


@pytest.mark.parametrize("seen_by", ["the keeper's ping", "a return"])
def test_a_changed_server_is_seen_without_a_write(
    make: Make, driver: StubDriver, seen_by: str
) -> None:
    """A promoted standby is let go where one is wanted, once it has told what it is."""
    driver.server_role = STANDBY
    pings = 0.05 if seen_by == "the keeper's ping" else None
    pool = three(make, conninfo="target_session_attrs=standby", check_after_idle=pings)
    driver.server_role = PRIMARY
    if pings is None:
        pool.run("SET in_hot_standby")  # the server's word for it looks the same
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.05)
    eventually(lambda: sum(pool.stats().closed.values()) == 3)
    assert "role" in pool.stats().closed


# -- starting, stopping, full ------------------------------------------------------------


def test_who_shuts_down_gets_its_connections_back(make: Make, driver: StubDriver) -> None:
    """57P03 on a dial closes what is idle now, and what is in use when it comes back."""
    pool = make(min_size=0, max_size=5, timeout=0.1)
    held = leases(pool, 3)
    driver.fail("connect", Starting("the database system is shutting down"), times=100_000)
    with pytest.raises(PoolTimeout, match="shutting down"):
        pool.acquire()
    held[0].release()
    eventually(lambda: pool.stats().size == 2)
    give_back(held[1:])
    eventually(lambda: pool.stats().size == 0)
    assert pool.stats().closed == {"drained": 3}
    driver.heal()
    with pool.connection(timeout=5.0) as conn:
        assert conn.run("SELECT 1") == "SELECT 1"


def test_idle_ones_go_at_once_when_the_server_shuts_down(make: Make, driver: StubDriver) -> None:
    """The dial that hears of it may be the pool's own."""
    pool = make(min_size=2, max_size=5)
    filled(pool)
    driver.fail("connect", Starting("shutting down"))
    pool.reconfigure(min_size=3)
    eventually(lambda: pool.stats().closed == {"drained": 2})
    eventually(lambda: pool.stats().idle == 3)


def test_a_full_server_is_not_hammered(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """After 53300 who waits gets what is returned, and no dial is made for a while."""
    pool = make(max_size=5, connect_concurrency=1, connect_backoff=0.001, connect_backoff_max=0.001)
    held = leases(pool, 2)
    driver.fail("connect", Full("too many clients"), times=100_000)
    waiting = [spawn(lambda: pool.run("SELECT 1")) for _ in range(3)]
    eventually(lambda: pool.stats().dial_failures == 1)
    eventually(lambda: pool._core.ceiling == 2)
    for _ in range(3):  # arrivals ask for a probe: not now
        with pytest.raises(PoolTimeout, match="too many clients"):
            pool.acquire(timeout=0.06)
    give_back(held)
    assert [caller.result() for caller in waiting] == ["SELECT 1"] * 3
    assert driver.counts["connect"] == 3
    opener = pool._house.opener
    assert opener._full_for == 5.0


def test_a_full_server_is_asked_again(
    make: Make, driver: StubDriver, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause doubles up to a limit; a dial that succeeds ends it."""
    monkeypatch.setattr(_opener, "_FULL_FOR", 0.02)
    monkeypatch.setattr(_opener, "_FULL_FOR_AT_MOST", 0.05)
    pool = make(max_size=5, connect_concurrency=1, connect_backoff=0.001, connect_backoff_max=0.001)
    opener = pool._house.opener
    held = leases(pool, 1)
    driver.fail("connect", Full("too many clients"), times=3)
    seen: list[float] = []
    shrink = opener._shrink

    def watched(now: float) -> None:
        shrink(now)
        seen.append(opener._full_for)

    monkeypatch.setattr(opener, "_shrink", watched)
    waiting = spawn(pool.acquire)
    held.append(waiting.result())
    assert seen == [0.02, 0.04, 0.05]
    assert (opener._full_for, pool._core.ceiling) == (0.0, 5)
    give_back(held)


# -- credentials -------------------------------------------------------------------------


def test_password_is_asked_for_at_each_dial(make: Make, driver: StubDriver) -> None:
    """A function given as password is called for each dial, and text is used as it is."""
    tokens = iter(["one", "two"])
    pool = make("password=ignored", password=lambda: next(tokens), connect_concurrency=1)
    give_back(leases(pool, 2))
    give_back(leases(make(password="plain"), 1))
    assert [params["password"] for params in driver.params] == ["one", "two", "plain"]


def test_stale_token_is_renewed_once(make: Make, driver: StubDriver) -> None:
    """28P01 has it asked for again at once; nobody hears of it, and no failure counts."""
    tokens = iter(["stale", "fresh"])
    pool = make(password=lambda: next(tokens))
    driver.fail("connect", WrongPassword("expired"))
    pool.acquire().release()
    assert [params["password"] for params in driver.params] == ["stale", "fresh"]
    assert pool.stats().dial_failures == 0


def test_hook_is_asked_again_too(make: Make, driver: StubDriver) -> None:
    """A before_connect hook that sets a password has a second try as well."""
    tokens = iter(["stale", "fresh"])
    pool = make(before_connect=lambda params: params.update(password=next(tokens)))
    driver.fail("connect", WrongPassword("expired"))
    pool.acquire().release()
    assert [params["password"] for params in driver.params] == ["stale", "fresh"]


def test_wrong_twice_is_wrong(make: Make, driver: StubDriver) -> None:
    """The second 28P01 in a row fails who waits; a fixed password has no second try."""
    driver.fail("connect", WrongPassword("wrong"), times=100_000)
    with pytest.raises(ConnectFailed, match="wrong"):
        make(password=lambda: "secret", connect_concurrency=1).acquire()
    assert driver.counts["connect"] == 2
    with pytest.raises(ConnectFailed, match="wrong"):
        make(password="secret", connect_concurrency=1).acquire()
    assert driver.counts["connect"] == 3


def test_password_that_is_none(make: Make) -> None:
    """What is neither text nor a plain function is refused, and never shown."""

    async def token() -> str:
        return "t"

    for wrong in (b"secret", 4711, token):
        with pytest.raises(ConfigError, match="password") as caught:
            make(password=wrong)
        assert "secret" not in str(caught.value)
        assert "4711" not in str(caught.value)


def test_password_is_not_shown(make: Make) -> None:
    """Neither the pool nor its connection parameters print it."""
    pool = make(password="hunter2")
    assert "hunter2" not in repr(pool) + repr(pool._house.opener._hosts._conninfo)
