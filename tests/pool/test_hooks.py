"""The five hooks: when they run, in which thread, and what their outcome does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from pool.kit import PATIENCE, Caller, eventually, filled, give_back, leases

from fastpool import ConnectFailed, ConnectionReleased, Pool, PoolError, PoolTimeout
from fastpool.testing import StubConnection, StubDriver, StubError

Make = Callable[..., Pool[StubConnection]]
Spawn = Callable[[Callable[[], Any]], Caller]


class Stop(BaseException):
    """Nothing that ``except Exception`` would catch."""


def numbers(driver: StubDriver) -> list[int]:
    return [conn.number for conn in driver.connections if not conn.closed]


def test_before_connect_changes_the_parameters(make: Make, driver: StubDriver) -> None:
    """Each dial gets its own parameters, with what the hook made of them."""
    tokens = iter(["one", "two"])
    seen: list[dict[str, Any]] = []

    def hook(params: dict[str, Any]) -> None:
        seen.append(dict(params))
        params["password"] = next(tokens)

    pool = make("host=h user=u password=old", before_connect=hook, max_size=2)
    give_back(leases(pool, 2))
    assert [params["password"] for params in driver.params] == ["one", "two"]
    assert [params["password"] for params in seen] == ["old", "old"]


def test_before_connect_error_is_a_failed_dial(make: Make, driver: StubDriver) -> None:
    """A raising before_connect fails the attempt, is the cause at the caller, and may pass."""
    broken = [ValueError("no token"), ValueError("no token")]

    def hook(params: dict[str, Any]) -> None:
        if broken:
            raise broken.pop()

    pool = make(before_connect=hook)
    with pool.connection() as conn:
        assert conn.number == 1
    assert driver.counts["connect"] == 1
    assert pool.stats().dial_failures == 2


def test_after_connect_prepares_each_connection_once(make: Make, driver: StubDriver) -> None:
    """after_connect runs once per connection, and what it leaves open is committed."""

    def hook(conn: StubConnection) -> None:
        conn.run("BEGIN")
        conn.run("SET a = 1")

    pool = make(after_connect=hook)
    for _ in range(3):
        with pool.connection() as conn:
            conn.run("SELECT 1")
    assert driver.connections[0].statements == ["BEGIN", "SET a = 1", "COMMIT"] + ["SELECT 1"] * 3


def test_after_connect_runs_again_after_discard(make: Make, driver: StubDriver) -> None:
    """DISCARD ALL undoes what after_connect had set, so the hook is run again."""
    pool = make(after_connect=lambda conn: conn.run("SET a = 1"))
    with pool.connection() as conn:
        conn.run("SET b = 1")
    assert driver.connections[0].statements == [
        "SET a = 1",
        "SET b = 1",
        "DISCARD ALL",
        "SET a = 1",
    ]


def test_after_connect_error_closes_the_connection(make: Make, driver: StubDriver) -> None:
    """A raising after_connect is a failed dial: closed, never handed out, tried again."""

    def hook(conn: StubConnection) -> None:
        if conn.number < 3:
            raise StubError("not good enough")

    pool = make(after_connect=hook, max_size=1)
    with pool.connection() as conn:
        assert conn.number == 3
    eventually(lambda: [conn.closed for conn in driver.connections] == [True, True, False])
    assert driver.most_open == 1
    eventually(lambda: pool.stats().dial_failures == 2)
    assert (pool.stats().dials, pool.stats().created) == (3, 1)


def test_after_connect_error_is_the_cause(make: Make) -> None:
    """Who waits while after_connect keeps failing learns why."""

    def hook(conn: StubConnection) -> None:
        raise StubError("not good enough")

    with pytest.raises(PoolTimeout, match="not good enough") as caught:
        make(after_connect=hook).acquire(timeout=0.05)
    assert isinstance(caught.value.__cause__, StubError)


def test_after_connect_may_be_permanent(make: Make) -> None:
    """What after_connect raises may be permanent, as judged by the driver."""

    def hook(conn: StubConnection) -> None:
        error = StubError("no such role")
        error.permanent = True  # type: ignore[attr-defined]
        raise error

    with pytest.raises(ConnectFailed, match="no such role"):
        make(after_connect=hook).acquire()


def test_after_connect_that_breaks_the_connection(make: Make, driver: StubDriver) -> None:
    """A connection that after_connect left in a failed transaction is not served."""

    def hook(conn: StubConnection) -> None:
        if conn.number == 1:
            conn.run("BEGIN")
            with pytest.raises(StubError):
                conn.run("FAIL")

    pool = make(after_connect=hook)
    with pool.connection() as conn:
        assert conn.number == 2
    eventually(lambda: driver.connections[0].closed)


def test_before_acquire_false_takes_the_next(make: Make, driver: StubDriver) -> None:
    """A connection that before_acquire refuses is closed, and the next one is tried."""
    refused: list[int] = []

    def hook(conn: StubConnection) -> bool:
        if conn.number % 2:
            refused.append(conn.number)
        return conn.number % 2 == 0

    pool = make(min_size=4, max_size=4, before_acquire=hook)
    filled(pool)
    held = leases(pool, 2)
    assert [conn.number % 2 for conn in held] == [0, 0]
    give_back(held)
    assert refused
    eventually(
        lambda: [conn.number for conn in driver.connections if conn.closed] == sorted(refused)
    )
    assert pool.stats().closed == {"before_acquire": len(refused)}


def test_before_acquire_refusing_everything_times_out(make: Make, driver: StubDriver) -> None:
    """A hook that refuses every connection ends at the caller's timeout, not in a loop."""
    pool = make(max_size=2, before_acquire=lambda conn: False)
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.1)
    assert driver.counts["connect"] >= 1


def test_before_acquire_error_goes_to_the_caller(make: Make, driver: StubDriver) -> None:
    """What before_acquire raises reaches the caller, and the clean connection is kept."""
    errors = [StubError("not now")]

    def hook(conn: StubConnection) -> bool:
        if errors:
            raise errors.pop()
        return True

    pool = make(before_acquire=hook)
    with pytest.raises(StubError, match="not now"):
        pool.acquire()
    stats = pool.stats()
    assert (stats.size, stats.idle) == (1, 1)
    with pool.connection() as conn:
        assert conn.number == 1


def test_before_acquire_error_with_a_lost_connection(make: Make, driver: StubDriver) -> None:
    """A connection that before_acquire lost is not kept when the hook raises."""

    def hook(conn: StubConnection) -> bool:
        if conn.number == 1:
            conn.run("LOSE")
        return True

    pool = make(before_acquire=hook)
    with pytest.raises(StubError):
        pool.acquire()
    with pool.connection() as conn:
        assert conn.number == 2
    eventually(lambda: driver.connections[0].closed)


def test_after_release_false_closes(
    make: Make, driver: StubDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that after_release does not want is closed, which the log tells; others
    are kept."""
    caplog.set_level("INFO", "fastpool")
    pool = make(after_release=lambda conn: conn.number != 1)
    for expected in (1, 2, 2):
        with pool.connection() as conn:
            assert conn.number == expected
    eventually(lambda: pool.stats().closed == {"after_release": 1})
    eventually(lambda: numbers(driver) == [2])
    assert [getattr(record, "event", None) for record in caplog.records] == ["not_kept"]


def test_after_release_error_closes_and_is_logged(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """What after_release raises is logged, not raised; the connection is closed."""

    def hook(conn: StubConnection) -> bool:
        raise StubError("cannot tell")

    pool = make(after_release=hook)
    pool.acquire().release()
    eventually(lambda: pool.stats().size == 0)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert "cannot tell" in str(record.exc_info[1])


def test_after_release_sees_a_clean_connection(make: Make, driver: StubDriver) -> None:
    """after_release runs after the rollback, and what it leaves open is committed."""
    pool = make(after_release=lambda conn: bool(conn.run("BEGIN")))
    lease = pool.acquire()
    lease.run("BEGIN")
    lease.release()
    assert driver.connections[0].statements == ["BEGIN", "ROLLBACK", "BEGIN", "COMMIT"]
    assert pool.stats().idle == 1


def test_a_hook_uses_the_connection_only_while_it_runs(make: Make) -> None:
    """The connection that a hook kept is dead once the hook is over."""
    kept: list[StubConnection] = []

    def keep(conn: StubConnection) -> bool:
        kept.append(conn)
        return True

    pool = make(after_release=keep)
    pool.acquire().release()
    with pytest.raises(ConnectionReleased):
        kept[0].run("SELECT 1")


def test_before_close_sees_every_closed_connection(make: Make, driver: StubDriver) -> None:
    """before_close is called once for each connection that is closed, whatever the reason."""
    seen: list[int] = []
    pool = make(
        min_size=0,
        max_size=4,
        before_close=lambda conn: seen.append(conn.number),
        after_release=lambda conn: conn.number != 1,
    )
    one, two, three, four = leases(pool, 4)
    one.release()
    pool.invalidate(two)
    three.run("BEGIN")
    with pytest.raises(StubError):
        three.run("LOSE")
    three.release()
    four.release()
    pool.close()
    assert sorted(seen) == [1, 2, 3, 4]
    assert driver.counts["close"] == 4


@pytest.mark.parametrize("error", [StubError("cannot say"), Stop("cannot say")])
def test_before_close_error_is_logged(
    make: Make, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """What before_close raises is logged; the connection is closed all the same."""

    def hook(conn: StubConnection) -> None:
        raise error

    pool = make(before_close=hook)
    pool.invalidate(pool.acquire())
    eventually(lambda: pool.stats().size == 0)
    assert "before_close" in caplog.text
    assert "cannot say" in caplog.text
    pool.acquire().release()


def test_hooks_run_in_the_thread_that_has_the_connection(make: Make) -> None:
    """Dialling and closing hooks run in the pool's threads, the others in the caller's."""
    threads: dict[str, int] = {}

    def note(name: str) -> Callable[[Any], bool]:
        def hook(argument: Any) -> bool:
            threads[name] = threading.get_ident()
            return True

        return hook

    names = ("before_connect", "after_connect", "before_acquire", "after_release", "before_close")
    pool = make(**{name: note(name) for name in names})
    with pool.connection():
        pass
    pool.drain()
    eventually(lambda: len(threads) == 5)
    mine = threading.get_ident()
    assert threads["before_acquire"] == threads["after_release"] == mine
    assert threads["before_connect"] == threads["after_connect"]
    assert len({mine, threads["before_connect"], threads["before_close"]}) == 3


HOOKS = ("before_connect", "after_connect", "before_acquire", "after_release", "before_close")


@pytest.mark.parametrize("name", [*HOOKS, "reset"])
@pytest.mark.parametrize("idle", [False, True])
def test_a_hook_cannot_take_from_its_own_pool(make: Make, name: str, idle: bool) -> None:
    """A hook that asks its own pool for a connection gets an error that names it, no deadlock."""
    caught: list[BaseException] = []

    def hook(argument: Any) -> bool:
        if not caught:
            try:
                pool.acquire(timeout=PATIENCE)
            except BaseException as error:
                caught.append(error)
        return True

    pool = make(min_size=2 if idle else 0, max_size=3 if idle else 1, **{name: hook})
    pool.acquire().release()
    pool.drain()
    eventually(lambda: caught)
    assert type(caught[0]) is PoolError
    assert name in str(caught[0])


def test_a_hook_may_take_from_another_pool(make: Make) -> None:
    """Only a hook's own pool is closed to it."""
    other = make(driver=StubDriver())

    def hook(conn: StubConnection) -> bool:
        with other.connection() as second:
            return bool(second.run("SELECT 1"))

    pool = make(before_acquire=hook)
    pool.acquire().release()
    pool.acquire().release()


@pytest.mark.parametrize("name", HOOKS)
def test_a_base_exception_in_a_hook_loses_no_slot(make: Make, name: str) -> None:
    """After anything that a hook can raise, all slots of the pool can be used."""
    left = [3]

    def hook(argument: Any) -> bool:
        if left[0] > 0:
            left[0] -= 1
            raise Stop
        return True

    pool = make(max_size=2, **{name: hook})
    for _ in range(8):
        try:
            lease = pool.acquire(timeout=PATIENCE)
            lease.release()
        except Stop:
            assert name in ("before_acquire", "after_release")
        pool.drain()
    eventually(lambda: left[0] == 0)
    give_back(leases(pool, 2))
