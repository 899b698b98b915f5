"""From the end of one connection to what is done with the others of its host.

Evidence is what ``_hosts.concerns_host`` says, and a connection whose server
turned out to be another kind than the pool wants. The first proof costs little,
since one backend that was terminated looks alike: the host's idle connections are
pinged before they are handed out. A second one, of another connection within a
second, closes them unasked. Connections in use are judged when they come back.

Everything here runs outside the core, in any thread.
"""

from __future__ import annotations

from typing import Any

from ._hosts import Hosts, concerns_host, fits
from ._impl import Core, Entry
from ._logs import Log
from .drivers.base import Driver

__all__ = ["Liveness"]


class Liveness:
    """What one pool concludes from its connections' ends."""

    def __init__(self, core: Core, hosts: Hosts, driver: Driver[Any], log: Log) -> None:
        self._core = core
        self._hosts = hosts
        self._driver = driver
        self._log = log
        self._told = False

    def lost(self, entry: Entry) -> None:
        """*entry* is dead. The caller has it, or it is on its way out."""
        try:
            word = self._driver.last_word(entry.conn)
        except Exception as error:  # it may be closed meanwhile, by the end of the pool
            self._log.info("dead", "how a connection ended is not known: %s", error)
            return
        if word == "57P05":
            self.ends_idle("has ended an idle session")
        if concerns_host(word):
            self._prove(entry, f"ended by its server ({word or 'without a word'})")

    def ends_idle(self, how: str) -> None:
        """Tell once that the server ends idle sessions before the pool would."""
        if not self._told:
            self._told = True
            self._log.warning(
                "idle_limit",
                "the server %s (idle_session_timeout); max_idle_time should be less",
                how,
            )

    def misfit(self, entry: Entry) -> None:
        """The server of *entry* refused a write as read-only, or is not what is
        wanted any more."""
        self._prove(entry, "on a server that has become read-only, or another kind")

    @property
    def minds_read_only(self) -> bool:
        """Does a refused write say anything? Not where a replica is wanted."""
        return self._hosts.wanted not in ("read-only", "standby", "prefer-standby")

    def fits(self, entry: Entry) -> bool:
        """Is the server of *entry* still what ``target_session_attrs`` wants? As it
        said with its last answer."""
        wanted = self._hosts.wanted
        return fits(self._driver.role(entry.conn), wanted) if wanted != "any" else True

    def leaving(self, host: int) -> None:
        """*host* is starting or shutting down: let its connections go, so that it
        need not wait for them."""
        for entry in list(self._core.entries):
            if entry.host == host:
                self._core.outdate(entry)
                self._core.retire(entry, 0, "drained")

    def _prove(self, entry: Entry, how: str) -> None:
        what, born_before = self._hosts.proof(entry.host, id(entry), entry.born, self._core.now())
        self._log.info(
            "host_suspect",
            "a connection to %s was %s: others are %s",
            self._hosts.name(entry.host),
            how,
            "pinged first" if what == "ask" else "closed",
        )
        for other in self._core.idle_entries():
            if other.host == entry.host and other.born < born_before:
                if what == "ask":
                    self._core.suspect(other)
                else:
                    self._core.retire(other, 0, "dead")
