"""The benchmarks run, judge what they measured, and see a slowdown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import need

TREE = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not (TREE / "bench").exists(), reason="the source is out of reach here"
)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=TREE, capture_output=True, text=True, timeout=100
    )


def smoke(rows: str, found: Path) -> dict[str, Any]:
    """What a short run of these groups writes."""
    done = run("-m", "bench", "run", "--effort", "smoke", "--rows", rows, "--json", str(found))
    assert done.returncode == 0, done.stderr
    written: dict[str, Any] = json.loads(found.read_text())
    assert all(row["name"] in done.stdout for row in written["rows"])
    return written


def evaluate(code: str) -> Any:
    """What *code* prints as JSON."""
    done = run("-c", f"import json\n{code}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def verdict(left: float, sign: str, limit: float) -> list[Any]:
    """Ratio and verdict of a row with three rounds, the first one disturbed."""
    return evaluate(  # type: ignore[no-any-return]
        "from bench.report import Row\n"
        f"row = Row('x', [900.0, {left}, {left}], [10.0] * 3, target=({sign!r}, {limit}))\n"
        "print(json.dumps([row.ratio, row.verdict]))"
    )


def test_smoke(tmp_path: Path) -> None:
    """A short run measures the rows asked for, describes the machine, and judges none."""
    found = smoke("checkout,many,memory", tmp_path / "new" / "found.json")
    rows = found["rows"]
    assert rows[0]["name"] == "checkout / lock"
    assert rows[-1]["name"] == "memory of a waiter / 512 B"
    assert {row["verdict"] for row in rows if row["ratio"] is not None} == {""}
    assert all(row["ratio"] > 0 for row in rows if row["ratio"] is not None)
    assert {row["group"] for row in rows} == {"checkout", "many", "memory"}
    assert "processors" in found["machine"]["machine"]
    assert {row["size"] for row in found["series"]["many"]} == {10, 100, 1000, 10_000}


def test_loads(tmp_path: Path) -> None:
    """A load is recorded with its percentiles and the shares of its threads."""
    found = smoke("grid", tmp_path / "found.json")
    points = [row for row in found["series"]["grid"] if row["hold"] and row["pool"] == "fastpool"]
    assert points
    for point in points:
        assert 0 <= point["p50"] <= point["p99"] <= point["p99.9"] <= point["max"]
        assert 0 < point["least"] <= point["most"]


def test_figures_are_judged(tmp_path: Path) -> None:
    """The exit status is 1 exactly when a figure falls short."""
    found = tmp_path / "figures.json"
    options = ("--rows", "memory,many", "--rounds", "1", "--json", str(found))
    done = run("-m", "bench", "figures", *options)
    verdicts = {row["verdict"] for row in json.loads(found.read_text())["rows"]}
    assert done.returncode == ("falls short" in verdicts), done.stderr


def test_verdict_follows_the_median() -> None:
    """The median of the rounds decides, on either side of a target."""
    assert verdict(12.0, "<=", 1.3) == [1.2, "pass"]
    assert verdict(12.0, "<=", 1.1) == [1.2, "falls short"]
    assert verdict(12.0, ">=", 1.3) == [1.2, "falls short"]
    assert verdict(12.0, ">=", 1.1) == [1.2, "pass"]


@pytest.mark.parametrize("options", [["--rows", "nothing"], ["--rounds", "0"]])
def test_bad_options(options: list[str]) -> None:
    """What cannot be measured is refused at once."""
    done = run("-m", "bench", "figures", *options)
    assert done.returncode == 2
    assert options[0] in done.stderr


def test_readme(tmp_path: Path) -> None:
    """The README's figures are those of the file, what stands around them stays, and
    --check tells when they are not."""
    row = {"name": "checkout / lock", "left": 2e-7, "right": 3e-7, "unit": "s", "ratio": 0.667}
    described = {"python": "3.x", "machine": "m"}
    (tmp_path / "benchmarks.json").write_text(json.dumps({"machine": described, "rows": [row]}))
    readme = tmp_path / "README.md"
    begin, end = evaluate("from bench import page; print(json.dumps([page.BEGIN, page.END]))")
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    statuses = evaluate(
        "from pathlib import Path\n"
        "from bench import page\n"
        f"page.DOCS = Path({str(tmp_path)!r})\n"
        f"page.README = Path({str(readme)!r})\n"
        "print(json.dumps([page.readme(check) for check in (True, False, True)]))"
    )
    assert statuses == [1, 0, 0]
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\n")
    assert text.endswith(f"{end}\nafter\n")
    assert "| 200 ns | 300 ns | 0.67 |" in text
    assert "old" not in text


def compared(unit: str, *sides: tuple[list[float], list[float]]) -> list[str]:
    """What is said of each base and head."""
    return evaluate(  # type: ignore[no-any-return]
        "from bench.compare import Comparison\n"
        f"found = [Comparison('x', {unit!r}, *side) for side in {sides}]\n"
        "said = ['slower' if one.slower else 'faster' if one.faster else '' for one in found]\n"
        "print(json.dumps(said))"
    )


def test_noise_is_no_slowdown() -> None:
    """30 ns more in 250 are seen through some noise, and noise alone is not seen."""
    base = [250.0 + noise for noise in (0, 4, -6, 9, 1, -2, 12, 3, -4, 70, 2, -3, 5, 0, 8)]
    heads = [
        [value + 30 for value in reversed(base)],
        [value - 30 for value in reversed(base)],
        base[::-1],
        [*base[:-2], 900, 900],
    ]
    assert compared("ns", *((base, head) for head in heads)) == ["slower", "faster", "", ""]


def test_counts_repeat() -> None:
    """One value decides where counting gives the same each time."""
    assert compared("round trips", ([10], [20]), ([10], [10])) == ["slower", ""]
    assert compared("instructions", ([1000], [1010]), ([1000], [1050])) == ["", "slower"]


def test_planted_slowdowns(tmp_path: Path) -> None:
    """The known slowdowns can still be planted, and the extra round trip is counted."""
    found = evaluate(
        "import shutil, sys\n"
        "from pathlib import Path\n"
        "from fastpool.testing import LocalPostgres\n"
        "from bench import compare\n"
        f"room = Path({str(tmp_path)!r})\n"
        "sites = {side: room / side for side in ('base', 'head')}\n"
        "ignored = shutil.ignore_patterns('*.so')\n"
        "for site in sites.values():\n"
        "    shutil.copytree('fastpool', site / 'fastpool', ignore=ignored)\n"
        "for plant in compare.PLANTS:\n"
        "    compare.plant(plant, sites['head'])\n"
        "try:\n"
        "    server = LocalPostgres()\n"
        "    server.start()\n"
        "except FileNotFoundError:\n"
        "    print('null')\n"
        "    sys.exit()\n"
        "with server:\n"
        "    trips = compare.round_trips(sites, 'python', server)\n"
        "    print(json.dumps({one.name: [one.base, one.head, one.slower] for one in trips}))\n"
    )
    need(found is not None, "no PostgreSQL")
    assert found["10 x select_1"] == [[10.0], [20.0], True]
    base, head, slower = found["10 x transaction"]
    assert base == head
    assert not slower


def test_the_right_revision_is_measured(tmp_path: Path) -> None:
    """A side that would import another fastpool is refused."""
    done = run(
        "-c",
        "from pathlib import Path\n"
        "from bench.compare import Probe\n"
        f"Probe(Path({str(tmp_path)!r}), 'python')",
    )
    assert done.returncode == 1
    assert "was measured, not" in done.stderr
