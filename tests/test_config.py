"""Every setting: its default, what it takes, what it refuses and how it says so."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpool.config import MAX_CONNECTIONS, IdlePreset, LifetimePreset, PoolConfig
from fastpool.errors import ConfigError

DEFAULTS: dict[str, Any] = {
    "min_size": 5,
    "max_size": 25,
    "min_idle": 0,
    "max_idle": 25,
    "timeout": 30.0,
    "max_waiting": None,
    "max_lifetime": 1800.0,
    "max_lifetime_jitter": 180.0,
    "max_idle_time": 300.0,
    "max_uses": None,
    "health_check_period": 60.0,
    "connect_timeout": 5.0,
    "close_timeout": 1.0,
    "connect_concurrency": 2,
    "connect_backoff": 0.05,
    "connect_backoff_max": 0.5,
    "fail_fast_after": None,
    "check": "socket",
    "check_after_idle": 30.0,
    "ping_timeout": 1.0,
    "cancel_budget": 0.25,
    "reset": "smart",
    "session_settings": {},
    "idle_order": "lifo",
    "leak_threshold": None,
    "deadlock": "raise",
    "pgbouncer": None,
    "application_name": None,
    "before_connect": None,
    "after_connect": None,
    "before_acquire": None,
    "after_release": None,
    "before_close": None,
}

HOOKS = ("before_connect", "after_connect", "before_acquire", "after_release", "before_close")
COUNTS = {
    "min_size": (0, MAX_CONNECTIONS),
    "max_size": (1, MAX_CONNECTIONS),
    "min_idle": (0, MAX_CONNECTIONS),
    "max_idle": (0, MAX_CONNECTIONS),
    "max_waiting": (0, 2**31 - 1),
    "max_uses": (1, 2**31 - 1),
    "connect_concurrency": (1, MAX_CONNECTIONS),
}
# What None means for each time: what the field then holds, or that it is refused.
REFUSED = object()
TIMES: dict[str, Any] = {
    "timeout": math.inf,
    "max_lifetime": None,
    "max_lifetime_jitter": 180.0,
    "max_idle_time": None,
    "health_check_period": REFUSED,
    "connect_timeout": None,
    "close_timeout": REFUSED,
    "connect_backoff": REFUSED,
    "connect_backoff_max": REFUSED,
    "fail_fast_after": None,
    "check_after_idle": None,
    "ping_timeout": REFUSED,
    "cancel_budget": REFUSED,
    "leak_threshold": None,
}
WORDS: dict[str, tuple[str | None, ...]] = {
    "check": ("socket", "ping", None),
    "reset": ("smart", "rollback", "discard"),
    "idle_order": ("lifo", "fifo"),
    "deadlock": ("raise", "log", None),
}


async def async_hook(conn: Any) -> bool:
    return True


def hook(conn: Any) -> bool:
    return True


def refused(**settings: Any) -> ConfigError:
    """The error of a construction that must fail."""
    with pytest.raises(ConfigError) as caught:
        PoolConfig(**settings)
    return caught.value


def test_every_setting_is_in_a_table() -> None:
    """A new setting without a place in these tests fails here."""
    others = "session_settings", "application_name", "pgbouncer"
    tables = {*COUNTS, *TIMES, *WORDS, *HOOKS, *others}
    assert {f.name for f in fields(PoolConfig) if f.init} == set(DEFAULTS) == tables


@pytest.mark.parametrize(("name", "default"), DEFAULTS.items())
def test_default(name: str, default: Any) -> None:
    """Each setting has its documented default, of the documented type."""
    value = getattr(PoolConfig(), name)
    assert value == default
    if default is not None and name != "session_settings":
        assert type(value) is type(default)


@pytest.mark.parametrize(
    "value", ["5", 5.0, True, -1, 2**70, pytest.param(10**5000, id="huge"), [5], math.nan]
)
@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_an_integer_in_its_range(name: str, value: Any) -> None:
    """Numbers of things take no str, float, bool or number out of range."""
    low, high = COUNTS[name]
    error = refused(**{name: value})
    assert error.setting == name
    assert str(error).startswith(f"{name} must be an integer from {low} to {high}")


@pytest.mark.parametrize("name", COUNTS)
def test_the_ends_of_a_count(name: str) -> None:
    """The two ends of the range are taken, what lies just outside is not."""
    low, high = COUNTS[name]
    room = {"max_size": MAX_CONNECTIONS}
    for value in (low, high):
        assert getattr(PoolConfig.build(**{**room, name: value}), name) == value
    for value in (low - 1, high + 1):
        assert refused(**{**room, name: value}).setting == name


@pytest.mark.parametrize("name", ["max_size", "min_idle", "connect_concurrency"])
def test_a_count_that_needs_a_number(name: str) -> None:
    """None is refused where it has no meaning."""
    assert refused(**{name: None}).setting == name


def test_a_count_may_be_any_integer_type() -> None:
    """What Python itself takes for an index is an integer, and is kept as int."""

    class Seven:
        def __index__(self) -> int:
            return 7

    config = PoolConfig(max_size=Seven())  # type: ignore[arg-type]
    assert type(config.max_size) is int
    assert config.max_size == 7


@pytest.mark.parametrize(
    "value", ["30s", "30", True, False, -1, -0.001, math.nan, -math.inf, 1e10, 10**400, [1.0]]
)
@pytest.mark.parametrize("name", TIMES)
def test_a_time_is_a_number_of_seconds(name: str, value: Any) -> None:
    """Times take no text, bool, negative, NaN or number beyond any timer."""
    error = refused(**{name: value})
    assert error.setting == name
    assert str(error).startswith(f"{name} must be a number of seconds ")
    assert "at most 1000000000" in str(error)


@pytest.mark.parametrize("name", TIMES)
def test_a_time_is_kept_as_float(name: str) -> None:
    """An int number of seconds is taken and becomes a float."""
    settings = {"connect_backoff_max": 9, name: 9}
    value = getattr(PoolConfig.build(**settings), name)
    assert type(value) is float
    assert value == 9.0


@pytest.mark.parametrize("zero", [0, 0.0, -0.0])
@pytest.mark.parametrize("name", sorted(TIMES.keys() - {"max_lifetime_jitter"}))
def test_zero_seconds_is_no_limit_to_set(name: str, zero: float) -> None:
    """Zero is refused, and where None switches the limit off the text says so."""
    error = refused(**{name: zero})
    assert error.setting == name
    assert "above 0" in str(error)
    assert ("use None" in str(error)) == (TIMES[name] is not REFUSED)


@pytest.mark.parametrize(("name", "meaning"), TIMES.items())
def test_none_seconds(name: str, meaning: Any) -> None:
    """None switches a limit off, or is refused where there must be one."""
    if meaning is REFUSED:
        assert refused(**{name: None}).setting == name
    else:
        assert getattr(PoolConfig.build(**{name: None}), name) == meaning


@pytest.mark.parametrize("name", TIMES)
def test_infinite_seconds(name: str) -> None:
    """Only ``timeout`` takes infinity; the others have None for that, or nothing."""
    if name == "timeout":
        assert PoolConfig(timeout=math.inf).timeout == math.inf
    else:
        assert refused(**{name: math.inf}).setting == name


def test_a_timeout_of_zero_names_the_way_to_try() -> None:
    """Not to wait is asked per call, and the error says how."""
    text = str(refused(timeout=0))
    assert "timeout=0 per call" in text
    assert "try_acquire()" in text


def test_no_jitter() -> None:
    """A jitter of zero is a value like any other: all lifetimes are equal."""
    assert PoolConfig(max_lifetime_jitter=0).max_lifetime_jitter == 0.0


@pytest.mark.parametrize(
    ("name", "word"), [(name, word) for name, words in WORDS.items() for word in words]
)
def test_a_word_of_the_list(name: str, word: str | None) -> None:
    """Each documented choice is taken as it is."""
    assert getattr(PoolConfig.build(**{name: word}), name) == word


@pytest.mark.parametrize("value", ["", "Smart", "LIFO", "off", True, 1, ["ping"], {}])
@pytest.mark.parametrize("name", WORDS)
def test_a_word_not_in_the_list(name: str, value: Any) -> None:
    """Anything else is refused with the list of choices."""
    error = refused(**{name: value})
    assert error.setting == name
    for word in WORDS[name]:
        assert repr(word) in str(error)


def test_none_is_no_way_to_reset() -> None:
    """A connection is always reset somehow."""
    assert refused(reset=None).setting == "reset"


def test_a_check_of_ones_own_is_a_hook() -> None:
    """A function for ``check``, as psycopg_pool has it, is pointed to its hook."""
    assert "before_acquire" in str(refused(check=hook))


@pytest.mark.parametrize("name", [*HOOKS, "reset"])
def test_a_hook_is_a_plain_function(name: str) -> None:
    """A callable is kept as it is; no other value is, and no async function."""
    assert getattr(PoolConfig.build(**{name: hook}), name) is hook
    for bad in ("module.hook", 1, object()):
        error = refused(**{name: bad})
        assert error.setting == name
        assert "function" in str(error)
    for bad in (async_hook, functools.partial(async_hook, None)):
        error = refused(**{name: bad})
        assert error.setting == name
        assert "async" in str(error)


def test_application_name() -> None:
    """Text is taken, what cannot travel in a start-up packet is not."""
    assert PoolConfig(application_name="billing").application_name == "billing"
    for bad in (b"billing", 7, "a\0b"):
        assert refused(application_name=bad).setting == "application_name"


def test_session_settings_become_text() -> None:
    """Values are kept as PostgreSQL reads them."""
    given = {"statement_timeout": "30s", "work_mem": 4096, "seed": 0.5, "jit": False, "a.b_1": True}
    assert PoolConfig(session_settings=given).session_settings == {  # type: ignore[arg-type]
        "statement_timeout": "30s",
        "work_mem": "4096",
        "seed": "0.5",
        "jit": "off",
        "a.b_1": "on",
    }


def test_session_settings_are_a_read_only_copy() -> None:
    """Neither the dict passed in nor the field changes the configuration."""
    mine = {"jit": "off"}
    config = PoolConfig(session_settings=mine)
    mine["jit"] = "on"
    assert config.session_settings["jit"] == "off"
    with pytest.raises(TypeError):
        config.session_settings["jit"] = "on"  # type: ignore[index]


@pytest.mark.parametrize(
    "key",
    ["", "1a", "a b", "a;b", "a.", ".a", "a..b", "a.1", "a=b", "jit\n", "é", "a-b", "x\0", 1, None],
)
def test_a_session_setting_has_a_parameter_name(key: Any) -> None:
    """A name that could carry anything else is refused."""
    error = refused(session_settings={key: "1"})
    assert error.setting == "session_settings"
    assert "PostgreSQL parameter name" in str(error)


@pytest.mark.parametrize("value", [None, b"on", ["a"], math.nan, math.inf, "a\0b"])
def test_a_session_setting_has_a_plain_value(value: Any) -> None:
    """A value without one clear text is refused, naming the parameter only."""
    error = refused(session_settings={"search_path": value})
    assert error.setting == "session_settings"
    assert "search_path" in str(error)


def test_a_refused_session_value_is_not_shown() -> None:
    """Custom parameters may hold secrets, which must not reach a log."""
    assert "hunter2" not in str(refused(session_settings={"app.key": "hunter2\0"}))
    assert "hunter2" not in str(refused(session_settings={"app.key": ["hunter2"]}))


@pytest.mark.parametrize("value", [None, "jit=off", [("jit", "off")]])
def test_session_settings_are_a_mapping(value: Any) -> None:
    """Text and pairs are refused."""
    assert refused(session_settings=value).setting == "session_settings"


@pytest.mark.parametrize("name", ["application_name", "Application_Name"])
def test_application_name_has_one_place(name: str) -> None:
    """It cannot be set twice, in any spelling."""
    assert "application_name=" in str(refused(session_settings={name: "x"}))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"min_size": 6, "max_size": 5}, ("min_size=6", "max_size=5")),
        ({"min_idle": 6, "max_size": 5}, ("min_idle=6", "max_size=5")),
        ({"max_idle": 6, "max_size": 5}, ("max_idle=6", "max_size=5", "max_idle_time")),
        ({"min_idle": 3, "max_idle": 2}, ("min_idle=3", "max_idle=2")),
        ({"min_size": 3, "max_idle": 2}, ("min_size=3", "max_idle=2")),
        (
            {"max_lifetime_jitter": 61, "max_lifetime": 60},
            ("max_lifetime_jitter=61.0", "max_lifetime=60.0"),
        ),
        (
            {"connect_backoff": 2, "connect_backoff_max": 1},
            ("connect_backoff=2.0", "connect_backoff_max=1.0"),
        ),
    ],
)
def test_a_relation(settings: dict[str, Any], named: tuple[str, ...]) -> None:
    """Two settings that contradict each other are both named, with their values;
    equal ones agree."""
    error = refused(**settings)
    low, high = settings
    assert error.setting == low
    for part in named:
        assert part in str(error)
    PoolConfig.build(**{**settings, low: settings[high]})


@pytest.mark.parametrize("value", [600.0, 600, "10min"])
def test_max_idle_is_no_time(value: Any) -> None:
    """psycopg_pool's ``max_idle`` is seconds; the error names ours."""
    error = refused(max_idle=value)
    assert error.setting == "max_idle"
    assert "max_idle_time" in str(error)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_size": 3}, {"min_size": 3, "max_idle": 3}),
        ({"max_size": 50}, {"min_size": 5, "max_idle": 50}),
        ({"max_idle": 2}, {"min_size": 2}),
        ({"max_idle": 0}, {"min_size": 0}),
        ({"max_lifetime": 100}, {"max_lifetime_jitter": 10.0}),
        ({"max_lifetime": None}, {"max_lifetime_jitter": 0.0}),
    ],
)
def test_a_default_follows(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    """Defaults that depend on other settings are numbers that fit them, both at
    construction and after a replacement."""
    for config in (PoolConfig(**settings), PoolConfig().replace(**settings)):
        assert {name: getattr(config, name) for name in expected} == expected


def test_a_value_set_by_hand_stays() -> None:
    """What was set does not follow, even when it equals the default."""
    config = PoolConfig(min_size=5, max_lifetime_jitter=180)
    with pytest.raises(ConfigError, match="min_size=5 is more than max_size=3"):
        config.replace(max_size=3)
    assert config.replace(max_lifetime=3600).max_lifetime_jitter == 180.0
    assert config.replace(max_size=3, min_size=None).min_size == 3


def test_a_default_follows_through_several_replacements() -> None:
    """Shrinking and growing again leads back."""
    assert PoolConfig().replace(max_size=2).replace(timeout=1).replace(max_size=25) == PoolConfig(
        timeout=1
    )


def test_replace_keeps_the_rest() -> None:
    """Only what is named changes, and the old object does not."""
    config = PoolConfig(max_size=10, session_settings={"jit": "off"}, before_close=hook)
    changed = config.replace(timeout=1)
    assert changed.timeout == 1.0
    assert changed.replace(timeout=30) == config
    assert config.timeout == 30.0


def test_replace_is_all_or_nothing() -> None:
    """One bad value and nothing changes; values that fit only together do."""
    config = PoolConfig(min_size=5, max_size=10)
    before = repr(config)
    with pytest.raises(ConfigError):
        config.replace(timeout=5, max_size=20, min_idle=-1)
    assert repr(config) == before
    assert config.replace(min_size=30, max_size=40).min_size == 30


@pytest.mark.parametrize("make", [PoolConfig.build, PoolConfig().replace])
@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_sise", "max_size"),
        ("max_conn_lifetime", "max_lifetime"),
        ("max_conns", "max_size"),
        ("pool_size", "max_size"),
        ("pre_ping", "check"),
        ("_derived", None),
        ("zzz", None),
    ],
)
def test_an_unknown_name(make: Callable[..., PoolConfig], name: str, near: str | None) -> None:
    """It is refused with the nearest setting, and with none where none is near."""
    with pytest.raises(ConfigError) as caught:
        make(**{name: "hunter2"})
    text = str(caught.value)
    assert caught.value.setting == name
    assert repr(name) in text
    assert "hunter2" not in text
    if near is None:
        assert "did you mean" not in text
    else:
        assert f"did you mean {near!r}?" in text


def test_build_is_the_constructor() -> None:
    """With known names there is no difference."""
    assert PoolConfig.build(max_size=7, timeout=None) == PoolConfig(max_size=7, timeout=math.inf)


def test_it_cannot_be_changed() -> None:
    """Assignment is refused, to settings and to anything else."""
    config = PoolConfig()
    with pytest.raises(FrozenInstanceError):
        config.max_size = 3  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        config.max_sise = 3  # type: ignore[attr-defined]


def test_equal_settings_are_equal() -> None:
    """Equality and hash are those of the effective settings."""
    one, two = PoolConfig(session_settings={"jit": 1}), PoolConfig(session_settings={"jit": "1"})  # type: ignore[dict-item]
    assert one == two
    assert hash(one) == hash(two)
    assert PoolConfig(min_size=5) == PoolConfig()
    assert PoolConfig(max_size=5) != PoolConfig()


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
)
def test_it_can_be_copied_and_pickled(clone: Callable[[PoolConfig], PoolConfig]) -> None:
    """A copy is equal and its defaults still follow."""
    config = PoolConfig(max_size=10, session_settings={"jit": "off"}, before_close=hook)
    again = clone(config)
    assert again == config
    assert again.replace(max_size=2).min_size == 2
    assert isinstance(again.session_settings, Mapping)


def test_repr_shows_what_differs() -> None:
    """Defaults, also those that follow, are left out; what was set instead of
    following is shown even when it equals the usual default."""
    assert repr(PoolConfig()) == "PoolConfig()"
    config = PoolConfig(max_size=3, timeout=5, check=None)
    assert repr(config) == "PoolConfig(max_size=3, timeout=5.0, check=None)"
    assert repr(PoolConfig(max_size=50, max_idle=25)) == "PoolConfig(max_size=50, max_idle=25)"


def test_repr_shows_no_secret() -> None:
    """Values of session settings and what a hook carries are left out."""

    class Vault:
        password = "hunter2"

        def __repr__(self) -> str:
            return f"Vault({self.password!r})"

        def __call__(self, conn: Any) -> bool:
            return True

        def add(self, params: dict[str, Any]) -> None:
            params["password"] = self.password

    text = repr(
        PoolConfig(
            session_settings={"app.key": "hunter2"},
            before_connect=Vault().add,
            after_connect=functools.partial(print, "hunter2"),
            reset=Vault(),
        )
    )
    assert "hunter2" not in text
    assert "app.key" in text
    assert "Vault.add" in text


def test_a_wrong_value_is_shown_only_when_it_is_plain() -> None:
    """An object's repr and long text may hold anything, so the type must do."""

    class Secret:
        def __repr__(self) -> str:
            return "hunter2"

    dsn = "postgresql://app:hunter2@db.example.com/app"
    for name in DEFAULTS:
        if name not in {"application_name", "reset"}:
            for value in (Secret(), {"password": Secret()}, dsn):
                if name != "session_settings" or not isinstance(value, dict):
                    assert "hunter2" not in str(refused(**{name: value}))


@given(
    sizes=st.fixed_dictionaries(
        {},
        optional={
            name: st.integers(-1, 12) for name in ("min_size", "max_size", "min_idle", "max_idle")
        },
    )
)
def test_sizes_that_are_taken_agree(sizes: dict[str, int]) -> None:
    """Whatever is given, a configuration that exists has sizes that fit together,
    and one is refused only for a reason."""
    given_max = sizes.get("max_size", 25)
    limits = {
        "min_size": min(given_max, sizes.get("max_idle", given_max)),
        "min_idle": min(given_max, sizes.get("max_idle", given_max)),
        "max_idle": given_max,
    }
    sound = given_max >= 1 and all(
        0 <= sizes[name] <= limit for name, limit in limits.items() if name in sizes
    )
    if sound:
        config = PoolConfig.build(**sizes)
        assert 0 <= config.min_size <= config.max_idle <= config.max_size
        assert 0 <= config.min_idle <= config.max_idle
    else:
        assert refused(**sizes).setting in sizes


@pytest.mark.parametrize("value", [1, 0, "true", "yes", object()])
def test_pgbouncer_is_true_false_or_none(value: Any) -> None:
    """Nothing that merely counts as true."""
    assert [PoolConfig(pgbouncer=v).pgbouncer for v in (True, False, None)] == [True, False, None]
    assert str(refused(pgbouncer=value)).startswith("pgbouncer must be True, False, or None")


def test_what_cannot_be_had_behind_pgbouncer() -> None:
    """A reset of whichever session is free, and start-up parameters that it refuses."""
    error = refused(pgbouncer=True, reset="discard")
    assert error.setting == "reset"
    assert "DISCARD ALL would go to" in str(error)
    for name in ("statement_timeout", "search_path", "my.own"):
        error = refused(pgbouncer=True, session_settings={name: "secret"})
        assert error.setting == "session_settings"
        assert f"refuses {name} as" in str(error)
        assert "ALTER ROLE" in str(error)
        assert "SET LOCAL" in str(error)
        assert "secret" not in str(error)
        assert PoolConfig(pgbouncer=False, session_settings={name: "x"})
        with pytest.raises(ConfigError):
            PoolConfig(session_settings={name: "x"}).replace(pgbouncer=True)
    taken = {"DateStyle": "ISO", "TimeZone": "UTC", "standard_conforming_strings": True}
    assert PoolConfig(pgbouncer=True, session_settings={**taken, "client_encoding": "UTF8"})


@pytest.mark.parametrize(
    ("balancer", "lifetime"), [(True, (600.0, 120.0)), (False, (3600.0, 600.0))]
)
def test_lifetime_preset(balancer: bool, lifetime: tuple[float, float]) -> None:
    """10 min and 2 min of jitter behind a balancer, else 1 h and 10 min; nothing
    else changes."""
    before = PoolConfig(max_size=7)
    after = LifetimePreset(uses_load_balancer=balancer).apply(before)
    assert (after.max_lifetime, after.max_lifetime_jitter) == lifetime
    assert after.replace(max_lifetime=1800, max_lifetime_jitter=None) == before


@pytest.mark.parametrize(
    ("high_traffic", "idle_expensive", "idle_time"),
    [(False, False, 600.0), (False, True, 120.0), (True, False, 1800.0), (True, True, 1800.0)],
)
def test_idle_preset(high_traffic: bool, idle_expensive: bool, idle_time: float) -> None:
    """High traffic wins over expensive idleness; nothing else changes."""
    before = PoolConfig(max_size=7)
    after = IdlePreset(high_traffic=high_traffic, idle_expensive=idle_expensive).apply(before)
    assert after == before.replace(max_idle_time=idle_time)


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        (LifetimePreset, "uses_load_balancer"),
        (IdlePreset, "high_traffic"),
        (IdlePreset, "idle_expensive"),
    ],
)
def test_a_preset_takes_true_or_false(preset: Callable[..., object], name: str) -> None:
    """The text "no" is true to Python, so only bools are taken."""
    with pytest.raises(ConfigError, match=f"{name} must be True or False, not 'no'"):
        preset(**{name: "no"})
