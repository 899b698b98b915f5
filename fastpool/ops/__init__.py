"""What operators use: health, probes, a page, metrics, logs, an orderly end, the command line.

::

    from fastpool.ops import HealthChecker, KubernetesProbes, StatsLogger, admin, probes
    from fastpool.ops import run_until_signal, serve

Nothing below imports from here, and a name is loaded when it is first used. A command
is a module with ``HELP`` (one line), ``add_arguments(parser)`` and ``run(args) -> int``,
the exit status; the table of commands is in ``cli``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._server import Server, serve
    from .health import (
        DatabaseHealth,
        HealthChecker,
        HealthStatus,
        KubernetesProbes,
        ProbeResult,
    )
    from .http import Admin, App, Probes, admin, mount, probes
    from .lifecycle import run_until_signal
    from .logs import StatsLogger
    from .metrics import MissingPackage, PrometheusCollector, exposition, instrument

__all__ = [
    "Admin",
    "App",
    "CommandError",
    "DatabaseHealth",
    "HealthChecker",
    "HealthStatus",
    "KubernetesProbes",
    "MissingPackage",
    "ProbeResult",
    "Probes",
    "PrometheusCollector",
    "Server",
    "StatsLogger",
    "admin",
    "exposition",
    "instrument",
    "mount",
    "probes",
    "run_until_signal",
    "serve",
]

_HOMES = {
    "_server": ("Server", "serve"),
    "health": (
        "DatabaseHealth",
        "HealthChecker",
        "HealthStatus",
        "KubernetesProbes",
        "ProbeResult",
    ),
    "http": ("Admin", "App", "Probes", "admin", "mount", "probes"),
    "lifecycle": ("run_until_signal",),
    "logs": ("StatsLogger",),
    "metrics": ("MissingPackage", "PrometheusCollector", "exposition", "instrument"),
}


class CommandError(Exception):
    """The command cannot do what it was asked; the text is for the user."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f".{home}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
