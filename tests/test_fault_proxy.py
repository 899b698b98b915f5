"""FaultProxy: each fault does what it says, the counters are right, nothing is left."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pg8000.native
import pytest
from support import eventually, need, unplugged

from fastpool.testing import (
    Certificate,
    Counters,
    FaultProxy,
    FaultProxyError,
    LocalPostgres,
    _relay,
    fault_proxy,
    make_certificate,
)

PATIENCE = 20.0
"""Seconds that anything may take which has to happen."""
NEVER = 0.15
"""Seconds in which what must not happen is given the chance to."""


class Pair(NamedTuple):
    """Both ends of one connection through the proxy: both are the test's."""

    client: socket.socket
    server: socket.socket


def connect_raw(proxy: FaultProxy, timeout: float = PATIENCE) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout)


class Wire:
    """A proxy before a server that is a mere listener."""

    def __init__(self, proxy: FaultProxy, listener: socket.socket) -> None:
        self.proxy = proxy
        self.listener = listener
        self._open = contextlib.ExitStack()

    def connect(self) -> socket.socket:
        return self._open.enter_context(connect_raw(self.proxy))

    def accept(self) -> socket.socket:
        server = self._open.enter_context(self.listener.accept()[0])
        server.settimeout(PATIENCE)
        return server

    def pair(self) -> Pair:
        return Pair(self.connect(), self.accept())

    def close(self) -> None:
        self._open.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        with FaultProxy(listener.getsockname()) as proxy:
            wire = Wire(proxy, listener)
            yield wire
            wire.close()


@pytest.fixture(scope="module")
def pg() -> Iterator[LocalPostgres]:
    server = LocalPostgres(password="p@:/ %ü")
    try:
        server.start()
    except FileNotFoundError as error:
        need(False, str(error))
    with server:
        yield server


@pytest.fixture
def proxy(pg: LocalPostgres) -> Iterator[FaultProxy]:
    with FaultProxy(pg) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    need(shutil.which("openssl"), "no openssl command")
    return make_certificate(tmp_path_factory.mktemp("ca"), ["ca.test"])


@pytest.fixture(scope="module")
def certificate(ca: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), ["localhost", "127.0.0.1"], ca)


@pytest.fixture
def tls_proxy(pg: LocalPostgres, certificate: Certificate) -> Iterator[FaultProxy]:
    with FaultProxy(pg, tls=certificate) as proxy:
        yield proxy


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, f"ended after {len(data)} of {size} bytes"
        data += more
    return data


def silent(sock: socket.socket) -> bool:
    """Nothing comes, not even an end."""
    before = sock.gettimeout()
    sock.settimeout(NEVER)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(before)
    return False


def is_reset(sock: socket.socket) -> bool:
    """The connection ends with RST."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


def alive(pid: int) -> bool:
    """Whether the process runs; a dead one that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def pid_of(proxy: FaultProxy) -> int:
    assert proxy._process is not None
    return proxy._process.pid


def connect(
    pg: LocalPostgres, at: FaultProxy | LocalPostgres, context: Any = False, host: str = "127.0.0.1"
) -> pg8000.native.Connection:
    return pg8000.native.Connection(
        pg.user, host=host, port=at.port, password=pg.password, ssl_context=context
    )


def drop(connection: pg8000.native.Connection) -> None:
    """Close one that is broken already; pg8000 then leaves its buffered file open."""
    file = connection._sock
    for close in (connection.close, file.close):
        with contextlib.suppress(pg8000.native.InterfaceError, OSError):
            close()


# Nothing wrong.


def test_passes_bytes_and_ends(wire: Wire) -> None:
    """Bytes pass in both directions, and each side can end its own half."""
    client, server = wire.pair()
    payload = os.urandom(3_000_000)
    with ThreadPoolExecutor(1) as thread:
        sent = thread.submit(client.sendall, payload)
        assert exactly(server, len(payload)) == payload
        sent.result()
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    server.sendall(b"the answer")
    assert exactly(client, 10) == b"the answer"
    server.close()
    assert client.recv(1) == b""
    eventually(lambda: not wire.proxy.connections(), "the connection is forgotten")


@pytest.mark.parametrize("latency", [0.0, 0.02])
def test_passes_resets(wire: Wire, latency: float) -> None:
    """An RST of one side reaches the other, after the bytes that went before."""
    wire.proxy.latency(latency)
    for sender, receiver in (wire.pair(), reversed(wire.pair())):
        sender.sendall(b"last")
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sender.close()
        assert exactly(receiver, 4) == b"last"
        assert is_reset(receiver)
    assert wire.proxy.connections() == []


def test_slow_reader_slows_the_sender(wire: Wire) -> None:
    """What nobody reads is not collected: the sender has to wait."""
    client, _server = wire.pair()
    client.settimeout(0.5)
    with pytest.raises(TimeoutError):
        client.sendall(bytes(64 << 20))


def test_server_that_is_not_there(wire: Wire) -> None:
    """A connection to a server that refuses is reset, and the proxy goes on."""
    wire.listener.close()
    with pytest.raises(ConnectionResetError):  # the kernel may tell at connect() already
        wire.connect().recv(1)
    assert wire.proxy.connections() == []
    assert wire.proxy.counters().connections == 1


def test_unix_socket(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The server may be behind a unix socket."""
    path = tmp_path_factory.mktemp("s") / "s"
    with (
        socket.socket(socket.AF_UNIX) as listener,
        contextlib.closing(Wire(FaultProxy(path), listener)) as wire,
        wire.proxy,
    ):
        listener.bind(str(path))
        listener.listen()
        client, server = wire.pair()
        client.sendall(b"hello")
        assert exactly(server, 5) == b"hello"
        assert wire.proxy.connections()[0].server_port is None


def test_target_by_name() -> None:
    """A name with several addresses is tried address by address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        with FaultProxy(("localhost", listener.getsockname()[1])) as proxy:
            wire = Wire(proxy, listener)
            client, server = wire.pair()
            server.sendall(b"hello")
            assert exactly(client, 5) == b"hello"
            wire.close()


# Counters.


def test_counters(wire: Wire) -> None:
    """Connections, bytes and flights are counted, in total and for each connection."""
    first, second = wire.pair(), wire.pair()
    for client, server in (first, first, second):
        for part in (b"a", b"bc"):  # one flight, however many pieces
            client.sendall(part)
            exactly(server, len(part))
        server.sendall(b"answer")
        exactly(client, 6)
    assert wire.proxy.counters() == Counters(
        connections=2, flights=3, bytes_to_server=9, bytes_to_client=18, cancels=0
    )
    one, two = wire.proxy.connections()
    assert (one.number, one.flights, one.bytes_to_server, one.bytes_to_client) == (1, 2, 6, 12)
    assert (two.number, two.flights, two.bytes_to_server, two.bytes_to_client) == (2, 1, 3, 6)
    assert one.client_port == first.client.getsockname()[1]
    assert two.server_port == second.server.getpeername()[1]


def test_reset_counters(wire: Wire) -> None:
    """All counters begin again at zero; the connections stay."""
    client, server = wire.pair()
    client.sendall(b"before")
    exactly(server, 6)
    server.sendall(b"answer")
    exactly(client, 6)
    wire.proxy.reset_counters()
    assert wire.proxy.counters() == Counters(0, 0, 0, 0, 0)
    assert wire.proxy.connections()[0][3:] == (0, 0, 0)
    client.sendall(b"after")
    exactly(server, 5)
    assert wire.proxy.counters() == Counters(0, 1, 5, 0, 0)


# States of connections.


def test_latency(wire: Wire) -> None:
    """Every byte comes later by the latency, in each direction, also on a new connection."""
    before = wire.pair()
    wire.proxy.latency(0.1)
    for client, server in (before, wire.pair()):
        began = time.monotonic()
        client.sendall(b"question")
        exactly(server, 8)
        middle = time.monotonic()
        server.sendall(b"answer")
        exactly(client, 6)
        assert 0.1 <= middle - began < PATIENCE / 2
        assert 0.1 <= time.monotonic() - middle < PATIENCE / 2


def test_latency_is_not_bandwidth(wire: Wire) -> None:
    """Bytes that follow each other are late together, not one after the other."""
    wire.proxy.latency(0.2)
    client, server = wire.pair()
    began = time.monotonic()
    for n in range(50):
        client.sendall(bytes([n]))
    exactly(server, 50)
    assert 0.2 <= time.monotonic() - began < 50 * 0.2 / 2


def test_jitter_keeps_the_order(wire: Wire) -> None:
    """Random delays never let one piece overtake another, nor the end."""
    wire.proxy.latency(0, jitter=0.05)
    client, server = wire.pair()
    for n in range(100):
        client.sendall(bytes([n]))
    client.close()
    assert exactly(server, 100) == bytes(range(100))
    assert server.recv(1) == b""


@pytest.mark.parametrize("upward", [True, False], ids=["to_server", "to_client"])
def test_bandwidth(wire: Wire, upward: bool) -> None:
    """So many bytes take so many seconds, in either direction."""
    wire.proxy.bandwidth(200_000)
    sender, receiver = wire.pair() if upward else reversed(wire.pair())
    began = time.monotonic()
    sender.sendall(bytes(60_000))
    exactly(receiver, 60_000)
    # The first piece, of a hundredth of a second, goes at once.
    assert 0.28 <= time.monotonic() - began < PATIENCE / 2


def test_drip(wire: Wire) -> None:
    """The server's bytes come a few at a time; the client's pass as ever."""
    wire.proxy.drip(3, 3600)
    client, server = wire.pair()
    client.sendall(bytes(100_000))
    exactly(server, 100_000)
    server.sendall(b"0123456789")
    assert exactly(client, 3) == b"012"
    assert silent(client)
    began = time.monotonic()
    wire.proxy.drip(3, 0.05)
    assert exactly(client, 7) == b"3456789"
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("direction", ["to_client", "to_server"])
def test_cut_after(wire: Wire, direction: Any, how: Any) -> None:
    """So many more bytes arrive; then both sides see the end, in the way asked for."""
    pair = wire.pair()
    pair.client.sendall(b"before")
    exactly(pair.server, 6)
    wire.proxy.cut_after(5, direction, how=how)
    for sender, receiver in (pair, wire.pair()):
        if direction == "to_client":
            sender, receiver = receiver, sender
        sender.sendall(b"01")
        assert exactly(receiver, 2) == b"01"
        sender.sendall(b"23456789")
        assert exactly(receiver, 3) == b"234"
        for end in (sender, receiver):
            if how == "reset":
                assert is_reset(end)
            else:
                assert end.recv(1) == b""
    assert wire.proxy.connections() == []


def test_black_hole_holds_what_is_open(wire: Wire) -> None:
    """Neither bytes nor an end pass in either direction; healed, all of it arrives."""
    client, server = wire.pair()
    wire.proxy.black_hole()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    server.sendall(b"answer")
    server.shutdown(socket.SHUT_WR)
    assert silent(client)
    assert silent(server)
    wire.proxy.heal()
    assert exactly(server, 8) == b"question"
    assert exactly(client, 6) == b"answer"
    assert (client.recv(1), server.recv(1)) == (b"", b"")


def test_black_hole_hides_the_end(wire: Wire) -> None:
    """A client whose server closes does not see it, not even in poll()."""
    client, server = wire.pair()
    wire.proxy.black_hole()
    server.close()
    assert silent(client)
    wire.proxy.heal()
    assert client.recv(1) == b""


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels let clients connect")
def test_black_hole_for_new_connections(wire: Wire) -> None:
    """connect() hangs, also after a look at the counters; healed, it goes through."""
    wire.proxy.black_hole()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            connect_raw(wire.proxy, NEVER)
        assert wire.proxy.counters().connections == 0
        assert wire.proxy.connections() == []
    with ThreadPoolExecutor(1) as thread:
        dial = thread.submit(wire.pair)
        wire.proxy.heal()
        client, server = dial.result(PATIENCE)
    client.sendall(b"hello")
    assert exactly(server, 5) == b"hello"
    assert len(wire.proxy.connections()) == wire.proxy.counters().connections == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs a socket filter")
def test_black_hole_without_acknowledgement(wire: Wire) -> None:
    """A client's kernel gives up after its user timeout; what others sent arrives, healed."""
    impatient, patient = wire.pair(), wire.pair()
    impatient.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
    unplugged(wire.proxy.black_hole)
    for pair in (impatient, patient):
        pair.client.sendall(b"hello")
    with pytest.raises(TimeoutError) as caught:
        impatient.client.recv(1)
    assert caught.value.errno == errno.ETIMEDOUT
    wire.proxy.heal()
    assert exactly(patient.server, 5) == b"hello"
    patient.server.sendall(b"again")
    assert exactly(patient.client, 5) == b"again"


def test_states_add_up_until_healed(wire: Wire) -> None:
    """Latency and drip act together; after heal() neither does."""
    client, server = wire.pair()
    wire.proxy.latency(0.1)
    wire.proxy.drip(1, 0.05)
    began = time.monotonic()
    server.sendall(b"abc")
    exactly(client, 3)
    assert time.monotonic() - began >= 0.18
    wire.proxy.latency(3600)
    server.sendall(b"held")
    assert silent(client)
    wire.proxy.heal()
    assert exactly(client, 4) == b"held"
    server.sendall(bytes(1000))
    exactly(client, 1000)


def test_states_replace_themselves(wire: Wire) -> None:
    """A smaller latency is that of the bytes on their way, too."""
    client, server = wire.pair()
    wire.proxy.latency(3600)
    server.sendall(b"late")
    server.close()
    assert silent(client)
    wire.proxy.latency(0.01)
    assert exactly(client, 4) == b"late"
    assert client.recv(1) == b""


# States for new connections.


def test_refuse(wire: Wire) -> None:
    """New connections get ECONNREFUSED, open ones go on; healed, the port is the same."""
    client, server = wire.pair()
    waiting = wire.connect()  # connected, if not yet accepted: no reason to refuse it
    wire.proxy.refuse()
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            wire.connect()
    for end in (client, waiting):
        end.sendall(b"hello")
    assert exactly(server, 5) == b"hello"
    assert exactly(wire.accept(), 5) == b"hello"
    port = wire.proxy.port
    wire.proxy.heal()
    wire.pair()
    assert wire.proxy.port == port


def test_refused_port_stays_reserved(wire: Wire) -> None:
    """While nobody listens on the port, nobody else can have it either."""
    wire.proxy.refuse()
    with socket.socket() as other, pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        other.bind((wire.proxy.host, wire.proxy.port))


def test_slow_accept(wire: Wire) -> None:
    """A connection is made at once and served after the time."""
    wire.proxy.slow_accept(0.2)
    began = time.monotonic()
    client = wire.connect()
    client.sendall(b"hello")
    server = wire.accept()
    assert time.monotonic() - began >= 0.2
    assert exactly(server, 5) == b"hello"


def test_silent_accept(wire: Wire) -> None:
    """A connection is made and never served; open ones go on; healed, it is served."""
    before = wire.pair()
    wire.proxy.silent_accept()
    client = wire.connect()
    client.sendall(b"hello")
    assert silent(client)
    wire.listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        wire.listener.accept()
    before.client.sendall(b"hello")
    exactly(before.server, 5)
    wire.listener.settimeout(PATIENCE)
    wire.proxy.heal()
    assert exactly(wire.accept(), 5) == b"hello"


# Events.


def test_reset(wire: Wire) -> None:
    """Both sides of every connection get RST; the next connection is served."""
    pairs = [wire.pair(), wire.pair()]
    assert wire.proxy.reset() == 2
    assert all(is_reset(end) for pair in pairs for end in pair)
    client, server = wire.pair()
    client.sendall(b"hello")
    assert exactly(server, 5) == b"hello"


def test_half_open(wire: Wire) -> None:
    """The server's side is closed, the client hears nothing; healed, it gets RST."""
    client, server = wire.pair()
    assert wire.proxy.half_open() == 1
    assert server.recv(1) == b""
    client.sendall(b"is there anybody?")
    assert silent(client)
    other = wire.pair()
    other.client.sendall(b"hello")
    exactly(other.server, 5)
    assert wire.proxy.connections()[0].server_port is None
    wire.proxy.heal()
    assert is_reset(client)
    other.client.sendall(b"hello")
    exactly(other.server, 5)


def test_half_open_client_may_leave(wire: Wire) -> None:
    """A client that closes its half-open connection leaves nothing behind."""
    client, _server = wire.pair()
    wire.proxy.half_open()
    client.close()
    eventually(lambda: not wire.proxy.connections(), "the connection is forgotten")


# One connection alone.


def test_one_connection(wire: Wire) -> None:
    """A fault of one connection leaves the others alone, and is healed alone."""
    wire.pair()
    one, two = wire.pair(), wire.pair()
    wire.proxy.black_hole(connection=2)
    for pair in (one, two):
        pair.client.sendall(b"hello")
    assert exactly(two.server, 5) == b"hello"
    assert silent(one.server)
    wire.proxy.latency(3600, connection=3)
    wire.proxy.heal(connection=2)
    assert exactly(one.server, 5) == b"hello"
    two.server.sendall(b"held")
    assert silent(two.client)
    assert wire.proxy.reset(connection=3) == 1
    assert is_reset(two.client)
    assert wire.proxy.half_open(connection=1) == 1
    one.client.sendall(b"still here")
    assert exactly(one.server, 10) == b"still here"


def test_connection_that_is_not_there(wire: Wire) -> None:
    """A number that no open connection has is an error that says so."""
    client, _server = wire.pair()
    wire.proxy.reset()
    assert is_reset(client)
    with pytest.raises(FaultProxyError, match="no connection 1"):
        wire.proxy.latency(1, connection=1)


# With PostgreSQL.


class Session:
    """A session in PostgreSQL's own words, so that every byte is seen."""

    def __init__(self, pg: LocalPostgres, sock: socket.socket) -> None:
        self.sock = sock
        self.key = b""
        fields = f"user\0{pg.user}\0database\0{pg.dbname}\0\0".encode()
        sock.sendall(struct.pack("!ii", 8 + len(fields), 196608) + fields)
        for code, body in self.messages():
            if code == b"K":
                self.key = body

    def messages(self) -> Iterator[tuple[bytes, bytes]]:
        """What the server says, up to ReadyForQuery or the end."""
        while code := self.sock.recv(1):
            (size,) = struct.unpack("!i", exactly(self.sock, 4))
            yield code, exactly(self.sock, size - 4)
            if code == b"Z":
                return

    def send(self, sql: str) -> None:
        body = sql.encode() + b"\0"
        self.sock.sendall(b"Q" + struct.pack("!i", 4 + len(body)) + body)

    def cancel_request(self) -> bytes:
        return struct.pack("!ii", 8 + len(self.key), 80877102) + self.key


@pytest.fixture(scope="module")
def trusting() -> Iterator[LocalPostgres]:
    server = LocalPostgres()
    try:
        server.start()
    except FileNotFoundError as error:
        need(False, str(error))
    with server:
        yield server


@pytest.fixture
def session(trusting: LocalPostgres) -> Iterator[tuple[FaultProxy, Session]]:
    with (
        FaultProxy(trusting) as proxy,
        connect_raw(proxy) as sock,
    ):
        yield proxy, Session(trusting, sock)


def error_fields(body: bytes) -> dict[str, str]:
    return {field[:1].decode(): field[1:].decode() for field in body.split(b"\0") if field}


def test_dsn(pg: LocalPostgres, proxy: FaultProxy) -> None:
    """The dsn is the server's, password and all, with the proxy's address."""
    mine, its = urlsplit(proxy.dsn), urlsplit(pg.dsn)
    assert (mine.hostname, mine.port) == (proxy.host, proxy.port)
    assert mine._replace(netloc="") == its._replace(netloc="")
    assert (mine.username, mine.password) == (its.username, its.password)


def test_flights_of_a_session(pg: LocalPostgres, proxy: FaultProxy) -> None:
    """One flight per statement; three to log in with SCRAM; none while nothing is said."""
    connection = connect(pg, proxy)
    assert proxy.counters().flights == 3
    proxy.reset_counters()
    for _ in range(10):
        connection.run("SELECT 1")
    connection.run("SELECT repeat('x', 1000000)")
    assert proxy.counters().flights == 11
    assert proxy.counters().bytes_to_client > 1_000_000
    connection.close()


def test_finding_a_session(pg: LocalPostgres, proxy: FaultProxy) -> None:
    """A session is found by what the server knows of it, and reset alone."""
    one, two = connect(pg, proxy), connect(pg, proxy)
    port = two.run("SELECT inet_client_port()")[0][0]
    (number,) = (each.number for each in proxy.connections() if each.server_port == port)
    proxy.reset(connection=number)
    with pytest.raises((OSError, pg8000.native.InterfaceError)):
        two.run("SELECT 1")
    drop(two)
    assert one.run("SELECT 1") == [[1]]
    one.close()


def test_fatal_while_idle(session: tuple[FaultProxy, Session]) -> None:
    """An idle client is told the FATAL error, and then the connection ends."""
    proxy, client = session
    assert proxy.fatal("57P01", "für Wartung beendet") == 1
    ((code, body),) = client.messages()
    assert code == b"E"
    assert error_fields(body) == {
        "S": "FATAL",
        "V": "FATAL",
        "C": "57P01",
        "M": "für Wartung beendet",
    }
    eventually(lambda: not proxy.connections(), "the connection is forgotten")


@pytest.mark.parametrize("received", [1, 1000])
def test_fatal_in_the_middle_of_a_message(
    session: tuple[FaultProxy, Session], received: int
) -> None:
    """The message that has begun is completed, the error follows, the rest is lost."""
    proxy, client = session
    # The row is larger than all buffers between server and client together, so its end
    # is still in the server when the error is asked for.
    size = 60_000_000
    client.send(f"SELECT repeat('x', {size}); SELECT 'never seen'")
    start = exactly(client.sock, received)
    assert proxy.fatal("57P02", "crash of another server process") == 1
    rest = bytearray()
    while data := client.sock.recv(1 << 20):
        rest += data
    text, codes, position = bytes(start + rest), b"", 0
    while position < len(text):
        codes += text[position : position + 1]
        last, position = position, position + 1 + struct.unpack_from("!i", text, position + 1)[0]
    assert codes == b"TDE"
    assert len(text) > size
    assert error_fields(text[last + 5 :])["C"] == "57P02"


@pytest.mark.parametrize("size", range(1, 13))
def test_messages_in_pieces(size: int) -> None:
    """Where a message ends is known however the server's bytes are cut."""
    messages = [b"Z\0\0\0\5I", b"1\0\0\0\4", b"D\0\0\1\0" + bytes(252), b"2\0\0\0\4"]
    text = b"".join(messages)
    ends = {len(b"".join(messages[:n])) for n in range(len(messages) + 1)}
    front = _relay.Front(None)
    front.from_client(struct.pack("!ii", 9, 196608) + b"\0")
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        assert front.between_messages() == (start in ends)
        rest = min(end for end in ends if end >= start) - start
        assert front.rest_of_message(piece) == (rest if rest <= len(piece) else None)
        assert front.from_server(piece) == piece
    assert front.between_messages()


def test_fatal_on_a_query_that_runs(pg: LocalPostgres, proxy: FaultProxy) -> None:
    """A client that waits for an answer gets the error instead, and the server is left."""
    connection = connect(pg, proxy)
    with ThreadPoolExecutor(1) as thread, contextlib.closing(connect(pg, pg)) as admin:
        proxy.reset_counters()
        query = thread.submit(connection.run, "SELECT pg_sleep(60), 'mine'")
        eventually(lambda: proxy.counters().flights, "the query is sent")
        assert proxy.fatal("57P01", "terminating connection due to administrator command") == 1
        with pytest.raises(pg8000.native.InterfaceError):
            query.result(PATIENCE)
        admin.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE '%mine%' AND pid <> pg_backend_pid()"
        )
    drop(connection)


def test_fatal_needs_messages(wire: Wire) -> None:
    """In what is not PostgreSQL's protocol there is no place for an error."""
    client, server = wire.pair()
    client.sendall(b"GET / HTTP/1.1\r\n")
    exactly(server, 16)
    with pytest.raises(FaultProxyError, match="connection 1 has no PostgreSQL messages"):
        wire.proxy.fatal("57P01", "no", connection=1)
    assert wire.proxy.fatal("57P01", "no") == 0
    server.sendall(b"HTTP/1.1 200")
    assert exactly(client, 12) == b"HTTP/1.1 200"


def test_cancel_requests(session: tuple[FaultProxy, Session], trusting: LocalPostgres) -> None:
    """Cancel requests are counted; they pass, and when dropped they only seem to."""
    proxy, client = session

    def cancel() -> None:
        with connect_raw(proxy) as sock:
            sock.sendall(client.cancel_request())
            assert sock.recv(1) == b""

    client.send("SELECT pg_sleep(60)")
    with contextlib.closing(connect(trusting, trusting)) as admin:
        active = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"
        eventually(lambda: admin.run(f"{active} AND state = 'active'")[0][0], "the query runs")
        proxy.drop_cancels()
        cancel()
        assert proxy.counters().cancels == 1
        assert silent(client.sock)
        proxy.heal()
        cancel()
    (error,) = (body for code, body in client.messages() if code == b"E")
    assert error_fields(error)["C"] == "57014"
    assert proxy.counters().cancels == 2


def test_drip_breaks_nothing(pg: LocalPostgres, proxy: FaultProxy) -> None:
    """A session whose bytes come one at a time is slow, and right."""
    proxy.drip(1, 0.0001)
    connection = connect(pg, proxy)
    assert connection.run("SELECT 1, 'two'") == [[1, "two"]]
    connection.close()


def test_server_restart(pg: LocalPostgres, proxy: FaultProxy) -> None:
    """The proxy outlives its server, and finds it again."""
    connection = connect(pg, proxy)
    pg.stop()
    drop(connection)
    with pytest.raises(ConnectionResetError), connect_raw(proxy) as sock:
        sock.recv(1)
    pg.start()
    connect(pg, proxy).close()


# TLS.


def trusting_context(ca: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca.certfile))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_tls(pg: LocalPostgres, tls_proxy: FaultProxy, ca: Certificate, host: str) -> None:
    """pg8000 speaks verified TLS to a server without it, by name and by address."""
    connection = connect(pg, tls_proxy, trusting_context(ca), host)
    assert connection._usock.version() == "TLSv1.3"
    assert connection.run("SELECT 1") == [[1]]
    assert connection.run("SELECT repeat('x', 3000000)") == [["x" * 3_000_000]]
    connection.close()
    # The request for TLS, two of the handshake (the second with the start-up), two of
    # SCRAM, two statements.
    assert tls_proxy.counters().flights == 7 + 1  # and Terminate


def test_tls_is_not_forced(pg: LocalPostgres, tls_proxy: FaultProxy) -> None:
    """A client that does not ask for TLS goes on without."""
    connection = connect(pg, tls_proxy)
    assert connection.run("SELECT 1") == [[1]]
    connection.close()


def test_tls_wrong_name(
    pg: LocalPostgres, ca: Certificate, tmp_path: Path, certificate: Certificate
) -> None:
    """A client that verifies refuses a certificate for another name."""
    other = make_certificate(tmp_path, ["db.example"], ca)
    with FaultProxy(pg, tls=other) as proxy, pytest.raises(ssl.SSLCertVerificationError):
        connect(pg, proxy, trusting_context(ca), "localhost")


def test_client_certificate(
    pg: LocalPostgres, ca: Certificate, certificate: Certificate, tmp_path: Path
) -> None:
    """With client_ca only clients with a certificate of its come through."""
    own = make_certificate(tmp_path, ["client.test"], ca)
    context = trusting_context(ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # 1.3 refuses after the handshake
    with FaultProxy(pg, tls=certificate, client_ca=ca.certfile) as proxy:
        with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
            connect(pg, proxy, context)
        context.load_cert_chain(*own)
        connection = connect(pg, proxy, context)
        assert connection.run("SELECT 1") == [[1]]
        connection.close()


def test_direct_tls(trusting: LocalPostgres, ca: Certificate, certificate: Certificate) -> None:
    """A client may begin with TLS, and is told PostgreSQL's protocol by ALPN."""
    context = trusting_context(ca)
    context.set_alpn_protocols(["postgresql"])
    with (
        FaultProxy(trusting, tls=certificate) as proxy,
        connect_raw(proxy) as sock,
        # An end without TLS's own word for it would be an error.
        context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False) as tls,
    ):
        assert tls.selected_alpn_protocol() == "postgresql"
        session = Session(trusting, tls)
        session.send("SELECT 1")
        assert [code for code, _ in session.messages()] == [b"T", b"D", b"C", b"Z"]
        # A FATAL error and a cancel request inside TLS.
        with (
            connect_raw(proxy) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as cancel,
        ):
            cancel.sendall(session.cancel_request())
            assert cancel.recv(1) == b""
        assert proxy.counters().cancels == 1
        assert proxy.fatal("57P01", "terminated", connection=1) == 1
        ((code, body),) = session.messages()
        assert (code, error_fields(body)["C"]) == (b"E", "57P01")


def test_latency_of_the_handshake(
    pg: LocalPostgres, tls_proxy: FaultProxy, ca: Certificate
) -> None:
    """Faults are on the client's side of TLS: the handshake's round trips are late too."""
    context = trusting_context(ca)
    tls_proxy.latency(0.02)
    began = time.monotonic()
    connection = connect(pg, tls_proxy, context)
    assert time.monotonic() - began >= 5 * 2 * 0.02
    assert tls_proxy.counters().flights == 5
    tls_proxy.heal()
    connection.close()


def test_no_good_tls(tls_proxy: FaultProxy, ca: Certificate) -> None:
    """A client that breaks off the handshake, or talks nonsense, harms nobody."""
    with connect_raw(tls_proxy) as sock:
        sock.sendall(struct.pack("!ii", 8, 80877103))
        assert exactly(sock, 1) == b"S"
        sock.sendall(b"nonsense" * 10)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(100):
                pass
    with (
        connect_raw(tls_proxy) as sock,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")
    eventually(lambda: not tls_proxy.connections(), "both are forgotten")


def test_encrypted_end_to_end(pg: LocalPostgres, tls_proxy: FaultProxy, ca: Certificate) -> None:
    """TLS that is the server's passes, but nothing can be put into it."""
    with FaultProxy((tls_proxy.host, tls_proxy.port)) as outer:
        connection = connect(pg, outer, trusting_context(ca))
        assert connection.run("SELECT 1") == [[1]]
        with pytest.raises(FaultProxyError, match="no PostgreSQL messages"):
            outer.fatal("57P01", "no", connection=1)
        assert connection.run("SELECT 1") == [[1]]
        connection.close()


# Certificates.


def test_self_signed(tmp_path: Path, trusting: LocalPostgres) -> None:
    """Without a CA the certificate is its own, and its key is for its owner alone."""
    need(shutil.which("openssl"), "no openssl command")
    made = make_certificate(tmp_path, "localhost")
    assert made.keyfile.stat().st_mode & 0o777 == 0o600
    with FaultProxy(trusting, tls=made) as proxy:
        connection = connect(trusting, proxy, trusting_context(made), "localhost")
        assert connection.run("SELECT 1") == [[1]]
        connection.close()


def test_certificate_mistakes(tmp_path: Path, certificate: Certificate) -> None:
    """No file is overwritten, and names that cannot be written are refused."""
    with pytest.raises(FileExistsError, match=r"localhost\.crt"):
        make_certificate(certificate.certfile.parent, ["localhost"])
    with pytest.raises(ValueError, match="at least one"):
        make_certificate(tmp_path, [])
    with pytest.raises(ValueError, match="neither host name nor address"):
        make_certificate(tmp_path, ["a", "b, DNS:c"])
    with pytest.raises(FaultProxyError, match="openssl x509 failed"):
        make_certificate(tmp_path, ["a"], Certificate(tmp_path / "no", tmp_path / "no"))


def test_without_openssl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the openssl command the error says what is missing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="OpenSSL"):
        make_certificate(tmp_path, ["localhost"])


# Mistakes.


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda p: p.latency(-1), "seconds"),
        (lambda p: p.latency(math.inf), "seconds"),
        (lambda p: p.latency(0, jitter=math.nan), "jitter"),
        (lambda p: p.bandwidth(0), "bytes_per_second"),
        (lambda p: p.drip(0, 1), "count"),
        (lambda p: p.drip(1.5, 1), "count"),
        (lambda p: p.drip(1, 0), "interval"),
        (lambda p: p.cut_after(0), "count"),
        (lambda p: p.cut_after(1, "sideways"), "direction"),
        (lambda p: p.cut_after(1, how="gently"), "how"),
        (lambda p: p.slow_accept("1"), "seconds"),
        (lambda p: p.fatal("57p01", ""), "sqlstate"),
        (lambda p: p.fatal("57P01", "a\0b"), "message"),
        (lambda p: FaultProxy("postgresql://localhost/"), "target"),
        (lambda p: FaultProxy("localhost:5432"), "target"),
        (lambda p: FaultProxy(("127.0.0.1", 1), client_ca="ca.crt"), "client_ca"),
    ],
)
def test_bad_arguments(call: Callable[[FaultProxy], object], name: str) -> None:
    """A value out of range is refused by the name of its parameter."""
    with pytest.raises(ValueError, match=f"^{name} must "):
        call(FaultProxy(("127.0.0.1", 1)))


def test_failed_start(tmp_path: Path) -> None:
    """A proxy that cannot start says why, and leaves no process."""
    before = os.listdir("/proc/self/fd")
    files = tmp_path / "no.crt", tmp_path / "no.key"
    with pytest.raises(FaultProxyError, match="No such file"):
        FaultProxy(("127.0.0.1", 1), tls=files).start()
    with pytest.raises(FaultProxyError, match=r"[Nn]ame|[Aa]ddress"):
        FaultProxy(("no such host.invalid", 1)).start()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_only_localpostgres_has_a_dsn(wire: Wire) -> None:
    """For another target nobody knows user and database."""
    with pytest.raises(FaultProxyError, match="dsn"):
        _ = wire.proxy.dsn


# Life.


def test_close_leaves_nothing(pg: LocalPostgres) -> None:
    """After close() there is no process, no descriptor, no listener; it may be repeated."""
    before = len(os.listdir("/proc/self/fd"))
    proxy = FaultProxy(pg)
    assert "new" in repr(proxy)
    with pytest.raises(FaultProxyError, match="not been started"):
        _ = proxy.port
    with pytest.raises(FaultProxyError, match="not started"):
        proxy.counters()
    with proxy:
        pid, port = pid_of(proxy), proxy.port
        assert str(port) in repr(proxy)
        proxy.start()
        assert pid_of(proxy) == pid
        connection = connect(pg, proxy)
    assert not alive(pid)
    drop(connection)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((proxy.host, port), PATIENCE)
    proxy.close()
    assert "closed" in repr(proxy)
    assert proxy.port == port
    for use in (proxy.counters, proxy.start):
        with pytest.raises(FaultProxyError, match="closed"):
            use()


def test_password_is_not_shown(pg: LocalPostgres, proxy: FaultProxy) -> None:
    """Neither repr nor the process's arguments hold the password."""
    assert pg.password is not None
    arguments = Path(f"/proc/{pid_of(proxy)}/cmdline").read_bytes()
    assert pg.password.encode() not in arguments
    assert pg.password not in repr(proxy)


def test_process_that_died(wire: Wire) -> None:
    """When its process is gone, commands say so, and close() still cleans up."""
    os.kill(pid_of(wire.proxy), signal.SIGKILL)
    with pytest.raises(FaultProxyError, match="has ended"):
        wire.proxy.counters()
    wire.proxy.close()


def test_close_from_another_thread(wire: Wire) -> None:
    """close() does not wait for a command that is stuck."""
    pid = pid_of(wire.proxy)
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        stuck = thread.submit(wire.proxy.counters)
        eventually(wire.proxy._lock.locked, "the command is under way")
        wire.proxy.close()
        with pytest.raises(FaultProxyError):
            stuck.result(PATIENCE)
    assert not alive(pid)


def test_interrupted_command(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command whose caller was interrupted does not leave its answer to the next."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(wire.proxy, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            wire.proxy.connections()
    assert wire.proxy.counters().connections == 0


def test_threads(wire: Wire) -> None:
    """Commands of several threads do not mix."""
    pairs = [wire.pair() for _ in range(4)]
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait(PATIENCE)
        for _ in range(50):
            wire.proxy.latency(0, connection=number)
            assert wire.proxy.counters().connections == 4
            assert [each.number for each in wire.proxy.connections()] == [1, 2, 3, 4]

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, number) for number in range(1, 5)]:
            done.result(PATIENCE)
    assert len(pairs) == 4


@contextlib.contextmanager
def owner(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that owns a proxy, and has no ``if __name__ == "__main__"``."""
    root = Path(fault_proxy.__file__).parents[2]
    prologue = """
        import os, signal, sys
        from fastpool.testing import FaultProxy
        proxy = FaultProxy(("127.0.0.1", 1))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(prologue) + textwrap.dedent(code)],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> list[int]:
    """The numbers of the next line that it prints."""
    assert process.stdout is not None
    return [int(word) for word in process.stdout.readline().split()]


@pytest.mark.parametrize("ending", ["killed", "exits"])
def test_owner_without_close(ending: str) -> None:
    """When its owner is killed, or ends without close(), the proxy goes too."""
    code = """
        proxy.start()
        proxy.silent_accept()
        print(proxy._process.pid, proxy.port, flush=True)
        sys.stdin.read()
    """
    with owner(code) as process:
        pid, port = line(process)
        client = socket.create_connection(("127.0.0.1", port), PATIENCE)
        assert alive(pid)
        if ending == "killed":
            process.kill()
        else:
            assert process.stdin is not None
            process.stdin.close()
        eventually(lambda: not alive(pid), "the proxy has ended")
        client.close()


def test_interrupt_from_the_terminal() -> None:
    """Ctrl-C goes to a whole process group; the proxy is not in it."""
    code = """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        proxy.start()
        os.killpg(0, signal.SIGINT)
        print(proxy.counters().connections, os.getsid(proxy._process.pid) != os.getsid(0))
    """
    with owner("os.setpgid(0, 0)\n" + textwrap.dedent(code)) as process:
        assert process.communicate(timeout=PATIENCE)[0] == "0 True\n"


def test_callers_modules_are_not_imported(tmp_path: Path) -> None:
    """The proxy's process takes no module from where the caller's are."""
    (tmp_path / "selectors.py").write_text("raise ImportError('the wrong one')")
    code = f"""
        os.environ["PYTHONPATH"] = {str(tmp_path)!r}
        os.chdir({str(tmp_path)!r})
        with proxy:
            print(proxy.counters().connections)
    """
    with owner(code) as process:
        assert process.communicate(timeout=PATIENCE)[0] == "0\n"


def test_forked_child() -> None:
    """A forked child can neither close nor command the proxy, nor keep it alive."""
    code = """
        proxy.start()
        child = os.fork()
        if not child:
            proxy.close()
            try:
                proxy.counters()
            except RuntimeError as error:
                print("belongs" in str(error), flush=True)
            signal.pause()
        sys.stdin.readline()
        print(proxy.counters().connections, proxy._process.pid, flush=True)
        proxy.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(len(os.listdir("/proc/self/fd")))
    """
    with owner(code) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "True\n"
        process.stdin.write("\n")
        process.stdin.flush()
        connections, pid = line(process)
        assert connections == 0
        assert line(process) == [4]  # the three of every process, and the listing's own
        assert not alive(pid)
