"""Nobody asks what time it is: a wall clock that jumps changes nothing."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastpool
from fastpool.testing import StubDriver

PACKAGE = Path(fastpool.__file__).parent
# What tells the time of day, or the day, by the name of its module.
WALL = {
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime", "CLOCK_REALTIME"},
    "datetime": {"datetime", "date"},
}
CLOCKS = re.compile(r"CLOCK_REALTIME|CLOCK_TAI|\bgettimeofday\b|\btime\s*\(\s*(NULL|0)\s*\)")


def wall_clocks(text: str) -> Iterator[int]:
    """The lines of Python source that read the wall clock."""
    for node in ast.walk(ast.parse(text)):
        names: set[str] = set()
        module = ""
        if isinstance(node, ast.ImportFrom):
            module, names = node.module or "", {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module, names = node.value.id, {node.attr}
        if names & WALL.get(module, set()):
            assert isinstance(node, ast.ImportFrom | ast.Attribute)
            yield node.lineno


def test_no_module_reads_the_wall_clock() -> None:
    """All times of the pool are on the monotonic clock; ``ops`` tells people the hour."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyx")])
        if path.relative_to(PACKAGE).parts[0] != "ops"
        for line in wall_clocks(path.read_text(encoding="utf-8"))
    ]
    found += [
        f"{path.name}: {match[0]}"
        for path in PACKAGE.glob("*.h")
        for match in CLOCKS.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import time\ntime.time()",
        "from time import monotonic, time",
        "import time\nage = time.clock_gettime(time.CLOCK_REALTIME)",
        "from datetime import datetime",
        "import datetime\ndatetime.datetime.now()",
    ],
)
def test_a_wall_clock_is_found(text: str) -> None:
    """The search above finds what it is for."""
    assert list(wall_clocks(text))


def test_the_monotonic_clock_is_none() -> None:
    """And nothing else."""
    assert not list(wall_clocks("import time\ntime.monotonic(); time.sleep(1)"))


def test_a_clock_that_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour forwards, an hour back, at every look: waits and ages are what they were."""
    jumps = 0

    def jump() -> int:
        nonlocal jumps
        jumps += 1
        return 1_700_000_000 + 3600 * (-1) ** jumps * (jumps % 7)

    monkeypatch.setattr(time, "time", lambda: float(jump()))
    monkeypatch.setattr(time, "time_ns", lambda: jump() * 10**9)
    with fastpool.Pool(
        driver=StubDriver(), min_size=1, max_size=1, max_idle_time=600.0, deadlock=None
    ) as pool:
        pool.wait()
        with pool.connection():
            began = time.monotonic()
            with pytest.raises(fastpool.PoolTimeout) as caught:
                pool.acquire(timeout=0.05)
            assert 0.05 <= time.monotonic() - began < 5.0
            assert 0.05 <= caught.value.waited < 5.0
            [holder] = pool.holders()
            assert 0 <= holder.age < 5.0
        for _ in range(20):
            pool._house.keeper.tend()
            assert pool.run("SELECT 1") == "SELECT 1"
        assert pool.stats().created == 1
