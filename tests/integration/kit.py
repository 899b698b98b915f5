"""What the tests on a real PostgreSQL share: a second pair of eyes, and interrupts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pg8000.native
from support import eventually

from fastpool import Pool
from fastpool.testing import FaultProxy, LocalPostgres

__all__ = [
    "FULL",
    "Admin",
    "Interrupt",
    "eventually",
    "explained",
    "interrupt",
    "plain_dsn",
    "report",
    "run_threads",
    "whole",
]

FULL = os.environ.get("FASTPOOL_FULL") == "1"
"""Run the long tests at full length."""


class Interrupt(BaseException):
    """What :func:`interrupt` raises: no ``Exception``, as KeyboardInterrupt is none."""


def interrupt(thread: int) -> None:
    """Raise :class:`Interrupt` in the thread with this identifier, wherever it is."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Interrupt))


def report(text: str) -> None:
    """Tell a figure; ``pytest -rA`` or ``-s`` shows it."""
    print(text)


@contextlib.contextmanager
def explained(pool: Pool[Any], server: LocalPostgres) -> Iterator[None]:
    """When the block fails, print what both sides know."""
    try:
        yield
    except BaseException:
        report(f"{pool.stats()}\nthe last failed dial:")
        error = pool._house.opener.last_error
        if error is not None:
            report("".join(traceback.format_exception(type(error), error, error.__traceback__)))
        report(f"the server's log:\n{server.log()[-4000:]}")
        raise


def plain_dsn(proxy: FaultProxy) -> str:
    """The server by way of *proxy*, without asking for TLS."""
    return f"{proxy.dsn}?sslmode=disable"


def run_threads(works: Iterable[Callable[[], object]], timeout: float = 90.0) -> None:
    """Run each in a thread of its own, to the end; the first exception is raised."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), f"a thread hangs after {timeout:g} s"


def whole(pool: Pool[Any]) -> bool:
    """Nobody holds anything, nobody waits, and every slot is idle or free."""
    stats = pool.stats()
    return stats.size == stats.idle and stats.waiting == 0


class Admin:
    """A connection beside the pool, by plain pg8000, that sees all others."""

    def __init__(self, server: LocalPostgres) -> None:
        self._conn = pg8000.native.Connection(
            server.user,
            host=server.host,
            port=server.port,
            database=server.dbname,
            password=server.password,
            ssl_context=False,
            application_name="admin",
        )
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(pg8000.native.InterfaceError):
            self._conn.close()

    def run(self, sql: str, **params: Any) -> Any:
        """The rows of *sql*."""
        with self._lock:
            return self._conn.run(sql, **params)

    def value(self, sql: str, **params: Any) -> Any:
        """The first value of the first row."""
        return self.run(sql, **params)[0][0]

    def backends(self, name: str) -> set[int]:
        """The process IDs of the sessions whose application_name is *name*."""
        sql = "SELECT pid FROM pg_stat_activity WHERE application_name = :name"
        return {pid for (pid,) in self.run(sql, name=name)}

    def kill(self, pids: Iterable[int]) -> None:
        """Terminate these sessions and wait until they are gone."""
        victims = list(pids)
        for pid in victims:
            self.run("SELECT pg_terminate_backend(:pid)", pid=pid)
        eventually(lambda: not any(map(self.alive, victims)), f"the backends {victims} are gone")

    def alive(self, pid: int) -> bool:
        """Whether a session with this process ID exists."""
        return bool(self.value("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid", pid=pid))

    def running(self, pid: int) -> str:
        """The statement that this session is executing, empty when it is not."""
        sql = "SELECT query FROM pg_stat_activity WHERE pid = :pid AND state = 'active'"
        rows = self.run(sql, pid=pid)
        return rows[0][0] if rows else ""

    def busy(self, name: str) -> bool:
        """Whether a session with this application_name is executing a statement."""
        sql = "SELECT 1 FROM pg_stat_activity WHERE application_name = :name AND state = 'active'"
        return bool(self.run(sql, name=name))
