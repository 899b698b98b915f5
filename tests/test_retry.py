"""Retrying: what is worth it, when it is safe, how long it waits, and on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import math
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pg8000.exceptions
import pg8000.native
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import eventually, need

from fastpool import (
    ConfigError,
    ConnectFailed,
    ConnectionBusy,
    ConnectionReleased,
    DeadlineExceeded,
    Pool,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolTimeout,
    TooManyRequests,
    TransactionAborted,
)
from fastpool.retry import (
    RetryPolicy,
    is_retryable,
    may_have_run,
    run_in_transaction,
    sqlstate,
)
from fastpool.testing import LocalPostgres

# -- errors --------------------------------------------------------------------


def server(code: str, severity: str = "ERROR") -> Exception:
    """An ErrorResponse as pg8000 raises it."""
    fields = {"S": severity, "V": severity, "C": code, "M": "no", "D": "Key (secret)=(hunter2)"}
    error: Exception = pg8000.exceptions.DatabaseError(fields)
    return error


def driver(text: str = "network error") -> Exception:
    """An error of pg8000's own; by default the one for a lost connection."""
    error: Exception = pg8000.exceptions.InterfaceError(text)
    return error


def chain(*errors: BaseException) -> BaseException:
    """The first error, caused by the second, and so on."""
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    return errors[0]


def failed(*causes: BaseException, code: str | None = None) -> BaseException:
    """What the pool raises when it cannot connect."""
    return chain(ConnectFailed("cannot connect", sqlstate=code), *causes)


def cannot_connect(cause: OSError) -> BaseException:
    """What the driver raises when it cannot connect."""
    return chain(driver("cannot connect to db"), cause)


def unknown() -> TransactionAborted:
    """What a COMMIT without an answer raises."""
    return TransactionAborted("lost", outcome="unknown")


Make = Callable[[], BaseException]

# Worth another attempt, and nothing was done.
HARMLESS: dict[str, Make] = {
    "serialization failure": lambda: server("40001"),
    "deadlock": lambda: server("40P01"),
    "starting up": lambda: server("57P03", "FATAL"),
    "wrapped": lambda: chain(RuntimeError("mine"), ValueError("too"), server("40001")),
    "another driver's": lambda: chain(RuntimeError("mine"), with_code("40P01")),
    "recovery conflict": lambda: chain(driver(), server("40001", "FATAL")),
    "refused": lambda: ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    "refused, by the driver": lambda: cannot_connect(ConnectionRefusedError("refused")),
    "refused, by the pool": lambda: failed(cannot_connect(ConnectionRefusedError("refused"))),
    "starting up, by the pool": lambda: failed(server("57P03"), code="57P03"),
    "hung up on connecting": lambda: failed(driver()),
    "class 08 on connecting": lambda: failed(server("08006"), code="08006"),
    "reset on connecting": lambda: cannot_connect(ConnectionResetError("reset")),
    "time limit on connecting": lambda: failed(TimeoutError("took too long")),
    "time limit below pg8000's": lambda: cannot_connect(TimeoutError("timed out")),
    "no unix socket": lambda: cannot_connect(FileNotFoundError(errno.ENOENT, "no socket")),
    "handshake cut short": lambda: cannot_connect(ssl.SSLEOFError(8, "EOF")),
    "no route on connecting": lambda: cannot_connect(OSError(errno.EHOSTUNREACH, "no route")),
    "resolver busy": lambda: chain(driver("x"), socket.gaierror(socket.EAI_AGAIN, "later")),
    "rolled back for a deadlock": lambda: chain(TransactionAborted("no"), server("40P01")),
}

# Worth another attempt, but it may have been done already.
RISKY: dict[str, Make] = {
    "network error": driver,
    "network error, broken pipe": lambda: chain(driver(), BrokenPipeError("pipe")),
    "network error, killed": lambda: chain(driver(), server("57P01", "FATAL")),
    "reset": lambda: ConnectionResetError(errno.ECONNRESET, "reset"),
    "aborted": lambda: ConnectionAbortedError("aborted"),
    "broken pipe": lambda: BrokenPipeError("pipe"),
    "unacknowledged": lambda: TimeoutError(errno.ETIMEDOUT, "timed out"),
    "unreachable": lambda: OSError(errno.ENETUNREACH, "unreachable"),
    "end of TLS": lambda: ssl.SSLEOFError(8, "EOF"),
    "08000": lambda: server("08000"),
    "08003": lambda: server("08003"),
    "08006": lambda: server("08006"),
    "COMMIT without an answer": unknown,
    "COMMIT, network error": lambda: chain(unknown(), driver(), server("57P01", "FATAL")),
    "wrapped": lambda: chain(RuntimeError("mine"), driver()),
    "closed, since it was lost": lambda: chain(driver("connection is closed"), driver()),
    "closed, since it was reset": lambda: chain(driver("x"), ValueError(), BrokenPipeError("pipe")),
}

# Somebody gave up or was told to stop: never retried, whatever the cause.
OVER: dict[str, Make] = {
    "PoolTimeout": lambda: PoolTimeout("late"),
    "PoolDeadlock": lambda: PoolDeadlock("deadlock"),
    "PoolClosed": lambda: PoolClosed("closed"),
    "TooManyRequests": lambda: TooManyRequests("crowd"),
    "ConnectionReleased": lambda: ConnectionReleased("released"),
    "ConnectionBusy": lambda: ConnectionBusy("busy"),
    "ConfigError": lambda: ConfigError("wrong"),
    "PoolError": lambda: PoolError("hook"),
    "deadline, not sent": lambda: DeadlineExceeded("late", outcome="not_sent"),
    "deadline, cancelled": lambda: DeadlineExceeded("late", outcome="cancelled"),
    "deadline, unknown": lambda: DeadlineExceeded("late", outcome="unknown"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": SystemExit,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
}

# Would fail the same way again.
PERMANENT: dict[str, Make] = {
    "any exception": lambda: ValueError("x"),
    "a time limit of somebody's": lambda: TimeoutError("late"),
    "a missing file": lambda: FileNotFoundError(errno.ENOENT, "no file"),
    "certificate": lambda: ssl.SSLCertVerificationError(1, "self-signed"),
    "certificate, by the driver": lambda: cannot_connect(ssl.SSLCertVerificationError(1, "no")),
    "certificate, by the pool": lambda: failed(cannot_connect(ssl.SSLCertVerificationError(1))),
    "no such host": lambda: chain(driver("x"), socket.gaierror(socket.EAI_NONAME, "unknown")),
    "no password set": lambda: failed(driver("server asks for a password")),
    "wrong password": lambda: failed(server("28P01"), code="28P01"),
    "unexplained": failed,
    "closed": lambda: driver("connection is closed"),
    "rolled back": lambda: TransactionAborted("swallowed"),
    "OpenSSL's number is no errno": lambda: ssl.SSLError(errno.ETIMEDOUT, "x"),
    "SQLSTATE above a lost connection": lambda: chain(server("22012"), driver()),
    **{
        code: partial(server, code)
        for code in ("08001", "08P01", "22012", "23505", "40000", "40002", "40003", "42P01",
                     "53300", "55P03", "57014", "57P01", "57P02", "XX000")
    },
}  # fmt: skip


def with_code(code: str) -> Exception:
    """An error as psycopg and asyncpg shape theirs."""
    error = Exception("theirs")
    error.sqlstate = code  # type: ignore[attr-defined]
    return error


def each(*tables: dict[str, Make]) -> pytest.MarkDecorator:
    """One test for each error of *tables*."""
    pairs = [pair for table in tables for pair in table.items()]
    return pytest.mark.parametrize("make", [m for _, m in pairs], ids=[name for name, _ in pairs])


def any_of(*tables: dict[str, Make]) -> Any:
    """A strategy for the errors of *tables*."""
    makers = [make for table in tables for make in table.values()]
    return st.sampled_from(makers).map(lambda make: make())


@each(HARMLESS, RISKY)
def test_transient(make: Make) -> None:
    """What may pass by itself is retryable."""
    assert is_retryable(make())


@each(PERMANENT, OVER)
def test_not_transient(make: Make) -> None:
    """What would fail again, and whoever wants to stop, is not."""
    assert not is_retryable(make())


@each(RISKY)
def test_may_have_run(make: Make) -> None:
    """After a connection was lost in use, nobody knows."""
    assert may_have_run(make())


@each(HARMLESS)
def test_did_not_run(make: Make) -> None:
    """After the server's refusal or a failed connect nothing was done."""
    assert not may_have_run(make())


def test_outcomes_that_are_not_retried() -> None:
    """A deadline's outcome, a server that does not know, and an interrupt are understood too."""
    assert may_have_run(DeadlineExceeded("late", outcome="unknown"))
    assert not may_have_run(DeadlineExceeded("late", outcome="not_sent"))
    assert not may_have_run(DeadlineExceeded("late", outcome="cancelled"))
    assert not may_have_run(chain(TransactionAborted("no"), server("23505")))
    for code in ("40003", "57P01", "57P02", "08007", "08P01"):
        assert may_have_run(server(code))
        assert not may_have_run(failed(code=code))
    assert not may_have_run(server("57014"))
    assert may_have_run(KeyboardInterrupt())
    assert may_have_run(TimeoutError("the driver's own, in use"))
    assert not may_have_run(ValueError())


def test_none() -> None:
    """No error is nothing to retry."""
    assert not is_retryable(None)
    assert not may_have_run(None)
    assert sqlstate(None) is None


@given(
    outer=st.lists(any_of(HARMLESS, RISKY), max_size=2),
    over=any_of(OVER),
    inner=st.lists(any_of(HARMLESS, RISKY), max_size=2),
)
def test_whoever_gave_up_wins(
    outer: list[BaseException], over: BaseException, inner: list[BaseException]
) -> None:
    """A deadline or an interrupt anywhere among the causes rules a retry out."""
    assert not is_retryable(joined([*outer, over, *inner]))


@given(
    wrappers=st.lists(st.sampled_from([ValueError, RuntimeError, KeyError]), max_size=4),
    error=any_of(HARMLESS, RISKY, PERMANENT),
)
def test_wrapping_changes_nothing(wrappers: list[Any], error: BaseException) -> None:
    """Whatever the application wraps around an error, the answers are the same."""
    expected = is_retryable(error), may_have_run(error), sqlstate(error)
    wrapped = joined([*(wrapper("mine") for wrapper in wrappers), error])
    assert (is_retryable(wrapped), may_have_run(wrapped), sqlstate(wrapped)) == expected


def joined(parts: list[BaseException]) -> BaseException:
    """One chain of chains."""
    for part, cause in pairwise(parts):
        while part.__cause__ is not None:
            part = part.__cause__
        part.__cause__ = cause
    return parts[0]


def test_context_is_no_cause() -> None:
    """An error that merely happened while another was handled is judged by itself."""
    error = ValueError()
    error.__context__ = server("40001")
    assert not is_retryable(error)
    assert sqlstate(error) is None


def test_ring_of_causes() -> None:
    """A chain that bites its tail is walked once."""
    one, two = ValueError(), KeyError()
    chain(one, two, one)
    assert not is_retryable(one)
    assert sqlstate(one) is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (server("23505"), "23505"),
        (chain(driver(), server("57P01", "FATAL")), "57P01"),
        (ConnectFailed("no", sqlstate="28P01"), "28P01"),
        (chain(PoolTimeout("late"), server("53300", "FATAL")), "53300"),
        (chain(with_code("40001"), server("40P01")), "40001"),
        (driver(), None),
        (pg8000.exceptions.DatabaseError("not a dict"), None),
        (pg8000.exceptions.DatabaseError(), None),
        (with_code("not one"), None),
    ],
)
def test_sqlstate(error: BaseException, code: str | None) -> None:
    """The outermost SQLSTATE among the causes; None when there is none."""
    assert sqlstate(error) == code


def test_pg8000_is_not_imported() -> None:
    """Judging an error imports no driver and no TLS."""
    program = (
        "import sys; from fastpool.retry import is_retryable\n"
        "assert is_retryable(ConnectionResetError())\n"
        "print([m for m in ('pg8000', 'ssl') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# -- the policy ----------------------------------------------------------------


class World:
    """A clock that only sleeping and working move, and a function that fails."""

    def __init__(self, errors: list[BaseException] | None = None, work: float = 0.0) -> None:
        self.errors = list(errors or ())
        self.work = work
        self.now = 0.0
        self.calls = 0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    def policy(self, **settings: Any) -> RetryPolicy:
        return RetryPolicy(sleep=self.sleep, clock=lambda: self.now, **settings)

    def fn(self) -> str:
        self.calls += 1
        self.now += self.work
        if self.errors:
            raise self.errors.pop(0)
        return "done"


Way = Callable[[RetryPolicy, Callable[[], Any]], Any]


def by_call(policy: RetryPolicy, fn: Callable[[], Any]) -> Any:
    return policy.call(fn)


def by_loop(policy: RetryPolicy, fn: Callable[[], Any]) -> Any:
    result = None
    for attempt in policy:
        with attempt:
            result = fn()
    return result


class NoDatabase:
    """A pool whose transactions do nothing."""

    @contextlib.contextmanager
    def transaction(self, *, isolation: Any = None) -> Iterator[None]:
        yield


def by_transaction(policy: RetryPolicy, fn: Callable[[], Any]) -> Any:
    return run_in_transaction(NoDatabase(), lambda _conn: fn(), policy=policy)


ways = pytest.mark.parametrize("way", [by_call, by_loop, by_transaction])
every_way = st.sampled_from([by_call, by_loop, by_transaction])
seconds = st.floats(0.0, 100.0)


def outcome(way: Way, policy: RetryPolicy, world: World) -> tuple[Any, BaseException | None]:
    try:
        return way(policy, world.fn), None
    except Exception as error:
        return None, error


@given(
    way=every_way,
    attempts=st.integers(1, 6),
    failures=st.integers(0, 8),
    first=seconds,
    longer=seconds,
)
def test_schedule(way: Way, attempts: int, failures: int, first: float, longer: float) -> None:
    """Each wait is twice the last up to the maximum, with none after the last attempt,
    whose error is the one that is raised."""
    errors = [server("40001") for _ in range(failures)]
    world = World(list(errors))
    policy = world.policy(
        max_attempts=attempts, initial_wait=first, max_wait=first + longer, jitter="none"
    )
    result, error = outcome(way, policy, world)
    assert world.calls == min(attempts, failures + 1)
    expected, wait = [], first
    for _ in range(world.calls - 1):
        expected.append(wait)
        wait = min(wait * 2, first + longer)
    assert world.sleeps == expected
    if failures < attempts:
        assert (result, error) == ("done", None)
    else:
        assert error is errors[attempts - 1]


@given(attempt=st.integers(1, 5000), draw=st.floats(0.0, 1.0), first=seconds, longer=seconds)
def test_jitter(attempt: int, draw: float, first: float, longer: float) -> None:
    """Full jitter scales the exact wait by what was drawn; no number of attempts overflows."""
    policy = RetryPolicy(initial_wait=first, max_wait=first + longer, random=lambda: draw)
    exact = dataclasses.replace(policy, jitter="none").wait(attempt)
    assert policy.wait(attempt) == exact * draw
    assert exact <= first + longer


def test_jitter_is_drawn_for_each_wait() -> None:
    """Two waits of one policy differ, and so do those of two callers."""
    policy = RetryPolicy(initial_wait=1.0, max_wait=1.0)
    waits = {policy.wait(1) for _ in range(20)}
    assert len(waits) > 1
    assert all(0.0 <= wait < 1.0 for wait in waits)


@given(
    way=every_way,
    attempts=st.integers(1, 6),
    deadline=st.floats(-1.0, 30.0),
    work=st.floats(0.0, 5.0),
    first=st.floats(0.0, 5.0),
)
def test_deadline(way: Way, attempts: int, deadline: float, work: float, first: float) -> None:
    """No sleep reaches the deadline: the error of the attempt before it is raised at once."""
    errors = [server("40001") for _ in range(attempts)]
    world = World(list(errors), work)
    policy = world.policy(max_attempts=attempts, initial_wait=first, max_wait=8.0, jitter="none")
    _, error = outcome(way, policy.until(deadline), world)
    now, wait, calls = work, first, 1
    while calls < attempts and now + wait < deadline:
        now, wait, calls = now + wait + work, min(wait * 2, 8.0), calls + 1
    assert world.calls == calls
    assert error is errors[calls - 1]
    assert world.now == pytest.approx(now)


def test_until() -> None:
    """The earlier of two deadlines holds, and none adds none."""
    policy = RetryPolicy()
    assert policy.until(None) is policy
    assert policy.until(math.inf) is policy
    assert policy.until(5.0).until(7.0).deadline == 5.0
    assert policy.until(5.0).until(3.0).deadline == 3.0
    assert policy.deadline is None


@ways
@each(PERMANENT, OVER)
def test_not_repeated(way: Way, make: Make) -> None:
    """What is not retryable is raised at once, an interrupt too, and untouched."""
    error = make()
    world = World([error])
    policy = world.policy(max_attempts=5, idempotent=True)
    with pytest.raises(type(error)) as caught:
        way(policy, world.fn)
    assert caught.value is error
    assert (world.calls, world.sleeps) == (1, [])
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("way", [by_call, by_loop])
@each(RISKY)
def test_repeated_only_if_idempotent(way: Way, make: Make) -> None:
    """What may have run is repeated when the caller says so, and not otherwise."""
    world = World([make()])
    _, error = outcome(way, world.policy(), world)
    assert error is not None
    assert world.calls == 1
    world = World([make()])
    assert outcome(way, world.policy(idempotent=True), world) == ("done", None)
    assert world.calls == 2


@ways
@each(HARMLESS)
def test_harmless_is_repeated(way: Way, make: Make) -> None:
    """What surely did nothing is repeated under any policy."""
    world = World([make()])
    assert outcome(way, world.policy(), world) == ("done", None)
    assert world.calls == 2


@given(error=any_of(HARMLESS, RISKY, PERMANENT, OVER), idempotent=st.booleans())
def test_retries_is_what_the_policy_does(error: BaseException, idempotent: bool) -> None:
    """The predicate for other libraries agrees with the policy itself."""
    if not isinstance(error, Exception):
        return
    world = World([error])
    policy = world.policy(idempotent=idempotent)
    _, raised = outcome(by_call, policy, world)
    assert policy.retries(error) == (raised is None)


def test_own_predicate_cannot_make_it_unsafe() -> None:
    """retry_on says what is worth it; what may have run still needs idempotent=True."""
    world = World([ValueError(), DeadlineExceeded("late", outcome="unknown")])
    policy = world.policy(retry_on=lambda error: True)
    with pytest.raises(DeadlineExceeded):
        policy.call(world.fn)
    assert world.calls == 2
    world = World([KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        dataclasses.replace(policy, idempotent=True).call(world.fn)
    assert world.calls == 1


def test_call_passes_arguments() -> None:
    """call() takes any arguments, whatever their names."""

    def fn(*args: int, **kwargs: int) -> tuple[tuple[int, ...], dict[str, int]]:
        return args, kwargs

    assert RetryPolicy().call(fn, 1, 2, fn=3, self=4) == ((1, 2), {"fn": 3, "self": 4})


def test_loop_ends_when_left() -> None:
    """break, continue and an attempt that was never entered end the loop as a success does."""
    numbers = []
    for attempt in RetryPolicy():
        with attempt:
            numbers.append(attempt.number)
            break
    for attempt in RetryPolicy():
        with attempt:
            numbers.append(attempt.number)
            continue
    numbers += [attempt.number for attempt in RetryPolicy()]
    assert numbers == [1, 1, 1]


def test_cancelled_while_sleeping() -> None:
    """What ends the sleep ends the retrying."""

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    world = World([server("40001")])
    with pytest.raises(KeyboardInterrupt):
        RetryPolicy(sleep=sleep).call(world.fn)
    assert world.calls == 1


def test_lazy_functions_are_refused() -> None:
    """A generator's or coroutine's work would come after the last retry, and after COMMIT."""

    def generator(*conn: None) -> Iterator[int]:
        yield 1

    async def coroutine(*conn: None) -> None:
        pass

    for lazy in (generator, coroutine):
        with pytest.raises(TypeError, match="all its work"):
            RetryPolicy().call(lazy)
        with pytest.raises(TypeError, match="all its work"):
            run_in_transaction(NoDatabase(), lazy)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_attempts", value) for value in (0, -1, 1.5, "3", None, True)),
        *(("initial_wait", value) for value in (-0.1, math.nan, math.inf, "1", None, 10**400)),
        *(("max_wait", value) for value in (0.05, -1, math.nan, math.inf, None, 10**400)),
        *(("jitter", value) for value in ("half", None, 0.5, True, ["full"])),
        *(("idempotent", value) for value in (1, "yes", None)),
        *(("deadline", value) for value in (math.nan, math.inf, "soon", True, 10**400)),
        *((name, 1) for name in ("retry_on", "sleep", "random", "clock")),
    ],
)  # fmt: skip
def test_wrong_field(field: str, value: Any) -> None:
    """A wrong value is refused at once, by the field's name."""
    with pytest.raises(ConfigError, match=f"^{field} must be ") as caught:
        RetryPolicy(**{field: value})
    assert caught.value.setting == field


def test_policy_is_a_value() -> None:
    """A policy cannot be changed, can be compared, and shows what was set."""
    policy = RetryPolicy()
    assert (policy.max_attempts, policy.initial_wait, policy.max_wait) == (3, 0.1, 2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.max_attempts = 5  # type: ignore[misc]
    assert policy == RetryPolicy(max_attempts=3)
    assert {policy: 1}[RetryPolicy()] == 1
    assert "max_attempts=3" in repr(policy)


def test_log(caplog: pytest.LogCaptureFixture) -> None:
    """Each attempt that failed is told with its number, and nothing of the error's text."""
    caplog.set_level(logging.INFO, "fastpool")
    world = World([server("40001"), server("40P01"), server("40001")])
    with pytest.raises(pg8000.exceptions.DatabaseError):
        world.policy(jitter="none").call(world.fn)
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("fastpool", logging.INFO)
    ] * 3
    first, second, third = caplog.messages
    assert first == (
        "attempt 1 of 3 failed (DatabaseError, SQLSTATE 40001); the next follows in 0.100 s"
    )
    assert "attempt 2 of 3" in second
    assert "0.200 s" in second
    assert "attempt 3 of 3" in third
    assert "hunter2" not in caplog.text


def test_success_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a success nor what is no matter for a retry is logged."""
    caplog.set_level(logging.DEBUG, "fastpool")
    assert RetryPolicy().call(lambda: 1) == 1
    with pytest.raises(ValueError, match="x"):
        RetryPolicy().call(World([ValueError("x")]).fn)
    assert caplog.messages == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with Python 3.11")
@pytest.mark.parametrize(
    ("error", "settings", "said"),
    [
        (server("40001"), {}, "attempt 3 of 3 failed; no other followed: it was the last"),
        (driver(), {}, "attempt 1 of 3 failed; no other followed: it may have taken effect"),
        (server("40001"), {"deadline": 0.05}, "the deadline comes before the next"),
    ],
)
def test_note(error: Exception, settings: Any, said: str) -> None:
    """The error that is raised says how many attempts there were, and why no more."""
    world = World([error] * 3)
    with pytest.raises(type(error)) as caught:
        world.policy(jitter="none", **settings).call(world.fn)
    notes: list[str] = getattr(caught.value, "__notes__", [])
    (note,) = notes
    assert said in note


# -- transactions, on a script -------------------------------------------------


class Scripted:
    """A pool whose transactions fail where they are told to."""

    def __init__(self, **errors: BaseException) -> None:
        self.errors = errors
        self.isolation: list[Any] = []
        self.commits = 0

    def step(self, name: str) -> None:
        error = self.errors.pop(name, None)
        if error is not None:
            raise error

    @contextlib.contextmanager
    def transaction(self, *, isolation: Any = None) -> Iterator[Scripted]:
        self.isolation.append(isolation)
        self.step("begin")
        yield self
        self.step("commit")
        self.commits += 1


def run_scripted(pool: Scripted, **settings: Any) -> int:
    """How many attempts it took."""
    calls = []

    def fn(conn: Scripted) -> int:
        calls.append(1)
        conn.step("fn")
        return len(pool.isolation)

    policy = RetryPolicy(sleep=lambda seconds: None, **settings)
    return run_in_transaction(pool, fn, policy=policy, isolation="serializable")


@pytest.mark.parametrize("step", ["begin", "fn"])
def test_lost_before_commit(step: str) -> None:
    """Before COMMIT was sent the server rolls back: a lost connection is no danger."""
    pool = Scripted(**{step: driver()})
    assert run_scripted(pool) == 2
    assert pool.isolation == ["serializable"] * 2
    assert pool.commits == 1


@pytest.mark.parametrize("error", [unknown(), driver(), ConnectionResetError()], ids=repr)
def test_lost_at_commit(error: BaseException) -> None:
    """A COMMIT without an answer is repeated only if that does no harm."""
    pool = Scripted(commit=error)
    with pytest.raises(type(error)):
        run_scripted(pool)
    assert (len(pool.isolation), pool.commits) == (1, 0)
    pool = Scripted(commit=error)
    assert run_scripted(pool, idempotent=True) == 2


def test_refused_at_commit() -> None:
    """A COMMIT that the server refused was not done: it is repeated."""
    assert run_scripted(Scripted(commit=server("40001"))) == 2


@pytest.mark.parametrize(
    "error", [unknown(), chain(RuntimeError(), unknown())], ids=["itself", "wrapped"]
)
def test_unknown_outcome_inside(error: BaseException) -> None:
    """A transaction elsewhere whose outcome is unknown is not undone by this one."""
    pool = Scripted(fn=error)
    with pytest.raises(type(error)):
        run_scripted(pool)
    assert len(pool.isolation) == 1


def test_each_attempt_starts_anew() -> None:
    """That the first attempt came as far as COMMIT says nothing about the second."""
    pool = Scripted(commit=server("40001"))

    def fn(conn: Scripted) -> int:
        if len(conn.isolation) == 2:
            raise driver()
        return len(conn.isolation)

    policy = RetryPolicy(sleep=lambda seconds: None)
    assert run_in_transaction(pool, fn, policy=policy) == 3


# -- as a predicate for other libraries ----------------------------------------


def test_tenacity() -> None:
    """tenacity retries what is_retryable, or a policy's ``retries``, says."""
    tenacity = pytest.importorskip("tenacity", reason="tenacity is not installed")

    def run(world: World, predicate: Callable[[Any], bool]) -> Any:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(predicate),
            stop=tenacity.stop_after_attempt(3),
            sleep=world.sleep,
            reraise=True,
        )
        return retrying(world.fn)

    world = World([server("40001"), driver()])
    assert run(world, is_retryable) == "done"
    assert world.calls == 3
    world = World([server("40001"), driver()])
    with pytest.raises(pg8000.exceptions.InterfaceError):
        run(world, RetryPolicy().retries)
    assert world.calls == 2
    world = World([PoolTimeout("late")])
    with pytest.raises(PoolTimeout):
        run(world, is_retryable)
    assert world.calls == 1


def test_stamina() -> None:
    """stamina retries what is_retryable, or a policy's ``retries``, says."""
    stamina = pytest.importorskip("stamina", reason="stamina is not installed")

    def run(world: World, predicate: Callable[[Any], bool]) -> Any:
        return stamina.retry(on=predicate, attempts=3)(world.fn)()

    with stamina.set_testing(True, attempts=3):  # no waits
        world = World([server("40001"), driver()])
        assert run(world, is_retryable) == "done"
        assert world.calls == 3
        world = World([server("40001"), driver()])
        with pytest.raises(pg8000.exceptions.InterfaceError):
            run(world, RetryPolicy().retries)
        assert world.calls == 2
        world = World([PoolTimeout("late")])
        with pytest.raises(PoolTimeout):
            run(world, is_retryable)
        assert world.calls == 1


# -- on a real server ----------------------------------------------------------


@pytest.fixture(scope="module")
def pg() -> Iterator[LocalPostgres]:
    """A server that trusts everybody."""
    pg = LocalPostgres()
    try:
        pg.start()
    except FileNotFoundError as error:
        need(False, str(error))
    with pg:
        yield pg


@pytest.fixture
def other(pg: LocalPostgres) -> Iterator[pg8000.native.Connection]:
    """A connection beside the pool; the table ``account`` holds 0 under id 1 and 2."""
    conn = pg8000.native.Connection(
        pg.user, host=pg.host, port=pg.port, database=pg.dbname, ssl_context=False
    )
    conn.run("CREATE TABLE account (id int PRIMARY KEY, sum int NOT NULL)")
    conn.run("INSERT INTO account VALUES (1, 0), (2, 0)")
    yield conn
    conn.run("DROP TABLE account CASCADE")
    conn.close()


@pytest.fixture
def pool(
    pg: LocalPostgres, other: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pool[pg8000.native.Connection]]:
    """A pool of one connection, which looks for deadlocks at once."""
    for name in os.environ:
        if name.startswith(("PG", "DB_")):
            monkeypatch.delenv(name)
    dsn = f"{pg.dsn}?sslmode=disable"
    settings = {"deadlock_timeout": "10ms"}
    with Pool(dsn, min_size=0, max_size=1, session_settings=settings) as pool:
        yield pool


QUICK = RetryPolicy(initial_wait=0.001, max_wait=0.001)
SUM = "SELECT sum FROM account WHERE id = 1"
SET = "UPDATE account SET sum = :n WHERE id = 1"
ADD = "UPDATE account SET sum = sum + 1 WHERE id = 1"


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_serialization_failure(pool: Pool[Any], other: Any, isolation: str) -> None:
    """Two that read and then write the same row: both writes count in the end."""
    seen: list[int] = []

    def increment(conn: Any) -> int:
        seen.append(conn.run(SUM)[0][0])
        if len(seen) == 1:
            other.run(ADD)
        conn.run(SET, n=seen[-1] + 1)
        return seen[-1]

    assert run_in_transaction(pool, increment, policy=QUICK, isolation=isolation) == 1
    assert seen == [0, 1]
    assert other.run(SUM) == [[2]]


def test_serialization_failure_at_commit(pool: Pool[Any], other: Any) -> None:
    """Write skew shows at COMMIT only; the transaction runs again and sees the other's row."""
    seen = []

    def fill(conn: Any) -> None:
        seen.append(conn.run("SELECT sum(sum) FROM account")[0][0])
        conn.run("UPDATE account SET sum = 1 WHERE id = 1")
        if len(seen) == 1:
            other.run("BEGIN ISOLATION LEVEL SERIALIZABLE")
            other.run("SELECT sum(sum) FROM account")
            other.run("UPDATE account SET sum = 10 WHERE id = 2")
            other.run("COMMIT")

    run_in_transaction(pool, fill, policy=QUICK, isolation="serializable")
    assert seen == [0, 10]


def test_deadlock(pool: Pool[Any], other: Any, pg: LocalPostgres) -> None:
    """The victim of a deadlock runs again, and both transactions are done."""
    lock = "UPDATE account SET sum = sum + 1 WHERE id = "
    calls = []
    thread = threading.Thread(target=lambda: (other.run(lock + "1"), other.run("COMMIT")))
    other_pid = other.run("SELECT pg_backend_pid()")[0][0]
    other.run("SET deadlock_timeout = '60s'")  # so the other is never the victim
    other.run("BEGIN")
    other.run(lock + "2")

    def fn(conn: Any) -> None:
        calls.append(1)
        conn.run(lock + "1")
        if len(calls) == 1:
            thread.start()
            waiting = "SELECT cardinality(pg_blocking_pids(:pid))"
            eventually(lambda: conn.run(waiting, pid=other_pid) == [[1]])
        conn.run(lock + "2")

    run_in_transaction(pool, fn, policy=QUICK)
    thread.join(20)
    assert len(calls) == 2
    assert other.run("SELECT sum FROM account ORDER BY id") == [[2], [2]]


def test_killed_in_a_transaction(pool: Pool[Any], other: Any) -> None:
    """A session that ends in mid-transaction left nothing: the work is done exactly once."""
    calls = []

    def fn(conn: Any) -> None:
        calls.append(1)
        conn.run(ADD)
        if len(calls) == 1:
            conn.run("SELECT pg_terminate_backend(pg_backend_pid())")

    run_in_transaction(pool, fn, policy=QUICK)
    assert len(calls) == 2
    assert other.run(SUM) == [[1]]


@pytest.fixture
def deadly_commit(other: Any) -> Iterator[None]:
    """The first COMMIT after an UPDATE of ``account`` kills its own session."""
    other.run("CREATE SEQUENCE commits")
    other.run(
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('commits') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; "
        "RETURN NULL; END $$"
    )
    other.run(
        "CREATE CONSTRAINT TRIGGER dying AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION die()"
    )
    yield
    other.run("DROP FUNCTION die CASCADE")
    other.run("DROP SEQUENCE commits")


@pytest.mark.usefixtures("deadly_commit")
@pytest.mark.parametrize("idempotent", [False, True])
def test_killed_at_commit(pool: Pool[Any], idempotent: bool) -> None:
    """The lost answer to a COMMIT is the caller's to decide."""
    calls = []

    def fn(conn: Any) -> None:
        calls.append(1)
        conn.run(ADD)

    policy = dataclasses.replace(QUICK, idempotent=idempotent)
    if idempotent:
        run_in_transaction(pool, fn, policy=policy)
    else:
        with pytest.raises(TransactionAborted) as caught:
            run_in_transaction(pool, fn, policy=policy)
        assert caught.value.outcome == "unknown"
        assert sqlstate(caught.value) == "57P01"
    assert len(calls) == 1 + idempotent


@pytest.mark.parametrize("idempotent", [False, True])
def test_killed_in_a_statement(pool: Pool[Any], idempotent: bool) -> None:
    """A statement outside a transaction whose answer was lost is the caller's to decide."""
    calls = []

    def fn() -> Any:
        calls.append(1)
        kill = "SELECT pg_terminate_backend(pg_backend_pid())"
        return pool.run(kill if len(calls) == 1 else "SELECT 1")

    policy = dataclasses.replace(QUICK, idempotent=idempotent)
    if idempotent:
        assert policy.call(fn) == [[1]]
    else:
        with pytest.raises(pg8000.exceptions.InterfaceError):
            policy.call(fn)
    assert len(calls) == 1 + idempotent


def test_plain_pg8000_is_understood(pg: LocalPostgres) -> None:
    """What pg8000 itself says when a connection is lost, or not to be had, is known here."""
    arguments: dict[str, Any] = {"host": pg.host, "database": pg.dbname, "ssl_context": False}
    conn = pg8000.native.Connection(pg.user, port=pg.port, **arguments)
    with pytest.raises(pg8000.exceptions.InterfaceError) as lost:
        conn.run("SELECT pg_terminate_backend(pg_backend_pid())")
    os.close(conn._usock.detach())  # its own close() leaves a dead one's descriptor open
    assert is_retryable(lost.value)
    assert may_have_run(lost.value)
    with socket.create_server((pg.host, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(pg8000.exceptions.InterfaceError) as refused:
        pg8000.native.Connection(pg.user, port=port, **arguments)
    assert is_retryable(refused.value)
    assert not may_have_run(refused.value)


def test_pool_that_fails_fast(pg: LocalPostgres) -> None:
    """ConnectFailed is retried when nobody listens, and not when there is no such database."""
    with socket.create_server((pg.host, 0)) as listener:
        port = listener.getsockname()[1]
    dsn = f"postgresql://{pg.user}@{pg.host}:{port}/{pg.dbname}?sslmode=disable"
    with Pool(dsn, min_size=0, fail_fast_after=0.001, timeout=10.0) as pool:
        eventually(lambda: isinstance(failure_of(pool.run, "SELECT 1"), ConnectFailed))
        world = World()

        def fn() -> Any:
            world.calls += 1
            return pool.run("SELECT 1")

        with pytest.raises(ConnectFailed):
            world.policy().call(fn)
        assert world.calls == 3
    dsn = f"postgresql://{pg.user}@{pg.host}:{pg.port}/missing?sslmode=disable"
    with Pool(dsn, min_size=0, timeout=10.0) as pool:
        error = failure_of(QUICK.call, pool.run, "SELECT 1")
        assert isinstance(error, ConnectFailed)
        assert error.sqlstate == sqlstate(error) == "3D000"
        assert not is_retryable(error)


def failure_of(fn: Callable[..., Any], *args: Any) -> BaseException | None:
    try:
        fn(*args)
    except Exception as error:
        return error
    return None
