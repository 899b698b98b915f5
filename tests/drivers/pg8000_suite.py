"""A pytest plugin that runs pg8000's own test suite on the driver's classes.

``pg8000.native.Connection`` and ``pg8000.dbapi.Connection`` are replaced by classes
with pg8000's arguments; everything behind the start-up is the driver's.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import pg8000.dbapi
import pg8000.native
from drivers.kit import State

from fastpool.drivers._socket import Socket
from fastpool.drivers._wire import Connection, DBAPIConnection, NativeConnection


class _AsStock(Connection):  # type: ignore[misc]
    def __init__(
        self,
        user: Any,
        host: Any = "localhost",
        database: Any = None,
        port: Any = 5432,
        password: Any = None,
        source_address: Any = None,
        unix_sock: Any = None,
        ssl_context: Any = None,
        timeout: Any = None,
        tcp_keepalive: Any = True,
        sock: Any = None,
        **start: Any,
    ) -> None:
        if sock is not None:
            plain = sock
        elif unix_sock is None:
            try:
                plain = socket.create_connection((host, port), timeout)
            except OSError as error:
                raise pg8000.native.InterfaceError(
                    f"Can't create a connection to host {host} and port {port} (timeout is "
                    f"{timeout} and source_address is {source_address})."
                ) from error
        else:
            plain = socket.socket(socket.AF_UNIX)
            try:
                plain.connect(unix_sock)
            except OSError as error:
                plain.close()
                raise pg8000.native.InterfaceError("communication error") from error
        ours = Socket(fileno=plain.detach())
        state = State(leased=True)
        try:
            super().__init__(state, ours, user=user, database=database, password=password, **start)
        except BaseException:
            with contextlib.suppress(OSError):
                ours.close()
            raise


class NativeAsStock(_AsStock, NativeConnection):  # type: ignore[misc]
    """With pg8000's arguments."""


class DBAPIAsStock(_AsStock, DBAPIConnection):  # type: ignore[misc]
    """With pg8000's arguments."""


pg8000.native.Connection = NativeAsStock
pg8000.dbapi.Connection = DBAPIAsStock
