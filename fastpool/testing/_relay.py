"""The process behind ``FaultProxy``: it passes bytes between clients and one server.

::

    client  ===== wire =====  front  -----  server

The faults act on the *wire*: two streams, one per direction, that delay, pace and
cut what runs through them. The *front* plays the server's part in the start-up of
a connection: it ends TLS, recognises cancel requests, and follows the server's
messages, so that one of our own can be put between two of them.

One thread, one selector, no call that blocks: a command is carried out between two
events, so it is in force when it is answered. Commands are JSON lines on stdin,
``[serial, name, arguments]``; answers are lines on stdout, ``[serial, ok, value]``.
The end of stdin is the end of this process: its owner is gone.

Run as a program, so it imports the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import heapq
import itertools
import json
import math
import os
import random
import selectors
import socket
import ssl
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal

Direction = Literal["to_client", "to_server"]
End = Literal["eof", "close", "reset"]
"""How a stream ends: ``eof`` closes this direction alone, the others both."""

_CHUNK: Final = 65536
_BUFFER: Final = 1 << 20  # bytes kept per direction; who sends more has to wait
_BACKLOG: Final = 128
_SO_ATTACH_FILTER: Final = 26  # Linux; not among Python's own
_SO_DETACH_FILTER: Final = 27
_DELAYED_ACK: Final = 0.1
_RETURN_0: Final = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
_LINGER_0: Final = struct.pack("ii", 1, 0)  # makes close() send RST

# The packets a connection may begin with, by the code after their length (PostgreSQL,
# "Message Formats"); a start-up message has the protocol's version there.
_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
_GSSENC_REQUEST: Final = struct.pack("!ii", 8, 80877104)
_CANCEL_CODE: Final = struct.pack("!i", 80877102)
_PROTOCOL_3: Final = struct.pack("!h", 3)
_TLS_HANDSHAKE: Final = b"\x16"


class CommandError(Exception):
    """A command cannot be carried out; its text is the answer."""


class TLS:
    """The server's side of a TLS session, bytes in and bytes out."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._established = False

    def decrypt(self, data: bytes) -> bytes:
        """What the client said. Raises ``ssl.SSLError`` when it is no good TLS."""
        self._incoming.write(data)
        plain = bytearray()
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self._established:
                self._session.do_handshake()
                self._established = True
            while chunk := self._session.read(_CHUNK):
                plain += chunk
        return bytes(plain)

    def encrypt(self, data: bytes) -> bytes:
        if not self._established:
            return b""  # the client could not read it
        self._session.write(data)
        return self.pending()

    def close(self) -> bytes:
        """The alert that says that no more will come."""
        with contextlib.suppress(ssl.SSLError):
            self._session.unwrap()
        return self.pending()

    def pending(self) -> bytes:
        """What the session itself has to say: handshake and alerts."""
        return self._outgoing.read()


class Front:
    """What stands between the wire and the server; it does no I/O.

    ``state`` tells what comes next: ``start``, a packet that begins a connection;
    ``answer``, the server's one byte about encryption; ``messages``, PostgreSQL's
    messages; ``opaque``, something that is not followed, encrypted or foreign.
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.state: Literal["start", "answer", "messages", "opaque"] = "start"
        self.is_cancel = False
        self._context = context
        self._tls: TLS | None = None
        self._start = b""  # of the client's packet, while too short to be recognised
        self._left = 0  # bytes of the server's current message still to come ...
        self._header = b""  # ... or its first 1 to 4 bytes, the length not yet known

    def from_client(self, data: bytes) -> tuple[bytes, bytes]:
        """Take bytes off the wire: ``(for the server, back to the client)``."""
        if self._tls is not None:
            data = self._tls.decrypt(data)
            back = self._tls.pending()
        else:
            back = b""
        if self.state == "start":
            data, more = self._begin(self._start + data)
            back += more
        return data, back

    def _begin(self, data: bytes) -> tuple[bytes, bytes]:
        self._start = b""
        if self._context is not None and self._tls is None:
            if data[:1] == _TLS_HANDSHAKE:
                self._tls = TLS(self._context)
                return self.from_client(data)
            if data[:8] == _SSL_REQUEST:
                # What follows in the same piece is not encrypted, and not listened to.
                self._tls = TLS(self._context)
                return b"", b"S"
        if data[:1] == b"\0" and len(data) < 8:
            self._start = data
            return b"", b""
        if data[:8] in (_SSL_REQUEST, _GSSENC_REQUEST):
            self.state = "answer"
        elif data[:1] == b"\0" and data[4:6] == _PROTOCOL_3:
            self.state = "messages"
        elif data:
            self.state = "opaque"
            self.is_cancel = data[:1] == b"\0" and data[4:8] == _CANCEL_CODE
        return data, b""

    def from_server(self, data: bytes) -> bytes:
        """Take bytes from the server: those for the wire."""
        if self.state == "answer":
            self.state = "start" if data[:1] == b"N" else "opaque"
        if self.state == "messages":
            self._follow(data)
        return self.encrypt(data)

    def encrypt(self, data: bytes) -> bytes:
        return data if self._tls is None else self._tls.encrypt(data)

    def farewell(self) -> bytes:
        """What goes before the end of the stream to the client."""
        return b"" if self._tls is None else self._tls.close()

    def alert(self) -> bytes:
        """What TLS says to a client that it cannot understand."""
        return b"" if self._tls is None else self._tls.pending()

    def between_messages(self) -> bool:
        return not self._left and not self._header

    def rest_of_message(self, data: bytes) -> int | None:
        """Where in the server's next bytes its current message ends; ``None``: after them."""
        end = self._left
        if self._header:
            header = self._header + data[:4]
            if len(header) < 5:
                return None
            end = 1 + int.from_bytes(header[1:5], "big") - len(self._header)
        return end if end <= len(data) else None

    def _follow(self, data: bytes) -> None:
        data = self._header + data
        start, end = self._left, len(data)
        while start + 5 <= end:
            start += 1 + int.from_bytes(data[start + 1 : start + 5], "big")
        self._header = data[start:]
        self._left = max(0, start - end)


def error_response(sqlstate: str, message: str) -> bytes:
    """PostgreSQL's ErrorResponse of severity FATAL."""
    fields = f"SFATAL\0VFATAL\0C{sqlstate}\0M{message}\0\0".encode()
    return b"E" + struct.pack("!i", 4 + len(fields)) + fields


class Faults:
    """What is wrong with one wire, or with those to come."""

    def __init__(self) -> None:
        self.latency = 0.0
        self.jitter = 0.0
        self.frozen = False
        self.pace: dict[Direction, tuple[int, float]] = {}
        """At most so many bytes in so many seconds."""
        self.cut: dict[Direction, tuple[int, End]] = {}
        """How many bytes are left until the end, and how it ends."""

    def copy(self) -> Faults:
        faults = Faults()
        vars(faults).update(vars(self), pace=dict(self.pace), cut=dict(self.cut))
        return faults


class Stream:
    """One direction of a wire: what is on its way."""

    def __init__(self, direction: Direction) -> None:
        self.direction: Final = direction
        self.queue: deque[tuple[float, bytes]] = deque()
        """When each piece is due, and the piece."""
        self.size = 0
        self.end: tuple[float, End] | None = None
        """When the end is due; it comes after all pieces."""
        self.closed = False
        """Nothing more is taken in."""
        self.done = False
        """The end has been passed on."""
        self.blocked = False
        """The receiver takes no more at the moment."""
        self.free_at = 0.0
        self.paced = False
        """A piece waited for ``free_at``, so the next interval begins there."""
        self.alarm = math.inf
        """When a timer is set for it."""

    def hurry(self, limit: float) -> None:
        """Let everything be due at *limit* at the latest, and the next piece not paced."""
        self.queue = deque((min(due, limit), piece) for due, piece in self.queue)
        if self.end is not None:
            self.end = min(self.end[0], limit), self.end[1]
        self.free_at = 0.0
        self.paced = False

    def clear(self) -> None:
        self.queue.clear()
        self.size = 0
        self.end = None
        self.closed = True


class Connection:
    """One client, its wire, its front, and its connection to the server."""

    def __init__(self, relay: Relay, number: int, client: socket.socket, port: int) -> None:
        self.number: Final = number
        self.port: Final = port
        self.counters = {"flights": 0, "bytes_to_server": 0, "bytes_to_client": 0}
        self.faults = relay.faults.copy()
        self.closed = False
        self._relay = relay
        self._client = client
        self._server: socket.socket | None = None
        self._addresses = list(relay.addresses)
        self._front = Front(relay.context)
        self._up, self._down = Stream("to_server"), Stream("to_client")
        self._started = False
        self._connected = False
        self._deaf = False
        self._swallowing = False  # there is no server any more; the client is not told
        self._to_server = bytearray()
        self._last_words = b""  # to be said when the server's current message has ended
        self._clients_turn = True
        self._masks: dict[socket.socket, int] = {}

    # What the relay asks for.

    def start(self) -> None:
        """Dial the server and begin to listen to the client."""
        if self.closed or self._started or self.faults.frozen:
            return
        self._started = True
        self._dial()
        self._watch()

    def resume(self) -> None:
        """Go on after a change of the faults; nothing waits longer than it now must."""
        limit = time.monotonic() + self.faults.latency + self.faults.jitter
        for stream in (self._down, self._up):
            stream.hurry(limit)
            self._flow(stream)
        self._watch()

    def deafen(self) -> None:
        """Let the kernel drop what the client sends, so that nobody acknowledges it.

        Its acknowledgements are dropped as well, so first wait for those that are due:
        what is sent again for want of one would tell the client that we are there. A
        kernel delays them by 40 ms; nothing else happens here meanwhile.
        """
        limit = time.monotonic() + _DELAYED_ACK
        while _unacknowledged(self._client) and time.monotonic() < limit:
            time.sleep(0.001)
        try:
            self._client.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _drop_all())
        except OSError as error:
            raise CommandError(f"the kernel lets us drop no packets here: {error}") from None
        self._deaf = True

    def heal(self) -> None:
        if self._deaf:
            self._client.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            self._deaf = False
        self.faults = Faults()
        if not self._started:
            self.start()
        elif self._swallowing and self._down.end is None:
            self.reset()  # as a server does that has forgotten the connection
        else:
            self.resume()

    def half_open(self) -> bool:
        """Leave the client without a server and without a word; False if it has none."""
        if not self._started or self._swallowing:
            return False
        self._up.clear()
        self._down.clear()
        self._drop_server()
        self._watch()
        return True

    def fatal(self, words: bytes) -> bool:
        """Let *words* be the server's last message; False where it cannot be put in."""
        if not self._started or self._swallowing or self._down.closed:
            return False
        if self._front.state not in ("start", "messages"):
            return False
        if self._front.between_messages():
            self._say_last(words)
        else:
            self._last_words = words
        self._watch()
        return True

    def reset(self) -> None:
        """RST to both sides; what is on its way is lost."""
        for sock in (self._client, self._server):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        self.close()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._drop_server()
        self._unwatch(self._client)
        self._client.close()
        del self._relay.connections[self.number]

    def describe(self) -> list[int | None]:
        """The fields of ``ProxiedConnection``, in its order."""
        server_port = None
        if self._server is not None and self._server.family != socket.AF_UNIX:
            server_port = self._server.getsockname()[1]
        return [self.number, self.port, server_port, *self.counters.values()]

    # The server's side.

    def _dial(self) -> None:
        while self._addresses:
            family, address = self._addresses[0]
            sock = _prepared(socket.socket(family, socket.SOCK_STREAM))
            error = sock.connect_ex(address)
            if error in (0, errno.EINPROGRESS):
                self._addresses.pop(0)
                self._server = sock
                return
            sock.close()
            if error == errno.EAGAIN:  # a unix socket's queue is full
                self._relay.call_at(time.monotonic() + 0.005, self._redial)
                return
            self._addresses.pop(0)
        self.reset()

    def _redial(self) -> None:
        if not self.closed and not self._swallowing:
            self._dial()
            self._watch()

    def _dialled(self, server: socket.socket) -> None:
        if server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._unwatch(server)
            server.close()
            self._server = None
            self._dial()
        else:
            self._connected = True
            self._write_server()

    def _write_server(self) -> None:
        if self._server is None or not self._connected:
            return
        try:
            while self._to_server:
                del self._to_server[: self._server.send(self._to_server)]
            if self._up.done:
                self._server.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self._server_broke()

    def _read_server(self, server: socket.socket) -> None:
        try:
            data = server.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._server_broke()
            return
        if not data:
            self._push(self._down, self._front.farewell())
            self._finish(self._down, "eof")
            return
        if self._last_words:
            rest = self._front.rest_of_message(data)
            if rest is not None:
                self._push(self._down, self._front.from_server(data[:rest]))
                self._say_last(self._last_words)
                return
        self._push(self._down, self._front.from_server(data))

    def _server_broke(self) -> None:
        self._up.clear()
        self._break(self._down)

    def _drop_server(self) -> None:
        self._swallowing = True
        self._to_server.clear()
        if self._server is not None:
            self._unwatch(self._server)
            self._server.close()
            self._server = None

    def _say_last(self, words: bytes) -> None:
        self._drop_server()
        self._up.clear()
        self._push(self._down, self._front.encrypt(words) + self._front.farewell())
        self._finish(self._down, "close")

    # The client's side.

    def _read_client(self) -> None:
        try:
            data = self._client.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._client_broke()
            return
        if self._swallowing:
            if not data:
                self.close()
            return
        if not data:
            self._finish(self._up, "eof")
            return
        if self._clients_turn:
            self._clients_turn = False
            self._count("flights", 1)
        self._push(self._up, data)

    def _client_broke(self) -> None:
        if self._swallowing:
            self.close()
            return
        self._down.clear()
        self._break(self._up)

    # The wire.

    def _push(self, stream: Stream, data: bytes) -> None:
        if data and not stream.closed:
            stream.queue.append((self._due(), data))
            stream.size += len(data)
            self._flow(stream)

    def _finish(self, stream: Stream, how: End) -> None:
        if not stream.closed:
            stream.closed = True
            stream.end = self._due(), how
            self._flow(stream)

    def _break(self, stream: Stream) -> None:
        """The sender is gone without a proper end: RST, after what it has said."""
        if stream.done:
            self.reset()
        else:
            stream.closed = True
            stream.end = self._due(), "reset"
            self._flow(stream)

    def _due(self) -> float:
        # Jitter lets no piece overtake another: each waits for those before it.
        faults = self.faults
        if not faults.latency and not faults.jitter:
            return 0.0
        return time.monotonic() + faults.latency + random.random() * faults.jitter

    def _flow(self, stream: Stream) -> None:
        """Deliver what is due, and come back when the next piece is."""
        while not (self.closed or self.faults.frozen or stream.blocked):
            now = time.monotonic()
            if stream.queue:
                due = max(stream.queue[0][0], stream.free_at)
                if due <= now:
                    self._deliver(stream, now)
                    continue
                stream.paced = due == stream.free_at
            elif stream.end is not None:
                due, how = stream.end
                if due <= now:
                    self._deliver_end(stream, how)
                    continue
            else:
                return
            self._set_alarm(stream, due)
            return

    def _set_alarm(self, stream: Stream, due: float) -> None:
        if due < stream.alarm:
            stream.alarm = due
            self._relay.call_at(due, lambda: self._on_alarm(stream))

    def _on_alarm(self, stream: Stream) -> None:
        stream.alarm = math.inf
        if not self.closed:
            self._flow(stream)
            self._watch()

    def _deliver(self, stream: Stream, now: float) -> None:
        due, piece = stream.queue[0]
        pace = self.faults.pace.get(stream.direction)
        cut = self.faults.cut.get(stream.direction)
        size = min(len(piece), pace[0] if pace else _CHUNK, cut[0] if cut else _CHUNK)
        take = self._take_up if stream is self._up else self._take_down
        taken = take(piece[:size])
        if not taken or self.closed:
            return
        self._count("bytes_" + stream.direction, taken)
        if stream.queue:  # else the connection broke, and the stream was cleared
            stream.queue.popleft()
            stream.size -= taken
            if taken < len(piece):
                stream.queue.appendleft((due, piece[taken:]))
        if pace:
            begin = stream.free_at if stream.paced else now
            stream.free_at = begin + pace[1] * taken / pace[0]
            stream.paced = False
        if cut:
            left, how = cut[0] - taken, cut[1]
            self.faults.cut[stream.direction] = left, how
            if not left:
                self._end(how)

    def _take_up(self, piece: bytes) -> int:
        try:
            data, back = self._front.from_client(piece)
        except ssl.SSLError:
            self._push(self._down, self._front.alert())
            self._drop_server()
            self._up.clear()
            self._finish(self._down, "close")
            return len(piece)
        self._push(self._down, back)
        if self._front.is_cancel:
            self._front.is_cancel = False
            self._relay.counters["cancels"] += 1
            if self._relay.cancels_dropped:
                self.close()  # as the server does, whether it found the session or not
                return len(piece)
        self._to_server += data
        self._write_server()
        return len(piece)

    def _take_down(self, piece: bytes) -> int:
        try:
            sent = self._client.send(piece)
        except BlockingIOError:
            self._down.blocked = True
            return 0
        except OSError:
            self._client_broke()
            return 0
        self._clients_turn = True
        return sent

    def _deliver_end(self, stream: Stream, how: End) -> None:
        stream.end = None
        stream.done = True
        if how != "eof" or (self._up.done and self._down.done):
            self._end(how)
        elif stream is self._up:
            self._write_server()
        else:
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_WR)

    def _end(self, how: End) -> None:
        if how == "reset":
            self.reset()
        else:
            self.close()

    # Events.

    def on_event(self, sock: socket.socket, events: int) -> None:
        """Handle what the selector saw; an event may be older than the last change."""
        if sock is self._client:
            if events & selectors.EVENT_WRITE:
                self._down.blocked = False
                self._flow(self._down)
            if events & selectors.EVENT_READ and not self.closed:
                self._read_client()
        elif sock is self._server:
            if not self._connected:
                self._dialled(sock)
            else:
                if events & selectors.EVENT_WRITE:
                    self._write_server()
                if events & selectors.EVENT_READ and sock is self._server:
                    self._read_server(sock)
        self._watch()

    def _watch(self) -> None:
        """Listen for what can be handled now, and for nothing else."""
        if self.closed:
            return
        awake = self._started and not self.faults.frozen
        up, down = self._up, self._down
        client = server = 0
        if awake:
            if self._swallowing or (not up.closed and up.size + len(self._to_server) < _BUFFER):
                client |= selectors.EVENT_READ
            if down.blocked:
                client |= selectors.EVENT_WRITE
            if self._connected and not down.closed and down.size < _BUFFER:
                server |= selectors.EVENT_READ
            if not self._connected or self._to_server:
                server |= selectors.EVENT_WRITE
        self._set_mask(self._client, client)
        if self._server is not None:
            self._set_mask(self._server, server)

    def _set_mask(self, sock: socket.socket, mask: int) -> None:
        selector, before = self._relay.selector, self._masks.get(sock, 0)
        if mask == before:
            return
        self._masks[sock] = mask
        if not mask:
            selector.unregister(sock)
        elif before:
            selector.modify(sock, mask, selector.get_key(sock).data)
        else:
            selector.register(sock, mask, lambda events: self.on_event(sock, events))

    def _unwatch(self, sock: socket.socket) -> None:
        self._set_mask(sock, 0)
        self._masks.pop(sock, None)

    def _count(self, name: str, amount: int) -> None:
        self.counters[name] += amount
        self._relay.counters[name] += amount


def _unacknowledged(sock: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _drop_all() -> bytes:
    """A ``struct sock_fprog`` whose one instruction is "take 0 bytes of the packet"."""
    return struct.pack("HP", 1, ctypes.addressof(_RETURN_0))


def _prepared(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Relay:
    """The listener, its connections, and the commands (``do_*``)."""

    def __init__(self, addresses: list[tuple[int, Any]], context: ssl.SSLContext | None) -> None:
        self.addresses: Final = addresses
        """Family and address to try for the server, in this order."""
        self.context: Final = context
        self.selector: Final = selectors.DefaultSelector()
        self.connections: Final[dict[int, Connection]] = {}
        self.faults = Faults()
        self.cancels_dropped = False
        self.counters = {
            "connections": 0,
            "flights": 0,
            "bytes_to_server": 0,
            "bytes_to_client": 0,
            "cancels": 0,
        }
        self._accept_delay = 0.0
        self._numbers = itertools.count(1)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_order = itertools.count()
        # Bound but never listening: the port stays ours while nobody listens on it.
        self._holder = _bound_socket(("127.0.0.1", 0))
        self._listener: socket.socket | None = None
        self._admitting = False
        self._filler: socket.socket | None = None  # fills the listener's queue in a black hole
        self._admit()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._holder.getsockname()
        return host, port

    def run(self) -> None:
        """Serve until stdin ends."""
        lines = b""
        open_ = True

        def control(events: int) -> None:
            nonlocal lines, open_
            data = os.read(0, _CHUNK)
            open_ = bool(data)
            *complete, lines = (lines + data).split(b"\n")
            for line in complete:
                self._obey(line)

        self.selector.register(0, selectors.EVENT_READ, control)
        answer(0, True, self.address[1])
        while open_:
            timeout = self._timers[0][0] - time.monotonic() if self._timers else None
            for key, events in self.selector.select(timeout and max(0.0, timeout)):
                key.data(events)
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._timer_order), call))

    def _obey(self, line: bytes) -> None:
        serial, name, arguments = json.loads(line)
        try:
            value = getattr(self, "do_" + name)(**arguments)
        except CommandError as error:
            answer(serial, False, str(error))
        else:
            answer(serial, True, value)

    # Accepting.

    def _listen(self, backlog: int) -> socket.socket:
        if self._listener is None:
            self._listener = _bound_socket(self.address)
        self._listener.listen(backlog)
        return self._listener

    def _admit(self) -> None:
        if not self._admitting:
            listener = self._listen(_BACKLOG)
            self.selector.register(listener, selectors.EVENT_READ, lambda _: self._accept())
            self._admitting = True

    def _keep_out(self) -> None:
        """Who has connected by now has connected; accept nobody else."""
        self._accept()
        if self._admitting and self._listener is not None:
            self.selector.unregister(self._listener)
            self._admitting = False

    def _accept(self) -> None:
        while self._admitting and self._listener is not None:
            try:
                client, (host, port) = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            if self._filler is not None and (host, port) == self._filler.getsockname():
                client.close()
                continue
            self.counters["connections"] += 1
            connection = Connection(self, next(self._numbers), _prepared(client), port)
            self.connections[connection.number] = connection
            if not self._accept_delay:
                connection.start()
            elif self._accept_delay < math.inf:
                self.call_at(time.monotonic() + self._accept_delay, connection.start)

    # Commands.

    def _some(self, connection: int | None) -> list[Connection]:
        if connection is None:
            self._accept()  # whoever has connected is meant as well
            return list(self.connections.values())
        if connection not in self.connections:
            raise CommandError(f"there is no connection {connection} (any more)")
        return [self.connections[connection]]

    def _change(self, connection: int | None, change: Callable[[Faults], None]) -> None:
        some = self._some(connection)
        if connection is None:
            change(self.faults)
        for each in some:
            change(each.faults)
            each.resume()

    def do_latency(self, connection: int | None, seconds: float, jitter: float) -> None:
        def change(faults: Faults) -> None:
            faults.latency, faults.jitter = seconds, jitter

        self._change(connection, change)

    def do_bandwidth(self, connection: int | None, bytes_per_second: float) -> None:
        # Pieces of about 10 ms.
        size = max(1, min(_CHUNK, int(bytes_per_second / 100)))
        pace = size, size / bytes_per_second

        def change(faults: Faults) -> None:
            faults.pace = {"to_client": pace, "to_server": pace}

        self._change(connection, change)

    def do_drip(self, connection: int | None, count: int, interval: float) -> None:
        def change(faults: Faults) -> None:
            faults.pace["to_client"] = count, interval

        self._change(connection, change)

    def do_cut_after(
        self, connection: int | None, count: int, direction: Direction, how: End
    ) -> None:
        def change(faults: Faults) -> None:
            faults.cut[direction] = count, how

        self._change(connection, change)

    def do_black_hole(self, connection: int | None, acknowledge: bool) -> None:
        def change(faults: Faults) -> None:
            faults.frozen = True

        if connection is None and self._filler is None:
            # A listener whose queue is full ignores who knocks: it has one place, we take it.
            self._keep_out()
            self._listen(0)
            self._filler = socket.socket()
            self._filler.setblocking(False)
            self._filler.connect_ex(self.address)
        self._change(connection, change)
        if not acknowledge:
            for each in self._some(connection):
                each.deafen()

    def do_refuse(self) -> None:
        self._keep_out()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._close_filler()

    def do_slow_accept(self, seconds: float) -> None:
        self._accept()
        self._accept_delay = seconds

    def do_silent_accept(self) -> None:
        self._accept()
        self._accept_delay = math.inf

    def do_drop_cancels(self) -> None:
        self.cancels_dropped = True

    def do_reset(self, connection: int | None) -> int:
        some = self._some(connection)
        for each in some:
            each.reset()
        return len(some)

    def do_half_open(self, connection: int | None) -> int:
        return sum(each.half_open() for each in self._some(connection))

    def do_fatal(self, connection: int | None, sqlstate: str, message: str) -> int:
        words = error_response(sqlstate, message)
        done = sum(each.fatal(words) for each in self._some(connection))
        if connection is not None and not done:
            raise CommandError(f"connection {connection} has no PostgreSQL messages to see")
        return done

    def do_heal(self, connection: int | None) -> None:
        if connection is None:
            self.faults = Faults()
            self._accept_delay = 0.0
            self.cancels_dropped = False
        for each in self._some(connection):
            each.heal()
        if connection is None:
            self._admit()
            self._accept()
            self._close_filler()

    def _close_filler(self) -> None:
        if self._filler is not None:
            self._filler.close()
            self._filler = None

    def do_connections(self) -> list[list[int | None]]:
        return [each.describe() for each in self._some(None)]

    def do_counters(self) -> dict[str, int]:
        self._accept()
        return self.counters

    def do_reset_counters(self) -> None:
        for counters in (self.counters, *(each.counters for each in self._some(None))):
            counters.update(dict.fromkeys(counters, 0))


def _bound_socket(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    return sock


def answer(serial: int, ok: bool, value: object) -> None:
    line = json.dumps([serial, ok, value]).encode() + b"\n"
    while line:
        line = line[os.write(1, line) :]


def main(target: str | list[Any], tls: list[str | None] | None) -> None:
    try:
        context = None
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate, key, client_ca = tls
            assert certificate is not None
            context.load_cert_chain(certificate, key)
            if client_ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(client_ca)
            context.num_tickets = 0  # PostgreSQL sends none either
            context.set_alpn_protocols(["postgresql"])
        if isinstance(target, str):
            addresses: list[tuple[int, Any]] = [(socket.AF_UNIX, target)]
        else:
            host, port = target
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [(family, address) for family, _, _, _, address in found]
    except OSError as error:  # ssl.SSLError is one
        answer(0, False, str(error))
        return
    Relay(addresses, context).run()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the owner is gone
        main(*json.loads(sys.argv[1]))
