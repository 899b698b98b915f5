"""What the pool asks of a driver, and nothing more.

A driver knows one kind of connection: how to dial it, what its wire is doing,
how to speak the few control statements the pool needs, how to close it. It
keeps no connection itself; the pool passes in the one it means.

**The state object.** Each connection is born with a :class:`ConnState` that the
driver writes and the core reads. ``flags == 0`` promises three things: nothing
is in flight, no transaction is open, and the session is as it was at birth. A
clean release reads that one integer and asks the driver nothing.

Flags (a bit set)::

    BUSY         a call is inside the connection right now
    DIRTY        an answer was not fully read: out of sync for ever, close it
    TRANSACTION  a transaction is open
    FAILED       the open transaction is aborted (always with TRANSACTION)
    SESSION      the server's session state changed; DISCARD ALL under "smart"
    LOCAL        client-side state to put back, no round trip (autocommit,
                 notices, notifications)
    CLOSED       closed, or known to be dead
    READONLY     the server refused a write: it is a standby, or read-only itself

``serial`` is odd while the connection is leased and even while the pool has it;
it grows by one at each change. A cursor remembers the serial of its birth, so
that one comparison answers "is my lease still on?".
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

__all__ = [
    "BUSY",
    "CLOSED",
    "DIRTY",
    "FAILED",
    "LOCAL",
    "READONLY",
    "SESSION",
    "TRANSACTION",
    "ConnState",
    "Driver",
    "Role",
    "Wait",
    "hang_up",
]

BUSY = 1
DIRTY = 2
TRANSACTION = 4
FAILED = 8
SESSION = 16
LOCAL = 32
CLOSED = 64
READONLY = 128

ConnT = TypeVar("ConnT")

Wait = tuple[int, int]
"""A file descriptor and the ``select.POLL*`` events to wait for on it."""


class ConnState(Protocol):
    """What a driver writes about its wire; implemented in the core."""

    flags: int
    serial: int
    deadline: float
    """On ``time.monotonic()``, until when the lease that is on may use the
    connection; ``math.inf`` for ever. The driver enforces it."""

    def enter(self, serial: int = 0) -> None:
        """Mark the connection BUSY before a byte is sent: test-and-set.

        *serial* is that of the cursor or statement used, 0 for the connection
        itself. Raises ``ConnectionReleased`` when no lease is on or *serial* is
        of an earlier one, ``ConnectionBusy`` when another call is inside.
        """

    def leave(self, flags: int) -> None:
        """Replace all flags, BUSY with them: the call is over."""

    def cancelling(self) -> None:
        """A cancel request is about to be sent."""

    def cancelled(self, proven: bool) -> None:
        """It has ended; *proven*: it cannot hit a later statement any more."""


class Role(NamedTuple):
    """What a server is, for ``target_session_attrs``."""

    standby: bool
    """In recovery: a hot standby."""
    read_only: bool
    """New transactions are read-only: on a standby, or by default."""


class Driver(Protocol[ConnT]):
    """One kind of connection. Implementations hold options, no connections.

    Methods may be called from any thread, but never two at a time for one
    connection, except :meth:`fileno`, :meth:`cancel` and :meth:`abandon`.

    Statements under a deadline (``ConnState.deadline``, or that of the context)
    raise ``DeadlineExceeded`` when it passes.
    """

    def connect(self, params: dict[str, Any], state: ConnState, deadline: float) -> ConnT:
        """Dial one host, authenticate, and return the connection, idle.

        *params* has libpq's names (``host``, ``port``, ``user``, ...) for one
        host. *deadline* is on ``time.monotonic()`` and bounds the whole attempt;
        past it, ``TimeoutError``. Any exception leaves nothing open.
        """

    def fileno(self, conn: ConnT) -> int:
        """The socket to poll for death, -1 when there is none."""

    def encryption(self, conn: ConnT) -> Literal["none", "unverified", "verified"]:
        """Whether *conn* is encrypted, and whether the server proved who it is."""

    def role(self, conn: ConnT) -> Role:
        """What the server is now; a round trip only if it has not said so itself."""

    def idle_limit(self, conn: ConnT) -> float | None:
        """Seconds after which the server ends an idle session; ``None``: never.
        One round trip, in which a pooler is found that did not look like one."""

    def pooled(self, conn: ConnT) -> bool:
        """True behind a pooler that lends out a server session per transaction, as far
        as is known now. ``params["pgbouncer"]`` at :meth:`connect` decides, if it is
        not ``None``."""

    def is_permanent(self, error: BaseException) -> bool:
        """True when dialling again would fail the same way (a wrong password)."""

    def sqlstate(self, error: BaseException) -> str | None:
        """The SQLSTATE that *error* carries, if the server sent one."""

    def control(self, conn: ConnT, sql: str, timeout: float | None = None) -> None:
        """Run one parameterless statement (BEGIN, COMMIT, SAVEPOINT, ...), its
        answer read, in one round trip. After *timeout* seconds without,
        ``TimeoutError``; it takes the place of the deadline in force."""

    def ping(self, conn: ConnT, timeout: float) -> None:
        """One round trip, at most *timeout* seconds; any exception means dead.
        Afterwards there is no transaction that was not there before."""

    def last_word(self, conn: ConnT) -> str | None:
        """The SQLSTATE with which the server ended *conn*, read or still to be read;
        empty when it went without a word; ``None`` when it did not end it, as far as
        is known. Does not wait."""

    def restore(self, conn: ConnT) -> None:
        """Put client-side state back as at birth (LOCAL, READONLY); no round trip."""

    def rebase(self, conn: ConnT) -> None:
        """Take the session as it is now for its state at birth: clears SESSION."""

    def discard(self, conn: ConnT, timeout: float) -> None:
        """``DISCARD ALL`` and :meth:`restore`: the session as at birth.
        ``TimeoutError`` after *timeout* seconds."""

    def cancel(self, conn: ConnT, deadline: float) -> bool:
        """Have the server cancel what *conn* runs, without touching its wire; may be
        called by any thread. Returns when the server has been told, at the latest at
        *deadline* (on ``time.monotonic()``, then ``TimeoutError``): True when a
        statement sent later can surely not be hit."""

    def listen(self, conn: ConnT, channel: str) -> None:
        """Subscribe the session to *channel*, a name to be taken literally."""

    def notifications(self, conn: ConnT, timeout: float) -> list[tuple[int, str, str]]:
        """Wait at most *timeout* seconds for notifications: ``(pid, channel,
        payload)`` in the order they were sent; empty when none came."""

    def close(self, conn: ConnT) -> Generator[Wait, None, None]:
        """Close in steps that never block: a generator.

        Each step yields what it waits for (a descriptor of -1: only for time to
        pass). It ends when the server has closed
        its side. Closing the generator early gives up and drops the socket.
        A connection whose query may still run is cancelled first.
        """

    def abandon(self, conn: ConnT) -> None:
        """Drop the socket without a word to the server (a forked child)."""

    def forked(self) -> None:
        """In a forked child, before :meth:`abandon` of each connection: other
        threads are gone, with what they had locked, and what they were dialling is
        the parent's. Drop the sockets of it without a word."""


def hang_up(driver: Driver[ConnT], conn: ConnT) -> None:
    """Close *conn* at once: say goodbye, and do not wait for the server's side."""
    steps = driver.close(conn)
    next(steps, None)
    steps.close()
