"""Which host to dial next, and which server will do.

The order is the connection string's, or a new one at random each time
(``load_balance_hosts``). A host that failed is tried last until it answers
again; nothing else is remembered, so every dial looks names up afresh.
"""

from __future__ import annotations

import random
from typing import Any

from .conninfo import ConnInfo
from .drivers.base import Role

__all__ = ["Hosts", "fits"]


def fits(role: Role, wanted: str) -> bool:
    """Is that the server that libpq's ``target_session_attrs`` asks for?"""
    return {
        "any": True,
        "read-write": not role.read_only,
        "read-only": role.read_only,
        "primary": not role.standby,
        "standby": role.standby,
    }[wanted]


class Hosts:
    """The hosts of one pool."""

    def __init__(self, conninfo: ConnInfo) -> None:
        self._conninfo = conninfo
        params = conninfo.for_host(0)
        self._wanted = params.get("target_session_attrs", "any")
        self._at_random = params.get("load_balance_hosts") == "random"
        # failed: hosts that did not answer last time, in the order they failed.
        self._failed: list[int] = []

    def order(self) -> list[tuple[int, str]]:
        """All hosts, the most promising first, each with the kind of server that
        will do there; with ``prefer-standby`` all of them twice."""
        failed = list(self._failed)
        hosts = [i for i in range(self._conninfo.host_count) if i not in failed]
        if self._at_random:
            random.shuffle(hosts)
        hosts += failed
        rounds = ("standby", "any") if self._wanted == "prefer-standby" else (self._wanted,)
        return [(host, wanted) for wanted in rounds for host in hosts]

    def params(self, index: int) -> dict[str, Any]:
        """What the driver needs for one attempt at host *index*; a fresh dict."""
        return self._conninfo.for_host(index)

    def name(self, index: int) -> str:
        """Host *index* in words."""
        host = self._conninfo.hosts[index]
        return f"{host.host or host.hostaddr}:{host.port}"

    def answered(self, index: int) -> None:
        """Host *index* accepted a connection."""
        self._failed = [i for i in self._failed if i != index]

    def failed(self, index: int) -> None:
        """Host *index* did not."""
        self._failed = [i for i in self._failed if i != index] + [index]
