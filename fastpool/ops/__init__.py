"""What operators use: the command line and its commands.

Nothing below imports from here. A command is a module with ``HELP`` (one line),
``add_arguments(parser)`` and ``run(args) -> int``, the exit status; the table of
commands is in ``cli``.
"""

from __future__ import annotations

__all__ = ["CommandError"]


class CommandError(Exception):
    """The command cannot do what it was asked; the text is for the user."""
