"""No password shows, wherever it comes from and whatever goes wrong.

Everything that a program could print is collected: logs at DEBUG, warnings, texts and
reprs, and of each exception and its causes the local variables of every frame in
fastpool, pg8000 and scramp, as an error reporter shows them. None of it may hold a
password, a piece of one, or one percent-encoded or in base64.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import shutil
import socket
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pg8000.native
import pytest
import scramp
from drivers.kit import Script
from integration.conftest import started
from integration.kit import Admin, eventually
from support import need

import fastpool
from fastpool import ConfigError, ConnectFailed, Pool, PoolConfig, PoolTimeout
from fastpool.conninfo import DatabaseConfig, parse, resolve
from fastpool.testing import LocalPostgres, make_certificate

# Each begins and ends with a piece that is nowhere else.
ODD = "qv7Kx/h:u n't@\\ü%2Zt4Wp"
PLAIN = "qv7KxhunterZt4Wp"
WRONG = "qv7KxwrongZt4Wp"
PIECES = ("qv7Kx", "Zt4Wp")

PACKAGES = tuple(
    str(Path(module.__file__ or "").parent) + os.sep for module in (fastpool, pg8000, scramp)
)


def spellings() -> set[str]:
    """What must not be found."""
    found = {*PIECES, *(base64.b64encode(piece.encode()).decode() for piece in PIECES)}
    for password in (ODD, PLAIN, WRONG):
        found |= {password, quote(password, ""), repr(password)[1:-1]}
        found.add(base64.b64encode(password.encode()).decode().rstrip("="))
        found.add(password.encode().hex())
    return found


class Collector(logging.Handler):
    """All that was produced."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = io.StringIO()
        self._seen: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.add("log", record.getMessage(), record.args)
        if record.exc_info:
            self.exception(record.exc_info[1])

    def add(self, where: str, *things: object) -> None:
        for thing in things:
            self.text.write(f"{where}: {thing} {thing!r}\n")

    def exception(self, error: BaseException | None) -> None:
        """*error*, its locals as far as they are not the caller's, and all behind it."""
        if error is None or any(error is seen for seen in self._seen):
            return
        self._seen.append(error)
        self.add("exception", error, error.args, vars(error), getattr(error, "__notes__", ()))
        traceback = error.__traceback__
        while traceback is not None:
            frame = traceback.tb_frame
            if frame.f_code.co_filename.startswith(PACKAGES):
                where = f"{frame.f_code.co_filename}:{traceback.tb_lineno}"
                for name, value in frame.f_locals.items():
                    self.text.write(f"{where} {name}: {value!r}\n")
            traceback = traceback.tb_next
        self.exception(error.__cause__)
        self.exception(error.__context__)

    def found(self) -> list[str]:
        """The lines that hold a secret."""
        secrets = spellings()
        lines = self.text.getvalue().split("\n")
        return [line for line in lines if any(secret in line for secret in secrets)]


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Hears everything."""
    collector = Collector()
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(collector)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield collector
    collector.add("warning", *(warning.message for warning in caught))
    root.removeHandler(collector)
    root.setLevel(before)
    assert collector.text.tell() > 0
    assert collector.found() == []


class Target(NamedTuple):
    """Where to connect, and as whom."""

    port: int
    user: str = "postgres"
    password: str = ODD
    dbname: str = "postgres"
    query: str = "sslmode=disable"
    """Further parameters, as in a URI."""


class Room(NamedTuple):
    """What a source of passwords needs: the environment, and a place for files."""

    setenv: Callable[[str, str], None]
    directory: Path


Make = Callable[..., Pool[Any]]


def _pairs(target: Target, **more: str) -> str:
    values = {
        "host": "127.0.0.1",
        "port": str(target.port),
        "user": target.user,
        "dbname": target.dbname,
        **dict(pair.split("=") for pair in target.query.split("&")),
        **more,
    }
    quoted = {k: v.replace("\\", "\\\\").replace("'", "\\'") for k, v in values.items()}
    return " ".join(f"{name}='{value}'" for name, value in quoted.items())


def by_uri(room: Room, target: Target, **settings: Any) -> Pool[Any]:
    login = f"{target.user}:{quote(target.password, '')}"
    uri = f"postgresql://{login}@127.0.0.1:{target.port}/{target.dbname}?{target.query}"
    return Pool(uri, **settings)


def by_plain_uri(room: Room, target: Target, **settings: Any) -> Pool[Any]:
    if target.password == ODD:
        target = target._replace(user="plain", password=PLAIN)
    return by_uri(room, target, **settings)


def by_keyword(room: Room, target: Target, **settings: Any) -> Pool[Any]:
    return Pool(_pairs(target, password=target.password), **settings)


def by_environment(room: Room, target: Target, **settings: Any) -> Pool[Any]:
    room.setenv("PGPASSWORD", target.password)
    return Pool(_pairs(target), **settings)


def by_db_variables(room: Room, target: Target, **settings: Any) -> Pool[Any]:
    for name, value in (
        ("PASSWORD", target.password),
        ("HOST", "127.0.0.1"),
        ("PORT", str(target.port)),
        ("USER", target.user),
        ("NAME", target.dbname),
        ("SSLMODE", dict(p.split("=") for p in target.query.split("&"))["sslmode"]),
    ):
        room.setenv(f"DB_{name}", value)
    if "=1" in target.query:
        room.setenv("DB_PORT", "nonsense")
    return fastpool.from_env(**settings)


def by_password_file(room: Room, target: Target, **settings: Any) -> Pool[Any]:
    file = room.directory / "pgpass"
    password = target.password.replace("\\", "\\\\").replace(":", "\\:")
    file.write_text(f"*:*:*:*:{password}\n")
    file.chmod(0o600)
    room.setenv("PGPASSFILE", str(file))
    return Pool(_pairs(target), **settings)


def by_service(room: Room, target: Target, **settings: Any) -> Pool[Any]:
    file = room.directory / "services"
    more = "nonsense=1\n" if "=1" in target.query else ""
    file.write_text(f"[app]\npassword={target.password}\n{more}")
    room.setenv("PGSERVICEFILE", str(file))
    query = "sslmode=disable" if more else target.query
    return Pool(_pairs(target._replace(query=query), service="app"), **settings)


def by_hook(room: Room, target: Target, **settings: Any) -> Pool[Any]:
    other = settings.pop("before_connect", None)

    def hook(params: dict[str, Any]) -> None:
        params["password"] = target.password
        if other is not None:
            other(params)

    return Pool(_pairs(target), before_connect=hook, **settings)


def by_callable(room: Room, target: Target, **settings: Any) -> Pool[Any]:
    other = settings.pop("before_connect", None)

    def hook(params: dict[str, Any]) -> None:
        params["password"] = lambda: target.password
        if other is not None:
            other(params)

    return Pool(_pairs(target), before_connect=hook, **settings)


SOURCES = (
    by_uri,
    by_plain_uri,
    by_keyword,
    by_environment,
    by_db_variables,
    by_password_file,
    by_service,
    by_hook,
    by_callable,
)


@pytest.fixture(scope="module")
def secretive() -> Iterator[LocalPostgres]:
    """A server whose users have the passwords of above."""
    for server in started(LocalPostgres(password=ODD)):
        admin = Admin(server)
        admin.run(f"CREATE ROLE plain LOGIN SUPERUSER PASSWORD '{PLAIN}'")
        admin.close()
        yield server


@pytest.fixture(params=SOURCES, ids=lambda source: source.__name__)
def make(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    collector: Collector,
) -> Iterator[Make]:
    """``make(target, **settings)``: a pool whose password comes from one of the sources.
    Afterwards its every face is collected."""
    room = Room(monkeypatch.setenv, tmp_path)
    made: list[Pool[Any]] = []

    def make(target: Target, **settings: Any) -> Pool[Any]:
        defaults = {"min_size": 0, "max_size": 1, "timeout": 20.0}
        made.append(request.param(room, target, **{**defaults, **settings}))
        return made[-1]

    yield make
    for pool in made:
        house = pool._house
        parts = [house, house.opener, house.keeper, house.driver, house.core, house._conninfo]
        parts += [pool.config, pool.stats(), pool.holders(), *house.core.entries]
        collector.add("pool", pool, *parts, *vars(pool.stats()).values())
        collector.add("threads", threading.enumerate())
        collector.exception(house.opener.last_error)
        pool.close(timeout=1.0)


def fails(collector: Collector, expected: type[BaseException], call: Callable[[], object]) -> Any:
    """*call* raises *expected*, and all that is known of it is collected."""
    with pytest.raises(expected) as caught:
        call()
    collector.exception(caught.value)
    return caught.value


def select(pool: Pool[Any]) -> Any:
    return pool.run("SELECT 1")


def is_down(collector: Collector, pool: Pool[Any]) -> Any:
    """The cause of the timeout of a caller, once a dial has failed."""
    pool.reconfigure(min_size=1)
    pool.open()
    eventually(lambda: pool.stats().dial_failures > 0, "a dial has failed")
    view = pool.within(timeout=0.02)
    return fails(collector, PoolTimeout, lambda: view.run("SELECT 1")).__cause__


def test_that_it_can_be_found(secretive: LocalPostgres) -> None:
    """The collector sees what stock pg8000's traceback shows."""
    collector = Collector()
    fails(
        collector,
        pg8000.native.DatabaseError,
        lambda: pg8000.native.Connection(
            "postgres", host=secretive.host, port=secretive.port, password=WRONG
        ),
    )
    assert collector.found()


def test_nothing_wrong(secretive: LocalPostgres, make: Make, collector: Collector) -> None:
    """The password is right and used; the connection and its lease do not show it."""
    with make(Target(secretive.port)).connection() as conn:
        assert conn.run("SELECT 1") == [[1]]
        raw = conn.driver_connection
        collector.add("connection", conn, raw, raw.__dict__)


def test_wrong_password(secretive: LocalPostgres, make: Make, collector: Collector) -> None:
    """In the server's words."""
    pool = make(Target(secretive.port, password=WRONG), min_size=1)
    assert fails(collector, ConnectFailed, lambda: select(pool)).sqlstate == "28P01"
    fails(collector, ConnectFailed, lambda: pool.open(wait=True))
    fails(collector, ConnectFailed, lambda: fastpool.listen(pool, "jobs").get(timeout=5))


def test_wrong_database(secretive: LocalPostgres, make: Make, collector: Collector) -> None:
    """After the password was found right."""
    pool = make(Target(secretive.port, dbname="missing"))
    assert fails(collector, ConnectFailed, lambda: select(pool)).sqlstate == "3D000"


def test_refused(make: Make, collector: Collector) -> None:
    """No server."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        pool = make(Target(unused.getsockname()[1]))
        assert isinstance(is_down(collector, pool), pg8000.native.InterfaceError)


def test_silent_server(make: Make, collector: Collector) -> None:
    """It accepts, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pool = make(Target(silent.getsockname()[1]), connect_timeout=0.05)
        assert isinstance(is_down(collector, pool), TimeoutError)


def test_tls_refused(secretive: LocalPostgres, make: Make, collector: Collector) -> None:
    """The server has none."""
    pool = make(Target(secretive.port, query="sslmode=require"))
    assert "does not support TLS" in str(fails(collector, ConnectFailed, lambda: select(pool)))


@pytest.mark.parametrize("auth", ["cleartext", "md5", "scram", "unproved"])
def test_login_breaks_off(make: Make, collector: Collector, auth: str) -> None:
    """While the password is in use: the server hangs up, or does not prove itself."""

    class Broken(Script):
        def _packet(self, sock: Any, coded: bool) -> bytes:
            packet = super()._packet(sock, coded)
            if coded and auth != "unproved":
                raise EOFError
            return packet

    with Broken(auth=auth, password=PLAIN) as server:
        pool = make(Target(server.port, password=PLAIN))
        if auth == "unproved":
            error = fails(collector, ConnectFailed, lambda: select(pool))
            assert "without proving itself" in str(error)
        else:
            assert isinstance(is_down(collector, pool), pg8000.native.InterfaceError)
        assert len(server.started) > 0


def test_hooks_raise(secretive: LocalPostgres, make: Make, collector: Collector) -> None:
    """Before and after a connect."""

    def hook(_: object) -> None:
        raise ArithmeticError("hook")

    for name in ("before_connect", "after_connect"):
        pool = make(Target(secretive.port), **{name: hook})
        assert isinstance(is_down(collector, pool), ArithmeticError)


def test_wrong_settings(make: Make, collector: Collector) -> None:
    """Beside a right connection string, and beside a right name or driver."""
    for wrong in (
        {"min_size": 9, "max_size": 1},
        {"max_sice": 1},
        {"timeout": 0},
        {"name": "\n"},
        {"driver": "none"},
        {"pgbouncer": True, "reset": "discard"},
    ):
        fails(collector, ConfigError, lambda wrong=wrong: make(Target(1), **wrong))


def test_wrong_connection_string(make: Make, collector: Collector) -> None:
    """A parameter that does not exist, or in DB_PORT what is no number."""
    fails(collector, ConfigError, lambda: make(Target(1, query="sslmode=disable&nonsense=1")))


def _parses(text: Any) -> bool:
    try:
        parse(text)
    except ConfigError:
        return False
    return True


def test_unreadable_connection_strings(collector: Collector) -> None:
    """Whatever part of it is wrong, for each function that takes one."""
    wrong: list[Any] = [
        f"postgresql://u:{ODD}@h/db",
        f"postgresql://u:{WRONG}%@h/db",
        f"postgresql://u:{WRONG}%00@h/db",
        f"postgresql://u:{WRONG}@[h/db",
        f"postgresql://u:{WRONG}@h:port/db",
        f"postgresql://h/db?password={WRONG}&port",
        f"postgresql://h/db?password={WRONG}=",
        f"Postgresql://u:{WRONG}@h/db",
        f"host=h password='{WRONG}",
        f"host=h password=x {WRONG}",
        f"host=h port=x password={WRONG}",
        f"host=h password={WRONG}\0",
        f"host=h password={WRONG}\ud800",
        f"postgresql://u:{WRONG}@h/db".encode(),
        {"password": WRONG},
    ]
    for text in wrong:
        for function in (parse, resolve, Pool):
            if function is parse and _parses(text):
                continue  # it checks no values
            fails(collector, ConfigError, lambda f=function, text=text: f(text))
    fails(collector, TypeError, lambda: Pool(wrong[0], wrong[1]))
    fails(collector, ConfigError, lambda: Pool.from_config(PoolConfig(), wrong[0]))


def test_wrong_variables(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    """The whole environment is near, and does not show either."""
    for password, port in ((WRONG, "x"), (WRONG, "99999"), (WRONG + "\udcff", "5432")):
        monkeypatch.setenv("DB_PASSWORD", password)
        monkeypatch.setenv("DB_PORT", port)
        error = fails(collector, ConfigError, fastpool.from_env)
        assert error.setting == ("DB_PORT" if port != "5432" else "DB_PASSWORD")
    monkeypatch.setenv("DB_PORT", "5432")
    fails(collector, ConfigError, lambda: fastpool.from_env(password=WRONG, max_size=0))
    monkeypatch.setenv("DB_PASSWORD", WRONG)
    collector.add("config", DatabaseConfig.from_env(), resolve(f"password={WRONG}"))
    collector.add("params", resolve(f"password={WRONG}").for_host(0))


def test_password_that_is_no_text(
    secretive: LocalPostgres, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a hook, where nothing has checked it; and one that SCRAM does not take."""
    for password in (WRONG + "\0", WRONG + "\ud800", WRONG.encode() + b"\xff", WRONG + "\x07"):
        pool = Pool(
            _pairs(Target(secretive.port)),
            before_connect=lambda params, p=password: params.update(password=p),  # type: ignore[misc]
        )
        fails(collector, ConnectFailed, lambda pool=pool: select(pool))
        pool.close()


def test_password_of_a_key(secretive: LocalPostgres, collector: Collector, tmp_path: Path) -> None:
    """The wrong one for a client's private key."""
    need(shutil.which("openssl"), "no openssl command")
    certificate, key = make_certificate(tmp_path, ["client.example"])
    locked = tmp_path / "locked.key"
    command = ["openssl", "ec", "-aes256", "-in", key, "-out", locked, "-passout", "pass:another"]
    subprocess.run(command, check=True, capture_output=True)
    locked.chmod(0o600)
    target = Target(secretive.port, query="sslmode=require")
    files = {"sslcert": str(certificate), "sslkey": str(locked), "sslpassword": WRONG}
    pool = Pool(_pairs(target, **files))
    assert "cannot load sslcert" in str(fails(collector, ConnectFailed, lambda: select(pool)))
    pool.close()


def test_session_is_killed(secretive: LocalPostgres, make: Make, collector: Collector) -> None:
    """In the middle of a query."""
    pool = make(Target(secretive.port))
    kill = "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(10)"
    fails(collector, pg8000.native.Error, lambda: pool.run(kill))


def test_no_connection_in_time(secretive: LocalPostgres, make: Make, collector: Collector) -> None:
    """Somebody holds it; and at the close still."""
    pool = make(Target(secretive.port))
    lease = pool.acquire()
    collector.add("lease", lease)
    fails(collector, PoolTimeout, lambda: pool.acquire(timeout=0))
    pool.close(timeout=0.05)
    fails(collector, fastpool.ConnectionReleased, lambda: lease.run("SELECT 1"))
