"""Forks: the child begins anew, and in the parent everything goes on."""

from __future__ import annotations

import _thread
import contextlib
import gc
import io
import math
import multiprocessing
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from pool.kit import PATIENCE, Caller, Clock, Full, eventually, filled, knocking
from support import Child, need, run_script

import fastpool
from fastpool import ConnectionReleased, Pool, PoolClosed, _fork, _opener, _runtime
from fastpool.testing import StubConnection, StubDriver

need(hasattr(os, "register_at_fork"), "fork()")
pytestmark = pytest.mark.usefixtures("patient_forks")

Make = Callable[..., Pool[StubConnection]]
Spawn = Callable[[Callable[[], Any]], Caller]

# A fork while a thread of the test, or one that cannot be ended, is in the pool.
beside_threads = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def use(pool: Pool[StubConnection]) -> tuple[str, bool]:
    """One query in a child: its answer, and whether the connection is the child's."""
    before = len(pool._house.driver.connections)  # type: ignore[attr-defined]
    with pool.connection(PATIENCE) as conn:
        return conn.run("SELECT 1"), conn.number > before


FRESH = ("SELECT 1", True)


def threads() -> set[str]:
    """The threads of this process, whoever has started them."""
    need(os.path.isdir("/proc/self/task"), "/proc")
    return set(os.listdir("/proc/self/task"))


@pytest.fixture
def gate(driver: StubDriver) -> Iterator[threading.Event]:
    """For ``driver.gates``; open at the end."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_child_begins_anew(make: Make, driver: StubDriver) -> None:
    """A child of an idle pool has nothing, counts from zero, and dials for itself."""
    pool = make(min_size=2)
    filled(pool)
    pool.run("SELECT 1")

    def look() -> Any:
        old, stats = list(driver.connections), pool.stats()
        used = use(pool)
        eventually(lambda: pool.stats().idle == 2, "filled again")
        fresh = driver.connections[len(old) :]
        return stats, used, all(conn.closed for conn in old), all(not c.closed for c in fresh)

    stats, *seen = Child(look).result()
    assert seen == [FRESH, True, True]
    assert (stats.size, stats.acquires, stats.dials, stats.created, stats.closed) == (
        0,
        0,
        0,
        0,
        {},
    )
    assert driver.counts["close"] == 0
    assert pool.stats().created == 2
    assert pool.stats().acquires == 1
    assert pool.run("SELECT 2") == "SELECT 2"


def test_leases_are_dead_in_the_child(make: Make, driver: StubDriver) -> None:
    """Every use of what was taken before the fork raises, giving it back does nothing."""
    pool = make(max_size=2)
    block = pool.connection()
    conn = block.__enter__()
    conn.run("BEGIN")
    run, lease = conn.run, pool.acquire()

    def look() -> Any:
        for step in (
            lambda: conn.run("SELECT 1"),
            lambda: run("SELECT 1"),
            lambda: conn.number,
            lambda: lease.driver_connection,
            lambda: pool.detach(lease),
            lambda: pool.invalidate(lease),
            lambda: lease.transaction().__enter__(),
        ):
            with pytest.raises(ConnectionReleased):
                step()
        block.__exit__(None, None, None)
        lease.release()
        pool.release(lease)
        lease.close()
        assert pool.stats().size == 0
        assert pool.holders() == []
        return [use(pool), use(pool), driver.connections[-1].number]

    assert Child(look).result() == [FRESH, ("SELECT 1", False), 3]
    assert [c.statements for c in driver.connections] == [["BEGIN"], []]
    block.__exit__(None, None, None)
    lease.release()
    assert driver.connections[0].statements == ["BEGIN", "COMMIT"]


def test_the_drivers_own_connection_is_closed_in_the_child(make: Make) -> None:
    """Who kept the driver's connection itself reaches nothing of the parent's."""
    pool = make()
    lease = pool.acquire()
    raw = lease.driver_connection

    def look() -> bool:
        with pytest.raises(ConnectionReleased):
            raw.run("SELECT 1")
        return raw.closed

    assert Child(look).result()
    assert raw.run("SELECT 1")
    lease.release()


def test_a_dropped_lease_is_no_leak_in_the_child(make: Make) -> None:
    """What dies in the child is the parent's: nobody is warned, nothing is taken back."""
    pool = make()
    lease = [pool.acquire()]

    def look() -> Any:
        lease.clear()
        gc.collect()
        return pool.stats().size

    assert Child(look).result() == 0
    lease.pop().release()


def test_a_closed_pool_stays_closed(make: Make) -> None:
    """In the child too; closing it again, or for the first time, takes no time."""
    closed, still_open = make(), make(min_size=1)
    closed.open()
    closed.close()
    filled(still_open)

    def look() -> float:
        began = time.monotonic()
        with pytest.raises(PoolClosed):
            closed.acquire()
        closed.close()
        still_open.close()
        with pytest.raises(PoolClosed):
            still_open.acquire()
        return time.monotonic() - began

    assert Child(look).result() < 5.0
    assert still_open.run("SELECT 1")


def test_a_new_pool_can_be_opened_in_the_child(make: Make) -> None:
    """A pool made before the fork and not used yet belongs to whoever opens it."""
    pool = make(min_size=1)

    def look() -> int:
        pool.open(wait=True, timeout=PATIENCE)
        size = pool.stats().size
        pool.close()
        return size

    assert Child(look).result() == 1
    assert pool.stats().size == 0


def test_children_of_children(make: Make) -> None:
    """Each generation begins anew."""
    pool = make(min_size=1)
    filled(pool)

    def look() -> Any:
        mine = use(pool)
        return mine, Child(lambda: use(pool)).result(), pool.run("SELECT 3")

    assert Child(look).result() == (FRESH, FRESH, "SELECT 3")
    assert pool.run("SELECT 2") == "SELECT 2"


@beside_threads
def test_fork_beside_a_waiter(make: Make, spawn: Spawn) -> None:
    """Who waits in another thread is served in the parent, and not there in the child."""
    pool = make(max_size=1)
    lease = pool.acquire()
    waiter = spawn(lambda: pool.run("SELECT 3"))
    eventually(lambda: pool.stats().waiting == 1)

    def look() -> Any:
        return pool.stats().waiting, use(pool)

    assert Child(look).result() == (0, FRESH)
    assert pool.stats().waiting == 1
    lease.release()
    assert waiter.result() == "SELECT 3"


@beside_threads
def test_fork_beside_a_dial(make: Make, spawn: Spawn, driver: StubDriver, gate: Any) -> None:
    """A dial holds a fork up for a moment only; it goes on in the parent alone."""
    pool = make(max_size=2)
    driver.gates["connect"] = gate
    waiter = spawn(lambda: pool.run("SELECT 3"))
    eventually(lambda: driver.counts["connect"] == 1)

    def look() -> Any:
        driver.gates.clear()
        return pool.stats().connecting, use(pool), pool.stats().size

    began = time.monotonic()
    child = Child(look)
    took = time.monotonic() - began
    assert child.result() == (0, FRESH, 1)
    assert took < 10 * _fork.MOMENT < PATIENCE
    gate.set()
    assert waiter.result() == "SELECT 3"
    assert driver.counts["connect"] == 1


@beside_threads
def test_fork_beside_a_busy_keeper(make: Make, driver: StubDriver, gate: Any) -> None:
    """A keeper that is inside a hook goes on in the parent; the child has its own."""
    entered = threading.Event()

    def hook(conn: StubConnection) -> None:
        entered.set()
        gate.wait(PATIENCE)

    pool = make(before_close=hook)
    pool.invalidate(pool.acquire())
    assert entered.wait(PATIENCE)

    def look() -> Any:
        gate.set()
        used = use(pool)
        pool.drain()
        eventually(lambda: pool.stats().size == 0, "closed in the child")
        return used, pool.stats().closed

    assert Child(look).result() == (FRESH, {"drained": 1})
    assert pool.stats().size == 1
    gate.set()
    eventually(lambda: pool.stats().size == 0, "closed in the parent")
    pool.invalidate(pool.acquire())
    eventually(lambda: pool.stats().size == 0, "there is a keeper")


@beside_threads
def test_closings_in_progress_go_on(make: Make, driver: StubDriver, gate: Any) -> None:
    """What was being closed is closed by the parent, and no business of the child's."""
    pool = make(max_size=1, close_timeout=PATIENCE)
    lease = pool.acquire()
    driver.gates["close"] = gate
    pool.invalidate(lease)
    eventually(lambda: pool._house.keeper._closings)

    def look() -> Any:
        size = pool.stats().size
        closes = driver.counts["close"]
        return size, use(pool), driver.counts["close"] - closes

    assert Child(look).result() == (0, FRESH, 0)
    assert pool.stats().closing == 1
    gate.set()
    eventually(lambda: pool.stats().size == 0, "closed after the fork")
    assert driver.counts["close"] == 1


@beside_threads
def test_fork_beside_locks(make: Make, spawn: Spawn) -> None:
    """Whatever other threads have locked when a fork comes, the child is not stuck."""
    pool = make(min_size=1)
    filled(pool)
    house = pool._house
    locks = [
        house._opening,
        house.opener._counting,
        house.opener.progress,
        house.keeper._starting,
        house.turnaround._cancels,
        house.driver._lock,  # type: ignore[attr-defined]
    ]
    if hasattr(pool._core, "_mutex"):
        locks += [pool._core._mutex, next(iter(pool._core.entries)).state._mutex]
    locked = threading.Event()
    forked, tell = os.pipe()

    def hold() -> None:  # until there is a child
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            locked.set()
            os.read(forked, 1)

    holder = spawn(hold)
    assert locked.wait(PATIENCE)

    def look() -> Any:
        os.write(tell, b"!")
        conn = house.driver.connections[0]  # type: ignore[attr-defined]
        with pytest.raises(ConnectionReleased):
            conn.run("SELECT 1")
        pool.open(wait=True, timeout=PATIENCE)
        answer = pool.run("SELECT 1")
        pool.close()
        return answer

    assert Child(look).result() == "SELECT 1"
    holder.join()
    os.close(forked)
    os.close(tell)


def lockable(pool: Pool[Any]) -> dict[str, object]:
    """All that threads of one process share to wait for each other, by its place."""
    house = pool._house
    rooms = {
        "house": house,
        "opener": house.opener,
        "keeper": house.keeper,
        "bell": house.keeper._bell,
        "turnaround": house.turnaround,
        "hosts": house.opener._hosts,
        "driver": house.driver,
    }
    kinds = (
        type(threading.Lock()),
        type(threading.RLock()),
        threading.Condition,
        threading.Event,
        threading.local,
        queue.SimpleQueue,
        io.FileIO,
        type(select.poll()),
    )
    return {
        f"{name}.{attribute}": value
        for name, room in rooms.items()
        for attribute, value in vars(room).items()
        if isinstance(value, kinds)
    }


def test_nothing_that_can_be_stuck_is_shared(make: Make) -> None:
    """Each lock, queue, condition and pipe of a pool in a child is a new one."""
    pool = make(min_size=1)
    filled(pool)
    before = lockable(pool)
    assert len(before) >= 10

    def look() -> list[str]:
        after = lockable(pool)
        assert after.keys() == before.keys()
        return [place for place in before if after[place] is before[place]]

    assert Child(look).result() == []


def test_the_pipe_is_closed_in_the_child(make: Make) -> None:
    """The child's copy of the parent's pipe is closed, and the parent's works."""
    pool = make(min_size=1)
    filled(pool)
    near = os.stat(pool._house.keeper._bell.fd)

    def look() -> bool:
        found = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                status = os.stat(f"/proc/self/fd/{name}")
                found.append((status.st_dev, status.st_ino))
        return (near.st_dev, near.st_ino) in found

    need(os.path.isdir("/proc/self/fd"), "/proc")
    assert Child(look).result() is False
    pool.invalidate(pool.acquire())
    eventually(lambda: pool.stats().closed == {"invalidated": 1}, "the keeper hears the bell")


def test_idle_threads_end_before_a_fork_and_come_back(make: Make, clock: Clock) -> None:
    """No thread of an idle pool is there when a fork is made; afterwards all goes on."""
    others = threads()
    pools = [make(min_size=1, max_size=2, max_idle_time=60.0) for _ in range(3)]
    for pool in pools:
        filled(pool)
        held = [pool.acquire(PATIENCE) for _ in range(2)]
        for lease in held:
            lease.release()
    assert len(threads() - others) >= 6
    _fork._before()
    at_fork = threads()
    _fork._after_in_parent()
    assert at_fork <= others
    clock.now += 61.0
    for pool in pools:  # needs a keeper
        pool._house.keeper.tend()
        eventually(lambda pool=pool: pool.stats().closed == {"max_idle_time": 1}, "trimmed")
        lease = pool.acquire()
        assert pool.run("SELECT 1") == "SELECT 1"
        lease.release()


def test_a_fork_waits_for_threads_to_end() -> None:
    """A thread that was asked to end, and takes its time, is gone when the fork is made."""
    asked = threading.Event()
    ended: list[bool] = []

    class Room:
        def before_fork(self) -> None:
            asked.set()

        def after_fork_in_parent(self) -> None: ...

        def after_fork_in_child(self) -> None: ...

    def run() -> None:
        asked.wait(PATIENCE)
        time.sleep(0.05)
        ended.append(True)

    room = Room()
    _fork.register(room)
    _fork.start_thread(run)
    Child(lambda: None).result()
    assert ended


def test_asked_for_while_a_fork_is_made(make: Make, spawn: Spawn) -> None:
    """Who comes between the threads' end and the fork is served after it."""
    pool, new = make(), make()
    pool.open()
    keeper = pool._house.keeper
    eventually(lambda: keeper._due > pool._core.now(), "the keeper has looked, and sleeps")
    _fork._before()
    callers = [spawn(lambda: pool.run("SELECT 1")), spawn(lambda: new.run("SELECT 1"))]
    eventually(lambda: pool.stats().waiting == new.stats().waiting == 1)
    for each in (pool, new):  # the keepers, who would make it good, come later
        each._house.opener.resume()
    for caller in callers:
        assert caller.result() == "SELECT 1"
    _fork._after_in_parent()
    for each in (pool, new):
        each.invalidate(each.acquire())
        eventually(lambda each=each: each.stats().size == 0, "there is a keeper")


def test_closed_while_a_fork_is_made(make: Make, spawn: Spawn) -> None:
    """A close that begins then ends after the fork."""
    pool = make(min_size=1)
    filled(pool)
    _fork._before()
    caller = spawn(pool.close)
    eventually(lambda: pool._core.phase == 2)
    _fork._after_in_parent()
    caller.result()
    assert pool.stats().size == 0


def test_forks_do_not_hurry_the_backoff(make: Make, driver: StubDriver) -> None:
    """A pause after a failed dial is not cut short by a fork."""
    driver.fail("connect", times=1000)
    pool = make(min_size=1, connect_backoff=1e9, connect_backoff_max=1e9)
    pool.open()
    opener, keeper = pool._house.opener, pool._house.keeper

    def pausing() -> bool:
        looked = 0 < keeper._due < math.inf  # and has asked for a dial, perhaps
        quiet = looked and not opener._calls
        return quiet and opener._not_before > time.monotonic() + 60.0

    eventually(pausing)
    until = opener._not_before
    for _ in range(5):
        _fork._before()
        _fork._after_in_parent()
        eventually(lambda: opener._running, "back again")
    assert opener._not_before == until


def test_a_full_server_is_asked_again_after_a_fork(
    make: Make, spawn: Spawn, driver: StubDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork ends the thread that was to ask again: there is another for who waits."""
    monkeypatch.setattr(_opener, "_FULL_FOR", 3600.0)
    pool = make(max_size=2, health_check_period=3600.0, check_after_idle=None)
    opener, keeper = pool._house.opener, pool._house.keeper
    held = pool.acquire(PATIENCE)
    driver.fail("connect", Full())
    caller = spawn(lambda: pool.run("SELECT 1"))
    eventually(lambda: pool._core.ceiling == 1)
    eventually(lambda: keeper._due > pool._core.now(), "the keeper has looked, and sleeps")
    _fork._before()
    opener._full_until = time.monotonic()
    _fork._after_in_parent()
    assert caller.result() == "SELECT 1"
    held.release()


def test_a_start_that_a_fork_has_undone(
    make: Make, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that was started in vain, while a fork was made, is not waited for."""
    monkeypatch.setattr(_opener, "_STARTING", 3600.0)
    pool = make()
    pool.open()
    opener = pool._house.opener
    start = _opener.start_thread
    opener.pause()
    eventually(lambda: not opener._running)

    def slowly(run: Callable[[], None]) -> None:
        over = threading.Event()
        start(lambda: (run(), over.set()))  # type: ignore[func-returns-value]
        assert over.wait(PATIENCE)
        opener.resume()

    with monkeypatch.context() as patch:
        patch.setattr(_opener, "start_thread", slowly)
        opener._start()
    assert spawn(lambda: pool.run("SELECT 1")).result() == "SELECT 1"


@pytest.mark.parametrize("struck", [None, _fork._threads.add, _thread.start_new_thread])
def test_an_interrupt_where_a_thread_is_started(struck: Callable[..., Any] | None) -> None:
    """Forks know every thread that runs, and none that does not."""
    go = threading.Event()
    before = set(_fork._threads)
    known: list[int] = []

    def strike(frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_return" and arg == struck and frame.f_code is start.__code__:
            raise KeyboardInterrupt

    def run() -> None:
        known.append(len(_fork._threads - before))
        go.wait(PATIENCE)

    start = _fork.start_thread
    expected = contextlib.nullcontext() if struck is None else pytest.raises(KeyboardInterrupt)
    sys.setprofile(strike)
    try:
        with expected:
            start(run)
    finally:
        sys.setprofile(None)
    if struck == _fork._threads.add:
        assert not _fork._threads - before
    else:
        eventually(lambda: known == [1])
    go.set()


def test_no_room_for_threads_after_a_fork(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that could not be started again is started with the next dial."""
    pool = make(min_size=1)
    filled(pool)

    def refuse(*args: object) -> int:
        raise RuntimeError("can't start new thread")

    _fork._before()
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", refuse)
        _fork._after_in_parent()
    pool.invalidate(pool.acquire())
    assert pool.run("SELECT 1") == "SELECT 1"
    eventually(lambda: pool.stats().closed == {"invalidated": 1}, "closed")


@beside_threads
def test_fork_in_a_signal_handler(make: Make, spawn: Spawn, driver: StubDriver) -> None:
    """A thread that waits, and forks in a signal handler, is served in both processes."""
    pool = make(max_size=1)
    lease = pool.acquire()
    children: list[int] = []

    def release() -> None:
        eventually(lambda: children)
        lease.release()

    thread = spawn(release)
    number, child = 0, -1
    with knocking(lambda: pool.stats().waiting == 1, lambda: children.append(os.fork())):
        try:
            with pool.connection(PATIENCE) as conn:
                number = conn.number
        finally:
            [child] = children
            if child == 0:
                os._exit(0 if number == 2 else 1)
    thread.join()
    assert number == 1
    assert os.waitpid(child, 0)[1] == 0
    assert len(driver.connections) == 1


@pytest.mark.parametrize("name", ["before_acquire", "before_connect"])
def test_fork_in_a_hook(make: Make, name: str) -> None:
    """A child that is forked in a hook may use the pool itself; the parent goes on."""
    outcomes: list[Any] = []

    def hook(argument: Any) -> bool:
        if not outcomes:
            outcomes.append(None)
            outcomes[0] = Child(lambda: pool.run("SELECT 1")).result()
        return True

    pool = make(**{name: hook})
    with warnings_of_threads(name == "before_connect"):
        assert pool.run("SELECT 2") == "SELECT 2"
    assert outcomes == ["SELECT 1"]


@contextlib.contextmanager
def warnings_of_threads(expected: bool) -> Iterator[None]:
    """A fork in a pool's own thread is one beside the main thread."""
    if expected and sys.version_info >= (3, 12):
        with pytest.warns(DeprecationWarning, match="multi"):
            yield
    else:
        yield


def test_a_child_that_leaves_the_block(make: Make, driver: StubDriver) -> None:
    """A child may run out of the block it was forked in: nothing happens there."""
    pool = make()
    status = 1
    child = -1
    try:
        with pool.connection() as conn:
            conn.run("BEGIN")
            child = os.fork()
        if child == 0:
            status = 0 if pool.stats().size == 0 and pool.run("SELECT 1") else 2
    finally:
        if child == 0:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    [conn] = driver.connections
    assert conn.statements == ["BEGIN", "COMMIT"]


def in_worker(number: int) -> Any:
    assert WORKERS_POOL is not None
    return number, use(WORKERS_POOL)


WORKERS_POOL: Pool[StubConnection] | None = None


def test_multiprocessing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of multiprocessing that are forked use a pool of this module as it is."""
    pool = make(min_size=1)
    filled(pool)
    monkeypatch.setattr(sys.modules[__name__], "WORKERS_POOL", pool)
    context = multiprocessing.get_context("fork")
    channel = context.SimpleQueue()

    def work(number: int) -> None:
        channel.put(in_worker(number))

    workers = [context.Process(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
        assert worker.exitcode == 0
    assert sorted(channel.get() for _ in workers) == [(number, FRESH) for number in range(3)]
    channel.close()
    assert pool.run("SELECT 1") == "SELECT 1"


def test_a_listener_is_closed_in_the_child(make: Make, driver: StubDriver) -> None:
    """The session that listens is the parent's, who goes on listening."""
    pool = make()
    with fastpool.listen(pool, "jobs") as listener:
        [conn] = driver.connections

        def look() -> Any:
            with pytest.raises(PoolClosed):
                listener.get(timeout=0)
            listener.close()
            return conn.closed, driver.counts["close"]

        assert Child(look).result() == (True, 0)
        assert not conn.closed
        with pytest.raises(TimeoutError):
            listener.get(timeout=0.001)


def test_a_broken_driver_does_not_keep_other_pools(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong with one connection, or one pool, in a child concerns no other."""

    parent = os.getpid()

    class Broken(StubDriver):
        def abandon(self, conn: StubConnection) -> None:
            if os.getpid() != parent:
                raise OSError("abandon")
            super().abandon(conn)

    class Worse(StubDriver):
        def forked(self) -> None:
            raise OSError("forked")

    pools = [make(driver=kind(), min_size=2) for kind in (Worse, Broken, StubDriver)]
    for pool in pools:
        filled(pool)

    def look() -> Any:
        return [record.exc_info[1].args for record in caplog.records], [
            use(pool) for pool in pools[1:]
        ]

    messages, used = Child(look).result()
    assert sorted(messages) == [("abandon",), ("abandon",), ("forked",)]
    assert used == [FRESH, FRESH]


def test_dropped_pools_are_forgotten(driver: StubDriver) -> None:
    """The register of pools keeps none alive."""
    gc.collect()
    before = len(_fork._all())
    pool = Pool(driver=driver)
    assert len(_fork._all()) == before + 1
    del pool
    gc.collect()
    assert len(_fork._all()) <= before


@pytest.mark.skipif(sys.version_info < (3, 12), reason="earlier ones do not warn")
def test_no_warning_of_threads() -> None:
    """A fork with idle pools, just opened, filled or failing, is one without threads."""
    run_script(
        """
        import logging, os
        from fastpool import Pool, _fork
        from fastpool.testing import StubDriver

        logging.disable()
        _fork.MOMENT = 10.0  # on a busy machine
        failing = StubDriver()
        failing.fail("connect", times=10**6)
        pools = [Pool(driver=StubDriver(), min_size=3), Pool(driver=failing, min_size=1)]
        pools[0].open(wait=True)
        pools[1].open()
        for n in range(20):
            just_opened = Pool(driver=StubDriver(), min_size=1)
            just_opened.open()
            child = os.fork()
            if child == 0:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert pools[0].run("SELECT 1") == "SELECT 1"
            just_opened.close()
        for pool in pools:
            pool.close()
        """,
        "-Werror",
    )


def test_programs_inherit_nothing(make: Make) -> None:
    """A program that is started gets no socket and no pipe of a pool."""
    need(os.path.isdir("/proc/self/fd"), "/proc")

    def inherited() -> int:
        script = "import os; print(len(os.listdir('/proc/self/fd')))"
        command = [sys.executable, "-c", script]
        return int(subprocess.run(command, close_fds=False, stdout=subprocess.PIPE).stdout)

    before = inherited()
    pool = make(driver=StubDriver(sockets=True), min_size=3)
    filled(pool)
    assert inherited() == before


def test_threads_that_are_greenlets_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a thread's number says which thread it is can be asked."""
    assert _runtime.threads_are_told_apart()
    monkeypatch.setattr(_thread, "allocate_lock", lambda: None)
    assert not _runtime.threads_are_told_apart()
