"""Health and probes on a real server that stops and comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from integration.conftest import MakePool, started
from integration.kit import Admin, eventually

from fastpool import Pool
from fastpool.ops import HealthChecker, Probes, probes
from fastpool.testing import LocalPostgres


@pytest.fixture(scope="module")
def mortal() -> Iterator[LocalPostgres]:
    """A server of this module's own, which it stops."""
    yield from started(LocalPostgres())


def get(app: Probes, path: str) -> tuple[int, str]:
    """The status of one request, and that of its body."""
    found: list[Any] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path}
    (body,) = app(environ, lambda *given: found.extend(given))
    return int(found[0][:3]), body.decode()


def test_healthy(make_pool: MakePool) -> None:
    """A real round trip: healthy, with the pool's figures."""
    pool = make_pool(min_size=2, max_size=4)
    pool.open(wait=True)
    status = HealthChecker(pool).check()
    assert (status.status, status.database.connected) == ("healthy", True)
    assert status.database.total_connections == 2


def test_saturated(make_pool: MakePool, admin: Admin) -> None:
    """Every connection runs a statement: degraded, ready, and nobody is disturbed."""
    pool = make_pool(max_size=2)
    app = probes(pool, timeout=0.8)
    app.set_ready()
    held = [pool.acquire() for _ in range(2)]
    sleeping = threading.Thread(target=held[0].run, args=("SELECT pg_sleep(1.5)",))
    sleeping.start()
    eventually(lambda: admin.busy(pool.name), "the statement runs")
    status, body = get(app, "/health")
    assert (status, '"degraded"' in body) == (200, True)
    status, body = get(app, "/readyz")
    assert (status, "near capacity" in body) == (200, True)
    sleeping.join()
    assert held[0].run("SELECT 1") == [[1]]
    for lease in held:
        lease.release()


def test_the_database_stops(mortal: LocalPostgres) -> None:
    """Stopped: liveness 200, readiness and health 503, and all by itself ready again.
    Also when every connection was in use."""
    with Pool(f"{mortal.dsn}?sslmode=disable", min_size=1, max_size=2) as pool:
        app = probes(pool, timeout=1.0)
        app.set_ready()
        eventually(lambda: get(app, "/readyz")[0] == 200, "ready")
        held = [pool.acquire() for _ in range(2)]
        assert '"degraded"' in get(app, "/readyz")[1]
        mortal.stop("immediate")
        assert get(app, "/healthz")[0] == 200
        status, body = get(app, "/readyz")
        assert (status, '"disconnected"' in body) == (503, True)
        assert get(app, "/health")[0] == 503
        for lease in held:
            lease.release()
        status, body = get(app, "/readyz")
        assert (status, "refused" in body or "starting" in body) == (503, True), body
        mortal.start()
        eventually(lambda: get(app, "/readyz")[0] == 200, "ready again")
        assert '"ready"' in get(app, "/readyz")[1]
        assert get(app, "/health")[0] == 200
