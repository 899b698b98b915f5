"""Drivers: what the pool asks of one (:class:`Driver`), and pg8000's two kinds.

``fastpool.drivers.pg8000`` has ``Native`` and ``DBAPI``. A driver of your own
needs the methods of :class:`Driver`, and the flags of ``fastpool.drivers.base``
to tell what its connections are doing.
"""

from .base import ConnState, Driver, Role, Wait

__all__ = ["ConnState", "Driver", "Role", "Wait"]
