"""Behind PgBouncer, as far as the pool decides it; on the stub."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from pool.kit import eventually, filled, give_back, leases

import fastpool
from fastpool import ConfigError, Pool
from fastpool.testing import StubConnection, StubDriver

Make = Callable[..., Pool[StubConnection]]


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """The messages that have *text* in them."""
    return [message for message in caplog.messages if text in message]


@pytest.mark.parametrize(
    ("told", "behind", "pooled"),
    [
        (True, False, True),
        (True, True, True),
        (False, True, False),
        (None, True, True),
        (None, False, False),
    ],
)
def test_smart_reset(
    make: Make,
    driver: StubDriver,
    caplog: pytest.LogCaptureFixture,
    told: bool | None,
    behind: bool,
    pooled: bool,
) -> None:
    """No DISCARD ALL where it would reach another session: the connection is closed, and
    the user is told once, with the line that acquired."""
    driver.behind_pooler = behind
    pool = make(pgbouncer=told, max_size=1, min_size=1)
    filled(pool)
    assert pool.stats().pgbouncer is pooled
    for _ in range(3):
        with pool.connection() as conn:
            conn.run("SET x = 1")
    with pool.connection() as conn:
        number = conn.number
        conn.run("SELECT 1")
    assert driver.counts["discard"] == (0 if pooled else 3)
    assert number == (4 if pooled else 1)
    assert pool.stats().closed.get("session", 0) == (3 if pooled else 0)
    told_of = lines(caplog, "SET LOCAL")
    assert len(told_of) == (1 if pooled else 0)
    assert all("test_pgbouncer.py:" in line for line in told_of)


def test_rollback_level_keeps_the_connection(make: Make, driver: StubDriver) -> None:
    """Whoever wants no reset gets none, there as elsewhere."""
    pool = make(pgbouncer=True, reset="rollback", max_size=1)
    for _ in range(3):
        with pool.connection() as conn:
            conn.run("SET x = 1")
            assert conn.number == 1


def test_after_connect_that_sets_is_told_of(
    make: Make, driver: StubDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """What the hook sets stays in a session that others get; the connection is kept."""
    pool = make(pgbouncer=True, after_connect=lambda conn: conn.run("SET x = 1"), max_size=2)
    give_back(leases(pool, 2))
    assert pool.stats().idle == 2
    assert len(lines(caplog, "in the after_connect hook has changed its session")) == 1


def test_found_once_and_passed_on(
    make: Make, driver: StubDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """One line of log; later dials need not look, and a new setting overrules it."""
    caplog.set_level(logging.INFO)
    driver.behind_pooler = True
    pool = make(max_size=3)
    give_back(leases(pool, 3))
    assert driver.params[0]["pgbouncer"] is None
    assert driver.params[-1]["pgbouncer"] is True
    assert len(lines(caplog, "there is a pooler before the server")) == 1
    pool.reconfigure(pgbouncer=False)
    assert not pool.stats().pgbouncer
    pool.drain()
    with pool.connection():
        assert driver.params[-1]["pgbouncer"] is False


def test_found_by_the_question(
    make: Make, driver: StubDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler that does not look like one is found by the keeper's one question."""

    def idle_limit(conn: StubConnection) -> None:
        conn.pooled = True

    monkeypatch.setattr(driver, "idle_limit", idle_limit)
    pool = make(min_size=1, max_size=1)
    filled(pool)
    eventually(lambda: pool.stats().pgbouncer, "found")


def test_a_found_pooler_and_discard(
    make: Make, driver: StubDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """What was asked for in so many words is done on a mere finding, with a warning."""
    driver.behind_pooler = True
    pool = make(reset="discard", max_size=1)
    with pool.connection():
        pass
    assert driver.counts["discard"] == 1
    assert len(lines(caplog, "only if the pooler pools sessions")) == 1
    with pytest.raises(ConfigError):
        pool.reconfigure(pgbouncer=True)


@pytest.mark.parametrize("behind", [False, True])
def test_no_listening(make: Make, driver: StubDriver, behind: bool) -> None:
    """Refused at once where it is known, else when the listener connects; and only there."""
    driver.behind_pooler = behind
    refusal = pytest.raises(ConfigError, match="behind PgBouncer in transaction pooling")
    with refusal:
        fastpool.listen(make(pgbouncer=True), "jobs")
    pool = make()
    if behind:
        listener = fastpool.listen(pool, "jobs")
        with refusal:
            listener.get(timeout=5)
        assert not any("LISTEN" in s for conn in driver.connections for s in conn.statements)
        with refusal:
            fastpool.listen(pool, "jobs")
    with fastpool.listen(make(pgbouncer=False), "jobs"):
        assert driver.connections[-1].statements == ["LISTEN jobs"]


def test_options_are_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At construction and on the living pool, wherever they come from."""
    monkeypatch.setenv("PGOPTIONS", "-c geqo=off")
    with pytest.raises(ConfigError, match=r"^PGOPTIONS: PgBouncer refuses it"):
        make(pgbouncer=True)
    pool = make()
    with pytest.raises(ConfigError, match=r"^PGOPTIONS: PgBouncer refuses it"):
        pool.reconfigure(pgbouncer=True, max_size=3)
    assert pool.config.max_size == 25
    assert make("postgres://h/?pgbouncer=true&options=", min_size=0).config.pgbouncer
