"""What tests of a pool, or of code that uses one, need: public."""

from .fault_proxy import (
    Certificate,
    Counters,
    FaultProxy,
    FaultProxyError,
    ProxiedConnection,
    make_certificate,
)
from .local_postgres import LocalPostgres, LocalPostgresError
from .stub import StubConnection, StubDriver, StubError

__all__ = [
    "Certificate",
    "Counters",
    "FaultProxy",
    "FaultProxyError",
    "LocalPostgres",
    "LocalPostgresError",
    "ProxiedConnection",
    "StubConnection",
    "StubDriver",
    "StubError",
    "make_certificate",
]
