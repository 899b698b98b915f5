"""One planted defect, and the places where several are planted."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One defect."""

    name: str
    file: str
    """Where it is planted, from the project's root."""
    right: str
    wrong: str
    test: str
    """A test's node id, as pytest takes it."""


CORE = "fastpool/_core.pyx"
TURNAROUND = "fastpool/_turnaround.py"
KEEPER = "fastpool/_keeper.py"
OPENER = "fastpool/_opener.py"
POOL = "fastpool/pool.py"
CONFIG = "fastpool/config.py"
WIRE = "fastpool/drivers/_wire.py"
HOUSE = "fastpool/_house.py"
