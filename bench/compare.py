"""Two git revisions, measured in turns: is the second slower than the first?

Both are built into a temporary directory and run on the packages of this interpreter.
Three kinds of figures are compared:

* times: noisy, so a ratio counts as slower only when the whole interval that holds its
  median with 99 % lies above ``1 + TOLERANCE``. The interval comes from the spread of
  the rounds; each round has new processes, since where a process lies in memory is part
  of the noise;
* instructions of a checkout, counted by ``valgrind --tool=callgrind`` where that is
  installed: they repeat;
* round trips of a statement, counted by a proxy: they repeat exactly.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import comb
from pathlib import Path
from statistics import median

from tqdm import tqdm

from fastpool.testing import FaultProxy, LocalPostgres

from .measure import pinned
from .probe import PROBED, STATEMENTS

__all__ = ["Comparison", "add_options", "interval", "run"]

ROOT = Path(__file__).resolve().parent.parent
PROBE = Path(__file__).with_name("probe.py")
CORES = {"c": "compiled", "python": "interpreted"}

TOLERANCE = {"ns": 0.05, "instructions": 0.02, "round trips": 0.0}
"""A slowdown up to this much is none: two builds of the same source differ by as much."""

PLANTS = {
    "delay": (
        "fastpool/_core.pyx",
        "        state: State = entry.state\n        idle: Entry\n",
        "        state: State = entry.state\n"
        "        monotonic()\n        monotonic()\n        idle: Entry\n",
    ),
    "trip": (
        "fastpool/pool.py",
        "            return conn.driver_connection.run(sql, **params)",
        '            conn.run("SELECT 1")\n'
        "            return conn.driver_connection.run(sql, **params)",
    ),
}
"""Known slowdowns, to see that a comparison sees them: reading a clock twice in each
release, some 30 ns, and one more round trip for each ``pool.run``."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="the git revision to compare with")
    parser.add_argument(
        "head", metavar="HEAD", nargs="?", help="default: the tracked files as they are now"
    )
    parser.add_argument("--rounds", type=int, choices=range(5, 100), default=15, metavar="N")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--plant", choices=PLANTS, help="slow the second one down, to see it seen")


@dataclass
class Comparison:
    """One figure of both sides, one value of each a round."""

    name: str
    unit: str
    base: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [head / base for base, head in zip(self.base, self.head, strict=True)]

    @property
    def slower(self) -> bool:
        return interval(self.ratios)[0] > 1 + TOLERANCE[self.unit]

    @property
    def faster(self) -> bool:
        return interval(self.ratios)[1] < 1 - TOLERANCE[self.unit]

    def __str__(self) -> str:
        """Its line of the table."""
        verdict = "**slower**" if self.slower else "faster" if self.faster else ""
        low, high = interval(self.ratios)
        spread = f"{low:.3f} .. {high:.3f}" if len(self.ratios) > 1 else "exact"
        sides = " | ".join(f"{median(side):,.0f}" for side in (self.base, self.head))
        ratio = f"{median(self.ratios):.3f}"
        return f"| {self.name} | {self.unit} | {sides} | {ratio} | {spread} | {verdict} |"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median of what *values* are samples of lies with 99 %: between the k-th
    smallest and the k-th largest, by the binomial distribution. All of them if few."""
    ordered, count = sorted(values), len(values)
    outside, k = 0.0, 0
    while (outside := outside + comb(count, k) / 2**count) <= 0.005:
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[-k]


def plant(name: str, tree: Path) -> None:
    """Write one of the known slowdowns into *tree*."""
    file, right, wrong = PLANTS[name]
    text = (tree / file).read_text()
    if text.count(right) != 1:
        raise SystemExit(f"bench: {file} has changed, and {name!r} cannot be planted any more")
    (tree / file).write_text(text.replace(right, wrong))


def build(revision: str, room: Path, planted: str | None = None) -> Path:
    """Install *revision* into a directory of its own; returns it."""
    tree, site = room / "tree", room / "site"
    tree.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", "--format=tar", revision], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x"], cwd=tree, input=archive.stdout, check=True)
    if planted is not None:
        plant(planted, tree)
        subprocess.run([sys.executable, "tools/unpyx.py"], cwd=tree, check=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*command, "--target", site, tree], env=environment, check=True)
    return site


def environment(site: Path, core: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(site), "FASTPOOL_IMPL": core}


class Probe:
    """A process that measures one side."""

    def __init__(self, site: Path, core: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, PROBE],
            cwd=site,
            env=environment(site, core),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        file, live = json.loads(self._line())
        if not Path(file).is_relative_to(site) or live != core:
            raise RuntimeError(f"{file} on {live} was measured, not {site} on {core}")

    def ask(self, case: str, dsn: str, amount: float) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([case, dsn, amount]) + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the measuring process has ended")
        return line

    def close(self) -> None:
        self._process.kill()  # its pools are not to be waited for
        self._process.communicate()


Sites = dict[str, Path]


def has(site: Path, core: str) -> bool:
    command = [sys.executable, "-c", "import fastpool"]
    done = subprocess.run(command, cwd=site, env=environment(site, core), stderr=subprocess.DEVNULL)
    return done.returncode == 0


def times(sites: Sites, cores: Sequence[str], dsn: str, rounds: int) -> list[Comparison]:
    """Every case on every core, one value a round."""
    cases = [(case, "") for case in PROBED] + [(case, dsn) for case in STATEMENTS if dsn]
    found: dict[tuple[str, str], Comparison] = {}
    order = list(sites)
    for _ in tqdm(range(rounds), desc="times", disable=not sys.stderr.isatty()):
        order.reverse()
        for core in cores:
            with contextlib.ExitStack() as stack:
                probes = {
                    side: stack.enter_context(contextlib.closing(Probe(sites[side], core)))
                    for side in order
                }
                for case, where in cases:
                    key = core, case
                    found.setdefault(key, Comparison(f"{case} ({CORES[core]})", "ns"))
                    for side, probe in probes.items():
                        getattr(found[key], side).append(probe.ask(case, where, 0.05))
    return list(found.values())


def round_trips(sites: Sites, core: str, server: LocalPostgres) -> Iterator[Comparison]:
    """What a call says to the server before it waits for an answer, how often."""
    calls = 10
    with FaultProxy(server) as proxy:
        dsn = f"{proxy.dsn}?sslmode=disable"
        for case in STATEMENTS:
            found = Comparison(f"{calls} x {case}", "round trips")
            for side, site in sites.items():
                with contextlib.closing(Probe(site, core)) as probe:
                    probe.ask(case, dsn, 1)
                    proxy.reset_counters()
                    probe.ask(case, dsn, calls)
                    getattr(found, side).append(float(proxy.counters().flights))
            yield found


def instructions(site: Path, core: str) -> float:
    """Of one checkout and return: two runs, the difference divided."""
    few, many = 1000, 101_000 if core == "c" else 6000
    counts = []
    for number in (few, many):
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
        done = subprocess.run(
            [*command, sys.executable, PROBE, "connection", str(number)],
            cwd=site,
            env={**environment(site, core), "PYTHONHASHSEED": "0"},
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
        match = re.search(r"Collected\s*:\s*(\d+)", done.stderr)
        assert match is not None, done.stderr
        counts.append(int(match[1]))
    return (counts[1] - counts[0]) / (many - few)


def compare(sites: Sites, rounds: int) -> list[Comparison]:
    cores = [core for core in CORES if all(has(site, core) for site in sites.values())]
    found: list[Comparison] = []
    if shutil.which("valgrind") is not None:
        for core in cores:
            counted = Comparison(f"connection ({CORES[core]})", "instructions")
            for side, site in sites.items():
                getattr(counted, side).append(instructions(site, core))
            found.append(counted)
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(LocalPostgres())
        except FileNotFoundError as error:
            print(f"bench: nothing on a server is compared: {error}", file=sys.stderr)
            return found + times(sites, cores, "", rounds)
        found += round_trips(sites, cores[0], server)
        with pinned(server.pid):  # and so the probes, and the server's own processes
            found += times(sites, cores, server.unix_dsn, rounds)
    return found


def as_markdown(base: str, head: str, found: Sequence[Comparison]) -> str:
    slower = [f"{one.name}, {one.unit}" for one in found if one.slower]
    verdict = f"Slower: {'; '.join(slower)}." if slower else "Nothing is slower beyond noise."
    lines = [f"`{head}` against `{base}`. {verdict}", ""]
    lines += ["| what | unit | base | head | ratio | 99 % interval | |", "|---" * 7 + "|"]
    return "\n".join([*lines, *map(str, found)]) + "\n"


def run(options: argparse.Namespace) -> int:
    head = options.head or _git("stash", "create") or "HEAD"
    revisions = {"base": options.base, "head": head}
    with tempfile.TemporaryDirectory() as directory:
        room = Path(directory)
        sites = {}
        for side, revision in revisions.items():
            print(f"bench: building {revision}", file=sys.stderr, flush=True)
            planted = options.plant if side == "head" else None
            sites[side] = build(_git("rev-parse", f"{revision}^{{commit}}"), room / side, planted)
        found = compare(sites, options.rounds)
    shown = options.head or "the working tree"
    if options.plant is not None:
        shown += f" + {options.plant}"
    text = as_markdown(options.base, shown, found)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text)
    return int(any(one.slower for one in found))


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()
