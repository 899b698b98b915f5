"""More threads than connections: who waits how long."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from operator import methodcaller
from statistics import median

from ..load import QUANTILES, Load, Work, busy, loops_in, one_way, quantile
from ..measure import alternate
from ..peers import Contender, Spec, contenders, ours
from ..report import Row, compiled
from ..stage import Bench, Loads

__all__ = ["computing", "crowded", "fairness", "grid", "handoff", "handoff_loads", "zero_hold"]

NO_PEER = "no peer is installed"


def best(loads: Loads, merit: Callable[[Load], float]) -> str | None:
    """The peer with the most of *merit*, if there are peers."""
    peers = [name for name in loads if not name.startswith("fastpool")]
    return max(peers, key=lambda name: median(map(merit, loads[name])), default=None)


def against(
    name: str, loads: Loads, merit: Callable[[Load], float], sign: str, limit: float | None
) -> Row:
    """Our *merit* over the best peer's: the most, or with ``<=`` the least."""
    order = 1 if sign == ">=" else -1
    peer = best(loads, lambda load: order * merit(load))
    if peer is None:
        return Row(name, note=NO_PEER)
    left, right = ([merit(load) for load in loads[side]] for side in ("fastpool", peer))
    unit = "/s" if sign == ">=" else "s"
    target = None if limit is None else compiled(sign, limit)
    return Row(f"{name} / {peer}", left, right, unit, target)


def throughput(name: str, loads: Loads, limit: float | None) -> Row:
    """Our throughput over the best peer's; all pools' loads in the note."""
    row = against(f"{name}: throughput", loads, lambda load: load.throughput, ">=", limit)
    middle = {
        pool: sorted(found, key=lambda load: load.throughput)[len(found) // 2]
        for pool, found in loads.items()
    }
    row.note = row.note or "\n".join(f"{pool}: {load}" for pool, load in middle.items())
    return row


def fairness(bench: Bench) -> Iterator[Row]:
    """32 threads share 4 connections and hold each for 1 ms: the ideal wait is 8 ms."""
    with contenders(Spec(4)) as pools:
        loads = bench.loads(pools, Work(32, hold=0.001))
    mine = loads["fastpool"]
    for name, q, limit in (("worst", 1.0, 2.0), ("p99.9", 0.999, 1.5)):
        raw = 1e3 * median(load.wait(q) for load in mine)
        yield Row(
            f"32 threads: {name} wait / ideal",
            [load.own_wait(q) for load in mine],
            [0.008] * len(mine),
            target=compiled("<=", limit),
            note=f"{raw:.1f} ms with what the machine was late itself",
        )
    most, least = ([float(pick(load.shares)) for load in mine] for pick in (max, min))
    yield Row("32 threads: largest share / smallest", most, least, "", compiled("<=", 1.1))
    yield throughput("32 threads", loads, 0.95)


def crowded(bench: Bench) -> Iterator[Row]:
    """Two loads in which our longest waits are to be the shortest of all pools'. The longest
    wait of one second is a matter of chance, so there are more of them than elsewhere."""
    for size, work in ((4, Work(32, hold=0.001)), (8, Work(64, hold=0.002))):
        with contenders(Spec(size)) as pools:
            loads = bench.loads(pools, work, times=2)
        name = f"{work.threads} threads, {size} connections"
        for label, q in ("worst", 1.0), ("p99.9", 0.999):
            merit = methodcaller("wait", q)
            yield against(f"{name}: {label} wait", loads, merit, "<=", 1)
        yield throughput(name, loads, 0.95)


def zero_hold(bench: Bench) -> Iterator[Row]:
    """Threads that do nothing but check out and in."""
    with contenders(Spec(4)) as pools:
        for threads in (8, 32):
            yield throughput(f"zero hold, {threads} threads", bench.loads(pools, Work(threads)), 5)


def computing(bench: Bench) -> Iterator[Row]:
    """16 threads hold for 2 ms and compute for 1 ms after the release.

    The wait is compared with the fairest peer's: a starving pool's looks fine, since
    its starved threads finish no wait.
    """
    with contenders(Spec(4)) as pools:
        loads = bench.loads(pools, Work(16, hold=0.002, compute=0.001))
    peer = best(loads, lambda load: -load.unfairness)
    if peer is None:
        yield Row("16 computing threads: p99 wait", note=NO_PEER)
    else:
        left, right = ([load.wait(0.99) for load in loads[side]] for side in ("fastpool", peer))
        name = f"16 computing threads: p99 wait / {peer}"
        yield Row(name, left, right, target=compiled("<=", 1.0))
    yield throughput("16 computing threads", loads, 0.95)


def points(grid: str) -> list[tuple[int, Work]]:
    """Connections and load of each point that is measured."""
    if grid == "few":
        return [(4, Work(8)), (4, Work(32, hold=0.001)), (1, Work(16, hold=0.0002))]
    if grid == "plots":
        sweep = [(4, Work(threads, hold=0.001)) for threads in (1, 2, 4, 8, 16, 32, 64, 128)]
        others = [(1, Work(16)), (4, Work(32)), (8, Work(64, 0.002)), (16, Work(64, 0.005))]
        return [*sweep, *others, (64, Work(256, 0.001)), (4, Work(16, 0.002, 0.001))]
    loads = [
        Work(threads, hold, compute)
        for compute in (0.0, 0.001)
        for hold in (0.0, 0.0002, 0.001, 0.005)
        for threads in (1, 2, 4, 8, 16, 32, 64, 128, 256)
        if hold or not compute
    ]
    return [(size, load) for size in (1, 4, 16, 64) for load in loads]


def grid(bench: Bench) -> Iterator[Row]:
    """Connections x threads x hold, on all pools and both cores."""
    for size, work in points(bench.effort.grid):
        with contenders(Spec(size), both=True, bare=True) as pools:
            loads = bench.loads(pools, work)
        for pool, found in loads.items():
            summaries = [load.summary() for load in found]
            middle = {key: median(each[key] for each in summaries) for key in summaries[0]}
            rates = [each["throughput"] for each in summaries]
            spread = {"slowest": min(rates), "fastest": max(rates)}
            bench.record("grid", pool=pool, connections=size, **asdict(work), **middle, **spread)
        pools_only = {name: loads[name] for name in loads if name not in ("queue.Queue", "lock")}
        yield throughput(f"grid, {size} connections, {work}", pools_only, None)


def handoff(bench: Bench) -> Iterator[Row]:
    """One connection, two threads: from the release until the other has it."""
    lock = threading.Lock()
    with contextlib.closing(ours(spec=Spec(1))) as pool:
        samples = {
            "pool": lambda: median(one_way(pool.acquire, pool.release)),
            "lock": lambda: median(one_way(lock.acquire, lambda _: lock.release())),
        }
        times = alternate(samples, bench.effort)
    yield Row("hand-off / raw lock's", times["pool"], times["lock"], target=compiled("<=", 1.3))


def handoff_loads(bench: Bench) -> Iterator[Row]:
    """The same on every pool: alone, with a releaser that computes for 1 ms before it
    blocks, and beside a thread that computes all the time."""
    loops = loops_in(0.001)
    conditions = {"alone": (0, 0), "releaser computes": (loops, 0), "busy neighbour": (0, 1)}
    for condition, (turns, neighbours) in conditions.items():
        bench.progress(f"hand-off, {condition}")
        delays: dict[str, list[float]] = {}
        with contenders(Spec(1), both=True, bare=True) as pools, busy(neighbours):

            def sample(name: str, pool: Contender, turns: int = turns) -> float:
                found = one_way(pool.acquire, pool.release, 10, turns)
                delays.setdefault(name, []).extend(found)  # noqa: B023  used in this turn
                return median(found)

            cases = {name: partial(sample, name, pool) for name, pool in pools.items()}
            times = alternate(cases, bench.effort)
        for name, found in delays.items():
            waits = {label: quantile(found, q) for label, q in QUANTILES.items()}
            bench.record("handoff", pool=name, condition=condition, **waits)
        peer = min(
            (name for name in times if not name.startswith("fastpool") and name != "lock"),
            key=lambda name: median(times[name]),
        )
        yield Row(f"hand-off, {condition}: ours / {peer}", times["fastpool"], times[peer])
