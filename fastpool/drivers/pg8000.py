"""The two drivers: pg8000's connections for a pool.

:class:`Native` and :class:`DBAPI` know how to dial, what an error means and what the
pool may ask of a connection; what a connection does on the wire is in ``_wire``.
"""

from __future__ import annotations

import functools
import math
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from typing import Any, Generic, Literal, TypeVar

from pg8000.converters import identifier
from pg8000.core import scramp
from pg8000.exceptions import DatabaseError, InterfaceError

from .._secrets import Params, SecretBytes, bare
from ..errors import ConfigError, causes
from ._socket import (
    TLS,
    Endpoint,
    Refused,
    Socket,
    TLSFailed,
    TLSSocket,
    dial,
    drive,
    drop_all,
    resolve,
)
from ._tls import ATTEMPTS, Contexts, sslmode
from ._wire import Connection, DBAPIConnection, NativeConnection
from .base import CLOSED, ConnState, Role, Wait

__all__ = ["DBAPI", "DBAPIConnection", "Native", "NativeConnection"]

ConnT = TypeVar("ConnT", bound=Connection)


_ANSWER = 5.0
"""Seconds for a server to answer what it need not think about."""

_MAX_PID = 2**22
"""The largest process id of Linux (PID_MAX_LIMIT); other systems stay far below."""

_IDLE_LIMIT = (
    "SELECT pg_backend_pid(), (SELECT setting FROM pg_settings WHERE name = 'idle_session_timeout')"
)

_POOLER_BUSY = (
    "client_login_timeout",
    "query_wait_timeout",
    "pgbouncer cannot connect",
    "no more connections allowed",
    "client connections exceeded",
    "server login has been failing",
    "server shutting down",
    "pooler is shutting down",
    "admin forced disconnect",
    "bouncer resources exhaustion",
    "no memory",
    "out of memory",
    # The server's, which PgBouncer before 1.20 passes on without their SQLSTATE.
    "the database system is",
    "sorry, too many clients",
    "remaining connection slots",
    "too many connections for",
)
"""How those messages of PgBouncer begin that tell of a passing trouble."""


class _Driver(Generic[ConnT]):
    """What both drivers share; see :class:`fastpool.drivers.base.Driver`."""

    _connection: type[ConnT]

    def __init__(self) -> None:
        self._contexts = Contexts()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def connect(self, params: Mapping[str, Any], state: ConnState, deadline: float) -> ConnT:
        """Dial one host; see :meth:`Driver.connect`.

        A name may have several addresses. They are tried in turn, each with an equal
        share of the time that is left, and the last one's error is raised. An
        ErrorResponse ends the search, unless it says "not now" (57P03).

        *params* may hold ``session_settings``, a mapping of server settings. They
        travel in the start-up packet, so they cost no round trip and are what
        ``RESET`` and ``DISCARD ALL`` go back to. ``password`` may be a callable.
        ``cancel_budget``: see :class:`fastpool.PoolConfig`; 0 if it is not there.

        Raises ``DatabaseError`` with the server's words, ``InterfaceError``,
        ``TimeoutError``, ``ConfigError``.
        """
        start = _startup(params)
        endpoints = resolve(params, deadline)
        encrypt = ATTEMPTS[sslmode(params)]
        if endpoints[0].family == socket.AF_UNIX:
            encrypt = (False,)  # as in libpq, whatever sslmode says
        tls = self._contexts.tls(params) if True in encrypt else None
        ways = [tls if wanted else None for wanted in encrypt]
        for untried in range(len(endpoints), 0, -1):
            now = time.monotonic()
            limit = now + (deadline - now) / untried
            endpoint = endpoints[-untried]
            attempt = functools.partial(self._attempt, params, start, state, endpoint, limit)
            try:
                return self._first_of(ways, attempt)
            except (InterfaceError, TimeoutError) as error:
                if untried == 1 or isinstance(error, Refused):
                    raise
            except DatabaseError as error:
                if untried == 1 or self.sqlstate(error) != "57P03":
                    raise
        raise AssertionError("a host has at least one address")

    def _first_of(self, ways: list[TLS | None], attempt: Callable[[TLS | None], ConnT]) -> ConnT:
        """Encrypted or not, in sslmode's order.

        As in libpq the second way is tried when the server refuses the first: in the
        handshake, or while authenticating (``pg_hba.conf`` may want it the other way).
        """
        if len(ways) == 1:
            return attempt(ways[0])
        try:
            return attempt(ways[0])
        except (TLSFailed, DatabaseError) as error:
            code = self.sqlstate(error) or "28"
            if code[:2] != "28" and code != "08P01":
                raise
            first = error
        try:
            return attempt(ways[1])
        except DatabaseError:
            # "no encryption" would hide why the encrypted way failed.
            if ways[1] is None and isinstance(first, DatabaseError):
                raise first from None
            raise

    def _attempt(
        self,
        params: Mapping[str, Any],
        start: Mapping[str, Any],
        state: ConnState,
        endpoint: Endpoint,
        limit: float,
        tls: TLS | None,
    ) -> ConnT:
        where = f"{params.get('host') or params.get('hostaddr') or 'localhost'}"
        sock: Socket | TLSSocket | None = None
        try:
            sock = drive(dial(endpoint, tls), limit)
            sock.setblocking(True)
            sock.limit = None if limit == math.inf else limit
            binding = params.get("channel_binding") or "prefer"
            conn = self._connection(state, sock, binding, **start)
            sock.limit = None
        except BaseException as error:
            if sock is not None:
                sock.close()
            bare(error)  # frames of pg8000 and scramp have the password in their locals
            if isinstance(error, DatabaseError) or not isinstance(error, Exception):
                raise error  # not a bare raise, which would bring them back
            if time.monotonic() >= limit:
                raise TimeoutError(f"connecting to {where} took too long") from error
            if isinstance(error, InterfaceError):
                raise error
            if isinstance(error, scramp.ScramException):
                raise Refused(f"SCRAM authentication failed: {error}") from error
            if isinstance(error, OSError):
                raise InterfaceError(f"cannot connect to {where}: {error}") from error
            raise InterfaceError(f"{where} does not speak PostgreSQL's protocol") from error
        conn._tls = tls if isinstance(sock, TLSSocket) else None
        conn._pooled = params.get("pgbouncer")
        if conn._pooled is None and not _is_process_id(_key_id(conn)):
            conn._pooled = True
        conn._redial = functools.partial(dial, endpoint, conn._tls)
        conn._cancel_budget = params.get("cancel_budget") or 0.0
        state.leave(0)
        return conn

    def fileno(self, conn: ConnT) -> int:
        return -1 if conn._usock is None else conn._usock.fileno()

    def encryption(self, conn: ConnT) -> Literal["none", "unverified", "verified"]:
        """Whether *conn* is encrypted, and whether the server proved who it is."""
        if conn._tls is None:
            return "none"
        return "verified" if conn._tls.verified else "unverified"

    def is_permanent(self, error: BaseException) -> bool:
        """Wrong credentials, names, settings or certificates; what TLS rules out.

        PgBouncer says 08P01 whatever it refuses; what passes is told by the words.
        """
        code = self.sqlstate(error)
        if code == "08P01":
            return not _said(error).get("M", "").startswith(_POOLER_BUSY)
        if code is not None:
            return code[:2] in ("0A", "22", "28", "3D", "42") or code == "55P02"
        return any(isinstance(e, (Refused, ValueError, TypeError)) for e in causes(error))

    def sqlstate(self, error: BaseException) -> str | None:
        code: str | None = _said(error).get("C")
        return code

    def control(self, conn: ConnT, sql: str, timeout: float | None = None) -> None:
        conn._command(sql, timeout)

    def ping(self, conn: ConnT, timeout: float) -> None:
        conn._command("", timeout)

    def last_word(self, conn: ConnT) -> str | None:
        if isinstance(conn._broken, DatabaseError):
            return self.sqlstate(conn._broken) or ""
        return "" if conn._lost else conn._last_word()

    def restore(self, conn: ConnT) -> None:
        conn._restore()

    def rebase(self, conn: ConnT) -> None:
        conn._settle()

    def discard(self, conn: ConnT, timeout: float) -> None:
        conn._command("DISCARD ALL", timeout)
        conn._statement_nums.clear()
        conn._restore()
        conn._settle()

    def role(self, conn: ConnT) -> Role:
        said = conn.parameter_statuses
        if "in_hot_standby" in said:  # from PostgreSQL 14 on
            standby = said["in_hot_standby"] == "on"
            return Role(standby, standby or said["default_transaction_read_only"] == "on")
        sql = "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')"
        [[standby, by_default]] = conn._command(sql, _ANSWER).rows
        return Role(standby, standby or by_default == "on")

    def idle_limit(self, conn: ConnT) -> float | None:
        """``idle_session_timeout``, which servers have from PostgreSQL 14 on. Behind a
        pooler the idle sessions are not ours."""
        [[pid, setting]] = conn._command(_IDLE_LIMIT, _ANSWER).rows
        if conn._pooled is None:
            conn._pooled = _key_id(conn) not in (None, pid)
        return None if conn._pooled or setting is None else int(setting) / 1000 or None

    def pooled(self, conn: ConnT) -> bool:
        """Behind PgBouncer in transaction pooling, or what may be that.

        The id in the key that a server gives out for cancel requests is its process's.
        Poolers draw the key at random: in PgBouncer one in a thousand looks like an id
        of Linux, one in 128 where it has peers. :meth:`idle_limit` asks for certain.
        """
        return bool(conn._pooled)

    def listen(self, conn: ConnT, channel: str) -> None:
        # pg8000 keeps a hundred: a listener must not lose the others.
        conn.notifications = deque(conn.notifications)
        conn._command(f"LISTEN {identifier(channel)}", _ANSWER)

    def notifications(self, conn: ConnT, timeout: float) -> list[tuple[int, str, str]]:
        if not conn.notifications and conn._await(timeout):
            # They are read ahead of the answer to a statement, so that whole messages
            # are read and a broken connection is told from a silent one.
            conn._command("", _ANSWER)
        received = list(conn.notifications)
        conn.notifications.clear()
        return received

    def close(self, conn: ConnT) -> Generator[Wait, None, None]:
        steps = conn._closing()
        next(steps)  # once it has begun, its end closes the socket, whatever ends it
        return steps

    def cancel(self, conn: ConnT, deadline: float) -> bool:
        """See :meth:`Driver.cancel`. Raises ``OSError`` (``TimeoutError``) or
        ``InterfaceError``."""
        drive(conn._cancelling(), deadline)
        return not conn._pooled

    def abandon(self, conn: ConnT) -> None:
        conn._hang_up(shutdown=False)
        conn._state.leave(CLOSED)

    def forked(self) -> None:
        drop_all()


class Native(_Driver[NativeConnection]):
    """``pg8000.native`` connections: ``conn.run("... :name", name=value)``."""

    _connection = NativeConnection


class DBAPI(_Driver[DBAPIConnection]):
    """``pg8000.dbapi`` connections, as PEP 249 has them.

    *autocommit*: what each connection starts with, and is put back to.
    """

    _connection = DBAPIConnection

    def __init__(self, autocommit: bool = False) -> None:
        super().__init__()
        self.autocommit = autocommit

    def __repr__(self) -> str:
        return f"DBAPI(autocommit={self.autocommit})"

    def connect(
        self, params: Mapping[str, Any], state: ConnState, deadline: float
    ) -> DBAPIConnection:
        conn = super().connect(params, state, deadline)
        conn._autocommit = conn._born_autocommit = self.autocommit
        return conn


def _said(error: BaseException) -> dict[str, str]:
    """The fields of the server's error, if it sent one."""
    for cause in causes(error):
        if isinstance(cause, DatabaseError) and cause.args and isinstance(cause.args[0], dict):
            fields: dict[str, str] = cause.args[0]
            return fields
    return {}


def _key_id(conn: Connection) -> int | None:
    key = conn._backend_key_data
    return None if key is None else int.from_bytes(key[:4], "big", signed=True)


def _is_process_id(number: int | None) -> bool:
    return number is None or 0 < number <= _MAX_PID


def _startup(params: Mapping[str, Any]) -> dict[str, Any]:
    """pg8000's arguments: the start-up packet and the password."""
    settings = {
        "options": params.get("options"),
        "client_encoding": params.get("client_encoding"),
        "application_name": params.get("application_name")
        or params.get("fallback_application_name"),
        **(params.get("session_settings") or {}),
    }
    for name in ("user", "database", "replication"):
        if name in settings:
            raise ConfigError(f"{name} is no session setting", setting="session_settings")
    if settings["client_encoding"] == "auto":
        settings["client_encoding"] = "UTF8"
    packet = {"user": params.get("user"), "database": params.get("dbname"), **settings}
    if not packet["user"]:
        raise ConfigError("user is missing", setting="user")
    for name, value in packet.items():
        # Either would end the packet's entry early, and begin another.
        if not name or "\0" in name or "\0" in str(value):
            raise ConfigError(f"{name!r} is empty or contains a NUL character", setting=name)
    password = _password(params)
    if password is not None and 0 in password:
        raise ConfigError("password is not text, or contains a NUL character", setting="password")
    return Params(
        user=packet.pop("user"),
        database=packet.pop("database") or None,
        application_name=packet.pop("application_name"),
        password=password,
        startup_params={k: str(v) for k, v in packet.items() if v is not None},
    )


def _password(params: Mapping[str, Any]) -> SecretBytes | None:
    """Encoded here, where it cannot end up in the arguments of an encoding error, nor
    in a frame that raises; a NUL for what is no text."""
    value = params.get("password")
    if callable(value):
        value = value()
    if not value:
        return None
    try:
        return SecretBytes((value.decode() if isinstance(value, bytes) else value).encode())
    except (UnicodeError, AttributeError):
        return SecretBytes(b"\0")
