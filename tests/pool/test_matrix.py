"""Every way in which the steps of a checkout and a return can go, together.

Eight steps have something to do with a connection between its dial and its end: the
dial, the ping, the five hooks, the reset. Each goes well, fails, takes its time or
hangs, while callers are left alone, interrupted, or in a hurry. Whatever happens, there
are never more connections than ``max_size``, and afterwards the pool is whole.

In full (``FASTPOOL_FULL=1``) these are 4**8 cases for each kind of caller; otherwise as
many as it takes for any two steps to meet in each of their outcomes, with each of the
dial's.
"""

from __future__ import annotations

import _thread
import ctypes
import gc
import itertools
import os
import random
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pool.kit import PATIENCE, eventually

from fastpool import Pool, PoolTimeout, __impl__
from fastpool.testing import StubConnection, StubDriver

FULL = os.environ.get("FASTPOOL_FULL") == "1"

STEPS = (
    "connect",
    "ping",
    "reset",
    "before_connect",
    "after_connect",
    "before_acquire",
    "after_release",
    "before_close",
)
OUTCOMES = ("ok", "error", "slow", "hang")
WAYS = ("left-alone", "interrupted", "in-a-hurry")
MAX_SIZE = 2
SLOW = 0.001
OFTEN = 100
"""More calls of one step than a case makes."""

Combination = tuple[str, ...]


class Planned(Exception):
    """How a step fails."""


class Interrupt(BaseException):
    """What arrives from outside, like KeyboardInterrupt."""


class Gate(threading.Event):
    """Holds who comes until it is set; they can be interrupted meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.held: set[int] = set()

    def wait(self, timeout: float | None = None) -> bool:
        me = threading.get_ident()
        until = None if timeout is None else time.monotonic() + timeout
        self.held.add(me)
        try:
            while not super().wait(0.001):
                if until is not None and time.monotonic() >= until:
                    return False
            return True
        finally:
            self.held.discard(me)


class Plan:
    """What each step does: nothing special before :meth:`begin` and after :meth:`heal`."""

    def __init__(self, combination: Combination) -> None:
        self.driver = StubDriver()
        self.gate = Gate()
        self._planned = dict(zip(STEPS, combination, strict=True))
        self._outcomes: dict[str, str] = {}

    def hook(self, step: str) -> Callable[[Any], bool]:
        """The pool's hook of that name."""

        def act(argument: Any) -> bool:
            outcome = self._outcomes.get(step)
            if outcome == "error":
                raise Planned(step)
            if outcome == "slow":
                time.sleep(SLOW)
            if outcome == "hang":
                self.gate.wait()
            return True

        return act

    def begin(self) -> None:
        self._outcomes = self._planned
        # A return rolls back, and discards.
        steps = {"connect": "connect", "ping": "ping", "control": "reset", "discard": "reset"}
        for step, planned in steps.items():
            outcome = self._planned[planned]
            if outcome == "error":
                self.driver.fail(step, Planned(step), times=OFTEN)  # type: ignore[arg-type]
            elif outcome == "slow":
                self.driver.delays[step] = SLOW
            elif outcome == "hang":
                self.driver.gates[step] = self.gate

    def heal(self) -> None:
        self._outcomes = {}
        self.driver.heal()
        self.driver.delays.clear()
        self.driver.gates.clear()
        self.gate.set()


class Caller(threading.Thread):
    """Makes one call; stays until it is let go, so that its identifier is its own."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._let_go = threading.Event()
        self.ended = False
        self.thrown = False
        self.raised: type[BaseException] | None = None

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.raised = type(error)  # the exception itself would keep the lease
        self.ended = True
        self._let_go.wait()

    def interrupt(self) -> None:
        if not self.ended and not self.thrown:
            self.thrown = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self.ident or 0), ctypes.py_object(Interrupt)
            )

    def let_go(self) -> None:
        self._let_go.set()
        self.join(PATIENCE)
        assert not self.is_alive(), "a caller hangs"


def calls(pool: Pool[StubConnection], hurry: bool) -> list[Callable[[], None]]:
    """One leaves a transaction, one a changed session, one a connection to be closed."""
    timeouts = (0.0, 0.0005, 0.003) if hurry else (PATIENCE,) * 3

    def transaction() -> None:
        with pool.acquire(timeouts[2]) as conn:
            conn.run("BEGIN")

    def session() -> None:
        with pool.connection(timeouts[1]) as conn:
            conn.run("SET a = 1")

    def invalid() -> None:
        pool.invalidate(pool.acquire(timeouts[0]))

    return [transaction, session, invalid]


def look(pool: Pool[StubConnection], driver: StubDriver) -> None:
    seen = pool.stats()
    assert seen.size <= MAX_SIZE
    assert seen.idle <= MAX_SIZE
    assert seen.size == seen.idle + seen.in_use + seen.connecting + seen.closing + seen.checking
    assert driver.most_open <= MAX_SIZE


def watch(pool: Pool[StubConnection], plan: Plan, callers: list[Caller], interrupts: bool) -> None:
    """Until nothing moves any more that does not wait or hang; or for long enough."""
    enough = time.monotonic() + 0.05
    for turn in itertools.count():
        look(pool, plan.driver)
        going = [caller for caller in callers if not caller.ended]
        hung = plan.gate.held & {caller.ident for caller in going}
        # Who waits is stuck if those are that he waits for: dials that fail or hang.
        in_vain = pool._house.opener.dial_failures or plan.gate.held - hung
        stuck = len(hung) + (pool._core.waiting if in_vain else 0)
        still = stuck >= len(going) or time.monotonic() > enough
        if interrupts:
            for caller in going if still else callers[turn : turn + 1]:
                caller.interrupt()
        if still:
            return
        time.sleep(0.0002)


def try_one(combination: Combination, way: str) -> None:
    plan = Plan(combination)
    hooks = {step: plan.hook(step) for step in STEPS if "_" in step}
    pool: Pool[StubConnection] = Pool(
        driver=plan.driver,
        min_size=0,
        max_size=MAX_SIZE,
        check="ping",
        ping_timeout=PATIENCE,
        reset="discard",
        connect_backoff=0.001,
        connect_backoff_max=0.001,
        **hooks,  # type: ignore[arg-type]
    )
    pool.acquire(PATIENCE).release()
    plan.begin()
    callers = [Caller(call) for call in calls(pool, way == "in-a-hurry")]
    try:
        for caller in callers:
            caller.start()
        watch(pool, plan, callers, way == "interrupted")
    finally:
        plan.heal()
        for caller in callers:
            caller.let_go()
    allowed = {
        "left-alone": {None, Planned},
        "interrupted": {None, Planned, Interrupt},
        "in-a-hurry": {None, Planned, PoolTimeout},
    }[way]
    assert {caller.raised for caller in callers} <= allowed
    if way == "left-alone" and plan._planned["before_acquire"] != "error":
        assert not any(caller.raised for caller in callers)  # served late, but served
    check_whole(pool, plan.driver)


def everything(pool: Pool[StubConnection]) -> str:
    """Where a pool and all threads are, as evidence."""
    stacks = ["".join(traceback.format_stack(f)[-6:]) for f in sys._current_frames().values()]
    return f"{vars(pool._house.opener)}; {pool._core.snapshot()}\n" + "\n".join(stacks)


def check_whole(pool: Pool[StubConnection], driver: StubDriver) -> None:
    """Each slot can be had at once, holds one connection, and is free when closed."""
    gc.collect()
    held: list[Any] = []
    try:
        held += [pool.acquire(PATIENCE) for _ in range(MAX_SIZE)]
    except PoolTimeout as error:
        raise AssertionError(f"{error}; {everything(pool)}") from error
    assert len({conn.number for conn in held}) == MAX_SIZE
    assert all(conn.run("SELECT 1") for conn in held)
    look(pool, driver)
    assert pool.stats().in_use == MAX_SIZE == driver.open_now
    assert pool.try_acquire() is None
    for lease in held:
        lease.release()
    assert pool.stats().idle == MAX_SIZE == driver.open_now
    pool.close(PATIENCE)
    core = pool._core
    assert (core.size, core.waiting, len(core.entries), driver.open_now) == (0, 0, 0, 0)


@pytest.fixture
def _quiet(monkeypatch: pytest.MonkeyPatch, bystanders_away: None) -> Iterator[None]:
    """Interrupts end where they land; who was hit has lost its lease, and that is said.

    One that is sent while its thread starts another may land there (until that one runs,
    CPython has it under its parent's identifier), so all have to have ended in here.
    """
    threads = _thread._count()
    surprises: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: surprises.append(args.exc_type))
    monkeypatch.setattr(threading, "excepthook", lambda args: surprises.append(args.exc_type))
    gc.disable()
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        eventually(lambda: _thread._count() <= threads, "all threads end")
    gc.enable()
    assert set(surprises) <= {Interrupt}


def pairs(combination: Combination) -> set[tuple[tuple[int, str], ...]]:
    """The outcomes of any two steps."""
    return set(itertools.combinations(enumerate(combination), 2))


def some(first: str) -> list[Combination]:
    """Combinations with *first* for the dial, in which the others meet pair by pair."""
    rng = random.Random(first)
    levels = [(first,), *[OUTCOMES] * (len(STEPS) - 1)]
    lacking = {
        ((i, a), (j, b))
        for i, j in itertools.combinations(range(len(STEPS)), 2)
        for a, b in itertools.product(levels[i], levels[j])
    }
    chosen = []
    while lacking:
        drawn = [tuple(map(rng.choice, levels)) for _ in range(20)]
        chosen.append(max(drawn, key=lambda combination: len(lacking & pairs(combination))))
        lacking -= pairs(chosen[-1])
    return chosen


def every(first: str) -> Iterator[Combination]:
    for others in itertools.product(OUTCOMES, repeat=len(STEPS) - 1):
        yield first, *others


@pytest.mark.timeout(3600 if FULL else 120)
@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("connect", OUTCOMES)
def test_whole_whatever_happens(connect: str, way: str) -> None:
    """However the steps go together, the limit holds, and no slot is lost or stuck."""
    for combination in every(connect) if FULL else some(connect):
        try:
            try_one(combination, way)
        except AssertionError as error:
            planned = dict(zip(STEPS, combination, strict=True))
            raise AssertionError(f"{way}, {planned}: {error}") from error


@pytest.mark.slow
@pytest.mark.skipif(__impl__ != "c", reason="this is the interpreted core")
def test_on_the_interpreted_core() -> None:
    """The same holds for the interpreted core."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "FASTPOOL_IMPL": "python"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
