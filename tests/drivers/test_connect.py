"""How a connection comes to be, and how it ends."""

from __future__ import annotations

import gc
import math
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pg8000.native
import pytest
from drivers.kit import (
    Certificates,
    Script,
    State,
    error_response,
    md5_password,
    message,
)

from fastpool.drivers._socket import Endpoint, dial, drive, resolve
from fastpool.drivers._tls import Contexts
from fastpool.drivers.base import BUSY, CLOSED, DIRTY, LOCAL
from fastpool.drivers.pg8000 import DBAPI, Native
from fastpool.errors import ConfigError
from fastpool.testing import FaultProxy
from fastpool.testing.local_postgres import LocalPostgres

DatabaseError, InterfaceError = pg8000.native.DatabaseError, pg8000.native.InterfaceError


def attempt(port: int, timeout: float = 10.0, **changes: Any) -> Any:
    """Dial a scripted server on this port; return the connection."""
    params = {"host": "localhost", "hostaddr": "127.0.0.1", "port": port, "user": "u"}
    return Native().connect({**params, **changes}, State(), time.monotonic() + timeout)


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def drain(steps: Iterator[tuple[int, int]], timeout: float = 5.0) -> None:
    drive(steps, time.monotonic() + timeout)  # type: ignore[arg-type]


def backends(admin: Any, pid: int) -> int:
    count: int = admin.run("SELECT count(*) FROM pg_stat_activity WHERE pid = :p", p=pid)[0][0]
    return count


# Dialling


def test_connects_over_tcp_and_unix_socket(connect: Any, server: LocalPostgres) -> None:
    """Either way the connection is idle, clean and works."""
    for host in (server.host, str(server.socket_dir), "localhost"):
        conn = connect(host=host, port=str(server.port))
        assert conn.run("SELECT current_user") == [["postgres"]]
        assert conn._state.flags == 0


def test_socket_options(connect: Any, server: LocalPostgres) -> None:
    """No delay, keepalives and a limit on unacknowledged data; libpq's names change them."""

    def options(conn: Any) -> list[int]:
        names = "TCP_NODELAY", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"
        sock = conn._usock
        return [
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            *(sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names),
        ]

    assert options(connect()) == [1, 1, 30, 5, 3, 10_000]
    changed = connect(
        keepalives_idle="7", keepalives_interval=2, keepalives_count=9, tcp_user_timeout=1234
    )
    assert options(changed) == [1, 1, 7, 2, 9, 1234]
    assert options(connect(keepalives=0, tcp_user_timeout=0))[0::5] == [0, 0]
    assert connect()._usock.gettimeout() is None
    with pytest.raises(ConfigError, match="keepalives_idle must be a whole number"):
        connect(keepalives_idle="soon")


def test_start_up_parameters(connect: Any) -> None:
    """options, application_name, session settings with spaces and quotes, client_encoding."""
    conn = connect(
        options="-c work_mem=6MB",
        fallback_application_name="fallback",
        client_encoding="auto",
        session_settings={
            "search_path": '"a b", "c\'d"',
            "statement_timeout": 5000,
            "my.own": "\\ x",
        },
    )
    for name, value in (
        ("work_mem", "6MB"),
        ("application_name", "fallback"),
        ("search_path", '"a b", "c\'d"'),
        ("statement_timeout", "5s"),
        ("my.own", "\\ x"),
        ("client_encoding", "UTF8"),
    ):
        assert conn.run(f"SHOW {name}") == [[value]]
    conn = connect(application_name="given", fallback_application_name="fallback")
    assert conn.run("SHOW application_name") == [["given"]]


@pytest.mark.parametrize(
    ("changes", "sqlstate"),
    [
        ({"dbname": "missing"}, "3D000"),
        ({"user": "nobody_such"}, "28000"),
        ({"session_settings": {"no_such_setting": "1"}}, "42704"),
        ({"session_settings": {"work_mem": "lots"}}, "22023"),
        ({"options": "-c nonsense=1"}, "42704"),
    ],
)
def test_what_the_server_refuses_for_good(connect: Any, changes: Any, sqlstate: str) -> None:
    """Its own words, with SQLSTATE, and classed as permanent."""
    with pytest.raises(DatabaseError) as caught:
        connect(**changes)
    assert Native().sqlstate(caught.value) == sqlstate
    assert Native().is_permanent(caught.value)


@pytest.mark.parametrize(
    ("message", "permanent"),
    [
        ("unsupported startup parameter: query_wait_timeout", True),
        ("SASL authentication failed", True),
        ("no such database: x", True),
        ("query_wait_timeout", False),
        ("client_login_timeout (server down)", False),
        ("pgbouncer cannot connect to server", False),
        ("no more connections allowed (max_client_conn)", False),
        ("server login has been failing, cached error: x (server_login_retry)", False),
        ("the database system is starting up", False),
    ],
)
def test_pgbouncer_says_08p01_whatever_it_refuses(message: str, permanent: bool) -> None:
    """Its words tell what will be refused again from what passes."""
    error = DatabaseError({"S": "FATAL", "C": "08P01", "M": message})
    assert Native().sqlstate(error) == "08P01"
    assert Native().is_permanent(error) is permanent


def test_full_and_starting_servers_are_not_permanent() -> None:
    """Nor is a refused port, an unknown name, a missing socket or a server that hangs up."""
    driver = Native()
    for sqlstate in ("53300", "57P03"):
        with (
            Script(refuse=lambda encrypted, s=sqlstate: s) as script,
            pytest.raises(DatabaseError) as caught,
        ):
            attempt(script.port)
        assert driver.sqlstate(caught.value) == sqlstate
        assert not driver.is_permanent(caught.value)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for changes, cause in (
            ({"port": unused.getsockname()[1]}, ConnectionRefusedError),
            ({"host": "no-such-host.invalid", "hostaddr": None}, socket.gaierror),
            ({"host": "/nowhere", "hostaddr": None}, FileNotFoundError),
        ):
            with pytest.raises(InterfaceError) as failed:
                attempt(**{"port": 5432, **changes})  # type: ignore[arg-type]
            assert isinstance(failed.value.__cause__, cause)
            assert not driver.is_permanent(failed.value)


def test_server_of_another_kind_is_said() -> None:
    """Garbage ends the attempt with an InterfaceError, whatever it is."""
    for garbage in (b"?" * 9, b"R\0\0\0\4", b"S\0\0\0\6\xff\xff", b"HTTP/1.1 400 Bad\r\n\r\n"):
        with (
            Script(send=lambda sock, data, g=garbage: (sock.sendall(g), sock.close())) as script,
            pytest.raises(InterfaceError),
        ):
            attempt(script.port, sslmode="disable")


def test_nul_characters_are_refused() -> None:
    """One would end an entry of the start-up packet and begin another."""
    for changes, setting in (
        ({"user": "u\0database\0other"}, "user"),
        ({"dbname": "d\0"}, "database"),
        ({"session_settings": {"a\0b": "1"}}, "a\0b"),
        ({"session_settings": {"a": "1\0"}}, "a"),
        ({"session_settings": {"user": "x"}}, "session_settings"),
        ({"user": None}, "user"),
        ({"password": "p\0"}, "password"),
        ({"password": "\ud800secret"}, "password"),
        ({"password": b"\xffsecret"}, "password"),
    ):
        with pytest.raises(ConfigError) as caught:
            attempt(1, **changes)
        assert caught.value.setting == setting
        assert Native().is_permanent(caught.value)
        assert "secret" not in repr(caught.value)


def test_every_address_of_a_name_is_tried(
    connect: Any, server: LocalPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name whose first address refuses connects to its second."""
    real = socket.getaddrinfo

    def two(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        if host != "two.example":
            return real(host, port, *rest, **more)
        if more.get("flags"):
            raise socket.gaierror("no number")
        return real("127.0.0.9", 1, **more) * 2 + real("127.0.0.1", port, **more)

    monkeypatch.setattr(socket, "getaddrinfo", two)
    assert connect(host="two.example").run("SELECT 1") == [[1]]
    assert len(resolve({"host": "two.example"}, math.inf)) == 2


def test_silent_address_leaves_time_for_the_next(
    server: LocalPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two addresses gets half the time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        first, second = silent.getsockname(), (server.host, server.port)
        endpoints = [Endpoint(socket.AF_INET, address, ()) for address in (first, second)]
        monkeypatch.setattr("fastpool.drivers.pg8000.resolve", lambda *_: endpoints)
        begun = time.monotonic()
        conn = attempt(0, timeout=1.0, user="postgres", sslmode="disable")
        assert 0.45 < time.monotonic() - begun < 0.95
        Native().abandon(conn)


def test_resolver_is_held_to_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer does not hold the dial."""
    release = threading.Event()

    def stuck(*_: Any, flags: int = 0, **__: Any) -> Any:
        if flags:
            raise socket.gaierror
        release.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    begun = time.monotonic()
    try:
        with pytest.raises(TimeoutError, match="not resolved in time"):
            resolve({"host": "slow.example"}, time.monotonic() + 0.2)
    finally:
        release.set()
    assert time.monotonic() - begun < 2


# Deadline


def drip(sock: Any, data: bytes) -> None:
    for i in range(len(data)):
        sock.sendall(data[i : i + 1])
        time.sleep(0.05)


@pytest.mark.parametrize("stage", ["silent", "negotiation", "drip", "endless", "handshake"])
def test_deadline_holds_at_every_stage(stage: str, certificates: Certificates) -> None:
    """Silent, slow or talkative: TimeoutError when the time is up, and nothing is open."""

    class Stalled(Script):
        def serve(self, client: Any) -> None:
            if stage == "silent":
                while client.recv(4096):
                    pass
            elif stage == "negotiation":
                client.recv(8)
                client.recv(1)
            elif stage == "handshake":
                client.recv(8)
                client.sendall(b"S")
                hello = client.recv(4096)
                assert hello[:1] == b"\x16"
                drip(client, b"\x16\x03\x03\x10\x00" + bytes(400))
            elif stage == "drip":
                super().serve(client)
            else:
                client.recv(4096)
                notice = message(b"N", b"SNOTICE\0Mx\0\0")
                while True:
                    client.sendall(notice)

    sslmode = "require" if stage in ("negotiation", "handshake") else "disable"
    # READY drips for two seconds.
    with Stalled(send=drip) as server:
        before = descriptors()
        begun = time.monotonic()
        with pytest.raises(TimeoutError) as caught:
            attempt(server.port, timeout=0.4, sslmode=sslmode)
        took = time.monotonic() - begun
        assert 0.35 < took < 0.9
        assert not Native().is_permanent(caught.value)
        del caught
        server.drop()
        deadline = time.monotonic() + 5
        while descriptors() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert descriptors() <= before


def test_slow_start_within_the_deadline_connects_and_has_no_limit_then(connect: Any) -> None:
    """The limit is of the attempt alone: later reads wait as long as they must."""
    with Script(send=lambda sock, data: drip(sock, data[:3]) or sock.sendall(data[3:])) as script:
        conn = attempt(script.port, timeout=5.0, sslmode="disable")
        assert conn._usock.limit is None
        assert conn._usock.gettimeout() is None
        Native().abandon(conn)


def test_ping_of_a_server_that_does_not_answer(connect: Any) -> None:
    """It ends in time, raises, and the connection is DIRTY but not known to be dead."""
    with Script() as script:
        conn = attempt(script.port, sslmode="disable")
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            Native().ping(conn, 0.2)
        assert 0.15 < time.monotonic() - begun < 1
        assert conn._state.flags == DIRTY
        Native().abandon(conn)


# TLS and authentication


def test_verify_full_checks_the_name_and_verify_ca_does_not(
    connect: Any, tls_proxy: FaultProxy, certificates: Certificates, home: Path
) -> None:
    """The certificate is for ``localhost`` only."""
    changes = {
        "hostaddr": "127.0.0.1",
        "port": str(tls_proxy.port),
        "sslrootcert": str(certificates.root),
    }
    for host in ("other.example", "127.0.0.1"):
        assert connect(host=host, sslmode="verify-ca", **changes).run("SELECT 1")
        with pytest.raises(InterfaceError, match=r"(?i)mismatch") as caught:
            connect(host=host, sslmode="verify-full", **changes)
        assert Native().is_permanent(caught.value)


def test_unix_sockets_are_never_encrypted(connect: Any, server: LocalPostgres) -> None:
    """Whatever sslmode says, as in libpq."""
    driver = Native()
    conn = connect(driver, host=str(server.socket_dir), sslmode="require")
    assert driver.encryption(conn) == "none"


def test_contradictions_are_refused(certificates: Certificates, home: Path) -> None:
    """With the setting's name, before anything is dialled."""
    root = str(certificates.root)
    for changes, setting in (
        ({"sslmode": "sure"}, "sslmode"),
        ({"sslmode": "require", "sslrootcert": "system"}, "sslmode"),
        ({"sslmode": "prefer", "sslnegotiation": "direct"}, "sslnegotiation"),
        ({"sslmode": "verify-full", "sslrootcert": root, "sslsni": "0"}, "sslsni"),
        ({"sslmode": "verify-full", "sslrootcert": root, "host": ""}, "host"),
        ({"sslmode": "require", "host": "x" * 70}, "host"),
        ({"sslmode": "verify-ca", "sslrootcert": "/nowhere"}, "sslrootcert"),
        ({"sslmode": "verify-ca", "sslrootcert": __file__}, "sslrootcert"),
        ({"sslmode": "require", "ssl_min_protocol_version": "SSLv3"}, "ssl_min_protocol_version"),
        ({"sslmode": "require", "sslcert": root, "sslkey": "/nowhere"}, "sslkey"),
    ):
        with pytest.raises(ConfigError) as caught:
            attempt(1, **changes)
        assert caught.value.setting == setting


def test_client_certificate(
    connect: Any, server: LocalPostgres, certificates: Certificates, home: Path
) -> None:
    """Shown when there is one; its key must be private."""
    key = home / "key"
    key.write_bytes(certificates.key(certificates.client).read_bytes())
    key.chmod(0o600)
    with FaultProxy(server, tls=certificates.pair, client_ca=certificates.root) as proxy:
        changes = {"port": proxy.port, "sslmode": "require", "sslkey": str(key)}
        conn = connect(sslcert=str(certificates.client), **changes)
        assert conn.run("SELECT 1") == [[1]]
        with pytest.raises(InterfaceError):
            connect(sslcert=str(home / "missing"), **changes)
        key.chmod(0o644)
        with pytest.raises(ConfigError, match="can be read by others"):
            connect(sslcert=str(certificates.client), **changes)


def test_context_is_shared_until_a_file_changes(certificates: Certificates, home: Path) -> None:
    """One per driver and set of parameters; a renewed root certificate is seen."""
    driver = Native()
    params = {"host": "h", "sslmode": "verify-ca", "sslrootcert": str(home / "root.crt")}
    (home / "root.crt").write_bytes(certificates.root.read_bytes())
    first = driver._contexts.tls(params).context
    assert driver._contexts.tls({**params, "host": "other"}).context is first
    assert driver._contexts.tls({**params, "sslmode": "verify-full"}).context is not first
    os.utime(home / "root.crt", ns=(1, 1))
    assert driver._contexts.tls(params).context is not first


def test_direct_negotiation(certificates: Certificates, home: Path) -> None:
    """TLS from the first byte, with the protocol's name agreed on."""
    context = certificates.context()
    with Script(b"direct", context) as script:
        with pytest.raises(InterfaceError, match="direct TLS"):
            attempt(script.port, sslmode="require", sslnegotiation="direct")
        context.set_alpn_protocols(["postgresql"])
        conn = attempt(script.port, sslmode="require", sslnegotiation="direct")
        assert Native().encryption(conn) == "unverified"
        Native().abandon(conn)


def test_allow_and_prefer_try_the_other_way_when_refused(
    certificates: Certificates, home: Path
) -> None:
    """A server that wants encryption, and one that refuses it, are reached by both modes."""
    for wants in (True, False):
        with Script(
            b"S", certificates.context(), refuse=lambda enc, w=wants: "28000" if enc != w else None
        ) as script:
            for sslmode in ("allow", "prefer"):
                conn = attempt(script.port, sslmode=sslmode)
                assert Native().encryption(conn) == ("unverified" if wants else "none")
                Native().abandon(conn)
            assert script.encrypted.count(wants) == 2
    with Script(b"S", certificates.context(), refuse=lambda encrypted: "53300") as script:
        with pytest.raises(DatabaseError):
            attempt(script.port, sslmode="prefer")
        assert script.encrypted == [True]


def test_both_ways_refused_tells_of_the_encrypted_one(
    certificates: Certificates, home: Path
) -> None:
    """A wrong password must not be reported as "no encryption"."""
    with Script(
        b"S", certificates.context(), refuse=lambda enc: "28P01" if enc else "28000"
    ) as script:
        for sslmode in ("allow", "prefer"):
            with pytest.raises(DatabaseError) as caught:
                attempt(script.port, sslmode=sslmode)
            assert Native().sqlstate(caught.value) == "28P01"


# The scripted server's wrap_socket() may lose a socket that is reset that early.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_bytes_smuggled_in_before_tls_are_refused(certificates: Certificates, home: Path) -> None:
    """Plain text behind the server's S is an attack (CVE-2021-23222)."""
    for answer, text in (
        (b"S" + error_response("28000"), "unencrypted data"),
        (b"E", "no valid answer"),
        (b"x", "no valid answer"),
    ):
        with (
            Script(answer, certificates.context()) as script,
            pytest.raises(InterfaceError, match=text),
        ):
            attempt(script.port, sslmode="require")


@pytest.mark.parametrize("auth", ["cleartext", "md5", "scram", "plus"])
@pytest.mark.parametrize("password", ["secret", b"secret", lambda: "secret"])
def test_password_methods(certificates: Certificates, home: Path, auth: str, password: Any) -> None:
    """Each works; over TLS, SCRAM binds itself to the channel if the server can."""
    with Script(b"S", certificates.context(), auth, certificate=certificates.server) as script:
        Native().abandon(attempt(script.port, password=password, sslmode="require"))
        (sent,) = script.passwords
        assert (
            sent
            == {
                "cleartext": b"secret\0",
                "md5": md5_password("secret", "u"),
                "scram": b"SCRAM-SHA-256",
                "plus": b"SCRAM-SHA-256-PLUS",
            }[auth]
        )


@pytest.mark.parametrize("auth", ["cleartext", "md5", "scram", "plus"])
def test_missing_password_is_said(certificates: Certificates, home: Path, auth: str) -> None:
    """A clear error, permanent, and nothing sent."""
    with Script(b"S", certificates.context(), auth) as script:
        with pytest.raises(InterfaceError, match="asks for a password, and none is set") as caught:
            attempt(script.port, sslmode="require")
        assert Native().is_permanent(caught.value)
        assert script.passwords == []


def test_channel_binding(certificates: Certificates, home: Path) -> None:
    """``require`` sends no password to a server that cannot bind; ``disable`` does not bind."""
    context = certificates.context()
    for auth in ("trust", "cleartext", "md5", "scram"):
        with Script(b"S", context, auth) as script:
            with pytest.raises(InterfaceError, match="channel_binding=require") as caught:
                attempt(
                    script.port, sslmode="require", channel_binding="require", password="secret"
                )
            assert script.passwords == []
            assert Native().is_permanent(caught.value)
    for binding, mechanism in (("require", b"SCRAM-SHA-256-PLUS"), ("disable", b"SCRAM-SHA-256")):
        with Script(b"S", context, "plus", certificate=certificates.server) as script:
            conn = attempt(
                script.port, sslmode="require", channel_binding=binding, password="secret"
            )
            Native().abandon(conn)
            assert script.passwords == [mechanism]
    with (
        Script(auth="plus", certificate=certificates.server) as script,
        pytest.raises(InterfaceError, match="channel_binding=require"),
    ):
        attempt(script.port, sslmode="disable", channel_binding="require", password="secret")


def test_server_must_prove_itself(certificates: Certificates, home: Path) -> None:
    """SCRAM that is cut short before the server's signature is refused."""
    with (
        Script(auth="unproved") as script,
        pytest.raises(InterfaceError, match="without proving itself"),
    ):
        attempt(script.port, sslmode="disable", password="secret")


def test_wrong_password_on_a_real_server() -> None:
    """28P01 is permanent, and no text of it holds a password; the right one connects."""
    driver = Native()
    with LocalPostgres(password="correct horse") as server:
        params = {"host": server.host, "port": server.port, "user": "postgres"}
        with pytest.raises(DatabaseError) as caught:
            driver.connect({**params, "password": "hunter2"}, State(), time.monotonic() + 10)
        assert driver.sqlstate(caught.value) == "28P01"
        assert driver.is_permanent(caught.value)
        assert "hunter2" not in f"{caught.value!r} {driver!r} {driver.__dict__}"
        good = {**params, "password": "correct horse"}
        conn = driver.connect(good, State(leased=True), time.monotonic() + 10)
        assert conn.run("SELECT 1") == [[1]]
        assert "correct horse" not in f"{conn!r} {conn.__dict__} {DBAPI()!r}"
        drain(driver.close(conn))


# Nothing left open


def test_failed_connects_leave_nothing_open(
    certificates: Certificates, home: Path, server: LocalPostgres
) -> None:
    """At no stage, although the errors and their tracebacks are still held."""
    kept: list[BaseException] = []
    context = certificates.context()
    wrong_root = {"sslmode": "require", "sslrootcert": str(certificates.other_root)}
    cases: list[tuple[Any, dict[str, Any]]] = [
        (lambda: Script(refuse=lambda encrypted: "28P01"), {"sslmode": "disable"}),
        (lambda: Script(auth="scram"), {"sslmode": "disable"}),
        (lambda: Script(auth="scram"), {"sslmode": "disable", "password": "wrong"}),
        (lambda: Script(b"N"), {"sslmode": "require"}),
        (lambda: Script(b"x"), {"sslmode": "require"}),
        (lambda: Script(b"S", context), wrong_root),
        (lambda: Script(b"S", context, refuse=lambda encrypted: "28000"), {"sslmode": "prefer"}),
        (lambda: Script(send=lambda sock, data: sock.sendall(b"?" * 9)), {"sslmode": "disable"}),
        (lambda: Script(send=lambda sock, data: sock.close()), {"sslmode": "disable"}),
    ]
    before = descriptors()
    for make, changes in cases:
        for _ in range(3):
            with make() as script, pytest.raises(Exception) as caught:  # noqa: PT011
                attempt(script.port, **changes)
            kept.append(caught.value)
    deadline = time.monotonic() + 5
    while descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert descriptors() <= before
    assert len(kept) == 27


def test_reset_before_the_handshake_leaves_nothing_open() -> None:
    """A server that agrees to TLS and resets the connection costs no descriptor, though
    before Python 3.13 ``wrap_socket()`` leaves its half-made socket open."""
    tls = Contexts().tls({"sslmode": "require"})
    with socket.create_server(("127.0.0.1", 0)) as server:
        (endpoint,) = resolve({"host": "127.0.0.1", "port": server.getsockname()[1]}, math.inf)
        before = set(os.listdir("/proc/self/fd"))
        steps = dial(endpoint, tls)
        next(steps)
        with server.accept()[0] as client:
            fd, _ = next(steps)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"S")
        poller = select.poll()
        poller.register(fd, select.POLLHUP)
        assert poller.poll(5000)
        with pytest.raises(ConnectionResetError):
            next(steps)
        assert set(os.listdir("/proc/self/fd")) == before


def test_interrupted_connect_leaves_nothing_open() -> None:
    """KeyboardInterrupt while dialling and while starting up closes the socket."""
    for stage in ("dial", "start"):

        class Interrupted(Script):
            def _authenticate(self, client: Any) -> None:
                time.sleep(0.1)
                os.kill(os.getpid(), signal.SIGINT)
                client.recv(1)

            def serve(self, client: Any, stage: str = stage) -> None:
                if stage == "dial":
                    self._authenticate(client)
                else:
                    super().serve(client)

        kept = []
        before = descriptors()
        with Interrupted() as server:
            with pytest.raises(KeyboardInterrupt) as caught:
                attempt(server.port, sslmode="require" if stage == "dial" else "disable")
            kept.append(caught.value)
        deadline = time.monotonic() + 5
        while descriptors() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert descriptors() <= before


# The end


def test_close_waits_until_the_server_has_closed(connect: Any, server: LocalPostgres) -> None:
    """When the steps end the backend has let go of its socket; over TCP, TLS and unix alike."""
    driver = Native()
    admin = connect()
    for host in (server.host, str(server.socket_dir)):
        conn = connect(driver, host=host)
        (pid,) = conn.run("SELECT pg_backend_pid()")[0]
        conn.run("BEGIN")
        drain(driver.close(conn))
        assert conn._state.flags & CLOSED
        assert driver.fileno(conn) == -1
        deadline = time.monotonic() + 2
        while backends(admin, pid):
            assert time.monotonic() < deadline
        with pytest.raises(InterfaceError, match="connection is closed"):
            conn.run("SELECT 1")
        drain(driver.close(conn))


def test_close_of_an_interrupted_connection_cancels_its_query(
    connect: Any, server: LocalPostgres, tls_proxy: FaultProxy, home: Path
) -> None:
    """The backend is gone long before its statement would have ended, encrypted or not."""
    driver = Native()
    admin = connect()
    for changes in (
        {},
        {"host": str(server.socket_dir)},
        {"port": tls_proxy.port, "sslmode": "require"},
    ):
        conn = connect(driver, **changes)
        (pid,) = conn.run("SELECT pg_backend_pid()")[0]
        conn._usock.limit = time.monotonic() + 0.2
        with pytest.raises(TimeoutError):
            conn.run("SELECT pg_sleep(60)")
        conn._usock.limit = None
        assert conn._state.flags == DIRTY
        assert backends(admin, pid) == 1
        drain(driver.close(conn))
        deadline = time.monotonic() + 2
        while backends(admin, pid):
            assert time.monotonic() < deadline


def test_close_while_another_thread_is_inside(connect: Any) -> None:
    """That thread gets an error, not part of its rows; the close ends by itself."""
    driver = Native()
    conn = connect(driver)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            conn.run("SELECT pg_sleep(60)")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 5
    while not conn._state.flags & BUSY:
        assert time.monotonic() < deadline
    time.sleep(0.1)
    begun = time.monotonic()
    drain(driver.close(conn))
    thread.join(5)
    assert not thread.is_alive()
    assert time.monotonic() - begun < 5
    assert isinstance(errors[0], (DatabaseError, InterfaceError))


def test_abandoned_close_closes_the_descriptor_hard(connect: Any) -> None:
    """Giving up at any step, the first included, leaves nothing open."""
    driver = Native()
    held = threading.Event()

    def hold(sock: Any, data: bytes) -> None:
        sock.sendall(data)
        held.wait(20)

    for steps_taken in (0, 1):
        held.clear()
        with Script(send=hold) as script:
            before = descriptors()
            conn = attempt(script.port, sslmode="disable")
            closing = driver.close(conn)
            for _ in range(steps_taken):
                fd, events = next(closing)
                assert fd >= 0
                assert events & select.POLLIN
            closing.close()
            assert driver.fileno(conn) == -1
            held.set()
        deadline = time.monotonic() + 5
        while descriptors() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert descriptors() <= before


def test_close_never_blocks(connect: Any) -> None:
    """No step takes time, though the server is silent and the cancel gets no answer."""
    driver = Native()
    with Script() as script:
        conn = attempt(script.port, sslmode="disable")
        conn._state.flags = DIRTY
        begun = time.monotonic()
        closing = driver.close(conn)
        assert time.monotonic() - begun < 0.2
        drain(closing)
        assert script.cancelled.is_set()


def test_abandon_in_a_forked_child_does_not_disturb_the_parent(connect: Any) -> None:
    """The child drops its descriptor; the parent's session goes on."""
    driver = Native()
    conn = connect(driver)
    conn.run("SET work_mem = '7MB'")
    child = os.fork()
    if child == 0:
        try:
            driver.abandon(conn)
            os._exit(0 if driver.fileno(conn) == -1 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert conn.run("SHOW work_mem") == [["7MB"]]


def test_cancel_leaves_the_connection_usable(connect: Any) -> None:
    """The statement ends with 57014, the next one is not hit."""
    driver = DBAPI()
    conn = connect(driver)
    cursor = conn.cursor()
    timer = threading.Timer(0.2, driver.cancel, [conn, time.monotonic() + 5])
    timer.start()
    with pytest.raises(DatabaseError) as caught:
        cursor.execute("SELECT pg_sleep(60)")
    timer.join()
    assert driver.sqlstate(caught.value) == "57014"
    conn.rollback()
    driver.cancel(conn, time.monotonic() + 5)
    for _ in range(20):
        cursor.execute("SELECT 1")
    assert conn._state.flags & ~LOCAL == 4


def test_failed_start_up_is_not_noticed_by_the_finalizer() -> None:
    """What could not be written is not written again, or reported, at the end."""
    code = """
import gc, socket, sys
sys.path[:0] = sys.argv[1:]
from drivers.kit import State
from fastpool.drivers._socket import Socket
from fastpool.drivers.pg8000 import NativeConnection
ours, theirs = socket.socketpair()
theirs.close()
try:
    NativeConnection(State(), Socket(fileno=ours.detach()), user="u")
except Exception as error:
    print(error)
gc.collect()
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code, *sys.path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("network error\n", "")
