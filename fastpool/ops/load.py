"""Where is the knee? The same callers and the same query, with larger and larger pools.

Callers take a connection, run the query, and begin again. More connections serve them
sooner, up to where the server has no more to give: from there on throughput stands
still, and only the server's own queues grow. The smallest pool that is close to the
best throughput is the one to take.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pg8000.exceptions import DatabaseError, InterfaceError

from .._opener import describe
from ..errors import PoolError, PoolTimeout
from ..pool import Pool
from . import CommandError
from ._progress import progress
from ._report import milliseconds, quantile

__all__ = ["HELP", "Step", "add_arguments", "knee", "run"]

HELP = "find the pool size beyond which your own query gets no faster"

_ENOUGH = 0.95
"""Of the best throughput: what is left is within the noise."""
_WIDTH = 40


@dataclass(frozen=True)
class Step:
    """What one pool size gave."""

    size: int
    per_second: float
    p50_seconds: float
    p99_seconds: float
    """Of a caller's whole time: the wait for a connection, and the query."""
    errors: int
    """Queries that failed."""
    error: str | None = None
    """What the first of them said."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dsn", help="connection string")
    parser.add_argument(
        "--query", default="SELECT 1", metavar="SQL", help="your own (default: SELECT 1)"
    )
    parser.add_argument(
        "--sizes",
        default="1,2,4,8,16,32",
        metavar="N,N,...",
        help="pool sizes to try (default: 1,2,4,8,16,32)",
    )
    parser.add_argument(
        "--callers", type=int, default=32, metavar="N", help="threads that ask (default: 32)"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="for each size (default: 2)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """0; 1 if the query failed. Raises ``CommandError`` when nothing can be measured."""
    sizes = _sizes(args.sizes)
    if not args.seconds > 0 or args.callers < 1:
        raise CommandError("--seconds and --callers: expected more than 0")
    steps = []
    with progress(len(sizes) * args.seconds) as show:
        for done, size in enumerate(sizes):

            def tell(seconds: float, done: int = done, size: int = size) -> None:
                show(done * args.seconds + seconds, f"{size} connections")

            steps.append(_measure(args, size, tell))
    if not any(step.per_second for step in steps):
        raise CommandError(f"every query failed: {steps[0].error}")
    best = knee(steps)
    if args.json:
        report = {"recommended": best.size, "steps": [asdict(step) for step in steps]}
        print(json.dumps(report))
    else:
        _draw(steps, best)
    return 1 if any(step.errors for step in steps) else 0


def knee(steps: list[Step]) -> Step:
    """The smallest size whose throughput is close to the best."""
    most = max(step.per_second for step in steps)
    good = (step for step in steps if step.per_second >= _ENOUGH * most)
    return min(good, key=lambda step: step.size)


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise CommandError(f"--sizes: expected numbers like 1,2,4, not {text!r}") from None
    if sizes[0] < 1:
        raise CommandError(f"--sizes: expected numbers from 1, not {sizes[0]}")
    return sizes


def _measure(args: argparse.Namespace, size: int, tell: Callable[[float], None]) -> Step:
    """*args.callers* threads on a pool of *size* connections, for a while."""
    times: list[float] = []
    failed: list[str] = []
    over = threading.Event()
    try:
        pool = Pool(
            args.dsn,
            name="fastpool-load",
            min_size=size,
            max_size=size,
            max_idle=size,
            connect_concurrency=min(size, 8),
            timeout=max(30.0, 10 * args.seconds),
        )
        with pool:
            _fill(pool)
            pool.run(args.query)  # once aside, so that a wrong one is told as such

            def call() -> None:
                while not over.is_set():
                    began = time.perf_counter()
                    try:
                        pool.run(args.query)
                    except Exception as error:
                        failed.append(describe(error))
                    times.append(time.perf_counter() - began)

            threads = [threading.Thread(target=call) for _ in range(args.callers)]
            began = time.perf_counter()
            try:
                for thread in threads:
                    thread.start()
                while (passed := time.perf_counter() - began) < args.seconds:
                    tell(passed)
                    time.sleep(min(0.1, args.seconds - passed))
            finally:
                over.set()
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()
            seconds = time.perf_counter() - began
    except PoolError as error:
        cause = error.__cause__ or error
        raise CommandError(f"{size} connections cannot be had: {describe(cause)}") from error
    except (DatabaseError, InterfaceError) as error:
        raise CommandError(f"the query failed: {describe(error)}") from error
    times.sort()
    p50, p99 = quantile(times, 0.5), quantile(times, 0.99)
    assert p50 is not None and p99 is not None  # each caller has ended one
    done = len(times) - len(failed)
    return Step(size, done / seconds, p50, p99, len(failed), next(iter(failed), None))


def _fill(pool: Pool[Any]) -> None:
    """All of its connections are there. Raises at the first that the server refuses:
    what a service waits for, the next try, is of no use to who measures."""
    give_up = time.monotonic() + 30.0
    while True:
        try:
            return pool.wait(0.5)
        except PoolTimeout:
            if pool.stats().last_connect_error is not None or time.monotonic() > give_up:
                raise


def _draw(steps: list[Step], best: Step) -> None:
    most = max(step.per_second for step in steps)
    print(f"{'size':>5} {'per second':>12} {'p50 ms':>10} {'p99 ms':>10}")
    for step in steps:
        bar = "#" * max(1, round(_WIDTH * step.per_second / most))
        mark = "  <- enough" if step is best else ""
        failed = f"  {step.errors} failed" if step.errors else ""
        print(
            f"{step.size:5} {step.per_second:12,.0f} {milliseconds(step.p50_seconds):>10} "
            f"{milliseconds(step.p99_seconds):>10}  {bar}{mark}{failed}"
        )
    print(
        f"\nmax_size={best.size}: within {100 - 100 * _ENOUGH:.0f} % of the best throughput. "
        "More connections only queue in the server."
    )
    for step in steps:
        if step.error:
            print(f"\n{step.size} connections, {step.errors} failed, the first with: {step.error}")
            break
