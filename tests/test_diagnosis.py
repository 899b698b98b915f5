"""From the facts to a verdict: the table of its rules, and what the words contain."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from fastpool import DeadlineExceeded, Holder, PoolTimeout
from fastpool._diagnosis import judge, knot, tell
from fastpool.stats import Facts, Waiting

CALM = Facts(
    waited=10.0,
    size=4,
    max_size=4,
    idle=0,
    established=4,
    holders=(),
    waiting=0,
    waiters=(),
    connecting=0,
    backoff=0.0,
    down_for=None,
    error=None,
    error_age=None,
    error_is_news=False,
    leak_threshold=None,
)
"""A full pool in good health."""


def holder(age: float = 1.0, running: float | None = None, **more: Any) -> Holder:
    state: Any = "idle" if running is None else "active"
    given = {"site": "app.py:1", "thread_id": 7, "thread_name": "w", "state": state, **more}
    return Holder(age=age, running=running, **given)


def facts(*holders: Holder, **more: Any) -> Facts:
    return dataclasses.replace(CALM, holders=holders, **more)


SHORT = holder(0.1)
QUERY = holder(12.0, running=9.0)
BRIEF = holder(12.0, running=0.1)
LEAK = holder(31.0)
ENDED = holder(0.5, alive=False)

TABLE: dict[str, tuple[str | None, Facts]] = {
    "nothing was ever established": ("database down", facts(established=0, size=0)),
    "nothing is, and dials fail": (
        "database down",
        facts(established=0, error="x", error_age=1.0, error_is_news=True),
    ),
    "nothing is, nobody has waited": (None, facts(established=0, waited=0.0)),
    "nothing is, and that is known": (
        "database down",
        facts(established=0, waited=0.0, error="x", error_age=1.0, error_is_news=True),
    ),
    "one lacks, and dials fail": (
        "database down",
        facts(SHORT, SHORT, SHORT, established=3, error="x", error_age=1.0, error_is_news=True),
    ),
    "none lacks": (
        "too small",
        facts(*[SHORT] * 4, error="x", error_age=1.0, error_is_news=True),
    ),
    "one lacks, dials failed before": (
        "too small",
        facts(SHORT, SHORT, SHORT, established=3, error="x", error_age=99.0),
    ),
    "held for long, idle": ("leaked", facts(LEAK, SHORT, SHORT, SHORT)),
    "held for long, in a transaction": (
        "leaked",
        facts(holder(31.0, state="idle in transaction"), SHORT, SHORT, SHORT),
    ),
    "held for not so long": ("too small", facts(*[holder(29.0)] * 4)),
    "held for longer than the threshold": (
        "leaked",
        facts(holder(12.0), SHORT, leak_threshold=11.0),
    ),
    "held for less than the threshold": ("too small", facts(LEAK, SHORT, leak_threshold=60.0)),
    "held for less than the wait": ("too small", facts(LEAK, SHORT, waited=40.0)),
    "held for long, at work": ("too small", facts(*[holder(99.0, running=0.1)] * 4)),
    "its thread has ended": ("leaked", facts(ENDED, SHORT, SHORT)),
    "its thread has ended, another works on it": (
        "too small",
        facts(holder(0.5, running=0.1, alive=False), SHORT),
    ),
    "most in long calls": ("database slow", facts(QUERY, QUERY, QUERY, SHORT)),
    "half in long calls": ("too small", facts(QUERY, QUERY, SHORT, SHORT)),
    "all in calls that began just now": ("too small", facts(*[BRIEF] * 4)),
    "most in long calls, one leaked": ("database slow", facts(QUERY, QUERY, QUERY, LEAK)),
    "as many leaked as in long calls": ("leaked", facts(LEAK, LEAK, QUERY, QUERY)),
    "in a call for half the wait": ("database slow", facts(holder(9.0, running=5.0))),
    "in a call for less": ("too small", facts(holder(9.0, running=4.9))),
    "in calls, nobody has waited": ("too small", facts(QUERY, QUERY, waited=0.0)),
    "the pool has them all": ("database slow", facts()),
}


@pytest.mark.parametrize("case", TABLE)
def test_verdict(case: str) -> None:
    """Each rule of the verdict holds, up to its limits."""
    expected, given = TABLE[case]
    assert judge(given) == expected


@pytest.mark.parametrize("case", TABLE)
def test_words(case: str) -> None:
    """The text is one line, begins with the numbers, and names its verdict first."""
    verdict, given = TABLE[case]
    text = tell(given, judge(given))
    assert "\n" not in text
    assert text.startswith("(size ")
    assert verdict is None or f"): {verdict}: " in text


def test_all_that_is_said() -> None:
    """Holders, waiters, dials, backoff, the outage and its error are all in the text."""
    given = facts(
        LEAK,
        *[SHORT] * 6,
        waiting=3,
        waiters=(Waiting("app.py:9", 8, "x", 12.0),),
        connecting=2,
        backoff=0.25,
        down_for=33.0,
        error="Refused: two\nlines",
        error_age=1.5,
        error_is_news=True,
    )
    text = tell(given, judge(given))
    for part in (
        "(size 4/4, idle 0, waiting 3): leaked: the connection acquired at app.py:1 has been "
        "held for 31.0 s",
        "held by: app.py:1 (thread 'w', 31.0 s, idle); app.py:1 (thread 'w', 0.1 s, idle)",
        " and 2 more",
        "longest waiting: app.py:9 (thread 'x', 12.0 s)",
        "being dialled: 2",
        "succeeded for 33.0 s",
        "next attempt in 0.2 s",
        "last connect error: Refused: two lines (1.5 s ago)",
    ):
        assert part in text


def test_a_holder_in_one_line() -> None:
    """What a holder does is said after who it is."""
    assert str(QUERY) == "app.py:1 (thread 'w', 12.0 s, active for 9.0 s)"
    assert str(ENDED) == "app.py:1 (its thread has ended, 0.5 s, idle)"
    assert str(holder(state="idle in transaction")).endswith("1.0 s, idle in transaction)")


def test_words_of_a_deadlock() -> None:
    """Each thread is named with all that it holds and where it waits."""
    text = knot(
        facts(
            holder(site="a.py:1"),
            holder(site="a.py:2"),
            holder(site="b.py:3", thread_id=8),
            waiters=(Waiting("a.py:4", 7, "one", 0.0), Waiting("b.py:5", 8, "two", 0.0)),
        )
    )
    assert text.startswith("deadlock: each of the 3 connections")
    assert "thread 'one' holds a.py:1, a.py:2 and waits at a.py:4; " in text
    assert "thread 'two' holds b.py:3 and waits at b.py:5; " in text
    assert "max_size (4)" in text


def test_an_error_travels() -> None:
    """A PoolTimeout can be pickled with all that it carries."""
    error = PoolTimeout("late", timeout=1.0, verdict="leaked", facts=facts(LEAK), holders=(LEAK,))
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.verdict, copy.facts, copy.holders) == ("leaked", facts(LEAK), (LEAK,))
    late = DeadlineExceeded("late", outcome="cancelled")
    assert pickle.loads(pickle.dumps(late)).outcome == "cancelled"
