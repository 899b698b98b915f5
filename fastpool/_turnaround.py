"""Between two users: what happens to a connection at checkout and at return.

At checkout (:meth:`Turnaround.admit`) the core has already asked the socket, in
C, and found it silent, young and unsuspected: then nothing here runs at all.
Otherwise: over age, closed by the server, or silent for so long that only a
round trip can tell. At return (:meth:`Turnaround.settle`) a connection whose
state object says "clean" never comes here either; the others are rolled back,
reset, or given up. A connection that lost sync is never kept.

Everything runs in the thread of the caller, outside the core.
"""

from __future__ import annotations

import math
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import _deadline
from ._impl import Core, Entry, Lease, State
from ._liveness import Liveness
from ._logs import Log
from ._runtime import poll
from .config import PoolConfig
from .drivers.base import (
    BUSY,
    CLOSED,
    DIRTY,
    FAILED,
    LOCAL,
    READONLY,
    SESSION,
    TRANSACTION,
    Driver,
)
from .errors import ConnectionReleased, DeadlineExceeded, PoolError, TransactionAborted
from .stats import BUCKETS, bucket

__all__ = ["DEAD", "Turnaround", "aborted", "lost"]

DEAD = (
    getattr(select, "POLLRDHUP", 0)
    | getattr(select, "POLLHUP", 0)
    | getattr(select, "POLLERR", 0)
    | getattr(select, "POLLNVAL", 0)
)


_ANSWER = 5.0
"""Seconds that a return waits for its rollback and its reset, each, where no deadline
shortens that; then the connection is given up."""
_SHORTEST_PING = 0.02
"""Seconds for a ping, if the caller has less: an answer is on its way that soon, and
without one the connection is lost."""


class Turnaround:
    """The rules of checkout and return, for one pool."""

    def __init__(
        self,
        core: Core,
        liveness: Liveness,
        driver: Driver[Any],
        config: PoolConfig,
        log: Log,
    ) -> None:
        self.core = core
        self.liveness = liveness
        self.driver = driver
        self.config = config
        self.log = log
        self.begin_in_child()

    def begin_in_child(self) -> None:
        """As at birth, in a forked child: one that was forked in a hook runs none."""
        self._hooking = threading.local()
        # Notified when a cancel request has ended.
        self._cancels = threading.Condition()
        self._told_of_leak = False
        self.check_time = 0.0
        """Seconds spent in round trips that looked whether a connection lives."""
        self.check_histogram = [0] * BUCKETS
        """Of those round trips, as the core's of waits."""

    # -- checkout --------------------------------------------------------------

    def queueing(self) -> float:
        """The deadline in force. A hook that waits for its own pool may wait for
        itself."""
        if getattr(self._hooking, "hook", None):
            raise PoolError(
                f"pool {self.log.pool!r}: the {self._hooking.hook} hook asked its own pool "
                "for a connection; use the one it was given"
            )
        return _deadline.current()

    def admit(self, entry: Entry, limit: float = math.inf) -> str | None:
        """``None`` when the connection may be handed out, else why not. A caller's
        patience ends at the time *limit*."""
        self.queueing()
        now = self.core.now()
        if entry.expires <= now:
            return "max_lifetime"
        if entry.generation != self.core.generation:
            return "drained"
        events = self.events(entry) if self.config.check else 0
        if events & DEAD:
            self.liveness.lost(entry)
            return "dead"
        if self.config.check and (events or entry.due <= now or self.config.check == "ping"):
            left = self.left(entry)
            if left <= 0:
                raise DeadlineExceeded("the deadline passed", outcome="not_sent")
            patience = max(min(limit - now, left), _SHORTEST_PING)
            reason = self.examine(entry, min(patience, self.config.ping_timeout))
            if reason is not None:
                return reason
        hook = self.config.before_acquire
        if hook is not None and not self.hook("before_acquire", hook, entry.conn, entry.state):
            return "before_acquire"
        return None

    @staticmethod
    def events(entry: Entry) -> int:
        """What the kernel knows of the connection's socket."""
        return poll(entry.fd) if entry.fd >= 0 else 0

    def examine(self, entry: Entry, timeout: float) -> str | None:
        """One round trip in *timeout* seconds. ``None``: alive, clean, and its server
        still of the kind that is wanted; else why it is to be closed."""
        began = time.monotonic()
        try:
            try:
                self.driver.ping(entry.conn, timeout)
            finally:
                seconds = time.monotonic() - began
                self.check_time += seconds
                self.check_histogram[bucket(seconds)] += 1
            # What the server had to tell meanwhile is no user's doing.
            return self.settle_flags(entry) or self._check_role(entry)
        except Exception as error:
            self.log.info("dead", "an idle connection is dead: %s", error)
            if entry.state.flags & CLOSED:
                self.liveness.lost(entry)
            return "dead"

    def _check_role(self, entry: Entry) -> str | None:
        if self.liveness.fits(entry):
            return None
        self.liveness.misfit(entry)
        return "role"

    # -- return ----------------------------------------------------------------

    def settle(self, entry: Entry) -> str | None:
        """``None`` when the connection may go back, clean, else why not."""
        try:
            reason = self._settle_cancels(entry) or self.settle_flags(entry)
            with self._own_time(entry):
                reason = reason or self._reset(entry)
                hook = self.config.after_release
                if reason is None and hook is not None:
                    if self.hook("after_release", hook, entry.conn, entry.state):
                        reason = self.settle_flags(entry)
                    else:
                        self.log.info("not_kept", "after_release has a connection closed")
                        reason = "after_release"
            return reason
        except TimeoutError:
            self.log.warning("reset_failed", "a returned connection was not reset in time")
            return "reset"
        except Exception:
            self.log.exception("reset_failed", "a returned connection could not be reset")
            return "reset"

    def settle_flags(self, entry: Entry) -> str | None:
        """Undo what the flags tell of, as the ``reset`` setting says."""
        state = entry.state
        if state.flags & CLOSED:
            self.liveness.lost(entry)
        if state.flags & (BUSY | DIRTY | CLOSED) or state.calls:
            return "broken"
        if state.flags & READONLY and self.liveness.minds_read_only:
            self.liveness.misfit(entry)
            return "role"
        if state.flags & TRANSACTION:
            self.rollback(entry)
        if state.flags & SESSION:
            if self.config.reset != "smart":
                self.driver.rebase(entry.conn)
            elif self.driver.pooled(entry.conn):
                # DISCARD ALL would go to whichever server session is free. What the
                # pooler itself keeps for this connection (TimeZone) ends with it.
                self._leaked(f"acquired at {entry.site()}")
                return "session"
            else:
                self._discard(entry)
            # It may be the server that has changed.
            if not state.flags & (BUSY | DIRTY | CLOSED) and self._check_role(entry):
                return "role"
        if state.flags & (LOCAL | READONLY):
            self.driver.restore(entry.conn)
        return "broken" if state.flags else None

    def _reset(self, entry: Entry) -> str | None:
        if self.config.reset == "discard":
            self._discard(entry)
        elif callable(self.config.reset):
            self.hook("reset", self.config.reset, entry.conn, entry.state)
            return self.settle_flags(entry)
        return None

    def _leaked(self, where: str) -> None:
        """Say once that session state is left where it cannot be found again."""
        if not self._told_of_leak:
            self._told_of_leak = True
            self.log.warning(
                "session_leaked",
                "a connection %s has changed its session (SET, LISTEN, PREPARE), "
                "behind PgBouncer: in transaction pooling that stays in a server session which "
                "others get. Use SET LOCAL in a transaction; or set pgbouncer=False if it pools "
                "sessions",
                where,
            )

    def _discard(self, entry: Entry) -> None:
        self.driver.discard(entry.conn, self._patience(entry))
        with self._own_time(entry):
            self.prepare(entry.conn, entry.state)

    def prepare(self, conn: Any, state: State) -> None:
        """Run ``after_connect``: on a new connection, and after DISCARD ALL,
        which undid what it had set."""
        hook = self.config.after_connect
        if hook is not None:
            self.hook("after_connect", hook, conn, state)
            if state.flags & SESSION and self.driver.pooled(conn):
                self._leaked("in the after_connect hook")
            self.driver.rebase(conn)
            if state.flags & LOCAL:
                self.driver.restore(conn)
            if state.flags:
                raise PoolError("the after_connect hook left the connection unusable")

    # -- transactions ----------------------------------------------------------

    def finish(self, entry: Entry) -> None:
        """A block ended well: commit what is open."""
        flags = entry.state.flags
        if flags & (BUSY | DIRTY | CLOSED):
            if flags & TRANSACTION:
                raise lost()
        elif flags & FAILED:
            self._try_rollback(entry)
            raise aborted()
        elif flags & TRANSACTION:
            self.commit(entry)

    def commit(self, entry: Entry) -> None:
        """COMMIT, in what time is left; an answer that never came is said to be
        unknown. With no time left, ROLLBACK."""
        left = self.left(entry)
        if left <= 0:
            self._try_rollback(entry)
            raise DeadlineExceeded(
                "the deadline passed before the COMMIT: the transaction was rolled back",
                outcome="not_sent",
            )
        try:
            self.driver.control(
                entry.conn, "COMMIT", None if left == math.inf else left + self.config.cancel_budget
            )
        except Exception as error:
            if entry.state.flags & (DIRTY | CLOSED):
                message = "COMMIT was sent, but no answer came: it may have been done or not"
                unknown: type[DeadlineExceeded | TransactionAborted] = TransactionAborted
                if isinstance(error, TimeoutError):
                    unknown, message = DeadlineExceeded, f"the deadline passed; {message}"
                raise unknown(message, outcome="unknown") from error
            raise

    def rollback(self, entry: Entry, sql: str = "ROLLBACK") -> None:
        """*sql*, whatever the deadline says, but not much longer than that."""
        self.driver.control(entry.conn, sql, self._patience(entry))

    def _try_rollback(self, entry: Entry) -> None:
        """ROLLBACK before an error that says more than its own would."""
        try:
            self.rollback(entry)
        except Exception as error:  # the release sees to the rest
            self.log.info("rollback_failed", "a rollback failed: %s", error)

    # -- deadlines and cancel requests -----------------------------------------

    @staticmethod
    def left(entry: Entry) -> float:
        """Seconds until the deadline in force; 0 and less: it has passed."""
        until = min(entry.state.deadline, _deadline.current())
        return until if until == math.inf else until - time.monotonic()

    def _patience(self, entry: Entry) -> float:
        """Seconds to wait for what a connection needs to be of use again."""
        return min(_ANSWER, max(self.left(entry), 0.0) + self.config.cancel_budget)

    @staticmethod
    @contextmanager
    def _own_time(entry: Entry) -> Iterator[None]:
        """What follows belongs to the next user: the last one's deadline is no limit."""
        entry.state.deadline = math.inf
        with _deadline.lifted():
            yield

    @contextmanager
    def call_through(self, lease: Lease) -> Iterator[Entry]:
        """What *lease* holds, which nobody else gets meanwhile, whoever gives it back.

        Raises ``ConnectionReleased``.
        """
        entry = lease._entry_of(self.core)
        if not self.core.begin_call(entry, id(lease)):
            raise ConnectionReleased("the connection was given back to the pool")
        try:
            yield entry
        finally:
            self.core.end_call(entry)

    def cancel(self, lease: Lease, timeout: float) -> None:
        """What ``lease.cancel()`` does."""
        entry = self.core.begin_cancel(lease)
        proven = False
        try:
            proven = self.driver.cancel(entry.conn, time.monotonic() + timeout)
        finally:
            with self._cancels:
                entry.state.cancelled(proven)
                self._cancels.notify_all()

    def _settle_cancels(self, entry: Entry) -> str | None:
        """Wait until no cancel request can hit what is sent from now on."""
        state = entry.state
        if state.stray:
            with self._cancels:
                self._cancels.wait_for(lambda: state.stray <= 0, self.config.cancel_budget)
        return "cancelled" if state.stray else None

    # -- hooks -----------------------------------------------------------------

    def hook(self, name: str, hook: Callable[[Any], Any], conn: Any, state: State) -> Any:
        """Call a user's hook: the connection is usable, the pool is not. A
        transaction that the hook leaves open is committed."""
        leased = state.serial & 1
        try:
            if not leased:
                state.grant()
            answer = self.call(name, hook, conn)
        finally:
            if not leased:
                state.revoke()
        if state.flags & FAILED:
            raise PoolError(f"the {name} hook left a failed transaction")
        if state.flags & TRANSACTION:
            self.driver.control(conn, "COMMIT")
        return answer

    def call(self, name: str, hook: Callable[[Any], Any], argument: Any) -> Any:
        """Call a hook that gets no usable connection."""
        # No context manager: one that is left by an interrupt would keep the mark, and
        # the pool would refuse its thread from then on.
        self._hooking.hook = name
        try:
            return hook(argument)
        finally:
            self._hooking.hook = None


def aborted() -> TransactionAborted:
    return TransactionAborted(
        "the block ended well, but a statement in it had failed and the server "
        "rolled its transaction back"
    )


def lost() -> TransactionAborted:
    return TransactionAborted(
        "the block ended well, but its connection was lost before the COMMIT",
        outcome="unknown",
    )
