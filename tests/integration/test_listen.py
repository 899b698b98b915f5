"""Notifications: all of them, in order, and again after the connection was lost."""

from __future__ import annotations

import threading
import time

import pytest
from integration.conftest import MakePool
from integration.kit import Admin, eventually, plain_dsn

import fastpool
from fastpool import Listener, PoolClosed
from fastpool.testing import FaultProxy

CHANNEL = 'jobs "ü"'


def listening(admin: Admin, name: str) -> set[int]:
    """The sessions of this name that have subscribed."""
    sql = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = :name "
        "AND query ILIKE 'listen%' AND state = 'idle'"
    )
    return {pid for (pid,) in admin.run(sql, name=name)}


def notify(admin: Admin, payload: str) -> None:
    """Send one."""
    admin.run("SELECT pg_notify(:channel, :payload)", channel=CHANNEL, payload=payload)


def silent(listener: Listener) -> bool:
    """Let the listener work for a moment; whether nothing came."""
    try:
        listener.get(timeout=0.01)
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize("driver", ["native", "dbapi"])
def test_ten_thousand_in_order(make_pool: MakePool, admin: Admin, driver: str) -> None:
    """10 000 notifications, sent at once and one by one, arrive in order and none twice."""
    pool = make_pool(driver=driver)
    with fastpool.listen(pool, CHANNEL) as listener:
        admin.run(
            "SELECT pg_notify(:channel, n::text) FROM generate_series(1, 9900) n", channel=CHANNEL
        )

        def send() -> None:
            for n in range(9901, 10001):
                notify(admin, str(n))

        sender = threading.Thread(target=send)
        sender.start()
        got = [listener.get(timeout=20) for _ in range(10_000)]
        sender.join()
        assert [notification.payload for notification in got] == [str(n + 1) for n in range(10_000)]
        assert {notification.channel for notification in got} == {CHANNEL}
        assert {notification.pid for notification in got} == {
            admin.value("SELECT pg_backend_pid()")
        }
        assert silent(listener)
        assert listener.gaps == 0


def test_survives_its_backend(make_pool: MakePool, admin: Admin) -> None:
    """The listener's backend is killed: one gap is told, and what is sent later arrives."""
    pool = make_pool()
    with fastpool.listen(pool, CHANNEL) as listener:
        notify(admin, "before")
        assert listener.get(timeout=10).payload == "before"
        old = admin.backends(pool.name)
        assert len(old) == 1
        admin.kill(old)
        eventually(
            lambda: silent(listener) and listening(admin, pool.name) - old, "subscribed again"
        )
        assert listener.gaps == 1
        notify(admin, "after ü")
        assert listener.get(timeout=10).payload == "after ü"
        assert listener.gaps == 1


def test_outside_the_pool(make_pool: MakePool, admin: Admin) -> None:
    """A listener takes no slot of the pool, and its notifications go to nobody else."""
    pool = make_pool(max_size=1)
    with fastpool.listen(pool, CHANNEL) as listener, pool.connection() as conn:
        notify(admin, "mine")
        assert conn.run("SELECT 1") == [[1]]
        assert not conn.notifications
        assert listener.get(timeout=10).payload == "mine"
        assert len(admin.backends(pool.name)) == 2
        assert pool.stats().size == 1
    assert admin.backends(pool.name) != set()
    eventually(lambda: len(admin.backends(pool.name)) == 1, "the listener's connection is closed")


@pytest.mark.parametrize("what", ["listener", "pool"])
def test_closed_from_another_thread(make_pool: MakePool, admin: Admin, what: str) -> None:
    """close() in another thread ends a waiting get() and an iteration, soon."""
    pool = make_pool()
    listener = fastpool.listen(pool, CHANNEL).__enter__()
    closer = threading.Timer(0.05, (listener if what == "listener" else pool).close)
    closer.start()
    began = time.monotonic()
    assert list(listener) == []
    assert time.monotonic() - began < 2
    with pytest.raises(PoolClosed):
        listener.get(timeout=10)
    closer.join()
    listener.close()
    eventually(lambda: not admin.backends(pool.name), "the connection is closed")


def test_timeout(make_pool: MakePool) -> None:
    """get() waits as long as it was told."""
    with fastpool.listen(make_pool(), CHANNEL) as listener:
        for limit in (0.0, 0.3):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                listener.get(timeout=limit)
            assert limit <= time.monotonic() - began < limit + 1


def test_waits_for_the_server(make_pool: MakePool, proxy: FaultProxy, admin: Admin) -> None:
    """A connection cut on the way is noticed, and made again."""
    pool = make_pool(plain_dsn(proxy))
    with fastpool.listen(pool, CHANNEL) as listener:
        notify(admin, "one")
        assert listener.get(timeout=10).payload == "one"
        old = admin.backends(pool.name)
        proxy.reset()
        eventually(
            lambda: silent(listener) and listening(admin, pool.name) - old, "subscribed again"
        )
        notify(admin, "two")
        assert listener.get(timeout=10).payload == "two"
        assert listener.gaps == 1
    proxy.close()


def test_a_dial_does_not_outlast_who_waits(make_pool: MakePool, proxy: FaultProxy) -> None:
    """A server that says nothing costs a caller in a hurry a second, not connect_timeout."""
    pool = make_pool(plain_dsn(proxy), connect_timeout=60.0)
    with fastpool.listen(pool, CHANNEL) as listener:
        proxy.silent_accept()
        proxy.reset()
        began = time.monotonic()
        with pytest.raises(TimeoutError) as error:
            listener.get(timeout=0.1)
        assert time.monotonic() - began < 10
        assert isinstance(error.value.__cause__, TimeoutError)
    proxy.close()
