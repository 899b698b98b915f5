"""fastpool: a PostgreSQL connection pool for threads."""

from importlib import import_module
from typing import TYPE_CHECKING

from ._deadline import deadline
from ._impl import __impl__
from ._listen import Listener, Notification, listen
from .config import IdlePreset, LifetimePreset, PoolConfig
from .errors import (
    ConfigError,
    ConnectFailed,
    ConnectionBusy,
    ConnectionReleased,
    DeadlineExceeded,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolTimeout,
    TooManyRequests,
    TransactionAborted,
)
from .pool import Lease, Pool, PoolView, from_env
from .retry import RetryPolicy, is_retryable
from .sizing import PoolSize, calculate_pool_size
from .stats import Holder, PoolStats

__version__ = "0.1.0"

if not TYPE_CHECKING:  # which would then find any name here

    def __getattr__(name: str) -> object:
        """What is imported when it is first asked for, since few need it."""
        if name not in ("ops", "testing"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(f"{__name__}.{name}")


__all__ = [
    "ConfigError",
    "ConnectFailed",
    "ConnectionBusy",
    "ConnectionReleased",
    "DeadlineExceeded",
    "Holder",
    "IdlePreset",
    "Lease",
    "LifetimePreset",
    "Listener",
    "Notification",
    "Pool",
    "PoolClosed",
    "PoolConfig",
    "PoolDeadlock",
    "PoolError",
    "PoolSize",
    "PoolStats",
    "PoolTimeout",
    "PoolView",
    "RetryPolicy",
    "TooManyRequests",
    "TransactionAborted",
    "__impl__",
    "__version__",
    "calculate_pool_size",
    "deadline",
    "from_env",
    "is_retryable",
    "listen",
]
