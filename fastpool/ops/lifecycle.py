"""A service's orderly end: it is told, wants no more requests, answers those it has, closes.

::

    server = serve(app, ":8080")
    pool.open(wait=True)
    server.set_ready()
    in_time = run_until_signal(server, pool, grace=30.0)

One deadline holds for all of it, so whoever sends the signal knows how long to wait.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from types import FrameType
from typing import Any, Protocol

from .._logs import Log
from ..errors import seconds
from ..pool import Pool
from ._pools import Pools, at_once, named
from ._server import Server

__all__ = ["run_until_signal"]

_log = Log()

_LOOK = 0.5
"""Seconds after which it is seen at the latest that the server has ended by itself."""


class Readiness(Protocol):
    """Who is told whether requests are wanted: ``Probes``, ``KubernetesProbes``."""

    def set_ready(self, ready: bool = True) -> None:
        """Whether they are."""


def run_until_signal(
    server: Server,
    pools: Pools,
    *,
    grace: float = 30.0,
    drain: float = 0.0,
    signals: Iterable[int] = (signal.SIGINT, signal.SIGTERM),
    readiness: Readiness | None = None,
) -> bool:
    """Wait in the main thread for a signal, then end everything in order; the log
    tells of each step, at level INFO:

    1. Readiness goes off: that of *readiness*, by default of the application that
       *server* serves, if that has ``set_ready``. For *drain* seconds requests are
       answered as before, until every load balancer has seen it.
    2. *server* is closed: it accepts no more, and requests in progress end.
    3. *pools*, one or several, are closed: connections in use come back.

    All of this has *grace* seconds. What has not ended by then is cut off, and the log
    names who holds a connection; the server gets ``close_timeout`` and a second
    more to hang up. A second signal hurries: what is left is cut off now.

    *grace*: seconds, ``math.inf`` for no limit. *drain*: seconds, at most *grace*.
    *signals*: those to wait for; what they did before they do again afterwards.

    Returns whether everything ended by itself: false after the deadline, and after a
    second signal. A server that ends before any signal has the same done, without a
    drain, and then the error that ended it is raised, if there was one.

    Raises ``RuntimeError`` in another thread than the main one, which alone can hear
    signals; ``ConfigError``, ``ValueError`` or ``TypeError`` for wrong arguments.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("run_until_signal() has to be called in the main thread")
    if not isinstance(server, Server):
        raise TypeError(f"server: expected what serve() returned, not {server!r}")
    set_ready = getattr(server.app if readiness is None else readiness, "set_ready", None)
    if readiness is not None and set_ready is None:
        raise TypeError(f"readiness: expected something with set_ready(), not {readiness!r}")
    grace = min(seconds("grace", grace, "do not wait"), threading.TIMEOUT_MAX)
    if seconds("drain", drain, "do not wait") > grace:
        raise ValueError(f"drain: expected at most grace, {grace:g} s, not {drain!r}")
    end = _End(server, named(pools), set_ready)
    with _Ear(_numbers(signals)) as ear:
        _log.info("serving", "serving on %s until %s", server.url, ear)
        heard, error = _wait(ear, server)
        why = "the HTTP server has ended" if heard is None else heard.name
        _log.info("shutdown", "%s: shutting down, in %g s at most", why, grace)
        ending = end.begin(grace, 0.0 if heard is None else drain, ear.wake)
        while not ending.done():
            again = ear.listen()
            if again is not None:
                _log.info("hurry", "%s again: cutting off what is left", again.name)
                end.hurry()
    ending.result()
    in_time = end.report()
    if error is not None:
        raise error
    return in_time


def _wait(ear: _Ear, server: Server) -> tuple[signal.Signals | None, BaseException | None]:
    """The first signal; or none and what ended the server, if that was an error."""
    while True:
        heard = ear.listen()
        if heard is not None:
            return heard, None
        try:
            if server.wait(0.0):
                return None, None
        except BaseException as error:
            return None, error


class _End:
    """The steps of a shutdown, in a thread of their own: the main thread listens."""

    def __init__(
        self,
        server: Server,
        pools: dict[str, Pool[Any]],
        set_ready: Callable[[bool], object] | None,
    ) -> None:
        self._server = server
        self._pools = pools
        self._set_ready = set_ready
        self._hurried = threading.Event()

    def begin(self, grace: float, drain: float, ended: Callable[[], object]) -> Future[None]:
        """Take all steps within *grace* seconds, then call *ended*."""
        self._began = time.monotonic()
        self._ends = self._began + grace
        outcome: Future[None] = Future()
        outcome.add_done_callback(lambda _: ended())

        def run() -> None:
            try:
                self._take(drain)
            except BaseException as error:
                outcome.set_exception(error)
            else:
                outcome.set_result(None)

        threading.Thread(target=run, name="fastpool-shutdown", daemon=True).start()
        return outcome

    def hurry(self) -> None:
        """Give what is left no more time."""
        self._hurried.set()
        self._server.close(0.0)
        self._close_pools()

    def report(self) -> bool:
        """Whether everything has ended by itself; says so."""
        in_time = self._left() > 0
        took = time.monotonic() - self._began
        if in_time:
            _log.info("stopped", "shut down in order, after %.1f s", took)
        else:
            _log.warning("cut_short", "shut down after %.1f s, not everything had ended", took)
        return in_time

    def _left(self) -> float:
        return 0.0 if self._hurried.is_set() else max(0.0, self._ends - time.monotonic())

    def _take(self, drain: float) -> None:
        with contextlib.ExitStack() as steps:  # each, whatever an earlier one raises
            steps.callback(self._close_pools)
            steps.callback(self._close_server)
            self._unready(drain)
        for pool in self._pools.values():
            Log(pool.name).info("pool_closed", "closed")

    def _unready(self, drain: float) -> None:
        if self._set_ready is not None:
            self._set_ready(False)
            _log.info("not_ready", "readiness is off")
        if drain:
            _log.info("drain", "serving for %g s more, until balancers have seen it", drain)
            self._hurried.wait(drain)

    def _close_server(self) -> None:
        self._server.close(self._left())
        _log.info("server_closed", "the HTTP server on %s is closed", self._server.address)

    def _close_pools(self) -> None:
        left = self._left()
        at_once({name: partial(pool.close, left) for name, pool in self._pools.items()})


# -- signals -------------------------------------------------------------------


def _numbers(signals: Iterable[int]) -> list[signal.Signals]:
    numbers = [signal.Signals(number) for number in dict.fromkeys(signals)]
    if not numbers:
        raise ValueError("signals: expected one or several, not none")
    for number in numbers:
        if number.name in ("SIGKILL", "SIGSTOP"):
            raise ValueError(f"signals: nobody can listen to {number.name}")
    return numbers


class _Ear:
    """Hears *numbers* in the main thread, as long as it is entered.

    A handler is run between two steps of the main thread, and notes the signal, no
    more. One that comes just before that thread falls asleep on a lock would be noted
    when it wakes, so it sleeps on a socket: the interpreter writes to that at once,
    whichever thread the system has interrupted.
    """

    def __init__(self, numbers: list[signal.Signals]) -> None:
        self._numbers = numbers
        self._pid = os.getpid()
        self._heard: deque[signal.Signals] = deque()

    def __enter__(self) -> _Ear:
        with contextlib.ExitStack() as undo:
            self._socket, self._bell = map(undo.enter_context, socket.socketpair())
            self._socket.settimeout(_LOOK)
            self._bell.setblocking(False)
            before = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
            undo.callback(signal.set_wakeup_fd, before)
            for number in self._numbers:
                # None: of somebody who is not Python, and gone with our own.
                undo.callback(signal.signal, number, signal.getsignal(number) or signal.SIG_DFL)
                signal.signal(number, self._note)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid:
            self._heard.append(signal.Signals(number))
        else:  # a child that was forked meanwhile: to it, it is what it was before
            self._undo.close()
            signal.raise_signal(number)

    def listen(self) -> signal.Signals | None:
        """The next one; or none, after a while or a :meth:`wake`."""
        if not self._heard:
            with contextlib.suppress(TimeoutError):
                self._socket.recv(4096)
        return self._heard.popleft() if self._heard else None

    def wake(self) -> None:
        """End :meth:`listen`; from any thread, and also when nobody listens any more."""
        with contextlib.suppress(OSError):
            self._bell.send(b"\0")

    def __str__(self) -> str:
        return " or ".join(number.name for number in self._numbers)
