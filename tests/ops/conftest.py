"""Pools on a driver that opens nothing, as in ``tests/pool``; servers that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pool.conftest import clock, driver, make, spawn

from fastpool.ops import Server, serve

__all__ = ["clock", "driver", "make", "spawn"]


@pytest.fixture
def serving(make: Callable[..., Any]) -> Iterator[Callable[..., Server]]:
    """``serving(app, **options)``: :func:`serve` on a free port."""
    servers: list[Server] = []

    def serving(app: Any, address: str = "127.0.0.1:0", **options: Any) -> Server:
        servers.append(serve(app, address, **options))
        return servers[-1]

    yield serving
    for server in servers:
        server.close(timeout=1.0)
