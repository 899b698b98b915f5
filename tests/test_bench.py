"""The benchmarks run, and judge what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not (TREE / "bench").exists(), reason="the source is out of reach here"
)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=TREE, capture_output=True, text=True, timeout=100
    )


def row(left: float, sign: str, limit: float) -> tuple[float, str]:
    """Ratio and verdict of a row with three rounds, the first one disturbed."""
    code = (
        "from bench.report import Row; "
        f"row = Row('x', [900.0, {left}, {left}], [10.0] * 3, target=({sign!r}, {limit})); "
        "print(row.ratio, row.verdict)"
    )
    ratio, _, verdict = run("-c", code).stdout.strip().partition(" ")
    return float(ratio), verdict


def test_quick(tmp_path: Path) -> None:
    """A quick run measures the rows asked for, and judges none."""
    found = tmp_path / "figures.json"
    done = run("-m", "bench", "quick", "--rows", "checkout,many,memory", "--json", str(found))
    assert done.returncode == 0, done.stderr
    assert "load average" in done.stdout
    rows = json.loads(found.read_text())["rows"]
    names = [one["name"] for one in rows]
    assert names[0] == "checkout / lock"
    assert names[-1] == "memory of a waiter / 512 B"
    assert all(name in done.stdout for name in names)
    assert {one["verdict"] for one in rows} == {""}
    assert all(one["ratio"] > 0 for one in rows if one["ratio"] is not None)


def test_figures_are_judged(tmp_path: Path) -> None:
    """The exit status is 1 exactly when a figure falls short."""
    found = tmp_path / "figures.json"
    options = ("--rows", "memory,many", "--rounds", "1", "--json", str(found))
    done = run("-m", "bench", "figures", *options)
    verdicts = {one["verdict"] for one in json.loads(found.read_text())["rows"]}
    assert done.returncode == ("falls short" in verdicts), done.stderr


def test_verdict_follows_the_median() -> None:
    """The median of the rounds decides, on either side of a target."""
    assert row(12.0, "<=", 1.3) == (1.2, "pass")
    assert row(12.0, "<=", 1.1) == (1.2, "falls short")
    assert row(12.0, ">=", 1.3) == (1.2, "falls short")
    assert row(12.0, ">=", 1.1) == (1.2, "pass")


@pytest.mark.parametrize("options", [["--rows", "nothing"], ["--rounds", "0"]])
def test_bad_options(options: list[str]) -> None:
    """What cannot be measured is refused at once."""
    done = run("-m", "bench", "figures", *options)
    assert done.returncode == 2
    assert options[0] in done.stderr
