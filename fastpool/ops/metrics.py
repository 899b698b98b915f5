"""Metrics for Prometheus and for OpenTelemetry.

Both read the pool's own counters when they are asked, at a scrape or a collection,
so they cost nothing in between. Units are seconds; counters only grow; every metric
has the pool's name.

*Uses* are timed by the scheduler's clock, which is 1 to 4 ms coarse: short ones count
as less than a millisecond, or now and then as 4 ms, so that the sum is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..pool import Pool
from ..stats import SHORT, PoolStats
from ._pools import Pools, failing, named

__all__ = ["MissingPackage", "PrometheusCollector", "exposition", "instrument"]


_FIRST = 4  # 16 µs: what is shorter is the price of waking a thread
_LAST = 26  # 67 s


class MissingPackage(ImportError):
    """A package is needed that is not installed; the text says which, and how to
    install it."""


# -- Prometheus ------------------------------------------------------------------


class PrometheusCollector:
    """What ``prometheus_client`` collects of one pool, or of several::

        prometheus_client.REGISTRY.register(PrometheusCollector(pool))

    Raises ``MissingPackage`` when that package is not there.
    """

    def __init__(self, pools: Pools) -> None:
        self._pools = named(pools)
        self._families = _prometheus().metrics_core

    def describe(self) -> list[Any]:
        """The metrics without values; asked once, by the registry."""
        return [family for family, _ in self._all()]

    def collect(self) -> Iterator[Any]:
        """The metrics of this moment."""
        seen = {name: (pool.stats(), pool) for name, pool in self._pools.items()}
        for family, fill in self._all():
            for name, (stats, pool) in seen.items():
                fill(family, name, stats, pool)
            yield family

    def _all(self) -> list[tuple[Any, Callable[[Any, str, PoolStats, Pool[Any]], None]]]:
        kinds = self._families

        def gauge(name: str, text: str, value: Callable[[PoolStats, Pool[Any]], float]) -> Any:
            family = kinds.GaugeMetricFamily(f"fastpool_{name}", text, labels=["pool"])
            return family, lambda f, n, s, p: f.add_metric([n], value(s, p))

        def counter(name: str, text: str, value: Callable[[PoolStats], float]) -> Any:
            family = kinds.CounterMetricFamily(f"fastpool_{name}", text, labels=["pool"])
            return family, lambda f, n, s, p: f.add_metric([n], value(s))

        def parts(
            kind: str, name: str, text: str, label: str, value: Callable[[PoolStats], Any]
        ) -> Any:
            made = getattr(kinds, f"{kind}MetricFamily")
            family = made(f"fastpool_{name}", text, labels=["pool", label])

            def fill(family: Any, pool: str, stats: PoolStats, _: Any) -> None:
                for part, number in value(stats).items():
                    family.add_metric([pool, part], number)

            return family, fill

        def histogram(
            name: str,
            text: str,
            value: Callable[[PoolStats], tuple[tuple[int, ...], float]],
            first: int = _FIRST,
        ) -> Any:
            family = kinds.HistogramMetricFamily(f"fastpool_{name}", text, labels=["pool"])

            def fill(family: Any, pool: str, stats: PoolStats, _: Any) -> None:
                counts, total = value(stats)
                family.add_metric([pool], _cumulative(counts, first), sum_value=total)

            return family, fill

        return [
            parts("Gauge", "connections", "Connections, by state.", "state", _states),
            gauge("connections_max", "Connections that there may be.", lambda s, p: s.max_size),
            gauge("connections_min", "Connections that are kept.", lambda s, p: s.min_size),
            gauge("pending_requests", "Callers waiting now.", lambda s, p: s.waiting),
            gauge(
                "longest_hold_seconds",
                "How long the longest holder has had its connection.",
                lambda s, p: max((holder.age for holder in p.holders()), default=0.0),
            ),
            gauge(
                "connect_failing",
                "1 while the last attempt to connect is one that failed.",
                lambda s, p: float(failing(p)),
            ),
            counter("acquires", "Connections handed out.", lambda s: s.acquires),
            counter("timeouts", "Callers who got no connection in time.", lambda s: s.timeouts),
            counter("cancelled", "Waits ended by an exception.", lambda s: s.cancelled),
            counter("rejected", "Callers refused by max_waiting.", lambda s: s.rejected),
            histogram(
                "acquire_wait_seconds",
                "Waits of those callers that had to wait.",
                lambda s: (s.wait_histogram, s.wait_time),
            ),
            histogram(
                "connection_use_seconds",
                "From acquire to release.",
                lambda s: (s.use_histogram, s.use_time),
                SHORT,
            ),
            histogram(
                "connection_create_seconds",
                "Attempts to connect that ended well.",
                lambda s: (s.dial_histogram, s.dial_time),
            ),
            counter("connections_created", "Connections made.", lambda s: s.created),
            counter("connect_attempts", "Attempts to connect.", lambda s: s.dials),
            counter("connect_failures", "Those that failed.", lambda s: s.dial_failures),
            parts("Counter", "connections_closed", "By reason.", "reason", lambda s: s.closed),
        ]


def _states(stats: PoolStats) -> dict[str, int]:
    return {
        "idle": stats.idle,
        "used": stats.in_use + stats.checking,
        "connecting": stats.connecting,
        "closing": stats.closing,
    }


def _cumulative(counts: Iterable[int], first: int) -> list[tuple[str, int]]:
    """As Prometheus wants buckets: item n counts what is below 2**n microseconds."""
    buckets, total = [], 0
    for n, count in enumerate(counts):
        total += count
        if first <= n <= _LAST:
            buckets.append((f"{2**n / 1e6:.6g}", total))
    return [*buckets, ("+Inf", total)]


def exposition(pools: Pools, accept: str = "") -> tuple[bytes, str]:
    """The metrics of *pools* as a scrape wants them, and their content type.

    *accept*: the header that chooses between Prometheus' text and OpenMetrics.
    Raises ``MissingPackage``.
    """
    client = _prometheus()
    registry = client.CollectorRegistry(auto_describe=False)
    registry.register(PrometheusCollector(pools))
    encoder, content_type = client.exposition.choose_encoder(accept)
    text: bytes = encoder(registry)
    return text, content_type


def _prometheus() -> Any:
    try:
        import prometheus_client
        import prometheus_client.metrics_core
    except ImportError as error:
        raise MissingPackage(
            'metrics need prometheus-client: pip install "fastpool[prometheus]"'
        ) from error
    return prometheus_client


# -- OpenTelemetry ---------------------------------------------------------------

_RECORDED = 10_000
"""Values of one histogram that one collection records at most: OpenTelemetry takes
them one by one. Of more, an even part is recorded, so that their distribution stays
right and their number does not."""

_POOL = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
_BOUNDARIES = [2**n / 1e6 for n in range(_FIRST, _LAST + 1)]


def instrument(pools: Pools, meter_provider: Any = None) -> None:
    """Report one pool, or several, by OpenTelemetry's semantic conventions: the nine
    ``db.client.connection.*`` metrics.

    *meter_provider*: the global one unless given. Call it once for a pool. Raises
    ``MissingPackage`` when ``opentelemetry-api`` is not there.
    """
    try:
        from opentelemetry import metrics
    except ImportError as error:
        raise MissingPackage(
            'this needs opentelemetry-api: pip install "fastpool[opentelemetry]"'
        ) from error
    meter = metrics.get_meter("fastpool", meter_provider=meter_provider)
    _Instruments(named(pools), meter, metrics.Observation)


class _Instruments:
    """The instruments; the meter keeps them, since it keeps their callbacks."""

    def __init__(self, pools: Mapping[str, Pool[Any]], meter: Any, observation: Any) -> None:
        self._pools = pools
        self._observation = observation
        name = "db.client.connection."
        for suffix, unit, text, value in (
            ("idle.max", "{connection}", "Most idle ones allowed", lambda p: p.config.max_idle),
            ("idle.min", "{connection}", "Fewest idle ones kept", lambda p: p.config.min_idle),
            ("max", "{connection}", "Most connections allowed", lambda p: p.config.max_size),
            ("pending_requests", "{request}", "Waiting callers", lambda p: p.stats().waiting),
        ):
            meter.create_observable_up_down_counter(
                name + suffix, [self._observe(value)], unit=unit, description=text
            )
        meter.create_observable_up_down_counter(
            f"{name}count", [self._count], unit="{connection}", description="By state"
        )
        meter.create_observable_counter(
            f"{name}timeouts",
            [self._observe(lambda p: p.stats().timeouts)],
            unit="{timeout}",
            description="Callers who got no connection in time",
        )
        # There are no observable histograms: what is new since the last collection is
        # recorded at the next, from the callback of the instrument that is asked first.
        self._histograms = {
            kind: meter.create_histogram(
                name + suffix,
                unit="s",
                description=text,
                explicit_bucket_boundaries_advisory=_BOUNDARIES,
            )
            for kind, suffix, text in (
                ("dial_histogram", "create_time", "Time to make a connection"),
                ("wait_histogram", "wait_time", "Waits of callers who had to wait"),
                ("use_histogram", "use_time", "From acquire to release"),
            )
        }
        self._recorded: dict[tuple[str, str], tuple[int, ...]] = {}

    def _observe(self, value: Callable[[Pool[Any]], float]) -> Callable[[Any], Iterator[Any]]:
        def observe(options: Any) -> Iterator[Any]:
            for name, pool in self._pools.items():
                yield self._observation(value(pool), {_POOL: name})

        return observe

    def _count(self, options: Any) -> Iterator[Any]:
        for name, pool in self._pools.items():
            stats = pool.stats()
            self._record(name, stats)
            for state in ("idle", "used"):
                yield self._observation(_states(stats)[state], {_POOL: name, _STATE: state})

    def _record(self, name: str, stats: PoolStats) -> None:
        for kind, histogram in self._histograms.items():
            counts: tuple[int, ...] = getattr(stats, kind)
            before = self._recorded.get((name, kind), (0,) * len(counts))
            self._recorded[name, kind] = counts
            fresh = [max(0, b - a) for a, b in zip(before, counts, strict=True)]
            part = min(1.0, _RECORDED / max(1, sum(fresh)))
            for n, count in enumerate(fresh):
                # The middle of the bucket; short uses are no ticks long (see above).
                value = 0.0 if kind == "use_histogram" and n == SHORT else 0.75 * 2**n / 1e6
                for _ in range(round(count * part)):
                    histogram.record(value, {_POOL: name})
