"""Trying again: which errors are worth it, how long to wait, and what is safe.

Two questions are kept apart. :func:`is_retryable`: will the same call perhaps
succeed a moment later? :func:`may_have_run`: did the failed one perhaps do its
work all the same? A lost connection says yes to both, and repeating an INSERT
after it may insert twice. So a :class:`RetryPolicy` repeats what surely left
nothing behind, and the rest only with ``idempotent=True``.

Both questions are answered by one walk along ``__cause__``, from the outside in:
the first error that the tables below know decides. Whoever gave up waiting, or
was told to stop, is not asked to begin again, whatever lies below.
"""

from __future__ import annotations

import errno
import inspect
import itertools
import math
import random as _random
import reprlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, TypeVar

from . import _deadline
from ._logs import Log
from .errors import (
    ConfigError,
    ConnectFailed,
    DeadlineExceeded,
    PoolError,
    TransactionAborted,
    causes,
)

__all__ = [
    "Attempt",
    "RetryPolicy",
    "is_retryable",
    "may_have_run",
    "run_in_transaction",
    "sqlstate",
]

_log = Log()

P = ParamSpec("P")
T = TypeVar("T")
ConnT = TypeVar("ConnT")
ConnT_co = TypeVar("ConnT_co", covariant=True)

_ROLLED_BACK = frozenset(
    (
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "57P03",  # cannot_connect_now
    )
)
"""The server's word that nothing was done, and that it may work next time."""
_RETRYABLE = _ROLLED_BACK | {
    "08000",  # connection_exception
    "08003",  # connection_does_not_exist
    "08006",  # connection_failure
}
_UNKNOWN = frozenset(
    (
        "40003",  # statement_completion_unknown
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
    )
)
"""The session ended, or the server itself does not know what became of the work.
So do all of class 08: a proxy or a foreign server may have lost only the answer."""

_MAX_SECONDS = 1e9  # 31 years; time.sleep() takes not much more
_LONGEST = sys.float_info.max

_UNREACHABLE = frozenset(
    (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN)
)


class _Verdict(NamedTuple):
    retryable: bool
    may_have_run: bool


_NO = _Verdict(False, False)


def sqlstate(exc: BaseException | None) -> str | None:
    """The SQLSTATE that *exc* or one of its causes carries, the outermost one.

    Known are pg8000's errors and any with a ``sqlstate`` attribute: those of
    fastpool, psycopg and asyncpg. See the PostgreSQL manual, "PostgreSQL Error
    Codes". ``None`` when the server had no say.
    """
    return next(filter(None, map(_code, causes(exc))), None)


def is_retryable(exc: BaseException | None) -> bool:
    """Whether the same call may succeed a moment later.

    Never, wherever it stands among the causes: an interrupt or cancellation (what
    is no ``Exception``), and every ``PoolError`` (``PoolTimeout``,
    ``DeadlineExceeded``, ``PoolClosed``, ``TooManyRequests``, ...) but the two
    named below. Else the first of these that is found decides:

    * a SQLSTATE: 40001, 40P01, 57P03, 08000, 08003 and 08006, and no other;
    * a lost connection: pg8000's ``InterfaceError("network error")``, a
      ``ConnectionError`` (refused, reset, aborted, broken pipe), an end of TLS
      in mid-stream, or the kernel's word that the host cannot be reached;
    * a host name that cannot be resolved *now* (``EAI_AGAIN``). One that does not
      exist (``EAI_NONAME``) is taken for a typing error;
    * ``ConnectFailed`` and pg8000's errors in connecting: as their cause. There a
      passed time limit and a missing unix socket count too (the server is
      starting). A certificate that is not accepted never does;
    * ``TransactionAborted`` with ``outcome="unknown"``.

    A ``TimeoutError`` that is not from connecting and not from the kernel is
    somebody's deadline: no.

    True does not mean that a repetition is *safe*: ask :func:`may_have_run` too,
    or use :meth:`RetryPolicy.retries`, which asks both. ``None`` gives False.
    Fits as ``tenacity.retry_if_exception(is_retryable)`` and as
    ``stamina.retry(on=is_retryable)``.
    """
    return _judge(exc).retryable


def may_have_run(exc: BaseException | None) -> bool:
    """Whether what failed may have taken effect on the server all the same.

    True when the connection was lost in use, when a COMMIT or a statement under a
    deadline ended with ``outcome="unknown"``, for an interrupt, and for SQLSTATEs
    that say so (class 08, 40003, 57P01, 57P02). False when the server refused, when
    nothing was sent, and for errors that are not about a connection at all.
    """
    return _outcome_unknown(exc) or _judge(exc).may_have_run


def _outcome_unknown(exc: BaseException | None) -> bool:
    """Whether the pool itself says so."""
    return any(
        isinstance(link, DeadlineExceeded | TransactionAborted) and link.outcome == "unknown"
        for link in causes(exc)
    )


def _judge(exc: BaseException | None) -> _Verdict:
    links = list(causes(exc))
    # Before all else: these may be TimeoutErrors, and a network error may be their cause.
    for link in links:
        if not isinstance(link, Exception):
            return _Verdict(False, True)  # whom it interrupted, and where, nobody knows
        if isinstance(link, PoolError) and not isinstance(link, ConnectFailed | TransactionAborted):
            return _NO
    connecting = False
    for link in links:
        if isinstance(link, ConnectFailed):
            connecting = True
        elif isinstance(link, TransactionAborted) and link.outcome == "unknown":
            return _Verdict(True, True)
        code = _code(link)
        if code is not None:
            unknown = code in _UNKNOWN or code[:2] == "08"
            return _Verdict(code in _RETRYABLE, unknown and not connecting)
        if isinstance(link, _loaded("pg8000.exceptions", "InterfaceError")):
            if link.args == ("network error",):
                # The cause, where there is one, is the server's last word.
                answered = _code(link.__cause__) in _ROLLED_BACK
                return _Verdict(True, not connecting and not answered)
            if isinstance(link.__cause__, OSError):
                connecting = True
        elif isinstance(link, OSError):
            return _judge_os_error(link, connecting)
    return _NO


def _judge_os_error(error: OSError, connecting: bool) -> _Verdict:
    if isinstance(error, _loaded("socket", "gaierror")):
        return _Verdict(error.errno == sys.modules["socket"].EAI_AGAIN, False)
    if isinstance(error, _loaded("ssl", "SSLError")):  # its errno is OpenSSL's own
        ended = isinstance(error, _loaded("ssl", "SSLEOFError"))
        return _Verdict(ended, ended and not connecting)
    if isinstance(error, ConnectionRefusedError):
        return _Verdict(True, False)
    if isinstance(error, ConnectionError) or error.errno in _UNREACHABLE:
        return _Verdict(True, not connecting)
    if isinstance(error, TimeoutError):
        return _Verdict(connecting, not connecting)
    return _Verdict(connecting and error.errno == errno.ENOENT, False)


def _code(error: BaseException | None) -> str | None:
    """The SQLSTATE of this error alone."""
    code = getattr(error, "sqlstate", None)
    if isinstance(error, _loaded("pg8000.exceptions", "DatabaseError")):
        fields = error.args[0] if error.args else None
        code = fields.get("C") if isinstance(fields, dict) else None
    return code if isinstance(code, str) and len(code) == 5 else None


def _loaded(module: str, name: str) -> Any:
    """A class out of a module that nobody need have imported: then no object is of it."""
    return getattr(sys.modules.get(module), name, ())


# -- the policy ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often and when to try again. Immutable; may be shared by all threads.

    Use it around *one unit of work*, which leaves nothing behind when it raises
    and has read all of its result when it returns::

        policy = RetryPolicy(max_attempts=5)
        rows = policy.call(pool.run, "SELECT id FROM t WHERE a = :a", a=1)

        for attempt in policy:
            with attempt, pool.connection() as conn:
                rows = conn.run("SELECT ...")

    The first success ends it. What is not to be retried is raised at once, and
    the last attempt's error when there is none left, as it is; from Python 3.11
    on with a note that says why there was no other attempt. Each failed attempt
    that might have been repeated is logged at INFO on ``fastpool``, by type and
    SQLSTATE: an error's text may quote the user's data.

    Raises ``ConfigError``, which names the field.
    """

    max_attempts: int = 3
    """Attempts in all, the first included: 1 never repeats."""
    initial_wait: float = 0.1
    """Seconds after the first failure; after each further one twice as long."""
    max_wait: float = 2.0
    """Seconds that no wait exceeds."""
    jitter: Literal["full", "none"] = "full"
    """``full``: each wait is drawn evenly from 0 up to that time, so that those who
    failed together do not come back together (AWS, "Exponential Backoff And
    Jitter"). ``none``: exactly that time."""
    idempotent: bool = False
    """The work may be done twice without harm: repeat it even if it
    :func:`may_have_run`."""
    deadline: float | None = None
    """On ``time.monotonic()``: no wait that would last until then is begun, the
    error is raised instead. See :meth:`until`. The deadline of a
    ``with fastpool.deadline(...)`` around counts as well."""
    retry_on: Callable[[Exception], bool] = is_retryable
    """Which errors are worth another attempt. Cannot make a repetition unsafe:
    that takes ``idempotent``."""
    sleep: Callable[[float], object] = field(default=time.sleep, repr=False)
    """Waits that many seconds. An exception from it, such as a cancellation, is
    passed on."""
    random: Callable[[], float] = field(default=_random.random, repr=False)
    """Draws from [0, 1)."""
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    """Tells the time that ``deadline`` is on."""

    def __post_init__(self) -> None:
        if not _is_whole(self.max_attempts) or self.max_attempts < 1:
            raise _refuse("max_attempts", "an integer from 1", self.max_attempts)
        if not _is_within(self.initial_wait, 0.0, _MAX_SECONDS):
            accepts = f"a number of seconds from 0 to {_MAX_SECONDS:.0f}"
            raise _refuse("initial_wait", accepts, self.initial_wait)
        if not _is_within(self.max_wait, self.initial_wait, _MAX_SECONDS):
            accepts = (
                f"a number of seconds from initial_wait ({self.initial_wait:g}) "
                f"to {_MAX_SECONDS:.0f}"
            )
            raise _refuse("max_wait", accepts, self.max_wait)
        if not isinstance(self.jitter, str) or self.jitter not in ("full", "none"):
            raise _refuse("jitter", "'full' or 'none'", self.jitter)
        if not isinstance(self.idempotent, bool):
            raise _refuse("idempotent", "True or False", self.idempotent)
        if self.deadline is not None and not _is_within(self.deadline, -_LONGEST, _LONGEST):
            accepts = "a time on time.monotonic() (use None for no deadline)"
            raise _refuse("deadline", accepts, self.deadline)
        for name in ("retry_on", "sleep", "random", "clock"):
            if not callable(getattr(self, name)):
                raise _refuse(name, "a function", getattr(self, name))

    def wait(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number *attempt*, the first being 1.

        ``initial_wait`` x 2 ** (attempt - 1), at most ``max_wait``; drawn anew at
        each call when there is jitter.
        """
        # 2.0 ** 1024 would be an OverflowError.
        longest = min(self.initial_wait * 2.0 ** min(attempt - 1, 1023), self.max_wait)
        return longest if self.jitter == "none" else longest * self.random()

    def retries(self, exc: Exception) -> bool:
        """Whether *exc* is worth a repetition and the repetition is allowed.

        The predicate to give to another retry library.
        """
        return self.retry_on(exc) and (self.idempotent or not may_have_run(exc))

    def until(self, deadline: float | None) -> RetryPolicy:
        """The same policy with a deadline on ``time.monotonic()``; the earlier one
        where it has one already. ``None`` or infinity: no further limit."""
        if deadline is None or deadline == math.inf:
            return self
        if self.deadline is not None:
            deadline = min(deadline, self.deadline)
        return replace(self, deadline=deadline)

    def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """``fn(*args, **kwargs)``, again and again as the policy says; its result.

        Raises ``TypeError`` for a generator or coroutine function: it would do its
        work after its return, when nothing is retried any more.
        """
        _refuse_lazy(fn)
        for attempt in self:
            with attempt:
                return fn(*args, **kwargs)
        raise AssertionError("the last attempt returns or raises")

    def __iter__(self) -> Iterator[Attempt]:
        """Attempts, to be entered one after the other; sleeps in between."""
        for number in itertools.count(1):
            attempt = Attempt(self, number)
            yield attempt
            if attempt._pause is None:
                return
            self.sleep(attempt._pause)

    def _pause_after(self, error: Exception, number: int, undone: bool) -> float | None:
        """How long to wait before the next attempt; ``None`` when there is none."""
        if not self.retry_on(error):
            return None
        failed = f"attempt {number} of {self.max_attempts} failed"
        unsafe = _outcome_unknown(error) if undone else may_have_run(error)
        if unsafe and not self.idempotent:
            reason = "it may have taken effect, and the policy does not say idempotent=True"
        elif number >= self.max_attempts:
            reason = "it was the last"
        else:
            pause = self.wait(number)
            in_time = self.deadline is None or self.clock() + pause < self.deadline
            if in_time and time.monotonic() + pause < _deadline.current():
                _log.info(
                    "retry", "%s (%s); the next follows in %.3f s", failed, _kind(error), pause
                )
                return pause
            reason = "the deadline comes before the next"
        _log.info("gave_up", "%s (%s); no other follows: %s", failed, _kind(error), reason)
        if sys.version_info >= (3, 11):
            error.add_note(f"fastpool: {failed}; no other followed: {reason}")
        return None


class Attempt:
    """One attempt: a context manager that keeps an error to itself if another
    attempt follows."""

    __slots__ = ("_pause", "_policy", "_undone", "number")

    def __init__(self, policy: RetryPolicy, number: int) -> None:
        self._policy = policy
        self._pause: float | None = None  # seconds until the next one; None: there is none
        self._undone = False  # the server undoes all of it if its connection is lost now
        self.number = number
        """1 for the first."""

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if isinstance(exc, Exception):
            self._pause = self._policy._pause_after(exc, self.number, self._undone)
        return self._pause is not None


def _kind(error: Exception) -> str:
    code = sqlstate(error)
    return type(error).__name__ if code is None else f"{type(error).__name__}, SQLSTATE {code}"


def _is_whole(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _is_within(value: object, low: float, high: float) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and low <= value <= high  # NaN is not
    )


def _refuse_lazy(fn: Callable[..., object]) -> None:
    kinds = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    if any(is_kind(fn) for is_kind in kinds):
        raise TypeError("fn must do all its work when called: no generator, no coroutine function")


def _refuse(name: str, accepts: str, value: object) -> ConfigError:
    return ConfigError(f"{name} must be {accepts}, not {reprlib.repr(value)}", setting=name)


# -- transactions --------------------------------------------------------------


class _Transactions(Protocol[ConnT_co]):
    """A pool, or a view of one."""

    def transaction(self, *, isolation: Any = None) -> AbstractContextManager[ConnT_co]: ...


_DEFAULT = RetryPolicy()


def run_in_transaction(
    pool: _Transactions[ConnT],
    fn: Callable[[ConnT], T],
    *,
    policy: RetryPolicy = _DEFAULT,
    isolation: str | None = None,
) -> T:
    """``fn(conn)`` in a transaction, the whole of it again when it fails in vain.

    Commits when *fn* returns, and returns its result. *fn* does all its work
    through *conn*, leaves COMMIT and ROLLBACK to this function, and has no effect
    elsewhere. *isolation* as in ``pool.transaction``; with ``"serializable"`` or
    ``"repeatable read"``, retrying is a part of the protocol (PostgreSQL manual,
    "Serialization Failure Handling").

    Serialization failures and deadlocks are retried, also at COMMIT, and so is a
    connection lost before COMMIT was sent: the server rolls back then. If the
    answer to COMMIT is lost, the transaction is only repeated when *policy* says
    ``idempotent``; else ``TransactionAborted`` tells that the outcome is unknown.

    Raises what ``pool.transaction`` and *fn* raise, and ``TypeError`` for a
    generator or coroutine function: COMMIT would come before its work.
    """
    _refuse_lazy(fn)
    for attempt in policy:
        with attempt:
            attempt._undone = True
            with pool.transaction(isolation=isolation) as conn:
                result = fn(conn)
                attempt._undone = False  # COMMIT is next
            return result
    raise AssertionError("the last attempt returns or raises")
