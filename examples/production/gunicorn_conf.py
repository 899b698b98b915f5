"""How gunicorn runs ``flask_app``: threads, since this is a pool for threads.

Each of the workers may have ``DB_MAX_CONNS`` connections.
"""

import os
from typing import Any

bind = os.environ.get("ADDRESS", "0.0.0.0:8080")
worker_class = "gthread"
workers = 2
threads = 8
preload_app = True
# From SIGTERM on, for requests in progress and for worker_exit; then workers are killed.
graceful_timeout = 25


def post_worker_init(worker: Any) -> None:
    from flask_app import health, pool

    # A worker that cannot start ends, and gunicorn with it. Sooner than by its timeout.
    pool.open(wait=True, timeout=20.0)
    health.set_ready()


def worker_exit(server: Any, worker: Any) -> None:
    from flask_app import health, pool

    health.set_ready(False)
    pool.close(5.0)
