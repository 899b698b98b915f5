"""How large a pool may be, with the reasons; from arguments, or asked of the server."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pg8000.exceptions import DatabaseError, InterfaceError

from .._opener import describe
from ..errors import ConfigError, PoolError
from ..pool import Pool
from ..sizing import calculate_pool_size
from . import CommandError

__all__ = ["HELP", "add_arguments", "run"]

HELP = "how large a pool may be, for so many instances of a service"

_LIMITS = """
SELECT current_setting('max_connections')::int,
       current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true)::int, 0),
       (SELECT count(*)::int FROM pg_stat_activity
        WHERE coalesce(backend_type, 'client backend') = 'client backend'
          AND datid IS NOT NULL AND usesysid IS NOT NULL AND pid <> pg_backend_pid()),
       (SELECT count(*)::int FROM pg_stat_replication),
       pg_is_in_recovery()
"""
"""``reserved_connections`` came with PostgreSQL 16. Of other roles' sessions the type is
shown to superusers and ``pg_monitor`` only; what serves nobody has no database or no user."""


_OPTIONS = {
    "app_instances": "--instances",
    "db_max_connections": "--max-connections",
    "reserved_connections": "--reserved",
    "expected_concurrency": "--concurrency",
    "cpu_count": "--cpus",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--instances",
        type=int,
        default=1,
        metavar="N",
        help="processes with a pool of their own: replicas times workers (default: 1)",
    )
    parser.add_argument(
        "--concurrency",
        type=int,
        default=50,
        metavar="N",
        help="operations at one time in one instance (default: 50)",
    )
    parser.add_argument(
        "--max-connections", type=int, metavar="N", help="the server's (default: asked of --dsn)"
    )
    parser.add_argument(
        "--reserved",
        type=int,
        metavar="N",
        help="connections left to administrators and others (default: what the server reserves; 3)",
    )
    parser.add_argument(
        "--cpus", type=int, metavar="N", help="processors of an instance (default: of this one)"
    )
    parser.add_argument("--dsn", help="a server to ask for its limits")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(args: argparse.Namespace) -> int:
    """0. Raises ``CommandError`` when the numbers leave no room, or none can be had."""
    asked = _ask(args.dsn) if args.dsn is not None else {}
    limit = args.max_connections
    if limit is None:
        limit = asked.get("max_connections")
    if limit is None:
        raise CommandError("either --max-connections or --dsn is needed")
    reserved = args.reserved if args.reserved is not None else asked.get("reserved", 3)
    try:
        size = calculate_pool_size(args.instances, limit, reserved, args.concurrency, args.cpus)
    except ConfigError as error:
        text = str(error)
        for argument, option in _OPTIONS.items():
            text = text.replace(argument, option)
        raise CommandError(text) from error
    share = (limit - reserved) // args.instances
    if args.json:
        print(json.dumps({**size._asdict(), "share": share, "reserved": reserved, **asked}))
        return 0
    print(f"max_size={size.max_size} min_size={size.min_size}\n")
    print(
        f"{limit} connections, less {reserved} reserved, between {args.instances} "
        f"instance{'s' * (args.instances > 1)}: {share} each."
    )
    if size.max_size < share:
        print(
            f"An instance does {args.concurrency} operations at a time and has few processors: "
            "three connections for each of them are enough."
        )
    print("min_size is a quarter of that. Measure below the limit: fastpool load DSN")
    if asked:
        print(
            f"\nNow: {asked['connected']} others connected, {asked['replicas']} replicas"
            f"{', and this is one itself' * asked['standby']}. Each replica has limits of its own."
        )
        if asked["connected"] > reserved:
            print(f"The others want more than the {reserved} reserved: see --reserved.")
    return 0


def _ask(dsn: str) -> dict[str, Any]:
    try:
        with Pool(dsn, name="fastpool-size", min_size=0, max_size=1, fail_fast_after=0.05) as pool:
            [row] = pool.run(_LIMITS)
    except PoolError as error:
        raise CommandError(
            str(error) if error.__cause__ is None else describe(error.__cause__)
        ) from error
    except (DatabaseError, InterfaceError) as error:
        raise CommandError(describe(error)) from error
    names = ("max_connections", "reserved", "connected", "replicas", "standby")
    return dict(zip(names, row, strict=True))
