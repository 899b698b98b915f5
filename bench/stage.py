"""What all measurements share: how much to measure, how far it is, and the servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from fastpool.testing import FaultProxy, LocalPostgres, make_certificate

from .load import Load, Work, run_load
from .measure import Effort
from .peers import Contender

__all__ = ["Bench", "Loads", "Way", "tls_server"]

Loads = dict[str, list[Load]]


class Way(NamedTuple):
    """One way to a server, as the drivers want to be told it."""

    dsn: str
    """A connection URI."""
    pg8000: dict[str, Any]
    """Keyword arguments of ``pg8000``'s ``connect``."""
    pids: tuple[int, ...]
    """The processes behind it; what they start inherits their processor."""


class Bench(contextlib.ExitStack):
    """Closing it ends the servers."""

    def __init__(self, effort: Effort) -> None:
        super().__init__()
        self.effort = effort
        self.series: dict[str, list[dict[str, Any]]] = {}
        """What is no ratio, by the name of its table; for the plots."""

    def record(self, table: str, **values: Any) -> None:
        self.series.setdefault(table, []).append(values)

    def progress(self, text: str) -> None:
        """Called before each part; replaced where there is a terminal."""
        print(f"bench: {text}", file=sys.stderr, flush=True)

    def loads(self, pools: Mapping[str, Contender], work: Work, times: int = 1) -> Loads:
        """The same load on every pool, in turns; *times* as many rounds as others have."""
        found: Loads = {name: [] for name in pools}
        rounds = times * self.effort.rounds
        for number in range(rounds):
            self.progress(f"{work}, round {number + 1} of {rounds}")
            for name, pool in pools.items():
                found[name].append(run_load(pool, self.effort.load, work))
        return found

    @cached_property
    def postgres(self) -> LocalPostgres:
        return self.enter_context(LocalPostgres(settings={"max_connections": 100}))

    @cached_property
    def ways(self) -> dict[str, Way]:
        """The three ways to PostgreSQL."""
        server = self.postgres
        common = {"user": server.user, "database": server.dbname}
        file = f"{server.socket_dir}/.s.PGSQL.{server.port}"
        tcp = {"host": server.host, "port": server.port, "ssl_context": False}
        return {
            "unix": Way(server.unix_dsn, {"unix_sock": file, **common}, (server.pid,)),
            "TCP": Way(f"{server.dsn}?sslmode=disable", {**tcp, **common}, (server.pid,)),
            "TLS": tls_server(self),
        }


def tls_server(stack: contextlib.ExitStack) -> Way:
    """A server that speaks TLS: an installed PostgreSQL that can, else a proxy."""
    room = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    certificate = make_certificate(room, ["127.0.0.1"])
    binaries: list[Path | None] = [None]
    if not os.environ.get("FASTPOOL_PG_BIN"):  # the packaged one is built without TLS
        binaries += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for path in binaries:
        chosen = {} if path is None else {"FASTPOOL_PG_BIN": str(path)}
        server = LocalPostgres(settings={"max_connections": 100})
        with patch.dict(os.environ, chosen):
            server.start()
        if _speak_tls(server, *certificate):
            stack.callback(server.close)
            return _tls_way(server, server.port, server.pid)
        server.close()
    server = stack.enter_context(LocalPostgres())
    proxy = stack.enter_context(FaultProxy(server, tls=certificate))
    return _tls_way(server, proxy.port, server.pid)


def _tls_way(server: LocalPostgres, port: int, *pids: int) -> Way:
    dsn = f"postgresql://{server.user}@{server.host}:{port}/{server.dbname}?sslmode=require"
    address = {"host": server.host, "port": port, "ssl_context": True}
    return Way(dsn, {"user": server.user, "database": server.dbname, **address}, pids)


def _speak_tls(server: LocalPostgres, certificate: Path, key: Path) -> bool:
    """Switch TLS on; False if the server is built without it."""
    import pg8000.native

    own = server.data_dir.stat()
    for source, name in ((certificate, "server.crt"), (key, "server.key")):
        target = server.data_dir / name
        shutil.copy(source, target)
        target.chmod(0o600)
        os.chown(target, own.st_uid, own.st_gid)
    address = {"host": server.host, "port": server.port, "database": server.dbname}
    with contextlib.closing(
        pg8000.native.Connection(server.user, ssl_context=False, **address)
    ) as admin:
        try:
            admin.run("ALTER SYSTEM SET ssl = on")
        except pg8000.native.DatabaseError:
            return False
        admin.run("SELECT pg_reload_conf()")
    until = time.monotonic() + 10
    while time.monotonic() < until:  # the server re-reads its settings when it gets to it
        with contextlib.suppress(pg8000.native.InterfaceError):
            pg8000.native.Connection(server.user, ssl_context=True, **address).close()
            return True
        time.sleep(0.01)
    return False
