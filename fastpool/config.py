"""Every setting of a pool, its default and its limits: one frozen dataclass.

This is the only place that checks ranges and relations. A ``PoolConfig`` that
exists is valid, so the rooms above read its fields and ask no questions. Fields
hold *effective* values: a default that follows from another setting
(``min_size`` from ``max_size``) is a number after construction, and
:meth:`PoolConfig.replace` works it out again unless it was set by hand.

Each field carries its own check, which takes the name and the value as given
and returns the value to keep; what several fields must agree on stands in one
table, ``_RELATIONS``. Times are float seconds, and ``None`` switches a limit
off. Zero never means "no limit": zero seconds is a limit nobody can meet.
"""

# ruff: noqa: RUF009 - _setting() is field() with a check
from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from inspect import iscoroutinefunction
from types import MappingProxyType
from typing import Any, Literal

from .errors import ConfigError

__all__ = ["IdlePreset", "LifetimePreset", "PoolConfig"]

MAX_CONNECTIONS = 262_143
"""The most that PostgreSQL takes for ``max_connections`` (guc_tables.c, MAX_BACKENDS)."""

_MAX_COUNT = 2**31 - 1  # counters are C integers
_MAX_SECONDS = 1e9  # 31 years; CPython's timed waits overflow soon after
_MAX_SHOWN = 30  # characters of a wrong value in a message

_Check = Callable[[str, Any], Any]


def _refuse(name: str, accepts: str, value: object) -> ConfigError:
    return ConfigError(f"{name} must be {accepts}, not {_show(value)}", setting=name)


def _show(value: object) -> str:
    """*value* for a message: in full when it is short and plain, else its type."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _MAX_SHOWN else f"a str of {len(value)} characters"
    if isinstance(value, int) and abs(value) > 10**18:
        return "so large a number"
    if value is None or isinstance(value, int | float):
        return repr(value)
    return f"of type {type(value).__name__}"  # its repr may hold anything, secrets too


def _accepts(what: str, *notes: str) -> str:
    said = "; ".join(filter(None, notes))
    return f"{what} ({said})" if said else what


def whole(low: int, high: int = _MAX_COUNT, *, none: str = "", hint: str = "") -> _Check:
    """A check for an integer in [*low*, *high*].

    *none* says what None stands for; without it None is refused.
    """
    accepts = _accepts(f"an integer from {low} to {high}", none and f"use None for {none}", hint)

    def check(name: str, value: Any) -> int | None:
        if none and value is None:
            return None
        try:
            number = operator.index(value)
        except TypeError:
            raise _refuse(name, accepts, value) from None
        if isinstance(value, bool) or not low <= number <= high:
            raise _refuse(name, accepts, value)
        return number

    return check


def _seconds(
    *, none: str = "", hint: str = "", zero: bool = False, unlimited: float | None = None
) -> _Check:
    """A check for seconds as a float.

    *none* says what None stands for; without it None is refused. *unlimited* is
    what None is kept as; when it is infinity, infinity is taken as well.
    """
    accepts = _accepts(
        f"a number of seconds {'from 0' if zero else 'above 0'}, at most {_MAX_SECONDS:.0f}",
        none and f"use None for {none}",
        hint,
    )

    def check(name: str, value: Any) -> float | None:
        if none and (value is None or value == math.inf == unlimited):
            return unlimited
        # NaN fails every comparison, so ask for what is right.
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and 0 <= value <= _MAX_SECONDS
            and (zero or value)
        ):
            return float(value)
        raise _refuse(name, accepts, value)

    return check


def _one_of(*words: str | None, function: str = "", hint: str = "") -> _Check:
    """A check for one of *words*, or for a function where *function* describes it."""
    choices = " or ".join([*map(repr, words), *filter(None, [function])])
    accepts = _accepts(choices, hint)

    def check(name: str, value: Any) -> Any:
        if function and callable(value):
            return _hook(name, value)
        if (value is None or isinstance(value, str)) and value in words:
            return value
        raise _refuse(name, accepts, value)

    return check


def _hook(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise _refuse(name, "a function or None", value)
    if iscoroutinefunction(value):
        # Nobody would await its coroutine, which would pass for "true".
        raise ConfigError(
            f"{name} must be a plain function, not an async one: this is a pool for threads",
            setting=name,
        )
    return value


def _known_or_found_out(name: str, value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise _refuse(name, "True, False, or None (find out)", value)


def _text(name: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and "\0" not in value):
        return value
    raise _refuse(name, "a str without NUL characters (use None for the pool's name)", value)


# PostgreSQL's valid_custom_variable_name: parts joined by dots.
_GUC_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


def _session_settings(name: str, value: Any) -> Mapping[str, str]:
    """A read-only copy, every value as the text that PostgreSQL reads."""
    if not isinstance(value, Mapping):
        raise _refuse(name, "a mapping of PostgreSQL parameter names to values", value)
    return MappingProxyType(
        {_guc_name(name, key): _guc_value(name, key, text) for key, text in value.items()}
    )


def _guc_name(name: str, key: object) -> str:
    if not isinstance(key, str) or not _GUC_NAME.fullmatch(key):
        raise ConfigError(
            f"{name}: {_show(key)} is not a PostgreSQL parameter name "
            "(letters, digits and _, in parts joined by dots)",
            setting=name,
        )
    if key.lower() == "application_name":
        raise ConfigError(
            f"{name}: application_name is a setting of its own; pass application_name=...",
            setting=name,
        )
    return key


def _guc_value(name: str, key: str, value: object) -> str:
    """The value's text. It is never shown: custom parameters may hold secrets."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if isinstance(value, str) and "\0" not in value:
        return value
    raise ConfigError(
        f"{name}: the value of {key} must be a str without NUL characters, an int, "
        f"a finite float or a bool, not this {type(value).__name__}",
        setting=name,
    )


def _setting(default: Any, check: _Check) -> Any:
    return field(default=default, metadata={"check": check})


_MAX_IDLE_HINT = (
    "max_idle is a number of connections; for how long one may stay idle, set max_idle_time"
)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class PoolConfig:
    """The settings of a pool: immutable, checked at construction.

    Raises ``ConfigError``, which names the setting and what it accepts, for any
    value out of range and any two settings that contradict each other. A name
    that is no setting is Python's own TypeError here and a ``ConfigError`` with
    the nearest name from :meth:`build` and :meth:`replace`.

    None may be passed for ``min_size``, ``max_idle`` and ``max_lifetime_jitter``
    (work it out) and for ``timeout`` (no limit); the field then holds the
    number.
    """

    min_size: int = _setting(None, whole(0, MAX_CONNECTIONS))
    """Connections kept open, in use or idle. Default: 5, or ``max_size`` or
    ``max_idle`` where that is less."""

    max_size: int = _setting(25, whole(1, MAX_CONNECTIONS))
    """The most connections that PostgreSQL ever counts for this pool."""

    min_idle: int = _setting(0, whole(0, MAX_CONNECTIONS))
    """Idle connections kept ready on top of those in use (pgxpool's
    MinIdleConns, but refilled at once). Never more than ``max_size`` in all."""

    max_idle: int = _setting(None, whole(0, MAX_CONNECTIONS, hint=_MAX_IDLE_HINT))
    """Idle connections kept at most; a surplus one is closed at its return
    (database/sql's SetMaxIdleConns). Default: ``max_size``."""

    timeout: float = _setting(
        30.0,
        _seconds(
            none="no limit",
            unlimited=math.inf,
            hint="not to wait at all, pass timeout=0 per call or use try_acquire()",
        ),
    )
    """Seconds to wait for a connection; ``math.inf`` for no limit."""

    max_waiting: int | None = _setting(None, whole(0, none="no limit"))
    """Callers that may wait at one time; one more gets ``TooManyRequests`` at
    once. With 0 nobody waits (psycopg_pool's 0, no limit, is None here)."""

    max_lifetime: float | None = _setting(1800.0, _seconds(none="no limit"))
    """Seconds from birth after which a connection is replaced. It is never
    handed out over age. Keep it below what a balancer or firewall allows."""

    max_lifetime_jitter: float = _setting(None, _seconds(none="max_lifetime / 10", zero=True))
    """Seconds. Each connection draws its lifetime once, evenly from
    [``max_lifetime`` - this, ``max_lifetime``], so that those born together do
    not die together. (pgxpool adds its jitter; here ``max_lifetime`` is the
    limit.) Default: a tenth of ``max_lifetime``. No effect without that."""

    max_idle_time: float | None = _setting(300.0, _seconds(none="no limit"))
    """Seconds of idleness after which a connection that ``min_size`` and
    ``min_idle`` do not ask for is closed. Keep it below the server's
    ``idle_session_timeout``."""

    max_uses: int | None = _setting(None, whole(1, none="no limit"))
    """Checkouts after which a connection is replaced."""

    health_check_period: float = _setting(60.0, _seconds())
    """Seconds between two rounds of maintenance at most."""

    connect_timeout: float | None = _setting(5.0, _seconds(none="no limit"))
    """Seconds for one host's whole attempt, all addresses of its name together: TCP,
    TLS, authentication and session settings. (libpq gives each address as much.)"""

    close_timeout: float = _setting(1.0, _seconds())
    """Seconds that a closing connection keeps its slot at most, while the server
    has not closed its side."""

    connect_concurrency: int = _setting(2, whole(1, MAX_CONNECTIONS))
    """Dials in flight at most."""

    connect_backoff: float = _setting(0.05, _seconds())
    """Seconds of the first pause after a failed dial; it doubles with each
    further failure, and the pause taken is drawn from [0, that]."""

    connect_backoff_max: float = _setting(0.5, _seconds())
    """Seconds that the pause between dials grows to at most."""

    fail_fast_after: float | None = _setting(None, _seconds(none="never"))
    """Seconds of a host being down after which callers get ``ConnectFailed`` at
    once instead of waiting, while single probes go on."""

    check: Literal["socket", "ping"] | None = _setting(
        "socket",
        _one_of("socket", "ping", None, hint="for a check of your own set the before_acquire hook"),
    )
    """What a checkout verifies. ``"socket"``: the kernel's view of the socket,
    no round trip, sees every death the kernel knows of. ``"ping"``: one round
    trip each time. None: nothing."""

    check_after_idle: float | None = _setting(30.0, _seconds(none="never"))
    """Seconds of idleness before which the keeper pings a connection, so that
    no checkout has to."""

    ping_timeout: float = _setting(1.0, _seconds())
    """Seconds after which an unanswered ping means that the connection is dead."""

    cancel_budget: float = _setting(0.25, _seconds())
    """Seconds after a deadline that its cancel request may take and the statement's
    answer may still come; then the connection is given up."""

    reset: Literal["smart", "rollback", "discard"] | Callable[[Any], object] = _setting(
        "smart", _one_of("smart", "rollback", "discard", function="a function of the connection")
    )
    """What is undone at a return. ``"rollback"``: an open transaction.
    ``"smart"``: also DISCARD ALL when the session is seen to have changed.
    ``"discard"``: DISCARD ALL always, one round trip. A function gets the
    connection after the rollback."""

    # Read-only, but not hashable before Python 3.12.
    session_settings: Mapping[str, str] = field(
        default_factory=dict, hash=False, metadata={"check": _session_settings}
    )
    """PostgreSQL parameters set on each new connection, such as
    ``{"statement_timeout": "30s"}``. Given as str, int, float or bool, kept as a
    read-only mapping of str. A name with odd characters is refused; whether it
    exists, the server says."""

    idle_order: Literal["lifo", "fifo"] = _setting("lifo", _one_of("lifo", "fifo"))
    """Which idle connection goes out next. ``"lifo"``: the last one back, so
    that surplus ones age out. ``"fifo"``: the longest idle, which spreads the
    load over several hosts or a balancer."""

    leak_threshold: float | None = _setting(None, _seconds(none="never"))
    """Seconds after which one holder is logged, once, with its acquire site."""

    deadlock: Literal["raise", "log"] | None = _setting("raise", _one_of("raise", "log", None))
    """What to do when every connection is held by a thread that itself waits in
    this pool: raise ``PoolDeadlock``, log it, or nothing."""

    pgbouncer: bool | None = _setting(None, _known_or_found_out)
    """Whether the connections lead to PgBouncer, or its like, in transaction (or
    statement) pooling: then a server session lasts for one transaction, and what
    depends on it is refused. False: there is none, or it pools sessions. None:
    find out, by the key that the server gives out for cancel requests; a pooler
    that is found is taken to pool transactions."""

    application_name: str | None = _setting(None, _text)
    """As the server shows it in pg_stat_activity. None: the pool's name."""

    before_connect: Callable[[dict[str, Any]], object] | None = _setting(None, _hook)
    """Called with each dial's own parameters, which it may change (a token for a
    password); raising fails the attempt."""

    after_connect: Callable[[Any], object] | None = _setting(None, _hook)
    """Called with each new connection before the pool has it; raising closes it
    and fails the attempt."""

    before_acquire: Callable[[Any], bool] | None = _setting(None, _hook)
    """Called with a connection about to be handed out. False: it is discarded
    and the next one tried. Raising: the caller gets the exception."""

    after_release: Callable[[Any], bool] | None = _setting(None, _hook)
    """Called with a connection that came back. False or raising: it is closed."""

    before_close: Callable[[Any], object] | None = _setting(None, _hook)
    """Called with a connection about to be closed."""

    # The settings that follow from others, those of _DERIVED that were not given.
    _derived: frozenset[str] = field(init=False, compare=False, default=frozenset())

    def __post_init__(self) -> None:
        derived = frozenset(name for name in _DERIVED if getattr(self, name) is None)
        object.__setattr__(self, "_derived", derived)
        for name, check in _CHECKS.items():
            if name not in derived:
                object.__setattr__(self, name, check(name, getattr(self, name)))
        for name, derive in _DERIVED.items():
            if name in derived:
                object.__setattr__(self, name, derive(self))
        for low, high, advice in _RELATIONS:
            low_value, high_value = getattr(self, low), getattr(self, high)
            if high_value is not None and low_value > high_value:
                raise ConfigError(
                    f"{low}={low_value} is more than {high}={high_value}: {advice}", setting=low
                )
        if self.pgbouncer:
            _fit_pgbouncer(self)

    @classmethod
    def build(cls, **settings: Any) -> PoolConfig:
        """The same as the constructor, for names that come from outside.

        Raises ``ConfigError`` for a name that is no setting, with the nearest one.
        """
        for name in settings:
            if name not in _CHECKS:
                raise _unknown(name)
        return cls(**settings)

    def replace(self, **settings: Any) -> PoolConfig:
        """A copy with *settings* changed; all or nothing.

        Defaults that follow from other settings follow again: ``min_size`` that
        was never set shrinks with ``max_size``. Raises ``ConfigError`` as the
        constructor does, and for a name that is no setting.
        """
        return self.build(**{**self._given(), **settings})

    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _CHECKS if name not in self._derived}

    def __reduce__(self) -> tuple[Callable[[], PoolConfig], tuple[()]]:
        # A mapping proxy can neither be pickled nor deep-copied.
        settings = {**self._given(), "session_settings": dict(self.session_settings)}
        return partial(type(self), **settings), ()

    def __repr__(self) -> str:
        given = self._given()
        shown = [
            f"{name}={_describe(value)}"
            for name, value in given.items()
            if name in _DERIVED or value != getattr(_DEFAULT, name)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def _fit_pgbouncer(config: PoolConfig) -> None:
    if config.reset == "discard":
        raise ConfigError(
            "reset='discard' cannot be had with pgbouncer=True: DISCARD ALL would go to "
            "whichever server session is free, not to the one that was used",
            setting="reset",
        )
    for name in config.session_settings:
        if name.lower() not in _TAKEN_BY_PGBOUNCER:
            raise ConfigError(
                f"session_settings: PgBouncer refuses {name} as a start-up parameter (it takes "
                f"{', '.join(_TAKEN_BY_PGBOUNCER)}); set it on the server with ALTER ROLE ... SET "
                "or ALTER DATABASE ... SET, or with SET LOCAL in each transaction",
                setting="session_settings",
            )


# And application_name, which is a setting of its own. Newer versions can be told to
# take more (track_extra_parameters), or to drop others (ignore_startup_parameters).
_TAKEN_BY_PGBOUNCER = ("client_encoding", "datestyle", "timezone", "standard_conforming_strings")


def _describe(value: object) -> str:
    """*value* for a repr, without what may be secret: the values of session
    settings, and what a hook carries (a partial shows its arguments)."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: ..." for key in value) + "}"
    if callable(value):
        return f"<{getattr(value, '__qualname__', type(value).__qualname__)}>"
    return repr(value)


def _unknown(name: str) -> ConfigError:
    from difflib import get_close_matches  # only an error pays for this import

    near = _ELSEWHERE.get(name) or next(iter(get_close_matches(name, _CHECKS, n=1)), None)
    return ConfigError(
        f"{_show(name)} is not a setting of the pool"
        + (f"; did you mean {near!r}?" if near else ""),
        setting=name,
    )


_CHECKS: dict[str, _Check] = {f.name: f.metadata["check"] for f in fields(PoolConfig) if f.init}

# In this order: a later one reads what an earlier one wrote.
_DERIVED: dict[str, Callable[[PoolConfig], float]] = {
    "max_idle": lambda config: config.max_size,
    "min_size": lambda config: min(5, config.max_size, config.max_idle),
    "max_lifetime_jitter": lambda config: (config.max_lifetime or 0.0) / 10,
}

_CHURN = "connections closed at their return would be dialled again at once; raise max_idle"

_RELATIONS = (
    ("min_size", "max_size", "lower min_size or raise max_size"),
    ("min_idle", "max_size", "lower min_idle or raise max_size"),
    ("max_idle", "max_size", f"leave it out or lower it; {_MAX_IDLE_HINT}"),
    ("min_idle", "max_idle", _CHURN),
    ("min_size", "max_idle", _CHURN),
    (
        "max_lifetime_jitter",
        "max_lifetime",
        "a connection would be over age at birth; lower the jitter or leave it out",
    ),
    ("connect_backoff", "connect_backoff_max", "lower connect_backoff or raise the other"),
)

# What other pools call it, where the nearest name by spelling would be wrong.
_ELSEWHERE = {
    "max_conns": "max_size",
    "min_conns": "min_size",
    "min_idle_conns": "min_idle",
    "maxconn": "max_size",
    "minconn": "min_size",
    "pool_size": "max_size",
    "max_overflow": "max_size",
    "maxconnections": "max_size",
    "recycle": "max_lifetime",
    "pre_ping": "check",
    "maxusage": "max_uses",
    "max_queries": "max_uses",
    "num_workers": "connect_concurrency",
    "configure": "after_connect",
    "setsession": "session_settings",
    "use_lifo": "idle_order",
}

_DEFAULT = PoolConfig()


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise _refuse(name, "True or False", value)


@dataclass(frozen=True, slots=True)
class LifetimePreset:
    """How long connections live, by what stands before the database.

    Behind a load balancer, or with replicas, short lives spread the connections
    over what is there now: 10 min, jitter 2 min. A single stable server is
    better served by long ones: 1 h, jitter 10 min.
    """

    uses_load_balancer: bool = False

    def __post_init__(self) -> None:
        _flag("uses_load_balancer", self.uses_load_balancer)

    def apply(self, config: PoolConfig) -> PoolConfig:
        """A copy of *config* with ``max_lifetime`` and its jitter set."""
        lifetime, jitter = (600.0, 120.0) if self.uses_load_balancer else (3600.0, 600.0)
        return config.replace(max_lifetime=lifetime, max_lifetime_jitter=jitter)


@dataclass(frozen=True, slots=True)
class IdlePreset:
    """How long a connection may stay idle, by traffic and by price.

    High traffic: 30 min, whatever idleness costs. Otherwise 2 min where idle
    connections are expensive (a managed database with few), else 10 min.
    """

    high_traffic: bool = False
    idle_expensive: bool = False

    def __post_init__(self) -> None:
        _flag("high_traffic", self.high_traffic)
        _flag("idle_expensive", self.idle_expensive)

    def apply(self, config: PoolConfig) -> PoolConfig:
        """A copy of *config* with ``max_idle_time`` set."""
        if self.high_traffic:
            return config.replace(max_idle_time=1800.0)
        return config.replace(max_idle_time=120.0 if self.idle_expensive else 600.0)
