"""What the pool knows of itself, as one consistent snapshot."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["BUCKETS", "SHORT", "Facts", "Holder", "PoolStats", "Waiting", "bucket"]

Activity = Literal["active", "idle in transaction", "idle"]

_NOT_THE_USERS = sys.stdlib_module_names | {"fastpool", "pg8000", "scramp"}

BUCKETS = 40
"""Of a histogram of durations: bucket n counts those below 2**n microseconds."""
SHORT = 10
"""The bucket of all uses below a millisecond."""


def bucket(seconds: float) -> int:
    """Which one counts a duration."""
    return min(int(seconds * 1e6).bit_length(), BUCKETS - 1)


# Before Python 3.12 a garbage collection while other threads' frames are looked at can
# end in a deadlock of the interpreter (in sys._current_frames(), which holds a lock of
# the runtime's while finalizers run), or in a crash (in f_back: a finalizer lets that
# thread go on, and return from the frame that is just being looked up).
_COLLECTS = sys.version_info < (3, 12)
_looking = threading.Lock()
_PATIENCE = 0.05


def _where(thread: int) -> str | None:
    """The innermost line of the user's that *thread* is in; ``None`` also when others
    are looking all the time."""
    if not _COLLECTS:
        return _users_line(thread)
    # Not waited for long: its owner may be gone since a fork, or be who was interrupted.
    if not _looking.acquire(timeout=_PATIENCE):
        return None
    collects = gc.isenabled()
    try:
        gc.disable()
        return _users_line(thread)
    finally:
        if collects:
            gc.enable()
        _looking.release()


def _users_line(thread: int) -> str | None:
    frame = sys._current_frames().get(thread)
    while frame is not None:
        module = str(frame.f_globals.get("__name__")).partition(".")[0]
        if module not in _NOT_THE_USERS:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None


@dataclass(frozen=True)
class Holder:
    """Who has a connection now."""

    site: str
    """``file:line`` of the acquire."""
    thread_id: int
    thread_name: str
    age: float
    """Seconds since the acquire."""
    state: Activity = "idle"
    """What happens on the connection, in the words of pg_stat_activity: ``active``
    while a call is inside it."""
    running: float | None = None
    """Seconds since that call began; ``None`` when none is inside."""
    alive: bool = True
    """False: the thread that acquired has ended."""

    @property
    def now_at(self) -> str | None:
        """``file:line`` where that thread is now, when this is read: in the innermost
        function that is neither fastpool's, the driver's nor the standard library's.
        ``None`` when it is in none."""
        return _where(self.thread_id) if self.alive else None

    def __str__(self) -> str:
        thread = f"thread {self.thread_name!r}" if self.alive else "its thread has ended"
        state = self.state if self.running is None else f"active for {self.running:.1f} s"
        return f"{self.site} ({thread}, {self.age:.1f} s, {state})"


@dataclass(frozen=True)
class Waiting:
    """Who waits for a connection."""

    site: str
    """``file:line`` of the acquire."""
    thread_id: int
    thread_name: str
    age: float
    """Seconds since it came."""

    def __str__(self) -> str:
        return f"{self.site} (thread {self.thread_name!r}, {self.age:.1f} s)"


@dataclass(frozen=True)
class Facts:
    """What a pool knows when somebody gets nothing. Times are seconds."""

    waited: float
    """How long that caller has waited."""
    size: int
    max_size: int
    idle: int
    established: int
    """Connections that are there: idle, in use, or in the pool's own hands."""
    holders: tuple[Holder, ...]
    """The longest first."""
    waiting: int
    """Callers waiting, that one not counted if it has left."""
    waiters: tuple[Waiting, ...]
    """Some of them: the one who waits longest; of a deadlock, all who are in it."""
    connecting: int
    """Dials in flight."""
    backoff: float
    """Until the next attempt to connect may begin; 0.0: now."""
    down_for: float | None
    """Since the first failed attempt after the last that ended well; ``None``: up."""
    error: str | None
    """The last connect error."""
    error_age: float | None
    error_is_news: bool
    """It came after the last connection that was made."""
    leak_threshold: float | None
    """The setting."""


@dataclass(frozen=True)
class PoolStats:
    """Gauges and counters of one moment. Times are seconds; counters only grow."""

    name: str
    impl: str
    """``"c"`` or ``"python"``: the core in force."""
    size: int
    """Connections in any state, those being dialled or closed included."""
    idle: int
    in_use: int
    connecting: int
    closing: int
    checking: int
    """Held by the pool itself, or by a release that resets them."""
    waiting: int
    """Callers waiting now."""
    min_size: int
    max_size: int
    acquires: int
    """Connections handed out."""
    waits: int
    """Acquires that had to wait, those that got nothing included."""
    wait_time: float
    """Summed over all waits."""
    served_time: float
    """Summed over the waits that got a connection."""
    timeouts: int
    cancelled: int
    """Waits ended by an exception in the waiting thread."""
    rejected: int
    """Callers refused because ``max_waiting`` were waiting."""
    wait_histogram: tuple[int, ...]
    """Item n counts waits below 2**n microseconds (and not below half of that)."""
    dials: int
    """Attempts to connect, failed ones included."""
    dial_failures: int
    created: int
    """Connections made."""
    dial_time: float
    """Summed over the attempts that ended well."""
    dial_histogram: tuple[int, ...] = ()
    """Of those attempts, as :attr:`wait_histogram`."""
    check_time: float = 0.0
    """Summed over the round trips that looked whether a connection lives."""
    check_histogram: tuple[int, ...] = ()
    """Of those round trips, as :attr:`wait_histogram`."""
    use_time: float = 0.0
    """Summed over all uses that have ended, from acquire to release. Uses are timed by
    the scheduler's clock, which is up to 4 ms coarse; the sum is right on average."""
    use_histogram: tuple[int, ...] = ()
    """Of those uses, as :attr:`wait_histogram`; those below 1 ms count as one group."""
    closed: Mapping[str, int] = field(default_factory=dict)
    """Connections closed, by reason."""
    encryption: str | None = None
    """Of the last connection made: ``none``, ``unverified`` (encrypted, but to
    whom is not known) or ``verified``."""
    pgbouncer: bool = False
    """Connections lead to a pooler that pools transactions: as set, or found out."""
    last_connect_error: str | None = None
    last_connect_error_age: float | None = None

    def wait_quantile(self, q: float) -> float:
        """An upper bound, in seconds, of the wait that the part *q* of all
        waiting acquires stayed below; 0.0 when nobody has waited."""
        if not 0 <= q <= 1:
            raise ValueError(f"q: expected a number from 0 to 1, not {q!r}")
        goal = q * sum(self.wait_histogram)
        seen = 0
        for n, count in enumerate(self.wait_histogram):
            seen += count
            if seen and seen >= goal:
                return float(2**n * 1e-6)
        return 0.0

    def as_dbstats(self) -> dict[str, int]:
        """The nine fields of Go's ``sql.DBStats``, by their JSON names."""
        return {
            "max_open_connections": self.max_size,
            "open_connections": self.size,
            "in_use": self.size - self.idle,
            "idle": self.idle,
            "wait_count": self.waits,
            "wait_duration_ms": int(self.wait_time * 1000),
            "max_idle_closed": self.closed.get("max_idle", 0),
            "max_idle_time_closed": self.closed.get("max_idle_time", 0),
            "max_lifetime_closed": self.closed.get("max_lifetime", 0),
        }

    def as_pgxpool(self) -> dict[str, int]:
        """The twelve fields of Go's ``pgxpool.Stat``, by their JSON names."""
        return {
            "acquire_count": self.acquires,
            "acquire_duration_ms": int(self.served_time * 1000),
            "acquired_conns": self.in_use + self.checking,
            "canceled_acquire_count": self.timeouts + self.cancelled,
            "constructing_conns": self.connecting,
            "empty_acquire_count": self.waits,
            "idle_conns": self.idle,
            "max_conns": self.max_size,
            "total_conns": self.size,
            "new_conns_count": self.dials,
            "max_lifetime_destroy_count": self.closed.get("max_lifetime", 0),
            "max_idle_destroy_count": self.closed.get("max_idle_time", 0),
        }
