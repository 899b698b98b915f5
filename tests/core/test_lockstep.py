"""Both cores and a model of them go the same steps, and must be the same after each.

Nothing here has threads or real time: the steps of waiting are called one by one,
and time is an argument. The model (``model.py``) is the behaviour in plain lists.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from conftest import MODULES
from core.kit import DIRTY, STATUS, Clock, Conn, Refusal, Rig, Somebody
from core.model import HOUSE, NOBODY, Entry, Model, Waiter
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastpool import ConnectionReleased

JOINING = ("joined", "not open", "look again", "crowded", "refused")
TOKENS = 1 << 40
LOST_SIGHT = 1 << 20
SETTINGS: dict[str, list[Any]] = {
    "max_size": [1, 2, 3, 4],
    "min_size": [0, 2],
    "min_idle": [0, 1],
    "max_idle": [9, 2, 1],
    "max_waiting": [-1, 0, 2],
    "max_uses": [-1, 3],
    "check_after": [math.inf, 5.0],
    "fifo": [False, True],
    "vets": [False, True],
    "settles": [False, True],
}
configurations = st.fixed_dictionaries({k: st.sampled_from(v) for k, v in SETTINGS.items()})
TANGLES = ("no", "doubtful", "yes")
ME, OTHERS = "me", (1 << 50, 1 << 51)
"""Who takes and uses connections: the thread that runs this, and some that wait."""
some = st.integers(0, 7)
"""Which of those there are; taken modulo their number."""


def number_of_this_thread(module: ModuleType) -> int:
    """By which *module* knows the caller."""
    rig = Rig(module, 1)
    with rig.connection() as lease:
        who: int = rig.entry_of(lease).who
    return who >> 1


class Lockstep(RuleBasedStateMachine):
    """The steps; each is done to the model and to every core in *modules*."""

    modules: tuple[ModuleType, ...]

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        first = {name: values[0] for name, values in SETTINGS.items()} | {"max_size": 3}
        self.model = Model(first, self.clock.now)
        self.rigs = [Rig(module, clock=self.clock, **first) for module in self.modules]
        # By name of the entry, number of the lease, and number of the waiter: one for each core.
        self.entries: list[list[Any]] = []
        self.leases: dict[int, list[Any]] = {}
        self.held: dict[int, Entry] = {}
        self.waiters: list[list[Somebody]] = []
        self.known: list[Waiter] = []
        self.woken: list[list[int]] = [[] for _ in self.rigs]
        self.numbers = iter(range(100, TOKENS))
        self.tokens = iter(range(TOKENS, 2 * TOKENS, 16))
        for rig in self.rigs:
            rig.house.on_admit = self.admit
            rig.house.on_settle = self.settle
        self.mine = [number_of_this_thread(module) for module in self.modules]

    def admit(self, entry: Any) -> str | None:
        verdict = self.model.unfit.get(entry.conn.name)
        if verdict == "raise":
            raise LookupError("admit")
        return verdict

    def settle(self, entry: Any) -> str | None:
        cure = self.model.cures.get(entry.conn.name, "clean")
        if cure == "raise":
            raise LookupError("settle")
        if cure == "clean":
            entry.state.leave(0)
        return None if cure in ("clean", "useless") else cure

    def each(self, step: Callable[[int, Rig], object]) -> list[Any]:
        """What *step* gives in each core; a refusal is its kind, a hook's error its text."""
        results: list[Any] = []
        for n, rig in enumerate(self.rigs):
            try:
                results.append(step(n, rig))
            except Refusal as error:
                results.append(error.kind)
            except LookupError as error:
                results.append(str(error.args[0]))
        return results

    def same(self, expected: object, step: Callable[[int, Rig], object]) -> None:
        results = self.each(step)
        assert results == [expected] * len(results)

    def entry(self, number: int) -> tuple[Entry, list[Any]]:
        name = number % len(self.entries)
        return self.model.entries[name], self.entries[name]

    any_entry = precondition(lambda self: self.entries)

    # -- dialling --------------------------------------------------------------

    @rule(ask=st.booleans())
    def begin(self, ask: bool) -> None:
        if ask:
            self.model.missed = 1
            self.each(lambda n, rig: rig.core.ask())
        name = self.model.begin_dial()
        made = self.each(lambda n, rig: rig.core.begin_dial())
        assert [entry is None for entry in made] == [name is None] * len(made)
        if name is not None:
            self.entries.append(made)

    @any_entry
    @rule(number=some)
    def adopt(self, number: int) -> None:
        entry, made = self.entry(number)
        self.same(
            self.model.adopt(entry), lambda n, rig: rig.core.adopt(made[n], Conn(entry.name), -1)
        )

    @rule(ask=st.booleans())
    def dial(self, ask: bool) -> None:
        """A whole dial, since a caller needs one."""
        before = len(self.entries)
        self.begin(ask)
        if len(self.entries) > before:
            self.adopt(before)
            self.put(before, False)

    @any_entry
    @rule(number=some)
    def forget(self, number: int) -> None:
        entry, made = self.entry(number)
        self.same(self.model.forget(entry), lambda n, rig: rig.core.forget(made[n]))

    @rule(seconds=st.sampled_from([0.0, 2.0]))
    def refuse(self, seconds: float) -> None:
        error = object()
        self.model.refuse(error, self.clock.now + seconds)
        self.each(lambda n, rig: rig.core.refuse(error, self.clock.now + seconds))

    # -- the pool's own work ---------------------------------------------------

    @any_entry
    @rule(number=some)
    def hold(self, number: int) -> None:
        entry, made = self.entry(number)
        self.same(self.model.hold(entry), lambda n, rig: rig.core.hold(made[n]))

    @any_entry
    @rule(number=some, below=st.booleans())
    def put(self, number: int, below: bool) -> None:
        entry, made = self.entry(number)
        if below:
            self.model.put_below(entry)
            self.each(lambda n, rig: rig.core.put_below(made[n]))
        else:
            self.model.put_or_retire(entry, HOUSE)
            self.each(lambda n, rig: rig.core.put(made[n]))

    @any_entry
    @rule(number=some, kind=st.sampled_from(["nobody", "house", "holder"]))
    def retire(self, number: int, kind: str) -> None:
        entry, made = self.entry(number)
        holder = {"nobody": NOBODY, "house": HOUSE, "holder": entry.holder}[kind]

        def step(n: int, rig: Rig) -> object:
            real = made[n].holder if kind == "holder" else holder
            return rig.core.retire(made[n], real, "test")

        self.same(self.model.retire(entry, holder, "test"), step)

    @any_entry
    @rule(number=some)
    def detach(self, number: int) -> None:
        entry, made = self.entry(number)
        self.same(
            self.model.detach(entry, entry.holder),
            lambda n, rig: rig.core.detach(made[n], made[n].holder),
        )

    @any_entry
    @rule(number=some, seconds=st.sampled_from([-1.0, 3.0, 8.0]))
    def limit_age(self, number: int, seconds: float) -> None:
        entry, made = self.entry(number)
        entry.expires = self.clock.now + seconds
        entry.due = min(entry.due, entry.expires)
        self.each(lambda n, rig: rig.core.limit_age(made[n], entry.expires))

    @rule()
    def bury(self) -> None:
        self.model.bury()
        self.each(lambda n, rig: rig.core.closing and rig.core.bury(rig.core.closing.popleft()))

    @rule()
    def drain(self) -> None:
        self.model.drain()
        self.each(lambda n, rig: rig.core.drain())

    @precondition(lambda self: len(self.entries) > 3)
    @rule()
    def shut(self) -> None:
        self.same(self.model.shut(), lambda n, rig: rig.core.shut())

    @rule(configuration=configurations)
    def configure(self, configuration: dict[str, Any]) -> None:
        self.model.settings = configuration
        self.each(lambda n, rig: rig.core.configure(**configuration))

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.model.now = self.clock.now

    # -- callers ---------------------------------------------------------------

    @rule(tries=st.booleans())
    def acquire(self, tries: bool) -> None:
        number = next(self.numbers)
        found = self.model.acquire(number, ME)
        leases = self.each(
            lambda n, rig: rig.try_acquire() if tries else rig.acquire(timeout=0),
        )
        if isinstance(found, Entry):
            assert [lease.name for lease in leases] == [found.name] * len(leases)
            self.leases[number], self.held[number] = leases, found
        else:
            expected = None if tries and found == "timeout" else found
            assert leases == [expected] * len(leases)

    any_lease = precondition(lambda self: self.leases)

    @any_lease
    @rule(number=some, drop=st.booleans(), inside=st.booleans())
    def release(self, number: int, drop: bool, inside: bool) -> None:
        """The lease is given back, again perhaps, or dropped; or only given back. Perhaps
        while a call goes through it."""
        number = list(self.leases)[number % len(self.leases)]
        entry = self.held[number]
        inside = inside and entry.holder == number
        entry.calls += inside
        expected = self.model.release(entry, number) or None
        entry.calls -= inside

        def step(n: int, rig: Rig) -> None:
            lease = self.leases[number][n]
            if inside:
                lease.within(lease.release)
            else:
                lease.release()

        self.same(expected, step)
        if drop:
            del self.leases[number]

    @any_lease
    @rule(number=some)
    def lose(self, number: int) -> None:
        number = list(self.leases)[number % len(self.leases)]
        self.model.lost(self.held[number], number)
        del self.leases[number]

    @any_entry
    @rule(
        number=some,
        unfit=st.sampled_from(["dead", "raise"]),
        cure=st.sampled_from(["clean", "useless", "reset", "raise"]),
    )
    def spoil(self, number: int, unfit: str, cure: str) -> None:
        """Script what a look at an entry, and settling it, will come to."""
        name = number % len(self.entries)
        self.model.unfit[name], self.model.cures[name] = unfit, cure

    @any_entry
    @rule(number=some)
    def dirty(self, number: int) -> None:
        entry, made = self.entry(number)
        if entry.status in ("leased", "held"):
            entry.flags = DIRTY
            self.each(lambda n, rig: made[n].state.leave(DIRTY))

    @any_entry
    @rule(number=some, mine=st.booleans())
    def use(self, number: int, mine: bool) -> None:
        """A call goes into a connection and out again, from this thread or another."""
        entry, made = self.entry(number)
        if entry.flags:
            return

        def step(n: int, rig: Rig) -> str:
            try:
                made[n].state.enter()
            except ConnectionReleased:
                return "released"
            made[n].state.leave(0)
            return ""

        results: list[object] = []
        if mine:
            results = self.each(step)
        else:
            thread = threading.Thread(target=lambda: results.extend(self.each(step)))
            thread.start()
            thread.join()
        assert results == [self.model.use(entry, ME if mine else "another")] * len(results)

    @any_lease
    @rule(number=some)
    def begin_cancel(self, number: int) -> None:
        """A cancel request is about to be sent for a lease, if that is still on."""
        number = list(self.leases)[number % len(self.leases)]
        entry = self.held[number]
        on = entry.holder == number

        def step(n: int, rig: Rig) -> object:
            try:
                return rig.core.begin_cancel(self.leases[number][n]) is self.entries[entry.name][n]
            except ConnectionReleased:
                return False

        self.same(on, step)
        if on:
            entry.stray += 1

    @any_entry
    @rule(number=some, proven=st.booleans())
    def end_cancel(self, number: int, proven: bool) -> None:
        entry, made = self.entry(number)
        if entry.stray > 0:
            entry.stray -= 1 if proven else LOST_SIGHT
            self.each(lambda n, rig: made[n].state.cancelled(proven))

    # -- waiting ---------------------------------------------------------------

    @rule(
        tries=st.sampled_from([False, False, False, True]),
        again=st.booleans(),
        age=st.sampled_from([0.0, 0.0, 0.5, 3.0]),
        who=st.sampled_from([ME, *OTHERS]),
        scoped=st.booleans(),
    )
    def join(self, tries: bool, again: bool, age: float, who: Any, scoped: bool) -> None:
        waiter = Waiter(next(self.tokens), self.clock.now - age, who, scoped)
        verdict = self.model.join(waiter, tries=tries, again=again)
        callers = [
            Somebody(
                rig,
                lambda n=n: self.woken[n].append(waiter.token),
                token=waiter.token,
                age=age,
                who=2 * (self.mine[n] if who is ME else who) + scoped,
            )
            for n, rig in enumerate(self.rigs)
        ]
        results = [JOINING[caller.join(tries=tries, again=again)] for caller in callers]
        assert results == [verdict] * len(results)
        if verdict == "joined":
            self.waiters.append(callers)
            self.known.append(waiter)

    any_waiter = precondition(lambda self: self.waiters)

    @any_waiter
    @rule(number=some, interrupted=st.booleans())
    def leave(self, number: int, interrupted: bool) -> None:
        number %= len(self.waiters)
        if not self.waiters[number][0].left:
            elapsed = self.clock.now - self.known[number].since
            self.model.leave(self.known[number], elapsed, interrupted=interrupted)
            for caller in self.waiters[number]:
                caller.leave(interrupted=interrupted)

    @any_waiter
    @rule(number=some)
    def drop(self, number: int) -> None:
        """Gone without a word; or what was given is given back by the finalizer."""
        number %= len(self.waiters)
        waiter = self.known.pop(number)
        callers = self.waiters.pop(number)
        if not callers[0].left:
            self.model.leave(waiter, 0.0, interrupted=True)
        self.model.lost(waiter.entry, waiter.token)
        for caller in callers:
            caller.drop()

    @precondition(lambda self: len(self.waiters) < 8)
    @rule(whose=st.lists(st.sampled_from([ME, *OTHERS]), min_size=4, max_size=4), use=st.booleans())
    def crowd(self, whose: list[Any], use: bool) -> None:
        """All there is, is taken, and perhaps used; then those who have it want more."""
        whose = whose[: self.model.settings["max_size"]]
        for who in whose:
            self.join(False, False, 0.0, who, scoped=not use or who is not ME)
            self.dial(True)
            if use:
                self.use(len(self.entries) - 1, who is ME)
        for who in whose:
            self.join(False, False, 0.0, who, scoped=False)

    # -- after each step -------------------------------------------------------

    @invariant()
    def agree(self) -> None:
        model = self.model
        snapshots = []
        for n, rig in enumerate(self.rigs):
            rig.check()
            core = rig.core
            seen = core.snapshot()
            snapshots.append((seen, rig.house.calls, core.refusal, core.missed))
            for part in ("connecting", "held", "idle", "leased", "closing"):
                assert seen[part] == model.count(part), part
            assert {key: seen[key] for key in model.counts} == pytest.approx(model.counts)
            assert core.missed == model.missed
            assert core.refusal is (model.refusal[0] if model.refusal else None)
            assert core.deficit() == model.deficit()
            assert [e.conn.name for e in core.idle_entries()] == [e.name for e in model.idle]
            assert [e.conn.name for e in core.closing] == [e.name for e in model.closing]
            assert [w.token for w in core.waiters()] == [w.token for w in model.queue]
            assert self.woken[n] == model.woken
            for waiter, callers in zip(self.known, self.waiters, strict=True):
                assert callers[n].status == waiter.status
                assert callers[n].waiter.error is waiter.error
                if waiter.status == "waiting":
                    verdict = TANGLES[core.deadlocked(callers[n].waiter)]
                    assert verdict == self.model.deadlocked(waiter)
                if waiter.entry is not None:
                    assert callers[n].waiter.entry is self.entries[waiter.entry.name][n]
            for entry, made in zip(model.entries, self.entries, strict=True):
                real = made[n]
                assert real.status == STATUS[entry.status]
                assert (real.state.flags, real.state.stray) == (entry.flags, entry.stray)
                assert real.state.calls == 0
                assert (real.generation, real.uses, real.since, real.expires, real.due) == (
                    entry.generation,
                    entry.uses,
                    entry.since,
                    entry.expires,
                    entry.due,
                )
                assert real.reason == entry.reason
                if abs(entry.holder) < 100 or entry.holder >= TOKENS:
                    assert real.holder == entry.holder
            for number, leases in self.leases.items():
                held = self.held[number].holder == number
                assert repr(leases[n]).startswith("<Lease of" if held else "<Lease released")
        assert all(snapshot == snapshots[0] for snapshot in snapshots[1:])

    def teardown(self) -> None:
        """All that was begun can be ended."""
        self.each(lambda n, rig: rig.core.shut())
        for callers in self.waiters:
            for caller in callers:
                caller.drop()
        self.leases.clear()
        for n, rig in enumerate(self.rigs):
            for made in self.entries:
                rig.core.forget(made[n])
                rig.core.put(made[n])
            rig.bury()
            rig.check()
            assert rig.core.size == 0


@pytest.fixture(autouse=True)
def _no_skipped_frames() -> None:
    """No place is looked at here, and no single core tested."""


def test_lockstep(pytestconfig: pytest.Config) -> None:
    """Whatever the steps, the cores there are and the model agree after each."""
    names = list(MODULES.values())
    alone = os.environ.get("FASTPOOL_IMPL") == "python" or pytestconfig.getoption("no_c_extensions")
    if alone or not importlib.util.find_spec(MODULES["c"]):
        names.remove(MODULES["c"])
    Lockstep.modules = tuple(map(importlib.import_module, names))
    Lockstep.TestCase.settings = settings(
        max_examples=int(os.environ.get("LOCKSTEP_EXAMPLES", "150")),
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    Lockstep.TestCase("runTest").runTest()
