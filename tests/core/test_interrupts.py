"""An interrupt at every point where one can land; afterwards nothing is lost.

The interpreter delivers signals, asynchronous exceptions and other threads only
when a Python function is entered and after a call of C returns (and at backward
jumps). A profile function sees exactly these, so it can raise at the n-th, for
n = 0, 1, 2 ... until a run ends uninterrupted. Compiled code has such points only
in the Python it calls, the house and the clock, and where it waits.
"""

from __future__ import annotations

import ctypes
import dis
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

import pytest
from core import kit
from core.conftest import MakeRig
from core.kit import DIRTY, FOREVER, Clock, Conn, Refusal, Rig
from support import eventually

SECONDS = float(os.environ.get("STRESS_SECONDS", "1.0"))


OPEN = 1


class Interrupt(BaseException):
    """What arrives from outside, like KeyboardInterrupt."""


class Injector:
    """Raises Interrupt at the *point*-th place in the files of which *where* is true."""

    def __init__(self, point: int, where: Callable[[FrameType], bool], events: set[str]) -> None:
        self.left = point
        self.where, self.events = where, events
        self.place = ""
        self.off = False

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if event not in self.events or self.off or self.place or not self.where(frame):
            return
        if self.left == 0:
            self.place = f"{event} in {frame.f_code.co_name}:{frame.f_lineno} {arg!r}"
            raise Interrupt
        self.left -= 1

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What happens here is done by another thread, in truth."""
        self.off = True
        try:
            yield
        finally:
            self.off = False


Scenario = Callable[[Rig], None]


def hit(rig: Rig) -> None:
    """Two plain blocks and a lease."""
    with rig.connection() as conn:
        conn.run("select")
    lease = rig.acquire()
    lease.release()
    with rig.connection(timeout=1):
        pass


def try_hit(rig: Rig) -> None:
    """Tries that find one and that find none."""
    a, b, c = rig.try_acquire(), rig.try_acquire(), rig.try_acquire()
    assert c is None
    rig.checkout.release(a)
    b.close()


def hand_off(rig: Rig) -> None:
    """A wait that ends with a connection."""
    a, b = rig.acquire(), rig.acquire()
    give = [a, b]
    del a, b
    rig.house.on_wanted = lambda: give and give.pop().release()
    with rig.connection():
        pass


def dialled(rig: Rig) -> None:
    """A wait that ends with a new connection."""
    with rig.house.aside():
        rig.core.drain()
        rig.bury()
    rig.house.on_wanted = lambda: rig.core.size < 2 and rig.dial()
    with rig.connection():
        pass


def timed_out(rig: Rig) -> None:
    """A wait that ends with nothing."""
    clock = rig.core.clock
    held = [rig.acquire(), rig.acquire()]

    def pass_time() -> None:
        clock.now += 10

    rig.house.on_wanted = pass_time
    with pytest.raises(Refusal, match="timeout"):
        rig.acquire(timeout=5)
    for lease in held:
        lease.release()


def closed_while_waiting(rig: Rig) -> None:
    """A wait that the end of the pool ends."""
    held = [rig.acquire(), rig.acquire()]
    rig.house.on_wanted = rig.core.shut
    with pytest.raises(Refusal, match="closed"):
        rig.acquire(timeout=5)
    for lease in held:
        lease.release()


def to_a_waiter(rig: Rig) -> None:
    """Releases that serve somebody who waits."""
    a, b = rig.acquire(), rig.acquire()
    line = [rig.waiter(), rig.waiter()]
    rig.in_line = line  # type: ignore[attr-defined]
    for somebody in line:
        somebody.join()
    a.release()
    with b:
        pass


def slow_release(rig: Rig) -> None:
    """Releases that must be settled, and are."""
    rig.house.on_settle = lambda entry: entry.state.leave(0)
    with rig.connection() as conn:
        rig.entry_of(conn).state.leave(DIRTY)
    del conn
    lease = rig.acquire()
    rig.entry_of(lease).state.leave(DIRTY)
    lease.release()


def hopeless_release(rig: Rig) -> None:
    """Releases that end in closing: not settled, settled in vain, and an old one."""
    rig.house.on_settle = lambda entry: "reset failed"
    lease, other = rig.acquire(), rig.acquire()
    rig.entry_of(lease).state.leave(DIRTY)
    lease.release()
    rig.core.drain()
    other.release()


def unfit(rig: Rig) -> None:
    """A closer look that finds one unfit, then one that raises."""
    looks = iter(["dead", None, "raise"])

    def admit(entry: Any) -> str | None:
        look = next(looks, None)
        if look == "raise":
            raise LookupError
        return look

    rig.house.on_admit = admit
    rig.core.configure(max_size=3, max_idle=9, vets=True)
    with rig.connection():
        pass
    with pytest.raises(LookupError):
        rig.acquire()


def unfit_after_a_wait(rig: Rig) -> None:
    """A connection handed over that proves unfit: back into the line."""
    a, b = rig.acquire(), rig.acquire()
    looks = iter(["dead"])
    give = [a, b]
    del a, b
    rig.house.on_admit = lambda entry: next(looks, None)
    rig.house.on_wanted = lambda: give and give.pop().release()
    rig.core.configure(max_size=9, max_idle=9, vets=True)
    with rig.connection():
        pass


def taken_away(rig: Rig) -> None:
    """Connections retired, detached and drained under their holders."""
    lease, other = rig.acquire(), rig.acquire()
    entry = rig.entry_of(lease)
    rig.core.retire(entry, entry.holder, "invalid")
    entry = rig.entry_of(other)
    rig.core.detach(entry, entry.holder)
    other.release()
    lease.release()
    rig.core.drain()


SCENARIOS = [
    hit,
    try_hit,
    hand_off,
    dialled,
    timed_out,
    closed_while_waiting,
    to_a_waiter,
    slow_release,
    hopeless_release,
    unfit,
    unfit_after_a_wait,
    taken_away,
]


def run(rig: Rig, scenario: Scenario, injector: Injector) -> BaseException | None:
    """Run *scenario* with *injector*; returns what came out, without its frames."""
    rig.house.aside = injector.aside
    try:
        sys.setprofile(injector)
        try:
            scenario(rig)
        finally:
            sys.setprofile(None)
    except Interrupt as error:
        return error.with_traceback(None)
    except (Refusal, LookupError) as error:
        # In place of the interrupt, or because of it.
        return error.with_traceback(None)
    return None


Run = Callable[[Rig, Injector], "BaseException | None"]


def every_point(make: MakeRig, run: Run, inject: Callable[[int], Injector]) -> int:
    """Interrupt a scenario at each point in turn; returns how many there are."""
    for point in range(10_000):
        rig = make(2, Clock(), max_size=2, min_idle=0)
        rig.core.configure(max_size=3, max_idle=9, timeout=FOREVER)
        injector = inject(point)
        outcome = run(rig, injector)
        rig.house.on_wanted = bool
        if outcome is not None:
            outcome.__context__ = outcome.__cause__ = None
        for somebody in getattr(rig, "in_line", ()):
            somebody.drop()
        try:
            rig.check_whole()
            if rig.core.phase == OPEN:
                rig.core.configure(max_size=3, max_idle=9)
                rig.house.on_admit = rig.house.on_settle = lambda entry: None
                rig.check_serves()
        except AssertionError as error:
            raise AssertionError(f"point {point}, {injector.place}: {error}") from error
        if not injector.place:
            assert outcome is None
            return point
    raise AssertionError("no run ended uninterrupted")


@pytest.fixture(autouse=True)
def _collect_only_when_told() -> Iterator[None]:
    """A check of the whole pool must not depend on when the collector runs."""
    gc.disable()
    gc.collect()
    yield
    gc.enable()


# Compiled code has no such points.
@pytest.mark.parametrize("core", ["python"], indirect=True)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_at_every_call(make: MakeRig, core: ModuleType, scenario: Scenario) -> None:
    """Interrupted at any call in the interpreted core, a caller loses nothing for the pool."""

    def inside(frame: FrameType) -> bool:
        # Not in a finalizer: that would be a second interrupt within the first.
        f: FrameType | None = frame
        while f is not None and f.f_code.co_name != "__del__":
            f = f.f_back
        return f is None and frame.f_code.co_filename == core.__file__

    points = every_point(
        make,
        lambda rig, injector: run(rig, scenario, injector),
        lambda point: Injector(point, inside, {"call", "c_return"}),
    )
    assert points > 10


class JumpInjector(Injector):
    """Raises at the n-th jump that was taken, where CPython 3.10 looks for interrupts too."""

    JUMPS = frozenset(name for name in dis.opmap if "JUMP" in name) - {"JUMP_FORWARD"}
    last = (0, 0, "")

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and not self.off:
            code, offset = frame.f_code.co_code, frame.f_lasti
            before, at, name = self.last
            self.last = (id(frame), offset, dis.opname[code[offset]])
            if (
                before == id(frame)
                and name in self.JUMPS
                and offset != at + 2
                and self.where(frame)
            ):
                if not self.place and self.left == 0:
                    self.place = f"jump in {frame.f_code.co_name}:{frame.f_lineno}"
                    raise Interrupt
                self.left -= 1
        return self.trace


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="newer ones look at calls and loops only")
@pytest.mark.parametrize("core", ["python"], indirect=True)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_at_every_jump(make: MakeRig, core: ModuleType, scenario: Scenario) -> None:
    """Interrupted where 3.10 alone can be, a caller loses nothing for the pool."""

    def inside(frame: FrameType) -> bool:
        f: FrameType | None = frame
        while f is not None and f.f_code.co_name != "__del__":
            f = f.f_back
        return f is None and frame.f_code.co_filename == core.__file__

    def run_traced(rig: Rig, injector: Injector) -> BaseException | None:
        assert isinstance(injector, JumpInjector)
        sys.settrace(injector.trace)
        try:
            return run(rig, scenario, injector)
        finally:
            sys.settrace(None)

    assert every_point(make, run_traced, lambda point: JumpInjector(point, inside, set())) > 10


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_in_the_house(make: MakeRig, scenario: Scenario) -> None:
    """Interrupted at the start or end of any question to the house, nothing is lost."""
    answers = {"wanted", "queueing", "disposed", "admit", "settle", "finish", "__call__"}

    def asked(frame: FrameType) -> bool:
        return frame.f_code.co_filename == kit.__file__ and frame.f_code.co_name in answers

    points = every_point(
        make,
        lambda rig, injector: run(rig, scenario, injector),
        lambda point: Injector(point, asked, {"call", "return"}),
    )
    assert points > 2


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_between_the_calls(make: MakeRig, scenario: Scenario) -> None:
    """Interrupted between two steps of its own, a caller loses nothing for the pool."""

    def outside(frame: FrameType) -> bool:
        return frame.f_code is scenario.__code__

    every_point(
        make,
        lambda rig, injector: run(rig, scenario, injector),
        lambda point: Injector(point, outside, {"call", "c_call", "c_return"}),
    )


# -- storms ------------------------------------------------------------------------------


class Worker(threading.Thread):
    """Takes, looks that nobody else has it, gives back; until told, whatever comes."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(daemon=True)
        self.rig = rig
        self.end = False
        self.served = self.shared = self.interrupted = 0
        # A second interrupt could hit the finalizer that mends what the first one
        # broke: so none is thrown until the last one has been got over, seen == thrown.
        self.thrown = self.seen = 0

    def run(self) -> None:
        while True:
            try:
                self.work()
                return
            except Interrupt:
                self.interrupted += 1

    def work(self) -> None:
        # Not in run(): a loop's own jump back is in no try of its function.
        while not self.end:
            self.seen = self.thrown
            self.once()
        time.sleep(0)  # the last one thrown lands here at the latest

    def once(self) -> None:
        rig, me = self.rig, object()
        kind = random.random()
        try:
            with rig.acquire(timeout=random.choice((0.0, 0.0002, 5.0))) as conn:
                raw = conn.driver_connection
                raw.owner = me
                if kind < 0.3:
                    time.sleep(0.0001)
                if kind > 0.9:
                    rig.entry_of(conn).state.leave(DIRTY)
                self.shared += raw.owner is not me
            self.served += 1
        except Refusal:
            pass


def feed(rig: Rig) -> None:
    """What opener and keeper do: close what is to be closed, dial what is wanted."""
    while rig.core.closing:
        rig.core.bury(rig.core.closing.popleft())
    while True:
        entry = rig.core.begin_dial()
        if entry is None:
            return
        rig.core.adopt(entry, Conn(), -1)
        rig.core.put(entry)


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """The exceptions that finalizers could not raise; an interrupt may be one."""
    seen: list[type] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_type))
    return seen


def in_the_end(rig: Rig) -> None:
    """Once the threads are gone, everything is back."""

    def whole() -> bool:
        gc.collect()
        feed(rig)
        return bool(rig.core.size == rig.core.idle and rig.core.waiting == 0)

    eventually(whole)
    rig.check_serves()


@contextmanager
def busy(rig: Rig, count: int) -> Iterator[list[Worker]]:
    """*count* workers, at work until the block ends; connections are supplied."""
    workers = [Worker(rig) for _ in range(count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for worker in workers:
            worker.start()
        yield workers
    finally:
        for worker in workers:
            worker.end = True
        for worker in workers:
            while worker.is_alive():
                feed(rig)
                worker.join(0.01)
        sys.setswitchinterval(interval)
    assert sum(worker.shared for worker in workers) == 0


def test_storm(make: MakeRig) -> None:
    """Threads that take, wait, give up and give back at random leave a whole pool."""
    rig = make(4, max_size=4, min_size=4)
    with busy(rig, 12) as workers:
        stop = time.monotonic() + SECONDS
        while time.monotonic() < stop:
            feed(rig)
            time.sleep(0.0003)
    assert sum(worker.served for worker in workers) > 100
    in_the_end(rig)


def test_storm_of_asynchronous_exceptions(make: MakeRig, unraisable: list[type]) -> None:
    """Exceptions thrown into busy threads at random times cost the pool nothing."""
    rig = make(3, max_size=3, min_size=3)
    throw = ctypes.pythonapi.PyThreadState_SetAsyncExc
    with busy(rig, 8) as workers:
        stop = time.monotonic() + SECONDS
        while time.monotonic() < stop:
            feed(rig)
            victim = random.choice(workers)
            if victim.seen == victim.thrown:
                throw(ctypes.c_ulong(victim.ident or 0), ctypes.py_object(Interrupt))
                victim.thrown += 1
            time.sleep(0.0002)
    assert sum(worker.served for worker in workers) > 100
    assert sum(worker.interrupted for worker in workers) > 20
    assert set(unraisable) <= {Interrupt}
    in_the_end(rig)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer()")
def test_storm_of_signals(make: MakeRig, unraisable: list[type]) -> None:
    """A signal handler that raises, at random times, costs the pool nothing."""
    rig = make(2, max_size=2, min_size=2)
    served = interrupted = 0
    armed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupt

    def once() -> bool:
        try:
            with rig.acquire(timeout=random.choice((0.0, 0.0002, 5.0))) as conn:
                conn.run("select")
            return True
        except Refusal:
            return False

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with busy(rig, 3):
            signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
            stop = time.monotonic() + SECONDS
            while time.monotonic() < stop:
                feed(rig)
                try:
                    armed = True
                    served += once()
                    armed = False
                except Interrupt:
                    interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert served > 20
    assert interrupted > 20
    assert set(unraisable) <= {Interrupt}
    in_the_end(rig)
