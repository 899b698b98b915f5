"""The server on the standard library: addresses, limits, endings, and odd clients."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from ops.kit import ask, exchange
from pool.kit import Caller, eventually

from fastpool import Pool
from fastpool.ops import Server, _server, probes, serve

Make = Callable[..., Pool[Any]]
Serving = Callable[..., Server]
Spawn = Callable[[Callable[[], Any]], Caller]


class Gate:
    """A WSGI application that answers at ``/slow`` when it is let, and else at once."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            self.entered.set()
            self.go.wait(30)
        if environ["PATH_INFO"] == "/broken":
            raise LookupError("broken")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["REQUEST_METHOD"].encode(), b" ", environ["wsgi.input"].read()]


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go.set()


def connect(server: Server) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host, int(port)), 20)


def test_a_pool_on_loopback(make: Make, serving: Serving) -> None:
    """A pool on a loopback address: probes and page, on a free port that it tells."""
    server = serving(make(name="orders"))
    host, _, port = server.address.partition(":")
    assert (host, int(port) > 0, server.url) == ("127.0.0.1", True, f"http://{server.address}")
    for path in ("/", "/pools", "/healthz", "/db/stats"):
        assert ask(server.address, path).status == 200
    assert ask(server.address, "/readyz").json["status"] == "starting"
    server.set_ready()
    assert ask(server.address, "/readyz").json["status"] == "ready"


def test_a_pool_for_everybody(make: Make, serving: Serving) -> None:
    """A pool on another address: only the probes; the page names too much."""
    server = serving(make(), "0.0.0.0:0")
    port = server.address.rpartition(":")[2]
    assert ask(f"127.0.0.1:{port}", "/healthz").status == 200
    assert ask(f"127.0.0.1:{port}", "/").status == 404
    assert ask(f"127.0.0.1:{port}", "/holders").status == 404


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        *(("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True)),
        *(("::10", False), ("0.0.0.0", False), ("", False), ("10.0.0.1", False)),
        *(("localhost.example.com", False), ("127.example.com", False)),
    ],
)
def test_what_only_this_machine_reaches(host: str, only_here: bool) -> None:
    """The page is added on a loopback address, not on a name that begins like one."""
    assert _server._is_loopback(host) == only_here


def test_loopback_unless_told(make: Make) -> None:
    """Without an address nobody outside this machine can connect."""
    assert serve.__defaults__ == ("127.0.0.1:8080",)


def test_ipv6(make: Make, serving: Serving) -> None:
    """An IPv6 address in brackets."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    server = serving(make(), "[::1]:0")
    assert server.address.startswith("[::1]:")
    with socket.create_connection(("::1", int(server.address.rpartition(":")[2]))) as sock:
        sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("address", ["8080", "host", "host:", "host:x", "host:99999", "h:-1", ""])
def test_bad_addresses(make: Make, address: str) -> None:
    """What is no address is refused with the form that is expected."""
    with pytest.raises(ValueError, match="host:port"):
        serve(make(), address)


def test_a_taken_port(make: Make, serving: Serving) -> None:
    """A port that is taken is an OSError at once."""
    with pytest.raises(OSError, match="in use"):
        serve(make(), serving(make()).address)


def test_requests(gate: Gate, serving: Serving) -> None:
    """HEAD has the length and no body; a body is passed on; one connection serves several."""
    address = serving(gate).address
    conn = HTTPConnection(address, timeout=20)
    conn.request("POST", "/", body=b"data")
    assert conn.getresponse().read() == b"POST data"
    sock = conn.sock
    conn.request("HEAD", "/")
    answer = conn.getresponse()
    assert (answer.read(), answer.status) == (b"", 200)
    conn.request("GET", "/")
    assert conn.getresponse().read() == b"GET "
    assert conn.sock is sock
    conn.close()


def test_http_1_0(make: Make, serving: Serving) -> None:
    """HTTP/1.0 gets its answer and the end of the connection."""
    found = exchange(serving(make()).address, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close" in found


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\r\n", None),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/x\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"BREW /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"POST /healthz HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", 405),
        (b"POST /healthz HTTP/1.1\r\nContent-Length: -2\r\n\r\nhi", 400),
        (b"POST /healthz HTTP/1.1\r\nContent-Length: 99999999\r\n\r\nhi", 413),
        (b"POST /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"GET http://host/healthz HTTP/1.1\r\n\r\n", 200),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70000 + b"\r\n\r\n", 431),
    ],
)
def test_refusals(make: Make, serving: Serving, request_: bytes, status: int | None) -> None:
    """What is no good request is refused in JSON, and the connection ends."""
    found = exchange(serving(probes(make())).address, request_)
    if status is None:
        assert found == b"" or b" 400 " in found
        return
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), head
    assert b"Content-Type: application/json" in head
    assert body.startswith(b"{")


def test_a_broken_application(
    gate: Gate, serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    """An application that raises is a 500 in JSON, and the server goes on."""
    server = serving(gate)
    assert ask(server.address, "/broken").json == {"error": "Internal Server Error"}
    assert "the application of the HTTP server failed" in caplog.text
    assert ask(server.address, "/").status == 200


def test_a_slow_client_is_dropped(make: Make, serving: Serving) -> None:
    """The whole request has the read timeout: a byte now and then does not lengthen it."""
    with connect(serving(make(), read_timeout=0.3)) as sock:
        sock.settimeout(0.05)
        began = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - began < 10:
                sock.send(b"G")
                with contextlib.suppress(TimeoutError):
                    if sock.recv(10) == b"":
                        break
        assert time.monotonic() - began < 5


def test_an_idle_client_is_dropped(make: Make, serving: Serving) -> None:
    """Between two requests the idle timeout counts, not the one for reading."""
    with connect(serving(make(), read_timeout=0.1, idle_timeout=0.5)) as sock:
        began = time.monotonic()
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        while sock.recv(65536):
            pass
        assert 0.5 <= time.monotonic() - began < 5


def test_slow_clients_make_room(make: Make, serving: Serving) -> None:
    """When every connection is taken by clients that say nothing, a probe is served."""
    server = serving(make(), max_connections=4)
    with contextlib.ExitStack() as idle:
        for _ in range(10):
            idle.enter_context(connect(server))
        began = time.monotonic()
        assert ask(server.address, "/healthz").status == 200
        assert time.monotonic() - began < 1.0


def test_too_many_answers(gate: Gate, serving: Serving, spawn: Spawn) -> None:
    """When every connection waits for an answer, one more is refused at once."""
    server = serving(gate, max_connections=2)
    waiting = [spawn(lambda: ask(server.address, "/slow").status) for _ in range(2)]
    eventually(lambda: list(server._listener._doing.values()) == ["answering"] * 2)
    answer = ask(server.address, "/")
    assert (answer.status, answer.json) == (503, {"error": "too many connections"})
    gate.go.set()
    assert [caller.result() for caller in waiting] == [200, 200]
    eventually(lambda: ask(server.address, "/").status == 200)


def test_close_lets_requests_end(gate: Gate, serving: Serving, spawn: Spawn) -> None:
    """Closing waits for a request in progress, and accepts no more."""
    server = serving(gate)
    with connect(server) as idle:
        waiting = spawn(lambda: ask(server.address, "/slow").body)
        assert gate.entered.wait(10)
        closing = spawn(server.close)
        assert idle.recv(10) == b""  # those who ask for nothing are hung up on
        eventually(lambda: not server._thread.is_alive())
        with pytest.raises(OSError, match="refused"):
            connect(server)
        assert not closing.ended
        gate.go.set()
        assert waiting.result() == b"GET "
        closing.result()
    assert server.wait(10) is True
    server.close()


def test_close_does_not_wait_for_ever(
    gate: Gate, serving: Serving, spawn: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that outlasts the timeout is cut off, and the log says so."""
    server = serving(gate)
    waiting = spawn(lambda: ask(server.address, "/slow"))
    assert gate.entered.wait(10)
    server.close(timeout=0.1)
    assert "1 requests were cut off" in caplog.text
    gate.go.set()
    with pytest.raises(OSError, match=r".*"):
        waiting.result()


def test_wait_tells_why_it_ended(
    make: Make, serving: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that breaks down raises its error where it is waited for."""
    server = serving(make())
    assert server.wait(0.01) is False

    def broken() -> None:
        raise LookupError("no more")

    monkeypatch.setattr(server._listener, "service_actions", broken)
    with pytest.raises(LookupError, match="no more"):
        server.wait(10)


# -- 2 000 odd clients ---------------------------------------------------------------

_PATHS = (
    "/",
    "/healthz",
    "/readyz",
    "/pools",
    "/%00",
    "/%ff%fe",
    "//x",
    "/../..",
    "*",
    "",
    "/?pool=x",
)
_METHODS = ("GET", "HEAD", "POST", "get", "PRI", "CONNECT", "G\x00T", "TRACE", " ", "É")
_VERSIONS = (
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/0.9",
    "HTTP/9.9",
    "HTTP/1.1.1",
    "http/1.1",
    "",
    "XTP/1.1",
)
_HEADERS = (
    "Host: x",
    "Content-Length: 5",
    "Content-Length: 1e9",
    "Content-Length: 0x10",
    "Transfer-Encoding: chunked",
    "Expect: 100-continue",
    "Connection: keep-alive",
    "Connection: \x00",
    ": nameless",
    "no colon",
    " folded",
    "X_Y: z",
    "Accept: " + "a," * 2000,
)


def odd_request(random: random.Random) -> bytes:
    """Something that is almost, or not at all, a request."""
    kind = random.random()
    if kind < 0.15:
        return random.randbytes(random.randrange(300))
    line = " ".join(random.choice(part) for part in (_METHODS, _PATHS, _VERSIONS))
    if kind < 0.2:
        line = line.replace("/", "/" * random.randrange(1, 70000), 1)
    headers = random.choices(_HEADERS, k=random.randrange(6) if kind < 0.95 else 150)
    end = random.choice(("\r\n", "\n", "\r"))
    data = end.join([line, *headers, "", ""]).encode("latin-1", "replace")
    data += random.randbytes(random.randrange(30)) if random.random() < 0.2 else b""
    return data[: random.randrange(len(data))] if random.random() < 0.2 else data


def odd_client(server: Server, seed: int, stop: float) -> None:
    """One that sends, and reads or not, and hangs up or just stays."""
    rand = random.Random(seed)
    with contextlib.suppress(OSError), connect(server) as sock:
        data = odd_request(rand)
        manner = rand.random()
        if manner < 0.1:  # in drops
            for n in range(min(20, len(data))):
                sock.sendall(data[n : n + 1])
        else:
            sock.sendall(data)
        if manner < 0.05:  # and stays
            sock.settimeout(0.3)
        elif manner < 0.3:
            return
        else:
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(5)
        while sock.recv(65536):
            pass


def test_odd_clients(make: Make, serving: Serving, spawn: Spawn) -> None:
    """2 000 malformed requests, slow clients among them, never take the server down nor
    hold up a probe for a second."""
    server = serving(make(min_size=1), max_connections=32)
    server.set_ready()
    seeds = iter(range(2000))
    worst = 0.0

    def work() -> None:
        for seed in seeds:
            odd_client(server, seed, 0.3)

    with contextlib.ExitStack() as stayers:
        for _ in range(40):
            stayers.enter_context(connect(server))
        workers = [spawn(work) for _ in range(8)]
        probed = 0
        while not all(worker.ended for worker in workers):
            began = time.monotonic()
            assert ask(server.address, "/healthz").status == 200
            assert ask(server.address, "/readyz").status == 200
            worst = max(worst, time.monotonic() - began)
            probed += 1
            time.sleep(0.01)
    for worker in workers:
        worker.result()
    assert next(seeds, None) is None
    assert probed > 20
    assert worst < 1.0
    assert server.wait(0) is False
    eventually(lambda: len(server._listener._doing) <= 1)
