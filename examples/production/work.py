"""What the application does in its database; the same in every variant here."""

import math
from typing import Any

import fastpool

AWAY = {"error": "the database is away or busy"}


def is_away(error: Exception) -> bool:
    """No connection in time, a deadline, or a server that went in the middle of it. Who
    asked may ask again later; anything else is a mistake of ours."""
    return isinstance(error, fastpool.PoolError) or fastpool.is_retryable(error)


def seconds(text: str) -> float:
    """What *text* says, if that is a time."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return value


def databases(pool: fastpool.Pool[Any]) -> list[dict[str, Any]]:
    """The databases of this server, and how many sessions each has."""
    with fastpool.deadline(2.0):  # waiting, connecting and the query together
        rows = pool.run(
            "SELECT datname, numbackends FROM pg_stat_database "
            "WHERE datname IS NOT NULL ORDER BY datname"
        )
    return [{"name": name, "sessions": sessions} for name, sessions in rows]


def report(pool: fastpool.Pool[Any], seconds: float) -> dict[str, Any]:
    """Something slow. Its deadline is shorter than a shutdown's, which waits for it."""
    with fastpool.deadline(20.0):
        pool.run("SELECT pg_sleep(:seconds::float8)", seconds=seconds)
    return {"slept": seconds}
