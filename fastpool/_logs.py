"""What fastpool writes to the log: the logger ``fastpool``, of the standard library.

Each record says which pool it is about and what has happened, as attributes
(``pool``, ``event``) for handlers that keep such things apart, and in its message
for those that do not. Nothing is logged on the way of a caller who gets a
connection at once.
"""

from __future__ import annotations

import logging
import traceback

__all__ = ["Log"]

_logger = logging.getLogger("fastpool")
_logger.addHandler(logging.NullHandler())  # who configures no logging sees nothing of it


class Log:
    """The log of one pool, by its name; or of what is no pool's."""

    def __init__(self, pool: str | None = None) -> None:
        self.pool = pool

    def log(self, level: int, event: str, message: str, *args: object, **figures: object) -> None:
        """One record: *event* is one word for it, *figures* are more attributes."""
        self._put(level, event, message, args, figures)

    def debug(self, event: str, message: str, *args: object) -> None:
        """Of interest to who looks into this very matter."""
        self._put(logging.DEBUG, event, message, args, {})

    def info(self, event: str, message: str, *args: object) -> None:
        """It was to be expected now and then, and has been seen to."""
        self._put(logging.INFO, event, message, args, {})

    def warning(self, event: str, message: str, *args: object) -> None:
        """Somebody should know."""
        self._put(logging.WARNING, event, message, args, {})

    def exception(self, event: str, message: str, *args: object) -> None:
        """What should not have failed; with its traceback."""
        self._put(logging.ERROR, event, message, args, {}, exc_info=True)

    def _put(
        self,
        level: int,
        event: str,
        message: str,
        args: tuple[object, ...],
        figures: dict[str, object],
        exc_info: bool = False,
    ) -> None:
        if not _logger.isEnabledFor(level):
            return
        if self.pool is not None:
            message, args = f"pool %r: {message}", (self.pool, *args)
        extra = {"event": event, "pool": self.pool, **figures}
        try:
            _logger.log(level, message, *args, exc_info=exc_info, stacklevel=3, extra=extra)
        except Exception:  # of a filter or a handler: no reason to end a thread of the pool
            if logging.raiseExceptions:  # as for the errors that handlers notice themselves
                traceback.print_exc()
