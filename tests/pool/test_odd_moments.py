"""What goes wrong beside the pool: drivers, threads and callers that misbehave."""

from __future__ import annotations

import _thread
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pool.kit import PATIENCE, eventually, filled

import fastpool
from fastpool import ConfigError, Pool, PoolTimeout, TransactionAborted
from fastpool.testing import StubConnection, StubDriver, StubError

Make = Callable[..., Pool[Any]]


def test_close_in_the_middle_of_a_transaction_is_not_silent(make: Make) -> None:
    """A block that ends well on a connection that close() took away lost its work: it says so."""
    pool = make()
    taken = pytest.raises(TransactionAborted, match="closed before the block ended")
    with taken, pool.connection() as conn:
        conn.run("BEGIN")
        pool.close(0.01)


def test_close_in_a_block_that_has_nothing_open(make: Make) -> None:
    """What the block did is done: nothing was rolled back, and nobody says so."""
    pool = make()
    with pool.connection() as conn:
        conn.run("INSERT")
        pool.close(0.01)


def test_release_in_a_block_is_the_users_own_doing(make: Make) -> None:
    """Whoever releases inside the block asked for the rollback."""
    with make().connection() as conn:
        conn.run("BEGIN")
        conn.release()


def test_a_driver_that_breaks_at_fileno(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails after the dial fails the dial: no slot is lost, and the pool recovers."""
    right = StubDriver.fileno
    failures = iter([OSError("no descriptor")] * 2)

    def fileno(self: StubDriver, conn: StubConnection) -> int:
        for error in failures:
            conn.close()
            raise error
        return right(self, conn)

    monkeypatch.setattr(StubDriver, "fileno", fileno)
    pool = make(max_size=1)
    assert pool.run("SELECT 1") == "SELECT 1"
    assert pool.stats().dial_failures == 2
    assert pool.stats().size == 1


class Misbehaved(StubDriver):
    """Fails where the protocol has no room for a failure."""

    fails = ""

    def close(self, conn: StubConnection) -> Any:
        if self.fails == "close":
            raise StubError("close")
        return super().close(conn)

    def last_word(self, conn: StubConnection) -> str | None:
        if self.fails == "last_word":
            raise StubError("last_word")
        return super().last_word(conn)


@pytest.mark.parametrize("step", ["close", "last_word"])
def test_a_driver_that_breaks_at_the_end(make: Make, step: str) -> None:
    """The slot is free all the same, and the maintenance thread lives."""
    driver = Misbehaved(sockets=True)
    pool = make(driver=driver, max_size=1, min_size=1, health_check_period=0.01)
    filled(pool)
    driver.fails = step
    driver.connections[0].kill()
    eventually(lambda: len(driver.connections) == 2 and pool.stats().idle == 1)
    driver.fails = ""
    assert pool.run("SELECT 1") == "SELECT 1"
    driver.abandon(driver.connections[0])


def test_no_room_for_threads(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that cannot be started is started by a later call."""
    pool = make()
    pool.open()

    def refuse(*args: object) -> int:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", refuse)
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.05)
    assert pool.run("SELECT 1") == "SELECT 1"


def test_no_room_for_the_first_thread(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that could not be opened is still new, and can be opened later."""
    pool = make()

    def refuse(*args: object) -> int:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            pool.open()
    assert pool.run("SELECT 1") == "SELECT 1"


def test_a_log_handler_that_raises(make: Make, driver: StubDriver) -> None:
    """A failed dial whose report fails too ends neither the thread nor the dialling."""

    class Handler(logging.Handler):
        def emit(self, record: object) -> None:
            raise KeyError("handler")

    handler = Handler()
    logging.getLogger("fastpool").addHandler(handler)
    try:
        driver.fail("connect", times=2)
        assert make().run("SELECT 1") == "SELECT 1"
    finally:
        logging.getLogger("fastpool").removeHandler(handler)


def test_a_log_filter_that_raises(make: Make, driver: StubDriver) -> None:
    """What a filter raises is not the maintenance thread's end: slots are freed all the same."""
    pool = make(max_size=1, leak_threshold=0.01)
    told = threading.Event()

    def refuse(record: object) -> bool:
        told.set()
        raise KeyError("filter")

    logger = logging.getLogger("fastpool")
    lease = pool.acquire()
    logger.addFilter(refuse)
    try:
        assert told.wait(PATIENCE), "the leak was not told of"
    finally:
        logger.removeFilter(refuse)
    pool.invalidate(lease)
    assert pool.run("SELECT 1") == "SELECT 1"


@pytest.mark.parametrize("wrong", [123, StubDriver, object()])
def test_what_is_no_driver(wrong: Any) -> None:
    """A driver is looked at when the pool is made, not when it first dials."""
    with pytest.raises(ConfigError, match="driver") as caught:
        Pool(driver=wrong)
    assert caught.value.setting == "driver"


@pytest.mark.parametrize("wrong", ["a\0b", 123, "a\udc80", "two\nlines"])
def test_what_is_no_name(wrong: Any) -> None:
    """A name goes to the server and into logs: printable text."""
    with pytest.raises(ConfigError, match="name"):
        Pool(driver=StubDriver(), name=wrong)


def test_a_timeout_names_the_holders(make: Make) -> None:
    """Who waits in vain is told who has the connections."""
    pool = make(max_size=1, deadlock=None)
    with pool.connection(), pytest.raises(PoolTimeout, match=r"held by: .*test_odd_moments") as e:
        pool.acquire(timeout=0.01)
    [holder] = e.value.holders
    assert isinstance(holder, fastpool.Holder)
    assert holder.thread_name == "MainThread"


def test_from_env_follows_a_smaller_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    """min_size was never asked for, so it gives way."""
    monkeypatch.setenv("DB_PASSWORD", "x")
    monkeypatch.delenv("DB_MIN_CONNS", raising=False)
    assert fastpool.from_env(max_size=3).config.min_size == 3


@pytest.mark.parametrize(
    ("variable", "value", "setting"),
    [
        ("DB_MAX_CONNS", "0", "max_size"),
        ("DB_MIN_CONNS", "26", "min_size"),
        ("DB_CONN_MAX_LIFETIME", "400000h", "max_lifetime"),
        ("DB_CONN_MAX_IDLE_TIME", "400000h", "max_idle_time"),
    ],
)
def test_from_env_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, setting: str
) -> None:
    """What is out of range is told by the name that was set, if that is what counts."""
    monkeypatch.setenv("DB_PASSWORD", "x")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=rf"^{variable}: ") as wrong:
        fastpool.from_env()
    assert wrong.value.setting == variable
    with pytest.raises(ConfigError) as given:
        fastpool.from_env(**{setting: "many"})
    assert given.value.setting == setting


def test_a_closed_pool_listens_to_nothing(make: Make) -> None:
    """Entering a listener of a closed pool dials nothing."""
    pool = make()
    pool.close()
    with pytest.raises(fastpool.PoolClosed), fastpool.listen(pool, "channel"):
        pass
    eventually(lambda: pool.stats().size == 0)


def test_what_cannot_be_listened_to(make: Make) -> None:
    """A wrong pool, name or time is refused, and nothing is dialled."""
    pool = make()
    with pytest.raises(TypeError, match=r"^pool: expected a Pool, not str$"):
        fastpool.listen("postgresql://u:secret@host/db", "jobs")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="channel: expected a str, not 5"):
        fastpool.listen(pool, 5)  # type: ignore[arg-type]
    for name in ("", "a\0b", "é" * 32):
        with pytest.raises(ConfigError, match="channel: expected 1 to 63 bytes") as error:
            fastpool.listen(pool, name)
        assert error.value.setting == "channel"
    listener = fastpool.listen(pool.within(timeout=1), "é" * 31)
    for wrong in ("1", -1, True, float("nan")):
        with pytest.raises(ConfigError, match="timeout: expected seconds >= 0"):
            listener.get(wrong)  # type: ignore[arg-type]
    assert pool.stats().dials == 0
