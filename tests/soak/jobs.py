"""The load: threads that do all that users do with a pool, and look at each answer."""

from __future__ import annotations

import contextlib
import gc
import io
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from pg8000.exceptions import InterfaceError

import fastpool
from fastpool import (
    ConnectionBusy,
    ConnectionReleased,
    DeadlineExceeded,
    PoolDeadlock,
    PoolTimeout,
    TooManyRequests,
    TransactionAborted,
)
from fastpool.retry import RetryPolicy, sqlstate

from .ledger import ACCOUNTS, TOTAL, Write
from .world import Flaky, Interrupt, Target, World, kind_of

__all__ = ["Errands", "Tally", "Worker", "is_a_faults"]

LONG = 10.0
"""Seconds that a patient caller waits for a connection: more than any fault lasts."""
SWIFT = 3.0
"""Seconds that nothing takes once all faults are over, on however slow a machine."""
INSERT = "INSERT INTO soak_rows (id, grp, size) VALUES (:i, :g, :n)"

# What a server says to somebody whose session, statement or transaction was hit.
EXPECTED_STATES = {
    "08006",  # by the proxy, in the server's name
    "25P03",  # idle_in_transaction_session_timeout
    "40001",
    "40P01",
    "53300",
    "55P03",  # lock_timeout
    "57014",  # statement_timeout, pg_cancel_backend
    "57P01",
    "57P02",
    "57P03",
}


def is_a_faults(error: Exception) -> bool:
    """Is it the word of an injected fault, to who has a connection?"""
    if isinstance(error, TransactionAborted):
        return error.outcome == "unknown"
    code = sqlstate(error)
    return code in EXPECTED_STATES or kind_of(error) == "InterfaceError: network error"


class Undo(Exception):
    """Raised in a block to have it rolled back."""


class StreamError(Exception):
    """What a COPY stream raises."""


class Unprintable:
    """A parameter that cannot be turned into text."""

    def __str__(self) -> str:
        raise ArithmeticError("no text")


class Tally:
    """One caller's own count of what a pool should have counted."""

    def __init__(self) -> None:
        self.attempts = self.got = self.timeouts = self.nothing = self.overdue = 0


class Errands:
    """Threads that do things for the workers: use the leases that these acquired, join
    them on a connection by mistake, cancel from outside."""

    def __init__(self, world: World, count: int) -> None:
        self._world = world
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.threads = [
            threading.Thread(target=self._run, name=f"errands-{n}") for n in range(count)
        ]
        for thread in self.threads:
            thread.start()

    def _run(self) -> None:
        while (errand := self._queue.get()) is not None:
            try:
                errand()
            except BaseException as error:
                self._world.found("an errand failed", error)
            del errand  # or its lease would live until the next

    def crowded(self) -> bool:
        return self._queue.qsize() > 2 * len(self.threads)

    def send(self, errand: Callable[[], None]) -> None:
        self._queue.put(errand)

    def close(self) -> None:
        for _ in self.threads:
            self._queue.put(None)
        for thread in self.threads:
            thread.join(30)


class Worker:
    """One thread of mixed work."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.book = world.book
        self.name = f"worker-{number}"
        self.rng = world.rng(self.name)
        self.done = world.counter("jobs done")
        self.failed = world.counter("jobs failed")
        self.seen = world.counter("seen")
        self.caused = world.counter("caused")
        self.tallies = {target.name: Tally() for target in world.targets}
        self.ident = 0
        self.job = "nothing"
        self.since = time.monotonic()
        # Interrupts: only while open, one at a time; see faults.
        self.open = False
        self.pending = False
        self.interrupts = 0
        self.aim = threading.Lock()
        self._target = world.targets[0]
        self.asking: tuple[Target, float, float] | None = None
        """The pool asked for a connection, when, and for how long to wait; while it waits."""
        self.refused_at: float | None = None
        """When it did not get one, where it has something else to return first."""

    # -- the loop --------------------------------------------------------------

    def work(self) -> None:
        """Until the soak is over."""
        self.ident = threading.get_ident()
        while not self.world.over.is_set():
            try:
                try:
                    self.open = True
                    self._turn()
                finally:
                    self.shield()
            except Interrupt as error:
                self.hit(error)
            except Exception as error:
                self._judge(error, time.monotonic())

    def shield(self) -> None:
        """No interrupt comes to this thread from here on."""
        with self.aim:
            self.open = False
        for _ in range(3):
            pass  # one that is under way comes here at the latest

    def _turn(self) -> None:
        job = self.rng.choices(JOBS, WEIGHTS)[0]
        if self.world.calm.is_set():
            job = Worker.select
        self.asking = None
        self.job, self.since = job.__name__, time.monotonic()
        job(self)
        self.done[self.job] += 1
        took = time.monotonic() - self.since
        if self.since > self.world.settled_at and took > SWIFT:
            # Nothing fails any more: it was forgotten in the queue.
            self.world.found(f"{self.job} on {self._target.name} took {took:.1f} s in the calm")

    def hit(self, error: BaseException | None = None) -> None:
        """An interrupt has arrived."""
        self.open = False
        self.interrupts += 1
        self.failed[self.job] += 1
        self.seen["Interrupt"] += 1
        self.pending = False

    def _judge(self, error: Exception, now: float) -> None:
        context: BaseException | None = error
        while context is not None and not isinstance(context, Interrupt):
            context = context.__context__
        if context is not None:
            self.hit()
            self.world.found(f"{self.job}: an interrupt was hidden behind another error", error)
            return
        self.failed[self.job] += 1
        self.seen[kind_of(error)] += 1
        if isinstance(error, PoolTimeout):
            self._judge_wait(error, now)
        elif isinstance(error, DeadlineExceeded):
            self.tallies[self._target.name].overdue += 1
        if not self._is_expected(error):
            self.world.found(f"{self.job} on {self._target.name}: unexpected error", error)

    def _judge_wait(self, error: PoolTimeout, now: float) -> None:
        self.tallies[self._target.name].timeouts += 1
        timeout, waited = error.timeout or 0.0, error.waited or 0.0
        now = self.refused_at or now
        begun, over = now - waited, waited - timeout
        if self.asking is not None:
            _, begun, asked = self.asking
            over = max(over, now - begun - asked)
            if timeout != asked:
                self.world.found(f"{self.job}: timeout={asked} was taken for {timeout}", error)
        if timeout == 0:
            over -= self.patience(self._target)
        told = f"{self.job} on {self._target.name}, waited {waited:.3f} s: {error}"
        self.world.overshoots.append((begun, now, over, told))

    def _is_expected(self, error: Exception) -> bool:
        if isinstance(error, TooManyRequests):
            return True
        if self.world.calm.is_set() and self.since > self.world.settled_at:
            return False
        if isinstance(error, PoolDeadlock):
            return False  # nobody here waits for a second connection of one pool
        if isinstance(error, TransactionAborted):
            return error.outcome == "unknown"
        if isinstance(error, PoolTimeout | Flaky | DeadlineExceeded):
            return True
        code = sqlstate(error)
        if code == "57014" and self._target.proxy is None and "user request" in str(error):
            return False  # nobody cancels here: this was meant for a neighbour
        if code is not None:
            return code in EXPECTED_STATES
        # The connection may have been lost in the undoing of an inner block.
        closed = self.job == "savepoints" and str(error) == "connection is closed"
        return closed or kind_of(error) == "InterfaceError: network error"

    # -- parts of jobs ---------------------------------------------------------

    @staticmethod
    def patience(target: Target) -> float:
        """Seconds that a caller who only tries may take: it waits for no connection, but
        for the answers of those that are idle."""
        return float(target.pool.config.ping_timeout * target.max_size)

    def pick(self) -> Target:
        """A pool for this job."""
        self._target = self.rng.choice(self.world.targets)
        return self._target

    def limit(self, target: Target, longest: float = LONG) -> float:
        """How long to wait for a connection this time; the attempt is counted."""
        draw = self.rng.random()
        if self.world.calm.is_set():
            timeout = LONG
        elif draw < 0.06:
            timeout = 0
        else:
            timeout = self.rng.uniform(0.001, 0.08) if draw < 0.2 else longest
        self._target = target
        self.tallies[target.name].attempts += 1
        self.asking = (target, time.monotonic(), timeout)
        self.refused_at = None
        return timeout

    def got(self, target: Target) -> None:
        self.asking = None
        self.tallies[target.name].got += 1

    def wrong(self, what: str, got: object, wanted: object) -> None:
        self.world.found(f"{self.job} on {self._target.name}: {what}: {got!r}, not {wanted!r}")

    def token(self, target: Target, conn: Any) -> None:
        """Ask for what nobody else asks for, and look at the answer."""
        t, n = self.rng.getrandbits(56), self.rng.randrange(1, 1000)
        kind = self.rng.randrange(10)
        if kind < 5:
            rows = target.run(conn, "SELECT :t::bigint, :n::int + 1", t=t, n=n)
            wanted = [[t, n + 1]]
        elif kind < 7:
            rows = target.run(conn, f"SELECT {t}, '{n}'")
            wanted = [[t, str(n)]]
        elif kind < 9:
            sql = "SELECT g, :t::bigint + g FROM generate_series(1, :n::int) g"
            rows = target.run(conn, sql, t=t, n=n)
            wanted = [[g, t + g] for g in range(1, n + 1)]
        else:
            sql = "SELECT :t::bigint FROM pg_sleep(:s::float8)"
            rows = target.run(conn, sql, t=t, s=self.rng.uniform(0, 0.02))
            wanted = [[t]]
        if rows != wanted:
            self.wrong("WRONG ROWS", rows[:5], wanted[:5])

    def insert_rows(self, target: Target, conn: Any, ids: list[int], group: list[int]) -> None:
        for number in ids:
            target.run(conn, INSERT, i=number, g=group[0], n=len(group))

    # -- jobs ------------------------------------------------------------------

    def select(self) -> None:
        target = self.pick()
        with target.pool.connection(self.limit(target)) as conn:
            self.got(target)
            for _ in range(self.rng.randrange(1, 4)):
                self.token(target, conn)

    def run(self) -> None:
        """By the pool's shortcut."""
        target = self.pick()
        t = self.rng.getrandbits(56)
        view = target.pool.within(timeout=self.limit(target))
        rows = target.call(view, "SELECT :t::bigint", t=t)
        self.got(target)
        if rows != [[t]]:
            self.wrong("WRONG ROWS", rows, [[t]])

    def insert(self) -> None:
        """One row, each by itself (native), or until the block's COMMIT (DB-API)."""
        target = self.pick()
        with (
            Write(self.book, sealed=target.native) as write,
            target.pool.connection(self.limit(target)) as conn,
        ):
            self.got(target)
            self.insert_rows(target, conn, write.ids, write.ids)
            write.sealed = True

    def insert_retried(self) -> None:
        """A policy repeats it when it surely did nothing: twice would be a duplicate key."""
        target = self.pick()
        policy = RetryPolicy(max_attempts=3, initial_wait=0.01)
        with Write(self.book, sealed=True) as write:
            (i,) = write.ids
            self.tallies[target.name].attempts += policy.max_attempts
            target.call(target.pool.retry(policy), INSERT, i=i, g=i, n=1)

    def transaction(self) -> None:
        """All rows or none; one in five is undone on purpose."""
        target = self.pick()
        with (
            contextlib.suppress(Undo),
            Write(self.book, self.rng.randrange(2, 5)) as write,
            target.pool.transaction(self.limit(target)) as conn,
        ):
            self.got(target)
            self.insert_rows(target, conn, write.ids, write.ids)
            if self.rng.random() < 0.2:
                raise Undo
            write.sealed = True

    def savepoints(self) -> None:
        """Nested blocks, of which the inner ones are undone, or not."""
        target = self.pick()
        with (
            Write(self.book, 4) as write,
            target.pool.transaction(self.limit(target)) as conn,
        ):
            self.got(target)
            first, *inner = write.ids
            undone = [number for number in inner if self.rng.random() < 0.5]
            kept = [number for number in write.ids if number not in undone]
            self.insert_rows(target, conn, [first], kept)
            for number in inner:
                with contextlib.suppress(Undo), conn.transaction():
                    self.insert_rows(target, conn, [number], kept)
                    if number in undone:
                        raise Undo
            for number in undone:
                write.refuse(number)
            write.sealed = True

    def released(self) -> None:
        """What ``acquire`` gives only releases: an open transaction is rolled back."""
        target = self.pick()
        with (
            Write(self.book) as write,
            target.pool.acquire(self.limit(target)) as lease,
        ):
            self.got(target)
            if target.native:
                target.run(lease, "BEGIN")
            self.insert_rows(target, lease, write.ids, write.ids)
            write.refuse(write.ids[0])
            if self.rng.random() < 0.5:
                target.pool.release(lease)  # the block's end is the second, and does nothing

    def transfer(self) -> None:
        """Between accounts, again until it succeeds; the sum stays what it is."""
        target = self.pick()
        isolation = self.rng.choice(["serializable", "repeatable read", "read committed"])
        policy = RetryPolicy(max_attempts=4, initial_wait=0.005)
        giver, taker = self.rng.sample(range(1, ACCOUNTS + 1), 2)
        amount = self.rng.randrange(1, 50)
        move = "UPDATE soak_accounts SET balance = balance + :a::bigint WHERE id = :i::int"
        with Write(self.book) as write:

            def work(conn: Any) -> None:
                self.got(target)
                write.sealed = False
                target.run(conn, move, a=-amount, i=giver)
                self.insert_rows(target, conn, write.ids, write.ids)
                target.run(conn, move, a=amount, i=taker)
                write.sealed = True

            self.tallies[target.name].attempts += policy.max_attempts
            target.pool.run_in_transaction(work, isolation=isolation, policy=policy)

    def balance(self) -> None:
        """The sum, by one statement and by several in one snapshot."""
        target = self.pick()
        with target.pool.transaction(
            self.limit(target), isolation="repeatable read", read_only=True
        ) as conn:
            self.got(target)
            rows = target.run(conn, "SELECT sum(balance)::bigint FROM soak_accounts")
            each = target.run(conn, "SELECT balance FROM soak_accounts")
        total = sum(balance for (balance,) in each)
        if rows != [[TOTAL]] or total != TOTAL:
            self.wrong("the sum of the accounts", (rows, total), TOTAL)

    def copy_in(self) -> None:
        """Rows by COPY; one stream in four fails half-way."""
        target = self.pick()
        fails = self.rng.random() < 0.25
        with (
            contextlib.suppress(StreamError),
            Write(self.book, 20, sealed=target.native) as write,
            target.pool.connection(self.limit(target)) as conn,
        ):
            self.got(target)
            ids = write.ids

            def lines() -> Any:
                for number in ids:
                    if fails and number == ids[10]:
                        self.caused["COPY stream raises"] += 1
                        raise StreamError
                    yield f"{number}\t{ids[0]}\t{len(ids)}\n"

            sql = "COPY soak_rows (id, grp, size) FROM STDIN"
            target.run(conn, sql, stream=lines())
            write.sealed = True

    def copy_out(self) -> None:
        target = self.pick()
        t, n = self.rng.getrandbits(40), self.rng.randrange(10, 2000)
        stream = io.BytesIO()
        with target.pool.connection(self.limit(target)) as conn:
            self.got(target)
            sql = f"COPY (SELECT {t} + g FROM generate_series(1, {n}) g) TO STDOUT"
            target.run(conn, sql, stream=stream)
        if stream.getvalue() != b"".join(b"%d\n" % (t + g) for g in range(1, n + 1)):
            self.wrong("WRONG ROWS", stream.getvalue()[:50], t)

    def leftovers(self) -> None:
        """Nothing taken from a connection works after its release."""
        target = self.pick()
        lease = target.pool.acquire(self.limit(target))
        self.got(target)
        old: list[Callable[[], Any]] = [lambda: target.run(lease, "SELECT 1")]
        try:
            if target.native:
                statement = lease.prepare("SELECT :n::int")
                statement.run(n=1)
                old += [lambda: statement.run(n=2), statement.close]
            else:
                cursor = lease.cursor()
                cursor.execute("SELECT 1")
                old += [lambda: cursor.execute("SELECT 2")]
        finally:
            lease.release()
        for use in old:
            try:
                use()
            except ConnectionReleased:
                continue
            self.wrong("a released connection works", "no error", "ConnectionReleased")

    def crossing(self) -> None:
        """Acquired here, used and released by another thread."""
        target = self.pick()
        errands = self.world.errands
        if errands.crowded():
            return
        lease = target.pool.acquire(self.limit(target))
        self.got(target)
        t = self.rng.getrandbits(56)

        def use() -> None:
            try:
                rows = target.run(lease, "SELECT :t::bigint", t=t)
                if rows != [[t]]:
                    self.world.found(f"crossing on {target.name}: WRONG ROWS: {rows} not {t}")
            except Exception as error:
                if not is_a_faults(error):
                    self.world.found("crossing: unexpected error", error)
            finally:
                lease.release()

        errands.send(use)

    def shared(self) -> None:
        """One connection, two threads, by mistake: an error, or the right answer."""
        target = self.pick()
        errands = self.world.errands
        if errands.crowded():
            return
        lease = target.pool.acquire(self.limit(target))
        self.got(target)
        self.caused["lease shared by mistake"] += 1
        tokens = [self.rng.getrandbits(56) for _ in range(8)]
        over = threading.Lock()
        over.acquire()

        def use(tokens: list[int]) -> None:
            for t in tokens:
                try:
                    rows = target.run(lease, "SELECT :t::bigint", t=t)
                except (ConnectionBusy, ConnectionReleased) as error:
                    self.seen[kind_of(error)] += 1
                except fastpool.PoolError as error:
                    self.world.found("shared: unexpected error", error)
                except Exception as error:
                    # The release of a connection in use closes it, under its user.
                    lost = ("network error", "is closed", "out of step")
                    if not is_a_faults(error) and not any(text in str(error) for text in lost):
                        self.world.found("shared: unexpected error", error)
                    return
                else:
                    if rows != [[t]]:
                        self.world.found(f"shared on {target.name}: WRONG ROWS: {rows} not {t}")

        def join_in() -> None:
            try:
                use(tokens[:4])
            finally:
                over.release()

        errands.send(join_in)
        try:
            use(tokens[4:])
            if self.rng.random() < 0.5 and not over.acquire(timeout=40):
                self.world.found("shared: the other thread is stuck")
        finally:
            lease.release()

    def attempt(self) -> None:
        """``try_acquire``."""
        target = self.pick()
        tally = self.tallies[target.name]
        tally.attempts += 1
        began = time.monotonic()
        lease = target.pool.try_acquire()
        if lease is None:
            tally.nothing += 1
            ended = time.monotonic()
            over = ended - began - self.patience(target)
            self.world.overshoots.append((began, ended, over, "try_acquire"))
            return
        self.got(target)
        try:
            self.token(target, lease)
        finally:
            lease.release()

    def session(self) -> None:
        """What the last user left in the session is not there, and I leave my own."""
        target = self.pick()
        scratch = target.pool.config.reset == "discard"
        with target.pool.connection(self.limit(target)) as conn:
            self.got(target)
            rows = target.run(
                conn,
                "SELECT coalesce(current_setting('soak.who', true), ''), "
                "current_setting('search_path'), current_setting('TimeZone'), "
                "coalesce(to_regclass('pg_temp.soak_scratch')::text, ''), "
                "(SELECT count(*) FROM pg_locks "
                "WHERE locktype = 'advisory' AND pid = pg_backend_pid())",
            )
            clean = [["", '"$user", public', "UTC", "", 0]]
            if rows != clean:
                self.wrong("the last user's session", rows, clean)
            if not target.native:
                target.run(conn, "COMMIT")
                conn.autocommit = True
            target.run(conn, f"SET soak.who = '{self.name}'")
            target.run(conn, self.rng.choice(["SET search_path = pg_catalog", "SET TimeZone = 5"]))
            if scratch:
                target.run(conn, "CREATE TEMP TABLE soak_scratch (n int)")
                target.run(conn, "SELECT pg_advisory_lock(:n::bigint)", n=self.rng.getrandbits(60))
            self.token(target, conn)

    def dropped(self) -> None:
        """A lease that is forgotten, at times in a cycle that only the collector ends."""
        target = self.pick()
        lease = target.pool.acquire(self.limit(target))
        self.got(target)
        self.caused["lease dropped without release"] += 1
        self.token(target, lease)
        in_cycle, collected = self.rng.random() < 0.3, self.rng.random() < 0.5
        if fastpool.__impl__ == "python":
            # What is raised at the entry of a finalizer ends it: Python has no second
            # one, so the interpreted core cannot give back what that lease held.
            self.shield()
            collected = True
        if in_cycle:
            cycle: list[Any] = [lease]
            cycle.append(cycle)
            del cycle
            if collected:
                self.caused["gc.collect with dropped leases"] += 1
                del lease
                gc.collect()

    def bad_parameter(self) -> None:
        """What cannot be sent breaks nothing."""
        target = self.pick()
        with target.pool.connection(self.limit(target)) as conn:
            self.got(target)
            if self.rng.random() < 0.5:
                value, raises = "\ud800", UnicodeEncodeError
                self.caused["parameter cannot be encoded"] += 1
            else:
                value, raises = Unprintable(), ArithmeticError
                self.caused["parameter's __str__ raises"] += 1
            try:
                target.run(conn, "SELECT :v", v=value)
            except raises:
                pass
            else:
                self.wrong("a bad parameter was sent", value, raises.__name__)
            self.token(target, conn)

    def too_slow(self) -> None:
        """The server's own limits: a statement, a lock, an idle transaction."""
        target = self.pick()
        limit = self.rng.choice(["statement", "lock", "idle_in_transaction_session"])
        with (
            Write(self.book) as write,
            target.pool.transaction(self.limit(target)) as conn,
        ):
            self.got(target)
            self.insert_rows(target, conn, write.ids, write.ids)
            self.caused[f"{limit}_timeout"] += 1
            target.run(conn, f"SET LOCAL {limit}_timeout = '30ms'")
            if limit == "statement":
                target.run(conn, "SELECT pg_sleep(20)")
            elif limit == "lock":
                target.run(conn, "LOCK TABLE soak_accounts IN EXCLUSIVE MODE")
                target.run(conn, "LOCK TABLE soak_accounts IN ACCESS EXCLUSIVE MODE")
            else:
                time.sleep(self.rng.uniform(0.02, 0.06))
            self.token(target, conn)
            write.sealed = True

    def swallowed(self) -> None:
        """An error that the block hides: the end must say that all of it is undone."""
        target = self.pick()
        try:
            with (
                Write(self.book) as write,
                target.pool.transaction(self.limit(target)) as conn,
            ):
                self.got(target)
                self.insert_rows(target, conn, write.ids, write.ids)
                try:
                    target.run(conn, "SELECT 1 / 0")
                except Exception as error:
                    if sqlstate(error) != "22012":
                        raise
                    self.caused["failed statement hidden in a block"] += 1
                write.sealed = True
        except TransactionAborted as error:
            if error.outcome == "unknown":
                raise
            return
        self.wrong("a transaction with a failed statement", "committed", "TransactionAborted")

    def invalidated(self) -> None:
        target = self.pick()
        lease = target.pool.acquire(self.limit(target))
        self.got(target)
        try:
            self.token(target, lease)
        finally:
            self.caused["invalidate"] += 1
            target.pool.invalidate(lease)
        try:
            target.run(lease, "SELECT 1")
        except ConnectionReleased:
            return
        self.wrong("an invalidated connection works", "no error", "ConnectionReleased")

    def two_pools(self) -> None:
        """A connection of one pool is held while another is asked for one."""
        first, second = self.rng.sample(self.world.targets, 2)
        if self.world.targets.index(first) > self.world.targets.index(second):
            first, second = second, first  # always in the same order: no deadlock
        with first.pool.connection(self.limit(first)) as one:
            self.got(first)
            self.token(first, one)
            try:
                with second.pool.connection(self.limit(second, 2.0)) as other:
                    self.got(second)
                    self.token(second, other)
                    self._target = first
                    self.token(first, one)
            except PoolTimeout:
                self.refused_at = time.monotonic()
                raise

    def notify(self) -> None:
        target = self.pick()
        number, payload = self.world.ear.next()
        with target.pool.connection(self.limit(target)) as conn:
            self.got(target)
            target.run(conn, f"NOTIFY soak, '{payload}'")
        self.world.ear.sent(number)

    def deadline(self) -> None:
        """A statement under a deadline around its end: the answer, or how it ended."""
        target = self.pick()
        seconds = self.rng.uniform(0.005, 0.06)
        around = self.rng.random() < 0.5
        limit, begun = self.limit(target), time.monotonic()
        self.asking = None  # a passed deadline is told before a passed timeout
        try:
            with (
                Write(self.book, sealed=target.native) as write,
                fastpool.deadline(seconds) if around else contextlib.nullcontext(),
                target.pool.connection(limit, math.inf if around else seconds) as conn,
            ):
                self.got(target)
                self.caused["deadline within a statement"] += 1
                if self.rng.random() < 0.5:
                    target.run(conn, "SELECT pg_sleep(:s::float8)", s=self.rng.uniform(0, 0.06))
                self.token(target, conn)
                self.insert_rows(target, conn, write.ids, write.ids)
                write.sealed = True
        except DeadlineExceeded:
            # Its budgets: for the answer to the statement, and to the ROLLBACK.
            over = time.monotonic() - begun - seconds - 2 * target.pool.config.cancel_budget
            told = f"deadline of {seconds:.3f} s on {target.name}"
            self.world.overshoots.append((begun, time.monotonic(), over, told))
            raise

    def cancelled(self) -> None:
        """A statement cancelled by another thread, about when it ends."""
        target = self.pick()
        errands = self.world.errands
        if errands.crowded():
            return
        lease = target.pool.acquire(self.limit(target))
        self.got(target)
        self.caused["lease.cancel() by another thread"] += 1
        pause = self.rng.uniform(0, 0.02)
        over = threading.Lock()
        over.acquire()

        def cancel() -> None:
            try:
                time.sleep(pause)
                lease.cancel()
            except (ConnectionReleased, InterfaceError, OSError):
                pass  # too late, or its own connection to the server failed
            except Exception as error:
                self.world.found("lease.cancel(): unexpected error", error)
            finally:
                over.release()

        errands.send(cancel)
        try:
            try:
                target.run(lease, "SELECT pg_sleep(:s::float8)", s=self.rng.uniform(0, 0.02))
                self.token(target, lease)
            except Exception as error:
                if sqlstate(error) != "57014":
                    raise
            if self.rng.random() < 0.5 and not over.acquire(timeout=40):
                self.world.found("cancelled: the other thread is stuck")
        finally:
            lease.release()


_WORK = {
    Worker.select: 20,
    Worker.run: 8,
    Worker.insert: 12,
    Worker.insert_retried: 4,
    Worker.transaction: 10,
    Worker.savepoints: 4,
    Worker.released: 4,
    Worker.transfer: 8,
    Worker.balance: 3,
    Worker.copy_in: 4,
    Worker.copy_out: 3,
    Worker.leftovers: 3,
    Worker.crossing: 6,
    Worker.shared: 3,
    Worker.attempt: 4,
    Worker.session: 4,
    Worker.dropped: 3,
    Worker.bad_parameter: 3,
    Worker.too_slow: 2,
    Worker.swallowed: 2,
    Worker.invalidated: 1,
    Worker.two_pools: 3,
    Worker.notify: 3,
    Worker.deadline: 6,
    Worker.cancelled: 3,
}
JOBS, WEIGHTS = list(_WORK), list(_WORK.values())
