"""Hooks and settings as the server sees them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from integration.conftest import MakePool
from integration.kit import Admin, eventually, whole

from fastpool import Pool, _turnaround
from fastpool.testing import LocalPostgres

PID = "SELECT pg_backend_pid()"


def show(pool: Pool[Any], name: str) -> Any:
    """A parameter's value, on a connection of *pool*."""
    return pool.run(f"SHOW {name}")[0][0]


@pytest.mark.parametrize("driver", ["native", "dbapi"])
@pytest.mark.parametrize("reset", ["rollback", "smart", "discard"])
def test_after_connect_persists(make_pool: MakePool, driver: str, reset: str) -> None:
    """What after_connect sets is there for every user, also after DISCARD ALL."""
    calls: list[int] = []

    def after_connect(conn: Any) -> None:
        calls.append(1)
        if driver == "native":
            conn.run("SET work_mem = '7MB'")
            conn.run("SET search_path = pg_catalog")
        else:
            cursor = conn.cursor()
            cursor.execute("SET work_mem = '7MB'")
            cursor.execute("SET search_path = pg_catalog")

    pool = make_pool(driver=driver, max_size=1, reset=reset, after_connect=after_connect)

    def check(change: str) -> int:
        with pool.connection() as conn:
            simple = conn.driver_connection.execute_simple
            assert simple("SHOW work_mem").rows == [["7MB"]]
            assert simple("SHOW search_path").rows == [["pg_catalog"]]
            if change:
                simple(change)
            pid: int = simple(PID).rows[0][0]
        return pid

    pids = {check("") for _ in range(3)}
    if reset != "rollback":
        pids |= {check("SET work_mem = '9MB'"), check("SET search_path = public"), check("")}
        assert len(calls) > 1
    else:
        assert len(calls) == 1
    assert len(pids) == 1


def test_after_connect_is_the_birth(make_pool: MakePool) -> None:
    """What after_connect changed is no reason to reset the session at each return."""
    calls: list[int] = []

    def after_connect(conn: Any) -> None:
        calls.append(1)
        conn.run("SET TimeZone = 'Asia/Tokyo'")

    pool = make_pool(max_size=1, after_connect=after_connect)
    for _ in range(5):
        assert show(pool, "TimeZone") == "Asia/Tokyo"
    assert calls == [1]


@pytest.mark.parametrize("undone", ["UNLISTEN *", "UNLISTEN jobs", "DEALLOCATE ALL"])
def test_what_after_connect_made_is_there_for_all(make_pool: MakePool, undone: str) -> None:
    """A user who takes away what the hook has made does so for himself alone."""

    def after_connect(conn: Any) -> None:
        conn.run("LISTEN jobs")
        conn.run("PREPARE one AS SELECT 1")

    pool = make_pool(max_size=1, after_connect=after_connect)
    for _ in range(2):
        with pool.connection() as conn:
            assert conn.run("SELECT pg_listening_channels()") == [["jobs"]]
            assert conn.run("EXECUTE one") == [[1]]
            conn.run(undone)


def test_failing_after_connect_is_a_failed_dial(make_pool: MakePool, admin: Admin) -> None:
    """An error in after_connect closes the connection and is the waiter's cause."""
    pool = make_pool(after_connect=lambda conn: conn.run("SELEKT"))
    with pytest.raises(Exception, match="syntax error"):
        pool.acquire(timeout=0.3)
    eventually(lambda: not admin.backends(pool.name), "the connections are closed")


@pytest.mark.parametrize("reset", ["rollback", "smart", "discard"])
def test_session_settings_persist(make_pool: MakePool, reset: str) -> None:
    """session_settings arrive, odd characters and all, and are what a reset goes back to."""
    value = "it's \\ a = 'b' ü, two  spaces"
    settings = {"app.label": value, "work_mem": "7MB", "statement_timeout": 4321}
    pool = make_pool(max_size=1, reset=reset, session_settings=settings)
    pids = set()
    for _ in range(3):
        with pool.connection() as conn:
            assert conn.run("SHOW app.label") == [[value]]
            assert conn.run("SHOW work_mem") == [["7MB"]]
            assert conn.run("SHOW statement_timeout") == [["4321ms"]]
            if reset != "rollback":
                conn.run("SET work_mem = '9MB'")
                conn.run("RESET app.label")
                assert conn.run("SHOW app.label") == [[value]]
            pids.add(conn.run(PID)[0][0])
    assert len(pids) == 1


def test_application_name(make_pool: MakePool, server: LocalPostgres) -> None:
    """The name in pg_stat_activity: the setting, else the connection string's, else the pool's."""
    assert show(make_pool(name="by-pool"), "application_name") == "by-pool"
    dsn = f"{server.dsn}?sslmode=disable&application_name=by-dsn"
    assert show(make_pool(dsn), "application_name") == "by-dsn"
    assert show(make_pool(dsn, application_name="by-setting"), "application_name") == "by-setting"


def test_before_connect_changes_the_parameters(make_pool: MakePool) -> None:
    """before_connect gets each dial's parameters and may change them, for that dial only."""
    seen: list[str] = []

    def before_connect(params: dict[str, Any]) -> None:
        seen.append(params["application_name"])
        params["application_name"] = f"dial-{len(seen)}"

    pool = make_pool(name="plain", max_size=2, before_connect=before_connect)
    with pool.connection() as first, pool.connection() as second:
        names = {conn.run("SHOW application_name")[0][0] for conn in (first, second)}
    assert names == {"dial-1", "dial-2"}
    assert seen == ["plain", "plain"]


def test_password_by_a_function(locked_server: LocalPostgres) -> None:
    """before_connect may give a function for the password: it is asked at each dial."""
    asked: list[int] = []

    def password() -> str | None:
        asked.append(1)
        return locked_server.password

    def before_connect(params: dict[str, Any]) -> None:
        params["password"] = password

    host = quote(locked_server.host)
    dsn = f"postgresql://postgres@{host}:{locked_server.port}/postgres?sslmode=disable"
    with Pool(dsn, min_size=0, max_size=2, before_connect=before_connect) as pool:
        with pool.connection() as first, pool.connection() as second:
            assert first.run("SELECT 1") == second.run("SELECT 1") == [[1]]
        assert asked == [1, 1]


@pytest.fixture
def served(make_pool: MakePool) -> Iterator[Pool[Any]]:
    """A pool that refuses every second connection about to be handed out."""
    turns: list[int] = []

    def before_acquire(conn: Any) -> bool:
        turns.append(1)
        assert conn.run("SELECT 1") == [[1]]
        return len(turns) % 2 == 1

    pool = make_pool(max_size=2, before_acquire=before_acquire)
    yield pool
    eventually(lambda: whole(pool), "no slot is lost")


def test_before_acquire_refuses(served: Pool[Any]) -> None:
    """A connection that before_acquire refuses is closed, and another one is served."""
    pids = [served.run(PID)[0][0] for _ in range(6)]
    assert len(set(pids)) == 6
    eventually(lambda: served.stats().closed == {"before_acquire": 5}, "five were refused")


def test_after_release_sees_a_clean_connection(make_pool: MakePool) -> None:
    """after_release runs when the transaction is rolled back, and may use the connection."""
    seen: list[Any] = []

    def after_release(conn: Any) -> bool:
        seen.append(conn.run("SELECT pg_current_xact_id_if_assigned() IS NULL")[0][0])
        return True

    pool = make_pool(max_size=1, after_release=after_release)
    lease = pool.acquire()
    lease.run("BEGIN")
    lease.run("CREATE TABLE undone ()")
    lease.release()
    assert seen == [True]
    assert pool.stats().closed == {}


def test_before_close_may_talk_about_the_connection(make_pool: MakePool, admin: Admin) -> None:
    """before_close sees each connection that is closed."""
    closed: list[Any] = []
    pool = make_pool(max_size=2, before_close=closed.append)
    with pool.connection() as first, pool.connection() as second:
        conns = {id(first.driver_connection), id(second.driver_connection)}
    pool.close()
    assert {id(conn) for conn in closed} == conns
    assert admin.backends(pool.name) == set()


def test_a_users_reset_does_not_undo_the_hook(make_pool: MakePool) -> None:
    """RESET goes back further than the hook: the next user has what the hook has set."""
    pool = make_pool(max_size=1, after_connect=lambda conn: conn.run("SET work_mem = '7MB'"))
    for undo in ("RESET work_mem", "RESET ALL", "DISCARD ALL"):
        pool.run(undo)
        assert pool.run("SHOW work_mem") == [["7MB"]]


def test_adapters_are_for_one_lease_and_those_of_a_hook_for_all(make_pool: MakePool) -> None:
    """What a user registers does not reach the next; what after_connect registers does."""
    pool = make_pool(
        max_size=1, after_connect=lambda conn: conn.register_in_adapter(21, lambda s: f"hook {s}")
    )
    with pool.connection() as conn:
        conn.register_in_adapter(23, lambda text: f"mine {text}")
        conn.register_out_adapter(float, lambda value: "1.5")
        assert conn.run("SELECT 5::int, :x::float", x=2.0) == [["mine 5", 1.5]]
    assert pool.run("SELECT 5::int, 5::smallint, :x::float", x=2.0) == [[5, "hook 5", 2.0]]
    assert pool.stats().created == 1


def test_a_rollback_without_an_answer_is_given_up(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release waits for its rollback a bounded time, and the connection is closed."""
    monkeypatch.setattr(_turnaround, "_ANSWER", 0.2)
    pool = make_pool(max_size=1, close_timeout=0.2)
    lease = pool.acquire()
    lease.run("BEGIN")
    [[pid]] = lease.run("SELECT pg_backend_pid()")
    os.kill(pid, signal.SIGSTOP)
    try:
        lease.release()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert pool.run("SELECT pg_backend_pid()") != [[pid]]
