"""Metrics, read by the real Prometheus parser and the real OpenTelemetry SDK."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from ops.kit import call
from pool.kit import Caller, Refused, eventually, filled, give_back, leases

from fastpool import Pool
from fastpool.ops import MissingPackage, PrometheusCollector, _pools, instrument, metrics, probes
from fastpool.ops._pools import failing
from fastpool.testing import StubDriver

Make = Callable[..., Pool[Any]]
Spawn = Callable[[Callable[[], Any]], Caller]


def families(text: bytes) -> dict[str, Any]:
    """What Prometheus' own parser makes of *text*."""
    parser = pytest.importorskip("prometheus_client.parser")
    return {f.name: f for f in parser.text_string_to_metric_families(text.decode())}


def value(found: dict[str, Any], family: str, sample: str = "", **labels: str) -> float:
    """The one value of that sample."""
    (one,) = [
        s.value
        for s in found[f"fastpool_{family}"].samples
        if s.name == f"fastpool_{family}{sample}" and labels.items() <= s.labels.items()
    ]
    return float(one)


def test_prometheus(make: Make, spawn: Spawn) -> None:
    """Every metric, with its name, type, unit and pool, as /metrics sends it."""
    pool = make(name="orders", min_size=1, max_size=2)
    filled(pool)
    held = leases(pool, 2)
    waiting = spawn(lambda: pool.acquire(30).release())
    eventually(lambda: pool.stats().waiting == 1)
    answer = call(probes(pool), "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    found = families(answer.body)
    assert {name.removeprefix("fastpool_"): family.type for name, family in found.items()} == {
        "connections": "gauge",
        "connections_max": "gauge",
        "connections_min": "gauge",
        "pending_requests": "gauge",
        "longest_hold_seconds": "gauge",
        "connect_failing": "gauge",
        "acquires": "counter",
        "timeouts": "counter",
        "cancelled": "counter",
        "rejected": "counter",
        "acquire_wait_seconds": "histogram",
        "connection_use_seconds": "histogram",
        "connection_create_seconds": "histogram",
        "connection_check_seconds": "histogram",
        "connections_created": "counter",
        "connect_attempts": "counter",
        "connect_failures": "counter",
        "connections_closed": "counter",
    }
    assert all(s.labels["pool"] == "orders" for f in found.values() for s in f.samples)
    assert value(found, "connections", state="used") == 2
    assert value(found, "connections", state="idle") == 0
    assert value(found, "connections_max") == 2
    assert value(found, "pending_requests") == 1
    assert value(found, "longest_hold_seconds") > 0
    assert value(found, "acquires", "_total") == 2
    assert value(found, "connections_created", "_total") == 2
    assert value(found, "connection_create_seconds", "_count") == 2
    give_back(held)
    waiting.join()
    found = families(call(probes(pool), "/metrics").body)
    stats = pool.stats()
    assert value(found, "acquire_wait_seconds", "_count") == stats.waits
    assert value(found, "acquire_wait_seconds", "_sum") == pytest.approx(stats.wait_time)
    assert value(found, "acquire_wait_seconds", "_bucket", le="+Inf") == stats.waits
    assert value(found, "connection_use_seconds", "_count") == 3
    pool.close()
    found = families(call(probes(pool), "/metrics").body)
    assert value(found, "connections_closed", "_total", reason="closed") == 2


def test_failures_show(make: Make, driver: StubDriver) -> None:
    """A database that refuses shows as failing, and no longer when it is back."""
    pool = make(max_size=1, timeout=5.0)
    driver.fail("connect", Refused("nobody"), times=1000)
    pool.try_acquire()
    eventually(lambda: pool.stats().dial_failures > 0)
    found = families(call(probes(pool), "/metrics").body)
    assert value(found, "connect_failing") == 1
    assert value(found, "connect_failures", "_total") >= 1
    driver.heal()
    pool.acquire().release()
    assert value(families(call(probes(pool), "/metrics").body), "connect_failing") == 0


def test_an_old_failure_is_no_news(
    make: Make, driver: StubDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a minute after nobody wanted a connection any more, nothing is known to fail;
    while one is being dialled it still is."""
    pool = make(max_size=1)
    driver.fail("connect", Refused("nobody"), times=1)
    pool.try_acquire()
    eventually(lambda: pool.stats().dial_failures > 0 and not pool.stats().connecting)
    assert failing(pool)
    monkeypatch.setattr(_pools, "_STALE", 0.0)
    assert not failing(pool)
    driver.gates["connect"] = threading.Event()
    pool.try_acquire()
    eventually(lambda: pool.stats().connecting == 1)
    assert failing(pool)
    driver.gates["connect"].set()
    eventually(lambda: not failing(pool))


def test_several_pools_in_one_registry(make: Make) -> None:
    """Registered with a registry of one's own, as its users do, for several pools."""
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry(auto_describe=True)
    registry.register(PrometheusCollector([make(name="a"), make(name="b")]))
    assert registry.get_sample_value("fastpool_connections_max", {"pool": "a"}) == 25
    assert registry.get_sample_value("fastpool_connections_max", {"pool": "b"}) == 25
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(PrometheusCollector(make(name="c")))


def test_collector_and_text_agree(make: Make) -> None:
    """What prometheus_client writes of the collector is what /metrics sends."""
    client = pytest.importorskip("prometheus_client")
    pool = make(name='odd "name"\\', min_size=2)
    filled(pool)
    pool.acquire().release()
    registry = client.CollectorRegistry()
    registry.register(PrometheusCollector(pool))
    ours = families(call(probes(pool), "/metrics").body)
    theirs = families(client.generate_latest(registry))
    assert ours == theirs
    assert value(ours, "connections_max") == 25


def test_buckets_end_where_they_say(make: Make) -> None:
    """Each bucket's ``le`` is its upper bound: waits below 2**n microseconds."""
    counts = [0] * 40
    counts[3], counts[11], counts[39] = 5, 2, 1
    buckets = dict(metrics._cumulative(counts, metrics._FIRST))
    assert buckets["1.6e-05"] == 5
    assert (buckets["0.001024"], buckets["0.002048"]) == (5, 7)
    assert (buckets["67.1089"], buckets["+Inf"]) == (7, 8)


def test_uses_are_timed(make: Make, clock: Any) -> None:
    """A use of some seconds is in its bucket and in the sum; a short one is counted."""
    pool = make(max_size=1)
    lease = pool.acquire()
    clock.now += 3.0
    lease.release()
    pool.acquire().release()
    stats = pool.stats()
    assert stats.use_time == 3.0
    assert {n: count for n, count in enumerate(stats.use_histogram) if count} == {10: 1, 22: 1}


def test_missing_packages(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its package each says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingPackage, match=r"fastpool\[prometheus\]"):
        PrometheusCollector(make())
    with pytest.raises(MissingPackage, match=r"fastpool\[opentelemetry\]"):
        instrument(make())


# -- OpenTelemetry -----------------------------------------------------------------


class Telemetry:
    """The SDK with a reader in memory."""

    def __init__(self, pools: Any) -> None:
        sdk = pytest.importorskip("opentelemetry.sdk.metrics")
        export = pytest.importorskip("opentelemetry.sdk.metrics.export")
        self.reader = export.InMemoryMetricReader()
        self.provider = sdk.MeterProvider([self.reader], shutdown_on_exit=False)
        instrument(pools, self.provider)

    def read(self) -> dict[str, Any]:
        """The metrics of one collection, by their names."""
        data = self.reader.get_metrics_data()
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        assert scope.scope.name == "fastpool"
        return {metric.name: metric for metric in scope.metrics}


def points(metric: Any) -> dict[tuple[str, ...], Any]:
    """Its points, by pool and state."""
    prefix = "db.client.connection."
    return {
        tuple(
            str(point.attributes[prefix + name])
            for name in ("pool.name", "state")
            if prefix + name in point.attributes
        ): point
        for point in metric.data.data_points
    }


def test_opentelemetry(make: Make, spawn: Spawn) -> None:
    """The nine names of the semantic conventions, their units, kinds and attributes."""
    pool = make(name="orders", min_size=1, max_size=2, min_idle=1, max_idle=2)
    pool.open(wait=True)
    telemetry = Telemetry(pool)
    held = leases(pool, 2)
    waiting = spawn(lambda: pool.acquire(30).release())
    eventually(lambda: pool.stats().waiting == 1)
    found = telemetry.read()
    prefix = "db.client.connection."
    gauges = {"count": 2, "idle.max": 2, "idle.min": 1, "max": 2, "pending_requests": 1}
    assert points(found[f"{prefix}count"])["orders", "used"].value == gauges.pop("count")
    assert points(found[f"{prefix}count"])["orders", "idle"].value == 0
    for name, expected in gauges.items():
        assert points(found[prefix + name])["orders",].value == expected, name
    for name in ("count", *gauges):
        assert not found[prefix + name].data.is_monotonic
        assert found[prefix + name].unit == (
            "{request}" if name == "pending_requests" else "{connection}"
        )
    assert found[f"{prefix}timeouts"].data.is_monotonic
    assert found[f"{prefix}timeouts"].unit == "{timeout}"
    give_back(held)
    waiting.join()
    found = telemetry.read()
    assert {name.removeprefix(prefix) for name in found} == {
        *("count", "timeouts", "create_time", "wait_time", "use_time"),
        *gauges,
    }
    stats = pool.stats()
    for name, count in (("create_time", 2), ("wait_time", stats.waits), ("use_time", 3)):
        metric = found[prefix + name]
        point = points(metric)["orders",]
        assert (metric.unit, point.count) == ("s", count), name
    # Recorded once: a collection without news adds nothing.
    assert points(telemetry.read()[f"{prefix}use_time"])["orders",].count == 3
    telemetry.provider.shutdown()


def test_opentelemetry_of_a_busy_pool(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more values than one collection may take, an even part is recorded."""
    monkeypatch.setattr(metrics, "_RECORDED", 100)
    pool = make(name="orders", max_size=1)
    telemetry = Telemetry({"mine": pool})
    for _ in range(1000):
        pool.acquire().release()
    found = telemetry.read()["db.client.connection.use_time"]
    assert 90 <= points(found)["mine",].count <= 110
    telemetry.provider.shutdown()


def test_import_is_light() -> None:
    """Importing fastpool.ops, or its metrics, loads no optional package and no server."""
    code = (
        "import sys, fastpool.ops, fastpool.ops.metrics; print({m for m in sys.modules "
        "if m.split('.')[0] in ('prometheus_client', 'opentelemetry', 'http', 'asyncio')})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr
