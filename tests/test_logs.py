"""The log records: what each one carries, and that there is one way to write them."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

import fastpool
from fastpool import Pool
from fastpool._logs import Log
from fastpool.testing import StubDriver

SOURCE = Path(fastpool.__file__).parent


def test_one_way_to_the_log() -> None:
    """No other module has a logger of its own, so no record can lack pool and event."""
    own = {p.name for p in SOURCE.rglob("*.py") if "getLogger" in p.read_text(encoding="utf-8")}
    assert own == {"_logs.py"}


def test_a_pools_record(caplog: pytest.LogCaptureFixture) -> None:
    """The message begins with the pool; pool, event and the place are attributes."""
    driver = StubDriver()
    driver.fail("connect", OSError("no route"), times=1000)
    pool = Pool(driver=driver, name="orders", min_size=0)
    with caplog.at_level(logging.INFO, "fastpool"), pool, pytest.raises(fastpool.PoolTimeout):
        pool.acquire(timeout=0.05)
    record = next(r for r in caplog.records if r.event == "connect_failed")  # type: ignore[attr-defined]
    assert record.getMessage().startswith("pool 'orders': cannot connect (temporary")
    assert (record.pool, record.levelname) == ("orders", "WARNING")  # type: ignore[attr-defined]
    assert record.filename == "_opener.py"


def test_a_record_of_no_pool(caplog: pytest.LogCaptureFixture) -> None:
    """What belongs to no pool says so; figures are attributes, the level is heeded."""
    log = Log()
    with caplog.at_level(logging.INFO, "fastpool"):
        log.debug("nothing", "unheard")
        log.log(logging.INFO, "stats", "%d open", 3, open=3)
        try:
            raise OSError("x")
        except OSError:
            log.exception("broken", "it broke")
    first, second = caplog.records
    assert (first.getMessage(), first.pool, first.open) == ("3 open", None, 3)  # type: ignore[attr-defined]
    assert second.exc_info is not None
    assert {first.filename, second.filename} == {Path(__file__).name}


def test_silence_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    """Who configures no logging sees nothing: there is a handler that writes nothing."""
    handlers = logging.getLogger("fastpool").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)


def test_every_event_is_a_word() -> None:
    """Events are lower-case words, as handlers and alerts match them."""
    calls = re.compile(r"log\.(?:debug|info|warning|exception)\(\s*(\S+?),")
    found = [e for p in SOURCE.rglob("*.py") for e in calls.findall(p.read_text(encoding="utf-8"))]
    assert len(found) > 20
    assert [event for event in found if not re.fullmatch(r'"[a-z_]+"', event)] == []
