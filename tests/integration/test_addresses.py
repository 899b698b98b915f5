"""Where the pool connects to: every way to say it, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from integration.conftest import MakePool
from integration.kit import Admin

import fastpool
from fastpool import Pool
from fastpool.testing import LocalPostgres

WHERE = "SELECT inet_server_addr() IS NOT NULL, current_user::text, current_database()::text"


def where(pool: Pool[Any]) -> tuple[bool, str, str]:
    """Whether over TCP, the user and the database."""
    with pool:
        over_tcp, user, database = pool.run(WHERE)[0]
        return over_tcp, user, database


@pytest.fixture
def password(locked_server: LocalPostgres) -> str:
    """The password of the server that wants one."""
    assert locked_server.password is not None
    return locked_server.password


def test_uri_over_tcp(make_pool: MakePool, server: LocalPostgres) -> None:
    """A URI with an IPv4 address."""
    assert where(make_pool(server.dsn)) == (True, "postgres", "postgres")


def test_uri_over_unix_socket(make_pool: MakePool, server: LocalPostgres) -> None:
    """A URI with a socket directory, as a parameter or percent-encoded as the host."""
    assert where(make_pool(server.unix_dsn)) == (False, "postgres", "postgres")
    host = quote(str(server.socket_dir), "")
    dsn = f"postgresql://postgres@{host}:{server.port}/postgres"
    assert where(make_pool(dsn)) == (False, "postgres", "postgres")


def test_key_value(make_pool: MakePool, server: LocalPostgres) -> None:
    """A key=value string, over TCP and over a unix socket."""
    common = f"port={server.port} user=postgres dbname=template1"
    tcp = make_pool(f"host={server.host} {common} sslmode=disable")
    assert where(tcp) == (True, "postgres", "template1")
    unix = make_pool(f"host={server.socket_dir} {common}")
    assert where(unix) == (False, "postgres", "template1")


def test_host_name(make_pool: MakePool, server: LocalPostgres) -> None:
    """A name that has several addresses: those that refuse are passed over."""
    dsn = f"postgresql://postgres@localhost:{server.port}/postgres?sslmode=disable"
    assert where(make_pool(dsn))[0]


def test_first_host_that_answers(make_pool: MakePool, server: LocalPostgres) -> None:
    """Of several hosts the first that answers, and later dials begin with it."""
    hosts = f"127.0.0.1:1,{server.host}:{server.port}"
    pool = make_pool(f"postgresql://postgres@{hosts}/postgres?sslmode=disable", max_size=3)
    with pool.connection(), pool.connection(), pool.connection() as conn:
        assert conn.run("SELECT 1") == [[1]]
    assert pool.stats().dial_failures == 0


def test_settings_in_the_uri(make_pool: MakePool, server: LocalPostgres) -> None:
    """The pool's own settings may stand in the connection string; arguments win."""
    dsn = f"{server.dsn}?sslmode=disable&max_size=7&max_lifetime=1h&connect_timeout=3"
    pool = make_pool(dsn, max_lifetime=60.0)
    assert pool.config.max_size == 7
    assert pool.config.max_lifetime == 60.0
    assert pool.config.connect_timeout == 3.0
    assert pool.run("SELECT 1") == [[1]]


def test_options_reach_the_server(make_pool: MakePool, server: LocalPostgres) -> None:
    """libpq's options parameter sets what it names."""
    options = quote("-c work_mem=7MB -c app.label=a\\ b")
    pool = make_pool(f"{server.dsn}?sslmode=disable&options={options}")
    assert pool.run("SHOW work_mem") == [["7MB"]]
    assert pool.run("SHOW app.label") == [["a b"]]


def test_password_in_the_uri(locked_server: LocalPostgres) -> None:
    """A password of odd characters, over TCP and over a unix socket."""
    for dsn in (locked_server.dsn, locked_server.unix_dsn):
        assert where(Pool(dsn, min_size=0))[1] == "postgres"


def test_libpq_environment(
    locked_server: LocalPostgres, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a connection string everything comes from the PG* variables."""
    monkeypatch.setenv("PGHOST", locked_server.host)
    monkeypatch.setenv("PGPORT", str(locked_server.port))
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("PGDATABASE", "template1")
    monkeypatch.setenv("PGPASSWORD", password)
    monkeypatch.setenv("PGSSLMODE", "disable")
    monkeypatch.setenv("PGAPPNAME", "from-env")
    pool = Pool(min_size=0)
    assert where(pool) == (True, "postgres", "template1")
    monkeypatch.setenv("PGHOST", str(locked_server.socket_dir))
    with Pool(min_size=0) as pool:
        assert pool.run("SHOW application_name") == [["from-env"]]
        assert not pool.run(WHERE)[0][0]


def test_password_file_and_service(
    locked_server: LocalPostgres,
    password: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A service names the server, the password file knows the password."""
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:postgres:{escaped}\n", encoding="utf-8")
    passfile.chmod(0o600)
    service = tmp_path / "service.conf"
    service.write_text(
        f"[mine]\nhost={locked_server.host}\nport={locked_server.port}\nuser=postgres\n"
        "dbname=postgres\nsslmode=disable\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    assert where(Pool("service=mine", min_size=0)) == (True, "postgres", "postgres")


def test_db_environment(
    locked_server: LocalPostgres, password: str, monkeypatch: pytest.MonkeyPatch, admin: Admin
) -> None:
    """from_env() makes a working pool of the DB_* variables."""
    monkeypatch.setenv("DB_HOST", locked_server.host)
    monkeypatch.setenv("DB_PORT", str(locked_server.port))
    monkeypatch.setenv("DB_USER", "postgres")
    monkeypatch.setenv("DB_NAME", "template1")
    monkeypatch.setenv("DB_PASSWORD", password)
    monkeypatch.setenv("DB_SSLMODE", "disable")
    monkeypatch.setenv("DB_MAX_CONNS", "3")
    monkeypatch.setenv("DB_MIN_CONNS", "2")
    monkeypatch.setenv("DB_CONN_MAX_LIFETIME", "1h30m")
    monkeypatch.setenv("DB_CONN_MAX_IDLE_TIME", "0")
    with fastpool.from_env() as pool:
        pool.wait(20)
        assert pool.run(WHERE) == [[True, "postgres", "template1"]]
        assert (pool.config.min_size, pool.config.max_size) == (2, 3)
        assert pool.config.max_lifetime == 5400.0
        assert pool.config.max_idle_time is None


def test_db_environment_requires_encryption(
    locked_server: LocalPostgres, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DB_SSLMODE is require unless it says otherwise: a server without TLS is refused at once."""
    monkeypatch.setenv("DB_HOST", locked_server.host)
    monkeypatch.setenv("DB_PORT", str(locked_server.port))
    monkeypatch.setenv("DB_PASSWORD", password)
    with (
        fastpool.from_env(min_size=0) as pool,
        pytest.raises(fastpool.ConnectFailed, match="sslmode requires it"),
    ):
        pool.acquire(timeout=30)
