"""Notifications (LISTEN / NOTIFY) on a connection of its own.

A pooled connection cannot listen: notifications arrive only while somebody
reads, and the next user would get them. So a listener dials one connection
beside the pool, by the pool's own settings, and reads it in the thread that asks
for the next notification. When that connection dies it dials again, with the
pool's backoff, and subscribes again. What was sent in between is lost, as
PostgreSQL keeps nothing for absent listeners: ``gaps`` counts those times.
"""

from __future__ import annotations

import math
import random
import reprlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _deadline
from ._impl import State
from ._logs import Log
from .drivers.base import hang_up
from .errors import ConfigError, PoolClosed, seconds
from .pool import PoolView

if TYPE_CHECKING:
    from ._house import House

__all__ = ["Listener", "Notification", "listen"]

_SLICE = 0.25
"""Seconds after which a waiting listener looks whether it was closed."""
_SHORTEST_DIAL = 1.0
"""Seconds for a dial, if the caller has less: one that is always cut short ends nowhere."""
_LONGEST_NAME = 63
"""Bytes; the server would cut off the rest (NAMEDATALEN)."""


class Notification(NamedTuple):
    """One notification."""

    channel: str
    payload: str
    pid: int
    """The process ID of the session that sent it."""


class Listener:
    """An iterator over the notifications of one channel; see :func:`listen`."""

    def __init__(self, house: House, channel: str) -> None:
        self.channel = channel
        self.gaps = 0
        """How often the connection was lost, and notifications may be with it."""
        self._house = house
        self._log = Log(house.name)
        self._received: deque[Notification] = deque()
        self._conn: Any = None
        self._closed = False
        self._failures = 0
        self._error: BaseException | None = None  # why there is no connection
        house.listeners.add(self)

    def get(self, timeout: float | None = None) -> Notification:
        """The next notification, in the order they were sent.

        Waits at most *timeout* seconds (``None``: no limit), and no longer than a
        ``fastpool.deadline`` around, then raises ``TimeoutError``. Raises ``PoolClosed``
        once the listener or its pool is closed, ``ConnectFailed`` if the server refuses
        for good. Where the connection has to be made anew, a dial has a second at least:
        so much longer that may take.
        """
        timeout = math.inf if timeout is None else seconds("timeout", timeout, "look")
        deadline = time.monotonic() + timeout
        deadline = min(deadline, _deadline.current())
        while not self._received:
            if self._closed or self._house.core.phase == 2:
                self.close()
                raise PoolClosed(f"the listener on {self.channel!r} is closed")
            left = deadline - time.monotonic()
            if left <= 0:
                message = f"no notification on {self.channel!r} within the time given"
                raise TimeoutError(message) from self._error
            self._receive(left)
        return self._received.popleft()

    def _receive(self, left: float) -> None:
        """Connected: read for a while, *left* seconds at most. Otherwise: connect."""
        conn = self._conn
        if conn is None:
            self._connect(left)
            return
        try:
            patience = min(left, _SLICE)
            for pid, channel, payload in self._house.driver.notifications(conn, patience):
                self._received.append(Notification(channel, payload, pid))
        except BaseException as error:
            self._drop()
            if self._closed:
                return
            self.gaps += 1
            if not isinstance(error, Exception):
                raise
            self._log.warning(
                "listener_lost", "the listener on %r lost its connection: %s", self.channel, error
            )

    def _connect(self, left: float) -> None:
        """Dial and subscribe for *left* seconds, or a little longer; what fails is tried
        again after a pause."""
        opener, driver = self._house.opener, self._house.driver
        state = State()
        try:
            self._conn, _ = opener.dial(state, patience=max(left, _SHORTEST_DIAL))
            opener.note_pooler(self._conn)
            if not opener.pooled:
                self._house.turnaround.prepare(self._conn, state)
                driver.listen(self._conn, self.channel)
        except BaseException as error:
            self._drop()
            if not isinstance(error, Exception):
                raise
            if driver.is_permanent(error):
                raise opener.refusal(error) from error
            self._error = error
            config = self._house.config
            pause = min(config.connect_backoff * 2.0**self._failures, config.connect_backoff_max)
            self._failures = min(self._failures + 1, 30)
            self._log.warning(
                "connect_failed", "the listener on %r cannot connect: %s", self.channel, error
            )
            time.sleep(min(random.uniform(0, pause), left, _SLICE))
        else:
            self._failures, self._error = 0, None
            if self._closed:  # meanwhile, by another thread
                self._drop()
            elif opener.pooled:
                self.close()
                raise _deaf(self.channel)

    def _drop(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            hang_up(self._house.driver, conn)

    def close(self) -> None:
        """Stop listening and close the connection. Closing twice does nothing."""
        self._closed = True
        self._drop()

    def abandon(self) -> None:
        """Close in a forked child: the session is the parent's, who goes on listening."""
        self._closed = True
        conn, self._conn = self._conn, None
        if conn is not None:
            self._house.driver.abandon(conn)

    def __iter__(self) -> Listener:
        return self

    def __next__(self) -> Notification:
        try:
            return self.get()
        except PoolClosed:
            raise StopIteration from None

    def __enter__(self) -> Listener:
        if self._house.core.phase == 2:
            raise PoolClosed("the pool is closed")
        if self._conn is None:
            self._connect(math.inf)
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        self.close()


def _deaf(channel: str) -> ConfigError:
    return ConfigError(
        f"cannot listen on {channel!r} behind PgBouncer in transaction pooling: LISTEN would stay "
        "in a server session that others get, and no notification would come through. Listen by a "
        "pool (min_size=0) that connects to PostgreSQL itself; or, if PgBouncer pools sessions, "
        "set pgbouncer=False",
        setting="pgbouncer",
    )


def listen(pool: PoolView[Any], channel: str) -> Listener:
    """Listen for notifications on *channel*, by the settings of *pool*.

    The connection is one of its own, beside ``max_size``; it reconnects and
    subscribes again by itself. One thread at a time reads::

        with fastpool.listen(pool, "jobs") as notifications:
            for notification in notifications:
                print(notification.payload)

    Raises ``TypeError``; ``ConfigError`` for a name that is empty, has a NUL or is longer
    than 63 bytes, and behind PgBouncer in transaction pooling, at the latest when that is
    found out.
    """
    if not isinstance(pool, PoolView):
        raise TypeError(f"pool: expected a Pool, not {type(pool).__name__}")  # a DSN is secret
    if not isinstance(channel, str):
        raise TypeError(f"channel: expected a str, not {reprlib.repr(channel)}")
    if not 0 < len(channel.encode()) <= _LONGEST_NAME or "\0" in channel:
        raise ConfigError(
            f"channel: expected 1 to {_LONGEST_NAME} bytes without NUL, not "
            f"{reprlib.repr(channel)}",
            setting="channel",
        )
    if pool._house.opener.pooled:
        raise _deaf(channel)
    return Listener(pool._house, channel)
