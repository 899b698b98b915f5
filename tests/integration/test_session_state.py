"""What one user of a connection leaves behind for the next, by kind and by ``reset``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from integration.conftest import MakePool
from integration.kit import Admin
from pg8000.exceptions import DatabaseError

from fastpool.testing import LocalPostgres

RESETS = ("rollback", "smart", "discard")
DOCUMENT = Path(__file__).parents[2] / "docs" / "session-state.md"


class Kind(NamedTuple):
    """One kind of state: how to leave it, how to see it, where it survives a return."""

    what: str
    leave: str | Callable[[Any], object]
    seen: str | Callable[[Any], object]
    """SQL that gives a true first value where the state is found, or a function."""
    survives: tuple[str, ...]
    driver: str = "native"


def _answers(conn: Any, sql: str) -> bool:
    try:
        conn.run(sql)
    except DatabaseError:
        return False
    return True


ONLY_ROLLBACK = ("rollback",)
NEVER: tuple[str, ...] = ()
UNSEEN = ("rollback", "smart")

KINDS = {
    "transaction": Kind(
        "an open transaction",
        "BEGIN; CREATE TABLE left_open ()",
        "SELECT to_regclass('left_open') IS NOT NULL",
        NEVER,
    ),
    "set": Kind(
        "`SET work_mem = ...`",
        "SET work_mem = '123kB'",
        "SELECT current_setting('work_mem') = '123kB'",
        ONLY_ROLLBACK,
    ),
    "role": Kind(
        "`SET ROLE`",
        "SET ROLE visitor",
        "SELECT current_user = 'visitor'",
        ONLY_ROLLBACK,
    ),
    "authorization": Kind(
        "`SET SESSION AUTHORIZATION`",
        "SET SESSION AUTHORIZATION visitor",
        "SELECT session_user = 'visitor'",
        ONLY_ROLLBACK,
    ),
    "timezone": Kind(
        "`SET TimeZone`",
        "SET TimeZone = 'Asia/Tokyo'",
        "SELECT current_setting('TimeZone') = 'Asia/Tokyo'",
        ONLY_ROLLBACK,
    ),
    "timezone-by-function": Kind(
        "`set_config('TimeZone', ...)`, as any parameter that the server reports",
        "SELECT set_config('TimeZone', 'Asia/Tokyo', false)",
        "SELECT current_setting('TimeZone') = 'Asia/Tokyo'",
        ONLY_ROLLBACK,
    ),
    "search-path": Kind(
        "`SET search_path`",
        "SET search_path = pg_catalog",
        "SELECT current_setting('search_path') = 'pg_catalog'",
        ONLY_ROLLBACK,
    ),
    "characteristics": Kind(
        "`SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY`",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SELECT current_setting('default_transaction_read_only') = 'on'",
        ONLY_ROLLBACK,
    ),
    "custom": Kind(
        "`SET app.tenant = ...`",
        "SET app.tenant = 'alice'",
        "SELECT current_setting('app.tenant', true) = 'alice'",
        ONLY_ROLLBACK,
    ),
    "custom-by-function": Kind(
        "`set_config('app.tenant', ..., false)`",
        "SELECT set_config('app.tenant', 'alice', false)",
        "SELECT current_setting('app.tenant', true) = 'alice'",
        UNSEEN,
    ),
    "custom-in-transaction": Kind(
        "`set_config('app.tenant', ..., true)`, and `SET LOCAL`",
        "BEGIN; SELECT set_config('app.tenant', 'alice', true); SET LOCAL work_mem = '123kB'",
        "SELECT current_setting('app.tenant', true) = 'alice' "
        "OR current_setting('work_mem') = '123kB'",
        NEVER,
    ),
    "temporary-table": Kind(
        "a temporary table",
        "CREATE TEMPORARY TABLE scratch (n int)",
        "SELECT to_regclass('pg_temp.scratch') IS NOT NULL",
        UNSEEN,
    ),
    "sequence": Kind(
        "what `lastval()` gives",
        "SELECT nextval('numbers')",
        # Only a session that has one can tell it: 55000 otherwise.
        lambda conn: _answers(conn, "SELECT lastval()"),
        UNSEEN,
    ),
    "listen": Kind(
        "`LISTEN`",
        "LISTEN jobs",
        "SELECT EXISTS (SELECT pg_listening_channels())",
        ONLY_ROLLBACK,
    ),
    "advisory-lock": Kind(
        "a session's advisory lock",
        "SELECT pg_advisory_lock(42)",
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' "
        "AND pid = pg_backend_pid())",
        UNSEEN,
    ),
    "prepared": Kind(
        "a statement by `conn.prepare()`, not closed",
        lambda conn: conn.prepare("SELECT 1").run(),
        "SELECT EXISTS (SELECT FROM pg_prepared_statements)",
        ONLY_ROLLBACK,
    ),
    "prepared-by-sql": Kind(
        "`PREPARE`",
        "PREPARE mine AS SELECT 1",
        "SELECT EXISTS (SELECT FROM pg_prepared_statements)",
        ONLY_ROLLBACK,
    ),
    "held-cursor": Kind(
        "a cursor `WITH HOLD`",
        "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
        "SELECT EXISTS (SELECT FROM pg_cursors)",
        UNSEEN,
    ),
    "autocommit": Kind(
        "`conn.autocommit` of a DB-API connection",
        lambda conn: setattr(conn, "autocommit", True),
        lambda conn: conn.autocommit,
        NEVER,
        driver="dbapi",
    ),
    "notices": Kind(
        "`conn.notices`, `conn.notifications`",
        "LISTEN me; DO $$ BEGIN RAISE NOTICE 'mine'; END $$; NOTIFY me; UNLISTEN me",
        lambda conn: conn.notices or conn.notifications,
        NEVER,
    ),
}


def table() -> str:
    """The table as it stands in the documentation."""
    rows = [
        ("left behind", *(f'`reset="{reset}"`' for reset in RESETS)),
        ("---",) * (len(RESETS) + 1),
    ]
    for kind in KINDS.values():
        fates = ("**stays**" if reset in kind.survives else "gone" for reset in RESETS)
        rows.append((kind.what, *fates))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@pytest.fixture(scope="module", autouse=True)
def _visitor(admin: Admin) -> Any:
    """Another role, and a sequence."""
    admin.run("CREATE ROLE visitor")
    admin.run("CREATE SEQUENCE numbers")
    yield
    admin.run("DROP SEQUENCE numbers")
    admin.run("DROP ROLE visitor")


def pid_of(conn: Any) -> int:
    pid: int = conn.driver_connection.execute_simple("SELECT pg_backend_pid()").rows[0][0]
    return pid


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_survives_a_return(make_pool: MakePool, kind: Kind, reset: str) -> None:
    """Each kind of session state stays or goes at a return, as the table says."""
    pool = make_pool(driver=kind.driver, max_size=1, reset=reset)

    def found(conn: Any) -> bool:
        return bool(conn.run(kind.seen)[0][0] if isinstance(kind.seen, str) else kind.seen(conn))

    lease = pool.acquire()
    pid = pid_of(lease)
    if isinstance(kind.leave, str):
        lease.run(kind.leave)
    else:
        kind.leave(lease)
    assert found(lease)
    lease.release()
    lease = pool.acquire()
    assert pid_of(lease) == pid
    assert found(lease) == (reset in kind.survives)
    lease.release()


@pytest.mark.parametrize("driver", ["native", "dbapi"])
def test_others_see_it_too(make_pool: MakePool, admin: Admin, driver: str) -> None:
    """Under "discard" a returned lock is anybody's, and a returned LISTEN hears nothing."""
    pool = make_pool(driver=driver, max_size=1, reset="discard")
    lease = pool.acquire()
    raw = lease.driver_connection
    raw.execute_simple("SELECT pg_advisory_lock(43)")
    raw.execute_simple("LISTEN jobs")
    assert not admin.value("SELECT pg_try_advisory_lock(43)")
    if driver == "dbapi":  # in the middle of a transaction, where DISCARD ALL is refused
        lease.cursor().execute("SELECT 1")
    lease.release()
    assert admin.value("SELECT pg_try_advisory_lock(43)")
    admin.run("SELECT pg_advisory_unlock(43)")
    admin.run("NOTIFY jobs")
    lease = pool.acquire()
    assert lease.driver_connection is raw
    raw.execute_simple("SELECT 1")  # what was sent has come by now
    assert not raw.notifications
    lease.release()


@pytest.mark.parametrize("reset", ["smart", "discard"])
def test_back_to_the_start(make_pool: MakePool, server: LocalPostgres, reset: str) -> None:
    """A reset goes back to what the pool and the connection string have asked for."""
    dsn = f"{server.dsn}?sslmode=disable&options=-c%20statement_timeout%3D7s"
    pool = make_pool(dsn, max_size=1, reset=reset, session_settings={"work_mem": "5MB"})
    names = "work_mem", "statement_timeout", "application_name"
    born = ["5MB", "7s", pool.name]

    def settings(conn: Any) -> list[str]:
        return [conn.run(f"SHOW {name}")[0][0] for name in names]

    with pool.connection() as conn:
        pid = pid_of(conn)
        assert settings(conn) == born
        for name in names:
            conn.run(f"SET {name} = 77")
    with pool.connection() as conn:
        assert pid_of(conn) == pid
        assert settings(conn) == born


def test_names_of_statements_begin_again(make_pool: MakePool) -> None:
    """After a reset nothing is thought to be prepared that is not."""
    pool = make_pool(max_size=1)
    names = "SELECT name FROM pg_prepared_statements"
    seen = []
    for _ in range(2):
        with pool.connection() as conn:
            statement = conn.prepare("SELECT :a::int")
            assert statement.run(a=1) == [[1]]
            seen.append(conn.run(names))
    assert seen[0] == seen[1]
    assert len(seen[0]) == 1


def test_a_clean_return_says_nothing(make_pool: MakePool) -> None:
    """Under the default a connection that nobody changed is returned without a statement."""
    pool = make_pool(max_size=1)
    with pool.connection() as conn:
        conn.run("SELECT 1")
        conn.run("SELECT :x::int", x=1)
        raw = conn.driver_connection
    sent: list[bytes] = []
    transmit = raw._usock.transmit

    def spy(data: bytes) -> None:
        sent.append(data)
        transmit(data)

    raw._usock.transmit = spy
    with pool.connection() as conn:
        conn.run("SELECT 2")
    assert len(sent) == 1
    del raw._usock.transmit


def test_the_table_is_documented() -> None:
    """docs/session-state.md has this table, word for word."""
    if not DOCUMENT.parent.is_dir():
        pytest.skip("the documentation is not where the tests are")
    assert table() in DOCUMENT.read_text(encoding="utf-8")
