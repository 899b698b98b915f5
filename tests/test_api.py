"""The public surface: its names, its signatures, its words and its types."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from support import need

import fastpool
from fastpool import Lease, Pool, PoolView
from fastpool.drivers import Driver

MODULES = ("fastpool", "fastpool.conninfo", "fastpool.drivers", "fastpool.testing")

NAMES = {
    "ConfigError",
    "ConnectFailed",
    "ConnectionBusy",
    "ConnectionReleased",
    "DeadlineExceeded",
    "Holder",
    "IdlePreset",
    "Lease",
    "LifetimePreset",
    "Pool",
    "PoolClosed",
    "PoolConfig",
    "PoolDeadlock",
    "PoolError",
    "PoolSize",
    "PoolStats",
    "PoolTimeout",
    "PoolView",
    "RetryPolicy",
    "TooManyRequests",
    "TransactionAborted",
    "__impl__",
    "__version__",
    "calculate_pool_size",
    "from_env",
    "is_retryable",
}

SIGNATURES = {
    "open": "(self, wait=False, timeout=30.0)",
    "wait": "(self, timeout=30.0)",
    "close": "(self, timeout=30.0)",
    "connection": "(self, timeout=None, deadline=None)",
    "acquire": "(self, timeout=None, deadline=None)",
    "try_acquire": "(self)",
    "release": "(self, lease)",
    "within": "(self, *, timeout=None, deadline=None)",
    "retry": "(self, policy=None)",
    "run_in_transaction": "(self, fn, *, policy=None, isolation=None)",
    "run": "(self, sql, /, **params)",
    "execute": "(self, sql, args=())",
    "transaction": (
        "(self, timeout=None, deadline=None, *, isolation=None, read_only=None, deferrable=None)"
    ),
    "ping": "(self, timeout=5.0)",
    "reconfigure": "(self, **settings)",
    "resize": "(self, *, min_size=None, max_size=None)",
    "drain": "(self)",
    "invalidate": "(self, conn)",
    "detach": "(self, conn)",
    "stats": "(self)",
    "holders": "(self)",
}


def bare(function: Any) -> str:
    """A signature without its annotations."""
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def public_names(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None)
    assert names is not None, f"{module.__name__} has no __all__"
    return list(names)


def documented() -> Iterator[tuple[str, Any]]:
    """All that is public and has words to it: modules, classes, their methods, functions."""
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        yield module_name, module
        for name in public_names(module):
            value = getattr(module, name)
            if not inspect.isclass(value) and not inspect.isroutine(value):
                continue
            yield f"{module_name}.{name}", value
            if not inspect.isclass(value) or issubclass(value, BaseException):
                continue
            for member, inner in inspect.getmembers(value):
                ours = getattr(inner, "__module__", "fastpool") or "fastpool"
                if hasattr(Driver, member) and hasattr(value, "is_permanent"):
                    continue  # a driver's methods are described by their protocol
                if member[0] != "_" and callable(inner) and ours.startswith("fastpool"):
                    yield f"{module_name}.{name}.{member}", inner


def test_public_names() -> None:
    """The package offers the names it is known for, and no others."""
    assert set(fastpool.__all__) >= NAMES
    assert sorted(fastpool.__all__) == list(fastpool.__all__)
    for name in fastpool.__all__:
        assert hasattr(fastpool, name)


def test_public_classes_say_where_they_live() -> None:
    """Tracebacks and pickles name errors by their public place."""
    for name in fastpool.__all__:
        value = getattr(fastpool, name)
        if inspect.isclass(value) and issubclass(value, BaseException):
            assert value.__module__ == "fastpool", name


@pytest.mark.parametrize("method", SIGNATURES)
def test_signatures(method: str) -> None:
    """Arguments keep their names, order, kinds and defaults."""
    assert bare(getattr(Pool, method)) == SIGNATURES[method]


def test_no_method_is_forgotten() -> None:
    """Every public method of a pool is held to its signature."""
    methods = {name for name, value in inspect.getmembers(Pool) if callable(value)}
    assert {name for name in methods if name[0] != "_"} - {"from_config"} == set(SIGNATURES)


def test_constructor() -> None:
    """The connection string is the one positional argument of a pool."""
    expected = "(self, conninfo='', *, driver=None, name=None, **settings)"
    assert bare(Pool.__init__) == expected


def test_a_view_checks_out_alike() -> None:
    """A view has all that a pool has for getting connections."""
    for name in ("connection", "acquire", "try_acquire", "release", "run", "transaction", "within"):
        assert getattr(PoolView, name) is getattr(Pool, name)


def test_a_lease_of_something() -> None:
    """What may be written in an annotation can be evaluated."""

    def use(lease: Lease[int], pool: Pool[int], view: PoolView[int]) -> None: ...

    assert get_args(get_type_hints(use)["lease"]) == (int,)
    assert get_origin(get_type_hints(use)["lease"]) is Lease


def test_a_lease_is_no_connection_to_make() -> None:
    """A lease cannot be made by hand."""
    with pytest.raises(TypeError, match=r"pool\.acquire"):
        Lease()


def test_everything_public_has_a_docstring() -> None:
    """Every public module, class, method and function says what it does."""
    silent = [name for name, value in documented() if not (value.__doc__ or "").strip()]
    assert silent == []


def test_types(pytestconfig: pytest.Config) -> None:
    """What a type checker sees of the package is what ``typing_api.py`` says."""
    need(importlib.util.find_spec("mypy"), "mypy")
    assert pytestconfig.cache is not None
    cache = str(pytestconfig.cache.mkdir("mypy"))
    options = ["--strict", "--ignore-missing-imports", "--follow-imports=silent"]
    quiet = ["--config-file=", "--no-error-summary", "--cache-dir", cache]
    place = Path(fastpool.__file__).parents[1]
    # An installed package is found without help, and help is refused.
    path = {} if place.name == "site-packages" else {"MYPYPATH": str(place)}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *quiet, Path(__file__).with_name("typing_api.py")],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **path},
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
