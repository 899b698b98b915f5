"""Forks with real sessions: the parent's go on, the child has its own."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.conftest import MakePool
from integration.kit import Admin, eventually, run_threads
from support import Child, need

import fastpool
from fastpool import ConnectionReleased, Pool, PoolClosed
from fastpool.drivers import _socket
from fastpool.testing import FaultProxy, LocalPostgres

need(hasattr(os, "register_at_fork"), "fork()")
pytestmark = pytest.mark.usefixtures("patient_forks")

beside_threads = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture(params=["plain", "tls"])
def dsn(request: pytest.FixtureRequest, server: LocalPostgres) -> str:
    """The server without TLS, and with it."""
    if request.param == "plain":
        return f"{server.dsn}?sslmode=disable"
    return f"{request.getfixturevalue('tls_proxy').dsn}?sslmode=require"


def backend(pool: Pool[Any], value: int = 1) -> int:
    """The process ID of the session that answered, and answered right."""
    [[pid, echo]] = pool.run("SELECT pg_backend_pid(), :v::int", v=value)
    assert echo == value
    assert isinstance(pid, int)
    return pid


def shared() -> set[str]:
    """The sockets of this process's connections and dials, as the system names them."""
    need(os.path.isdir("/proc/self/fd"), "/proc")
    found = set()
    for sock in list(_socket._made):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{sock.fileno()}"))
    return found


def opened() -> set[str]:
    """All that this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return found


def test_idle_and_held(dsn: str, make_pool: MakePool, admin: Admin) -> None:
    """Both processes get right answers, over sessions of their own; a transaction that
    the parent has open is committed by the parent."""
    pool = make_pool(dsn, max_size=3)
    lease = pool.acquire()
    [[held]] = lease.run("SELECT pg_backend_pid()")
    idle = backend(pool)
    lease.run("CREATE TEMP TABLE here (n int)")
    lease.run("BEGIN")
    lease.run("INSERT INTO here VALUES (1)")
    sockets = shared()
    assert len(sockets) == 2

    def look() -> Any:
        left = opened() & sockets
        with pytest.raises(ConnectionReleased):
            lease.run("SELECT 1")
        lease.release()
        mine = {backend(pool, n) for n in range(50)}
        return left, mine, admin_sees(mine)

    def admin_sees(pids: set[int]) -> int:
        [[count]] = pool.run(
            "SELECT count(*)::int FROM pg_stat_activity WHERE pid = ANY(:p)", p=list(pids)
        )
        assert isinstance(count, int)
        return count

    children = [Child(look) for _ in range(3)]
    for n in range(50):
        assert backend(pool, n) == idle
        assert lease.run("SELECT :n::int", n=n) == [[n]]
    for child in children:
        left, mine, alive = child.result()
        assert left == set()
        assert len(mine) == alive == 1
        assert not mine & {held, idle}
        eventually(lambda mine=mine: not any(map(admin.alive, mine)), "gone with the child")
    eventually(lambda: admin.backends(pool.name) == {held, idle}, "the child's are gone")
    lease.run("COMMIT")
    assert lease.run("SELECT n FROM here") == [[1]]
    lease.release()
    assert backend(pool) in {held, idle}
    assert pool.stats().created == 2


@beside_threads
def test_beside_a_waiter(dsn: str, make_pool: MakePool, admin: Admin) -> None:
    """Another thread that waits in acquire is served in the parent, and only there."""
    pool = make_pool(dsn, max_size=1)
    lease = pool.acquire()
    [[held]] = lease.run("SELECT pg_backend_pid()")
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(backend(pool, 3)), daemon=True)
    thread.start()
    eventually(lambda: pool.stats().waiting == 1, "it waits")
    mine = Child(lambda: (backend(pool), pool.stats().waiting)).result()
    assert mine[0] != held
    assert mine[1] == 0
    lease.release()
    thread.join(20)
    assert answers == [held]
    eventually(lambda: admin.backends(pool.name) == {held}, "the child's is gone")


@beside_threads
def test_beside_a_query(dsn: str, make_pool: MakePool, admin: Admin) -> None:
    """Another thread in the middle of a query gets its answer."""
    pool = make_pool(dsn, max_size=2)
    gate = admin.run("SELECT pg_advisory_lock(77)")
    assert gate
    answers: list[Any] = []

    def query() -> None:
        sql = "SELECT pg_advisory_xact_lock(77)::text, :x::int"
        answers.append(pool.run(sql, x=5))

    thread = threading.Thread(target=query, daemon=True)
    thread.start()
    eventually(
        lambda: any("advisory_xact" in admin.running(p) for p in admin.backends(pool.name)),
        "the query runs",
    )
    children = [Child(lambda: backend(pool, 9)) for _ in range(2)]
    pids = {child.result() for child in children}
    assert len(pids) == 2
    admin.run("SELECT pg_advisory_unlock(77)")
    thread.join(20)
    assert answers == [[["", 5]]]
    assert backend(pool) not in pids


@beside_threads
@pytest.mark.parametrize("way", ["disable", "require"])
def test_beside_a_dial(
    make_pool: MakePool, server: LocalPostgres, tls_proxy: FaultProxy, way: str
) -> None:
    """A dial in flight ends well in the parent; the child keeps no copy of its socket."""
    pool = make_pool(f"{tls_proxy.dsn}?sslmode={way}", max_size=1)
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(backend(pool)), daemon=True)
    tls_proxy.latency(0.1)
    try:
        thread.start()
        eventually(shared, "it dials")
        sockets = shared()
        child = Child(lambda: (opened() & sockets, backend(pool)))
        dialling = pool.stats().connecting
    finally:
        tls_proxy.heal()
    left, mine = child.result()
    thread.join(20)
    assert dialling == 1
    assert left == set()
    assert answers
    assert mine not in answers
    assert backend(pool) == answers[0]
    assert pool.stats().dials == 1


def test_a_child_that_leaves_the_block(dsn: str, make_pool: MakePool, admin: Admin) -> None:
    """A child that runs out of the parent's blocks commits nothing and ends nothing."""
    pool = make_pool(dsn, max_size=2)
    table = f"left_{os.getpid()}"
    admin.run(f"DROP TABLE IF EXISTS {table}")
    admin.run(f"CREATE TABLE {table} (n int)")
    status, child = 1, -1
    try:
        with pool.connection() as conn:
            conn.run("BEGIN")
            conn.run(f"INSERT INTO {table} VALUES (1)")
            child = os.fork()
            if child != 0:
                assert os.waitpid(child, 0)[1] == 0
                assert admin.value(f"SELECT count(*) FROM {table}") == 0
                conn.run(f"INSERT INTO {table} VALUES (2)")
        if child == 0:
            pool.close()
            status = 0
    finally:
        if child == 0:
            os._exit(status)
    assert admin.run(f"SELECT n FROM {table} ORDER BY n") == [[1], [2]]
    admin.run(f"DROP TABLE {table}")


def test_what_was_detached_is_the_parents(dsn: str, make_pool: MakePool) -> None:
    """Also what the pool does not keep any more is closed in the child, unheard."""
    pool = make_pool(dsn)
    conn = pool.detach(pool.acquire())

    def look() -> str:
        with pytest.raises(fastpool.drivers.pg8000.InterfaceError) as caught:
            conn.run("SELECT 1")
        conn.close()
        return str(caught.value)

    try:
        assert Child(look).result() == "network error"
        assert conn.run("SELECT 1") == [[1]]
    finally:
        conn.close()


def test_a_listener_is_the_parents(dsn: str, make_pool: MakePool, admin: Admin) -> None:
    """In the child it is closed; in the parent it misses nothing."""
    pool = make_pool(dsn)
    with fastpool.listen(pool, "jobs") as listener:

        def look() -> bool:
            with pytest.raises(PoolClosed):
                listener.get(timeout=0)
            with fastpool.listen(pool, "jobs") as mine:
                pool.run("NOTIFY jobs, 'child'")
                return mine.get(timeout=10).payload == "child"

        assert Child(look).result()
        admin.run("NOTIFY jobs, 'admin'")
        assert [listener.get(timeout=10).payload for _ in range(2)] == ["child", "admin"]
        assert listener.gaps == 0


def test_closing_in_a_child_that_has_its_own(dsn: str, make_pool: MakePool, admin: Admin) -> None:
    """A child closes its sessions in order, and none of its parent's."""
    pool = make_pool(dsn, min_size=2)
    pool.open(wait=True)
    mine = admin.backends(pool.name)

    def look() -> int:
        pool.open(wait=True)
        pool.close()
        return pool.stats().size

    assert Child(look).result() == 0
    eventually(lambda: admin.backends(pool.name) == mine, "the parent's are left")
    assert backend(pool) in mine


@beside_threads
def test_forks_under_load(dsn: str, make_pool: MakePool) -> None:
    """Threads at work, one fork after the other: no wrong answer in any process."""
    pool = make_pool(dsn, max_size=3)
    over = threading.Event()
    parents: set[int] = set()
    children: set[int] = set()

    def work(n: int) -> None:
        while not over.is_set():
            n += 1
            parents.add(backend(pool, n))

    def fork() -> None:
        try:
            for n in range(8):
                children.update(
                    Child(lambda n=n: {backend(pool, n + k) for k in range(5)}).result()
                )
        finally:
            over.set()

    run_threads([fork, *(lambda base=base: work(base) for base in (10**3, 10**6, 10**7))])
    assert len(children) == 8
    assert len(parents) <= 3
    assert not parents & children
    assert pool.stats().created <= 3
    assert pool.stats().dial_failures == 0


APPLICATION = """
import os
import fastpool

pool = fastpool.Pool(os.environ["TEST_DSN"], min_size=2, max_size=4, name="gunicorn")
pool.open(wait=True)
MASTER = os.getpid()

def app(environ, start_response):
    number = int(environ["QUERY_STRING"])
    [[pid, answer]] = pool.run("SELECT pg_backend_pid(), :n::int * 2", n=number)
    assert os.getpid() != MASTER
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {pid} {answer}".encode()]
"""


class UnixHTTP(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@contextlib.contextmanager
def gunicorn(directory: str, dsn: str) -> Iterator[str]:
    """gunicorn with the application above; gives the path of its socket."""
    Path(directory, "application.py").write_text(APPLICATION)
    path = f"{directory}/socket"
    log = Path(directory, "log")
    options = ["--preload", "--workers=4", "--threads=2", f"--bind=unix:{path}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options, "application:app"],
            cwd=directory,
            env={**os.environ, "TEST_DSN": dsn, "HOME": directory},
            stdout=output,
            stderr=output,
        )
    try:
        eventually(lambda: os.path.exists(path) or process.poll() is not None, "it listens")
        assert process.poll() is None, log.read_text()
        yield path
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        process.kill()
        process.wait()


def test_gunicorn_with_preload(server: LocalPostgres, admin: Admin) -> None:
    """One pool of a module, opened before the workers are forked: 2 000 right answers
    from four workers, each by sessions of its own, and none by the master's."""
    need(importlib.util.find_spec("gunicorn"), "gunicorn")
    seen: list[tuple[int, int]] = []

    def client(path: str, numbers: range) -> None:
        for number in numbers:
            connection = UnixHTTP(path)
            connection.request("GET", f"/?{number}")
            response = connection.getresponse()
            body = response.read().decode()
            connection.close()
            assert response.status == 200, body
            worker, pid, answer = map(int, body.split())
            assert answer == 2 * number
            seen.append((worker, pid))

    with (
        tempfile.TemporaryDirectory(prefix="fastpool-") as directory,
        gunicorn(directory, f"{server.dsn}?sslmode=disable") as path,
    ):
        masters = admin.backends("gunicorn")
        assert len(masters) == 2
        run_threads([lambda k=k: client(path, range(k, 2000, 8)) for k in range(8)])
        assert masters <= admin.backends("gunicorn")
    assert len(seen) == 2000
    assert len(Counter(worker for worker, _ in seen)) == 4
    pairs = set(seen)
    assert len({pid for _, pid in pairs}) == len(pairs), "a session of two workers"
    assert not masters & {pid for _, pid in pairs}
    eventually(lambda: not admin.backends("gunicorn"), "all gone")
