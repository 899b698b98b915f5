"""Every error the pool itself raises.

The driver's own errors (``pg8000.DatabaseError`` and its kin) pass through
untouched; what is listed here is what the *pool* has to say. Each class carries
its facts as attributes, so that a handler never has to parse a message, and
chains its cause.

Roots by fault: ``ConfigError`` is the programmer's, ``ConnectionReleased`` and
``ConnectionBusy`` a misuse of one connection, the others are about the state of
the pool or of the database.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

__all__ = [
    "ConfigError",
    "ConnectFailed",
    "ConnectionBusy",
    "ConnectionReleased",
    "DeadlineExceeded",
    "PoolClosed",
    "PoolDeadlock",
    "PoolError",
    "PoolTimeout",
    "TooManyRequests",
    "TransactionAborted",
]

Outcome = Literal["not_sent", "cancelled", "rolled_back", "unknown"]
Verdict = Literal["leaked", "too small", "database slow", "database down"]


class PoolError(Exception):
    """Base of all errors raised by fastpool."""


class PoolClosed(PoolError):
    """The pool is closed, or was closed while the caller waited."""


class PoolTimeout(PoolError, TimeoutError):
    """No connection became available in time.

    The text says why in one line: the verdict, who has the connections, who waits,
    and what became of the last attempts to connect.
    ``__cause__`` is the last connect error, if it is newer than the last
    successful connect: then the database is the trouble, not the pool's size.
    """

    def __init__(
        self,
        message: str,
        *,
        timeout: float | None = None,
        waited: float | None = None,
        size: int | None = None,
        idle: int | None = None,
        waiting: int | None = None,
        holders: tuple[object, ...] = (),
        verdict: Verdict | None = None,
        facts: object = None,
    ) -> None:
        super().__init__(message)
        self.timeout = timeout
        """The limit that passed, in seconds."""
        self.waited = waited
        """How long the caller really waited, in seconds."""
        self.size = size
        """Connections of the pool at that moment, in any state."""
        self.idle = idle
        """Idle connections at that moment."""
        self.waiting = waiting
        """Callers still waiting after this one gave up."""
        self.holders = holders
        """Who had the connections then: ``Holder`` objects, the longest first."""
        self.verdict = verdict
        """Why there was none. ``"leaked"``: one is held for nothing, or its thread has
        ended. ``"too small"``: they come back and go out again. ``"database slow"``:
        most are in a call that has run for most of the wait. ``"database down"``: none
        is established, or new ones are lacking and fail. ``None``: not known."""
        self.facts = facts
        """All that was known then: a ``fastpool.stats.Facts``."""


class PoolDeadlock(PoolTimeout):
    """Every connection is held by a thread that itself waits in this pool.

    Raised at once, or after half a second while one of the connections has not been
    used yet, in the thread whose wait has closed the circle, as the ``deadlock``
    setting says; the others go on when it has given back what it holds. The text names
    where each acquired and where it waits; ``facts.waiters`` are these threads.
    """


class TooManyRequests(PoolError):
    """``max_waiting`` callers wait already; this one was refused at once."""

    def __init__(
        self,
        message: str,
        *,
        size: int | None = None,
        idle: int | None = None,
        waiting: int | None = None,
        max_waiting: int | None = None,
    ) -> None:
        super().__init__(message)
        self.size = size
        """Connections of the pool at that moment, in any state."""
        self.idle = idle
        """Idle connections at that moment."""
        self.waiting = waiting
        """Callers who waited."""
        self.max_waiting = max_waiting
        """The limit on them."""


class ConnectFailed(PoolError):
    """A connection could not be made, and waiting longer would not help.

    The text is the server's own; ``__cause__`` is the driver's error.
    """

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        """The five-character SQLSTATE, where the server gave one."""


class DeadlineExceeded(PoolError, TimeoutError):
    """A deadline passed before the work was done."""

    def __init__(self, message: str, *, outcome: Outcome = "unknown") -> None:
        super().__init__(message)  # the default is for pickle, which sets the true one
        self.outcome = outcome
        """``not_sent``: nothing reached the server. ``cancelled``: the server
        confirmed the cancel, nothing was done. ``unknown``: it may have run."""


class TransactionAborted(PoolError):
    """A block ended well, but its transaction was not (known to be) committed."""

    def __init__(self, message: str, *, outcome: Outcome = "rolled_back") -> None:
        super().__init__(message)
        self.outcome = outcome
        """``rolled_back``: an earlier statement had failed, so the server could
        only roll back. ``unknown``: COMMIT was sent and no answer came, or the
        connection was lost before, in a statement whose error the block kept."""


class ConnectionReleased(PoolError):
    """A connection, cursor or statement was used after its release."""


class ConnectionBusy(PoolError):
    """Two threads used one connection at the same time."""


class ConfigError(PoolError, ValueError):
    """A setting or a connection string is wrong; the text names which part."""

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting
        """The setting, parameter or variable that is wrong, where it is one."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """*error* and its ``__cause__``, and so on, from the outside in."""
    seen: set[int] = set()  # nothing keeps a user from closing the ring
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def seconds(name: str, value: object, zero: str) -> float:
    """*value*, a time limit; *zero* says what 0 means. Raises ``ConfigError``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise not_seconds(name, value, zero)
    return value


def not_seconds(name: str, value: object, zero: str) -> ConfigError:
    """The error for an argument that is no time limit; *zero* says what 0 means."""
    return ConfigError(
        f"{name}: expected seconds >= 0 (0 = {zero}, math.inf = no limit), not {value!r}",
        setting=name,
    )


for _name in __all__:
    # Tracebacks and pickles name the public place.
    globals()[_name].__module__ = "fastpool"
