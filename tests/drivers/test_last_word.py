"""Why a server ended a session, and which refusals say something about the server."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from drivers.conftest import Connect
from drivers.kit import State
from pg8000.exceptions import DatabaseError, InterfaceError

from fastpool.drivers import _socket
from fastpool.drivers._socket import resolve
from fastpool.drivers.base import READONLY
from fastpool.drivers.pg8000 import Native
from fastpool.testing import FaultProxy, LocalPostgres

PID = "SELECT pg_backend_pid()"
ENDED = select.POLLIN | select.POLLRDHUP


def ended(conn: Any) -> None:
    """Wait until the kernel knows of the session's end."""
    poller = select.poll()
    poller.register(conn._usock, select.POLLRDHUP)
    assert poller.poll(10_000), "the session did not end"


@pytest.fixture
def admin(connect: Connect) -> Any:
    return connect()


@pytest.fixture(params=["tcp", "unix", "tls"])
def conn(
    request: pytest.FixtureRequest,
    connect: Connect,
    server: LocalPostgres,
) -> Any:
    """A connection of each kind."""
    if request.param == "tcp":
        return connect()
    if request.param == "unix":
        return connect(host=str(server.socket_dir))
    proxy: FaultProxy = request.getfixturevalue("tls_proxy")
    return connect(port=proxy.port, sslmode="require")


def test_terminated_while_idle(conn: Any, admin: Any) -> None:
    """What waits to be read is told, also a second time, and the session is unchanged by it."""
    admin.run("SELECT pg_terminate_backend(:pid)", pid=conn.run(PID)[0][0])
    ended(conn)
    assert Native().last_word(conn) == "57P01"
    assert Native().last_word(conn) == "57P01"
    with pytest.raises(InterfaceError) as caught:
        conn.run("SELECT 1")
    assert "57P01" in str(caught.value.__cause__)
    assert Native().last_word(conn) == "57P01"


@pytest.mark.parametrize(
    ("setting", "word"),
    [("idle_session_timeout", "57P05"), ("idle_in_transaction_session_timeout", "25P03")],
)
def test_time_outs_of_a_session(conn: Any, setting: str, word: str) -> None:
    """The server's own time limits have words of their own."""
    conn.run(f"SET {setting} = '50ms'")
    if word == "25P03":
        conn.run("BEGIN")
    ended(conn)
    assert Native().last_word(conn) == word


def test_alive(conn: Any) -> None:
    """A session that goes on has no last word, and asking does not wait."""
    began = time.monotonic()
    assert Native().last_word(conn) is None
    assert time.monotonic() - began < 1.0
    assert conn.run("SELECT 1") == [[1]]


def test_closed_by_us(connect: Connect) -> None:
    """What was closed on this side says nothing of the server."""
    conn = connect()
    conn.close()
    assert Native().last_word(conn) is None


def test_without_a_word(connect: Connect, server: LocalPostgres) -> None:
    """An end without a message, while idle or in use, is the empty word."""
    with FaultProxy(server) as proxy:
        idle, used = connect(port=proxy.port), connect(port=proxy.port)
        proxy.reset()
        ended(idle)
        assert Native().last_word(idle) == ""
        with pytest.raises(InterfaceError):
            used.run("SELECT 1")
        assert Native().last_word(used) == ""


def test_crash() -> None:
    """A server that is stopped hard says 57P01 or 57P02, in a notice, or nothing."""
    with LocalPostgres() as server:
        params: dict[str, Any] = {"host": server.host, "port": server.port, "user": server.user}
        params |= {"dbname": "postgres", "sslmode": "disable"}
        conn = Native().connect(params, State(), time.monotonic() + 10)
        server.stop("immediate")
        ended(conn)
        assert Native().last_word(conn) in ("57P01", "57P02", "")
        Native().abandon(conn)


def test_read_only_by_default(connect: Connect) -> None:
    """A refused write is noted where the server said that it is read-only, not for a
    transaction or a session that its user made so."""
    asked = connect()
    for begin in ("BEGIN READ ONLY", "SET default_transaction_read_only = on"):
        asked.run(begin)
        with pytest.raises(DatabaseError, match="25006"):
            asked.run("CREATE TABLE nowhere (a int)")
        assert not asked._state.flags & READONLY
        asked.run("ROLLBACK")
    demoted = connect(session_settings={"default_transaction_read_only": "on"})
    with pytest.raises(DatabaseError, match="25006"):
        demoted.run("CREATE TABLE nowhere (a int)")
    assert demoted._state.flags & READONLY
    demoted.run("SELECT 1")
    assert demoted._state.flags & READONLY


# -- a resolver that hangs ---------------------------------------------------------------


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Every name hangs until the event is set; afterwards it is 127.0.0.1."""
    gate = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, flags: int = 0, **kwargs: Any) -> Any:
        if flags != socket.AI_NUMERICHOST:
            gate.wait(30)
            host = "127.0.0.1"
        return real(host, *args, flags=flags, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield gate
    gate.set()


def resolvers() -> int:
    return sum(t.name == "fastpool-resolve-stuck.example" for t in threading.enumerate())


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_resolvers_do_not_pile_up(stuck: threading.Event) -> None:
    """Dials to a name that hangs share a few threads, and get its answer when it comes."""
    for _ in range(20):
        with pytest.raises(TimeoutError, match="not resolved in time"):
            resolve({"host": "stuck.example"}, time.monotonic() + 0.002)
    assert 1 <= resolvers() <= 4
    answers: list[Any] = []
    late = threading.Thread(
        target=lambda: answers.append(resolve({"host": "stuck.example"}, time.monotonic() + 30))
    )
    late.start()
    stuck.set()
    late.join(10)
    assert [endpoint.address[0] for endpoint in answers[0]] == ["127.0.0.1"]
    eventually(lambda: resolvers() == 0)
    assert resolve({"host": "stuck.example"}, time.monotonic() + 10)


def test_no_dial_waits_for_a_name_for_ever(
    stuck: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a dial without a limit is given up when the resolver does not answer."""
    monkeypatch.setattr(_socket, "_RESOLVED", 0.05)
    with pytest.raises(TimeoutError, match="not resolved in time"):
        resolve({"host": "stuck.example"}, float("inf"))
    assert not stuck.is_set()
