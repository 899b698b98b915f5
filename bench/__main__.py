"""``python -m bench COMMAND``: see ``--help``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from . import compare, page
from .cases import FIGURES, GROUPS
from .measure import EFFORTS
from .report import Row, as_table, machine, save
from .stage import Bench

HELP = """\
figures   measure what has a target and judge it; exit status 1 when one falls short
run       measure everything, judge nothing
page      write benchmarks.md and its plots from the benchmarks.json in that directory
readme    write the README's figures from docs/benchmarks.json
compare   two git revisions; exit status 1 when the second is slower
"""


def groups(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(f"no {name!r} in {','.join(GROUPS)}")
    return names


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("figures", "run"):
        measuring = commands.add_parser(name)
        measuring.add_argument("--rows", type=groups, help=",".join(GROUPS))
        measuring.add_argument("--rounds", type=int, choices=range(1, 100), metavar="N")
        measuring.add_argument("--json", type=Path, metavar="FILE", help="write it there too")
        measuring.set_defaults(judged=name == "figures", effort="figures")
    measuring.add_argument("--effort", choices=EFFORTS, default="slice")
    commands.add_parser("page").add_argument(
        "directory", type=Path, nargs="?", default=page.DOCS, help="default: docs"
    )
    commands.add_parser("readme").add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 when it would"
    )
    compare.add_options(commands.add_parser("compare"))
    return parser


@contextmanager
def announced(bench: Bench, names: Sequence[str]) -> Iterator[Iterator[str]]:
    """The *names*, one after the other, with a progress bar where somebody sees it."""
    with tqdm(total=len(names), unit="group", disable=not sys.stderr.isatty()) as bar:

        def each() -> Iterator[str]:
            for name in names:
                if bar.disable:
                    bench.progress(name)
                else:
                    bar.set_description(name)
                yield name
                bar.update()

        if not bar.disable:
            bench.progress = bar.set_postfix_str  # type: ignore[method-assign]
        yield each()


def measure(options: argparse.Namespace) -> int:
    effort = EFFORTS[options.effort]
    if options.rounds is not None:
        effort = replace(effort, rounds=options.rounds)
    names = options.rows or [*(FIGURES if options.judged else GROUPS)]
    described = machine()
    print(*(f"{key:14}{value}" for key, value in described.items()), "", sep="\n", flush=True)
    rows: list[Row] = []
    with Bench(effort) as bench, announced(bench, names) as turns:
        for name in turns:
            try:
                found = [replace(row, group=name) for row in GROUPS[name](bench)]
            except FileNotFoundError as error:  # there is no PostgreSQL here
                found = [Row(name, note=str(error), group=name)]
            rows += found or [Row(name, note="no peer is installed", group=name)]
    judged = options.effort not in ("smoke", "quick")  # those are too short for a verdict
    print(as_table(rows, judged))
    print("\nload average at the end:", *(f"{average:.2f}" for average in os.getloadavg()))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        save(options.json, described, rows, judged, bench.series)
    return int(options.judged and any(row.verdict == "falls short" for row in rows))


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    for name in ("fastpool", "psycopg.pool", "sqlalchemy.pool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # restarts, TLS that proves nobody
    if options.command == "page":
        return page.write(options.directory)
    if options.command == "readme":
        return page.readme(check=options.check)
    if options.command == "compare":
        return compare.run(options)
    return measure(options)


if __name__ == "__main__":
    sys.exit(main())
