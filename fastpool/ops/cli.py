"""The command ``fastpool``: a table of commands and what they have in common.

Exit status: 0 all is well, 1 the command found something wrong, 2 it could not
be carried out (bad usage, no connection), 130 interrupted.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NoReturn

from . import CommandError, demo, load, ping, serving, size

__all__ = ["main"]

_COMMANDS = {"demo": demo, "load": load, "ping": ping, "serve": serving, "size": size}
_STATUS = (
    "Exit status: 0 all is well, 1 the command found something wrong, 2 it could not be "
    "carried out, 130 interrupted."
)
# A connection string, in either of its forms, may hold a password.
_MAYBE_SECRET = re.compile(r"\S*(?:://|=)\S*")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse repeats what it does not understand.
        super().error(_MAYBE_SECRET.sub("(not shown)", message))


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        parser.exit(message=f"fastpool {metadata.version('fastpool')}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    *argv*: the arguments, by default those of the process. Bad usage raises
    ``SystemExit(2)``, ``--help`` ``SystemExit(0)``, as is argparse's way.
    """
    parser = _Parser(
        prog="fastpool",
        description="A PostgreSQL connection pool for threads.",
        epilog=_STATUS,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print it and exit")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, command in _COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP, epilog=_STATUS))
    args = parser.parse_args(argv)
    try:
        status: int = _COMMANDS[args.command].run(args)
        return status
    except CommandError as error:
        print(f"fastpool {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fastpool {args.command}: interrupted", file=sys.stderr)
        return 130
