"""Transaction blocks on a held connection.

The outermost one is BEGIN .. COMMIT or ROLLBACK, those inside are savepoints. What
has to hold at a COMMIT (a deadline, an answer that never comes) is the
:mod:`turnaround <fastpool._turnaround>`'s to say: a plain block ends with one too.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from ._impl import Entry, Lease
from ._turnaround import Turnaround, aborted, lost
from .drivers.base import BUSY, CLOSED, DIRTY, FAILED, TRANSACTION

__all__ = ["Isolation", "Transaction", "transaction_modes"]

Isolation = Literal["read uncommitted", "read committed", "repeatable read", "serializable"]


def transaction_modes(
    isolation: Isolation | None, read_only: bool | None, deferrable: bool | None
) -> list[str]:
    """What follows BEGIN. Raises ``ValueError`` for an unknown *isolation*."""
    modes = []
    if isolation is not None:
        if str(isolation).lower() not in get_args(Isolation):
            raise ValueError(f"isolation: expected one of {get_args(Isolation)}, not {isolation!r}")
        modes.append(f"ISOLATION LEVEL {isolation.upper()}")
    if read_only is not None:
        modes.append("READ ONLY" if read_only else "READ WRITE")
    if deferrable is not None:
        modes.append("DEFERRABLE" if deferrable else "NOT DEFERRABLE")
    return modes


class Transaction:
    """A transaction block on a held connection; inner ones are SAVEPOINTs.

    Enter begins it. A block that ends well commits (or releases the savepoint),
    one that raises rolls back to where it began. Raises ``TransactionAborted``
    when the block ends well in a transaction that the server aborted.
    """

    def __init__(
        self,
        turnaround: Turnaround,
        lease: Lease,
        *,
        isolation: Isolation | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
    ) -> None:
        self._turnaround = turnaround
        self._lease = lease
        self._savepoint = ""
        self._modes = transaction_modes(isolation, read_only, deferrable)

    def __enter__(self) -> Any:
        with self._turnaround.call_through(self._lease) as entry:
            self._begin(entry)
        return self._lease

    def _begin(self, entry: Entry) -> None:
        driver = self._turnaround.driver
        if not entry.state.flags & TRANSACTION:
            driver.control(entry.conn, " ".join(["BEGIN", *self._modes]))
        elif self._modes:
            raise ValueError(
                "isolation, read_only and deferrable belong to the outermost transaction: "
                "one is open already"
            )
        else:
            self._savepoint = f"fastpool_{id(self):x}"
            driver.control(entry.conn, f"SAVEPOINT {self._savepoint}")

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        if exc_type is None:
            with self._turnaround.call_through(self._lease) as entry:
                self._end(entry)
        else:
            self._try_undo()

    def _end(self, entry: Entry) -> None:
        flags = entry.state.flags
        if flags & (BUSY | DIRTY | CLOSED):
            raise lost()
        if flags & FAILED:
            self._try_undo()
            raise aborted()
        if not flags & TRANSACTION:
            return  # the user has ended it
        if self._savepoint:
            self._turnaround.driver.control(entry.conn, f"RELEASE SAVEPOINT {self._savepoint}")
        else:
            self._turnaround.commit(entry)

    def _try_undo(self) -> None:
        """:meth:`_undo` before an error that says more than its own would."""
        try:
            with self._turnaround.call_through(self._lease) as entry:
                self._undo(entry)
        except Exception as error:  # the release sees to the rest
            self._turnaround.log.info("rollback_failed", "a rollback failed: %s", error)

    def _undo(self, entry: Entry) -> None:
        flags = entry.state.flags
        if flags & (BUSY | DIRTY | CLOSED) or not flags & TRANSACTION:
            return  # the release closes it, or the user has ended it
        rollback = self._turnaround.rollback
        if self._savepoint:
            rollback(entry, f"ROLLBACK TO SAVEPOINT {self._savepoint}")
            rollback(entry, f"RELEASE SAVEPOINT {self._savepoint}")
        else:
            rollback(entry)
