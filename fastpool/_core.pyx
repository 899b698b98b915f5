# cython: language_level=3, embedsignature=True, binding=True, boundscheck=False, wraparound=False
"""The core: who has which connection, who waits, and nothing else.

It knows no driver, no SQL, no log and no thread of its own. Connections are
given to it (:meth:`Core.adopt`), callers come for them (:class:`Checkout`), and
what takes time or can fail is asked of its *house* (:class:`House`).

An entry is one connection, from the decision to dial until the server has
closed its side::

    CONNECTING --adopt--> HELD --put--> IDLE <--put/take--> LEASED
         |                 ^  \\          |                    |
         |                 |   `---------+------retire--------+--> CLOSING --> CLOSED
         `--forget--> CLOSED   (HELD: a pool thread, or a release, works on it)

A waiter: ``AWAY -> WAITING -> ASSIGNED | FAILED | AWAY``. The giver writes the
connection and the new state into it in one step; the one who leaves looks at
the state in one step. So a connection is never given to somebody who has gone.

**Sections.** Whatever changes those states is a *section*: a method that is one
atomic step. It makes no call, no loop, no allocation that the garbage collector
tracks, and drops no reference that could be the last; whatever it must decide, it
decides before it changes anything but a counter. On a GIL build nothing can interrupt
it, compiled or interpreted, so it needs no lock; elsewhere (and interpreted by 3.10)
it has one.
The only call in a section is its last act, waking a waiter. What :meth:`Core._take`
and :meth:`Core._join` must do first, bind a lease and find a place in the queue,
they do before the step, and check in it that nothing has changed since.

**Ownership.** ``Entry.holder`` is the one truth about who has a connection: the
token of a lease (its address), minus that token while the lease's release is
still working on it, ``HOUSE`` while a pool thread has it, 0 for nobody. Released?
Released twice? Used after release? Handed on? One comparison answers all of it.
A lease that dies while its token stands in an entry was lost, whatever
interrupted its owner, and its finalizer gives the connection back.

Written in Cython's pure-Python syntax. The interpreted core, ``_core_py.py``, is
generated from this file by ``tools/unpyx.py``.
"""

from __future__ import annotations

import _thread
import math
from collections import deque
from types import GenericAlias, MethodType
from typing import Any, Protocol

import cython
from cython.cimports.cpython.object import PyObject_GenericGetAttr
from cython.cimports.fastpool._core_c import (
    HAS_GIL,
    coarse,
    give_way,
    ident,
    lives,
    monotonic,
    nap,
    poll,
    site,
    threadno,
    token,
)

if not cython.compiled:
    from fastpool._runtime import (
        caller,
        coarse,
        ident,
        lives,
        monotonic,
        nap,
        poll,
        site,
        threadno,
        token,
    )
from fastpool.errors import ConnectionBusy, ConnectionReleased, not_seconds
from fastpool.stats import BUCKETS, SHORT

__all__ = ["Call", "Checkout", "Core", "Entry", "House", "Lease", "State", "Terms", "Waiter"]

# Entry.status
CONNECTING = cython.declare(cython.int, 0)
HELD = cython.declare(cython.int, 1)
IDLE = cython.declare(cython.int, 2)
LEASED = cython.declare(cython.int, 3)
CLOSING = cython.declare(cython.int, 4)
CLOSED = cython.declare(cython.int, 5)
ENTRY_STATUS = ("connecting", "held", "idle", "leased", "closing", "closed")

# Waiter.status
AWAY = cython.declare(cython.int, 0)
WAITING = cython.declare(cython.int, 1)
ASSIGNED = cython.declare(cython.int, 2)
FAILED = cython.declare(cython.int, 3)

# Core.phase
NEW = cython.declare(cython.int, 0)
OPEN = cython.declare(cython.int, 1)
CLOSING_DOWN = cython.declare(cython.int, 2)
PHASES = ("new", "open", "closed")

# What became of an entry that was put back
NOT_YOURS = cython.declare(cython.int, 0)
KEPT = cython.declare(cython.int, 1)
HANDED_ON = cython.declare(cython.int, 2)
UNSETTLED = cython.declare(cython.int, 3)
STALE = cython.declare(cython.int, 4)
EXPIRED = cython.declare(cython.int, 5)
WORN = cython.declare(cython.int, 6)
SURPLUS = cython.declare(cython.int, 7)
REASONS = ("", "", "", "broken", "drained", "max_lifetime", "max_uses", "max_idle")

# What became of a caller that wants to wait
JOINED = cython.declare(cython.int, 0)
NOT_OPEN = cython.declare(cython.int, 1)
LOOK_AGAIN = cython.declare(cython.int, 2)
CROWDED = cython.declare(cython.int, 3)
REFUSED = cython.declare(cython.int, 4)

# What became of a call that wants into a connection
ENTERED = cython.declare(cython.int, 0)
RELEASED = cython.declare(cython.int, 1)
OCCUPIED = cython.declare(cython.int, 2)

# Whether the threads that hold all connections wait for each other
UNTANGLED = cython.declare(cython.int, 0)
DOUBTFUL = cython.declare(cython.int, 1)
TANGLED = cython.declare(cython.int, 2)

GRACE = cython.declare(cython.double, 0.5)
"""Seconds for another thread to use a connection that it may have been given."""

NEVER = cython.declare(cython.double, math.inf)

HOUSE = cython.declare(cython.Py_ssize_t, 1)
"""The holder of an entry that a pool thread has; never the address of a lease."""

LOST_SIGHT = cython.declare(cython.int, 1 << 20)
"""More than all cancel requests that are on their way at one time."""

SHORT_USE = cython.declare(cython.double, 0.001)
"""Uses below this are not timed: most are none of the coarse clock's ticks long."""

NO_TIME = cython.declare(cython.double, 0.001)
"""Seconds in which no dial ends: it is not begun for a waiter with less left."""

_skip: Any = None
_also: Any = None


def skip_frames_of(namespace: dict[str, Any], also: dict[str, Any] | None = None) -> None:
    """Acquire sites are looked for above functions whose globals are one of these."""
    global _skip, _also
    _skip, _also = namespace, also


class House(Protocol):
    """What the core asks for, always outside its sections."""

    def open(self) -> None:
        """The first caller came: open the pool."""

    def wanted(self) -> None:
        """A dial may be wanted (:meth:`Core.begin_dial` knows). Called often,
        also for a caller who has a connection: it should not raise."""

    def queueing(self) -> float:
        """The caller is about to wait; raises if it must not. Returns how long it
        may at most: a time on ``time.monotonic()``, ``math.inf`` for no limit."""

    def disposed(self) -> None:
        """An entry was put on :attr:`Core.closing`."""

    def admit(self, entry: Entry, limit: float) -> str | None:
        """Look closely at a connection about to be handed out, in the caller's
        thread. ``None``: fit for use; else the reason to close it. An exception
        goes to the caller, and the connection back. *limit*: when the caller will
        have waited for as long as it wants, on the core's clock."""

    def settle(self, entry: Entry) -> str | None:
        """Make a returned connection fit for the next user, in the thread that
        returns it. ``None``: done; else the reason to close it."""

    def finish(self, entry: Entry) -> None:
        """A block ended well with its transaction open: commit."""

    def transaction(self, lease: Lease, **options: Any) -> Any:
        """A nested transaction on a held connection."""

    def cancel(self, lease: Lease, timeout: float) -> None:
        """Have the server stop what the connection of *lease* runs."""

    def deadlock(self, timeout: float) -> BaseException | None:
        """Every connection is held by a thread that waits here, and the caller, who
        has just come to wait *timeout* seconds, is the last of them. The exception
        for it, or ``None``: it waits all the same."""

    def lost(self, where: str) -> None:
        """A lease, acquired at *where*, was dropped without release and its
        connection taken back; called from a finalizer."""

    def refusal(self, kind: str, timeout: float, waited: float, error: Any) -> BaseException:
        """The exception for a caller who gets nothing: *kind* is ``timeout``,
        ``deadline`` (which came first), ``closed``, ``crowded`` or ``connect`` (*error*
        says why)."""

    def taken(self, entry: Entry) -> BaseException | None:
        """The pool was closed before the block on *entry*'s connection ended. The
        exception for what is lost by that, or ``None``: nothing is."""


def _place(code: Any, lasti: cython.int) -> str:
    """``file:line`` of the instruction at offset *lasti*."""
    if code is None:
        return "?"
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= lasti < end and number is not None:
            line = number
    return f"{code.co_filename}:{line}"


@cython.final
@cython.cclass
class State:
    """What a connection's wire is doing; see ``fastpool.drivers.base.ConnState``.

    Written by the one thread that has the connection; the core only reads
    ``flags``. ``serial`` is changed by the core, and by a pool thread that has
    the entry; ``deadline`` is set at each hand-out. ``stray`` is for any thread.
    """

    flags = cython.declare(cython.int, visibility="public")
    serial = cython.declare(cython.longlong, visibility="readonly")
    # The last call: when it began, by what thread (threadno), under what serial.
    entered = cython.declare(cython.double, visibility="readonly")
    user = cython.declare(cython.ulonglong, visibility="readonly")
    used = cython.declare(cython.longlong, visibility="readonly")
    deadline = cython.declare(cython.double, visibility="public")
    # stray: cancel requests on their way, which may still hit whatever runs then;
    # negative once one was lost sight of.
    stray = cython.declare(cython.int, visibility="readonly")
    # calls: through leases, that have begun and not ended, on the wire or not. None once
    # the connection is idle.
    calls = cython.declare(cython.int, visibility="readonly")

    def __init__(self) -> None:
        self.flags = 0
        self.serial = 0
        self.entered = -math.inf
        self.user = 0
        self.used = 0
        self.deadline = math.inf
        self.stray = 0
        self.calls = 0

    def enter(self, serial: cython.longlong = 0) -> None:
        """Mark the connection BUSY, or refuse: released, or another call is inside."""
        verdict: cython.int = self._enter(serial, coarse(), threadno())
        if verdict == RELEASED:
            raise ConnectionReleased("the connection was given back to the pool")
        if verdict == OCCUPIED:
            raise ConnectionBusy(
                "another call is inside this connection: one thread at a time may use it"
            )

    @cython.cfunc
    @cython.inline
    def _enter(
        self, serial: cython.longlong, now: cython.double, who: cython.ulonglong
    ) -> cython.int:
        """Look and set BUSY in one step, as a release looks and ends the lease."""
        with cython.critical_section(self):
            if not self.serial & 1 or (serial != 0 and serial != self.serial):
                return RELEASED
            if self.flags & 1:
                return OCCUPIED
            self.flags |= 1
            self.entered = now
            self.user = who
            self.used = self.serial
        return ENTERED

    def leave(self, flags: cython.int) -> None:
        """Replace all flags: the call is over."""
        self.flags = flags

    def cancelling(self) -> None:
        """A cancel request is about to be sent."""
        with cython.critical_section(self):
            self.stray += 1

    def cancelled(self, proven: cython.bint) -> None:
        """It has done its work, if *proven*; else it may do so at any time from now
        on, and the connection is for nobody else any more."""
        with cython.critical_section(self):
            self.stray -= 1 if proven else LOST_SIGHT

    def grant(self) -> None:
        """Let a hook use the connection while a pool thread has it."""
        self.serial = (self.serial | 1) + 2

    def revoke(self) -> None:
        """End what :meth:`grant` began."""
        self.serial = (self.serial | 1) + 1


@cython.final
@cython.cclass
class Entry:
    """One connection and what the pool knows of it. Only sections write it."""

    conn = cython.declare(object, visibility="readonly")
    state = cython.declare(State, visibility="readonly")
    fd = cython.declare(cython.int, visibility="readonly")
    status = cython.declare(cython.int, visibility="readonly")
    # holder: see the module's "Ownership".
    holder = cython.declare(cython.Py_ssize_t, visibility="readonly")
    generation = cython.declare(cython.longlong, visibility="readonly")
    uses = cython.declare(cython.longlong, visibility="readonly")
    born = cython.declare(cython.double, visibility="readonly")
    expires = cython.declare(cython.double, visibility="readonly")
    # since: of the last hand-out while leased, of the last return while idle or held.
    since = cython.declare(cython.double, visibility="readonly")
    # due: handed out before this time, the connection needs no closer look.
    due = cython.declare(cython.double, visibility="readonly")
    # thread: its identifier, which may be another's later. who: twice its threadno(),
    # plus one for a with block, which mostly is ended by the thread that entered it.
    thread = cython.declare(cython.ulong, visibility="readonly")
    who = cython.declare(cython.ulonglong, visibility="readonly")
    code = cython.declare(object, visibility="readonly")
    lasti = cython.declare(cython.int, visibility="readonly")
    # taken_from: the token of the lease that the pool's close took this away from.
    taken_from = cython.declare(cython.Py_ssize_t, visibility="readonly")
    reason = cython.declare(str, visibility="readonly")
    host = cython.declare(object, visibility="public")
    # Neighbours in the idle ring; unset or stale while not idle.
    below = cython.declare(Entry)
    above = cython.declare(Entry)

    def __init__(self, state: State, generation: cython.longlong, born: cython.double) -> None:
        self.conn = None
        self.state = state
        self.fd = -1
        self.status = CONNECTING
        self.holder = 0
        self.generation = generation
        self.uses = 0
        self.born = born
        self.expires = math.inf
        self.since = born
        self.due = math.inf
        self.thread = 0
        self.who = 0
        self.code = None
        self.lasti = -1
        self.reason = ""
        self.taken_from = 0
        self.host = None

    def site(self) -> str:
        """``file:line`` of the last acquire; resolved here, since it costs."""
        return _place(self.code, self.lasti)

    def abandoned(self) -> bool:
        """Has the thread of the last acquire ended?"""
        return not lives(self.who >> 1)

    def __repr__(self) -> str:
        return f"<Entry {ENTRY_STATUS[self.status]} uses={self.uses} conn={self.conn!r}>"


NO_ENTRY = cython.declare(Entry, Entry(State(), -1, 0.0))
"""Held by nobody, for ever: what a lease has before and after."""
NO_ENTRY.status = CLOSED
NO_ENTRY.below = NO_ENTRY.above = NO_ENTRY

QUEUED = cython.declare(Entry, Entry(State(), -1, 0.0))
"""The same, and what a lease has while it waits."""
QUEUED.status = CLOSED
QUEUED.below = QUEUED.above = QUEUED


@cython.final
@cython.cclass
class Waiter:
    """One caller in the queue. *wake* is called once, when its turn has come."""

    token = cython.declare(cython.Py_ssize_t, visibility="readonly")
    thread = cython.declare(cython.ulong, visibility="readonly")
    who = cython.declare(cython.ulonglong, visibility="readonly")
    code = cython.declare(object, visibility="readonly")
    lasti = cython.declare(cython.int, visibility="readonly")
    since = cython.declare(cython.double, visibility="readonly")
    # turn: the later it joined, the higher; its place in line may be further up.
    turn = cython.declare(cython.longlong, visibility="readonly")
    # until: when it will have lost patience.
    until = cython.declare(cython.double, visibility="readonly")
    status = cython.declare(cython.int, visibility="readonly")
    entry = cython.declare(Entry, visibility="readonly")
    error = cython.declare(object, visibility="readonly")
    wake = cython.declare(object)
    # Neighbours in the queue ring, in the order of since; unset or stale while not waiting.
    before = cython.declare(Waiter)
    after = cython.declare(Waiter)

    def __init__(
        self,
        mine: cython.Py_ssize_t,
        thread: cython.ulong,
        who: cython.ulonglong,
        code: Any,
        lasti: cython.int,
        since: cython.double,
        until: cython.double,
        wake: Any,
    ) -> None:
        self.token = mine
        self.thread = thread
        self.who = who
        self.code = code
        self.lasti = lasti
        self.since = since
        self.turn = 0
        self.until = until
        self.status = AWAY
        self.entry = NO_ENTRY
        self.error = None
        self.wake = wake

    def site(self) -> str:
        """``file:line`` of its acquire."""
        return _place(self.code, self.lasti)


NO_WAITER = cython.declare(Waiter, Waiter(0, 0, 0, None, -1, -math.inf, math.inf, None))
NO_WAITER.before = NO_WAITER.after = NO_WAITER


@cython.final
@cython.cclass
class Terms:
    """On what terms a lease is taken; shared by all leases taken alike."""

    core = cython.declare(Core, visibility="readonly")
    # timeout: seconds to wait at most; negative = the pool's own.
    timeout = cython.declare(cython.double, visibility="readonly")
    # commits: the block's end commits; else a lease only releases, which rolls back.
    commits = cython.declare(cython.bint, visibility="readonly")
    # deadline: seconds from the checkout for all of it; math.inf = none.
    deadline = cython.declare(cython.double, visibility="readonly")

    def __init__(
        self,
        core: Core,
        timeout: cython.double,
        commits: cython.bint,
        deadline: cython.double = math.inf,
    ) -> None:
        self.core = core
        self.timeout = timeout
        self.commits = commits
        self.deadline = deadline


@cython.final
@cython.freelist(64)
@cython.no_gc
@cython.cclass
class Lease:
    """A connection in your hands, until you give it back.

    It forwards to the driver's connection, and ``isinstance(lease, ...)`` sees
    that connection's class. After :meth:`release` every use raises
    ``ConnectionReleased``.
    """

    _terms = cython.declare(Terms)
    _entry = cython.declare(Entry)
    _waiter = cython.declare(Waiter)

    def __init__(self) -> None:
        raise TypeError("a Lease is made by a pool: use pool.connection() or pool.acquire()")

    @classmethod
    def __class_getitem__(cls, item: Any) -> Any:
        """``Lease[Connection]``, for annotations."""
        return GenericAlias(cls, item)

    def __enter__(self) -> Any:
        terms: Terms
        entry: Entry
        who: cython.ulonglong
        if self._entry is NO_ENTRY:
            terms = self._terms
            terms.core._checkout(self, terms, terms.timeout, False)
        else:
            # A lease lives once: what was taken from it must not come alive again.
            entry = self._held()
            who = 2 * threadno()
            if entry.who == who:
                entry.who = who + 1
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        entry: Entry = self._entry
        core: Core = self._terms.core
        verdict: cython.int
        if entry.state.flags != 0 and exc_type is None and self._terms.commits:
            self._finish()
        else:
            verdict = core._put(
                entry, token(self), coarse() if core.clock is None else core.clock()
            )
            if verdict != KEPT:
                core._after(entry, -token(self), verdict)

    def _finish(self) -> None:
        """The block ended well; commit what is open, and release in any case."""
        entry: Entry = self._entry
        core: Core = self._terms.core
        try:
            if core.begin_call(entry, token(self)):
                try:
                    core.house.finish(entry)
                finally:
                    core.end_call(entry)
            elif entry.taken_from == token(self):
                error = core.house.taken(entry)
                if error is not None:
                    raise error
        finally:
            core._give_back(self)

    def release(self) -> None:
        """Give the connection back. An open transaction is rolled back.

        Afterwards the lease is dead, also when this raises. A second release
        does nothing.
        """
        self._terms.core._give_back(self)

    def close(self) -> None:
        """The same as :meth:`release`: the pool decides what is closed."""
        self._terms.core._give_back(self)

    def transaction(self, **options: Any) -> Any:
        """A transaction on this connection; nested ones are SAVEPOINTs.

        *options*: ``isolation``, ``read_only``, ``deferrable``, for the outermost
        one. Usable with both drivers::

            with lease.transaction():
                ...

        Committed when the block ends well, rolled back when it raises.
        """
        return self._terms.core.house.transaction(self, **options)

    def cancel(self, timeout: Any = 1.0) -> None:
        """Have the server stop what this connection runs, from any thread.

        The statement then raises in the thread that runs it (SQLSTATE 57014); nothing
        happens when none runs. Returns when the server has been told, after *timeout*
        seconds at most; a connection of which that is not certain (behind a pooler it
        never is) is closed at its release. Raises ``ConnectionReleased``, and
        ``TimeoutError`` or the driver's error if the server could not be told.
        """
        self._terms.core.house.cancel(self, _checked_seconds("timeout", timeout, TRY))

    @property
    def driver_connection(self) -> Any:
        """The driver's connection itself, for code that needs the very object."""
        return self._held().conn

    @cython.cfunc
    @cython.inline
    def _held(self) -> Entry:
        if self._entry.holder != token(self):
            raise ConnectionReleased("the connection was given back to the pool")
        return self._entry

    def _entry_of(self, core: Core) -> Entry:
        """The entry held, for the pool's own methods that take a lease."""
        entry: Entry = self._held()
        if self._terms.core is not core:
            raise ValueError("the connection belongs to another pool")
        return entry

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._entry.conn) if self._entry.holder == token(self) else Lease

    def __getattribute__(self, name: str) -> Any:
        if cython.compiled:
            # The interpreted core's is __getattr__, which Python asks last. Cython would
            # first look in vain and make an AttributeError, each time.
            if name in _OWN:
                return PyObject_GenericGetAttr(self, name)
        else:
            unborn = _UNBORN.get(name)
            if unborn is not None:
                return unborn
        value = getattr(self._held().conn, name)
        if isinstance(value, MethodType):
            return _call(self, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        conn = self._held().conn
        if not hasattr(conn, name):
            raise AttributeError(
                f"{name!r}: a connection of the pool takes no attributes of yours, since "
                "whoever gets it next would have them"
            )
        setattr(conn, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._held().conn, name)

    def __dir__(self) -> list[str]:
        own = ["cancel", "close", "driver_connection", "release", "transaction"]
        return sorted({*own, *dir(self._held().conn)})

    def __repr__(self) -> str:
        if self._entry.holder != token(self):
            return "<Lease released>"
        return f"<Lease of {self._entry.conn!r}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a Lease cannot be copied or pickled")

    def __dealloc__(self) -> None:
        # No reference to self may leave here; entry and waiter are whole, since
        # a lease is not tracked by the garbage collector.
        entry: Entry = self._entry
        if entry is QUEUED:
            self._terms.core._lost(entry, self._waiter, token(self))
        elif entry is not None and entry.holder != 0 and abs(entry.holder) == token(self):
            self._terms.core._lost(entry, NO_WAITER, token(self))


@cython.final
@cython.freelist(16)
@cython.cclass
class Call:
    """A method of a leased connection: dead, once the lease is."""

    _lease = cython.declare(Lease)
    _method = cython.declare(object)

    def __init__(self, lease: Lease, method: Any) -> None:
        self._lease = lease
        self._method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        core: Core = self._lease._terms.core
        entry: Entry = self._lease._entry
        if not core.begin_call(entry, token(self._lease)):
            raise ConnectionReleased("the connection was given back to the pool")
        try:
            return self._method(*args, **kwargs)
        finally:
            core.end_call(entry)

    @property
    def __wrapped__(self) -> Any:
        return self._method

    @property
    def __doc__(self) -> Any:  # type: ignore[override]
        return self._method.__doc__

    @property
    def __name__(self) -> Any:
        return self._method.__name__

    @property
    def __self__(self) -> Any:
        return self._lease

    def __repr__(self) -> str:
        return f"<{self._method.__name__} of {self._lease!r}>"


@cython.cfunc
@cython.inline
def _call(lease: Lease, method: object) -> Call:
    if cython.compiled:
        call: Call = Call.__new__(Call)
        call._lease = lease
        call._method = method
        return call
    else:
        return Call(lease, method)


if cython.compiled:
    _OWN = frozenset(dir(Lease))
else:
    # What a lease that was interrupted while it was made reads in its empty slots.
    _UNBORN = {"_entry": NO_ENTRY, "_waiter": NO_WAITER}
    # A lease forwards attribute writes; these are its own slots.
    _set_terms = Lease._terms.__set__  # type: ignore[attr-defined, misc]
    _set_entry = Lease._entry.__set__  # type: ignore[attr-defined, misc]
    _set_waiter = Lease._waiter.__set__  # type: ignore[attr-defined, misc]


@cython.cfunc
@cython.inline
def _lease(terms: Terms) -> Lease:
    lease: Lease
    if cython.compiled:
        lease = Lease.__new__(Lease)
        lease._terms = terms
        lease._entry = NO_ENTRY
        lease._waiter = NO_WAITER
    else:
        lease = Lease.__new__(Lease)
        _set_terms(lease, terms)
        _set_entry(lease, NO_ENTRY)  # an unset waiter reads as none
    return lease


@cython.final
@cython.cclass
class Core:
    """All state of one pool's connections and waiters.

    Invariants, true between any two sections:

    * every entry not CLOSED is in ``entries``; ``size == connecting + held +
      idle + leased + closing == len(entries) <= max_size`` (unless lowered);
      no dial begins at ``ceiling``;
    * an entry is in the idle ring exactly while its status is IDLE;
    * nobody waits while an entry is idle;
    * ``holder`` of a LEASED entry is the token of a living lease, or of one
      whose finalizer is about to run.
    """

    house = cython.declare(object, visibility="public")
    clock = cython.declare(object, visibility="readonly")
    phase = cython.declare(cython.int, visibility="readonly")
    generation = cython.declare(cython.longlong, visibility="readonly")
    # Settings, changed by configure() alone.
    timeout = cython.declare(cython.double, visibility="readonly")
    min_size = cython.declare(cython.longlong, visibility="readonly")
    max_size = cython.declare(cython.longlong, visibility="readonly")
    min_idle = cython.declare(cython.longlong, visibility="readonly")
    max_idle = cython.declare(cython.longlong, visibility="readonly")
    max_waiting = cython.declare(cython.longlong, visibility="readonly")
    max_uses = cython.declare(cython.longlong, visibility="readonly")
    check_after = cython.declare(cython.double, visibility="readonly")
    fifo = cython.declare(cython.bint, visibility="readonly")
    polls = cython.declare(cython.bint, visibility="readonly")
    vets = cython.declare(cython.bint, visibility="readonly")
    settles = cython.declare(cython.bint, visibility="readonly")
    # Gauges.
    entries = cython.declare(set[Entry], visibility="readonly")
    connecting = cython.declare(cython.longlong, visibility="readonly")
    held = cython.declare(cython.longlong, visibility="readonly")
    idle = cython.declare(cython.longlong, visibility="readonly")
    leased = cython.declare(cython.longlong, visibility="readonly")
    size = cython.declare(cython.longlong, visibility="readonly")
    waiting = cython.declare(cython.longlong, visibility="readonly")
    # ceiling: what size may grow to at the moment, 1 <= ceiling <= max_size: less than
    # that while the server has no room for more.
    ceiling = cython.declare(cython.longlong, visibility="readonly")
    # missed: a caller who would not wait found nothing; one dial answers that.
    missed = cython.declare(cython.longlong, visibility="readonly")
    # Counters.
    acquires = cython.declare(cython.longlong, visibility="readonly")
    waits = cython.declare(cython.longlong, visibility="readonly")
    wait_time = cython.declare(cython.double, visibility="readonly")
    served_time = cython.declare(cython.double, visibility="readonly")
    timeouts = cython.declare(cython.longlong, visibility="readonly")
    cancelled = cython.declare(cython.longlong, visibility="readonly")
    crowded = cython.declare(cython.longlong, visibility="readonly")
    histogram = cython.declare(list[int], visibility="readonly")
    # Of uses that were not short; how many were follows from the others.
    use_time = cython.declare(cython.double, visibility="readonly")
    use_histogram = cython.declare(list[int], visibility="readonly")
    short_uses = cython.declare(cython.longlong, visibility="readonly")
    # Entries whose connections are to be closed, for the house to take.
    closing = cython.declare(object, visibility="readonly")
    # refusal: why callers get nothing at the moment, while nothing is established.
    refusal = cython.declare(object, visibility="readonly")
    refused_until = cython.declare(cython.double, visibility="readonly")
    _idle = cython.declare(Entry)
    _queue = cython.declare(Waiter)
    _joined = cython.declare(cython.longlong)

    def __init__(self, house: Any = None, clock: Any = None) -> None:
        self.house = house
        self.clock = clock
        self.phase = NEW
        self.generation = 0
        self.timeout = math.inf
        self.min_size = 0
        self.max_size = self.ceiling = 1
        self.min_idle = 0
        self.max_idle = 1
        self.max_waiting = _UNLIMITED
        self.max_uses = _UNLIMITED
        self.check_after = math.inf
        self.fifo = False
        self.polls = True
        self.vets = False
        self.settles = False
        self.entries = set()
        self.connecting = self.held = self.idle = self.leased = self.size = 0
        self.waiting = self.missed = 0
        self.acquires = self.waits = self.timeouts = self.cancelled = self.crowded = 0
        self.wait_time = self.served_time = 0.0
        self.histogram = [0] * BUCKETS
        self.use_time = 0.0
        self.use_histogram = [0] * BUCKETS
        self.short_uses = 0
        self.closing = deque()
        self.refusal = None
        self.refused_until = 0.0
        self._idle = Entry(NO_ENTRY.state, -1, 0.0)
        self._idle.below = self._idle.above = self._idle
        # Older than everybody, so that a search for one's place ends there.
        self._queue = Waiter(0, 0, 0, None, -1, -math.inf, math.inf, None)
        self._queue.before = self._queue.after = self._queue
        self._joined = 0

    # -- settings and phases ---------------------------------------------------

    def configure(
        self,
        timeout: cython.double = math.inf,
        min_size: cython.longlong = 0,
        max_size: cython.longlong = 1,
        min_idle: cython.longlong = 0,
        max_idle: cython.longlong = 1,
        max_waiting: cython.longlong = -1,
        max_uses: cython.longlong = -1,
        check_after: cython.double = math.inf,
        fifo: cython.bint = False,
        polls: cython.bint = True,
        vets: cython.bint = False,
        settles: cython.bint = False,
    ) -> None:
        """Set all settings in one step. -1 = no limit, times in seconds.

        *polls*: ask the socket at each checkout. *vets* / *settles*: ask the
        house at each checkout / return, not only when there is a reason to.
        """
        if max_waiting < 0:
            max_waiting = _UNLIMITED
        if max_uses < 0:
            max_uses = _UNLIMITED
        with cython.critical_section(self):
            self.timeout = timeout
            self.min_size = min_size
            self.max_size = max_size
            self.ceiling = max_size
            self.min_idle = min_idle
            self.max_idle = max_idle
            self.max_waiting = max_waiting
            self.max_uses = max_uses
            self.check_after = check_after
            self.fifo = fifo
            self.polls = polls
            self.vets = vets
            self.settles = settles

    def start(self) -> bool:
        """NEW -> OPEN; False when it was not new."""
        with cython.critical_section(self):
            if self.phase != NEW:
                return False
            self.phase = OPEN
        return True

    def shut(self) -> bool:
        """Close for good: no one is served from now on, everyone who waits is
        told, idle connections are retired, others when they come back. False
        when it was closed already; what an interrupt had left is done then."""
        first: cython.bint = self._shut()
        while self._fail_first(None, True):
            pass
        self.retire_idle("closed")
        return first

    @cython.cfunc
    def _shut(self) -> cython.bint:
        with cython.critical_section(self):
            if self.phase == CLOSING_DOWN:
                return False
            self.phase = CLOSING_DOWN
            self.generation += 1
        return True

    def drain(self) -> None:
        """Make every connection old: idle ones are retired now, others when
        they come back, dials in flight when they end."""
        self._age()
        self.retire_idle("drained")

    @cython.cfunc
    def _age(self) -> None:
        with cython.critical_section(self):
            self.generation += 1

    # -- dialling --------------------------------------------------------------

    @cython.ccall
    def deficit(self) -> int:
        """How many more dials are wanted now; 0 or less for none."""
        return self._claim(NO_ENTRY, 0)

    def begin_dial(self) -> Entry | None:
        """Take one slot for a dial, if one is wanted: nothing -> CONNECTING. It is not
        wanted for those who will have gone before it can end."""
        entry: Entry
        waiter: Waiter
        late: cython.longlong = 0
        now: cython.double = self.now()
        state: State = State()
        if not cython.compiled:
            state.share(self)  # a return looks at both, and changes both, in one step
        entry = Entry(state, -1, now)
        for waiter in self.waiters():
            if waiter.until - now <= NO_TIME:
                late += 1
        return entry if self._claim(entry, late) > 0 else None

    @cython.cfunc
    def _claim(self, entry: Entry, late: cython.longlong) -> cython.longlong:
        """How many dials are wanted, with *late* of the waiters not counted; if any,
        *entry* takes one slot (not NO_ENTRY)."""
        wanted: cython.longlong
        lacking: cython.longlong
        with cython.critical_section(self):
            if self.phase != OPEN:
                return 0
            wanted = self.waiting - late - self.connecting
            if self.missed - self.connecting > wanted:
                wanted = self.missed - self.connecting
            lacking = self.min_size - (self.connecting + self.held + self.idle + self.leased)
            if lacking > wanted:
                wanted = lacking
            lacking = self.min_idle - self.idle - self.connecting
            if lacking > wanted:
                wanted = lacking
            if wanted > self.ceiling - self.size:
                wanted = self.ceiling - self.size
            if wanted > 0 and entry is not NO_ENTRY:
                entry.generation = self.generation
                self.connecting += 1
                self.size += 1
                self.entries.add(entry)
        return wanted

    def ask(self) -> None:
        """Want one more dial than the numbers ask for."""
        self.missed = 1

    def shrink(self) -> None:
        """The server has no room for more connections than are established; one may
        be dialled in any case."""
        with cython.critical_section(self):
            self.ceiling = self.held + self.idle + self.leased
            if self.ceiling < 1:
                self.ceiling = 1
            if self.ceiling > self.max_size:
                self.ceiling = self.max_size

    def regrow(self) -> None:
        """It may have room again."""
        with cython.critical_section(self):
            self.ceiling = self.max_size

    def adopt(self, entry: Entry, conn: Any, fd: cython.int) -> bool:
        """A dial ended well: CONNECTING -> HELD. The dialler puts it next.
        False when that dial has ended before."""
        _replaced: object  # not dropped inside: an error drags frames behind it
        with cython.critical_section(self):
            if entry.status != CONNECTING:
                return False
            self.connecting -= 1
            self.held += 1
            self.missed = 0
            _replaced, self.refusal = self.refusal, None
            entry.conn = conn
            entry.fd = fd
            entry.status = HELD
            entry.holder = HOUSE
        return True

    def limit_age(self, entry: Entry, expires: cython.double) -> None:
        """Do not hand the connection out from the time *expires* on."""
        with cython.critical_section(self):
            entry.expires = expires
            if expires < entry.due:
                entry.due = expires

    def suspect(self, entry: Entry) -> None:
        """Have an idle connection looked at closely before it is handed out."""
        with cython.critical_section(self):
            if entry.status == IDLE:
                entry.due = -1.0

    def outdate(self, entry: Entry) -> None:
        """Make one connection old: it is not handed out any more, and retired when
        it comes back."""
        with cython.critical_section(self):
            entry.generation = -1
            entry.due = -1.0

    def forget(self, entry: Entry) -> bool:
        """A dial failed: CONNECTING -> CLOSED, its slot is free. False when
        that dial has ended before."""
        with cython.critical_section(self):
            if entry.status != CONNECTING:
                return False
            self.connecting -= 1
            self.size -= 1
            self.missed = 0
            entry.status = CLOSED
            self.entries.discard(entry)
        return True

    def refuse(self, error: Any, until: cython.double) -> None:
        """Waiting is in vain: while nothing is established, fail everyone who
        waits and, up to the time *until*, everyone who comes, because of *error*."""
        self._refuse(error, until)
        while self._fail_first(error, False):
            pass

    @cython.cfunc
    def _refuse(self, error: object, until: cython.double) -> None:
        _replaced: object
        with cython.critical_section(self):
            _replaced, self.refusal = self.refusal, error
            self.refused_until = until

    # -- the hot path ----------------------------------------------------------

    @cython.ccall
    def now(self) -> cython.double:
        """Seconds on the monotonic clock (or the clock given)."""
        return monotonic() if self.clock is None else self.clock()

    @cython.cfunc
    @cython.inline
    def _coarse(self) -> cython.double:
        return coarse() if self.clock is None else self.clock()

    @cython.cfunc
    def _checkout(
        self, lease: Lease, terms: Terms, timeout: cython.double, tries: cython.bint
    ) -> cython.bint:
        """Give *lease*, on its *terms*, a connection. False only when it *tries* and
        there is none."""
        entry: Entry
        found: Entry | None
        lasti: cython.int = -1
        since: cython.double = -1.0
        until: cython.double = terms.deadline
        now: cython.double = coarse() if self.clock is None else self.clock()
        thread: cython.ulong = ident()
        who: cython.ulonglong = 2 * threadno() + terms.commits
        if cython.compiled:
            code = site(_skip, _also, cython.address(lasti))
        else:
            code = None
            try:
                frame = caller(2)
                place = frame.f_globals
                if place is _skip or place is _also:
                    frame = site(_skip, _also, frame)
                del place  # the caller's globals are nothing for a traceback's locals
                code = frame.f_code
                lasti = frame.f_lasti
            except (AttributeError, ValueError):
                pass  # called by no Python code: the first function of a raw thread
        if until != NEVER:
            until += monotonic()
        while True:
            found = self._take(lease, now, thread, who, code, lasti)
            if found is not None:
                entry = found
            elif self._queue_up(lease, timeout, until, tries, since, thread, who, code, lasti):
                entry = lease._entry
            else:
                return False
            entry.state.deadline = until
            if (
                entry.due > now
                and not self.vets
                and not (self.polls and entry.fd >= 0 and poll(entry.fd) != 0)
            ) or self._admitted(lease, entry, now if since < 0 else since, timeout):
                if self.idle < self.min_idle:
                    self.house.wanted()
                return True
            if cython.compiled:
                lease._entry = NO_ENTRY
            else:
                _set_entry(lease, NO_ENTRY)
            # Looking at dead ones takes time; whoever came meanwhile stands behind.
            if since < 0:
                since = now
            now = self._coarse()

    @cython.cfunc
    @cython.inline
    def _take(
        self,
        lease: Lease,
        now: cython.double,
        thread: cython.ulong,
        who: cython.ulonglong,
        code: object,
        lasti: cython.int,
    ) -> Entry | None:
        """The newest idle entry, if there is one, goes to *lease*: IDLE -> LEASED."""
        entry: Entry
        state: State
        _replaced: object
        idle: Entry = self._idle
        mine: cython.Py_ssize_t = token(lease)
        with cython.critical_section(self):
            if lease._entry is not NO_ENTRY:
                return None  # another thread has entered the same block
            while True:
                entry = idle.below
                if entry is idle:
                    # What was bound in a first round, others have taken meanwhile.
                    if cython.compiled:
                        lease._entry = NO_ENTRY
                    else:
                        _set_entry(lease, NO_ENTRY)
                    return None
                if cython.compiled:
                    lease._entry = entry
                else:
                    _set_entry(lease, entry)
                # Bound, but not held: nothing is lost if it ends here.
                if entry is idle.below:
                    break
            idle.below = entry.below
            entry.below.above = idle
            entry.status = LEASED
            entry.holder = mine
            state = entry.state
            state.serial = (state.serial | 1) + 2
            entry.uses += 1
            entry.since = now
            entry.thread = thread
            entry.who = who
            # The old code object may be the last of its kind: not dropped in here.
            _replaced, entry.code = entry.code, code
            entry.lasti = lasti
            self.idle -= 1
            self.leased += 1
            self.acquires += 1
        return entry

    @cython.cfunc
    def _admitted(
        self, lease: Lease, entry: Entry, since: cython.double, timeout: cython.double
    ) -> cython.bint:
        """May the connection of *lease* be used? If not it is retired; then a caller
        whose *timeout* is over, since *since*, looks for no other."""
        limit: cython.double = math.inf
        if timeout < 0:
            timeout = self.timeout
        if timeout > 0:  # who only tries waits for no connection, but for an answer
            limit = since + timeout
        try:
            reason = self.house.admit(entry, limit)
        except BaseException:
            self._give_back(lease)
            self.suspect(entry)  # it may not have been looked at yet
            raise
        if reason is None:
            entry.state.used = 0  # what a hook did was no use of the caller's
            return True
        self.retire(entry, token(lease), reason)
        if self._coarse() >= limit:
            self._count_timeout()
            raise self.house.refusal("timeout", timeout, self.now() - since, None)
        return False

    @cython.cfunc
    def _count_timeout(self) -> None:
        with cython.critical_section(self):
            self.timeouts += 1

    @cython.cfunc
    def _give_back(self, lease: Lease) -> None:
        """Release: plain ones are one section; the others ask the house."""
        entry: Entry = lease._entry
        self._after(entry, -token(lease), self._put(entry, token(lease), self._coarse()))

    @cython.cfunc
    def _after(self, entry: Entry, holder: cython.Py_ssize_t, verdict: cython.int) -> None:
        """What is left to do when an entry was put, or, held by *holder*, was not."""
        if verdict == HANDED_ON:
            _make_way(self)
        elif verdict == UNSETTLED:
            self._settle(entry, holder)
        elif verdict > UNSETTLED:
            self.retire(entry, holder, REASONS[verdict])

    @cython.cfunc
    def _settle(self, entry: Entry, holder: cython.Py_ssize_t) -> None:
        try:
            reason = self.house.settle(entry)
        except BaseException:
            self.retire(entry, holder, "error")
            raise
        if reason is None:
            self._put_or_retire(entry, holder)
        else:
            self.retire(entry, holder, reason)

    @cython.cfunc
    def _used(self, entry: Entry, holder: cython.Py_ssize_t, seconds: cython.double) -> None:
        """A lease that is about to come back was used for so long."""
        # No function of Python's: an interrupt at its entry would end a finalizer.
        bucket: cython.Py_ssize_t = min(int(seconds * 1e6).bit_length(), BUCKETS - 1)
        with cython.critical_section(self):
            if entry.holder == holder and entry.status == LEASED:
                self.use_time += seconds
                self.use_histogram[bucket] += 1

    def put(self, entry: Entry) -> None:
        """HELD by the house -> to the first who waits, or idle, or retired if
        it is not fit to be either."""
        self._put_or_retire(entry, HOUSE)

    @cython.cfunc
    def _put_or_retire(self, entry: Entry, holder: cython.Py_ssize_t) -> None:
        verdict: cython.int = self._put(entry, holder, self._coarse())
        if verdict == UNSETTLED:
            self.retire(entry, holder, REASONS[verdict])
        else:
            self._after(entry, holder, verdict)

    @cython.cfunc
    @cython.inline
    def _put(self, entry: Entry, holder: cython.Py_ssize_t, now: cython.double) -> cython.int:
        """LEASED or HELD by *holder* -> LEASED by the first who waits, or IDLE;
        or stays, HELD, with the reason why it cannot be put.

        A lease's entry that stays is held by minus its token: only its own
        release, or its finalizer, goes on with it.
        """
        state: State = entry.state
        idle: Entry
        waiter: Waiter
        _replaced: object
        verdict: cython.int
        returned: cython.int
        due: cython.double
        since: cython.double
        if now - entry.since >= SHORT_USE:
            self._used(entry, holder, now - entry.since)
        with cython.critical_section(self, state):
            if entry.holder != holder:
                return NOT_YOURS
            # 1 when it comes from a lease, 0 when from a pool thread.
            returned = 1 if entry.status == LEASED else 0
            due = now + self.check_after
            if entry.expires < due:
                due = entry.expires
            since = now if returned else entry.since
            if state.flags or state.stray or state.calls or (self.settles and returned):
                verdict = UNSETTLED
            elif entry.generation != self.generation:
                verdict = STALE
            elif entry.expires <= now:
                verdict = EXPIRED
            elif entry.uses >= self.max_uses:
                verdict = WORN
            elif (
                self.size > self.max_size  # with those that are being closed
                and self.connecting + self.held + self.idle + self.leased > self.max_size
            ):
                verdict = SURPLUS
            elif self.waiting:
                waiter = self._queue.after
                waiter.after.before = waiter.before
                waiter.before.after = waiter.after
                self.waiting -= 1
                self.held -= 1 - returned
                self.leased += 1 - returned
                entry.status = LEASED
                entry.holder = waiter.token
                state.serial = (state.serial | 1) + 2
                entry.uses += 1
                entry.since = now
                entry.due = due
                entry.thread = waiter.thread
                entry.who = waiter.who
                _replaced, entry.code = entry.code, waiter.code
                entry.lasti = waiter.lasti
                self.acquires += 1
                waiter.entry = entry
                waiter.status = ASSIGNED
                waiter.wake()
                return HANDED_ON
            elif self.idle >= self.max_idle:
                verdict = SURPLUS
            else:
                idle = self._idle
                if self.fifo:
                    entry.below = idle
                    entry.above = idle.above
                    entry.above.below = entry
                    idle.above = entry
                else:
                    entry.above = idle
                    entry.below = idle.below
                    entry.below.above = entry
                    idle.below = entry
                if returned:
                    self.leased -= 1
                else:
                    self.held -= 1
                self.idle += 1
                entry.status = IDLE
                entry.holder = 0
                state.serial = (state.serial | 1) + 1
                entry.since = since
                entry.due = due
                return KEPT
            if returned:
                self.leased -= 1
                self.held += 1
                entry.since = now
                entry.status = HELD
                entry.holder = -holder
                state.serial = (state.serial | 1) + 1
        return verdict

    @cython.ccall
    def begin_call(self, entry: Entry, holder: cython.Py_ssize_t) -> cython.bint:
        """A call through the lease *holder* begins; False when that has ended. A return
        by another thread, from now on, does not hand the connection on beneath it."""
        state: State = entry.state
        with cython.critical_section(self, state):
            if entry.holder != holder:
                return False
            state.calls += 1
        return True

    @cython.ccall
    def end_call(self, entry: Entry) -> None:
        """It has ended."""
        state: State = entry.state
        with cython.critical_section(self, state):
            state.calls -= 1

    # -- waiting ---------------------------------------------------------------

    @cython.cfunc
    def _queue_up(
        self,
        lease: Lease,
        timeout: cython.double,
        deadline: cython.double,
        tries: cython.bint,
        since: cython.double,
        thread: cython.ulong,
        who: cython.ulonglong,
        code: object,
        lasti: cython.int,
    ) -> cython.bint:
        """Wait in line until a connection is given, for *timeout* seconds or until
        *deadline*. The caller has been here since *since*, or, negative, has just
        come. False only when it *tries*."""
        waiter: Waiter
        verdict: cython.int
        limit: cython.double
        again: cython.bint = since >= 0
        if timeout < 0:
            timeout = self.timeout
        if not again:
            since = self.now()
        while True:
            limit = min(deadline, self.house.queueing())
            if limit != math.inf:  # it is on that clock; the core may have another
                limit += self.now() - monotonic()
            lock = _thread.allocate_lock()
            lock.acquire()
            waiter = Waiter(
                token(lease),
                thread,
                who,
                code,
                lasti,
                since,
                min(since + timeout, limit),
                lock.release,
            )
            verdict = self._wait(lease, waiter, lock, timeout <= 0, again)
            if waiter.status == ASSIGNED:
                return True
            elif verdict == JOINED and waiter.status == AWAY:
                kind = "deadline" if limit < since + timeout else "timeout"
                raise self.house.refusal(kind, timeout, self.now() - since, None)
            elif verdict == REFUSED or waiter.error is not None:
                raise self.house.refusal("connect", timeout, 0.0, waiter.error)
            elif verdict == JOINED:
                raise self.house.refusal("closed", timeout, 0.0, None)
            elif verdict == LOOK_AGAIN:
                if self._take(lease, self._coarse(), thread, who, code, lasti) is not None:
                    return True
            elif verdict == NOT_OPEN:
                if self.phase != NEW:
                    raise self.house.refusal("closed", timeout, 0.0, None)
                self.house.open()
            elif timeout > 0:
                raise self.house.refusal("crowded", timeout, 0.0, None)
            else:
                self.house.wanted()
                if tries:
                    return False
                raise self.house.refusal("timeout", 0.0, 0.0, None)

    @cython.cfunc
    def _wait(
        self,
        lease: Lease,
        waiter: Waiter,
        lock: Any,
        tries: cython.bint,
        again: cython.bint,
    ) -> cython.int:
        """Join, wait, leave; how it ended is in *waiter*, if it could join."""
        verdict: cython.int = LOOK_AGAIN
        interrupted = True
        if not self._queued(lease):
            raise ConnectionReleased("another thread has entered the same block")
        try:
            if cython.compiled:
                lease._waiter = waiter
            else:
                _set_waiter(lease, waiter)
            verdict = self._join(waiter, self._coarse(), tries, again)
            if verdict == JOINED:
                if self.deficit() > 0:
                    self.house.wanted()
                left = waiter.until - self.now()
                if self.deadlocked(waiter) == DOUBTFUL and left > 0:
                    lock.acquire(True, min(left, GRACE))
                self._untangle(waiter)
                left = waiter.until - self.now()
                if waiter.status == WAITING and left > 0:
                    lock.acquire(True, min(left, _thread.TIMEOUT_MAX))
            interrupted = False
        finally:
            self._waited(lease, waiter, interrupted)
        return verdict

    @cython.cfunc
    def _queued(self, lease: Lease) -> cython.bint:
        """*lease* waits from now on; False when another thread, which has entered the
        same block, waits or was served."""
        with cython.critical_section(self):
            if lease._entry is not NO_ENTRY:
                return False
            if cython.compiled:
                lease._entry = QUEUED
            else:
                _set_entry(lease, QUEUED)
        return True

    @cython.cfunc
    def _waited(self, lease: Lease, waiter: Waiter, interrupted: cython.bint) -> None:
        """The wait is over: *lease* has what it got, and none of it is lost."""
        if waiter.status != AWAY:
            elapsed = self.now() - waiter.since
            bucket = min(int(elapsed * 1e6).bit_length(), BUCKETS - 1)
            self._leave(waiter, elapsed, bucket, interrupted)
        if cython.compiled:
            lease._entry = waiter.entry
            lease._waiter = NO_WAITER
        else:
            _set_entry(lease, waiter.entry)
            _set_waiter(lease, NO_WAITER)
        # Out of the ring; each would keep the next in line alive, and that the next.
        waiter.before = waiter.after = NO_WAITER
        if interrupted:
            self._give_back(lease)

    @cython.ccall
    def _join(
        self, waiter: Waiter, now: cython.double, tries: cython.bint, again: cython.bint
    ) -> cython.int:
        """AWAY -> WAITING, behind all who came before: at the end of the queue,
        or further up when the connection that was found proved unfit (*again*)."""
        place: Waiter
        with cython.critical_section(self):
            place = self._queue.before
            while place.since > waiter.since:
                place = place.before
            if self.phase != OPEN:
                return NOT_OPEN
            if self._idle.below is not self._idle:
                return LOOK_AGAIN
            if (
                self.refusal is not None
                and now < self.refused_until
                and self.held + self.idle + self.leased == 0
            ):
                waiter.error = self.refusal
                return REFUSED
            if tries:
                self.timeouts += 1
                self.missed = 1
                return CROWDED
            if self.waiting >= self.max_waiting and not again:
                self.crowded += 1
                return CROWDED
            if place is not self._queue and place.status != WAITING:
                return LOOK_AGAIN
            if place.after is not self._queue and place.after.since <= waiter.since:
                return LOOK_AGAIN
            waiter.before = place
            waiter.after = place.after
            waiter.after.before = waiter
            place.after = waiter
            waiter.status = WAITING
            self.waiting += 1
            self._joined += 1
            waiter.turn = self._joined
            if waiter.until - now <= NO_TIME:
                self.missed = 1
        return JOINED

    @cython.cfunc
    def _untangle(self, waiter: Waiter) -> None:
        """Raise, if all who hold something wait here now, and the house says so."""
        if self.deadlocked(waiter) != UNTANGLED:
            error = self.house.deadlock(waiter.until - waiter.since)
            # It has taken its time, in which somebody may have moved.
            if error is not None and self.deadlocked(waiter) != UNTANGLED:
                raise error

    @cython.ccall
    def deadlocked(self, waiter: Waiter) -> cython.int:
        """Is every connection held by a thread that waits here, and last used by it,
        and *waiter* the last of these to have joined?

        DOUBTFUL, when some were not used yet: others may be about to. But one thread
        that acquires them all, and more, and not for with blocks, gives them to others.
        No step, and takes no lock: whatever moves makes it look again. Who comes to
        wait without holding anything has nothing to do with it.
        """
        entry: Entry
        state: State
        thread: cython.ulonglong = waiter.who >> 1
        doubt: cython.bint
        bare: cython.bint
        moves: cython.longlong
        while (
            self.leased >= self.max_size and self.size == self.leased and waiter.status == WAITING
        ):
            moves = self.acquires + self.waits
            entries = list(self.entries)
            for entry in entries:
                if entry.who >> 1 == thread and entry.status == LEASED:
                    break
            else:
                return UNTANGLED
            turns = {other.who >> 1: other.turn for other in sorted(self.waiters(), key=_turn)}
            threads = {entry.who >> 1 for entry in entries}
            doubt = bare = False
            for entry in entries:
                state = entry.state
                if entry.status != LEASED or turns.get(entry.who >> 1, math.inf) > waiter.turn:
                    return UNTANGLED
                if state.used == state.serial:
                    if state.user != entry.who >> 1:
                        return UNTANGLED
                else:
                    doubt = True
                    bare = bare or not entry.who & 1
            if moves == self.acquires + self.waits:
                if not doubt:
                    return TANGLED
                return DOUBTFUL if len(threads) > 1 or not bare else UNTANGLED
        return UNTANGLED

    @cython.ccall
    def _leave(
        self,
        waiter: Waiter,
        elapsed: cython.double,
        bucket: cython.Py_ssize_t,
        interrupted: cython.bint,
    ) -> None:
        """WAITING -> AWAY; or ASSIGNED, FAILED already: then that stands."""
        with cython.critical_section(self):
            if waiter.status == WAITING:
                waiter.after.before = waiter.before
                waiter.before.after = waiter.after
                waiter.status = AWAY
                self.waiting -= 1
                if interrupted:
                    self.cancelled += 1
                else:
                    self.timeouts += 1
            elif waiter.status == ASSIGNED:
                self.served_time += elapsed
            self.waits += 1
            self.wait_time += elapsed
            self.histogram[bucket] += 1

    def _fail_first(self, error: Any, closing: cython.bint) -> bool:
        """The first who waits: WAITING -> FAILED, because of *error*; unless
        there are connections to wait for, or nobody waits: False."""
        waiter: Waiter
        with cython.critical_section(self):
            waiter = self._queue.after
            if waiter is self._queue:
                return False
            if not closing and self.held + self.idle + self.leased > 0:
                return False
            waiter.after.before = waiter.before
            waiter.before.after = waiter.after
            self.waiting -= 1
            waiter.error = error
            waiter.status = FAILED
            waiter.wake()
        return True

    # -- out of circulation ----------------------------------------------------

    def hold(self, entry: Entry) -> bool:
        """IDLE -> HELD by the house, to work on it; False when it is not idle."""
        with cython.critical_section(self):
            if entry.status != IDLE:
                return False
            entry.below.above = entry.above
            entry.above.below = entry.below
            entry.status = HELD
            entry.holder = HOUSE
            self.idle -= 1
            self.held += 1
        return True

    def put_below(self, entry: Entry) -> None:
        """HELD by the house -> idle again, under all others: where a connection
        that was only looked after came from. It was found alive just now."""
        if not self._put_below(entry, self._coarse()):
            self.put(entry)

    @cython.cfunc
    def _put_below(self, entry: Entry, now: cython.double) -> cython.bint:
        due: cython.double
        with cython.critical_section(self):
            if (
                entry.holder != HOUSE
                or entry.state.flags != 0
                or entry.state.stray != 0
                or entry.state.calls != 0
                or entry.generation != self.generation
                or self.connecting + self.held + self.idle + self.leased > self.max_size
                or self._queue.after is not self._queue
            ):
                return False
            due = now + self.check_after
            if entry.expires < due:
                due = entry.expires
            entry.below = self._idle
            entry.above = self._idle.above
            entry.above.below = entry
            self._idle.above = entry
            entry.status = IDLE
            entry.holder = 0
            entry.due = due
            self.held -= 1
            self.idle += 1
        return True

    def retire(self, entry: Entry, holder: cython.Py_ssize_t, reason: str) -> bool:
        """IDLE (*holder* 0), LEASED or HELD -> CLOSING. The slot stays taken
        until :meth:`bury`. False when *holder* does not have it any more."""
        try:
            if not self._retire(entry, holder, reason):
                return False
            self.house.disposed()
        except BaseException:
            # An interrupt, perhaps just after the step: what is not told is not closed.
            self.house.disposed()
            raise
        return True

    @cython.cfunc
    def _retire(self, entry: Entry, holder: cython.Py_ssize_t, reason: str) -> cython.bint:
        with cython.critical_section(self):
            if entry.holder != holder or entry.status == CONNECTING or entry.status >= CLOSING:
                return False
            if entry.status == IDLE:
                entry.below.above = entry.above
                entry.above.below = entry.below
                self.idle -= 1
            elif entry.status == LEASED:
                self.leased -= 1
            else:
                self.held -= 1
            entry.status = CLOSING
            entry.holder = 0
            entry.reason = reason
            entry.state.serial = (entry.state.serial | 1) + 1
            self.closing.append(entry)
        return True

    def retire_idle(self, reason: str) -> None:
        """Retire all that is idle now; not what is put meanwhile."""
        for entry in self.idle_entries():
            self.retire(entry, 0, reason)

    def retire_leased(self, reason: str) -> list[Entry]:
        """Take every connection away from its holder, or from the release that is
        still working on it; returns them."""
        entry: Entry
        holder: cython.Py_ssize_t
        taken = []
        for entry in list(self.entries):
            holder = entry.holder
            if holder != 0 and holder != HOUSE and self.retire(entry, holder, reason):
                entry.taken_from = holder
                taken.append(entry)
        return taken

    def detach(self, entry: Entry, holder: cython.Py_ssize_t) -> bool:
        """LEASED -> CLOSED without closing: it is its holder's for good."""
        with cython.critical_section(self):
            if entry.holder != holder or entry.status != LEASED:
                return False
            self.leased -= 1
            self.size -= 1
            entry.status = CLOSED
            entry.holder = 0
            entry.reason = "detached"
            self.entries.discard(entry)
        return True

    def bury(self, entry: Entry) -> None:
        """CLOSING -> CLOSED: the server has closed its side, the slot is free."""
        if self._bury(entry):
            # Whoever still knows the entry keeps neither its neighbours nor its connection.
            entry.below = entry.above = NO_ENTRY
            entry.conn = None

    @cython.cfunc
    def _bury(self, entry: Entry) -> cython.bint:
        with cython.critical_section(self):
            if entry.status != CLOSING:
                return False
            self.size -= 1
            entry.status = CLOSED
            self.entries.discard(entry)
        return True

    def begin_cancel(self, lease: Lease) -> Entry:
        """The entry of *lease*, which nobody else gets before the cancel request
        that is to follow has ended: :meth:`State.cancelled`."""
        entry: Entry = lease._entry
        if not self._begin_cancel(entry, token(lease)):
            raise ConnectionReleased("the connection was given back to the pool")
        return entry

    @cython.cfunc
    def _begin_cancel(self, entry: Entry, holder: cython.Py_ssize_t) -> cython.bint:
        with cython.critical_section(self):
            if entry.holder != holder:
                return False
            entry.state.stray += 1
        return True

    def _lost(self, entry: Entry, waiter: Waiter, mine: cython.Py_ssize_t) -> None:
        """A lease died that held, or awaited, a connection. Runs in a finalizer:
        does no I/O, and is safe inside any other operation of its thread."""
        verdict: cython.int
        if waiter.status != AWAY:
            # Interrupted between joining the queue and leaving it.
            self._leave(waiter, 0.0, 0, True)
        if waiter.entry is not NO_ENTRY:
            entry = waiter.entry
        if entry.holder == mine:
            # Whose it was is forgotten when somebody else has it.
            code, lasti = entry.code, entry.lasti
            verdict = self._put(entry, mine, self._coarse())
            if verdict >= UNSETTLED:
                self.retire(entry, -mine, "lost")
            self.house.lost(_place(code, lasti))
        elif entry.holder == -mine:
            self.retire(entry, -mine, "lost")

    # -- forks -----------------------------------------------------------------

    def begin_in_child(self) -> list[Any]:
        """In a forked child: forget all connections and who waits, since they are
        the parent's. Returns the connections, for their sockets to be dropped.

        No other thread runs here, and one that is gone may have had a lock, and been
        anywhere: so this is no section, and all is made anew. Leases are dead, the
        phase stays, counters start at zero. Who waits in this very thread, which
        forked in a signal handler, goes on waiting.
        """
        entry: Entry
        waiter: Waiter
        last: Waiter = self._queue
        me: cython.ulong = ident()
        if not cython.compiled:
            self.unlock()
        entries = list(self.entries)
        connections = [entry.conn for entry in entries if entry.conn is not None]
        mine = [waiter for waiter in self.waiters() if waiter.thread == me]
        # First: nothing old is handed out from here on, nor kept.
        self._idle.below = self._idle.above = self._idle
        self.generation += 1
        for entry in entries:
            if not cython.compiled:
                entry.state.unlock()
            entry.status = CLOSED
            entry.holder = 0
            entry.reason = "forked"
            entry.state.serial = (entry.state.serial | 1) + 1
            entry.conn = None
            entry.below = entry.above = NO_ENTRY
        for waiter in mine:
            waiter.before = last
            last.after = waiter
            last = waiter
        last.after = self._queue
        self._queue.before = last
        self.waiting = len(mine)
        # Last, whatever a signal handler or a finalizer has done meanwhile.
        self._idle.below = self._idle.above = self._idle
        self.entries = set()
        self.closing = deque()
        self.connecting = self.held = self.idle = self.leased = self.size = 0
        self.missed = 0
        self.refusal = None
        self.acquires = self.waits = self.timeouts = self.cancelled = self.crowded = 0
        self.wait_time = self.served_time = self.use_time = 0.0
        self.histogram = [0] * BUCKETS
        self.short_uses = 0
        self.use_histogram = [0] * BUCKETS
        return connections

    # -- what is known ---------------------------------------------------------

    def idle_entries(self) -> list[Entry]:
        """The idle entries, next to be served first. A moment's picture."""
        found: list[Entry] = []
        entry: Entry = self._idle.below
        while entry is not self._idle and len(found) <= self.size:
            found.append(entry)
            entry = entry.below
        return [entry for entry in found if entry.status == IDLE]

    def waiters(self) -> list[Waiter]:
        """Who waits, first in line first. A moment's picture."""
        found: list[Waiter] = []
        waiter: Waiter = self._queue.after
        while waiter is not self._queue and len(found) <= self.waiting:
            found.append(waiter)
            waiter = waiter.after
        return [waiter for waiter in found if waiter.status == WAITING]

    def snapshot(self) -> dict[str, Any]:
        """All gauges and counters of one moment."""
        with cython.critical_section(self):
            size, connecting, held = self.size, self.connecting, self.held
            idle, leased, waiting = self.idle, self.leased, self.waiting
            acquires, waits, timeouts = self.acquires, self.waits, self.timeouts
            wait_time, served_time = self.wait_time, self.served_time
            cancelled, crowded = self.cancelled, self.crowded
            min_size, max_size = self.min_size, self.max_size
            use_time = self.use_time
        uses = list(self.use_histogram)
        # One that is counted and has not ended yet must not make a counter go back.
        self.short_uses = max(self.short_uses, acquires - leased - sum(uses))
        uses[SHORT] += self.short_uses
        return {
            "size": size,
            "connecting": connecting,
            "held": held,
            "idle": idle,
            "leased": leased,
            "closing": size - connecting - held - idle - leased,
            "waiting": waiting,
            "min_size": min_size,
            "max_size": max_size,
            "acquires": acquires,
            "waits": waits,
            "wait_time": wait_time,
            "served_time": served_time,
            "timeouts": timeouts,
            "cancelled": cancelled,
            "crowded": crowded,
            "histogram": tuple(self.histogram),
            "use_time": use_time,
            "use_histogram": tuple(uses),
        }


_UNLIMITED = cython.declare(cython.longlong, 2**62)


def _turn(waiter: Waiter) -> cython.longlong:
    return waiter.turn


@cython.cfunc
@cython.inline
def _make_way(core: Core) -> None:
    """After a hand-off give the processor too, so that the connection's next
    query leaves now and not after the releaser's next computation. To yield is
    enough where the waiter runs next; else only a nap keeps the GIL free for it."""
    if cython.compiled:
        if HAS_GIL:
            waits: cython.longlong = core.waits
            with cython.nogil:
                give_way()
                if core.waits == waits:  # nobody has come out of a wait yet
                    nap()
    else:
        nap()


TRY = "try"
OVER = "already over"


# As errors.seconds, where a call must cost little.
def _checked_seconds(name: str, value: Any, zero: str) -> cython.double:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise not_seconds(name, value, zero)
    return value


@cython.cfunc
def _terms(usual: Terms, timeout: object, deadline: object) -> Terms:
    """*usual*, but for what one call says."""
    limit: cython.double = usual.timeout
    whole: cython.double = usual.deadline
    if timeout is not None:
        limit = _checked_seconds("timeout", timeout, TRY)
    if deadline is not None:
        whole = _checked_seconds("deadline", deadline, OVER)
    return Terms(usual.core, limit, usual.commits, whole)


@cython.cclass
class Checkout:
    """Where callers get connections and give them back: a core, and its terms."""

    _core = cython.declare(Core, visibility="readonly")
    _block = cython.declare(Terms)
    _plain = cython.declare(Terms)

    def __init__(self, core: Core, timeout: Any = None, deadline: Any = None) -> None:
        limit: cython.double = (
            -1.0 if timeout is None else _checked_seconds("timeout", timeout, TRY)
        )
        whole: cython.double = math.inf
        if deadline is not None:
            whole = _checked_seconds("deadline", deadline, OVER)
        self._core = core
        self._block = Terms(core, limit, True, whole)
        self._plain = Terms(core, limit, False, whole)

    def connection(self, timeout: Any = None, deadline: Any = None) -> Any:
        """A connection for one ``with`` block.

        Waits at most *timeout* seconds (default: the pool's ``timeout``;
        ``math.inf``: no limit; 0: try). A block that ends well is **committed**
        if a transaction is open, one that raises is **rolled back**; either way
        the connection goes back to the pool.

        *deadline*, in seconds from now, bounds the wait and every statement of the
        block together. A statement that runs when it passes is cancelled, and raises
        ``DeadlineExceeded`` unless its answer comes all the same; none is sent after
        it. COMMIT and ROLLBACK are never cancelled: a transaction whose deadline has
        passed is rolled back instead of committed, and one whose COMMIT got no answer
        in time raises with ``outcome="unknown"``. See also :class:`fastpool.deadline`.

        Raises ``PoolTimeout``, ``DeadlineExceeded``, ``TooManyRequests``,
        ``PoolClosed``, or ``ConnectFailed``; ``TransactionAborted`` when the block
        ends well in a transaction that the server has aborted already.
        """
        if timeout is None and deadline is None:
            return _lease(self._block)
        return _lease(_terms(self._block, timeout, deadline))

    def acquire(self, timeout: Any = None, deadline: Any = None) -> Any:
        """A connection, until it is given back: ``lease.release()``.

        Waits as :meth:`connection` does, with the same limits, and raises the same.
        Releasing rolls an open transaction back; nothing is committed for you.
        """
        terms: Terms = self._plain
        if timeout is not None or deadline is not None:
            terms = _terms(terms, timeout, deadline)
        lease: Lease = _lease(terms)
        self._core._checkout(lease, terms, terms.timeout, False)
        return lease

    def try_acquire(self) -> Any:
        """An idle connection, or ``None`` at once; then a dial is begun if there
        is room, so that a later try finds one."""
        lease: Lease = _lease(self._plain)
        if self._core._checkout(lease, self._plain, 0.0, True):
            return lease
        return None

    def release(self, lease: Any) -> None:
        """Give *lease* back: the same as ``lease.release()``."""
        if type(lease) is not Lease:
            raise TypeError(f"expected what acquire() returned, not {type(lease).__name__}")
        mine: Lease = lease
        if mine._terms.core is not self._core:
            raise ValueError("the connection belongs to another pool")
        self._core._give_back(mine)
