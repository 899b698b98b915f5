"""Sockets whose reads and writes obey a limit, and how one is dialled.

pg8000 talks through the file that ``makefile()`` gives it. Both socket classes
here give one over :class:`_Raw`, which honours the socket's ``limit``: every
read and write is held to that one moment, so a server that drips a byte now and
then gains no time. What is to be done when it passes, ``overtime``, is done right
there, in the thread that waits, and then the read goes on: an exception would lose
what the buffer above has read so far. No private part of pg8000 or of ``socket`` is
touched.

Dialling never blocks: :func:`dial` is a generator that yields what it waits for.
:func:`drive` runs it under a deadline; closing a connection, which must not block
its caller, steps through the same code to cancel a query.
"""

from __future__ import annotations

import errno
import io
import os
import select
import socket
import ssl
import struct
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple, TypeVar

from pg8000.exceptions import InterfaceError

from ..errors import ConfigError
from .base import Wait

T = TypeVar("T")

_TLS_REQUEST = struct.pack("!ii", 8, 80877103)

_RESOLVERS = 4
"""Threads for one name at most."""
_RESOLVED = 30.0
"""Seconds for a name, where the dial has no limit: what resolvers take to give up."""
_AT_ONCE = 86400.0
"""Seconds of one call of the system's poll, which counts milliseconds in 32 bits; then
it is called again."""

_TCP_DEFAULTS = {
    "keepalives_idle": 30,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_TCP_OPTIONS = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}


class Refused(InterfaceError):  # type: ignore[misc]
    """A failed connect that would fail again: the configuration rules it out."""


class TLSFailed(InterfaceError):  # type: ignore[misc]
    """The server agreed to TLS, and the handshake failed."""


class LimitPassed(TimeoutError):
    """The socket's own limit, not the kernel's: the connection may be alive."""


class _Raw(io.RawIOBase):
    """The unbuffered file under pg8000's buffers."""

    def __init__(self, sock: Socket | TLSSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        sock = self._sock
        return (
            sock.recv_into(buffer) if sock.limit is None else self._bounded(sock.recv_into, buffer)
        )

    def write(self, data: Any) -> int:
        sock = self._sock
        return sock.send(data) if sock.limit is None else self._bounded(sock.send, data)

    def _bounded(self, operation: Callable[[Any], int], buffer: Any) -> int:
        sock = self._sock
        while True:
            assert sock.limit is not None
            left = sock.limit - time.monotonic()
            if left > 0:  # settimeout(0) would mean "do not block", not "too late"
                sock.settimeout(min(left, _AT_ONCE))
                try:
                    return operation(buffer)
                except TimeoutError as error:
                    if error.errno is not None:  # TCP_USER_TIMEOUT: the peer is gone
                        raise
                    if left > _AT_ONCE:
                        continue
                finally:
                    sock.settimeout(None)
            overtime, sock.overtime = sock.overtime, None
            if overtime is None:
                raise LimitPassed("the time limit of this connection has passed")
            overtime()


class _Limited:
    """What both socket classes add: a limit, and a file that obeys it."""

    limit: float | None = None
    """On ``time.monotonic()``: later reads and writes raise :class:`LimitPassed`."""

    overtime: Callable[[], object] | None = None
    """Called once when the limit passes, instead: it sets another one."""

    _raw: _Raw | None = None

    def makefile(self, *_args: object, **_kwargs: object) -> io.BufferedRWPair:
        self._raw = _Raw(self)  # type: ignore[arg-type]
        return io.BufferedRWPair(self._raw, self._raw)

    def transmit(self, data: bytes) -> None:
        """Write all of *data*, past the file's buffer: nothing is left in there."""
        raw = self._raw
        if raw is None:
            raise ValueError("the socket is closed")
        rest = memoryview(data)
        while rest:
            rest = rest[raw.write(rest) :]

    def close(self) -> None:
        """Close the descriptor now, whoever still holds the file.

        Closing the raw file tells the buffers' finalizers that there is nothing
        to flush, without their locks, which a fork may have left taken.
        """
        if self._raw is not None:
            self._raw.close()
            self._raw = None
        super().close()  # type: ignore[misc]


class Socket(_Limited, socket.socket):  # type: ignore[misc]
    """A plain socket."""


class TLSSocket(_Limited, ssl.SSLSocket):  # type: ignore[misc]
    """An encrypted one; made by ``SSLContext.sslsocket_class``."""

    def getpeername(self) -> Any:
        # wrap_socket() begins with this. When the peer has gone already it fails, and
        # before Python 3.13 it leaves open what nobody else can reach.
        try:
            return super().getpeername()
        except OSError:
            if self.version() is None:  # the handshake is not over
                self.close()
                raise ConnectionResetError(
                    errno.ECONNRESET, os.strerror(errno.ECONNRESET)
                ) from None
            raise


_made: weakref.WeakSet[Socket | TLSSocket] = weakref.WeakSet()


def drop_all() -> None:
    """Close the copies that a forked child has of its parent's sockets: those of
    connections, of dials and cancels in flight. Nothing is sent, nothing shut down."""
    for sock in list(_made):
        sock.close()


class TLS(NamedTuple):
    """How a connection is to be encrypted; made in ``_tls``."""

    context: ssl.SSLContext
    server_hostname: str | None
    direct: bool
    """TLS from the first byte, without PostgreSQL's own request for it."""
    required: bool
    """A server without TLS is refused."""
    verified: bool
    """The server's certificate is checked against a root."""


class Endpoint(NamedTuple):
    """One address to dial, and the socket options it gets."""

    family: int
    address: Any
    options: tuple[tuple[int, int, int], ...]


def drive(steps: Generator[Wait, None, T], deadline: float) -> T:
    """Run *steps* to their end; ``TimeoutError`` once *deadline* has passed."""
    try:
        while True:
            fd, events = next(steps)
            poller = select.poll()
            poller.register(fd, events)
            left = deadline - time.monotonic()
            while left > 0 and not poller.poll(min(left, _AT_ONCE) * 1000):
                left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the time limit of this attempt has passed")
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


def stepwise(operation: Callable[[], T], fd: int) -> Generator[Wait, None, T]:
    """Repeat a non-blocking socket *operation* until it does not have to wait."""
    while True:
        try:
            return operation()
        except (BlockingIOError, ssl.SSLWantReadError):
            yield fd, select.POLLIN
        except ssl.SSLWantWriteError:
            yield fd, select.POLLOUT


def dial(endpoint: Endpoint, tls: TLS | None) -> Generator[Wait, None, Socket | TLSSocket]:
    """Connect and encrypt; the socket returned does not block.

    Raises ``OSError`` when there is no connection, :class:`TLSFailed`,
    :class:`Refused` or ``InterfaceError``. However it ends, nothing is left open
    but what it returns.
    """
    sock: Socket | TLSSocket = Socket(endpoint.family, socket.SOCK_STREAM)
    try:
        _made.add(sock)
        for option in endpoint.options:
            sock.setsockopt(*option)
        sock.setblocking(False)
        error = sock.connect_ex(endpoint.address)
        if error == errno.EINPROGRESS:
            yield sock.fileno(), select.POLLOUT
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        if tls is not None and not tls.direct:
            sock.send(_TLS_REQUEST)
            answer = yield from stepwise(lambda: sock.recv(2), sock.fileno())
            if answer == b"N" and not tls.required:
                tls = None
            elif answer == b"N":
                raise Refused("server does not support TLS, but sslmode requires it")
            elif answer[:1] == b"S" and len(answer) > 1:
                # Whoever sits in between may have put it there to be read as if
                # it had come encrypted (CVE-2021-23222).
                raise InterfaceError("server sent unencrypted data after agreeing to TLS")
            elif answer != b"S":
                raise InterfaceError("server gave no valid answer to the request for TLS")
        if tls is not None:
            sock = yield from _encrypt(sock, tls)
        return sock
    except BaseException:
        sock.close()
        raise


def _encrypt(plain: Socket | TLSSocket, tls: TLS) -> Generator[Wait, None, TLSSocket]:
    sock = tls.context.wrap_socket(
        plain, server_hostname=tls.server_hostname, do_handshake_on_connect=False
    )
    assert isinstance(sock, TLSSocket)
    try:
        _made.add(sock)
        yield from stepwise(sock.do_handshake, sock.fileno())
        if tls.direct and sock.selected_alpn_protocol() != "postgresql":
            raise InterfaceError("server did not agree to speak PostgreSQL over direct TLS")
        return sock
    except OSError as error:
        sock.close()
        raise TLSFailed(f"TLS handshake failed: {error}") from error
    except BaseException:
        sock.close()
        raise


def resolve(params: Mapping[str, Any], deadline: float) -> list[Endpoint]:
    """The addresses of one host (``host``, ``hostaddr``, ``port``), in the system's order.

    A ``host`` that begins with ``/`` or ``@`` is the directory of a unix socket,
    as in libpq. Raises ``InterfaceError`` for an unknown name, ``TimeoutError``.
    """
    host = str(params.get("hostaddr") or params.get("host") or "localhost")
    port = int(params.get("port") or 5432)
    if host[0] in "/@":
        path = f"{host}/.s.PGSQL.{port}"
        if host[0] == "@":  # the abstract name space
            path = "\0" + path[1:]
        return [Endpoint(socket.AF_UNIX, path, ())]
    options = _tcp_options(params)
    try:
        found = _addresses(host, port, deadline)
    except (OSError, UnicodeError) as error:
        if isinstance(error, TimeoutError):
            raise
        raise InterfaceError(f"cannot resolve host name {host!r}: {error}") from error
    # A host file may name an address twice.
    return [
        Endpoint(family, address, options)
        for family, address in dict.fromkeys((item[0], item[4]) for item in found)
    ]


class _Lookup:
    """One name on its way through the system's resolver, which knows no deadline: so
    it has a thread to be late in."""

    def __init__(self, running: list[_Lookup], look_up: Callable[[], list[Any]]) -> None:
        self._running = running
        self._look_up = look_up
        self.done = threading.Event()
        self.answer: list[Any] = []
        self.error: BaseException | None = None
        running.append(self)

    def run(self) -> None:
        try:
            self.answer = self._look_up()
        except BaseException as error:
            self.error = error
        self._running.remove(self)
        self.done.set()


# What is being looked up now. When a name has _RESOLVERS threads, later dials wait for
# the last of them: a resolver that hangs must not gather a thread for each dial.
_lookups: dict[tuple[str, int], list[_Lookup]] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lookups.clear)  # their threads are not in the child


def _addresses(host: str, port: int, deadline: float) -> list[Any]:
    def look_up(flags: int) -> list[Any]:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)

    try:
        return look_up(socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass

    running = _lookups.setdefault((host, port), [])
    latest = running[-_RESOLVERS:]
    if len(latest) < _RESOLVERS:
        lookup = _Lookup(running, lambda: look_up(0))
        threading.Thread(target=lookup.run, name=f"fastpool-resolve-{host}", daemon=True).start()
    else:
        lookup = latest[-1]
    left = min(deadline - time.monotonic(), _RESOLVED)
    if not lookup.done.wait(max(0.0, left)):
        raise TimeoutError(f"host name {host!r} was not resolved in time")
    if lookup.error is not None:
        raise lookup.error
    return lookup.answer


def _tcp_options(params: Mapping[str, Any]) -> tuple[tuple[int, int, int], ...]:
    """NODELAY always; keepalives and TCP_USER_TIMEOUT as libpq, but on by default.

    Idle 30 s, interval 5 s, count 3; 10 000 ms without an acknowledgement. A
    value of 0 leaves the system's own, ``keepalives=0`` turns them off.
    """
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    keepalives = _number(params, "keepalives", 1)
    if keepalives:
        options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
    for name, option in _TCP_OPTIONS.items():
        value = _number(params, name, _TCP_DEFAULTS[name])
        wanted = keepalives or name == "tcp_user_timeout"
        if wanted and value > 0 and hasattr(socket, option):
            options.append((socket.IPPROTO_TCP, getattr(socket, option), value))
    return tuple(options)


def _number(params: Mapping[str, Any], name: str, default: int) -> int:
    value = params.get(name)
    if value is None or value == "":
        return default
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{name} must be a whole number, not {value!r}", setting=name) from None
