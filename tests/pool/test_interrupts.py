"""An interrupt at every point of what a caller does with a pool; afterwards it is whole.

``tests/core/test_interrupts.py`` has the core alone, and says where interrupts can
land. Here it is the whole way: the core that is in force, the house, hooks, the driver,
and the caller's own lines.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from pool.kit import PATIENCE, eventually, filled

from fastpool import Pool, PoolTimeout
from fastpool.retry import RetryPolicy
from fastpool.testing import StubConnection, StubDriver, StubError

Make = Callable[..., Pool[StubConnection]]
Scenario = Callable[[Pool[StubConnection]], None]

SIZE = 2


class Interrupt(BaseException):
    """What arrives from outside, like KeyboardInterrupt."""


class Injector:
    """Raises Interrupt at the *point*-th place of this thread where one can land: where
    a function is entered, after a call of C, and before one in the scenario's lines."""

    def __init__(self, point: int, scenario: Scenario) -> None:
        self.left = point
        self.seen = 0
        self.code = scenario.__code__
        self.place = ""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if self.place or arg is sys.setprofile or event not in ("call", "c_call", "c_return"):
            return
        if event == "c_call" and frame.f_code is not self.code:
            return
        above: FrameType | None = frame
        while above is not None:
            # That would be a second interrupt within the first.
            if above.f_code.co_name == "__del__":
                return
            above = above.f_back
        self.seen += 1
        if self.left == 0:
            self.place = f"{event} in {frame.f_code.co_name}:{frame.f_lineno} {arg!r}"
            raise Interrupt
        self.left -= 1


def block(pool: Pool[StubConnection]) -> None:
    """Blocks: nothing to commit, something to commit, and one that raises."""
    with pool.connection():
        pass
    with pool.connection() as conn:
        conn.run("BEGIN")
    try:
        with pool.connection(1.0) as conn:
            conn.run("BEGIN")
            raise KeyError
    except KeyError:
        pass


def run(pool: Pool[StubConnection]) -> None:
    """Calls that acquire and release by themselves."""
    pool.run("SELECT 1")
    pool.within(timeout=1.0).run("SELECT 1")


def ping(pool: Pool[StubConnection]) -> None:
    """A round trip by hand."""
    pool.ping()


def transaction(pool: Pool[StubConnection]) -> None:
    """Transactions, nested ones too, that end well and badly."""
    with pool.transaction() as conn, conn.transaction():
        conn.run("SELECT 1")
    try:
        with pool.transaction():
            raise KeyError
    except KeyError:
        pass


def retried(pool: Pool[StubConnection]) -> None:
    """Under a policy."""
    policy = RetryPolicy(max_attempts=2)
    pool.retry(policy).run("SELECT 1")
    pool.run_in_transaction(lambda conn: conn.run("SELECT 1"), policy=policy)


def rolled_back(pool: Pool[StubConnection]) -> None:
    """Returns with a rollback, with a reset, and with something of the client's."""
    for sql in ("BEGIN", "SET a = 1", "NOTICE"):
        lease = pool.acquire()
        lease.run(sql)
        lease.release()


def given_up(pool: Pool[StubConnection]) -> None:
    """Connections that do not come back: lost, and invalid."""
    lease = pool.acquire()
    try:
        lease.run("LOSE")
    except StubError:
        lease.release()
    pool.invalidate(pool.acquire())


def waited(pool: Pool[StubConnection]) -> None:
    """A wait for a new connection, a wait in vain, and a look."""
    held = [pool.acquire(), pool.acquire()]
    pool.invalidate(held.pop())
    held.append(pool.acquire())
    try:
        pool.acquire(0.0001)
    except PoolTimeout:
        assert pool.try_acquire() is None
    for lease in held:
        lease.release()


def drained(pool: Pool[StubConnection]) -> None:
    """Settings that change, and connections that all go."""
    pool.resize(max_size=SIZE)
    pool.drain()


SCENARIOS = [
    block,
    run,
    ping,
    transaction,
    retried,
    rolled_back,
    given_up,
    waited,
    drained,
]


@pytest.fixture(autouse=True)
def _collect_only_when_told(
    monkeypatch: pytest.MonkeyPatch, bystanders_away: None
) -> Iterator[None]:
    nowhere: list[type] = []  # interrupts of finalizers: of a generator that was left, say
    monkeypatch.setattr(sys, "unraisablehook", lambda args: nowhere.append(args.exc_type))
    gc.disable()
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of leases that were lost
        yield
    gc.enable()
    assert set(nowhere) <= {Interrupt}


def interrupted(pool: Pool[StubConnection], scenario: Scenario, injector: Injector) -> bool:
    try:
        sys.setprofile(injector)
        try:
            scenario(pool)
        finally:
            sys.setprofile(None)
    except Interrupt:
        if scenario is not waited:  # which has both
            pool.run("SELECT 1")  # the thread goes on while it handles the interrupt
        return True
    except BaseException:
        # In place of the interrupt, or because of it.
        assert injector.place
        return True
    return False


def check_whole(pool: Pool[StubConnection], driver: StubDriver) -> None:
    """All slots are there, clean, and this thread may use and wait for them."""
    gc.collect()
    core = pool._core
    eventually(lambda: core.idle == core.size == driver.open_now == SIZE, repr(pool))
    assert (core.waiting, len(core.closing), driver.most_open) == (0, 0, SIZE)
    assert all(entry.state.flags == 0 for entry in core.entries)
    held = [pool.acquire(PATIENCE) for _ in range(SIZE)]
    assert len({conn.driver_connection.number for conn in held}) == SIZE
    assert all(conn.run("SELECT 1") for conn in held)
    with pytest.raises(PoolTimeout):
        pool.acquire(1e-6)
    for lease in held:
        lease.release()


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything-on": {
        "check": "ping",
        "reset": lambda conn: conn.run("MINE"),
        "after_connect": lambda conn: None,
        "before_acquire": lambda conn: True,
        "after_release": lambda conn: True,
        "before_close": lambda conn: None,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_at_every_point(
    make: Make, driver: StubDriver, scenario: Scenario, settings: dict[str, Any]
) -> None:
    """Interrupted anywhere, a caller loses nothing for the pool and nothing for itself."""
    # No rounds of the keeper: they would find what it was not told of.
    seldom = {"health_check_period": 3600, "check_after_idle": None, "max_idle_time": None}
    pool = make(min_size=SIZE, max_size=SIZE, connect_backoff=0.001, **seldom, **settings)
    filled(pool)
    for _ in range(2):  # the first run fills what caches there are
        whole = Injector(-1, scenario)
        assert not interrupted(pool, scenario, whole)
        check_whole(pool, driver)
    for point in range(10_000):
        injector = Injector(point, scenario)
        went = interrupted(pool, scenario, injector)
        try:
            check_whole(pool, driver)
        except BaseException as error:
            raise AssertionError(f"point {point}, {injector.place}: {error}") from error
        assert injector.place or not went
        if point >= whole.seen and not went:
            break  # before that it was a run with fewer points, as threads met
    assert point > 10
