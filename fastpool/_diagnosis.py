"""Why a caller got nothing: from what is known at that moment to a verdict and words.

The rules of the verdict are :func:`judge`, and nowhere else. Nothing here looks at a
pool; ``_facts.py`` does that. What is said is one line, and has neither SQL nor
a setting that could be secret in it.
"""

from __future__ import annotations

from .errors import Verdict
from .stats import Facts, Holder

__all__ = ["explain", "judge", "knot", "standing", "tell"]

_LONG = 30.0
"""Seconds after which a connection held for nothing counts as leaked, where no
``leak_threshold`` says otherwise."""


def judge(facts: Facts) -> Verdict | None:
    """Why there was no connection; ``None`` when it is too early to say.

    * ``database down``: none is established, or there is room for one more and the
      last attempt to make it failed.
    * ``leaked``: somebody holds one whose thread has ended, or has held it for longer
      than the ``leak_threshold`` (30 s without one) and than the wait, while nothing
      runs on it; and no more of them are slow.
    * ``database slow``: on most of them a call has run for most of the wait; or the
      pool itself has them all, and waits for the server.
    * ``too small``: everything else. Connections come back, and go out again.
    """
    if facts.established == 0:
        return None if facts.error is None and facts.waited == 0 else "database down"
    if facts.error_is_news and facts.established < facts.max_size:
        return "database down"
    slow, leaks = _slow(facts), _leaks(facts)
    if leaks and len(leaks) >= len(slow):
        return "leaked"
    if 2 * len(slow) > len(facts.holders) or not facts.holders:
        return "database slow"
    return "too small"


def _leaks(facts: Facts) -> list[Holder]:
    limit = max(facts.leak_threshold or _LONG, facts.waited)
    return [h for h in facts.holders if h.state != "active" and (not h.alive or h.age > limit)]


def _slow(facts: Facts) -> list[Holder]:
    return [h for h in facts.holders if h.running is not None and 0 < facts.waited <= 2 * h.running]


def explain(facts: Facts, verdict: Verdict | None) -> str:
    """The verdict, why, and what to do about it."""
    if verdict == "database down":
        why = "no connection is established" if not facts.established else "new ones fail"
        return f"database down: {why}; see to the server, the network and the credentials"
    if verdict == "leaked":
        first = _leaks(facts)[0]
        why = (
            f"has been held for {first.age:.1f} s, and nothing runs on it"
            if first.alive
            else "was not given back before its thread ended"
        )
        return (
            f"leaked: the connection acquired at {first.site} {why}; "
            "release it, best by a with block"
        )
    if verdict == "database slow" and not facts.holders:
        return "database slow: nobody holds a connection, the pool itself waits for the server"
    if verdict == "database slow":
        slow = _slow(facts)
        longest = max(h.running or 0.0 for h in slow)
        return (
            f"database slow: in {len(slow)} of {len(facts.holders)} connections a call has run "
            f"for most of the wait, the longest for {longest:.1f} s; see pg_stat_activity and "
            "pg_locks, more connections would not help"
        )
    if verdict == "too small":
        return (
            "too small: all connections are in use and come back; hold them for less time, "
            f"or raise max_size ({facts.max_size})"
        )
    return ""


def tell(facts: Facts, verdict: Verdict | None, named: int = 5) -> str:
    """All there is to say about *facts*, in one line: the numbers, the verdict, who.
    Of the holders *named* are named."""
    numbers = f"(size {facts.size}/{facts.max_size}, idle {facts.idle}, waiting {facts.waiting})"
    parts = [explain(facts, verdict)]
    if facts.holders:
        who = "; ".join(map(standing, facts.holders[:named]))
        more = len(facts.holders) - named
        parts.append(f"held by: {who}{f' and {more} more' if more > 0 else ''}")
    if facts.waiters:
        oldest = facts.waiters[0]
        parts.append(f"longest waiting: {oldest}")
    if facts.connecting:
        parts.append(f"being dialled: {facts.connecting}")
    if facts.down_for is not None:
        parts.append(f"no attempt to connect has succeeded for {facts.down_for:.1f} s")
    if facts.backoff > 0:
        parts.append(f"next attempt in {facts.backoff:.1f} s")
    if facts.error is not None and facts.error_is_news:
        words = " ".join(facts.error.split())
        parts.append(f"last connect error: {words} ({facts.error_age:.1f} s ago)")
    return ": ".join(filter(None, [numbers, "; ".join(filter(None, parts))]))


def standing(holder: Holder) -> str:
    """A holder, and where its thread is, if that is elsewhere."""
    place = holder.now_at
    return str(holder) if place in (None, holder.site) else f"{holder}, now at {place}"


def knot(facts: Facts) -> str:
    """Who holds what and waits where, of a deadlock."""
    parts = []
    for waiter in facts.waiters:
        held = [h.site for h in facts.holders if h.thread_id == waiter.thread_id]
        if held:
            parts.append(
                f"thread {waiter.thread_name!r} holds {', '.join(held)} and waits at {waiter.site}"
            )
    return (
        f"deadlock: each of the {len(facts.holders)} connections is held by a thread that waits "
        f"here for one more: {'; '.join(parts)}; release the first before the second acquire, "
        f"or raise max_size ({facts.max_size}) above the number of such threads"
    )
