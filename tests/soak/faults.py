"""What goes wrong: threads that injure servers, networks, sessions and callers."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from support import Child

from fastpool import PoolTimeout
from fastpool.testing import FaultProxy, FaultProxyError, LocalPostgres

from .jobs import Worker, is_a_faults
from .world import Admin, Flaky, Interrupt, Target, World

__all__ = ["Hooks", "Injector", "NetworkFaults", "ServerFaults", "SessionFaults"]

_RECOVERS = 1.0
"""Seconds after a network fault in which a server may still keep a session whose
client is gone: it looks after its client ten times a second."""


class Injector(threading.Thread):
    """One thread that injects faults by its own random sequence, until all is calm."""

    pause = (0.02, 0.2)

    def __init__(self, world: World, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.world = world
        self.rng = world.rng(name)
        self.counts = world.counter("injected")

    def kinds(self) -> list[tuple[int, Callable[[], bool | None]]]:
        """Weights, and functions that inject one fault; False: it did not come to pass."""
        raise NotImplementedError

    def wait(self, seconds: float) -> None:
        """Let time pass, unless the faults are to end."""
        self.world.calm.wait(seconds)

    def run(self) -> None:
        weights, faults = zip(*self.kinds(), strict=True)
        try:
            while not self.world.calm.is_set():
                (fault,) = self.rng.choices(faults, weights)
                if fault() is not False:
                    self.counts[fault.__doc__ or "?"] += 1
                self.wait(self.rng.uniform(*self.pause))
        except BaseException as error:
            if not self.world.over.is_set():
                self.world.found(f"the faults of {self.name} ended", error)


class SessionFaults(Injector):
    """What strikes one session, one caller, or one pool."""

    def __init__(
        self, world: World, server: LocalPostgres, workers: list[Worker], forks: bool
    ) -> None:
        super().__init__(world, "session faults")
        self._admin = Admin(server, world.calm.is_set)
        self._workers = workers
        self._forks = forks
        self.interrupts = 0
        signal.signal(signal.SIGUSR1, self._on_signal)

    def kinds(self) -> list[tuple[int, Callable[[], bool | None]]]:
        kinds: list[tuple[int, Callable[[], bool | None]]] = [
            (10, self._terminate),
            (8, self._cancel),
            (20, self._interrupt),
            (4, self._signal),
            (3, self._drain),
            (3, self._reconfigure),
            (2, self._collect),
        ]
        return [*kinds, (3, self._fork)] if self._forks else kinds

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._admin.close()
            for target in list(self.world.targets):
                target.pool.resize(min_size=1, max_size=target.max_size)

    def _strike(self, function: str, names: list[str], condition: str) -> bool:
        try:
            rows = self._admin.run(
                f"SELECT {function}(pid) FROM pg_stat_activity "
                f"WHERE application_name = ANY (:names) {condition} "
                "ORDER BY md5(pid::text || :salt) LIMIT 1",
                names=names,
                salt=str(self.rng.random()),
            )
        except Exception:
            if self.world.calm.is_set():
                return False
            raise
        return bool(rows)

    def _terminate(self) -> bool:
        """pg_terminate_backend"""
        names = [target.name for target in self.world.targets]
        return self._strike("pg_terminate_backend", names, "")

    def _cancel(self) -> bool:
        """pg_cancel_backend"""
        # Not in the pool without a proxy: there a cancel that comes was meant for a neighbour.
        names = [target.name for target in self.world.targets if target.proxy is not None]
        return self._strike("pg_cancel_backend", names, "AND state = 'active'")

    def _interrupt(self) -> bool:
        """exception raised in another thread"""
        worker = self.rng.choice(self._workers[1:])
        with worker.aim:
            if not worker.open or worker.pending:
                return False
            worker.pending = True
            self.interrupts += 1
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(worker.ident), ctypes.py_object(Interrupt)
            )
        return True

    def _signal(self) -> bool:
        """signal whose handler raises, as Ctrl-C does"""
        before = self.interrupts
        os.kill(os.getpid(), signal.SIGUSR1)
        self.wait(0.01)
        return self.interrupts != before

    def _on_signal(self, number: int, frame: Any) -> None:
        worker = self._workers[0]  # the main thread's, where signals are handled
        if worker.open and not worker.pending:
            worker.pending = True
            self.interrupts += 1
            raise Interrupt

    def _drain(self) -> None:
        """drain()"""
        self.rng.choice(self.world.targets).pool.drain()

    def _reconfigure(self) -> None:
        """reconfigure(max_size=...)"""
        target = self.rng.choice(self.world.targets)
        size = self.rng.randrange(1, target.max_size + 1)
        target.pool.reconfigure(max_size=size, min_size=1, max_uses=self.rng.randrange(20, 200))
        self.wait(self.rng.uniform(0, 0.3))
        target.pool.reconfigure(max_size=target.max_size)

    def _collect(self) -> None:
        """gc.collect beside everything"""
        gc.collect()

    def _fork(self) -> None:
        """fork, and the child uses the pool"""
        target = self.rng.choice(self.world.targets)
        token = self.rng.getrandbits(56)
        try:
            wrong = Child(lambda: _in_child(target, token), 20).result()
        except AssertionError as error:  # it ended without a word
            wrong = str(error)
        if wrong:
            self.world.found(f"a forked child, {target.name}: {wrong}")


def _in_child(target: Target, token: int) -> str | None:
    """What was wrong; a fault that came in between is not."""
    try:
        target.pool.reconfigure(application_name="child", min_size=0)
        with target.pool.connection(5.0) as conn:
            rows = target.run(conn, "SELECT :t::bigint", t=token)
    except Exception as error:
        expected = isinstance(error, PoolTimeout | Flaky) or is_a_faults(error)
        return None if expected else traceback.format_exc()
    return None if rows == [[token]] else f"WRONG ROWS: {rows} not {token}"


class NetworkFaults(Injector):
    """What one proxy does to the network of one pool."""

    pause = (0.1, 2.0)

    def __init__(self, world: World, target: Target, proxy: FaultProxy, encrypted: bool) -> None:
        super().__init__(world, f"network of {target.name}")
        self._target = target
        self._proxy = proxy
        self._encrypted = encrypted

    def kinds(self) -> list[tuple[int, Callable[[], bool | None]]]:
        kinds: list[tuple[int, Callable[[], bool | None]]] = [
            (4, self._reset),
            (2, self._reset_all),
            (6, self._cut),
            (4, self._lose_answers),
            (3, self._half_open),
            (3, self._black_hole),
            (2, self._latency),
            (2, self._bandwidth),
            (2, self._drip),
            (2, self._slow_accept),
            (1, self._silent_accept),
            (2, self._refuse),
            (1, self._drop_cancels),
        ]
        # Between two messages of the server, which are not seen under TLS.
        return kinds if self._encrypted else [*kinds, (5, self._fatal)]

    def run(self) -> None:
        proxy = self._proxy
        try:
            super().run()
        finally:
            proxy.heal()
            self._target.disturbed = time.monotonic() + _RECOVERS

    def _one(self) -> int | None:
        there = self._proxy.connections()
        return self.rng.choice(there).number if there else None

    def _maybe_one(self) -> int | None:
        return self._one() if self.rng.random() < 0.6 else None

    def _during(self, begin: Callable[[], object], longest: float = 1.5) -> bool:
        """A fault, some time, and its end."""
        self._target.disturbed = math.inf
        try:
            try:
                begin()
            except FaultProxyError:  # that connection has gone meanwhile
                return False
            self.wait(self.rng.uniform(0.05, longest))
            self._proxy.heal()
        finally:
            self._target.disturbed = time.monotonic() + _RECOVERS
        return True

    def _reset(self) -> bool:
        """network: reset of a connection"""
        number = self._one()
        return number is not None and self._during(
            lambda: self._proxy.reset(connection=number), 0.1
        )

    def _reset_all(self) -> bool:
        """network: reset of all connections"""
        return self._during(self._proxy.reset, 0.1)

    def _cut(self) -> bool:
        """network: cut after some bytes"""
        count = self.rng.choice([1, 1, 5, 50, 500, 5000])
        way: Any = self.rng.choice(["to_client", "to_client", "to_server"])
        how: Any = self.rng.choice(["reset", "close"])
        number = self._maybe_one()
        return self._during(
            lambda: self._proxy.cut_after(count, way, how=how, connection=number), 0.5
        )

    def _lose_answers(self) -> bool:
        """network: reset while answers are on their way"""

        def begin() -> None:
            self._proxy.latency(0.03)
            self.wait(0.1)
            self._proxy.reset()

        return self._during(begin, 0.1)

    def _half_open(self) -> bool:
        """network: half-open"""
        number = self._maybe_one()
        return self._during(lambda: self._proxy.half_open(connection=number))

    def _black_hole(self) -> bool:
        """network: black hole"""
        number = self._maybe_one()
        return self._during(lambda: self._proxy.black_hole(connection=number))

    def _latency(self) -> bool:
        """network: latency"""
        seconds = self.rng.uniform(0.001, 0.05)
        return self._during(lambda: self._proxy.latency(seconds, jitter=seconds))

    def _bandwidth(self) -> bool:
        """network: little bandwidth"""
        rate = self.rng.choice([500, 5_000, 50_000])
        return self._during(lambda: self._proxy.bandwidth(rate))

    def _drip(self) -> bool:
        """network: drop by drop"""
        count = self.rng.choice([1, 3, 10])
        return self._during(lambda: self._proxy.drip(count, 0.01))

    def _slow_accept(self) -> bool:
        """network: slow accept"""
        seconds = self.rng.uniform(0.05, 0.5)
        return self._during(lambda: (self._proxy.slow_accept(seconds), self._proxy.reset()))

    def _silent_accept(self) -> bool:
        """network: accepted, then silence"""
        return self._during(lambda: (self._proxy.silent_accept(), self._proxy.reset()))

    def _refuse(self) -> bool:
        """network: connections refused"""
        return self._during(lambda: (self._proxy.refuse(), self._proxy.reset()))

    def _drop_cancels(self) -> bool:
        """network: cancel requests lost"""
        return self._during(self._proxy.drop_cancels)

    def _fatal(self) -> bool:
        """FATAL in mid-stream"""
        code = self.rng.choice(["57P01", "57P02", "08006"])
        number = self._maybe_one()
        return self._during(
            lambda: self._proxy.fatal(code, "terminated by the soak", connection=number), 0.1
        )


class ServerFaults(Injector):
    """Restarts; seldom, since nothing works meanwhile."""

    def __init__(self, world: World, server: LocalPostgres, seconds: float) -> None:
        super().__init__(world, "server faults")
        self._server = server
        pause = max(2.0, min(20.0, seconds / 4))
        self.pause = (pause, 2 * pause)

    def kinds(self) -> list[tuple[int, Callable[[], bool | None]]]:
        return [(1, self._fast), (1, self._immediate)]

    def run(self) -> None:
        self.wait(self.pause[0] / 2)
        super().run()

    def _restart(self, mode: Any) -> None:
        for target in self.world.targets:
            if target.proxy is not None:
                target.disturbed = max(target.disturbed, time.monotonic() + _RECOVERS)
        self._server.restart(mode)

    def _fast(self) -> None:
        """server restarted, fast"""
        self._restart("fast")

    def _immediate(self) -> None:
        """server restarted, immediate (a crash)"""
        self._restart("immediate")


class Hooks:
    """Hooks that use their connection, and raise now and then."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng("hooks")
        self._counts = world.counter("caused")

    def _perhaps(self, name: str, chance: float) -> None:
        if self._rng.random() < chance and not self._world.calm.is_set():
            self._counts[f"hook {name} raises"] += 1
            raise Flaky

    def after_connect(self, conn: Any) -> None:
        conn.run("SELECT 1")
        self._perhaps("after_connect", 0.02)

    def before_acquire(self, conn: Any) -> bool:
        self._perhaps("before_acquire", 0.01)
        return self._world.calm.is_set() or self._rng.random() > 0.005

    def after_release(self, conn: Any) -> bool:
        self._perhaps("after_release", 0.01)
        return self._world.calm.is_set() or self._rng.random() > 0.005

    def before_close(self, conn: Any) -> None:
        self._perhaps("before_close", 0.05)
