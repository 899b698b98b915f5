"""A complete service on nothing but fastpool: ``python app.py``.

The database is in the ``DB_*`` variables, of which ``DB_PASSWORD`` is required. Of its
own: ``ADDRESS`` (``:8080``), and in seconds ``GRACE`` (30), which a shutdown may take,
and ``DRAIN`` (0), the part of that in which it still serves, but is not ready.
"""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from work import AWAY, databases, is_away, report, seconds

import fastpool
from fastpool.ops import KubernetesProbes, Probes, probes, run_until_signal, serve

log = logging.getLogger("orders")

AT_ONE_TIME = 48
"""Requests of our own; with more the service is busy. The server takes 64: there is
always room for a probe, so that load alone never has a pod restarted."""

ROUTES: dict[str, Callable[[fastpool.Pool[Any], dict[str, str]], object]] = {
    "/databases": lambda pool, query: databases(pool),
    "/report": lambda pool, query: report(pool, seconds(query.get("seconds", "1"))),
}


def application(pool: fastpool.Pool[Any], health: Probes) -> Callable[..., Iterable[bytes]]:
    """The routes above; everything else is for the probes, which know what there is not."""
    room = threading.BoundedSemaphore(AT_ONE_TIME)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        route = ROUTES.get(environ["PATH_INFO"])
        if route is None:
            return health(environ, start_response)
        status, body = "503 Service Unavailable", AWAY
        if room.acquire(blocking=False):
            try:
                body = route(pool, dict(parse_qsl(environ["QUERY_STRING"])))
                status = "200 OK"
            except ValueError:
                status, body = "400 Bad Request", {"error": "seconds: expected a number"}
            except Exception as error:
                if not is_away(error):
                    raise
                log.warning("%s: %s", environ["PATH_INFO"], error)
            finally:
                room.release()
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(body).encode()]

    return app


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # To the first process of a container SIGTERM is nothing, unless somebody listens.
    # While it starts it ends as by Ctrl-C; from run_until_signal on, in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pool = fastpool.from_env(name="orders")
    kubernetes = KubernetesProbes(pool, startup_grace=30.0)
    server = serve(
        application(pool, probes(pool, kubernetes=kubernetes)),
        os.environ.get("ADDRESS", ":8080"),
        read_timeout=10.0,
        write_timeout=10.0,
        idle_timeout=60.0,
    )
    with server, pool:
        log.info("starting on %s", server.address)  # alive from now on, and not ready
        pool.open(wait=True, timeout=30.0)  # better fail here than at the first request
        kubernetes.set_ready()
        in_time = run_until_signal(
            server,
            pool,
            grace=float(os.environ.get("GRACE", "30")),
            drain=float(os.environ.get("DRAIN", "0")),
            readiness=kubernetes,
        )
    return 0 if in_time else 1


if __name__ == "__main__":
    sys.exit(main())
