"""Nobody ever gets another caller's rows, whatever goes wrong on a connection.

Threads ask for numbers that nobody else asks for, and look at each answer. Every
tenth time something goes wrong on purpose. The same is done with plain pg8000
connections in a plain queue, where it does give wrong rows: so the test can see.
"""

from __future__ import annotations

import contextlib
import queue
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pg8000.dbapi
import pg8000.native
import pytest
from integration.conftest import MakePool
from integration.kit import (
    FULL,
    Admin,
    Interrupt,
    eventually,
    interrupt,
    report,
    run_threads,
    whole,
)

from fastpool import ConnectionBusy, ConnectionReleased
from fastpool.testing import LocalPostgres

THREADS = 8
QUERIES = 100_000 if FULL else 20_000
EVENT_EVERY = 10

Use = Callable[[], AbstractContextManager[Any]]


class StreamError(Exception):
    """What a COPY stream raises."""


class Unprintable:
    """A parameter that cannot be turned into text."""

    def __str__(self) -> str:
        raise ArithmeticError("no text")


class Marksman:
    """Interrupts whoever asks for it, a moment later, from a thread of its own."""

    def __init__(self, shoot: Callable[[int], None]) -> None:
        self._shoot = shoot
        self._targets: queue.SimpleQueue[tuple[int, float, threading.Event]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            thread, delay, fired = self._targets.get()
            if not thread:
                return
            time.sleep(delay)
            self._shoot(thread)
            fired.set()

    def aim(self, delay: float) -> threading.Event:
        """Interrupt this thread *delay* seconds from now; the event tells when."""
        fired = threading.Event()
        self._targets.put((threading.get_ident(), delay, fired))
        return fired

    def close(self) -> None:
        self._targets.put((0, 0.0, threading.Event()))


class Native:
    """How to ask, with pg8000's native connections."""

    driver = "native"

    def ask(self, conn: Any, sql: str, **params: Any) -> Any:
        return conn.run(sql, **params)

    def keep(self, conn: Any, number: int) -> list[Callable[[], Any]]:
        statement = conn.prepare(f"SELECT {number}")
        statement.run()
        return [statement.run, statement.close, lambda: conn.run("SELECT 1")]


class DBAPI:
    """How to ask, with pg8000's DB-API connections."""

    driver = "dbapi"

    def ask(self, conn: Any, sql: str, **params: Any) -> Any:
        cursor = conn.cursor()
        stream = params.pop("stream", None)
        for name in params:
            sql = sql.replace(f":{name}", "%s")
        cursor.execute(sql, tuple(params.values()), stream=stream)
        return [] if cursor.description is None else [list(row) for row in cursor.fetchall()]

    def keep(self, conn: Any, number: int) -> list[Callable[[], Any]]:
        cursor = conn.cursor()
        cursor.execute(f"SELECT {number}")
        return [lambda: cursor.execute("SELECT 1"), conn.commit, conn.cursor]


class Harness:
    """One caller after the other on one thread, events among them."""

    def __init__(self, use: Use, dialect: Any, marksman: Marksman, events: str, first: int) -> None:
        self.use = use
        self.dialect = dialect
        self.ask = dialect.ask
        self.marksman = marksman
        self.random = random.Random(first)
        self.events = [getattr(self, name) for name in events.split()]
        self.number = first
        self.foreign: list[str] = []
        self.seen: Counter[str] = Counter()

    def run(self, queries: int) -> None:
        """Ask *queries* times; every tenth is an event."""
        for turn in range(queries):
            if turn % EVENT_EVERY:
                self.plain()
            else:
                self.random.choice(self.events)()

    def next(self) -> int:
        self.number += 1
        return self.number

    def check(self, rows: Any, number: int) -> None:
        if rows != [[number]]:
            self.foreign.append(f"asked for {number}, got {rows}")

    def plain(self) -> None:
        number = self.next()
        with self.use() as conn:
            if number % 2:
                self.check(self.ask(conn, "SELECT :x::bigint", x=number), number)
            else:
                self.check(self.ask(conn, f"SELECT {number}::bigint"), number)

    def fails(self, error: type[BaseException], sql: str, **params: Any) -> None:
        """*sql* raises *error*; the block ends with it, or goes on in spite of it."""
        self.seen[error.__name__] += 1
        on = self.random.random() < 0.5
        with contextlib.suppress(error), self.use() as conn:
            try:
                self.ask(conn, sql, **params)
            except error:
                if not on:
                    raise
            else:
                self.foreign.append(f"{error.__name__} was not raised")
            number = self.next()
            self.check(self.ask(conn, "SELECT :x::bigint", x=number), number)

    def surrogate(self) -> None:
        self.fails(UnicodeEncodeError, "SELECT :x::text", x="\ud800")

    def unprintable(self) -> None:
        self.fails(ArithmeticError, "SELECT :x::text", x=Unprintable())

    def broken_stream(self) -> None:
        def lines() -> Iterator[str]:
            yield "1\n"
            raise StreamError

        # Inside a transaction the next statement would fail, so the block ends here.
        self.seen["StreamError"] += 1
        with contextlib.suppress(StreamError), self.use() as conn:
            self.ask(conn, "COPY numbers FROM STDIN", stream=lines())

    def interrupted(self) -> None:
        """The interrupt may come before, in or after the query, or in the pool."""
        number = self.next()
        self.seen["Interrupt"] += 1
        try:
            fired = self.marksman.aim(self.random.uniform(0, 0.003))
            with self.use() as conn:
                sql = f"SELECT {number}::bigint FROM pg_sleep(0.001)"
                self.check(self.ask(conn, sql), number)
            while True:
                fired.wait(0.001)
        except (Interrupt, KeyboardInterrupt):
            pass

    def shared(self) -> None:
        """Two threads in one connection: one is refused, or each gets its own rows."""
        self.seen["shared"] += 1
        numbers = self.next(), self.next()
        ready = threading.Barrier(2)
        outcomes: list[str] = []

        def one(conn: Any, number: int) -> None:
            ready.wait()
            try:
                self.check(self.ask(conn, f"SELECT {number}::bigint FROM pg_sleep(0.001)"), number)
                outcomes.append("rows")
            except ConnectionBusy:
                outcomes.append("busy")

        with self.use() as conn:
            other = threading.Thread(target=one, args=(conn, numbers[0]))
            other.start()
            one(conn, numbers[1])
            other.join()
        if "rows" not in outcomes or len(outcomes) != 2:
            self.foreign.append(f"two threads on one connection ended with {outcomes}")
        self.seen["busy"] += outcomes.count("busy")

    def kept(self) -> None:
        """Things taken from a lease and used after it."""
        self.seen["kept"] += 1
        with self.use() as conn:
            uses = self.dialect.keep(conn, self.next())
        for use in uses:
            try:
                use()
            except ConnectionReleased:
                continue
            self.foreign.append(f"{use} worked after the release")


ALL = "surrogate unprintable broken_stream interrupted shared kept"

# An interrupt may come between the acquire and the ``with``: the pool takes the
# connection back and says so.
lost_leases = pytest.mark.filterwarnings("ignore:.* was never released:ResourceWarning")


@pytest.fixture
def marksman() -> Iterator[Marksman]:
    """Shoots :class:`Interrupt`."""
    marksman = Marksman(interrupt)
    yield marksman
    marksman.close()


@pytest.fixture
def _numbers(admin: Admin) -> Iterator[None]:
    """A table for COPY."""
    admin.run("CREATE TABLE numbers (n bigint)")
    yield
    admin.run("DROP TABLE numbers")


@lost_leases
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("_numbers", "bystanders_away")
@pytest.mark.parametrize("dialect", [Native(), DBAPI()], ids=["native", "dbapi"])
def test_no_foreign_rows(
    make_pool: MakePool, admin: Admin, marksman: Marksman, dialect: Any
) -> None:
    """Thousands of queries with hundreds of accidents: every row reaches who asked for it."""
    size = 4
    pool = make_pool(driver=dialect.driver, min_size=size, max_size=size, timeout=60)
    pool.open(wait=True)
    harnesses = [
        Harness(pool.connection, dialect, marksman, ALL, 1_000_000 * (i + 1))
        for i in range(THREADS)
    ]
    began = time.monotonic()
    share = QUERIES // THREADS // 2
    run_threads([partial(harness.run, share) for harness in harnesses], timeout=240)
    elapsed = time.monotonic() - began
    seen = sum((harness.seen for harness in harnesses), Counter())
    report(
        f"{dialect.driver}: {share * THREADS} queries in {elapsed:.1f} s, events {dict(seen)}, "
        f"connections closed {dict(pool.stats().closed)}"
    )
    assert [wrong for harness in harnesses for wrong in harness.foreign] == []
    assert min(seen.values()) > 0
    eventually(lambda: whole(pool) and pool.stats().size == size, f"all {size} are back: {pool!r}")
    assert len(admin.backends(pool.name)) == size


@pytest.mark.usefixtures("_numbers")
@pytest.mark.parametrize("dialect", [Native(), DBAPI()], ids=["native", "dbapi"])
def test_plain_pg8000_gives_foreign_rows(
    server: LocalPostgres, marksman: Marksman, dialect: Any
) -> None:
    """The same accidents with stock pg8000 in a queue do give wrong rows: the harness sees them."""
    kind = pg8000.native if dialect.driver == "native" else pg8000.dbapi
    connections: queue.LifoQueue[Any] = queue.LifoQueue()
    made = []

    def connect() -> Any:
        conn = kind.Connection(
            server.user, host=server.host, port=server.port, ssl_context=False, timeout=5
        )
        if dialect.driver == "dbapi":
            conn.autocommit = True
        made.append(conn)
        return conn

    @contextlib.contextmanager
    def use() -> Iterator[Any]:
        try:
            conn = connections.get_nowait()
        except queue.Empty:
            conn = connect()
        try:
            yield conn
        except (kind.Error, OSError):
            conn = connect()  # all that a plain pool knows of broken connections
            raise
        finally:
            connections.put(conn)

    harness = Harness(use, dialect, marksman, "surrogate unprintable interrupted", 1)
    for _ in range(500):
        if harness.foreign:
            break
        with contextlib.suppress(Exception):  # being out of step has many faces
            harness.run(EVENT_EVERY)
    for conn in made:
        with contextlib.suppress(kind.Error):
            conn.close()
    report(f"stock pg8000: {harness.foreign[:1]} at query {harness.number}")
    assert harness.foreign


@lost_leases
def test_ctrl_c(make_pool: MakePool, admin: Admin) -> None:
    """A real SIGINT in the main thread, again and again, at any moment of a query."""
    assert threading.current_thread() is threading.main_thread()
    pool = make_pool(min_size=2, max_size=2)
    pool.open(wait=True)
    marksman = Marksman(lambda thread: signal.pthread_kill(thread, signal.SIGINT))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        harness = Harness(pool.connection, Native(), marksman, "interrupted", 1)
        for _ in range(1000 if FULL else 200):
            harness.interrupted()
            harness.plain()
    finally:
        signal.signal(signal.SIGINT, previous)
        marksman.close()
    assert harness.foreign == []
    eventually(lambda: whole(pool) and pool.stats().size == 2, f"both are back: {pool!r}")
    assert len(admin.backends(pool.name)) == 2
