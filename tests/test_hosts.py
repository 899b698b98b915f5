"""Hosts: the order in which they are dialled, and what one connection's end says."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpool._hosts import DOWN, SUSPECT, UP, WINDOW, Health, Hosts, concerns_host, fits
from fastpool.conninfo import resolve
from fastpool.drivers.base import Role

COUNT = 3


def make(**params: str) -> Hosts:
    """The hosts a, b and c."""
    text = {"host": "a,b,c", "user": "u", "dbname": "d", **params}
    return Hosts(resolve(" ".join(f"{k}={v}" for k, v in text.items()), environ={}))


def tried(hosts: Hosts, now: float) -> list[int]:
    return [index for index, _ in hosts.order(now)]


# -- a model: what has happened to a host since it last answered ---------------------


@dataclass
class Past:
    """One host's history; everything else follows from it."""

    proofs: list[tuple[int, float]] = field(default_factory=list)
    down: bool = False
    until: float = 0.0
    cost: float = 0.0
    recovered: float = 0.0


@dataclass
class Model:
    pasts: list[Past] = field(default_factory=lambda: [Past() for _ in range(COUNT)])

    def answered(self, host: int, began: float) -> None:
        past = self.pasts[host]
        if past.proofs or past.down:
            self.pasts[host] = Past(recovered=max(past.recovered, began))

    def failed(self, host: int, took: float, now: float) -> None:
        past = self.pasts[host]
        past.down, past.cost, past.until = True, took, now + took

    def trying(self, host: int, now: float) -> None:
        past = self.pasts[host]
        if past.down:
            past.until = now + past.cost

    def proof(self, host: int, witness: int, born: float, now: float) -> tuple[str, float]:
        past = self.pasts[host]
        second = any(w != witness and now - at <= WINDOW for w, at in past.proofs[-1:])
        past.proofs.append((witness, now))
        if second and not past.down:
            past.down, past.until = True, now
        return ("drop" if second else "ask", past.recovered if born < past.recovered else math.inf)

    def order(self, now: float) -> list[int]:
        up = [i for i, past in enumerate(self.pasts) if not past.down]
        down = sorted((p.until, i) for i, p in enumerate(self.pasts) if p.down)
        return up + [i for until, i in down if until <= now] or [down[0][1]]

    def status(self, host: int) -> str:
        past = self.pasts[host]
        return DOWN if past.down else SUSPECT if past.proofs else UP


host_numbers = st.integers(0, COUNT - 1)
steps = st.one_of(
    st.tuples(st.just("answered"), host_numbers, st.floats(0, 3)),
    st.tuples(st.just("failed"), host_numbers, st.sampled_from([0.0, 0.5, 5.0])),
    st.tuples(st.just("trying"), host_numbers),
    st.tuples(st.just("proof"), host_numbers, st.integers(1, 3), st.floats(0, 3)),
    st.tuples(st.just("wait"), st.sampled_from([0.25, 1.0, 1.5, 6.0])),
)


@given(st.lists(steps, max_size=30))
def test_as_the_model(script: list[Any]) -> None:
    """Whatever happens in whatever order: status, verdicts and order follow from the history."""
    hosts, model, now = make(), Model(), 10.0
    for what, *given_ in script:
        if what == "wait":
            now += given_[0]
        elif what == "answered":
            host, ago = given_
            hosts.answered(host, now - ago)
            model.answered(host, now - ago)
        elif what == "proof":
            host, witness, ago = given_
            said = hosts.proof(host, witness, now - ago, now)
            assert said == model.proof(host, witness, now - ago, now)
        else:
            getattr(hosts, what)(*given_, now)
            getattr(model, what)(*given_, now)
        assert tried(hosts, now) == model.order(now)
        for host in range(COUNT):
            health = hosts.health(host)
            assert health.status == model.status(host)
            assert (health.witness == 0) or health.status != UP
            assert (health.until, health.cost) == (0.0, 0.0) or health.status == DOWN


# -- single rules ----------------------------------------------------------------------


def test_failed_is_last_until_it_answers() -> None:
    """A host that failed is tried after all others, and in its place again once it answered."""
    hosts = make()
    hosts.failed(0, 0.0, 100.0)
    assert tried(hosts, 1e6) == [1, 2, 0]
    hosts.answered(0, 1e6)
    assert tried(hosts, 1e6) == [0, 1, 2]
    assert hosts.health(0) == Health(recovered=1e6)


def test_slow_failures_are_not_repeated_at_once() -> None:
    """A host whose attempt took 5 s is left alone for 5 s, unless there is no other."""
    hosts = make()
    hosts.failed(0, 5.0, 100.0)
    for index in (1, 2):
        hosts.failed(index, 0.0, 101.0)
    assert tried(hosts, 102.0) == [1, 2]
    assert tried(hosts, 105.0) == [1, 2, 0]
    hosts.trying(0, 105.0)
    assert tried(hosts, 106.0) == [1, 2]  # one of several dials is enough to look
    for index in (1, 2):
        hosts.failed(index, 60.0, 106.0)
    assert tried(hosts, 107.0) == [0]


def test_suspicion_does_not_move_the_dials() -> None:
    """One backend that was terminated sends nobody to another host; two do."""
    hosts = make()
    hosts.proof(0, 1, 50.0, 100.0)
    assert tried(hosts, 100.0) == [0, 1, 2]
    hosts.proof(0, 2, 50.0, 100.5)
    assert tried(hosts, 100.5) == [1, 2, 0]


def test_second_proof() -> None:
    """Two connections within a second are an event; one twice, or later, is not."""
    hosts = make()
    assert hosts.proof(0, 1, 50.0, 100.0).what == "ask"
    assert hosts.proof(0, 1, 50.0, 100.1).what == "ask"
    assert hosts.proof(0, 2, 50.0, 101.2).what == "ask"
    assert hosts.proof(1, 3, 50.0, 101.3).what == "ask"
    assert hosts.proof(0, 3, 50.0, 102.1).what == "drop"


def test_old_ends_say_nothing_of_new_connections() -> None:
    """What was born before the trouble does not cast doubt on what was born after it."""
    hosts = make()
    assert hosts.proof(0, 1, 50.0, 100.0).born_before == math.inf
    hosts.answered(0, 101.0)
    assert hosts.proof(0, 2, 60.0, 102.0) == ("ask", 101.0)
    assert hosts.proof(0, 3, 60.0, 102.1) == ("drop", 101.0)
    assert hosts.proof(0, 4, 101.5, 102.2) == ("drop", math.inf)


def test_random_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """load_balance_hosts=random shuffles those that are up, and no others."""
    monkeypatch.setattr(random, "shuffle", lambda hosts: hosts.reverse())
    hosts = make(load_balance_hosts="random")
    hosts.failed(1, 0.0, 100.0)
    assert tried(hosts, 100.0) == [2, 0, 1]


def test_prefer_standby_dials_a_lone_host_once() -> None:
    """Where one is left it is taken as it is; otherwise the others are asked once more."""
    one = Hosts(resolve("host=a user=u target_session_attrs=prefer-standby", environ={}))
    assert one.order(0.0) == [(0, "any")]
    several = make(target_session_attrs="prefer-standby")
    assert several.order(0.0) == [
        (0, "standby"),
        (1, "standby"),
        (2, "any"),
        (0, "any"),
        (1, "any"),
    ]


@pytest.mark.parametrize(
    ("word", "concerns"),
    [
        ("57P01", True),
        ("57P02", True),
        ("57P03", True),
        ("", True),
        ("57P05", False),
        ("25P03", False),
        ("25P04", False),
        ("08006", False),
        (None, False),
    ],
)
def test_what_concerns_a_host(word: str | None, concerns: bool) -> None:
    """Shutdown, crash, start and silence do; one session's time-outs do not."""
    assert concerns_host(word) is concerns


def test_fits() -> None:
    """All six kinds, against the three kinds of server there are."""
    primary, locked, standby = Role(False, False), Role(False, True), Role(True, True)
    kinds = {
        "any": [primary, locked, standby],
        "prefer-standby": [primary, locked, standby],
        "read-write": [primary],
        "read-only": [locked, standby],
        "primary": [primary, locked],
        "standby": [standby],
    }
    for wanted, fitting in kinds.items():
        assert [role for role in (primary, locked, standby) if fits(role, wanted)] == fitting
