"""Drivers: what the pool asks of one (:class:`Driver`), and pg8000's two kinds.

``fastpool.drivers.pg8000`` has ``Native`` and ``DBAPI``. A driver of your own
needs the methods of :class:`Driver`, and the flags of ``fastpool.drivers.base``
to tell what its connections are doing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .base import ConnState, Driver, Role, Wait

__all__ = ["ConnState", "Driver", "Role", "Wait"]

if not TYPE_CHECKING:  # which would then find any name here

    def __getattr__(name: str) -> object:
        """pg8000 takes 0.1 s to import: when it is first asked for."""
        if name != "pg8000":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(f"{__name__}.pg8000")
