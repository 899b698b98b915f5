"""The soak itself works: a short one passes, and its ledger tells when it must not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from soak.ledger import Book, Write
from support import need

from fastpool import DeadlineExceeded
from fastpool.testing import local_postgres

TESTS = Path(__file__).parent.parent


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "soak", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.slow
def test_short_soak() -> None:
    """A soak of a few seconds injects many kinds of faults and finds nothing."""
    try:
        local_postgres._find_binaries()
    except FileNotFoundError as error:
        need(False, str(error))
    done = soak("--seconds", "5")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    injected = re.search(r"injected: (\d+) faults of (\d+) kinds", done.stdout)
    assert injected is not None
    assert int(injected[1]) > 20
    assert int(injected[2]) >= 8  # on a busy machine too
    assert re.search(r"rows: \d\d+ done: all there; \d\d+ not done: none there", done.stdout)


class Table:
    """Answers the ledger's two questions."""

    def __init__(self, present: set[int], torn: tuple[int, ...] = ()) -> None:
        self.present = present
        self.torn = torn

    def run(self, sql: str, stream: Any = None, **params: Any) -> Any:
        if stream is None:
            return [[number] for number in self.torn]
        stream.write(b"".join(b"%d\n" % number for number in sorted(self.present)))
        return []


def outcomes() -> tuple[Book, int, int, int]:
    """A book with a number that is done, one that is not, and one that is unknown."""
    book = Book()
    with Write(book, sealed=True) as done:
        pass
    with pytest.raises(ValueError, match="no"), Write(book, sealed=True) as failed:
        raise ValueError("no")
    lost = DeadlineExceeded("no answer", outcome="unknown")
    with pytest.raises(DeadlineExceeded), Write(book, sealed=True) as unknown:
        raise lost
    return book, *done.ids, *failed.ids, *unknown.ids


def test_ledger_accepts_what_was_told() -> None:
    """What is done is there, what is not is not, and what nobody knows may be either."""
    book, done, _, unknown = outcomes()
    for present in ({done}, {done, unknown}):
        audit = book.audit(Table(present).run)
        assert audit[:3] == (1, 1, 1)
        assert audit.problems() == []


def test_ledger_tells_what_is_wrong() -> None:
    """Lost writes, writes that were said to have failed, and half transactions are told."""
    book, done, failed, _ = outcomes()
    audit = book.audit(Table({failed}, torn=(7,)).run)
    assert (audit.lost, audit.undead, audit.torn) == ([done], [failed], [7])
    assert len(audit.problems()) == 3


def test_transaction_without_commit_has_failed() -> None:
    """Whatever ended the block, nothing is permanent before a COMMIT was asked for."""
    book = Book()
    lost = DeadlineExceeded("no answer", outcome="unknown")
    with pytest.raises(DeadlineExceeded), Write(book, 2):
        raise lost
    audit = book.audit(Table(set()).run)
    assert (audit.failed, audit.unknown) == (2, 0)
