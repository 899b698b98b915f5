"""Which core is in force: compiled (``"c"``) or interpreted (``"python"``).

``FASTPOOL_IMPL`` forces one; a forced one that cannot be loaded is an
ImportError, never a silent fallback. Type checkers always see the interpreted
core: both are made from one source.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ._runtime import threads_are_real

__all__ = [
    "Checkout",
    "Core",
    "Entry",
    "Lease",
    "State",
    "__impl__",
    "skip_frames_of",
    "threads_are_real",
]

_wanted = os.environ.get("FASTPOOL_IMPL", "")
if _wanted not in ("", "c", "python"):
    raise ImportError(f"FASTPOOL_IMPL must be 'c' or 'python', not {_wanted!r}")

__impl__ = "python"
if TYPE_CHECKING or _wanted == "python":
    from fastpool._core_py import Checkout, Core, Entry, Lease, State, skip_frames_of
else:
    try:
        from fastpool._core import Checkout, Core, Entry, Lease, State, skip_frames_of

        __impl__ = "c"
    except ImportError as error:
        if _wanted == "c":
            raise ImportError(f"FASTPOOL_IMPL=c, but there is no compiled core: {error}") from error
        from fastpool._core_py import Checkout, Core, Entry, Lease, State, skip_frames_of
