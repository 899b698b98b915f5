"""The pool: the object that users hold.

It adds to the checkout of the core (``connection``, ``acquire``, ``release``,
``try_acquire``) what needs a driver or a thread, and passes everything on to the
house. It has no state of its own.
"""

from __future__ import annotations

import itertools
import math
import os
import reprlib
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from . import _deadline, _impl
from ._house import House
from ._impl import Checkout
from ._opener import PERMANENT_FOR
from ._secrets import hides_arguments
from ._transaction import Isolation, transaction_modes
from .config import PoolConfig
from .conninfo import DatabaseConfig, resolve
from .drivers.base import Driver
from .errors import ConfigError, ConnectionReleased, PoolClosed, seconds
from .retry import RetryPolicy, run_in_transaction
from .stats import Holder, PoolStats

if TYPE_CHECKING:
    from .drivers.pg8000 import NativeConnection

__all__ = ["Lease", "Pool", "PoolView", "Retrying", "from_env"]

ConnT = TypeVar("ConnT")
T = TypeVar("T")

if TYPE_CHECKING:

    class Lease(Generic[ConnT]):
        """What type checkers see of the core's ``Lease``: a connection, and more."""

        @property
        def driver_connection(self) -> ConnT: ...
        def cancel(self, timeout: float = 1.0) -> None: ...
        def release(self) -> None: ...
        def close(self) -> None: ...
        def transaction(
            self,
            *,
            isolation: Isolation | None = None,
            read_only: bool | None = None,
            deferrable: bool | None = None,
        ) -> AbstractContextManager[ConnT]: ...
        def __enter__(self) -> ConnT: ...
        def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
else:
    Lease = _impl.Lease

_numbers = itertools.count(1)


class PoolView(Checkout, Generic[ConnT]):
    """A pool's checkout on certain terms: see :meth:`Pool.within`."""

    _house: House
    # pool: what a view was made from; a pool ends when nobody has it.
    _pool: PoolView[ConnT]
    _limits: tuple[float | None, float | None] = (None, None)

    if TYPE_CHECKING:
        # Inherited from the core, which cannot know the connection's class.
        def connection(
            self, timeout: float | None = None, deadline: float | None = None
        ) -> AbstractContextManager[ConnT]: ...
        def acquire(
            self, timeout: float | None = None, deadline: float | None = None
        ) -> Lease[ConnT]: ...
        def try_acquire(self) -> Lease[ConnT] | None: ...

    def within(
        self, *, timeout: float | None = None, deadline: float | None = None
    ) -> PoolView[ConnT]:
        """The same pool, with other limits for the calls made through it.

        Both are seconds, where a call names none: *timeout* for the wait, *deadline*
        for all that the call does, as in :meth:`connection`. One that is not given is
        as it was::

            pool.within(deadline=0.5).run("SELECT ...")
        """
        if timeout is None:
            timeout = self._limits[0]
        if deadline is None:
            deadline = self._limits[1]
        view: PoolView[ConnT] = PoolView(self._core, timeout, deadline)
        view._limits = timeout, deadline
        view._house = self._house
        view._pool = self
        return view

    def run(self, sql: str, /, **params: Any) -> Any:
        """Acquire a connection, ``conn.run(sql, **params)``, release it.

        For the native driver. Committed when it ends well. Raises what
        :meth:`connection` and the driver raise.
        """
        with self.connection() as conn:
            # The driver's own: nobody else has this lease, which would look all up first.
            return conn.driver_connection.run(sql, **params)  # type: ignore[attr-defined]

    def execute(self, sql: str, args: Sequence[Any] = ()) -> Sequence[Any]:
        """Acquire a connection, execute on a cursor, fetch all, release.

        For DB-API drivers. Returns the rows, empty for a statement without any.
        Committed when it ends well.
        """
        with self.connection() as conn:
            cursor = conn.cursor()  # type: ignore[attr-defined]
            cursor.execute(sql, args)
            rows: Sequence[Any] = () if cursor.description is None else cursor.fetchall()
            return rows

    def transaction(
        self,
        timeout: float | None = None,
        deadline: float | None = None,
        *,
        isolation: Isolation | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
    ) -> AbstractContextManager[ConnT]:
        """A connection with a transaction open: BEGIN .. COMMIT, or ROLLBACK.

        *timeout* and *deadline* as in :meth:`connection`. *isolation* is ``"read committed"``,
        ``"repeatable read"`` or ``"serializable"``; see the PostgreSQL manual,
        "SET TRANSACTION".
        """
        transaction_modes(isolation, read_only, deferrable)  # wrong ones cost no connection
        options: dict[str, Any] = {
            "isolation": isolation,
            "read_only": read_only,
            "deferrable": deferrable,
        }
        return _PoolTransaction(self, (timeout, deadline), options)

    def retry(self, policy: RetryPolicy | None = None) -> Retrying:
        """The same calls, tried again as *policy* says (default: three attempts)::

            rows = pool.retry(RetryPolicy(idempotent=True)).run("SELECT ...")

        The result is read within the attempt. A statement that may have run
        already is only repeated when the policy says ``idempotent``.
        """
        return Retrying(self, _policy(policy))

    def run_in_transaction(
        self,
        fn: Callable[[ConnT], T],
        *,
        policy: RetryPolicy | None = None,
        isolation: Isolation | None = None,
    ) -> T:
        """``fn(conn)`` in a transaction; the whole of it again when it failed in
        vain: see :func:`fastpool.retry.run_in_transaction`."""
        return run_in_transaction(self, fn, policy=_policy(policy), isolation=isolation)

    def ping(self, timeout: float = 5.0) -> None:
        """One round trip on a connection of the pool, all in *timeout* seconds.

        Raises ``PoolTimeout`` (its cause: the last connect error),
        ``ConnectFailed``, or the driver's error.
        """
        limit = time.monotonic() + seconds("timeout", timeout, "try")
        self._ping(timeout, min(limit, _deadline.current()))

    def _ping(self, wait: float, deadline: float) -> None:
        """Wait *wait* seconds at most for the connection, and for all until *deadline*."""
        lease = self.acquire(wait)
        try:
            entry = lease._entry_of(self._core)
            self._house.driver.ping(entry.conn, max(0.001, deadline - time.monotonic()))
        finally:
            lease.release()


class Retrying:
    """A pool's calls under a retry policy: see :meth:`PoolView.retry`."""

    def __init__(self, pool: PoolView[Any], policy: RetryPolicy) -> None:
        self._pool = pool
        self._policy = policy

    def run(self, sql: str, /, **params: Any) -> Any:
        """:meth:`PoolView.run`, tried again."""
        return self._policy.call(self._pool.run, sql, **params)

    def execute(self, sql: str, args: Sequence[Any] = ()) -> Sequence[Any]:
        """:meth:`PoolView.execute`, tried again."""
        return self._policy.call(self._pool.execute, sql, args)


class _PoolTransaction(Generic[ConnT]):
    """``pool.transaction()``: a lease, and a transaction on it."""

    def __init__(
        self,
        pool: PoolView[ConnT],
        limits: tuple[float | None, float | None],
        options: dict[str, Any],
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._options = options
        self._entered = itertools.count()

    def __enter__(self) -> ConnT:
        if next(self._entered):  # a thread that shares it would end the other's transaction
            raise ConnectionReleased(
                "a block of pool.transaction() lives once; ask the pool for another"
            )
        self._lease = self._pool.acquire(*self._limits)
        try:
            self._transaction = self._lease.transaction(**self._options)
            conn: ConnT = self._transaction.__enter__()
        except BaseException:
            self._lease.release()
            raise
        return conn

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        try:
            self._transaction.__exit__(exc_type, exc, traceback)
        finally:
            self._lease.release()


class Pool(PoolView[ConnT]):
    """A pool of connections to one database, for any number of threads.

    *conninfo* is a libpq connection string, a URI or key=value; what it leaves
    out comes from the ``PG*`` environment, the service file and the password
    file, as with libpq. *driver* is ``"native"`` (default), ``"dbapi"``, or an
    object with the :class:`fastpool.drivers.Driver` protocol. *settings* are
    those of :class:`PoolConfig`; they win over the same ones in *conninfo*.

    One more, ``password``, wins over what *conninfo* and the password file say. It
    is text, or a function without arguments that is called for each dial and
    returns text: for tokens that expire. When the server refuses what it returned
    (28P01), it is asked once more and dialled again at once, before that counts as
    a failure. So is a ``before_connect`` hook, which may set ``password`` as well.

    Making a pool checks everything and dials nothing. Raises ``ConfigError``.
    Use one pool per database and process, and share it::

        with Pool("postgresql://app@db/app", max_size=10) as pool:
            with pool.connection() as conn:
                rows = conn.run("SELECT id FROM t WHERE a = :a", a=1)
    """

    @overload
    def __init__(
        self: Pool[NativeConnection],
        conninfo: str = "",
        *,
        driver: None = None,
        name: str | None = None,
        **settings: Any,
    ) -> None: ...
    @overload
    def __init__(
        self,
        conninfo: str = "",
        *,
        driver: Driver[ConnT],
        name: str | None = None,
        **settings: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: Pool[Any],
        conninfo: str = "",
        *,
        driver: Driver[Any] | str | None = None,
        name: str | None = None,
        **settings: Any,
    ) -> None: ...
    @hides_arguments
    def __init__(
        self,
        conninfo: str = "",
        *,
        driver: Driver[ConnT] | str | None = None,
        name: str | None = None,
        **settings: Any,
    ) -> None:
        password = settings.pop("password", None)
        resolved = resolve(conninfo)
        if password is not None:
            resolved = resolved.with_password(password)
        config = PoolConfig.build(**{**resolved.settings, **settings})
        if name is None:
            name = f"pool-{next(_numbers)}"
        # It becomes the application_name of every session.
        if not isinstance(name, str) or not name.isprintable():
            raise ConfigError(f"name: expected printable text, not {name!r}", setting="name")
        house = House(resolved, _driver(driver), config, name)
        super().__init__(house.core)
        self._house = house

    @classmethod
    @hides_arguments
    def from_config(
        cls,
        config: PoolConfig,
        conninfo: str = "",
        *,
        driver: Driver[ConnT] | str | None = None,
        name: str | None = None,
        password: str | Callable[[], str] | None = None,
    ) -> Pool[ConnT]:
        """A pool with ready-made settings; those in *conninfo* are ignored."""
        settings = {field: getattr(config, field) for field in config.__dataclass_fields__}
        settings = {field: value for field, value in settings.items() if field[0] != "_"}
        pool: Pool[ConnT] = cls(conninfo, driver=driver, name=name, password=password, **settings)
        pool._house.configure(config)
        return pool

    # -- life ------------------------------------------------------------------

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Start the threads and fill up to ``min_size`` in the background.

        Optional: the first acquire does it too. With *wait*, return when
        ``min_size`` is reached, as :meth:`wait`. Opening an open pool does
        nothing; a closed one stays closed (``PoolClosed``).
        """
        seconds("timeout", timeout, "look")
        self._house.open()
        if self._core.phase != 1:
            raise PoolClosed(f"pool {self.name!r} is closed, and a closed pool stays closed")
        if wait:
            self.wait(timeout)

    def wait(self, timeout: float = 30.0) -> None:
        """Until ``min_size`` connections are there, at most *timeout* seconds.

        Raises the *cause* when they are not: ``ConnectFailed`` at once for what
        will not mend itself (a wrong password), else ``PoolTimeout`` with the
        last connect error as its cause. The pool stays open either way.
        """
        seconds("timeout", timeout, "look")
        core, opener = self._core, self._house.opener
        began = time.monotonic()
        timeout = min(timeout, max(0.0, _deadline.current() - began))
        self._house.open()
        opener.wake()

        def ready() -> bool:
            return core.idle + core.leased + core.held >= core.min_size

        def permanent() -> BaseException | None:
            fresh = opener.last_error_at > began - PERMANENT_FOR
            return opener.permanent if fresh else None

        def over() -> bool:
            return ready() or core.phase != 1 or permanent() is not None

        with opener.progress:
            opener.progress.wait_for(over, min(timeout, threading.TIMEOUT_MAX))
        if core.phase != 1:
            raise self._house.refusal("closed", timeout, 0.0, None)
        if ready():
            return
        error = permanent()
        if error is not None:
            raise opener.refusal(error)
        raise self._house.refusal("timeout", timeout, time.monotonic() - began, None)

    def close(self, timeout: float = 30.0) -> None:
        """Close for good.

        Waiters get ``PoolClosed`` at once; idle connections are closed; those in
        use when they come back. After *timeout* seconds whatever is still held
        is cancelled and shut down, and a warning names the holders. Afterwards no
        connection of the pool is open; what was being dialled just then is closed as
        soon as that ends, after ``connect_timeout`` at the latest. Closing twice does
        nothing.
        """
        self._house.close(seconds("timeout", timeout, "do not wait"))

    def __enter__(self) -> Pool[ConnT]:
        self.open()
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        self.close()

    # At interpreter exit the names of this module may be gone already.
    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        house = getattr(self, "_house", None)  # absent when the settings were wrong
        if house is None or finalizing():
            return
        phase = house.core.phase
        if phase != 2:  # one that was not opened too: nobody else can end it any more
            house.drop()
        if phase == 1:
            message = f"pool {house.name!r} was never closed"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    # -- the living pool -------------------------------------------------------

    @hides_arguments
    def reconfigure(self, **settings: Any) -> None:
        """Change settings while the pool works; all of them, or none.

        What concerns new connections only (``session_settings``,
        ``application_name``, ``connect_timeout``) leaves the present ones alone, and
        so does ``cancel_budget`` for their statements:
        :meth:`drain` renews them. Raises ``ConfigError``, then nothing changed.
        """
        self._house.reconfigure(settings)

    def resize(self, *, min_size: int | None = None, max_size: int | None = None) -> None:
        """Short for :meth:`reconfigure` of ``min_size`` and ``max_size``.

        When it shrinks, idle connections close at once and others on return.
        """
        sizes = {"min_size": min_size, "max_size": max_size}
        self.reconfigure(**{name: size for name, size in sizes.items() if size is not None})

    def drain(self) -> None:
        """Replace every connection: idle ones now, others on return, dials in
        flight when they end. Afterwards none made before is handed out."""
        self._core.drain()
        self._house.wanted()

    def invalidate(self, conn: ConnT | Lease[ConnT]) -> None:
        """Close a held connection instead of keeping it.

        *conn* is what :meth:`connection` or :meth:`acquire` gave. Afterwards it
        is released, and what was open on it is rolled back; the pool makes a new
        connection when one is needed.
        """
        entry = _lease(conn)._entry_of(self._core)
        self._core.retire(entry, id(conn), "invalidated")  # the lease's token, whoever has it now

    def detach(self, conn: ConnT | Lease[ConnT]) -> ConnT:
        """Take a held connection out of the pool, for good.

        Returns the driver's connection, which is the caller's to close; *conn*
        is released, and its slot in the pool is free.
        """
        entry = _lease(conn)._entry_of(self._core)
        driver_connection: ConnT = entry.conn
        if not self._core.detach(entry, id(conn)):  # another thread was first
            raise ConnectionReleased("the connection was given back to the pool")
        entry.state.deadline = math.inf  # the lease's, which is over
        self._house.wanted()
        self._house.disposed()  # a closing pool waits for the slot
        return driver_connection

    # -- what is known ---------------------------------------------------------

    @property
    def name(self) -> str:
        """The name in logs, errors and metrics."""
        return self._house.name

    @property
    def config(self) -> PoolConfig:
        """The settings in force."""
        return self._house.config

    def stats(self) -> PoolStats:
        """One consistent snapshot of gauges and counters."""
        return self._house.stats()

    def holders(self) -> list[Holder]:
        """Who has a connection now, the longest first."""
        return self._house.holders()

    def __repr__(self) -> str:
        if not hasattr(self, "_house"):  # seen in a traceback: its settings were refused
            return "<Pool, not made>"
        core = self._core
        phase = ("new", "open", "closed")[core.phase]
        return (
            f"<Pool {self.name!r} {phase}: size {core.size}/{core.max_size}, "
            f"idle {core.idle}, in use {core.leased}, waiting {core.waiting}>"
        )


@hides_arguments
def from_env(**settings: Any) -> Pool[Any]:
    """A pool from the ``DB_*`` variables; *settings* win over them.

    Raises ``ConfigError`` that names the variable.
    """
    database = DatabaseConfig.from_env()
    given = {**database.settings, **settings}
    if "min_size" not in settings and not os.environ.get("DB_MIN_CONNS"):
        del given["min_size"]  # its default follows max_size, whoever sets that
    try:
        return Pool(database.connection_string(), **given)
    except ConfigError as error:
        variable = database.variables.get(error.setting or "")
        if variable is None or error.setting in settings or not os.environ.get(variable):
            raise
        raise ConfigError(f"{variable}: {error}", setting=variable) from None


def _driver(driver: Any) -> Driver[Any]:
    if driver is None or isinstance(driver, str):
        from .drivers import pg8000  # here, since importing pg8000 takes 0.1 s

        kinds = {"native": pg8000.Native, "dbapi": pg8000.DBAPI}
        kind = kinds.get(driver or "native")
        if kind is None:
            raise ConfigError(
                f"driver: expected 'native', 'dbapi' or a driver object, not {driver!r}",
                setting="driver",
            )
        return cast("Driver[Any]", kind())
    methods = [name for name in vars(Driver) if not name.startswith("_")]
    if isinstance(driver, type) or not all(callable(getattr(driver, m, None)) for m in methods):
        raise ConfigError(
            f"driver: {driver!r} is no driver object (fastpool.drivers.Driver lists its methods)",
            setting="driver",
        )
    return cast("Driver[Any]", driver)


def _policy(policy: Any) -> RetryPolicy:
    if policy is not None and not isinstance(policy, RetryPolicy):
        raise TypeError(f"policy: expected a RetryPolicy, not {reprlib.repr(policy)}")
    return policy or RetryPolicy()


def _lease(conn: Any) -> Any:
    if type(conn) is not Lease:
        raise TypeError(f"expected what connection() or acquire() gave, not {type(conn).__name__}")
    return conn


_impl.skip_frames_of(globals(), run_in_transaction.__globals__)
