"""Metrics for Prometheus and for OpenTelemetry.

Both read the pool's own counters when they are asked, at a scrape or a collection,
so they cost nothing in between. Units are seconds; counters only grow; every metric
has the pool's name.

*Uses* are timed by the scheduler's clock, which is 1 to 4 ms coarse: short ones count
as less than a millisecond, or now and then as 4 ms, so that the sum is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from ..pool import Pool
from ..stats import SHORT, PoolStats
from ._pools import Pools, failing, named

__all__ = ["MissingPackage", "PrometheusCollector", "exposition", "instrument"]


_FIRST = 4  # 16 µs: what is shorter is the price of waking a thread
_LAST = 26  # 67 s
_BOUNDS = [f"{2**n / 1e6:.6g}" for n in range(_FIRST, _LAST + 1)]


class MissingPackage(ImportError):
    """A package is needed that is not installed; the text says which, and how to
    install it."""


# -- Prometheus ------------------------------------------------------------------


class _Family(NamedTuple):
    """One metric."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    value: Callable[[PoolStats, Pool[Any]], Any]
    """A number; with *label*, numbers by its values; of a histogram, counts and sum."""
    label: str = ""
    first: int = _FIRST
    """Of a histogram, the first bucket that is told."""


_FAMILIES = (
    _Family("connections", "gauge", "Connections, by state.", lambda s, _: _states(s), "state"),
    _Family("connections_max", "gauge", "Connections allowed.", lambda s, _: s.max_size),
    _Family("connections_min", "gauge", "Connections that are kept.", lambda s, _: s.min_size),
    _Family("pending_requests", "gauge", "Callers waiting now.", lambda s, _: s.waiting),
    _Family(
        "longest_hold_seconds",
        "gauge",
        "How long the longest holder has had its connection.",
        lambda _, pool: max((holder.age for holder in pool.holders()), default=0),
    ),
    _Family(
        "connect_failing",
        "gauge",
        "1 while the last attempt to connect is a recent one and failed.",
        lambda _, pool: int(failing(pool)),
    ),
    _Family("acquires", "counter", "Connections handed out.", lambda s, _: s.acquires),
    _Family("timeouts", "counter", "Acquires that timed out.", lambda s, _: s.timeouts),
    _Family("cancelled", "counter", "Waits ended by an exception.", lambda s, _: s.cancelled),
    _Family("rejected", "counter", "Callers refused by max_waiting.", lambda s, _: s.rejected),
    _Family(
        "acquire_wait_seconds",
        "histogram",
        "Waits of those callers that had to wait.",
        lambda s, _: (s.wait_histogram, s.wait_time),
    ),
    _Family(
        "connection_use_seconds",
        "histogram",
        "From acquire to release.",
        lambda s, _: (s.use_histogram, s.use_time),
        first=SHORT,
    ),
    _Family(
        "connection_create_seconds",
        "histogram",
        "Attempts to connect that ended well.",
        lambda s, _: (s.dial_histogram, s.dial_time),
    ),
    _Family(
        "connection_check_seconds",
        "histogram",
        "Round trips that looked whether a connection is alive.",
        lambda s, _: (s.check_histogram, s.check_time),
    ),
    _Family("connections_created", "counter", "Connections made.", lambda s, _: s.created),
    _Family("connect_attempts", "counter", "Attempts to connect.", lambda s, _: s.dials),
    _Family("connect_failures", "counter", "Those that failed.", lambda s, _: s.dial_failures),
    _Family(
        "connections_closed",
        "counter",
        "Connections closed, by reason.",
        lambda s, _: s.closed,
        "reason",
    ),
)


def _states(stats: PoolStats) -> dict[str, int]:
    return {
        "idle": stats.idle,
        "used": stats.in_use + stats.checking,
        "connecting": stats.connecting,
        "closing": stats.closing,
    }


def _cumulative(counts: Iterable[int], first: int) -> list[tuple[str, int]]:
    """As Prometheus wants buckets: item n counts what is below 2**n microseconds."""
    totals = list(accumulate(counts))
    last = totals[-1] if totals else 0
    return [*zip(_BOUNDS[first - _FIRST :], totals[first:], strict=False), ("+Inf", last)]


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of :func:`exposition`."""


def exposition(pools: Pools) -> str:
    """The metrics of *pools* in Prometheus' text format. Needs no other package."""
    seen = [(_escaped(name), pool.stats(), pool) for name, pool in named(pools).items()]
    lines: list[str] = []
    for family in _FAMILIES:
        name = f"fastpool_{family.name}{'_total' if family.kind == 'counter' else ''}"
        lines += f"# HELP {name} {family.text}", f"# TYPE {name} {family.kind}"
        for pool_name, stats, pool in seen:
            value = family.value(stats, pool)
            mark = f'pool="{pool_name}"'
            if family.kind == "histogram":
                counts, total = value
                buckets = _cumulative(counts, family.first)
                lines += [f'{name}_bucket{{{mark},le="{le}"}} {count}' for le, count in buckets]
                lines.append(f"{name}_count{{{mark}}} {buckets[-1][1]}")
                lines.append(f"{name}_sum{{{mark}}} {total}")
            elif family.label:
                lines += [
                    f'{name}{{{mark},{family.label}="{_escaped(part)}"}} {number}'
                    for part, number in value.items()
                ]
            else:
                lines.append(f"{name}{{{mark}}} {value}")
    return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class PrometheusCollector:
    """The same for a registry of ``prometheus_client``, beside the application's own::

        prometheus_client.REGISTRY.register(PrometheusCollector(pool))

    Takes one pool, or several. Raises ``MissingPackage`` when that package is not there.
    """

    def __init__(self, pools: Pools) -> None:
        self._pools = named(pools)
        try:
            from prometheus_client import metrics_core
        except ImportError as error:
            raise MissingPackage(
                'this needs prometheus-client: pip install "fastpool[prometheus]"'
            ) from error
        self._core = metrics_core

    def describe(self) -> list[Any]:
        """The metrics without values; asked once, by the registry."""
        return [self._family(family) for family in _FAMILIES]

    def collect(self) -> Iterator[Any]:
        """The metrics of this moment."""
        seen = [(name, pool.stats(), pool) for name, pool in self._pools.items()]
        for family in _FAMILIES:
            found = self._family(family)
            for name, stats, pool in seen:
                value = family.value(stats, pool)
                if family.kind == "histogram":
                    counts, total = value
                    found.add_metric([name], _cumulative(counts, family.first), sum_value=total)
                elif family.label:
                    for part, number in value.items():
                        found.add_metric([name, part], number)
                else:
                    found.add_metric([name], value)
            yield found

    def _family(self, family: _Family) -> Any:
        kind = getattr(self._core, f"{family.kind.title()}MetricFamily")
        labels = ["pool", *filter(None, [family.label])]
        return kind(f"fastpool_{family.name}", family.text, labels=labels)


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

    ``wait_time`` is of those callers that had to wait, as everywhere here. Of the three
    histograms one collection takes at most 10 000 values each, evenly: on a busy pool
    the distribution is right and the number too small. ``/metrics`` has all.
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
