"""Which host to dial next.

The order is the connection string's. A host that failed is tried last until it
answers again; nothing else is remembered, so every dial looks names up afresh.
"""

from __future__ import annotations

from typing import Any

from .conninfo import ConnInfo

__all__ = ["Hosts"]


class Hosts:
    """The hosts of one pool."""

    def __init__(self, conninfo: ConnInfo) -> None:
        self._conninfo = conninfo
        # failed: hosts that did not answer last time, in the order they failed.
        self._failed: list[int] = []

    def order(self) -> list[int]:
        """All hosts, the most promising first."""
        failed = list(self._failed)
        return [i for i in range(self._conninfo.host_count) if i not in failed] + failed

    def params(self, index: int) -> dict[str, Any]:
        """What the driver needs for one attempt at host *index*; a fresh dict."""
        return self._conninfo.for_host(index)

    def answered(self, index: int) -> None:
        """Host *index* accepted a connection."""
        self._failed = [i for i in self._failed if i != index]

    def failed(self, index: int) -> None:
        """Host *index* did not."""
        self._failed = [i for i in self._failed if i != index] + [index]
