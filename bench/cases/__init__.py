"""What is measured: one function for each group of rows.

Targets are those of the compiled core unless a row says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..report import Row
from ..stage import Bench
from .checkout import checkout, scraped, socket_check
from .contention import (
    computing,
    crowded,
    fairness,
    grid,
    handoff,
    handoff_loads,
    zero_hold,
)
from .crowds import cancellation, imports, many, memory, storm
from .growth import fill, spike
from .others import others
from .recovery import recovery
from .server import end_to_end, run, statement, tls_connect

__all__ = ["FIGURES", "GROUPS", "Group"]

Group = Callable[[Bench], Iterator[Row]]

FIGURES: dict[str, Group] = {
    "checkout": checkout,
    "socket": socket_check,
    "scraped": scraped,
    "fairness": fairness,
    "crowded": crowded,
    "zero-hold": zero_hold,
    "computing": computing,
    "handoff": handoff,
    "run": run,
    "statement": statement,
    "tls-connect": tls_connect,
    "many": many,
    "memory": memory,
    "import": imports,
}
"""Those with targets, which ``figures`` judges."""

GROUPS: dict[str, Group] = {
    **FIGURES,
    "grid": grid,
    "handoff-loads": handoff_loads,
    "storm": storm,
    "cancellation": cancellation,
    "fill": fill,
    "spike": spike,
    "end-to-end": end_to_end,
    "recovery": recovery,
    "others": others,
}
