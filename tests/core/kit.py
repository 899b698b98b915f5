"""A core to try out: a house that does what it is told, and connections of straw."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

from support import eventually

STATUS = {"connecting": 0, "held": 1, "idle": 2, "leased": 3, "closing": 4, "closed": 5}
WAITER = {"away": 0, "waiting": 1, "assigned": 2, "failed": 3}
DIRTY = 2
FOREVER = 60.0
"""Longer than any test may take; nobody gets to wait for it."""


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Conn:
    """What a driver would call a connection."""

    kind = "straw"

    def __init__(self, name: object = None) -> None:
        self.name = name
        self.calls: list[str] = []

    def run(self, sql: str, **params: Any) -> tuple[str, dict[str, Any]]:
        """Run a statement."""
        self.calls.append(sql)
        return sql, params

    def within(self, call: Callable[[], Any]) -> Any:
        """Make a call inside of one."""
        return call()

    def __repr__(self) -> str:
        return f"<Conn {self.name}>"


class Refusal(Exception):
    """What :meth:`House.refusal` makes of its arguments."""

    def __init__(self, kind: str, timeout: float, waited: float, error: object) -> None:
        super().__init__(kind)
        self.kind, self.timeout, self.waited, self.error = kind, timeout, waited, error


class House:
    """Answers the core as scripted, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.sites: list[str] = []
        self.limits: list[float] = []
        """Of the callers for whom a closer look was taken."""
        self.deadline = math.inf
        # Each a function of the entry, or of nothing.
        self.on_open: Callable[[], object] = lambda: None
        self.on_wanted: Callable[[], object] = lambda: None
        self.on_admit: Callable[[Any], str | None] = lambda entry: None
        self.on_settle: Callable[[Any], str | None] = lambda entry: None
        self.on_finish: Callable[[Any], object] = lambda entry: None
        # What to raise in whose connection was taken away.
        self.on_taken: Callable[[Any], BaseException | None] = lambda entry: None
        # What to raise in who closes a circle of waits.
        self.on_deadlock: Callable[[], BaseException | None] = lambda: None
        # Around each script: what it does is not the caller's doing.
        self.aside: Callable[[], AbstractContextManager[object]] = nullcontext

    def open(self) -> None:
        self.calls.append("open")
        with self.aside():
            self.on_open()

    def wanted(self) -> None:
        self.calls.append("wanted")
        with self.aside():
            self.on_wanted()

    def queueing(self) -> float:
        self.calls.append("queueing")
        return self.deadline

    def disposed(self) -> None:
        self.calls.append("disposed")

    def admit(self, entry: Any, limit: float) -> str | None:
        self.calls.append("admit")
        self.limits.append(limit)
        with self.aside():
            return self.on_admit(entry)

    def settle(self, entry: Any) -> str | None:
        self.calls.append("settle")
        with self.aside():
            return self.on_settle(entry)

    def finish(self, entry: Any) -> None:
        self.calls.append("finish")
        with self.aside():
            self.on_finish(entry)

    def transaction(self, lease: Any, **options: Any) -> Any:
        return lease, options

    def deadlock(self, timeout: float) -> BaseException | None:
        self.calls.append("deadlock")
        with self.aside():
            return self.on_deadlock()

    def lost(self, where: str) -> None:
        self.calls.append("lost")
        self.sites.append(where)

    def refusal(self, kind: str, timeout: float, waited: float, error: object) -> BaseException:
        return Refusal(kind, timeout, waited, error)

    def taken(self, entry: Any) -> BaseException | None:
        self.calls.append("taken")
        return self.on_taken(entry)


class Rig:
    """A core, opened, with *size* idle connections; *settings* as configure() has them."""

    def __init__(
        self, module: ModuleType, size: int = 0, clock: Any = None, **settings: Any
    ) -> None:
        self.module = module
        self.house = House()
        self.core = module.Core(self.house, clock)
        settings = {"timeout": FOREVER, "max_size": max(size, 1), "max_idle": 100, **settings}
        self.core.configure(**settings)
        self.core.start()
        self.checkout = module.Checkout(self.core)
        self.connection = self.checkout.connection
        self.acquire = self.checkout.acquire
        self.try_acquire = self.checkout.try_acquire
        for n in range(size):
            self.dial(n)

    def begin(self) -> Any:
        """Begin a dial, whether one is wanted or not."""
        self.core.ask()
        entry = self.core.begin_dial()
        assert entry is not None
        return entry

    def dial(self, name: object = None, fd: int = -1) -> Any:
        """Add a connection; it goes to whoever waits, or is idle."""
        entry = self.begin()
        self.core.adopt(entry, Conn(name), fd)
        self.core.put(entry)
        return entry

    def waiter(
        self, wake: Callable[[], object] = bool, thread: int = 0, *, who: int = 0, age: float = 0.0
    ) -> Any:
        """Somebody who waits without a thread; his token is that of nobody."""
        return Somebody(self, wake, thread, age=age, who=who)

    def entry_of(self, lease: Any) -> Any:
        return lease._entry_of(self.core)

    def bury(self) -> int:
        """Close what is to be closed; returns how many."""
        if self.core.closing:
            assert "disposed" in self.house.calls, "nobody was told that there is work"
        count = 0
        while self.core.closing:
            self.core.bury(self.core.closing.popleft())
            count += 1
        return count

    def check(self) -> None:
        """What is true between any two steps."""
        core = self.core
        seen = core.snapshot()
        entries = list(core.entries)
        parts = ("connecting", "held", "idle", "leased", "closing")
        assert seen["size"] == sum(seen[part] for part in parts) == len(entries)
        for part in parts:
            assert seen[part] == sum(e.status == STATUS[part] for e in entries), part
        idle = core.idle_entries()
        assert len(idle) == len(set(idle)) == seen["idle"]
        assert all(entry.holder == 0 for entry in idle)
        waiters = core.waiters()
        assert len(waiters) == seen["waiting"]
        assert [w.since for w in waiters] == sorted(w.since for w in waiters)
        assert not (idle and waiters), "somebody waits beside an idle connection"
        for entry in entries:
            assert (entry.state.serial & 1) == (entry.status == STATUS["leased"])

    def check_whole(self) -> None:
        """All that was begun has ended: no lease, no waiter, each slot idle or free."""
        gc.collect()
        self.bury()
        self.check()
        seen = self.core.snapshot()
        assert seen["waiting"] == 0, "a ghost waits"
        assert seen["size"] == seen["idle"], {k: seen[k] for k in ("held", "leased", "connecting")}

    def check_serves(self) -> None:
        """Every slot can still be taken, filled and given back."""
        self.check_whole()
        while self.core.size < self.core.max_size:
            self.dial()
        leases = [self.acquire(timeout=0) for _ in range(self.core.size)]
        assert len({id(lease.driver_connection) for lease in leases}) == self.core.max_size
        for lease in leases:
            lease.release()
        self.check()
        assert self.core.idle == self.core.max_size


class Somebody:
    """A caller without a thread: the steps of waiting, one by one."""

    _tokens = iter(range(1 << 40, 1 << 41, 16))

    def __init__(
        self,
        rig: Rig,
        wake: Callable[[], object],
        thread: int = 0,
        token: int | None = None,
        age: float = 0.0,
        who: int = 0,
    ) -> None:
        self.rig = rig
        self.who = who
        self.token = next(self._tokens) if token is None else token
        self.since = rig.core.now() - age
        self.waiter = self._waiter(thread, wake)
        self.left = False

    def _waiter(self, thread: int, wake: Callable[[], object]) -> Any:
        return self.rig.module.Waiter(
            self.token, thread, self.who, None, -1, self.since, math.inf, wake
        )

    def join(self, *, tries: bool = False, again: bool = False) -> int:
        result: int = self.rig.core._join(self.waiter, self.rig.core.now(), tries, again)
        return result

    def leave(self, *, interrupted: bool = False) -> None:
        self.left = True
        elapsed = self.rig.core.now() - self.since
        self.rig.core._leave(self.waiter, elapsed, int(elapsed * 1e6).bit_length(), interrupted)

    def drop(self) -> None:
        """Be gone without a word, as a lease whose thread was interrupted."""
        waiter = self._waiter(0, bool) if self.left else self.waiter
        self.rig.core._lost(self.waiter.entry, waiter, self.token)

    @property
    def status(self) -> str:
        return ("away", "waiting", "assigned", "failed")[self.waiter.status]


class Caller(threading.Thread):
    """A thread that waits for a connection; :meth:`go` makes it give it back."""

    def __init__(self, rig: Rig, served: list[object], name: object, timeout: float = FOREVER):
        super().__init__(daemon=True)
        self.rig, self.served, self.label, self.timeout = rig, served, name, timeout
        self.outcome: BaseException | None = None
        self.lease: Any = None
        self._go = threading.Event()

    def run(self) -> None:
        try:
            self.lease = self.rig.acquire(timeout=self.timeout)
        except BaseException as error:
            self.outcome = error
            return
        self.served.append(self.label)
        assert self._go.wait(FOREVER)
        self.lease.release()

    def queue(self) -> Caller:
        """Start, and return when the thread stands in the queue."""
        before = self.rig.core.waiting
        self.start()
        eventually(lambda: self.rig.core.waiting == before + 1)
        return self

    def go(self) -> None:
        self._go.set()
        self.end()

    def end(self) -> None:
        self.join(30)
        assert not self.is_alive()
