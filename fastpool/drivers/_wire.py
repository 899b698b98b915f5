"""pg8000, made safe to share: in step with the server or known not to be.

A pg8000 connection that is interrupted between a request and the end of its answer
gives that answer to whoever asks next. So every exchange here is bracketed: BUSY is
set before the first byte leaves, and only a fully read answer clears it. All that can
fail on the caller's data (adapters, ``__str__``, encoding) is done before BUSY; what
fails on the server's data (a converter) is raised once the answer has been read. An
ErrorResponse is an answer like any other. Anything else, an interrupt included,
leaves the connection DIRTY: it refuses further use, and the pool closes it.

One exchange is one write and one round trip: Parse, Bind, Describe, Execute and Sync
go out together, where pg8000 waits three times. Results, types and errors are
pg8000's, with these differences: a read from a broken connection raises
``InterfaceError("network error")`` like a write does, never a bare
``ConnectionResetError`` or ``TimeoutError``, and its ``__cause__`` is the server's
last word (``57P01``) where it sent one; COPY from a stream that fails leaves the
connection usable; NOTIFY need not be ASCII.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from io import IOBase, TextIOBase
from itertools import count
from typing import Any

import pg8000.dbapi
import pg8000.native
from pg8000.converters import make_params
from pg8000.core import (
    BIND,
    CLOSE,
    COMMAND_COMPLETE,
    COPY_DATA,
    COPY_DONE_MSG,
    DATA_ROW,
    DESCRIBE,
    EMPTY_QUERY_RESPONSE,
    ERROR_RESPONSE,
    EXECUTE_MSG,
    FLUSH_MSG,
    IN_FAILED_TRANSACTION,
    IN_TRANSACTION,
    NOTICE_RESPONSE,
    PARSE,
    PORTAL,
    QUERY,
    READY_FOR_QUERY,
    STATEMENT,
    SYNC_MSG,
    TERMINATE_MSG,
    Context,
    CoreConnection,
    scramp,
)
from pg8000.exceptions import DatabaseError, InterfaceError

from .._deadline import current as deadline
from ..errors import ConfigError, ConnectionReleased, DeadlineExceeded
from ._socket import TLS, LimitPassed, Refused, Socket, TLSSocket, drive, stepwise
from .base import (
    BUSY,
    CLOSED,
    DIRTY,
    FAILED,
    LOCAL,
    READONLY,
    SESSION,
    TRANSACTION,
    ConnState,
    Wait,
)

__all__ = ["Connection", "DBAPIConnection", "NativeConnection"]

_COPY_FAIL = b"f"
_CANCEL_REQUEST = 80877102
_HEADER = struct.Struct("!ci")
_INT = struct.Struct("!i").pack
_SHORT = struct.Struct("!H").pack
_NULL = _INT(-1)

_PEEK = 0.01
"""Seconds for the rest of a TLS record whose begin has arrived."""

_NO_STREAM = (
    "The 'stream' parameter is required for the COPY IN response. The 'stream' "
    "parameter can be an I/O stream or an iterable."
)

_SESSION_TAGS = frozenset(
    (
        *(b"SET\0", b"RESET\0", b"DISCARD ALL\0", b"LOAD\0", b"LISTEN\0", b"UNLISTEN\0"),
        *(b"PREPARE\0", b"DEALLOCATE\0", b"DEALLOCATE ALL\0"),
    )
)
"""Command tags of what outlives its transaction, and shows nowhere else; or undoes
what an ``after_connect`` hook has set."""
_LEAD = r"(?:\s|--[^\n]*(?:\n|\Z)|/\*(?:[^*]|\*(?!/))*\*/)*"
"""What may stand before a statement: blanks, and comments that are not nested."""
_END = re.compile(_LEAD + r"(commit|end|rollback|abort|prepare\s+transaction)\b", re.IGNORECASE)
_UNDO = re.compile(_LEAD + r"(rollback|abort)\b[^;]*;?\s*\Z", re.IGNORECASE)
"""What ends a transaction is never cancelled, and what only undoes one is always sent."""
_COMMITS = re.compile(
    _LEAD + r"(call|do|vacuum|analyze|cluster|reindex|\w+\s+(unique\s+)?index\s+concurrently"
    r"|alter\s+table\b[^;]*\bdetach\s+partition\b[^;]*\bconcurrently)\b",
    re.IGNORECASE,
)
"""What may commit in its middle, and be cancelled after that."""
_SET_LOCAL = re.compile(r"\s*set\s+(local|transaction)\b[^;]*;?\s*\Z", re.IGNORECASE)
"""The two that carry the tag SET and do end with the transaction."""


# scramp takes the socket as it is from 1.5 on.
_make_binding = getattr(scramp, "make_channel_binding", lambda *binding: binding)


def _message(code: bytes, body: bytes) -> bytes:
    return code + _INT(len(body) + 4) + body


def _shut(sock: socket.socket, how: int) -> None:
    """Not the socket's own ``shutdown``: under TLS that would give a thread that is
    reading the encrypted bytes as if they were the answer."""
    with contextlib.suppress(OSError):  # the other side was first
        socket.socket.shutdown(sock, how)


def _copy_chunks(stream: Any, binary: bool, encoding: str) -> Iterator[bytes]:
    """The pieces of what pg8000 takes for COPY FROM STDIN, with its errors."""
    if stream is None:
        raise InterfaceError(_NO_STREAM)
    if isinstance(stream, TextIOBase):
        if binary:
            raise InterfaceError(
                "The COPY IN stream is binary, but the stream parameter is a text stream."
            )
        while text := stream.read(8192):
            yield text.encode(encoding)
    elif isinstance(stream, IOBase):
        buffer = bytearray(65536)
        while size := stream.readinto(buffer):  # type: ignore[attr-defined]
            yield bytes(buffer[:size])
    else:
        for item in stream:
            if binary and isinstance(item, str):
                raise InterfaceError(
                    "The COPY IN stream is binary, but the stream parameter is an iterable "
                    "with str type items."
                )
            yield item.encode(encoding) if isinstance(item, str) else bytes(memoryview(item))


class _Exchange(Context):  # type: ignore[misc]
    """pg8000's record of one request and its answer, and what it lacks."""

    sync_owed = False
    """No Sync has been sent yet: it follows the command's end or the COPY data."""
    sync_sent = False
    """A Sync went out with the command, before it was known to want COPY data."""
    name: bytes | None = None
    """The prepared statement that is made or closed."""
    stream_error: BaseException | None = None
    """What the caller's COPY stream raised; it goes before the server's complaint."""
    error: BaseException | None
    limit = math.inf
    """The deadline, on ``time.monotonic()``."""
    overtime = False
    """It has passed, after bytes were sent."""
    completed = False
    """A command of it has ended well."""

    def take_error(self) -> BaseException | None:
        """The error to raise, forgotten here: its traceback will hold this object."""
        error = self.error if self.stream_error is None else self.stream_error
        self.error = self.stream_error = None
        return error


class Connection(CoreConnection):  # type: ignore[misc]
    """A pg8000 connection whose every exchange goes through :meth:`_exchange`."""

    _started = False
    _usock: Socket | TLSSocket | None = None
    _sock: Any = None
    _broken: BaseException | None = None  # a FATAL error, or a failed write: why reads will fail
    _lost = False  # the socket is known to be dead
    _session = False  # a command with a tag of _SESSION_TAGS was run
    _refused = False  # a write, by a server that is a standby or read-only by default
    _moved = False  # reported parameters differ from those at birth
    _born: Mapping[str, str] = {}  # the reported parameters at birth
    _autocommit = _born_autocommit = False
    # The adapters at birth, once a user has registered others.
    _born_adapters: tuple[Any, Any] | None = None
    _born_statements: frozenset[bytes] = frozenset()
    _proved = False  # the server's SCRAM signature was right
    auth: Any = None
    _cancel_budget = 0.0  # seconds that an answer may come after the deadline
    _sent: str | None = ""  # the statement of an exchange that has not ended
    _tls: TLS | None = None
    _pooled: bool | None = None
    """Behind a pooler that lends server sessions out: nothing that is sent later, a
    cancel request included, is sure to concern the session that was used before.
    ``None``: it does not look so, and was not asked."""
    _redial: functools.partial[Generator[Wait, None, Socket | TLSSocket]]

    def __init__(
        self,
        state: ConnState,
        sock: Socket | TLSSocket,
        channel_binding: str = "prefer",
        **start: Any,
    ) -> None:
        self._state = state
        self._channel_binding = channel_binding
        try:
            super().__init__(sock=sock, ssl_context=False, **start)
            self._settle()
            self._started = True
        except BaseException:
            self._hang_up()
            raise
        self.password: bytes | None = None  # neither is needed again
        self.auth = None

    # One exchange

    def _exchange(self, context: _Exchange, message: bytes, serial: int = 0) -> _Exchange:
        """Send *message* and read its whole answer, for the lease of *serial*."""
        self._state.enter(serial)
        return self._timed(context, message)

    def _timed(self, context: _Exchange, message: bytes) -> _Exchange:
        """Under the deadline, where there is one."""
        limit = min(self._state.deadline, deadline())
        if limit == math.inf:
            return self._converse(context, message)
        context.limit = limit
        inside = self._state.flags & TRANSACTION
        try:
            return self._converse(context, message)
        except LimitPassed as error:
            raise DeadlineExceeded(
                "the deadline passed while a statement ran, and no answer came within "
                f"{self._cancel_budget:g} s: it may have been done or not",
                outcome="unknown",
            ) from error
        except DatabaseError as error:
            if not context.overtime or error.args[0].get("C") != "57014":
                raise
            raise DeadlineExceeded(
                "the deadline passed while a statement ran; it was cancelled",
                # After the command's own end, what was cancelled came after its COMMIT;
                # and a procedure may have committed some of its work.
                outcome="unknown"
                if context.completed or (not inside and _COMMITS.match(context.statement or ""))
                else "cancelled",
            ) from error

    def _overtime(self, context: _Exchange) -> None:
        """The deadline has passed in the middle of an exchange: cancel it and go on
        reading for a little. If the answer comes after all, it is the answer."""
        sock = self._usock
        assert sock is not None
        context.overtime = True
        now = time.monotonic()
        sock.limit = now + self._cancel_budget
        if _END.match(context.statement or ""):
            return
        self._state.cancelling()
        proven = False
        try:
            # Half of it, so that an answer which is there already is read.
            drive(self._cancelling(), now + self._cancel_budget / 2)
            proven = not self._pooled
        except (OSError, InterfaceError):
            pass  # then the answer decides, if one comes
        finally:
            self._state.cancelled(proven)

    def _command(self, sql: str, timeout: float | None = None) -> _Exchange:
        """A statement of the pool's own, which may run when no lease is on.

        Raises :class:`LimitPassed` after *timeout* seconds; without one it is under
        the deadline, as the user's are.
        """
        # ASCII is the same in every encoding, also in those that Python lacks.
        encoding = "ascii" if sql.isascii() else self._client_encoding
        context, message = _Exchange(sql), _message(QUERY, sql.encode(encoding) + b"\0")
        if self._state.serial & 1:
            self._state.enter()
        else:
            self._state.leave(self._state.flags | BUSY)
        sock = self._usock
        if timeout is None or sock is None:
            return self._timed(context, message)
        sock.limit = time.monotonic() + timeout
        try:
            return self._converse(context, message)
        finally:
            sock.limit = None

    def _converse(self, context: _Exchange, message: bytes) -> _Exchange:
        """Entered BUSY. An interrupt may come anywhere: only the last line of the
        ``try`` says that the answer was read, and BUSY stays until it is known."""
        after = self._state.flags & ~BUSY
        try:
            if self._sock is None:
                after |= CLOSED
                raise InterfaceError("connection is closed")
            if after & (DIRTY | CLOSED):
                raise InterfaceError(
                    "connection is closed"
                    if after & CLOSED
                    else "connection is out of step with the server: an earlier call was "
                    "interrupted before its answer had been read"
                )
            if context.limit != math.inf:
                self._arm(context)
            after |= DIRTY
            self._sent = context.statement
            self._send(message)
            self._receive(context)
            after = self._flags()
            self._sent = ""
        finally:
            if context.limit != math.inf:
                self._disarm()
            self._state.leave(after | CLOSED if self._lost else after)
        error = context.take_error()
        if error is not None:
            try:
                raise error
            finally:
                del error  # or this frame and the traceback would keep each other
        return context

    def _arm(self, context: _Exchange) -> None:
        """From here on the deadline is in force."""
        sock = self._usock
        assert sock is not None
        if time.monotonic() >= context.limit and not _UNDO.match(context.statement or ""):
            raise DeadlineExceeded(
                "the deadline passed before the statement was sent", outcome="not_sent"
            )
        sock.overtime = functools.partial(self._overtime, context)
        sock.limit = context.limit

    def _disarm(self) -> None:
        sock = self._usock
        if sock is not None:
            sock.limit = sock.overtime = None

    def _flags(self) -> int:
        status = self._transaction_status
        flags = 0
        if status == IN_TRANSACTION:
            flags = TRANSACTION
        elif status == IN_FAILED_TRANSACTION:
            flags = TRANSACTION | FAILED
        if self._moved or self._session or self._statement_nums != self._born_statements:
            flags |= SESSION
        if self.notices or self.notifications or self._xid is not None:
            flags |= LOCAL
        if self._autocommit != self._born_autocommit or self._born_adapters is not None:
            flags |= LOCAL
        if self._refused:
            flags |= READONLY
        return flags

    def _send(self, message: bytes) -> None:
        sock = self._usock
        if sock is None:
            raise InterfaceError("connection is closed")
        try:
            sock.transmit(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            # Why it hung up may be waiting to be read. The traceback would keep the
            # callers' frames, and so their lease, as long as this connection lives.
            self._broken = self._broken or error.with_traceback(None)
        except LimitPassed:
            raise
        except (OSError, ValueError) as error:  # ValueError: closed by another thread
            raise self._dead() from (self._broken or error)

    def _dead(self) -> InterfaceError:
        self._lost = True
        return InterfaceError("network error")

    def _receive(self, context: _Exchange) -> None:
        """Read up to ReadyForQuery; errors wait in *context*."""
        read, handlers = self._sock.read, self.message_types
        code = None
        while code != READY_FOR_QUERY:
            try:
                code, size = _HEADER.unpack(read(5))
                data = read(size - 4)
            except LimitPassed:
                raise
            except struct.error:  # less than a header: the end
                raise self._dead() from self._broken
            except (OSError, ValueError) as error:
                raise self._dead() from (self._broken or error)
            if len(data) < size - 4:
                raise self._dead() from self._broken
            try:
                handlers[code](data, context)
            except Exception as error:
                if code != DATA_ROW:
                    raise
                # A converter failed. The other rows are read, not converted.
                context.input_funcs = ()
                if context.error is None:
                    context.error = error
            if context.sync_owed and code in (
                COMMAND_COMPLETE,
                ERROR_RESPONSE,
                EMPTY_QUERY_RESPONSE,
            ):
                context.sync_owed = False
                self._send(SYNC_MSG)

    # pg8000's senders; *serial* is that of the cursor's or statement's lease

    def execute_simple(self, statement: str, serial: int = 0) -> _Exchange:
        message = _message(QUERY, statement.encode(self._client_encoding) + b"\0")
        return self._exchange(_Exchange(statement), message, serial)

    def execute_unnamed(
        self,
        statement: str,
        vals: Any = (),
        oids: Any = (),
        stream: Any = None,
        serial: int = 0,
    ) -> _Exchange:
        context = _Exchange(statement, stream=stream)
        # A Sync sent ahead of COPY data is skipped by the server, unless the COPY has
        # failed by then: one answer or two. So with a stream it is sent afterwards.
        context.sync_owed = stream is not None
        context.sync_sent = stream is None
        message = b"".join(
            (
                self._parse(b"\0", statement, oids),
                self._bind(b"\0", make_params(self.py_types, vals)),
                _message(DESCRIBE, PORTAL + b"\0"),
                EXECUTE_MSG,
                FLUSH_MSG if context.sync_owed else SYNC_MSG,
            )
        )
        return self._exchange(context, message, serial)

    def prepare_statement(self, statement: str, oids: Any = (), serial: int = 0) -> Any:
        names = (f"pg8000_statement_{i}".encode() + b"\0" for i in count())
        context = _Exchange(statement)
        context.name = name = next(n for n in names if n not in self._statement_nums)
        message = self._parse(name, statement, oids or ())
        self._exchange(context, message + _message(DESCRIBE, STATEMENT + name) + SYNC_MSG, serial)
        return name, context.columns, context.input_funcs

    def execute_named(
        self,
        statement_name_bin: bytes,
        params: Any,
        columns: Any,
        input_funcs: Any,
        statement: str,
        serial: int = 0,
    ) -> _Exchange:
        context = _Exchange(columns=columns, input_funcs=input_funcs, statement=statement)
        context.sync_sent = True
        message = self._bind(statement_name_bin, params) + EXECUTE_MSG + SYNC_MSG
        return self._exchange(context, message, serial)

    def close_prepared_statement(self, statement_name_bin: bytes, serial: int = 0) -> None:
        context = _Exchange(None)
        context.name = statement_name_bin
        message = _message(CLOSE, STATEMENT + statement_name_bin) + SYNC_MSG
        self._exchange(context, message, serial)

    def _parse(self, name: bytes, statement: str, oids: Any) -> bytes:
        sql = statement.encode(self._client_encoding)
        types = b"".join(_INT(0 if oid == -1 else oid) for oid in oids)
        return _message(PARSE, name + sql + b"\0" + _SHORT(len(oids)) + types)

    def _bind(self, name: bytes, params: Any) -> bytes:
        parts = [b"\0", name, _SHORT(0), _SHORT(len(params))]
        for value in params:
            if value is None:
                parts.append(_NULL)
            else:
                data = value.encode(self._client_encoding)
                parts += (_INT(len(data)), data)
        parts.append(_SHORT(0))
        return _message(BIND, b"".join(parts))

    def close(self) -> None:
        sock = self._usock
        if sock is None:
            raise InterfaceError("connection is closed")
        if not self._started:  # pg8000 calls this when its start-up fails
            self._hang_up()
            return
        self._state.enter()
        try:
            if not self._state.flags & (DIRTY | CLOSED):
                sock.transmit(TERMINATE_MSG)
        except OSError as error:
            raise InterfaceError("network error") from error
        finally:
            self._hang_up()
            self._state.leave(self._state.flags & ~BUSY | CLOSED)

    def _hang_up(self, shutdown: bool = True) -> None:
        """Close the descriptor, now and for whoever is reading from it."""
        sock, self._usock, self._sock = self._usock, None, None
        if sock is not None:
            if shutdown:
                _shut(sock, socket.SHUT_RDWR)
            sock.close()

    def _closing(self) -> Generator[Wait, None, None]:
        """The steps of an orderly end; see :meth:`Driver.close`."""
        state = self._state
        try:
            yield -1, 0
            sock, flags = self._usock, state.flags
            if sock is None:
                return
            told = isinstance(self._broken, DatabaseError) or _END.match(self._sent or "")
            if flags & (BUSY | DIRTY) and not told:
                # Also when the connection is lost: the server may not know it yet.
                with contextlib.suppress(OSError, InterfaceError):
                    yield from self._cancelling()
            if flags & CLOSED:
                return
            if flags & BUSY:
                # Another thread is inside. Reading here would take bytes of its
                # answer, writing would end up in the middle of its message.
                _shut(sock, socket.SHUT_WR)
                yield sock.fileno(), 0  # both sides shut: POLLHUP, which needs no asking
                return
            sock.setblocking(False)
            if not flags & DIRTY:  # half a message may be out: do not complete it
                yield from stepwise(lambda: sock.send(TERMINATE_MSG), sock.fileno())
            _shut(sock, socket.SHUT_WR)
            while (yield from stepwise(lambda: sock.recv(65536), sock.fileno())):
                pass
        except (OSError, InterfaceError):
            pass  # broken: then there is nobody to wait for
        finally:
            self._hang_up()
            state.flags |= CLOSED

    def _cancelling(self) -> Generator[Wait, None, None]:
        """A CancelRequest over a connection of its own, encrypted if this one is."""
        key = self._backend_key_data
        if key is None:
            return
        sock = yield from self._redial()
        with sock:
            sock.send(_INT(len(key) + 8) + _INT(_CANCEL_REQUEST) + key)
            # The server hangs up once it has signalled the backend.
            while (yield from stepwise(lambda: sock.recv(1), sock.fileno())):
                pass

    def _settle(self) -> None:
        """Take the session as it is now for its state at birth."""
        self._session = self._moved = False
        self._born = dict(self.parameter_statuses)
        self._born_statements = frozenset(self._statement_nums)
        self._born_adapters = None
        self._state.flags &= ~SESSION

    def _await(self, timeout: float) -> bool:
        """Whether the server says anything within *timeout* seconds; reads nothing.

        What came along with the last answer is in the buffer, where no poll sees it.
        """
        sock = self._usock
        if sock is None:
            raise InterfaceError("connection is closed")
        sock.limit = time.monotonic() + timeout
        try:
            self._sock.peek(1)
        except LimitPassed:
            return False
        except OSError as error:
            raise self._dead() from (self._broken or error)
        finally:
            sock.limit = None
        return True

    def _last_word(self) -> str | None:
        """What an idle session's end has left to be read: see :meth:`Driver.last_word`."""
        sock = self._usock
        if sock is None:
            return None
        sock.limit = time.monotonic() + _PEEK
        try:
            said = self._sock.peek(1)
        except LimitPassed:
            return None
        except OSError:
            return ""
        finally:
            sock.limit = None
        if not said:
            return ""
        # A server that crashes says it in a notice.
        if said[:1] not in (ERROR_RESPONSE, NOTICE_RESPONSE):
            return None
        code = re.search(rb"\0C([0-9A-Z]{5})\0", said)
        return code[1].decode() if code else ""

    def _restore(self) -> None:
        self.notices.clear()
        self.notifications.clear()
        self._xid = None
        self._autocommit = self._born_autocommit
        if self._born_adapters is not None:
            self.py_types, self.pg_types = self._born_adapters
            self._born_adapters = None
        self._refused = False
        self._state.flags &= ~(LOCAL | READONLY)

    def register_out_adapter(self, typ: Any, out_func: Any) -> None:
        self._adapt()
        super().register_out_adapter(typ, out_func)

    def register_in_adapter(self, oid: int, in_func: Any) -> None:
        self._adapt()
        super().register_in_adapter(oid, in_func)

    def _adapt(self) -> None:
        """Adapters are for this lease; a hook's, taken for birth, are for all."""
        if self._born_adapters is None:
            self._born_adapters = self.py_types.copy(), self.pg_types.copy()
            self._state.flags |= LOCAL

    # What the server says

    def handle_ERROR_RESPONSE(self, data: bytes, context: Any) -> None:
        super().handle_ERROR_RESPONSE(data, context)
        said = context.error.args[0]
        if said.get("V") in ("FATAL", "PANIC"):
            self._broken = context.error
        elif said.get("C") == "25006":
            # A transaction that is read-only by its user's wish is no news of the server.
            now = self.parameter_statuses.get
            self._refused |= now("in_hot_standby") == "on" or (
                now("default_transaction_read_only") == "on" and not self._session
            )

    def handle_PARSE_COMPLETE(self, data: bytes, context: Any) -> None:
        if context.name is not None:
            self._statement_nums.add(context.name)

    def handle_CLOSE_COMPLETE(self, data: bytes, context: Any) -> None:
        self._statement_nums.discard(context.name)

    def handle_COMMAND_COMPLETE(self, data: bytes, context: Any) -> None:
        if data in _SESSION_TAGS and not _SET_LOCAL.match(context.statement):
            self._session = True
        super().handle_COMMAND_COMPLETE(data, context)
        context.completed = True

    def handle_PARAMETER_STATUS(self, data: bytes, context: Any) -> None:
        super().handle_PARAMETER_STATUS(data, context)
        self._moved = self.parameter_statuses != self._born

    def handle_NOTIFICATION_RESPONSE(self, data: bytes, context: Any) -> None:
        channel, payload, _ = data[4:].split(b"\0")
        encoding = self._client_encoding
        self.notifications.append(
            (
                int.from_bytes(data[:4], "big"),
                channel.decode(encoding, "replace"),
                payload.decode(encoding, "replace"),
            )
        )

    def handle_COPY_IN_RESPONSE(self, data: bytes, context: Any) -> None:
        if context.stream is None and context.sync_sent:
            raise InterfaceError(_NO_STREAM)  # one answer or two: see execute_unnamed
        chunks = _copy_chunks(context.stream, bool(data[0]), self._client_encoding)
        end = COPY_DONE_MSG
        while True:
            # Between two messages: what the stream raises breaks nothing.
            try:
                chunk = next(chunks, None)
            except Exception as error:
                context.stream_error = error
                end = _message(_COPY_FAIL, type(error).__name__.encode("utf8", "replace") + b"\0")
                break
            if context.overtime:  # the server may still be waiting for data
                end = _message(_COPY_FAIL, b"the deadline has passed\0")
                break
            if chunk is None or self._broken is not None:
                break
            self._send(_message(COPY_DATA, chunk))
        if context.sync_owed:
            context.sync_owed = False
            end += SYNC_MSG
        self._send(end)

    def handle_AUTHENTICATION_REQUEST(self, data: bytes, context: Any) -> None:
        request = int.from_bytes(data[:4], "big")
        required = self._channel_binding == "require"
        bound = self.auth is not None and self.auth.mechanism_name.endswith("-PLUS")
        if request not in (0, 3, 5, 10, 11, 12):
            raise Refused(f"server asks for authentication method {request}: not supported")
        if request in (3, 5, 10) and self.password is None:
            raise Refused("server asks for a password, and none is set")
        if request == 0 and self.auth is not None and not self._proved:
            raise Refused("server ended SCRAM authentication without proving itself")
        if required and (request not in (0, 10, 11, 12) or (request == 0 and not bound)):
            raise Refused("channel_binding=require, but the server asks for no channel binding")
        if request == 10:
            self._begin_scram(data[4:].split(b"\0"), required)
        else:
            super().handle_AUTHENTICATION_REQUEST(data, context)
            self._proved = request == 12

    def _begin_scram(self, offered: list[bytes], required: bool) -> None:
        binding = None
        if isinstance(self._usock, TLSSocket) and self._channel_binding != "disable":
            binding = _make_binding("tls-server-end-point", self._usock)
        known = [b"SCRAM-SHA-256-PLUS"] if binding else []
        if not required:
            known.append(b"SCRAM-SHA-256")
        assert self.password is not None
        mechanisms = [name.decode() for name in known if name in offered]
        if not mechanisms:
            raise Refused(
                "channel_binding=require, but the server or this connection cannot do it"
                if required
                else "server offers no authentication mechanism that is supported"
            )
        self.auth = scramp.ScramClient(
            mechanisms, self.user.decode(), self.password.decode(), channel_binding=binding
        )
        first = self.auth.get_client_first().encode()
        name = self.auth.mechanism_name.encode() + b"\0"
        self._send(_message(b"p", name + _INT(len(first)) + first))


class _Bound:
    """A connection as its cursors and statements see it: for one lease only."""

    __slots__ = ("con", "serial")

    def __init__(self, con: Connection) -> None:
        self.con = con
        # Born outside any lease, they belong to none: no lease has the number -1.
        self.serial = con._state.serial if con._state.serial & 1 else -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.con, name)

    def execute_simple(self, statement: str) -> _Exchange:
        return self.con.execute_simple(statement, self.serial)

    def execute_unnamed(
        self, statement: str, vals: Any = (), oids: Any = (), stream: Any = None
    ) -> _Exchange:
        return self.con.execute_unnamed(statement, vals, oids, stream, self.serial)

    def prepare_statement(self, statement: str, oids: Any = ()) -> Any:
        return self.con.prepare_statement(statement, oids, self.serial)

    def execute_named(
        self, name: bytes, params: Any, columns: Any, input_funcs: Any, statement: str
    ) -> _Exchange:
        return self.con.execute_named(name, params, columns, input_funcs, statement, self.serial)

    def close_prepared_statement(self, name: bytes) -> None:
        self.con.close_prepared_statement(name, self.serial)


_remembered = functools.lru_cache(256)(pg8000.native.to_statement)


def _to_statement(sql: str) -> Any:
    """pg8000's search for placeholders, a fifth of a short statement's time: done
    once for a text that is not too long to be kept."""
    return _remembered(sql) if len(sql) <= 4096 else pg8000.native.to_statement(sql)


class NativeConnection(Connection, pg8000.native.Connection):  # type: ignore[misc]
    """``pg8000.native.Connection``, safe to share."""

    _asked = -1
    """For which lease the last query was."""

    def run(self, sql: str, stream: Any = None, types: Any = None, **params: Any) -> Any:
        # Adapters may take their time, in which another thread gives the lease back.
        serial = self._state.serial
        if not params and stream is None:
            context = self.execute_simple(sql, serial)
        else:
            statement, make_vals = _to_statement(sql)
            oids = () if types is None else make_vals(defaultdict(lambda: None, types))
            context = self.execute_unnamed(statement, make_vals(params), oids, stream, serial)
        rows, self._context, self._asked = context.rows, context, serial
        # An idle connection must not keep its last result.
        context.rows = context.stream = None
        return rows

    @property
    def columns(self) -> Any:
        """Of the last query of this lease; another's are not its user's to see."""
        return super().columns if self._asked == self._state.serial else None

    @property
    def row_count(self) -> Any:
        """The same of its number of rows."""
        return super().row_count if self._asked == self._state.serial else None

    def prepare(self, sql: str) -> pg8000.native.PreparedStatement:
        if self._pooled:
            raise ConfigError(
                "prepare() cannot be used behind PgBouncer in transaction pooling: the next "
                "transaction may get another server session, which does not have the statement. "
                "Use run(): with parameters it is one round trip too. If PgBouncer pools "
                "sessions, or keeps prepared statements (from 1.21 on), set pgbouncer=False",
                setting="pgbouncer",
            )
        return pg8000.native.PreparedStatement(_Bound(self), sql)


class DBAPIConnection(Connection, pg8000.dbapi.Connection):  # type: ignore[misc]
    """``pg8000.dbapi.Connection``, safe to share."""

    @property
    def autocommit(self) -> bool:
        """False: the first statement begins a transaction."""
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        if self._started:
            self._state.enter()
            flags = self._state.flags & ~BUSY
            self._state.leave(flags | LOCAL if value != self._born_autocommit else flags)
        self._autocommit = value

    def cursor(self) -> Cursor:
        return Cursor(_Bound(self))


class Cursor(pg8000.dbapi.Cursor):  # type: ignore[misc]
    """``pg8000.dbapi.Cursor`` of one lease."""

    @property
    def connection(self) -> DBAPIConnection:
        bound = super().connection
        if bound is None:
            return None  # type: ignore[return-value]
        if bound.serial not in (-1, bound.con._state.serial):
            raise ConnectionReleased("the connection was given back to the pool")
        return bound.con  # type: ignore[no-any-return]
