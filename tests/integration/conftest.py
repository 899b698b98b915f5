"""One server for all tests here, made when the first asks for it; pools per test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from integration.kit import Admin, eventually
from support import need

from fastpool import Pool
from fastpool.testing import FaultProxy, LocalPostgres, make_certificate

MakePool = Callable[..., Pool[Any]]

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[LocalPostgres]:
    """A server that trusts everybody."""
    yield from started(LocalPostgres(settings={"max_connections": 80}))


@pytest.fixture(scope="module")
def locked_server() -> Iterator[LocalPostgres]:
    """A server with passwords, for the module that may stop it."""
    yield from started(LocalPostgres(password="se:cr@t/ü"))


def started(pg: LocalPostgres) -> Iterator[LocalPostgres]:
    try:
        pg.start()
    except FileNotFoundError as error:
        need(False, str(error))
    with pg:
        yield pg


@pytest.fixture(scope="session")
def admin(server: LocalPostgres) -> Iterator[Admin]:
    """A connection beside the pools."""
    admin = Admin(server)
    yield admin
    admin.close()


@pytest.fixture(scope="session")
def tls_proxy(
    server: LocalPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FaultProxy]:
    """TLS in front of the server."""
    try:
        files = make_certificate(tmp_path_factory.mktemp("tls"), ["localhost"])
    except FileNotFoundError as error:
        need(False, str(error))
    with FaultProxy(server, tls=files) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's own database is none of ours."""
    for name in os.environ:
        if name.startswith(("PG", "DB_")):
            monkeypatch.delenv(name)


@pytest.fixture
def make_pool(server: LocalPostgres, admin: Admin) -> Iterator[MakePool]:
    """``make_pool(dsn=None, *, driver=None, **settings)``: a pool on *server*, without
    a minimum size. It is closed after the test, and must leave no session behind."""
    pools: list[Pool[Any]] = []

    def make(dsn: str | None = None, **settings: Any) -> Pool[Any]:
        dsn = f"{server.dsn}?sslmode=disable" if dsn is None else dsn
        settings = {"min_size": 0, "name": f"test-{next(_numbers)}", **settings}
        pool = Pool(dsn, **settings)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close(timeout=1.0)
    names = {pool.name for pool in pools}
    eventually(lambda: not any(map(admin.backends, names)), f"{names} leave nothing behind")


@pytest.fixture
def proxy(server: LocalPostgres) -> Iterator[FaultProxy]:
    """A proxy in front of *server*."""
    with FaultProxy(server) as proxy:
        yield proxy
