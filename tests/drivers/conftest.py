"""One PostgreSQL per session, and connections that are closed after each test."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers.kit import Certificates, State
from support import need

from fastpool.drivers import pg8000
from fastpool.testing import FaultProxy
from fastpool.testing.local_postgres import LocalPostgres


@pytest.fixture(scope="session")
def server() -> Iterator[LocalPostgres]:
    """A server that trusts everyone."""
    with LocalPostgres(settings={"max_connections": 40}) as postgres:
        yield postgres


@pytest.fixture(scope="session")
def params(server: LocalPostgres) -> dict[str, Any]:
    """Where it is, as a driver wants to hear it."""
    return {
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "dbname": server.dbname,
        "sslmode": "disable",
    }


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Made with the openssl command."""
    need(shutil.which("openssl"), "no openssl command")
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def proxy(server: LocalPostgres) -> Iterator[FaultProxy]:
    """A proxy in front of the server, with faults and counters of its own."""
    with FaultProxy(server) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def tls_proxy(server: LocalPostgres, certificates: Certificates) -> Iterator[FaultProxy]:
    """The server with TLS, by the certificate for ``localhost``; without a fault."""
    with FaultProxy(server, tls=certificates.pair) as proxy:
        yield proxy


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with nothing in ``~/.postgresql``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".postgresql").mkdir()
    return tmp_path / ".postgresql"


Connect = Callable[..., Any]


@pytest.fixture
def connect(params: dict[str, Any]) -> Iterator[Connect]:
    """Make a leased connection: ``connect(driver, name=value, ...)``."""
    made: list[Any] = []

    def connect(driver: Any = None, **changes: Any) -> Any:
        driver = driver or pg8000.Native()
        state = State()
        conn = driver.connect({**params, **changes}, state, time.monotonic() + 10)
        made.append((driver, conn))
        state.lease()
        return conn

    yield connect
    for driver, conn in made:
        driver.abandon(conn)
