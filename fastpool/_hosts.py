"""Which host to dial next, which server will do, and what a lost connection says
of the others.

Each host is *up*, *suspect* (one of its connections was ended in a way that
concerns them all) or *down* (a dial failed, or a second connection said the same);
``_NEXT`` is the whole of it. A host that is down is tried last until it answers;
one that let a dial run into its limit, not before that time has passed again, so
that the next dials are for others. When all are down, all whose time has come are
tried.

The order is the connection string's, or a new one at random each time
(``load_balance_hosts``). Every dial looks names up afresh.
"""

from __future__ import annotations

import random
from typing import Any, Literal, NamedTuple

from .conninfo import ConnInfo
from .drivers.base import Role

__all__ = ["DOWN", "SUSPECT", "UP", "Health", "Hosts", "Verdict", "concerns_host", "fits"]

UP, SUSPECT, DOWN = "up", "suspect", "down"

ANSWERED, PROOF, SECOND, FAILED = "answered", "proof", "second proof", "failed"

_NEXT = {
    (UP, ANSWERED): UP,
    (UP, PROOF): SUSPECT,
    (UP, FAILED): DOWN,
    (SUSPECT, ANSWERED): UP,
    (SUSPECT, PROOF): SUSPECT,
    (SUSPECT, SECOND): DOWN,
    (SUSPECT, FAILED): DOWN,
    (DOWN, ANSWERED): UP,
    (DOWN, PROOF): DOWN,
    (DOWN, SECOND): DOWN,
    (DOWN, FAILED): DOWN,
}

WINDOW = 1.0
"""Seconds within which two connections' ends are one event."""

_HOST_ENDS = frozenset({"57P01", "57P02", "57P03", ""})
"""The server stops, crashed, or starts; or it went without a word."""


def concerns_host(word: str | None) -> bool:
    """Does a connection that ended with *word* (``Driver.last_word``) tell of its
    host? Time-outs of one session (57P05, 25P03, 25P04) do not."""
    return word in _HOST_ENDS


def fits(role: Role, wanted: str) -> bool:
    """Is that the server that libpq's ``target_session_attrs`` asks for?"""
    return {
        "any": True,
        "prefer-standby": True,
        "read-write": not role.read_only,
        "read-only": role.read_only,
        "primary": not role.standby,
        "standby": role.standby,
    }[wanted]


class Health(NamedTuple):
    """What is known of one host at one moment. Times as the pool's clock has them."""

    status: str = UP
    witness: int = 0
    """The connection that gave the last proof; 0 when there is none: while up."""
    witnessed: float = 0.0
    cost: float = 0.0
    """Seconds that the last attempt waited for nothing; 0 unless down."""
    until: float = 0.0
    """Not tried before this time, if another can be; 0 unless down."""
    recovered: float = 0.0
    """The begin of the dial that was answered first after trouble: connections born
    earlier may be dead, and their ends say nothing of those born since."""


class Verdict(NamedTuple):
    """What becomes of a host's idle connections after a proof."""

    what: Literal["ask", "drop"]
    """One round trip before the next hand-out, or closed unasked."""
    born_before: float
    """It concerns those born earlier."""


class Hosts:
    """The hosts of one pool.

    Called from any thread, without a lock: each step replaces one ``Health``. Of
    two at the same moment one may be lost; then a connection is looked at a little
    later, or a dial tries a little more.
    """

    def __init__(self, conninfo: ConnInfo) -> None:
        self._conninfo = conninfo
        params = conninfo.for_host(0)
        self.wanted: str = params.get("target_session_attrs", "any")
        """The kind of server: ``target_session_attrs``."""
        self.asks_password = callable(params.get("password"))
        """The password comes from a function, asked at each dial."""
        self._at_random = params.get("load_balance_hosts") == "random"
        self._health = [Health() for _ in range(conninfo.host_count)]

    def order(self, now: float) -> list[tuple[int, str]]:
        """The hosts to try, the most promising first, each with the kind of server
        that will do there. At least one."""
        hosts = [i for i, health in enumerate(self._health) if health.status != DOWN]
        if self._at_random:
            random.shuffle(hosts)
        down = sorted(set(range(len(self._health))) - {*hosts}, key=self._until)
        hosts += [i for i in down if self._until(i) <= now]
        hosts = hosts or down[:1]
        if self.wanted != "prefer-standby":
            return [(host, self.wanted) for host in hosts]
        # Where only the last is left to be a standby, it will do as it is.
        *others, last = hosts
        return [
            *((host, "standby") for host in others),
            (last, "any"),
            *((host, "any") for host in others),
        ]

    def _until(self, index: int) -> float:
        return self._health[index].until

    def params(self, index: int) -> dict[str, Any]:
        """What the driver needs for one attempt at host *index*; a fresh dict."""
        return self._conninfo.for_host(index)

    def name(self, index: int) -> str:
        """Host *index* in words."""
        host = self._conninfo.hosts[index]
        return f"{host.host or host.hostaddr}:{host.port}"

    def health(self, index: int) -> Health:
        """What is known of host *index*."""
        return self._health[index]

    def trying(self, index: int, now: float) -> None:
        """An attempt begins: while it lasts, other dials need not try a host that
        is down as well."""
        health = self._health[index]
        if health.status == DOWN:
            self._health[index] = health._replace(until=now + health.cost)

    def answered(self, index: int, began: float) -> None:
        """Host *index* accepted a connection, in a dial begun at *began*."""
        health = self._health[index]
        if health.status != UP:
            recovered = max(began, health.recovered)
            self._health[index] = Health(_NEXT[health.status, ANSWERED], recovered=recovered)

    def failed(self, index: int, cost: float, now: float) -> None:
        """Host *index* did not; *cost*: the seconds that were spent on its silence."""
        health = self._health[index]
        self._health[index] = health._replace(
            status=_NEXT[health.status, FAILED], cost=cost, until=now + cost
        )

    def proof(self, index: int, witness: int, born: float, now: float) -> Verdict:
        """The connection *witness*, born at *born*, tells that its host ended it."""
        health = self._health[index]
        second = health.witness not in (0, witness) and now - health.witnessed <= WINDOW
        status = _NEXT[health.status, SECOND if second else PROOF]
        # One that stopped answering dials costs nothing to try again.
        until = now if status == DOWN != health.status else health.until
        self._health[index] = health._replace(
            status=status, witness=witness, witnessed=now, until=until
        )
        old = born < health.recovered
        return Verdict("drop" if second else "ask", health.recovered if old else float("inf"))
