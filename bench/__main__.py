"""``python -m bench figures | quick``: see ``--help``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .figures import GROUPS, Bench
from .measure import Effort
from .report import Row, as_json, as_table, machine

HELP = """figures: measure and judge; the exit status is 1 when a figure falls short.
quick: only see that all of it runs."""


def groups(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(f"no {name!r} in {','.join(GROUPS)}")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=HELP)
    parser.add_argument("command", choices=["figures", "quick"])
    parser.add_argument("--rows", type=groups, default=[*GROUPS], help=",".join(GROUPS))
    parser.add_argument("--rounds", type=int, choices=range(1, 100), default=9, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    options = parser.parse_args(argv)
    judged = options.command == "figures"
    described = machine()
    print(*(f"{key:14}{value}" for key, value in described.items()), "", sep="\n", flush=True)
    rows: list[Row] = []
    with Bench(Effort(options.rounds) if judged else Effort(1, slices=3, load=0.1)) as bench:
        for name in options.rows:
            bench.progress(name)
            try:
                rows += GROUPS[name](bench)
            except FileNotFoundError as error:  # there is no PostgreSQL here
                rows.append(Row(name, note=str(error)))
    print(as_table(rows, judged))
    print("\nload average at the end:", *(f"{average:.2f}" for average in os.getloadavg()))
    if options.json:
        options.json.write_text(as_json(described, rows, judged))
    return int(judged and any(row.verdict == "falls short" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
