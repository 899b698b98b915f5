"""COPY through a lease: much data, little memory, and its failures."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from integration.conftest import MakePool
from integration.kit import Admin, report

from fastpool import Pool

MIB = 2**20
TOTAL = 100 * MIB
LINE = b"x" * 1023 + b"\n"
BOUND = 4 * MIB


class Sink:
    """Counts what is written to it, and keeps nothing."""

    size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)


class Source(io.RawIOBase):
    """*total* bytes of lines, made when they are read."""

    def __init__(self, total: int) -> None:
        self.left = total

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(self.left, len(buffer) // len(LINE) * len(LINE))
        buffer[:size] = LINE * (size // len(LINE))
        self.left -= size
        return size


def lines() -> Iterator[bytes]:
    """The same, as an iterable of pieces."""
    for _ in range(TOTAL // (64 * len(LINE))):
        yield LINE * 64


@pytest.fixture
def peak() -> Iterator[Any]:
    """``peak()``: the most memory that Python had since the test began, in bytes."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    yield lambda: tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()


@pytest.fixture
def pool(make_pool: MakePool, admin: Admin) -> Iterator[Pool[Any]]:
    """A pool with one connection, and a table to copy into."""
    admin.run("CREATE UNLOGGED TABLE filled (line text) WITH (autovacuum_enabled = off)")
    # Stored as they come: compressing the lines would be most of the work.
    admin.run("ALTER TABLE filled ALTER line SET STORAGE EXTERNAL")
    pool = make_pool(max_size=1)
    pool.run("SELECT 1")
    yield pool
    pool.close()
    admin.run("DROP TABLE filled")


@pytest.mark.slow
def test_out_of_the_server(pool: Pool[Any], peak: Any) -> None:
    """100 MiB come out in bounded memory."""
    sink = Sink()
    sql = f"COPY (SELECT repeat('x', 1023) FROM generate_series(1, {TOTAL // 1024})) TO STDOUT"
    pool.run(sql, stream=sink)
    report(f"COPY OUT of {sink.size / MIB:.0f} MiB: peak {peak() / MIB:.2f} MiB")
    assert sink.size == TOTAL
    assert peak() < BOUND
    assert pool.stats().closed == {}


@pytest.mark.slow
@pytest.mark.parametrize("source", [lambda: Source(TOTAL), lines], ids=["file", "iterable"])
def test_into_the_server(pool: Pool[Any], peak: Any, source: Any) -> None:
    """100 MiB go in, from a file or from an iterable, in bounded memory."""
    pool.run("COPY filled FROM STDIN", stream=source())
    report(f"COPY IN of {TOTAL / MIB:.0f} MiB: peak {peak() / MIB:.2f} MiB")
    assert peak() < BOUND
    rows = pool.run("SELECT count(*), sum(length(line)) FROM filled")
    assert rows == [[TOTAL // 1024, TOTAL // 1024 * 1023]]
    assert pool.stats().closed == {}


def test_failing_source(pool: Pool[Any]) -> None:
    """A source that raises: its exception arrives, nothing is stored, the connection is kept."""

    def failing() -> Iterator[bytes]:
        yield LINE * 100
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        pool.run("COPY filled FROM STDIN", stream=failing())
    assert pool.run("SELECT count(*) FROM filled") == [[0]]
    assert pool.stats().closed == {}


def test_failing_sink(pool: Pool[Any]) -> None:
    """A sink that raises: its exception arrives, and the connection is closed with the rest
    of the answer unread."""

    class Full(Sink):
        def write(self, data: bytes) -> int:
            raise ArithmeticError

    sql = "COPY (SELECT repeat('x', 1023) FROM generate_series(1, 100000)) TO STDOUT"
    with pytest.raises(ArithmeticError):
        pool.run(sql, stream=Full())
    assert pool.run("SELECT 1") == [[1]]
    assert pool.stats().closed == {"broken": 1}


def test_bad_data(pool: Pool[Any]) -> None:
    """What the server refuses raises its error, and the connection is kept."""
    with pytest.raises(Exception, match="22P04"):
        pool.run("COPY filled FROM STDIN", stream=[b"too\tmany\tcolumns\n"])
    assert pool.run("SELECT count(*) FROM filled") == [[0]]
    assert pool.stats().closed == {}


def test_dbapi(make_pool: MakePool, pool: Pool[Any]) -> None:
    """The same through a DB-API cursor."""
    with make_pool(driver="dbapi").connection() as conn:
        cursor = conn.cursor()
        cursor.execute("COPY filled FROM STDIN", stream=io.StringIO("a\nb\n"))
        sink = io.StringIO()
        cursor.execute("COPY filled TO STDOUT", stream=sink)
        assert sink.getvalue() == "a\nb\n"
    assert pool.run("SELECT count(*) FROM filled") == [[2]]
