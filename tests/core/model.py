"""What the core does, without any of its care: lists, and one step after another.

Entries and waiters are numbers to the outside; whoever holds an entry is a number too:
a lease's or a waiter's, its negative while a release works on it, HOUSE, or NOBODY.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

NOBODY, HOUSE = 0, 1


@dataclass(eq=False)
class Entry:
    name: int
    generation: int
    since: float
    status: str = "connecting"
    holder: int = NOBODY
    uses: int = 0
    expires: float = math.inf
    due: float = math.inf
    flags: int = 0
    stray: int = 0
    calls: int = 0
    reason: str = ""
    # Whose it is; and who used it last, since it was handed out.
    who: object = None
    user: object = None
    scoped: bool = False


@dataclass(eq=False)
class Waiter:
    token: int
    since: float
    who: object = None
    scoped: bool = False
    status: str = "away"
    entry: Entry | None = None
    error: object = None


@dataclass(eq=False)
class Model:
    settings: dict[str, Any]
    now: float
    entries: list[Entry] = field(default_factory=list)
    idle: list[Entry] = field(default_factory=list)
    queue: list[Waiter] = field(default_factory=list)
    closing: list[Entry] = field(default_factory=list)
    woken: list[int] = field(default_factory=list)
    joined: list[Waiter] = field(default_factory=list)
    generation: int = 0
    closed: bool = False
    missed: int = 0
    refusal: tuple[object, float] | None = None
    counts: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            (
                "acquires",
                "waits",
                "wait_time",
                "served_time",
                "timeouts",
                "cancelled",
                "crowded",
                "use_time",
            ),
            0,
        )
    )
    # Scripts, by name of the entry: what a look at it, and what settling it, comes to.
    unfit: dict[int, str] = field(default_factory=dict)
    cures: dict[int, str] = field(default_factory=dict)

    def count(self, *parts: str) -> int:
        return sum(e.status in parts for e in self.entries)

    @property
    def size(self) -> int:
        return self.live + self.count("closing")

    @property
    def live(self) -> int:
        return self.count("connecting", "held", "idle", "leased")

    def deficit(self) -> int:
        dials, s = self.count("connecting"), self.settings
        wanted = max(
            len(self.queue) - dials,
            self.missed - dials,
            s["min_size"] - self.live,
            s["min_idle"] - len(self.idle) - dials,
        )
        return 0 if self.closed else min(wanted, s["max_size"] - self.size)

    def begin_dial(self) -> int | None:
        if self.deficit() <= 0:
            return None
        self.entries.append(Entry(len(self.entries), self.generation, self.now))
        return len(self.entries) - 1

    def adopt(self, e: Entry) -> bool:
        if e.status != "connecting":
            return False
        e.status, e.holder, self.missed, self.refusal = "held", HOUSE, 0, None
        return True

    def forget(self, e: Entry) -> bool:
        if e.status != "connecting":
            return False
        e.status, self.missed = "closed", 0
        return True

    def refuse(self, error: object, until: float) -> None:
        self.refusal = error, until
        while self.queue and not self.count("held", "idle", "leased"):
            self.fail(error)

    def fail(self, error: object) -> None:
        waiter = self.queue.pop(0)
        waiter.status, waiter.error = "failed", error
        self.woken.append(waiter.token)

    def hand(self, e: Entry, holder: int, who: object, scoped: bool) -> None:
        e.status, e.holder, e.since = "leased", holder, self.now
        e.who, e.user, e.scoped = who, None, scoped
        e.uses += 1
        self.counts["acquires"] += 1

    def shelve(self, e: Entry, *, below: bool) -> None:
        e.status, e.holder = "idle", NOBODY
        e.due = min(self.now + self.settings["check_after"], e.expires)
        self.idle.insert(len(self.idle) if below else 0, e)

    def put(self, e: Entry, holder: int) -> str:
        """``kept``, ``given``, or why neither; or nothing when it is not *holder*'s."""
        s, leased = self.settings, e.status == "leased"
        if e.holder != holder:
            return ""
        if leased:
            self.counts["use_time"] += self.now - e.since
        if e.flags or e.stray or e.calls or (s["settles"] and leased):
            why = "broken"
        elif e.generation != self.generation:
            why = "drained"
        elif e.expires <= self.now:
            why = "max_lifetime"
        elif 0 <= s["max_uses"] <= e.uses:
            why = "max_uses"
        elif self.live > s["max_size"]:
            why = "max_idle"
        elif self.queue:
            waiter = self.queue.pop(0)
            self.hand(e, waiter.token, waiter.who, waiter.scoped)
            e.due = min(self.now + s["check_after"], e.expires)
            waiter.status, waiter.entry = "assigned", e
            self.woken.append(waiter.token)
            return "given"
        elif len(self.idle) >= s["max_idle"]:
            why = "max_idle"
        else:
            e.since = self.now if leased else e.since
            self.shelve(e, below=s["fifo"])
            return "kept"
        if leased:
            e.status, e.holder, e.since = "held", -holder, self.now
        return why

    def put_or_retire(self, e: Entry, holder: int) -> None:
        why = self.put(e, holder)
        if why not in ("", "kept", "given"):
            self.retire(e, holder, why)

    def put_below(self, e: Entry) -> None:
        fit = e.status == "held" and not (e.flags or e.stray) and e.generation == self.generation
        fit = fit and e.holder == HOUSE and self.live <= self.settings["max_size"]
        if fit and not self.queue:
            self.shelve(e, below=True)
        else:
            self.put_or_retire(e, HOUSE)

    def retire(self, e: Entry, holder: int, reason: str) -> bool:
        if e.holder != holder or e.status not in ("held", "idle", "leased"):
            return False
        if e in self.idle:
            self.idle.remove(e)
        e.status, e.holder, e.reason = "closing", NOBODY, reason
        self.closing.append(e)
        return True

    def retire_idle(self, reason: str) -> None:
        while self.idle:
            self.retire(self.idle[0], NOBODY, reason)

    def drain(self) -> None:
        self.generation += 1
        self.retire_idle("drained")

    def shut(self) -> bool:
        first, self.closed = not self.closed, True
        self.generation += first
        while self.queue:
            self.fail(None)
        self.retire_idle("closed")
        return first

    def hold(self, e: Entry) -> bool:
        if e.status != "idle":
            return False
        self.idle.remove(e)
        e.status, e.holder = "held", HOUSE
        return True

    def detach(self, e: Entry, holder: int) -> bool:
        if e.holder != holder or e.status != "leased":
            return False
        e.status, e.holder, e.reason = "closed", NOBODY, "detached"
        return True

    def bury(self) -> None:
        if self.closing:
            self.closing.pop(0).status = "closed"

    def acquire(self, holder: int, who: object) -> Entry | str:
        """The entry, or what becomes of a caller who does not wait."""
        while self.idle:
            e = self.idle.pop(0)
            self.hand(e, holder, who, scoped=False)
            if e.due > self.now and not self.settings["vets"]:
                return e
            verdict = self.unfit.get(e.name)
            if verdict is None:
                return e
            if verdict == "raise":
                failed = self.release(e, holder)
                if not failed and e.status == "idle":
                    e.due = -1.0  # it was not looked at yet
                return failed or "admit"
            self.retire(e, holder, verdict)
        established = self.count("held", "idle", "leased")
        if self.closed:
            return "closed"
        if self.refusal and self.now < self.refusal[1] and not established:
            return "connect"
        self.counts["timeouts"] += 1
        self.missed = 1
        return "timeout"

    def release(self, e: Entry, holder: int) -> str:
        """``settle`` when that raised."""
        why = self.put(e, holder)
        if why in ("", "kept", "given"):
            return ""
        cure = self.cures.get(e.name, "clean") if why == "broken" else why
        if cure == "raise":
            self.retire(e, -holder, "error")
            return "settle"
        if cure == "clean":
            e.flags = 0
        if cure in ("clean", "useless"):
            self.put_or_retire(e, -holder)
        else:
            self.retire(e, -holder, cure)
        return ""

    def join(self, waiter: Waiter, *, tries: bool, again: bool) -> str:
        full = 0 <= self.settings["max_waiting"] <= len(self.queue)
        if self.closed:
            return "not open"
        if self.idle:
            return "look again"
        established = self.count("held", "idle", "leased")
        if self.refusal and self.now < self.refusal[1] and not established:
            return "refused"
        if tries:
            self.counts["timeouts"] += 1
            self.missed = 1
            return "crowded"
        if full and not again:
            self.counts["crowded"] += 1
            return "crowded"
        behind = [w for w in self.queue if w.since <= waiter.since]
        self.queue.insert(len(behind), waiter)
        waiter.status = "waiting"
        self.joined.append(waiter)
        return "joined"

    def use(self, e: Entry, who: object) -> str:
        if e.status != "leased" and e.reason != "detached":
            return "released"
        e.user = who
        return ""

    def deadlocked(self, waiter: Waiter) -> str:
        leased = [e for e in self.entries if e.status == "leased"]
        holders = {e.who for e in leased}
        stuck = [w for w in self.joined if w.status == "waiting" and w.who in holders]
        tangled = (
            self.size == len(leased) >= self.settings["max_size"]
            and stuck[-1:] == [waiter]
            and holders == {w.who for w in stuck}
            and all(e.user in (e.who, None) for e in leased)
        )
        if not tangled:
            return "no"
        if all(e.user for e in leased):
            return "yes"
        blocks = all(e.user or e.scoped for e in leased)
        return "doubtful" if blocks or len(holders) > 1 else "no"

    def leave(self, waiter: Waiter, elapsed: float, *, interrupted: bool) -> None:
        if waiter.status == "waiting":
            self.queue.remove(waiter)
            waiter.status = "away"
            self.counts["cancelled" if interrupted else "timeouts"] += 1
        elif waiter.status == "assigned":
            self.counts["served_time"] += elapsed
        self.counts["waits"] += 1
        self.counts["wait_time"] += elapsed

    def lost(self, e: Entry | None, holder: int) -> None:
        if e is not None and self.put(e, holder) not in ("", "kept", "given"):
            self.retire(e, -holder, "lost")
