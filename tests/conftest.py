"""The cores under test: which there are, and which to leave out."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
from collections.abc import Iterator
from types import ModuleType

import pytest
from support import need

from fastpool import _fork

MODULES = {"c": "fastpool._core", "python": "fastpool._core_py"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-c-extensions",
        action="store_true",
        help="leave out the tests of the compiled core",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "c_extension: tests the compiled core")
    # A run in the background ignores Ctrl-C, and so would all that it starts; some
    # tests interrupt themselves, or a child.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unwanted = (
        config.getoption("--no-c-extensions")
        or os.environ.get("FASTPOOL_IMPL") == "python"
        or os.environ.get("FASTPOOL_NO_EXT") == "1"
    )
    if unwanted:
        config.hook.pytest_deselected(
            items=[i for i in items if i.get_closest_marker("c_extension")]
        )
        items[:] = [item for item in items if not item.get_closest_marker("c_extension")]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Whatever there is before the first test stays: no garbage collection need look at it."""
    gc.collect()
    gc.freeze()


def load(impl: str) -> ModuleType:
    """The core of that name, in this process, whichever the package itself uses."""
    try:
        return importlib.import_module(MODULES[impl])
    except ImportError as error:
        need(impl != "c", f"no compiled core: {error}")
        raise


@pytest.fixture(
    scope="session",
    params=[pytest.param("c", marks=pytest.mark.c_extension), "python"],
    ids=["c", "python"],
)
def core(request: pytest.FixtureRequest) -> ModuleType:
    """Each core in turn: the module."""
    return load(request.param)


@pytest.fixture
def bystanders_away() -> Iterator[None]:
    """For tests that interrupt anywhere: nothing of the test tools runs in those threads.
    Struck within a handler of the log, the handler's lock would stay taken, and all who log
    later wait; struck within a callback of the garbage collector (hypothesis times it with
    one), the interrupt reaches nobody."""
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    gc.callbacks[:] = callbacks


@pytest.fixture
def patient_forks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks wait for idle threads as long as a busy machine takes to end them. A test
    that says it forks beside others (``filterwarnings``) waits no longer than users do."""
    if request.node.get_closest_marker("filterwarnings") is None:
        monkeypatch.setattr(_fork, "MOMENT", 10.0)
