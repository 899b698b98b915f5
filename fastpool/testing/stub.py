"""A driver that opens nothing, for testing a pool's own behaviour.

Every step can be delayed, held at a gate, or made to fail; everything is
counted. Its connections keep the same state object as real ones, so the pool
asks them for status and in-flight state just the same::

    driver = StubDriver(connect_delay=0.05)
    driver.fail("connect", ConnectionRefusedError(), times=3)
    with Pool(driver=driver, max_size=2) as pool: ...
"""

from __future__ import annotations

import itertools
import math
import select
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Generator
from typing import Any, Literal

from .._deadline import current as deadline
from ..drivers.base import (
    BUSY,
    CLOSED,
    DIRTY,
    FAILED,
    LOCAL,
    READONLY,
    SESSION,
    TRANSACTION,
    ConnState,
    Role,
    Wait,
)
from ..errors import DeadlineExceeded

__all__ = ["StubConnection", "StubDriver", "StubError"]

Step = Literal["connect", "control", "ping", "restore", "discard", "cancel", "close"]


class StubError(Exception):
    """What a scripted failure raises by default."""


class StubConnection:
    """A connection to nothing. ``run`` understands a few words of SQL."""

    def __init__(self, driver: StubDriver, state: ConnState, number: int) -> None:
        self.driver = driver
        self.number = number
        """1 for the first connection made, 2 for the second, ..."""
        self.closed = False
        self.pooled = False
        """Behind a pooler that lends server sessions out."""
        self.last_word: str | None = None
        """What the server said at its end: an SQLSTATE, empty for nothing."""
        self.statements: list[str] = []
        """All that was run on it, by the user and by the pool."""
        self._state = state

    def run(self, sql: str) -> str:
        """Run *sql*: BEGIN, COMMIT, ROLLBACK, SAVEPOINT, SET and NOTICE do to
        the state what they do on a server, FAIL raises ``StubError`` as an error
        of the server would, LOSE raises it with the connection out of sync, and
        so does WRITE where the driver's ``server_role`` is read-only."""
        self._state.enter()
        if time.monotonic() >= min(self._state.deadline, deadline()):
            self._state.leave(self._state.flags & ~BUSY)
            raise DeadlineExceeded("the deadline passed before the statement", outcome="not_sent")
        return self._run(sql)

    def _run(self, sql: str) -> str:
        state = self._state
        self.statements.append(sql)
        flags = state.flags & ~BUSY
        word = sql.split()[0].upper() if sql else ""
        if self.closed or word == "LOSE":
            state.leave(DIRTY | (CLOSED if self.closed else 0))
            raise StubError("connection lost")
        if word == "WRITE" and self.driver.server_role.read_only:
            state.leave(flags | READONLY)
            raise StubError("read-only")
        if word == "FAIL":
            state.leave(flags | FAILED if flags & TRANSACTION else flags)
            raise StubError("statement failed")
        if word == "BEGIN":
            flags |= TRANSACTION
        elif word in ("COMMIT", "ROLLBACK"):
            flags &= ~FAILED if sql.upper().startswith("ROLLBACK TO") else ~(TRANSACTION | FAILED)
        elif word == "SET":
            flags |= SESSION
        elif word == "NOTICE":
            flags |= LOCAL
        state.leave(flags)
        return sql

    def close(self) -> None:
        """Close it; for one that was detached from its pool."""
        self.driver.abandon(self)

    def kill(self, word: str = "57P01") -> None:
        """The server ends the session with the SQLSTATE *word*, or without a word;
        the pool's next look finds it dead."""
        self.closed = True
        self.last_word = word
        self.driver._silence(self)

    def __repr__(self) -> str:
        return f"<StubConnection {self.number}{' closed' if self.closed else ''}>"


class StubDriver:
    """A driver whose connections are :class:`StubConnection`.

    *connect_delay*, *control_delay*, *ping_delay* are seconds that the step
    takes; those of other steps are set in ``delays``. A dial, a ping and the rollback
    of a return end with ``TimeoutError`` when their time is up. With
    *sockets* each connection has a real socket to poll, so that
    :meth:`StubConnection.kill` is noticed as a real server's close is.
    """

    def __init__(
        self,
        connect_delay: float = 0.0,
        *,
        control_delay: float = 0.0,
        ping_delay: float = 0.0,
        sockets: bool = False,
    ) -> None:
        self.delays: dict[str, float] = {
            "connect": connect_delay,
            "control": control_delay,
            "ping": ping_delay,
        }
        self.sockets = sockets
        self.server_role = Role(standby=False, read_only=False)
        self.behind_pooler = False
        """What new connections find out, unless they are told."""
        self.idle_session_timeout: float | None = None
        """What the server's setting of that name is, in seconds."""
        self.counts: Counter[str] = Counter()
        """How often each step was begun."""
        self.connections: list[StubConnection] = []
        """All connections made."""
        self.open_now = 0
        self.most_open = 0
        """The most connections that were open at the same time, a dial
        included from its begin and a close until its end."""
        self.params: list[dict[str, Any]] = []
        """What each dial was given."""
        self.gates: dict[str, threading.Event] = {}
        """``gates["connect"] = Event()`` holds dials until the event is set."""
        self._script: dict[str, deque[BaseException]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._open: set[StubConnection] = set()
        self._pairs: dict[StubConnection, tuple[socket.socket, socket.socket]] = {}

    def fail(self, step: Step, error: BaseException | None = None, *, times: int = 1) -> None:
        """The next *times* calls of *step* raise *error*. One with a true
        ``permanent`` attribute is permanent."""
        script = self._script.setdefault(step, deque())
        script.extend([StubError(f"scripted {step}") if error is None else error] * times)

    def heal(self) -> None:
        """Forget all failures that have not happened yet."""
        self._script.clear()

    def _step(self, step: str, limit: float = math.inf) -> None:
        """One step, which may last until the time *limit*."""
        with self._lock:
            self.counts[step] += 1
        delay = self.delays.get(step, 0.0)
        if delay:
            time.sleep(max(0.0, min(delay, limit - time.monotonic())))
        gate = self.gates.get(step)
        if gate is not None:
            gate.wait(None if limit == math.inf else max(0.0, limit - time.monotonic()))
        if time.monotonic() >= limit:
            raise TimeoutError(f"{step} took too long")
        try:
            error = self._script[step].popleft()
        except (KeyError, IndexError):
            return
        raise error

    # -- the driver protocol ---------------------------------------------------

    def connect(self, params: dict[str, Any], state: ConnState, deadline: float) -> StubConnection:
        with self._lock:
            self.open_now += 1
            self.most_open = max(self.most_open, self.open_now)
        self.params.append(params)
        try:
            self._step("connect", deadline)
        except BaseException:
            with self._lock:
                self.open_now -= 1
            raise
        conn = StubConnection(self, state, next(self._numbers))
        told = params.get("pgbouncer")
        conn.pooled = self.behind_pooler if told is None else told
        if self.sockets:
            self._pairs[conn] = socket.socketpair()
        self._open.add(conn)
        self.connections.append(conn)
        return conn

    def fileno(self, conn: StubConnection) -> int:
        pair = self._pairs.get(conn)
        return -1 if pair is None else pair[0].fileno()

    def encryption(self, conn: StubConnection) -> Literal["none"]:
        return "none"

    def role(self, conn: StubConnection) -> Role:
        return self.server_role

    def idle_limit(self, conn: StubConnection) -> float | None:
        return self.idle_session_timeout

    def pooled(self, conn: StubConnection) -> bool:
        return conn.pooled

    def is_permanent(self, error: BaseException) -> bool:
        return bool(getattr(error, "permanent", False))

    def sqlstate(self, error: BaseException) -> str | None:
        return getattr(error, "sqlstate", None)

    def control(self, conn: StubConnection, sql: str, timeout: float | None = None) -> None:
        limit = math.inf if timeout is None else time.monotonic() + timeout
        try:
            self._step("control", limit)
        except TimeoutError:
            conn._state.leave(DIRTY)
            raise
        conn._run(sql)

    def ping(self, conn: StubConnection, timeout: float) -> None:
        try:
            self._step("ping", time.monotonic() + timeout)
        except BaseException:
            conn._state.leave(DIRTY)
            raise
        if conn.closed:
            conn._state.leave(CLOSED)
            raise StubError("connection lost")

    def last_word(self, conn: StubConnection) -> str | None:
        return conn.last_word

    def restore(self, conn: StubConnection) -> None:
        self._step("restore")
        conn._state.leave(conn._state.flags & ~(LOCAL | READONLY))

    def rebase(self, conn: StubConnection) -> None:
        conn._state.leave(conn._state.flags & ~SESSION)

    def discard(self, conn: StubConnection, timeout: float) -> None:
        self._step("discard", time.monotonic() + timeout)
        conn._run("DISCARD ALL")
        conn._state.leave(conn._state.flags & ~(SESSION | LOCAL))

    def cancel(self, conn: StubConnection, deadline: float) -> bool:
        self._step("cancel", deadline)
        return True

    def listen(self, conn: StubConnection, channel: str) -> None:
        conn._run(f"LISTEN {channel}")

    def notifications(self, conn: StubConnection, timeout: float) -> list[tuple[int, str, str]]:
        if conn.closed:
            raise StubError("connection lost")
        time.sleep(timeout)
        return []

    def close(self, conn: StubConnection) -> Generator[Wait, None, None]:
        near, far = socket.socketpair()
        try:
            gate = self.gates.get("close")
            if gate is not None:
                threading.Thread(
                    target=_close_after, args=(gate, far), name="stub-close", daemon=True
                ).start()
                yield near.fileno(), select.POLLIN
            self._step("close")
        finally:
            near.close()
            far.close()
            self.abandon(conn)

    def abandon(self, conn: StubConnection) -> None:
        conn.closed = True
        for end in self._pairs.pop(conn, ()):
            end.close()
        conn._state.leave(conn._state.flags | CLOSED)
        with self._lock:
            if conn in self._open:
                self._open.discard(conn)
                self.open_now -= 1

    def forked(self) -> None:
        self._lock = threading.RLock()

    def _silence(self, conn: StubConnection) -> None:
        pair = self._pairs.get(conn)
        if pair is not None:
            pair[1].close()


def _close_after(gate: threading.Event, end: socket.socket) -> None:
    gate.wait()
    end.close()
