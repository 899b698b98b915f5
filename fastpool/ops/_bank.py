"""A small bank in a scratch schema: real work whose outcome can be checked.

Accounts start with equal balances; a *job* is a read of one balance or a
transfer between two, in a transaction that also enters the transfer's number
in a ledger. Each caller remembers what it was told about each of its transfers.
Afterwards :meth:`Bank.audit` holds the three against each other: balances,
ledger, and what the callers believe. A transfer that was lost, done twice, done
half, or done although its caller was told that it was not shows up as such.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from .._opener import describe

__all__ = ["ACCOUNTS", "READS_PER_TRANSFER", "Audit", "Bank", "Caller", "Job", "Load", "Source"]

ACCOUNTS = 1000
READS_PER_TRANSFER = 3
_BALANCE = 1000
_NUMBERS = 10**9  # of transfers, for each caller

Run = Callable[..., Any]
"""A connection's or pool's ``run(sql, **params)``."""
Source = Callable[[], AbstractContextManager[Any]]
"""Where a caller gets a connection for one job."""
Told = Literal["not done", "unknown", "done"]


class Job(NamedTuple):
    """One job of one caller; times are those of ``time.perf_counter()``."""

    began: float
    wait: float | None
    """Seconds until there was a connection; None: there never was."""
    ended: float
    error: str | None


@dataclass(frozen=True)
class Audit:
    """What the database holds against what the callers were told."""

    transfers_done: int
    """Of which the caller was told that they are done."""
    transfers_unknown: int
    """COMMIT was sent and no answer came: both outcomes are right."""
    transfers_lost: int
    transfers_doubled: int
    transfers_unexpected: int
    """In the ledger, though the caller was told that they were not done."""
    balance_expected: int
    balance_found: int
    accounts_wrong: int
    """Accounts whose balance is not what the ledger says."""
    wrong_rows: int
    """Reads that were answered with something other than the row asked for."""

    def failures(self) -> list[str]:
        """What is wrong, one phrase each; empty when nothing is."""
        counts = {
            "transfers lost": self.transfers_lost,
            "transfers done twice": self.transfers_doubled,
            "transfers done but reported as not done": self.transfers_unexpected,
            "accounts with a wrong balance": self.accounts_wrong,
            "wrong rows": self.wrong_rows,
        }
        found = [f"{count} {what}" for what, count in counts.items() if count]
        if self.balance_found != self.balance_expected:
            found.append(
                f"the balances add up to {self.balance_found}, not {self.balance_expected}"
            )
        return found


class Bank:
    """The tables, in a schema of their own."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.callers: list[Caller] = []

    def create(self, run: Run) -> None:
        """Make the schema and fill it."""
        run(f"CREATE SCHEMA {self.schema}")
        run(f"CREATE TABLE {self.schema}.account (id int PRIMARY KEY, balance bigint NOT NULL)")
        # No key on the number: a transfer that is done twice must be seen, not refused.
        run(
            f"CREATE TABLE {self.schema}.ledger (number bigint NOT NULL, "
            "source int NOT NULL, target int NOT NULL, amount int NOT NULL)"
        )
        run(
            f"INSERT INTO {self.schema}.account "
            f"SELECT id, {_BALANCE} FROM generate_series(1, {ACCOUNTS}) AS id"
        )

    def drop(self, run: Run) -> None:
        """Remove the schema, if it is there."""
        run(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")

    def hire(self, count: int, source: Source) -> list[Caller]:
        """*count* new callers who get their connections from *source*."""
        first = len(self.callers)
        hired = [Caller(self.schema, source, first + i) for i in range(count)]
        self.callers += hired
        return hired

    def audit(self, run: Run) -> Audit:
        """Compare; no caller may be at work."""
        ledger = Counter(number for (number,) in run(f"SELECT number FROM {self.schema}.ledger"))
        told = {number: word for caller in self.callers for number, word in caller.told.items()}
        said = Counter(told.values())
        ((total, wrong),) = run(
            f"""
            SELECT sum(balance)::bigint,
                   count(*) FILTER (WHERE balance <> {_BALANCE} + coalesce(moved, 0))
            FROM {self.schema}.account LEFT JOIN (
                SELECT id, sum(amount) AS moved FROM (
                    SELECT target AS id, amount FROM {self.schema}.ledger
                    UNION ALL SELECT source, -amount FROM {self.schema}.ledger
                ) AS moves GROUP BY id
            ) AS moved USING (id)
            """
        )
        return Audit(
            transfers_done=said["done"],
            transfers_unknown=said["unknown"],
            transfers_lost=sum(word == "done" and n not in ledger for n, word in told.items()),
            transfers_doubled=sum(times > 1 for times in ledger.values()),
            transfers_unexpected=sum(told.get(n, "not done") == "not done" for n in ledger),
            balance_expected=ACCOUNTS * _BALANCE,
            balance_found=total,
            accounts_wrong=wrong,
            wrong_rows=sum(caller.wrong_rows for caller in self.callers),
        )


class Caller:
    """One thread's worth of jobs, and what it was told of each."""

    def __init__(self, schema: str, source: Source, index: int) -> None:
        self.jobs: list[Job] = []
        self.errors = 0
        self.told: dict[int, Told] = {}
        self.wrong_rows = 0
        self.last_success = 0.0
        """When the latest job that ended well began."""
        self._schema = schema
        self._source = source
        self._random = random.Random(index)
        self._numbers = itertools.count(index * _NUMBERS)

    def work(self, stop: threading.Event, jobs: float) -> None:
        """Do *jobs* jobs, or fewer, but at least one, if *stop* is set."""
        self._job()
        while not stop.is_set() and len(self.jobs) < jobs:
            self._job()

    def _job(self) -> None:
        wait = error = None
        began = time.perf_counter()
        try:
            with self._source() as conn:
                wait = time.perf_counter() - began
                if self._random.randint(0, READS_PER_TRANSFER) == 0:
                    self._transfer(conn)
                else:
                    self._read(conn)
        except Exception as failed:
            error = _explain(failed)
        self.jobs.append(Job(began, wait, time.perf_counter(), error))
        if error is None:
            self.last_success = began
        else:
            self.errors += 1

    def _read(self, conn: Any) -> None:
        account = self._random.randint(1, ACCOUNTS)
        rows = conn.run(
            f"SELECT id, balance FROM {self._schema}.account WHERE id = :id", id=account
        )
        if [row[0] for row in rows] != [account]:
            self.wrong_rows += 1

    def _transfer(self, conn: Any) -> None:
        number = next(self._numbers)
        source, target = self._random.sample(range(1, ACCOUNTS + 1), 2)
        amount = self._random.randint(1, 100)
        self.told[number] = "not done"
        conn.run("BEGIN")
        conn.run(
            f"INSERT INTO {self._schema}.ledger VALUES (:number, :source, :target, :amount)",
            number=number,
            source=source,
            target=target,
            amount=amount,
        )
        # Lower id first: two transfers never wait for each other.
        for account, change in sorted([(source, -amount), (target, amount)]):
            conn.run(
                f"UPDATE {self._schema}.account SET balance = balance + :change WHERE id = :id",
                change=change,
                id=account,
            )
        self.told[number] = "unknown"
        conn.run("COMMIT")
        self.told[number] = "done"


class Load:
    """Callers at work, each in a thread of its own, until the block ends at the latest."""

    def __init__(self, callers: Iterable[Caller], jobs: float = float("inf")) -> None:
        self.callers = list(callers)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=caller.work, args=(self._stop, jobs)) for caller in self.callers
        ]

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self.join()

    def start(self) -> None:
        """Set them to work. Inside the block: an interrupt may come at any thread."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Until every caller has done its jobs, or was stopped."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def jobs(self) -> int:
        """How many have been done so far."""
        return sum(len(caller.jobs) for caller in self.callers)

    def errors(self) -> int:
        """How many of them have failed."""
        return sum(caller.errors for caller in self.callers)

    def served_since(self, moment: float) -> bool:
        """Whether every caller has begun and ended a job well after *moment*."""
        return all(caller.last_success >= moment for caller in self.callers)


def _explain(error: BaseException) -> str:
    cause = error.__cause__
    return describe(error) if cause is None else f"{describe(error)}, because of {describe(cause)}"
