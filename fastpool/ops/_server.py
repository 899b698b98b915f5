"""An HTTP server on the standard library, for a few pages and many odd clients.

One thread for each connection, and a bounded number of those. When they are all
taken, the one that has gone longest without a whole request makes room, so that slow
clients cannot shut out a probe.
"""

from __future__ import annotations

import contextlib
import errno
import io
import ipaddress
import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from .._logs import Log
from ..pool import Pool
from ._pools import Pools, named
from .http import Admin, App, Probes, WSGIApp

__all__ = ["Server", "serve"]

_log = Log()

Doing = Literal["reading", "answering", "sending"]

_HEAD = 65536
"""Bytes of a request's first line and headers."""
_BODY = 1 << 20


def serve(
    app: WSGIApp | Pools,
    address: str = "127.0.0.1:8080",
    *,
    read_timeout: float = 10.0,
    write_timeout: float = 10.0,
    idle_timeout: float = 60.0,
    max_connections: int = 64,
) -> Server:
    """Serve *app* from threads of its own, at once; returns the running server.

    *app* is a WSGI application, such as :func:`probes` and :func:`admin` make, or a
    pool, or several: then their probes are served, and on a loopback address the page
    of ``admin`` too. Answers are sent whole, so it is no place for large ones.

    *address* is ``"host:port"`` (``"[::1]:8080"`` for IPv6, ``":8080"`` for every
    address of the machine); port 0 is any free one, see :attr:`Server.address`.
    *read_timeout*: seconds for a whole request to arrive; *write_timeout*: for an
    answer to be taken; *idle_timeout*: between two requests of one connection.

    While *max_connections* requests are in progress further ones get a 503, whatever
    they ask for. An application that shares a server with its probes has to refuse work
    of its own before that, as ``examples/production`` does: a probe that fails under
    load takes the pod away from it.

    Raises ``OSError`` when the address cannot be had, ``ValueError`` when it is none.
    """
    host, port = _parse(address)
    if not callable(app):
        app = _Everything(named(app)) if _is_loopback(host) else Probes(app)
    return Server(app, (host, port), (read_timeout, write_timeout, idle_timeout), max_connections)


def _parse(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f'address: expected "host:port", not {address!r}')
    return host, int(port)


def _is_loopback(host: str) -> bool:
    """Only this machine reaches it. A name may be looked up anew at any time, so it says
    nothing, but for the one that RFC 6761 reserves."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Everything(App):
    """Probes and the page in one."""

    def __init__(self, pools: dict[str, Pool[Any]]) -> None:
        self.probes, self.admin = Probes(pools), Admin(pools)
        super().__init__({**self.admin._routes, **self.probes._routes})

    def set_ready(self, ready: bool = True) -> None:
        self.probes.set_ready(ready)

    def close(self) -> None:
        self.admin.close()
        super().close()


class Server:
    """A running server; see :func:`serve`. Closed by :meth:`close`, or as a context
    manager."""

    def __init__(
        self,
        app: WSGIApp,
        address: tuple[str, int],
        timeouts: tuple[float, float, float],
        max_connections: int,
    ) -> None:
        self.app = app
        """What it serves."""
        self._listener = _Listener(app, address, timeouts, max_connections)
        self._error: BaseException | None = None
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="fastpool-http", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._listener.serve_forever(poll_interval=0.1)
        except BaseException as error:
            self._error = error
            _log.exception("server_died", "the HTTP server on %s ended", self.address)

    @property
    def address(self) -> str:
        """``host:port`` that it listens on."""
        host, port = self._listener.server_address[:2]
        host = host if isinstance(host, str) else host.decode()
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def url(self) -> str:
        """``http://host:port``."""
        return f"http://{self.address}"

    def set_ready(self, ready: bool = True) -> None:
        """Short for the served probes' ``set_ready``."""
        self.app.set_ready(ready)  # type: ignore[attr-defined]

    def wait(self, timeout: float | None = None) -> bool:
        """Until it has ended: True; False after *timeout* seconds. Raises what ended
        it, if that was not :meth:`close`."""
        self._thread.join(timeout)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    def close(self, timeout: float = 30.0) -> None:
        """Accept no more, let requests in progress end for *timeout* seconds, then cut
        them off. Idempotent; a call from another thread may hurry one that waits."""
        with self._closing:
            if self._thread.is_alive():
                self._listener.shutdown()
                self._thread.join()
            self._listener.server_close()
        self._listener.drain(timeout)
        close = getattr(self.app, "close", None)
        if close is not None:
            with self._closing:
                close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Server {self.url}{'' if self._thread.is_alive() else ' ended'}>"


class _Listener(socketserver.ThreadingTCPServer):
    """Accepts connections, and knows which there are."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        app: WSGIApp,
        address: tuple[str, int],
        timeouts: tuple[float, float, float],
        max_connections: int,
    ) -> None:
        self.app = app
        self.read_timeout, self.write_timeout, self.idle_timeout = timeouts
        self.closing = False
        self._most = max_connections
        self._changed = threading.Condition()
        # What each connection does, in the order in which they began to.
        self._doing: dict[socket.socket, Doing] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                time.sleep(0.05)  # it would be ready again at once
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Is there room for one more connection? Makes some if it can."""
        with self._changed:
            if len(self._doing) >= self._most:
                oldest = self._first("reading") or self._first("sending")
                if oldest is not None:
                    del self._doing[oldest]
                    with contextlib.suppress(OSError):
                        oldest.shutdown(socket.SHUT_RDWR)
            if len(self._doing) < self._most:
                self._doing[request] = "reading"
                return True
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.send(
                b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
                b'Content-Length: 33\r\nConnection: close\r\n\r\n{"error": "too many connections"}'
            )
        return False

    def _first(self, doing: Doing) -> socket.socket | None:
        return next((sock for sock, does in self._doing.items() if does == doing), None)

    def now(self, request: socket.socket, doing: Doing) -> bool:
        """It does that now; False if it had to make room for another."""
        with self._changed:
            if self._doing.pop(request, None) is None:
                return False
            self._doing[request] = doing
            self._changed.notify_all()
            return True

    def shutdown_request(self, request: Any) -> None:
        with self._changed:
            self._doing.pop(request, None)
            self._changed.notify_all()
        super().shutdown_request(request)

    def drain(self, timeout: float) -> None:
        """Hang up on those who have no request, and after *timeout* on the others."""
        with self._changed:
            self.closing = True
            self._hang_up("reading")
            self._changed.wait_for(lambda: not self._busy(), timeout)
            left = self._busy()
            self._hang_up("reading", "answering", "sending")
            self._doing.clear()  # nobody waits for them any more
            self._changed.notify_all()
        if left:
            _log.warning("cut_off", "HTTP server: %d requests were cut off", left)

    def _busy(self) -> int:
        return sum(does != "reading" for does in self._doing.values())

    def _hang_up(self, *on: Doing) -> None:
        for request, does in self._doing.items():
            if does in on:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # the client's going, or its slowness
            _log.debug("client", "HTTP client %s: %s", client_address, error)
        else:
            _log.exception("request_failed", "HTTP request of %s failed", client_address)


class _Large(Exception):
    """The request's head is too long."""


class _Reader(io.RawIOBase):
    """What a client sends, under one limit for each request and not for each byte."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._left = 0
        self._until = 0.0
        self._after: float | None = None

    def allow(self, size: int, seconds: float, after: float | None = None) -> None:
        """*size* more bytes, within *seconds*; or, with *after*, the first one within
        *seconds* and the others within *after* from then."""
        self._left = size
        self._until = time.monotonic() + seconds
        self._after = after

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left <= 0:
            raise _Large
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not arrive in time")
        self._sock.settimeout(left)
        size = self._sock.recv_into(buffer)
        self._left -= size
        if self._after is not None:
            self._until, self._after = time.monotonic() + self._after, None
        return size


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: _Listener
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # also when the first line says nothing of it
    disable_nagle_algorithm = True
    _headers_buffer: list[bytes]

    def setup(self) -> None:
        super().setup()
        self._reader = _Reader(self.connection)
        self.rfile = io.BufferedReader(self._reader)

    def handle(self) -> None:
        server = self.server
        self.close_connection = True
        self._reader.allow(_HEAD, server.read_timeout)
        while True:
            try:
                self.handle_one_request()
            except TimeoutError:
                return
            except _Large:
                self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            if self.close_connection or server.closing:
                return
            self._reader.allow(_HEAD, server.idle_timeout, after=server.read_timeout)

    def handle_one_request(self) -> None:
        self.command, self.requestline, self.request_version = "", "", "HTTP/1.0"
        self.raw_requestline = self.rfile.readline(_HEAD)
        if not self.raw_requestline:
            self.close_connection = True
            return
        if not self.raw_requestline.endswith(b"\n"):
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
            return
        if not self.parse_request():
            return
        environ = self._environ()
        if environ is None or not self.server.now(self.connection, "answering"):
            self.close_connection = True
            return
        try:
            self._answer(environ)
        finally:
            self.server.now(self.connection, "reading")

    def _environ(self) -> dict[str, Any] | None:
        """What WSGI says about the request; ``None`` when it was refused."""
        if "Transfer-Encoding" in self.headers:
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
            return None
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdecimal()):
            self.send_error(HTTPStatus.BAD_REQUEST, "bad Content-Length")
            return None
        if len(length) > 9 or int(length) > _BODY:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return None
        try:
            target = urlsplit(self.path)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST, "bad request target")
            return None
        self._reader.allow(int(length) + 1, self.server.read_timeout)
        body = self.rfile.read(int(length)) if int(length) else b""
        host, port = self.server.server_address[:2]
        environ = {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote(target.path, "iso-8859-1"),
            "QUERY_STRING": target.query,
            "SERVER_NAME": str(host),
            "SERVER_PORT": str(port),
            "SERVER_PROTOCOL": self.request_version,
            "REMOTE_ADDR": self.client_address[0],
            "CONTENT_LENGTH": length,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name in set(self.headers):
            if "_" not in name:  # it would look like another header
                values = self.headers.get_all(name, [])
                environ[f"HTTP_{name.upper().replace('-', '_')}"] = ", ".join(values)
        return environ

    def _answer(self, environ: dict[str, Any]) -> None:
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Callable[[bytes], object]:
            started[:] = [(status, headers)]
            return written.append

        written: list[bytes] = []
        try:
            result = self.server.app(environ, start_response)
            try:
                body = b"".join([*result])
            finally:
                close = getattr(result, "close", None)
                if close is not None:
                    close()
            status, headers = started[0]
        except Exception:
            _log.exception("request_failed", "the application of the HTTP server failed")
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        code, _, reason = status.partition(" ")
        self._send(int(code), reason, headers, b"".join(written) + body)

    def _send(self, code: int, reason: str, headers: list[tuple[str, str]], body: bytes) -> None:
        if self.server.closing:
            self.close_connection = True
        self.send_response(code, reason)
        for name, value in headers:
            if name.lower() not in ("connection", "content-length", "date", "server"):
                self.send_header(name, value)
        length = dict(headers).get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        head = b"".join([*self._headers_buffer, b"\r\n"])
        self._headers_buffer = []
        if self.server.now(self.connection, "sending"):
            self.connection.settimeout(self.server.write_timeout)
            self.connection.sendall(head if self.command == "HEAD" else head + body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse the request, and hang up: who knows what else is in the stream."""
        status = HTTPStatus(code)
        text = json.dumps({"error": (message or status.phrase).splitlines()[0][:200]})
        self.close_connection = True
        self._send(code, status.phrase, [("Content-Type", "application/json")], text.encode())

    def finish(self) -> None:
        """Read what the client still sends, for a moment: else a reset could overtake
        the answer."""
        with contextlib.suppress(OSError, _Large):
            self.connection.shutdown(socket.SHUT_WR)
            self._reader.allow(_BODY, 0.5)
            while self._reader.read(65536):
                pass
        super().finish()

    def version_string(self) -> str:
        return "fastpool"

    def log_message(self, format: str, *args: Any) -> None:
        address = self.client_address[0]
        _log.debug("client", f"HTTP client %s: {format}", address, *map(repr, args))
