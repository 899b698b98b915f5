"""``make soak``, or ``PYTHONPATH=tests python -m soak``: see ``--help``."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fastpool
from fastpool import Pool, PoolTimeout
from fastpool.testing import FaultProxy, LocalPostgres, make_certificate

from .faults import Hooks, NetworkFaults, ServerFaults, SessionFaults
from .jobs import Errands, Tally, Worker
from .ledger import TABLES, TOTAL
from .watch import Control, Ear, Sampler, Watchman, descriptors, tasks
from .world import Admin, Interrupt, Log, Target, World

HELP = """Threads of mixed work on real servers while everything fails around them; at the
end a ledger proves that no row was wrong, no write, slot or waiter lost. The exit status
is 1, and the evidence is printed, when something is."""

THREADS = 24
ERRANDS = 3
_SETTLES = 1.0
"""Seconds after the last fault in which calls may still fail."""
_CALM = 1.5
_AUDIT_EVERY = 5.0

SERVER = {
    "max_connections": 60,
    "deadlock_timeout": "50ms",
    # A server whose client is gone notices it in the middle of a statement, too.
    "client_connection_check_interval": "100ms",
}
POOL: dict[str, Any] = {
    "min_size": 1,
    "timeout": 10.0,
    "max_lifetime": 6.0,
    "max_lifetime_jitter": 3.0,
    "max_idle_time": 3.0,
    "max_uses": 100,
    "health_check_period": 1.0,
    "check_after_idle": 1.0,
    "ping_timeout": 0.5,
    "connect_timeout": 2.0,
    "connect_concurrency": 2,
    "leak_threshold": 5.0,
    "session_settings": {"lock_timeout": "5s"},
}


class Check(NamedTuple):
    """One line of the verdict."""

    name: str
    good: bool
    figures: str


def pools(world: World, server: LocalPostgres, proxies: list[FaultProxy], tls: bool) -> None:
    """The pools under test: two beside each other, each behind a network that fails, and
    one without, so that what the server counts of it is what the pool is to blame for."""
    plain, second = proxies
    security = "require" if tls else "disable"
    hooks = Hooks(world)
    settings: list[tuple[FaultProxy | None, str, dict[str, Any]]] = [
        (plain, f"{plain.dsn}?sslmode=disable", {"name": "soak-native", "max_size": 5}),
        (
            second,
            f"{second.dsn}?sslmode={security}",
            {"name": "soak-dbapi", "driver": "dbapi", "max_size": 5, "check": "ping"},
        ),
        (
            None,
            f"{server.dsn}?sslmode=disable",
            {
                "name": "soak-direct",
                "max_size": 3,
                "reset": "discard",
                "max_waiting": 14,
                # Its ceiling is held to what the server counts, however slow that is.
                "close_timeout": 10.0,
                "after_connect": hooks.after_connect,
                "before_acquire": hooks.before_acquire,
                "after_release": hooks.after_release,
                "before_close": hooks.before_close,
            },
        ),
    ]
    for proxy, dsn, own in settings:
        pool = Pool(dsn, **{**POOL, **own})
        pool.open()
        world.targets.append(Target(pool, own.get("driver") != "dbapi", proxy))


@contextlib.contextmanager
def servers() -> Iterator[tuple[LocalPostgres, list[FaultProxy], bool]]:
    """A private server with two networks before it, the second encrypted if it can be."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(LocalPostgres(settings=SERVER))
        tls = None
        if shutil.which("openssl"):
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            tls = tuple(make_certificate(Path(directory), ["127.0.0.1"]))
        first = stack.enter_context(FaultProxy(server))
        second = stack.enter_context(FaultProxy(server, tls=tls))
        yield server, [first, second], tls is not None


@contextlib.contextmanager
def overheard(world: World, workers: list[Worker], forks: bool) -> Iterator[None]:
    """Nothing is said that nobody hears: logs, warnings, what no caller can be told."""
    log, handler = logging.getLogger("fastpool"), Log(world)
    unraisable, printed = sys.unraisablehook, sys.excepthook
    uncaught, shown = threading.excepthook, warnings.showwarning
    finalizers = world.counter("seen")

    def on_unraisable(args: Any) -> None:
        if isinstance(args.exc_value, Interrupt):
            finalizers["Interrupt in a finalizer"] += 1
            for worker in workers:
                if worker.ident == threading.get_ident():
                    worker.hit()
            return
        world.found(f"raised where nobody hears it, in {args.object!r}", args.exc_value)

    def on_printed(kind: Any, error: Any, traceback: Any) -> None:
        # Compiled code prints first what it then gives to the other hook.
        if not isinstance(error, Interrupt):
            printed(kind, error, traceback)

    def on_uncaught(args: Any) -> None:
        world.found(f"the end of thread {args.thread}", args.exc_value)

    def on_warning(message: Any, category: Any, *rest: Any) -> None:
        if "was never released" in str(message):
            world.lost_leases += 1
        elif "unclosed <fastpool.drivers._socket." in str(message):
            world.unclosed += 1  # by an interrupt, in the middle of making it
        elif not (forks and "fork" in str(message)):
            world.found(f"warned: {category.__name__}: {message}")

    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    warnings.simplefilter("always")
    sys.unraisablehook, sys.excepthook = on_unraisable, on_printed
    threading.excepthook = on_uncaught
    warnings.showwarning = on_warning
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = unraisable, printed
        threading.excepthook, warnings.showwarning = uncaught, shown
        log.removeHandler(handler)


def eventually(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Soak:
    """One run, from the first connection to the verdict."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.world = World(options.seed, options.keep_going)
        self.workers: list[Worker] = []
        self.checks: list[Check] = []
        self.patience = 20.0
        self.heard = ""

    def run(self) -> int:
        world = self.world
        with servers() as (server, proxies, tls):
            admin = Admin(server)
            for statement in (TABLES, Sampler.LOOK):
                admin.run(statement)
            print(
                f"soak: {self.options.seconds:g} s, seed {world.seed}, PostgreSQL "
                f"{server.version}, Python {platform.python_version()}, core "
                f"{fastpool.__impl__!r}, {THREADS} threads, TLS {'on' if tls else 'off'} "
                "for the DB-API pool",
                flush=True,
            )
            gc.collect()
            before = descriptors(), tasks()
            with overheard(world, self.workers, self.options.fork):
                self._load(server, proxies, admin, tls)
                self._close(admin)
                self._check_end(before)
            admin.close()
        self._print()
        return 1 if world.findings or not all(check.good for check in self.checks) else 0

    # -- the run ---------------------------------------------------------------

    def _load(
        self, server: LocalPostgres, proxies: list[FaultProxy], admin: Admin, tls: bool
    ) -> None:
        world, options = self.world, self.options
        pools(world, server, proxies, tls)
        listening = Pool(f"{proxies[0].dsn}?sslmode=disable", name="listener", min_size=0)
        listening.open()
        world.ear = Ear(world, listening)
        world.errands = Errands(world, ERRANDS)
        self.workers += [Worker(world, number) for number in range(THREADS)]
        self.workers[0].ident = threading.get_ident()
        controls = [Control(world, f"control-{n}") for n in range(2)]
        self.sampler = Sampler(world, server)
        self.watchman = Watchman(world, self.workers, controls, options.every)
        sessions = SessionFaults(world, server, self.workers, options.fork)
        faults = [
            sessions,
            ServerFaults(world, server, options.seconds),
            NetworkFaults(world, world.targets[0], proxies[0], False),
            NetworkFaults(world, world.targets[1], proxies[1], tls),
        ]
        threads = [
            threading.Thread(target=worker.work, name=worker.name) for worker in self.workers[1:]
        ]
        director = threading.Thread(target=self._direct, args=(faults, server), name="director")
        watching = [world.ear, *controls, self.sampler, self.watchman]
        for thread in [*watching, *threads, *faults, director]:
            thread.start()
        try:
            self.workers[0].work()  # here, where signals arrive
        except KeyboardInterrupt:
            world.found("stopped by Ctrl-C")
        finally:
            world.over.set()
            director.join()
            self._join(threads)
            world.errands.close()
        for thread in [*watching, *world.errands.threads]:
            thread.join(30)
        listening.close()
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        self.heard = f"{world.ear.received} received, {world.ear.gaps} gaps"
        self.watchman.judge_waits(time.monotonic())
        sent = sessions.interrupts
        arrived = sum(worker.interrupts for worker in self.workers)
        self._check("every interrupt arrived", sent == arrived, f"{sent} sent, {arrived} seen")
        left = f"{world.unclosed}, by {arrived} interrupts"
        self._check("sockets left to the collector", world.unclosed <= arrived // 20, left)

    def _direct(self, faults: list[Any], server: LocalPostgres) -> None:
        """Faults for as long as was asked for, then calm, then the end."""
        world, admin = self.world, Admin(server, self.world.over.is_set)
        try:
            audited, since = time.monotonic(), 0
            end = world.began + self.options.seconds
            while not world.over.wait(0.05) and time.monotonic() < end:
                if time.monotonic() - audited >= _AUDIT_EVERY:
                    audited = time.monotonic()
                    last = world.book.last
                    for problem in world.book.audit(admin.run, since).problems():
                        world.found(problem)
                    since = max(since, last - 10_000)
        except Exception as error:
            if not world.over.is_set():
                world.found("the audit failed", error)
        finally:
            admin.close()
            world.calm.set()
            for thread in faults:
                thread.join(60)
                if thread.is_alive():
                    world.found(f"{thread.name}: still at it\n{world.stacks()}")
            world.settled_at = time.monotonic() + _SETTLES
            world.over.wait(_SETTLES + _CALM)
            world.over.set()

    def _join(self, threads: list[threading.Thread]) -> None:
        deadline = time.monotonic() + (15 if self.world.findings else 45)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        stuck = [thread.name for thread in threads if thread.is_alive()]
        if stuck:
            self.world.found(f"stuck: {stuck}\n{self.world.state()}\n{self.world.stacks()}")
            for target in self.world.targets:
                target.pool.close(timeout=0.1)  # or nothing would ever end here

    # -- the verdict -----------------------------------------------------------

    def _check(self, name: str, good: bool, figures: str) -> None:
        self.checks.append(Check(name, good, figures))

    def _close(self, admin: Admin) -> None:
        """What must hold when all is over, and the end of the pools."""
        world, watchman = self.world, self.watchman
        gc.collect()
        if world.findings:  # what is missing now will hardly come back
            self.patience = 2.0
        audit = world.book.audit(admin.run)
        problems = audit.problems()
        self._check(
            "rows",
            not problems,
            "; ".join(problems)
            or f"{audit.done} done: all there; {audit.failed} not done: none there; "
            f"{audit.unknown} unknown: {audit.unknown_present} there",
        )
        total = admin.run("SELECT sum(balance)::bigint FROM soak_accounts")[0][0]
        self._check("accounts", total == TOTAL, f"sum {total} of {TOTAL}")
        self._check(
            "waits that timed out",
            True,  # each that was too late is a finding
            f"{watchman.timeouts}, at most {watchman.latest * 1000:.0f} ms late",
        )
        for target in world.targets:
            self._check_pool(target, admin)
        flat, told = watchman.resources.flat(self.options.seconds >= 120)
        self._check("files, threads, memory flat", flat, told)
        names = [target.name for target in world.targets]
        for target in world.targets:
            target.pool.close(timeout=5.0)
        left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = ANY (:names)"
        gone = eventually(lambda: admin.run(left, names=names) == [[0]], 5.0)
        self._check("no session left", gone, f"{admin.run(left, names=names)[0][0]}")

    def _check_end(self, before: tuple[int, int]) -> None:
        """A closed pool that nobody knows has nothing open: until then it keeps a pipe."""
        self.world.end()
        self.workers.clear()

        def clean() -> bool:
            gc.collect()
            return descriptors() <= before[0] and tasks() <= before[1]

        self._check(
            "nothing left open",
            eventually(clean, 5.0),
            f"files {before[0]} -> {descriptors()}, threads {before[1]} -> {tasks()}",
        )

    def _check_pool(self, target: Target, admin: Admin) -> None:
        pool = target.pool

        def whole() -> bool:
            seen = pool.stats()
            return seen.size == seen.idle and not seen.waiting and not pool.holders()

        self._check(f"{target.name}: all came back", eventually(whole, self.patience), repr(pool))
        leases, pids = [], set()
        try:
            for _ in range(target.max_size):
                leases.append(pool.acquire(self.patience))
                ((pid,),) = target.run(leases[-1], "SELECT pg_backend_pid()")
                pids.add(pid)
            with contextlib.suppress(PoolTimeout):
                leases.append(pool.acquire(0.05))
        except Exception as error:
            self.world.found(f"{target.name}: not all slots can be had: {pool.stats()}", error)
        finally:
            for lease in leases:
                lease.release()
        had = len(leases)
        full = had == len(pids) == target.max_size
        self._check(f"{target.name}: all slots at once", full, f"{had} of {target.max_size}")
        eventually(whole, self.patience)
        self._check(
            f"{target.name}: the server's count",
            target.most_seen <= target.max_size,
            f"at most {target.most_seen} of {target.max_size}"
            + (
                f", {self.sampler.most_disturbed[target.name]} while its network failed"
                if target.name in self.sampler.most_disturbed
                else ""
            )
            + f", in {self.sampler.looks} looks",
        )
        self._check_numbers(target, had)

    def _check_numbers(self, target: Target, extra: int) -> None:
        seen, sums = target.pool.stats(), Counter[str]()
        for worker in self.workers:
            tally: Tally = worker.tallies[target.name]
            sums.update(vars(tally))
        least = sums["got"] + extra
        # What was found unfit at a checkout was acquired, and closed.
        most = sums["attempts"] + extra + sum(seen.closed.values())
        missed = sums["timeouts"] + sums["nothing"]
        # A wait may have ended by a deadline; or at its end an interrupt came.
        perhaps = sums["overdue"] + sum(worker.interrupts for worker in self.workers) + 1
        self._check(
            f"{target.name}: stats",
            least <= seen.acquires <= most and missed <= seen.timeouts <= missed + perhaps,
            f"acquires {seen.acquires} (own count {least} to {most}), timeouts {seen.timeouts} "
            f"(own count {missed}), dials {seen.dials} ({seen.dial_failures} failed), "
            f"closed {dict(sorted(seen.closed.items()))}",
        )

    # -- the report ------------------------------------------------------------

    def _print(self) -> None:
        world = self.world
        injected = world.total("injected")
        _table(f"injected: {injected.total()} faults of {len(injected)} kinds", injected)
        caused = world.total("caused")
        _table(f"caused by callers: {caused.total()} faults of {len(caused)} kinds", caused)
        _table("seen by callers", world.total("seen"))
        done, failed = world.total("jobs done"), world.total("jobs failed")
        print(f"\njobs: {done.total()} done, {failed.total()} failed")
        for job in sorted(done.keys() | failed.keys()):
            print(f"  {done[job]:9} {failed[job]:7}  {job}")
        _table("logged", world.total("log"))
        print(f"\nleases taken back by a finalizer: {world.lost_leases}")
        print(f"notifications: {self.heard}\n")
        for check in self.checks:
            print(f"{'ok  ' if check.good else 'FAIL'} {check.name}: {check.figures}")
        for finding in world.findings:
            print(f"\nFINDING {finding}")
        good = not world.findings and all(check.good for check in self.checks)
        print(
            f"\n{'passed' if good else 'FAILED'} after {time.monotonic() - world.began:.1f} s, "
            f"seed {world.seed}"
        )


def _table(title: str, counts: Counter[str]) -> None:
    print(f"\n{title}")
    for name, count in counts.most_common():
        print(f"  {count:9}  {name}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m soak", description=HELP)
    seconds = float(os.environ.get("SOAK_SECONDS") or 60)
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(10**6))
    parser.add_argument("--seconds", type=float, default=seconds, help="SOAK_SECONDS, or 60")
    parser.add_argument("--seed", type=int, default=seed, help="SOAK_SEED, or a random one")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between lines (5)")
    parser.add_argument("--keep-going", action="store_true", help="also after a finding")
    parser.add_argument("--fork", action="store_true", help="fork children that use the pools")
    return Soak(parser.parse_args(argv)).run()


if __name__ == "__main__":
    sys.exit(main())
