"""The same service on Flask: ``gunicorn --config gunicorn_conf.py flask_app:app``.

The pool is made once, at import, in the first process; each worker that gunicorn forks
gets connections of its own with it.
"""

from typing import Any

import pg8000.exceptions
import work
from flask import Flask, request

import fastpool
from fastpool.ops import mount, probes

pool = fastpool.from_env(name="orders")
health = probes(pool)
app = Flask(__name__)


@app.get("/databases")
def databases() -> list[dict[str, Any]]:
    return work.databases(pool)


@app.get("/report")
def report() -> dict[str, Any]:
    return work.report(pool, request.args.get("seconds", 1.0, type=work.seconds))


@app.errorhandler(fastpool.PoolError)
@app.errorhandler(pg8000.exceptions.Error)
def away(error: Exception) -> tuple[dict[str, str], int]:
    if not work.is_away(error):
        raise error
    return work.AWAY, 503


app.wsgi_app = mount(app.wsgi_app, "/ops", health)  # /ops/healthz, /ops/readyz
