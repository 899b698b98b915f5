"""A limit is a limit, wherever it is that something hangs.

Each call here waits for what will not come, for ``LIMIT`` seconds. How much later it
returns is compared with a bare lock's timed acquire beside it: 50 ms more at most. A
stall of the machine can be anybody's, so a round that fails is repeated twice; what
really hangs fails them all.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from integration.kit import eventually, report, run_threads
from pg8000.exceptions import InterfaceError
from support import unplugged

from fastpool import Pool, PoolTimeout
from fastpool.testing import FaultProxy, LocalPostgres

LIMIT = 0.3
ALLOWED = 0.05
CONTROLS = 3
ROUNDS = 3

# What the proxy gives out of the server's start-up, to the byte: the request for SCRAM.
SASL_REQUEST = len(b"R\0\0\0\0\0\0\0\0SCRAM-SHA-256\0\0")


def late(call: Callable[[], object]) -> float:
    """How many seconds after ``LIMIT`` *call* returned; before it is a failure."""
    began = time.monotonic()
    call()
    took = time.monotonic() - began
    assert took > LIMIT - 0.01
    return took - LIMIT


def in_time(*calls: Callable[[], object]) -> None:
    """Make all *calls* at once; each ends ``LIMIT`` seconds later, as exactly as a lock's."""
    lock = threading.Lock()
    lock.acquire()

    def one_round() -> bool:
        ours: list[float] = []
        control: list[float] = []

        def measured(call: Callable[[], object], into: list[float]) -> Callable[[], object]:
            return lambda: into.append(late(call))

        run_threads(
            [
                *(measured(lambda: lock.acquire(timeout=LIMIT), control) for _ in range(CONTROLS)),
                *(measured(call, ours) for call in calls),
            ]
        )
        worst, allowed = max(ours), max(control) + ALLOWED
        report(f"overshoot {worst * 1e3:.1f} ms, a bare lock's {max(control) * 1e3:.1f} ms")
        return worst <= allowed

    assert any(one_round() for _ in range(ROUNDS))


def in_vain(call: Callable[[], object], *words: str) -> Callable[[], None]:
    """*call* ends with a PoolTimeout in which these *words* stand."""

    def checked() -> None:
        with pytest.raises(PoolTimeout) as caught:
            call()
        for word in words:
            assert word in str(caught.value)
        error = caught.value
        assert error.timeout == pytest.approx(LIMIT)
        assert (error.__cause__ is None) == ("last connect error" not in words)

    return checked


# -- dials -----------------------------------------------------------------------------


@contextlib.contextmanager
def hung_name_resolution(pg: LocalPostgres) -> Iterator[str]:
    answer = threading.Event()
    real = socket.getaddrinfo

    def hang(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "database.test" and not kwargs.get("flags"):
            answer.wait(30)
        return real(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", hang)
        try:
            yield f"postgresql://app@database.test:{pg.port}/postgres"
        finally:
            answer.set()
            resolving = "fastpool-resolve-database.test"
            eventually(
                lambda: all(thread.name != resolving for thread in threading.enumerate()),
                "the late threads are over",
            )


@contextlib.contextmanager
def refused(pg: LocalPostgres) -> Iterator[str]:
    with FaultProxy(pg) as proxy:
        proxy.refuse()
        yield proxy.dsn


@contextlib.contextmanager
def reset_at_accept(pg: LocalPostgres) -> Iterator[str]:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        with FaultProxy(nobody.getsockname()) as proxy:
            yield f"postgresql://app@127.0.0.1:{proxy.port}/postgres"


@contextlib.contextmanager
def syn_black_hole(pg: LocalPostgres) -> Iterator[str]:
    with FaultProxy(pg) as proxy:
        proxy.black_hole()
        yield proxy.dsn


@contextlib.contextmanager
def accept_and_silence(pg: LocalPostgres) -> Iterator[str]:
    with FaultProxy(pg) as proxy:
        proxy.silent_accept()
        yield proxy.dsn


@contextlib.contextmanager
def dripping_handshake(pg: LocalPostgres) -> Iterator[str]:
    with FaultProxy(pg) as proxy:
        proxy.drip(1, 0.01)  # often enough for any limit on one read
        yield proxy.dsn


@contextlib.contextmanager
def hung_authentication(pg: LocalPostgres) -> Iterator[str]:
    with FaultProxy(pg) as proxy:
        proxy.drip(SASL_REQUEST, 60.0)
        yield proxy.dsn


DIALS = {
    hung_name_resolution: "was not resolved in time",
    refused: "Connection refused",
    reset_at_accept: "InterfaceError: ",  # seen by connect(), or by what comes next
    syn_black_hole: "took too long",
    accept_and_silence: "took too long",
    dripping_handshake: "took too long",
    hung_authentication: "took too long",
}


@pytest.fixture
def pools() -> Iterator[Callable[..., Pool[Any]]]:
    """``pools(dsn, **settings)``; closed at once in the end, whatever hangs."""
    made: list[Pool[Any]] = []

    def make(dsn: str, **settings: Any) -> Pool[Any]:
        dsn += "&sslmode=disable" if "?" in dsn else "?sslmode=disable"
        made.append(Pool(dsn, **{"min_size": 0, "close_timeout": 0.1, **settings}))
        return made[-1]

    yield make
    for pool in made:
        pool.close(timeout=0.0)


@pytest.mark.parametrize("fault", DIALS, ids=lambda fault: fault.__name__)
def test_dial(locked_server: LocalPostgres, pools: Callable[..., Pool[Any]], fault: Any) -> None:
    """However a dial hangs or fails, callers wait for as long as they said, and hear why."""
    with fault(locked_server) as dsn:
        # One whose dials last longer than its callers, one whose dials have failed by then.
        slow, quick = pools(dsn), pools(dsn, connect_timeout=0.05)
        said = "last connect error", DIALS[fault]
        fails_at_once = fault in (refused, reset_at_accept)
        in_time(
            in_vain(lambda: slow.acquire(LIMIT), *said if fails_at_once else ["being dialled: "]),
            in_vain(lambda: quick.acquire(LIMIT), *said),
            in_vain(lambda: quick.transaction(LIMIT).__enter__(), *said),
            in_vain(lambda: quick.within(timeout=LIMIT).run("SELECT 1"), *said),
            in_vain(lambda: quick.ping(LIMIT), *said),
        )


def test_wait_for_the_minimum(server: LocalPostgres, pools: Callable[..., Pool[Any]]) -> None:
    """open(wait=True) and wait() end in time too, with what the last dial said."""
    with syn_black_hole(server) as dsn:
        pool = pools(dsn, min_size=1, connect_timeout=0.05)
        in_time(
            in_vain(lambda: pool.open(wait=True, timeout=LIMIT), "last connect error"),
            in_vain(lambda: pool.wait(LIMIT), "last connect error"),
        )


# -- established connections --------------------------------------------------------------


@pytest.fixture
def proxy(server: LocalPostgres) -> Iterator[FaultProxy]:
    with FaultProxy(server) as proxy:
        yield proxy


def idle(pool: Pool[Any], count: int) -> None:
    """Let *count* connections be idle."""
    for lease in [pool.acquire() for _ in range(count)]:
        lease.release()


@pytest.mark.parametrize("connections", [1, 3])
def test_hung_ping(proxy: FaultProxy, pools: Callable[..., Pool[Any]], connections: int) -> None:
    """Pings that nobody answers take no longer than their caller has, all together."""
    made = [pools(proxy.dsn, check="ping", ping_timeout=10.0) for _ in range(ROUNDS)]
    for pool in made:
        idle(pool, connections)
    proxy.black_hole()
    fresh = iter(made)  # whose connections no round has given up yet
    in_time(in_vain(lambda: next(fresh).acquire(LIMIT)))
    assert made[0].stats().timeouts == 1


def test_hung_ping_after_a_wait(proxy: FaultProxy, pools: Callable[..., Pool[Any]]) -> None:
    """Who is given a connection late in its time pings for what is left, and no longer."""
    settings = {"max_size": 1, "ping_timeout": 10.0}
    checked = [pools(proxy.dsn, check="ping", **settings) for _ in range(ROUNDS)]
    by_hand = [pools(proxy.dsn, **settings) for _ in range(ROUNDS)]
    held = {pool: pool.acquire() for pool in checked + by_hand}
    proxy.black_hole()

    def late(pool: Pool[Any]) -> Pool[Any]:
        threading.Timer(LIMIT / 2, held[pool].release).start()
        return pool

    def ping() -> None:
        with pytest.raises(TimeoutError):
            late(by_hand.pop()).ping(LIMIT)

    in_time(in_vain(lambda: late(checked.pop()).acquire(LIMIT)), ping)
    for lease in held.values():
        lease.release()


def test_hung_reset(proxy: FaultProxy, pools: Callable[..., Pool[Any]]) -> None:
    """Who waits for a connection whose rollback hangs is told in time."""
    pool = pools(proxy.dsn, max_size=1)
    lease = pool.acquire()
    lease.run("BEGIN")
    proxy.black_hole()
    returning = threading.Thread(target=lease.release)
    returning.start()
    eventually(lambda: pool.stats().checking == 1, "the rollback has begun")
    in_time(
        in_vain(lambda: pool.acquire(LIMIT), "size 1/1, idle 0"),
        in_vain(lambda: pool.connection(LIMIT).__enter__()),
    )
    assert pool.stats().checking == 1  # it hung all the time
    proxy.heal()
    returning.join(10)
    assert pool.stats().idle == 1


def test_hung_close(proxy: FaultProxy, pools: Callable[..., Pool[Any]]) -> None:
    """Who waits for the slot of a connection whose server does not let go is told in time."""
    pool = pools(proxy.dsn, max_size=1, close_timeout=30.0)
    lease = pool.acquire()
    proxy.black_hole(connection=1)
    pool.invalidate(lease)
    in_time(in_vain(lambda: pool.acquire(LIMIT), "size 1/1, idle 0"))
    assert pool.stats().closing == 1
    proxy.heal()
    assert pool.run("SELECT 1") == [[1]]


def test_close_of_the_pool(proxy: FaultProxy, pools: Callable[..., Pool[Any]]) -> None:
    """close() waits for its leases in time, and for their server no longer than close_timeout."""
    made = [pools(proxy.dsn, close_timeout=LIMIT / 2) for _ in range(ROUNDS)]
    held = [pool.acquire() for pool in made]
    proxy.black_hole()
    fresh = iter(made)
    in_time(lambda: next(fresh).close(LIMIT / 2))
    for lease in held:
        lease.release()


# -- nobody there ---------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="the proxy needs Linux for this")
def test_user_timeout(proxy: FaultProxy, pools: Callable[..., Pool[Any]]) -> None:
    """A query whose bytes nobody acknowledges fails within tcp_user_timeout."""
    seconds = 1.0
    pool = pools(f"{proxy.dsn}?tcp_user_timeout={seconds * 1000:.0f}")
    with pool.connection() as conn:
        unplugged(proxy.black_hole)
        began = time.monotonic()
        with pytest.raises(InterfaceError) as caught:
            conn.run("SELECT pg_sleep(60)")
        took = time.monotonic() - began
    report(f"noticed after {took:.2f} s")
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert took < seconds + 0.5  # the kernel looks when it would send again
    proxy.heal()
    assert pool.run("SELECT 1") == [[1]]
    eventually(lambda: pool.stats().closed == {"broken": 1}, "it is given up")


@pytest.mark.skipif(sys.platform != "linux", reason="the proxy needs Linux for this")
def test_keepalives(proxy: FaultProxy, pools: Callable[..., Pool[Any]]) -> None:
    """An idle connection to nobody is found dead by keepalives, and never handed out."""
    options = "keepalives_idle=1&keepalives_interval=1&keepalives_count=1&tcp_user_timeout=0"
    pool = pools(f"{proxy.dsn}?{options}", health_check_period=0.05, check_after_idle=None)
    idle(pool, 1)
    keeper = pool._house.keeper
    eventually(lambda: keeper._asked and pool.stats().idle == 1, "the keeper's own round trip")
    unplugged(proxy.black_hole)
    began = time.monotonic()
    eventually(lambda: pool.stats().closed == {"dead": 1}, "the keeper has found it dead")
    report(f"noticed after {time.monotonic() - began:.2f} s")
    proxy.heal()
    assert pool.run("SELECT 1") == [[1]]
