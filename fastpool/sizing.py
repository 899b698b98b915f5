"""How large a pool may be when several instances share one database."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from .config import MAX_CONNECTIONS, whole
from .errors import ConfigError

__all__ = ["PoolSize", "calculate_pool_size"]


class PoolSize(NamedTuple):
    """A pair that fits ``Pool(**size._asdict())``; 1 <= min_size <= max_size."""

    min_size: int
    max_size: int


def calculate_pool_size(
    app_instances: int,
    db_max_connections: int,
    reserved_connections: int,
    expected_concurrency: int,
    cpu_count: int | None = None,
) -> PoolSize:
    """Split a database's connections evenly between the instances of a service.

    *app_instances* is how many processes with a pool there are,
    *db_max_connections* the server's ``max_connections``, *reserved_connections*
    what to leave for administrators and other services (at least the server's
    ``superuser_reserved_connections``), *expected_concurrency* how many
    operations run at one time in one instance. *cpu_count* defaults to the
    processors that this process may use.

    An instance's share is ``(db_max_connections - reserved_connections) //
    app_instances``. That is ``max_size``, unless *expected_concurrency* is below
    ``3 * cpu_count`` and the share above it: then three per processor are
    enough. ``min_size`` is a quarter of ``max_size``, at least 2, never more than
    ``max_size``.

    The factor 3 is a rule of thumb, and the rules disagree: PostgreSQL's wiki
    ("Number Of Database Connections") starts from ``cores * 2 + spindles``; read
    for SSDs it becomes ``cores * 2`` to ``cores * 4``, and for one disk
    ``cores * 2 + 1``. All of them speak of the *database's* cores, which an
    application cannot see. Take the share as the limit and measure below it.

    Raises ``ConfigError`` that names the argument when one is out of range or
    when less than one connection per instance is left.

    >>> calculate_pool_size(4, 200, 20, 50)
    PoolSize(min_size=11, max_size=45)
    """
    positive = whole(1)
    positive("app_instances", app_instances)
    whole(1, MAX_CONNECTIONS)("db_max_connections", db_max_connections)
    whole(0)("reserved_connections", reserved_connections)
    positive("expected_concurrency", expected_concurrency)
    if cpu_count is None:
        cpu_count = _usable_cpus()
    positive("cpu_count", cpu_count)

    share = (db_max_connections - reserved_connections) // app_instances
    if share < 1:
        raise ConfigError(
            f"db_max_connections={db_max_connections} less reserved_connections="
            f"{reserved_connections} leaves no connection for each of "
            f"app_instances={app_instances}: raise the first or lower the others",
            setting="db_max_connections",
        )
    enough = 3 * cpu_count
    max_size = enough if expected_concurrency < enough < share else share
    return PoolSize(min(max(2, max_size // 4), max_size), max_size)


def _usable_cpus() -> int:
    # As Go's runtime.NumCPU: a container's or taskset's limit counts.
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
