"""What one user of a connection leaves behind for the next, by kind and by ``reset``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from integration.conftest import MakePool
from integration.kit import Admin

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
    """Another role."""
    admin.run("CREATE ROLE visitor")
    yield
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
