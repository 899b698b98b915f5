"""The ``DB_*`` environment variables: a database and the size of its pool.

The small alternative to a connection string, for services whose platform sets
host, name and password one by one. An empty variable counts as unset; one that
cannot be read is an error, never the default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .._secrets import hides_arguments
from ..errors import ConfigError
from ._libpq import PARAMETERS
from ._values import check_text, parse_duration, parse_integer

__all__ = ["DatabaseConfig"]


@dataclass(frozen=True, repr=False)
class DatabaseConfig:
    """A database and the size of its pool, from the ``DB_*`` variables.

    Numbers are checked for being numbers here, their ranges in ``PoolConfig``.
    """

    variables: ClassVar[Mapping[str, str]] = {
        "min_size": "DB_MIN_CONNS",
        "max_size": "DB_MAX_CONNS",
        "max_lifetime": "DB_CONN_MAX_LIFETIME",
        "max_idle_time": "DB_CONN_MAX_IDLE_TIME",
    }
    """The pool's settings among them, and their variables."""

    password: str
    host: str = "localhost"
    port: int = 5432
    user: str = "postgres"
    dbname: str = "postgres"
    sslmode: str = "require"
    min_size: int = 5
    max_size: int = 25
    max_lifetime: float | None = 1800.0
    """Seconds, ``None`` for off."""
    max_idle_time: float | None = 300.0
    """Seconds, ``None`` for off."""

    @classmethod
    @hides_arguments
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> DatabaseConfig:
        """Read ``DB_PASSWORD``, which is required, and these, if not empty:

        ``DB_HOST`` (``localhost``), ``DB_PORT`` (5432), ``DB_USER`` and
        ``DB_NAME`` (``postgres``), ``DB_SSLMODE`` (``require``),
        ``DB_MIN_CONNS`` (5, at most ``DB_MAX_CONNS``), ``DB_MAX_CONNS`` (25),
        ``DB_CONN_MAX_LIFETIME`` (``30m``), ``DB_CONN_MAX_IDLE_TIME`` (``5m``).
        Durations are as in :func:`parse_duration`: seconds or ``1h30m``, 0 for
        off.

        Raises ``ConfigError`` naming the variable, its value and what is
        accepted: a typing error must not become a default.
        """

        def get(name: str, default: str) -> str:
            value = environ.get(name) or default
            check_text(value, name)
            return value

        password = get("DB_PASSWORD", "")
        if not password:
            message = "DB_PASSWORD environment variable is required"
            raise ConfigError(message, setting="DB_PASSWORD")
        port = parse_integer(get("DB_PORT", "5432"), "DB_PORT")
        if not 1 <= port <= 65535:
            raise ConfigError(f"DB_PORT: {port} is not from 1 to 65535", setting="DB_PORT")
        sslmode = get("DB_SSLMODE", "require")
        if sslmode not in PARAMETERS["sslmode"].values:
            accepted = ", ".join(PARAMETERS["sslmode"].values)
            message = f"DB_SSLMODE: {sslmode!r} is not one of {accepted}"
            raise ConfigError(message, setting="DB_SSLMODE")
        max_size = parse_integer(get("DB_MAX_CONNS", "25"), "DB_MAX_CONNS")
        return cls(
            password=password,
            host=get("DB_HOST", "localhost"),
            port=port,
            user=get("DB_USER", "postgres"),
            dbname=get("DB_NAME", "postgres"),
            sslmode=sslmode,
            min_size=parse_integer(get("DB_MIN_CONNS", str(min(5, max_size))), "DB_MIN_CONNS"),
            max_size=max_size,
            max_lifetime=parse_duration(get("DB_CONN_MAX_LIFETIME", "30m"), "DB_CONN_MAX_LIFETIME"),
            max_idle_time=parse_duration(
                get("DB_CONN_MAX_IDLE_TIME", "5m"), "DB_CONN_MAX_IDLE_TIME"
            ),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The pool's settings, by their names in ``Pool(...)``."""
        return {name: getattr(self, name) for name in self.variables}

    def connection_string(self) -> str:
        """Return a ``postgres://`` URI, percent-encoded; it holds the password."""
        from urllib.parse import quote  # slow to import, and few need it

        user, password, dbname, sslmode = (
            quote(part, safe="") for part in (self.user, self.password, self.dbname, self.sslmode)
        )
        host = f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
        return f"postgres://{user}:{password}@{host}:{self.port}/{dbname}?sslmode={sslmode}"

    def __repr__(self) -> str:
        shown = {**vars(self), "password": "***"}
        return f"DatabaseConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
