"""What a health check and a probe say, by their exact keys, on a pool without a database."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from pool.kit import Caller, Refused, WrongPassword, eventually, filled, give_back, leases

from fastpool import ConfigError, Pool
from fastpool.ops import HealthChecker, KubernetesProbes, health
from fastpool.ops._pools import duration
from fastpool.testing import StubDriver

Make = Callable[..., Pool[Any]]
Spawn = Callable[[Callable[[], Any]], Caller]


def test_healthy(make: Make) -> None:
    """A pool with room and an answering database is healthy, in the seeds' keys."""
    pool = make(max_size=3, min_size=2)
    filled(pool)
    status = HealthChecker(pool).check()
    body = status.as_dict()
    assert list(body) == ["status", "database", "latency", "timestamp"]
    assert body["status"] == "healthy"
    assert body["database"] == {
        "connected": True,
        "pool_healthy": True,
        "total_connections": 2,
        "idle_connections": 2,
        "acquired_connections": 0,
    }
    assert re.fullmatch(r"[0-9.]+(µs|ms|s)", body["latency"])
    assert body["timestamp"].endswith("Z")
    assert abs((status.timestamp - datetime.now(timezone.utc)).total_seconds()) < 60
    assert status.http_status == 200


def test_degraded_for_want_of_room(make: Make, spawn: Spawn) -> None:
    """All in use as the check began, but one came back in time: degraded, 200."""
    pool = make(max_size=1)
    held = leases(pool, 1)
    checking = spawn(HealthChecker(pool, timeout=40.0).check)
    eventually(lambda: pool.stats().waiting == 1)
    give_back(held)
    status = checking.result()
    assert status.as_dict()["database"] == {
        "connected": True,
        "pool_healthy": False,
        "total_connections": 1,
        "idle_connections": 0,
        "acquired_connections": 1,
        "message": "connection pool exhausted",
    }
    assert (status.status, status.http_status) == ("degraded", 200)


def test_saturated_is_degraded(make: Make) -> None:
    """Nobody gives anything back: degraded, 200, after a quarter of the timeout."""
    pool = make(max_size=1)
    held = leases(pool, 1)
    status = HealthChecker(pool, timeout=4.0).check()
    assert (status.status, status.http_status) == ("degraded", 200)
    assert status.database.message == "connection pool exhausted"
    assert 0.9 < status.latency < 3.0
    give_back(held)


def test_saturated_by_rejection(make: Make) -> None:
    """Where nobody may wait, a saturated pool is degraded at once."""
    pool = make(min_size=1, max_size=1, max_waiting=0)
    filled(pool)
    held = leases(pool, 1)
    status = HealthChecker(pool, timeout=60.0).check()
    assert (status.status, status.latency < 10.0) == ("degraded", True)
    give_back(held)


def test_a_dial_where_nobody_may_wait(make: Make, driver: StubDriver) -> None:
    """Being refused a place in the queue is not bad health while there is room."""
    driver.delays["connect"] = 0.1
    assert HealthChecker(make(max_size=2, max_waiting=0)).check().status == "healthy"


def test_saturated_but_cut_off(make: Make) -> None:
    """All in use, and the kernel knows that every one of them is dead: unhealthy."""
    driver = StubDriver(sockets=True)
    pool = make(driver=driver, max_size=2)
    held = leases(pool, 2)
    check = HealthChecker(pool, timeout=0.4).check
    driver.connections[0].kill()
    assert check().status == "degraded"
    driver.connections[1].kill()
    status = check()
    assert (status.status, status.http_status) == ("unhealthy", 503)
    assert status.database.message == "the server has hung up on every connection in use"
    assert not status.database.connected
    give_back(held)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Refused("nobody listens"), "Refused: nobody listens"),
        (WrongPassword("no such user"), "no such user"),
    ],
)
def test_unhealthy(make: Make, driver: StubDriver, error: Exception, words: str) -> None:
    """A database that refuses is unhealthy, 503, and the message is the refusal."""
    driver.fail("connect", error, times=1000)
    status = HealthChecker(make(max_size=2), timeout=1.0).check()
    assert (status.status, status.http_status) == ("unhealthy", 503)
    assert status.database.connected is False
    assert words in str(status.database.message)


def test_unhealthy_when_it_stays_silent(make: Make, driver: StubDriver) -> None:
    """A database that does not answer the check is unhealthy when the timeout is over."""
    pool = make(min_size=1, max_size=2)
    filled(pool)
    driver.gates["ping"] = threading.Event()
    status = HealthChecker(pool, timeout=0.2).check()
    assert status.status == "unhealthy"
    assert 0.2 <= status.latency < 5.0


def test_a_slow_dial_gets_the_whole_timeout(make: Make, driver: StubDriver) -> None:
    """Waiting for the database, and not for users, may take more than a quarter."""
    driver.delays["connect"] = 0.3
    assert HealthChecker(make(max_size=2), timeout=1.0).check().status == "healthy"


def test_closed(make: Make) -> None:
    """A closed pool is unhealthy."""
    pool = make()
    pool.close()
    assert HealthChecker(pool).check().as_dict()["database"]["message"].endswith("is closed")


def test_many_askers_take_one_connection(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """Whoever asks while a check is under way gets its answer."""
    pool = make(max_size=10)
    checker = HealthChecker(pool, timeout=30.0)
    driver.gates["ping"] = threading.Event()
    first = spawn(checker.check)
    eventually(lambda: driver.counts["ping"] == 1)
    others = [spawn(checker.check) for _ in range(20)]
    eventually(lambda: all(not caller.ended for caller in others))
    driver.gates["ping"].set()
    answers = {id(caller.result()) for caller in [first, *others]}
    assert driver.counts["ping"] + len(answers) < 6  # a late starter may need one of its own
    assert driver.most_open <= 2


def test_a_hung_check_hangs_nobody_else(make: Make, spawn: Spawn) -> None:
    """A check stuck in a user's hook makes the others unhealthy, not stuck."""
    gate, entered = threading.Event(), threading.Event()

    def hook(conn: object) -> bool:
        entered.set()
        return gate.wait(30)

    checker = HealthChecker(make(before_acquire=hook), timeout=0.2)
    stuck = spawn(checker.check)
    assert entered.wait(10)
    status = checker.check()
    assert status.status == "unhealthy"
    assert status.database.message == "a check has not ended in time"
    gate.set()
    stuck.join()


def test_liveness_never_asks_the_database(make: Make, driver: StubDriver) -> None:
    """Liveness is 200 with an uptime, and nothing was dialled for it."""
    status, body = KubernetesProbes(make()).liveness()
    assert (status, list(body), body["status"]) == (200, ["status", "uptime"], "alive")
    assert driver.counts["connect"] == 0


def test_readiness_before_it_is_set(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting within the grace period, not ready after it; both 503."""
    probes = KubernetesProbes(make())
    status, body = probes.readiness()
    assert status == 503
    assert {**body, "timestamp": ""} == {
        "status": "starting",
        "message": "application is starting up",
        "timestamp": "",
    }
    now = health.time.monotonic()
    monkeypatch.setattr(health.time, "monotonic", lambda: now + 30.1)
    status, body = probes.readiness()
    assert (status, body["status"], body["message"]) == (
        503,
        "not_ready",
        "application not ready",
    )


@pytest.mark.parametrize("wrong", [-1, math.nan, "5", None])
def test_what_is_no_time(make: Make, wrong: Any) -> None:
    """A timeout or a grace period that is none is refused at once, by name."""
    pool = make()
    for name, build in (
        ("timeout", lambda: HealthChecker(pool, wrong)),
        ("timeout", lambda: HealthChecker(pool, 0)),
        ("timeout", lambda: KubernetesProbes(pool, timeout=wrong)),
        ("startup_grace", lambda: KubernetesProbes(pool, wrong)),
    ):
        with pytest.raises(ConfigError, match=f"{name}: expected seconds"):
            build()


def test_readiness_of_a_good_pool(make: Make) -> None:
    """Ready, 200, with the pool's figures; off again with ``set_ready(False)``."""
    pool = make(min_size=2, max_size=4)
    filled(pool)
    probes = KubernetesProbes(pool, startup_grace=0.0)
    probes.set_ready(True)
    status, body = probes.readiness()
    assert status == 200
    assert {**body, "timestamp": ""} == {
        "timestamp": "",
        "status": "ready",
        "database": "connected",
        "pool": {"total": 2, "idle": 2, "acquired": 0},
    }
    probes.set_ready(False)
    assert probes.readiness().http_status == 503


def test_readiness_of_a_saturated_pool(make: Make) -> None:
    """Load must not take an instance out of service: degraded, 200."""
    pool = make(max_size=2)
    held = leases(pool, 2)
    probes = KubernetesProbes(pool, timeout=0.4)
    probes.set_ready()
    status, body = probes.readiness()
    assert status == 200
    assert {**body, "timestamp": ""} == {
        "timestamp": "",
        "status": "degraded",
        "message": "connection pool near capacity",
        "database": "connected",
        "pool": {"total": 2, "idle": 0, "acquired": 2},
    }
    give_back(held)


def test_readiness_without_a_database(make: Make, driver: StubDriver) -> None:
    """Not ready, 503, with the error."""
    driver.fail("connect", Refused("nobody listens"), times=1000)
    probes = KubernetesProbes(make(), timeout=0.4)
    probes.set_ready()
    status, body = probes.readiness()
    assert (status, sorted(body)) == (503, ["database", "error", "status", "timestamp"])
    assert (body["status"], body["database"]) == ("not_ready", "disconnected")
    assert body["error"] == "Refused: nobody listens"


def test_readiness_of_several(make: Make) -> None:
    """Every pool has to be ready; the body names each."""
    good, bad = make(name="good"), make(name="bad", driver=StubDriver())
    bad._house.driver.fail("connect", WrongPassword("no"), times=1000)
    probes = KubernetesProbes([good, bad], timeout=1.0)
    probes.set_ready()
    status, body = probes.readiness()
    assert (status, body["status"]) == (503, "not_ready")
    assert {name: one["status"] for name, one in body["pools"].items()} == {
        "good": "ready",
        "bad": "not_ready",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (1e-9, "1ns"),
        (1.5e-6, "1.5µs"),
        (0.00125, "1.25ms"),
        (0.999, "999ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (61.25, "1m1.25s"),
        (60, "1m0s"),
        (3723.5, "1h2m3.5s"),
        (90000, "25h0m0s"),
        (-0.25, "-250ms"),
    ],
)
def test_durations_as_go_prints_them(seconds: float, text: str) -> None:
    """Latency, uptime and wait_duration look as they do in Go."""
    assert duration(seconds) == text
