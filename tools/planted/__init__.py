"""Defects that the tests must notice; ``tools/mutants.py`` plants them.

Each is a slip that somebody could make: a line forgotten, the wrong setting, a
comparison off by one. ``right`` is text that stands exactly once in ``file``, and
``wrong`` takes its place. ``test`` is the quickest test that is about it. Whoever
changes such a line changes it here too: a text that is not found is a failure.
"""

from __future__ import annotations

from .core import CHECKOUT, RETURN, SLOTS, WAITING
from .dialling import DIALLING, FAILOVER
from .driver import DEADLINES, DRIVER, POOLER, TIME_LIMITS
from .mutant import Mutant
from .process import FORK, INTERRUPTS, MATRIX
from .settings import HIDDEN, SETTINGS
from .told import EXPLAINING, OPERATIONS, SOAK

__all__ = ["MUTANTS", "Mutant"]

MUTANTS = [
    *WAITING,
    *CHECKOUT,
    *RETURN,
    *SLOTS,
    *DIALLING,
    *SETTINGS,
    *DRIVER,
    *DEADLINES,
    *TIME_LIMITS,
    *MATRIX,
    *INTERRUPTS,
    *FAILOVER,
    *FORK,
    *POOLER,
    *HIDDEN,
    *EXPLAINING,
    *SOAK,
    *OPERATIONS,
]
