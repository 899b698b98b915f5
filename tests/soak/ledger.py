"""What was done, what was not, what nobody can know; and what the table holds of it."""

from __future__ import annotations

import io
import itertools
from typing import Any, NamedTuple

from fastpool.retry import may_have_run

__all__ = ["ACCOUNTS", "TABLES", "TOTAL", "Audit", "Book", "Write"]

ACCOUNTS = 12
_BALANCE = 1000
TOTAL = ACCOUNTS * _BALANCE

TABLES = f"""
CREATE TABLE soak_rows (id bigint PRIMARY KEY, grp bigint NOT NULL, size int NOT NULL);
CREATE TABLE soak_accounts (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO soak_accounts SELECT n, {_BALANCE} FROM generate_series(1, {ACCOUNTS}) n;
"""

UNKNOWN, DONE, FAILED = 1, 2, 3
_BLOCK = 1 << 20


class Book:
    """Unique numbers, and what became of each: one byte, so that a long run does
    not grow. A number is unknown from its birth until its writer knows better, so
    an interrupt between two lines leaves nothing untrue behind."""

    def __init__(self) -> None:
        self.states = bytearray(_BLOCK)
        self._numbers = itertools.count(1)
        self.last = 0

    def take(self) -> int:
        """A new number, unknown so far."""
        number = next(self._numbers)
        if number >= len(self.states):
            self.states.extend(bytes(_BLOCK))
        self.states[number] = UNKNOWN
        self.last = max(self.last, number)
        return number

    def audit(self, run: Any, since: int = 0) -> Audit:
        """Compare with the table, from number *since* on."""
        # First the book, then the table: what was final before must be so there.
        states, last = bytes(self.states), self.last
        stream = io.BytesIO()
        run(f"COPY (SELECT id FROM soak_rows WHERE id >= {int(since)}) TO STDOUT", stream=stream)
        present = set(map(int, stream.getvalue().split()))
        torn = run(
            "SELECT grp FROM soak_rows WHERE id >= :since "
            "GROUP BY grp, size HAVING min(id) = grp AND count(*) <> size",
            since=since,
        )
        numbers = range(max(1, since), last + 1)
        unknown = {n for n in numbers if states[n] == UNKNOWN}
        return Audit(
            done=sum(states[n] == DONE for n in numbers),
            failed=sum(states[n] == FAILED for n in numbers),
            unknown=len(unknown),
            unknown_present=len(unknown & present),
            lost=[n for n in numbers if states[n] == DONE and n not in present],
            undead=[n for n in numbers if states[n] == FAILED and n in present],
            torn=[group for (group,) in torn],
        )


class Audit(NamedTuple):
    """The book against the table."""

    done: int
    failed: int
    unknown: int
    unknown_present: int
    lost: list[int]
    """Reported as done, and not there."""
    undead: list[int]
    """Reported as surely not done, and there."""
    torn: list[int]
    """First numbers of transactions of which a part is there."""

    def problems(self) -> list[str]:
        """What is wrong, a sentence each."""
        found = [
            (self.lost, "writes reported as done are not there"),
            (self.undead, "writes reported as not done are there"),
            (self.torn, "transactions are there in part"),
        ]
        return [f"{len(ids)} {what}: {ids[:10]}" for ids, what in found if ids]


class Write:
    """Numbers on their way into the table; how the block ends decides about them.

    *sealed*: the write may become permanent from now on. A transaction's block sets
    it as its last act: before that nobody has asked for a COMMIT.
    """

    def __init__(self, book: Book, count: int = 1, sealed: bool = False) -> None:
        self.sealed = sealed
        self.ids = [book.take() for _ in range(count)]
        self._book = book

    def refuse(self, number: int) -> None:
        """This one was undone, whatever becomes of the others."""
        self.ids.remove(number)
        self._book.states[number] = FAILED

    def __enter__(self) -> Write:
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        if exc is None:
            state = DONE
        elif self.sealed and may_have_run(exc):
            return
        else:
            state = FAILED
        for number in self.ids:
            self._book.states[number] = state
