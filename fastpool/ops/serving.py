"""Health, statistics and metrics of a database over HTTP, without an application.

For a look at a server from where the application will run, and for trying out
dashboards and alerts. On a loopback address the page for the person on call is served
too. It ends as a service does: ``lifecycle``.
"""

from __future__ import annotations

import argparse
import logging

from ..errors import seconds
from ..pool import Pool
from . import CommandError
from ._server import serve
from .lifecycle import run_until_signal

__all__ = ["HELP", "add_arguments", "run"]

HELP = "serve health, metrics and a page about a database over HTTP"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fastpool serve``."""
    parser.description = (
        "Opens a pool and serves its probes, statistics and metrics, on a loopback address the "
        "page of the person on call too, until SIGINT or SIGTERM. Exit status: 0 after an "
        "orderly end, 1 when something had to be cut off, 2 when it cannot start."
    )
    parser.add_argument(
        "dsn",
        nargs="?",
        default="",
        help="a connection string (default: the PG* environment); settings of the pool may "
        "stand in it (?max_size=2)",
    )
    parser.add_argument(
        "--address",
        default="127.0.0.1:8080",
        metavar="HOST:PORT",
        help="where to listen (default: 127.0.0.1:8080; :8080 is every address of the machine)",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="for what is in progress to end after a signal (default: 30)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; 0, or 1 if something had to be cut off.

    Raises ``CommandError`` for a wrong connection string or address.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    try:
        pool = Pool(args.dsn, name="serve")
        server = serve(pool, args.address)
    except OSError as error:
        raise CommandError(f"cannot listen on {args.address}: {error.strerror}") from error
    except ValueError as error:
        raise CommandError(str(error)) from error
    with server, pool:
        server.set_ready()
        return 0 if run_until_signal(server, pool, grace=args.grace) else 1


def _seconds(text: str) -> float:
    try:
        return seconds("--grace", float(text), "do not wait")
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, not {text!r}") from None
