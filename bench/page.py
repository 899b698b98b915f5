"""benchmarks.md and the README's figures, from the benchmarks.json beside them."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .cases import FIGURES, GROUPS
from .report import amount

__all__ = ["DOCS", "readme", "write"]

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"

BEGIN = "<!-- figures: written by python -m bench readme -->"
END = "<!-- end of figures -->"

HEADLINES = {
    "checkout / lock": "`with pool.connection(): pass`, compiled / `with lock: pass`",
    "psycopg_pool / checkout": "psycopg_pool's checkout / ours",
    "SQLAlchemy / checkout": "SQLAlchemy's checkout / ours",
    "DBUtils / checkout": "DBUtils' checkout / ours",
    "interpreted core / DBUtils": "the interpreted core's checkout / DBUtils'",
    "32 threads: worst wait / ideal": "32 threads, 4 connections, 1 ms: worst wait / ideal",
    "one parameter, TCP: ours / pg8000": "one parameter over TCP / stock pg8000",
    "one parameter, TLS: ours / pg8000": "one parameter over TLS / stock pg8000",
    "TLS connect: ours / pg8000": "a new connection over TLS / stock pg8000",
    "restart: last thread served again / psycopg_pool": (
        "after a server's restart, until all threads are served / psycopg_pool"
    ),
}
"""The README's rows, by the names they have here."""

INTRODUCTION = """\
# Benchmarks

Written by `make bench`. Both sides of a figure are measured in one run and take turns; a
figure is the median of the rounds' ratios, and beside it stand their quartiles. Trust the
ratios: the times are those of one machine. A row with a target is one of the
project's claims, and `make figures` judges them anew. `make bench-full` takes the whole
grid. Commands run in `.venv` (`make bench-quick` makes it).

The pools under *Checkouts* and *Waiting* have connections to nothing, so what is
measured is the pool. `fastpool` is the compiled core unless it says otherwise.
"""

TITLES = {
    "checkout": "Checkouts",
    "socket": "The socket check",
    "scraped": "Beside a scraper",
    "fairness": "Waiting: how long, compared with the ideal",
    "crowded": "Waiting: the longest waits of all pools",
    "zero-hold": "Waiting: nothing but checkouts",
    "computing": "Waiting: callers that compute",
    "handoff": "Hand-off",
    "run": "A statement through the pool",
    "statement": "A statement with a parameter",
    "tls-connect": "A connection over TLS",
    "many": "Crowds",
    "memory": "Memory",
    "import": "Import",
    "grid": "Threads, connections and holds",
    "handoff-loads": "Hand-off on every pool",
    "storm": "Storms of timeouts",
    "cancellation": "Everybody is told",
    "fill": "Cold start",
    "spike": "A spike",
    "end-to-end": "End to end",
    "recovery": "A restart of the server",
    "others": "Where others win",
}


def table(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows) + "\n"


def cells(row: Mapping[str, Any]) -> list[str]:
    if row["ratio"] is None:
        return [row["name"], "", "", "", "", "", f"skipped: {row['note']}"]
    left, right = (amount(row[side], row["unit"]) for side in ("left", "right"))
    low, high = row["spread"]
    target = "" if row["target"] is None else "{} {:g}".format(*row["target"])
    spread = f"{low:.3g} .. {high:.3g}"
    return [row["name"], left, right, f"{row['ratio']:.3g}", spread, target, row["verdict"]]


def sections(data: Mapping[str, Any], directory: Path) -> Iterator[str]:
    from .plots import draw  # needs a library that measuring does not need

    yield INTRODUCTION
    yield table(["measured on", ""], [*data["machine"].items()])
    for group, function in GROUPS.items():
        rows = [row for row in data["rows"] if row["group"] == group]
        if not rows:
            continue
        yield f"## {TITLES[group]}\n"
        yield inspect.cleandoc(function.__doc__ or "").replace("``", "`") + "\n"
        drawn = draw(group, data["series"], directory / "benchmarks")
        if drawn is not None:
            file, caption = drawn
            yield f"![{caption}]({file.relative_to(directory)})\n\n*{caption}.*\n"
        header = ["figure", "left", "right", "ratio", "quartiles", "target", ""]
        yield table(header, [cells(row) for row in rows])
        command = "figures" if group in FIGURES else "run"
        yield f"Again: `python -m bench {command} --rows {group}`\n"


def load(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "benchmarks.json").read_text())
    return found


def write(directory: Path) -> int:
    (directory / "benchmarks.md").write_text("\n".join(sections(load(directory), directory)))
    return 0


def headlines(data: Mapping[str, Any]) -> str:
    """What stands between the README's marks."""
    lines = []
    for name, words in HEADLINES.items():
        row = next((row for row in data["rows"] if row["name"] == name), None)
        if row is not None and row["ratio"] is not None:
            sides = [amount(row[side], row["unit"]) for side in ("left", "right")]
            lines.append([words, *sides, f"{row['ratio']:.2g}"])
    machine = data["machine"]
    origin = (
        f"Measured by `make bench`, both sides in one run; Python {machine['python']}; "
        f"{machine['machine']}.\nAll figures, with the command for each: "
        "[docs/benchmarks.md](docs/benchmarks.md); `make figures` judges them again.\n"
    )
    return table(["what", "the first", "the second", "ratio"], lines) + "\n" + origin


def readme(check: bool) -> int:
    text = README.read_text()
    between = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    if len(between.findall(text)) != 1:
        print(f"bench: README.md must have {BEGIN} and {END} once", file=sys.stderr)
        return 1
    wanted = between.sub(lambda _: headlines(load(DOCS)), text)
    if check:
        if wanted != text:
            print("bench: README.md is behind docs/benchmarks.json", file=sys.stderr)
        return int(wanted != text)
    README.write_text(wanted)
    return 0
