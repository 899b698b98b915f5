"""See the pool at work: the same load without it, with it, and while every connection is killed.

Three acts, one load (``_bank``): a connection per job; the pool; the pool while
an administrator kills all of its connections, several times. At the end the
books are checked, and the verdict is worked out from what was measured.

Without ``--dsn`` on a private server; with it on the user's own, in a schema of
a unique name that is dropped however the demonstration ends. Only connections
with its own unique ``application_name`` are killed, which a role may do to its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import secrets
import signal
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any, TextIO

from pg8000.exceptions import DatabaseError, InterfaceError

from .._house import House
from .._impl import State, __impl__
from .._opener import describe
from ..config import PoolConfig
from ..conninfo import resolve
from ..drivers.pg8000 import Native
from ..errors import PoolError
from ..pool import Pool
from . import CommandError
from ._bank import ACCOUNTS, READS_PER_TRANSFER, Bank, Caller, Job, Load
from ._progress import progress
from ._report import Act, AtRest, Kill, Report, measure, measure_kills, milliseconds

__all__ = ["HELP", "add_arguments", "run"]

HELP = "see the pool at work, and under attack, on a private PostgreSQL or your own"

_KILLS = 4
_GRACE = 10.0
"""Seconds that the last act may take longer, for all callers to be served again."""
_TICK = 0.05
_CORE = {"c": "compiled", "python": "interpreted (the pure Python fallback)"}


# -- the acts ------------------------------------------------------------------


class _Demo:
    def __init__(self, dsn: str, threads: int, seconds: float, out: TextIO) -> None:
        self.dsn = dsn
        self.threads = threads
        self.seconds = seconds
        self.out = out
        # Two callers share a connection: then the pool has something to do.
        self.max_size = max(1, threads // 2)
        mark = secrets.token_hex(6)
        self.name = f"fastpool-demo-{mark}"
        self.bank = Bank(f"fastpool_demo_{mark}")
        # One failure to connect is enough: the user should not wait for the message.
        self.admin: Pool[Any] = Pool(
            dsn,
            name=f"{self.name}-admin",
            min_size=0,
            max_size=1,
            application_name=f"{self.name}-admin",
            fail_fast_after=_TICK,
        )

    def say(self, text: str = "", indent: str = "") -> None:
        lines = textwrap.wrap(text, 88, initial_indent=indent, subsequent_indent=indent)
        print("\n".join(lines), file=self.out, flush=True)

    def run(self) -> Report:
        with contextlib.closing(self.admin):
            version = self.check_rights()
            cores = _usable_cores()
            self.say(
                f"PostgreSQL {version}, Python {platform.python_version()}, {cores} cores; "
                f"fastpool's core is {_CORE[__impl__]}."
            )
            self.say(
                f"{self.threads} threads share {ACCOUNTS} accounts. A job is a read "
                f"({READS_PER_TRANSFER} of {READS_PER_TRANSFER + 1}) or a transfer in a "
                "transaction; the books are checked at the end."
            )
            with self.scratch_schema():
                direct = self.direct()
                pooled = self.pooled()
                killed, kills, at_rest = self.killed()
                audit = self.bank.audit(self.admin.run)
        return Report(
            core=__impl__,
            python=platform.python_version(),
            postgresql=version,
            cores=cores,
            threads=self.threads,
            max_size=self.max_size,
            acts=[direct, pooled, killed],
            kills=kills,
            at_rest=at_rest,
            audit=audit,
        )

    def check_rights(self) -> str:
        """The server's version, or an error that says what is missing."""
        ((version, role, database, standby, may_create, may_kill),) = self.admin.run(
            """
            SELECT split_part(current_setting('server_version'), ' ', 1),
                   quote_ident(current_user),
                   quote_ident(current_database()),
                   pg_is_in_recovery(),
                   has_database_privilege(current_database(), 'CREATE'),
                   (SELECT bool_and(has_function_privilege(oid, 'EXECUTE'))
                    FROM pg_proc WHERE proname = 'pg_terminate_backend')
            """
        )
        if standby:
            raise CommandError("this server is a standby; the demonstration has to write")
        if not may_create:
            raise CommandError(
                "the right to make a schema is missing: "
                f"GRANT CREATE ON DATABASE {database} TO {role}"
            )
        if not may_kill:
            raise CommandError(
                "the right to end one's own connections is missing: "
                f"GRANT EXECUTE ON FUNCTION pg_terminate_backend TO {role}"
            )
        return str(version)

    @contextlib.contextmanager
    def scratch_schema(self) -> Iterator[None]:
        schema = self.bank.schema
        try:
            self.bank.create(self.admin.run)
            yield
        finally:
            try:
                self.bank.drop(self.admin.run)
            except BaseException:
                print(
                    f"the scratch schema may be left behind: DROP SCHEMA {schema} CASCADE",
                    file=sys.stderr,
                )
                raise

    def direct(self) -> Act:
        self.say()
        self.say(
            "1. A connection per job: each connects, works and disconnects, with the same "
            "driver, so that the pool is the only difference."
        )
        callers = self.bank.hire(self.threads, self.dialler())
        self.load(callers, "direct")
        jobs = [job for caller in callers for job in caller.jobs]
        self.say_errors(jobs)
        return measure("connection per job", jobs, sum(job.wait is not None for job in jobs))

    def pooled(self) -> Act:
        self.say()
        self.say(f"2. Through the pool: the same work over {self.max_size} connections.")
        with contextlib.closing(self.pool()) as pool:
            pool.open(wait=True, timeout=_GRACE)
            callers = self.bank.hire(self.threads, pool.connection)
            self.load(callers, "pool")
            made = pool.stats().created
        jobs = [job for caller in callers for job in caller.jobs]
        self.say_errors(jobs)
        return measure("pool", jobs, made)

    def killed(self) -> tuple[Act, list[Kill], AtRest]:
        self.say()
        self.say(
            f"3. The same, and {_KILLS} times the server ends every connection at once. Only a "
            "caller whose job is under way can notice; the others get new connections."
        )
        with contextlib.closing(self.pool()) as pool:
            pool.open(wait=True, timeout=_GRACE)
            callers = self.bank.hire(self.threads, pool.connection)
            moments = self.load(callers, "pool, attacked", _KILLS)
            made = pool.stats().created
            kills = measure_kills(callers, moments)
            for kill in kills:
                recovery = milliseconds(kill.recovery_seconds)
                self.say(
                    f"{kill.connections} connections killed, failed jobs: {kill.errors}, "
                    f"everyone served again after {recovery} ms",
                    indent="   ",
                )
            jobs = [job for caller in callers for job in caller.jobs]
            self.say_errors(jobs)
            at_rest = self.kill_at_rest(pool)
        return measure(f"pool, killed {_KILLS} times", jobs, made), kills, at_rest

    def kill_at_rest(self, pool: Pool[Any]) -> AtRest:
        pids = self.kill()
        deadline = time.monotonic() + _GRACE
        while self.admin.run(
            "SELECT FROM pg_stat_activity WHERE pid = ANY(:pids) AND application_name = :name",
            pids=pids,
            name=self.name,
        ):
            if time.monotonic() > deadline:
                raise CommandError("the server does not end the connections it was told to end")
            time.sleep(0.01)
        callers = self.bank.hire(self.threads, pool.connection)
        with Load(callers, jobs=1) as load:
            load.start()
            load.join()
            at_rest = AtRest(len(pids), load.jobs(), load.errors())
        self.say(
            f"{at_rest.connections} idle connections killed, then {at_rest.jobs} jobs, "
            f"failed: {at_rest.errors}",
            indent="   ",
        )
        self.say_errors([job for caller in callers for job in caller.jobs])
        return at_rest

    # -- parts of the acts ---------------------------------------------------

    def pool(self) -> Pool[Any]:
        """A pool that is not open yet. To be used in ``closing``: an interrupt between
        the opening and the block of ``with pool`` would leave it open."""
        return Pool(
            self.dsn,
            name=self.name,
            min_size=self.max_size,
            max_size=self.max_size,
            timeout=_GRACE,
            application_name=self.name,
        )

    def dialler(self) -> Callable[[], AbstractContextManager[Any]]:
        """Connections made as the pool makes them, but each for one job, by the caller."""
        config = PoolConfig.build(application_name=self.name)
        house = House(resolve(self.dsn), Native(), config, self.name)

        @contextlib.contextmanager
        def connection() -> Iterator[Any]:
            state = State()
            conn, _ = house.opener.dial(state)
            state.grant()
            try:
                yield conn
            except BaseException:
                house.driver.abandon(conn)
                raise
            conn.close()

        return connection

    def load(self, callers: list[Caller], title: str, kills: int = 0) -> list[tuple[float, int]]:
        """Let *callers* work, with a progress bar; when and how much was killed."""
        killed: list[tuple[float, int]] = []
        with progress(self.seconds) as show, Load(callers) as load:
            load.start()
            began = time.perf_counter()
            while True:
                now = time.perf_counter()
                elapsed = now - began
                show(elapsed, f"{title}: {load.jobs()} jobs, {load.errors()} errors")
                # Not again before everyone was served: errors belong to one kill each.
                recovered = not killed or load.served_since(killed[-1][0])
                left = kills - len(killed)
                if recovered and left and elapsed >= self.seconds * (1 - left / (kills + 1)):
                    killed.append((now, len(self.kill())))
                elif elapsed >= self.seconds + (0.0 if recovered and not left else _GRACE):
                    break
                time.sleep(_TICK)
        self.say(f"{load.jobs()} jobs in {elapsed:.1f} s", indent="   ")
        return killed

    def kill(self) -> list[int]:
        """End every connection of the demonstration but the administrator's."""
        rows = self.admin.run(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = :name",
            name=self.name,
        )
        return [pid for pid, done in rows if done]

    def say_errors(self, jobs: list[Job]) -> None:
        for error, times in Counter(job.error for job in jobs if job.error).most_common(3):
            self.say(f"{times} x {error}", indent="     ")


# -- the command ---------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fastpool demo``."""
    parser.description = (
        "Runs the same work with a connection per job, through the pool, and through the pool "
        "while every connection is killed; checks that nothing was lost, and compares."
    )
    parser.add_argument(
        "--dsn",
        help="use this server (a connection string, may be empty: the PG* environment) in a "
        "scratch schema that is removed; default: start a private server",
    )
    parser.add_argument(
        "--seconds", type=_positive(float), default=6.0, help="of each act (default: 6)"
    )
    parser.add_argument(
        "--threads", type=_positive(int), default=16, help="that do the work (default: 16)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the demonstration; 0, or 1 if one of its checks failed.

    Raises ``CommandError`` when there is no server, no connection or no right.
    """
    out = sys.stderr if args.json else sys.stdout
    try:
        with _interruptible(), _server(args.dsn, out) as dsn:
            report = _Demo(dsn, args.threads, args.seconds, out).run()
    except PoolError as error:
        if error.__cause__ is None:
            raise CommandError(str(error)) from error
        raise CommandError(f"cannot connect: {describe(error.__cause__)}") from error
    except (DatabaseError, InterfaceError) as error:
        raise CommandError(describe(error)) from error
    if args.json:
        passed = not report.failures()
        print(json.dumps({**asdict(report), "passed": passed, "verdict": report.verdict()}))
    else:
        print(f"\n{report.table()}\n")
        print(textwrap.fill(report.verdict(), 88))
    return 1 if report.failures() else 0


@contextlib.contextmanager
def _server(dsn: str | None, out: TextIO) -> Iterator[str]:
    if dsn is not None:
        yield dsn
        return
    from ..testing import LocalPostgres, LocalPostgresError

    print("Starting a private PostgreSQL ...", file=out, flush=True)
    postgres = LocalPostgres()
    try:
        postgres.start()
    except (FileNotFoundError, LocalPostgresError) as error:
        raise CommandError(str(error)) from error
    with postgres:
        yield postgres.dsn


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Being told to end, or the terminal's end, is a Ctrl-C: it cleans up."""
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup wants it
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _usable_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        with contextlib.suppress(ValueError):
            if 0 < (value := kind(text)) < math.inf:
                return value
        what = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"expected a {what} above 0, not {text!r}")

    return convert
