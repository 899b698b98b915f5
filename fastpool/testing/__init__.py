"""What tests of a pool, or of code that uses one, need: public."""

from .local_postgres import LocalPostgres, LocalPostgresError
from .stub import StubConnection, StubDriver, StubError

__all__ = ["LocalPostgres", "LocalPostgresError", "StubConnection", "StubDriver", "StubError"]
