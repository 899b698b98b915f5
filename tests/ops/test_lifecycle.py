"""A service's orderly end: the steps, their one deadline, and signals at odd times."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ops.kit import ask
from ops.test_server import Gate
from pool.kit import Caller, eventually
from support import need

from fastpool import Pool
from fastpool.ops import KubernetesProbes, Server, mount, probes, run_until_signal

Make = Callable[..., Pool[Any]]
Serving = Callable[..., Server]
Spawn = Callable[[Callable[[], Any]], Caller]


class Log:
    """What is logged meanwhile."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "fastpool")
        self._caplog = caplog

    def events(self) -> list[str]:
        return [getattr(record, "event", "") for record in self._caplog.records]

    def text(self) -> str:
        return self._caplog.text

    def until(self, event: str) -> None:
        """Wait for a record of *event*."""
        eventually(lambda: event in self.events(), f"{event} is logged")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go.set()


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Whatever happens, the handlers of signals are put back."""
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1


def kill(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_steps(make: Make, serving: Serving, spawn: Spawn, log: Log, number: int) -> None:
    """A signal ends everything in order, and each step is logged with its own event."""
    pool = make(name="orders", min_size=1)
    server = serving(probes(pool))
    server.set_ready()

    def tell() -> None:
        log.until("serving")
        assert ask(server.address, "/readyz").status == 200
        kill(number)

    telling = spawn(tell)
    assert run_until_signal(server, pool) is True
    telling.result()
    ours = ["serving", "shutdown", "not_ready", "server_closed", "pool_closed", "stopped"]
    assert [event for event in log.events() if event in {*ours, "hurry"}] == ours
    assert f"serving on {server.url} until SIGINT or SIGTERM" in log.text()
    assert f"{signal.Signals(number).name}: shutting down, in 30 s at most" in log.text()
    assert "pool 'orders': closed" in log.text()
    assert "closed" in repr(pool)
    with pytest.raises(OSError, match="refused"):
        ask(server.address, "/healthz")


def test_drain(make: Make, serving: Serving, spawn: Spawn, log: Log) -> None:
    """While it drains readiness is off and everything else is answered as before."""
    pool = make()
    server = serving(probes(pool))
    server.set_ready()

    def tell() -> tuple[int, int]:
        log.until("serving")
        kill()
        log.until("drain")
        answers = ask(server.address, "/readyz").status, ask(server.address, "/db/stats").status
        assert "server_closed" not in log.events()
        return answers

    telling = spawn(tell)
    began = time.monotonic()
    assert run_until_signal(server, pool, drain=1.0) is True
    assert time.monotonic() - began >= 1.0
    assert telling.result() == (503, 200)


def test_requests_end_before_the_pool(
    gate: Gate, make: Make, serving: Serving, spawn: Spawn, log: Log
) -> None:
    """A request in progress is answered, and until then it has the pool."""
    pool = make()
    server = serving(gate)
    waiting = spawn(lambda: ask(server.address, "/slow").body)

    def tell() -> None:
        assert gate.entered.wait(10)
        log.until("serving")
        kill()
        eventually(lambda: not server._thread.is_alive())
        pool.acquire().release()
        gate.go.set()

    telling = spawn(tell)
    assert run_until_signal(server, pool) is True
    telling.result()
    assert waiting.result() == b"GET "


def test_a_leaked_connection(make: Make, serving: Serving, spawn: Spawn, log: Log) -> None:
    """At the deadline it ends all the same; the log names who holds a connection."""
    pool = make(name="orders")
    server = serving(probes(pool))
    lease = pool.acquire()
    telling = spawn(lambda: (log.until("serving"), kill()))
    began = time.monotonic()
    assert run_until_signal(server, pool, grace=0.3) is False
    assert 0.3 <= time.monotonic() - began < 20
    telling.result()
    assert "with 1 connections still in use" in log.text()
    assert "test_lifecycle.py:" in log.text()
    assert log.events()[-1] == "cut_short"
    assert pool.stats().size == 0
    lease.release()


def test_one_deadline(gate: Gate, make: Make, serving: Serving, spawn: Spawn, log: Log) -> None:
    """A request and two pools that do not end have one grace together, and not three."""
    first, second = make(name="first"), make(name="second")
    leases = [first.acquire(), second.acquire()]
    server = serving(gate)
    waiting = spawn(lambda: ask(server.address, "/slow"))

    def tell() -> None:
        assert gate.entered.wait(10)
        log.until("serving")
        kill()

    telling = spawn(tell)
    began = time.monotonic()
    assert run_until_signal(server, {"a": first, "b": second}, grace=2.0) is False
    assert 2.0 <= time.monotonic() - began < 3.9
    telling.result()
    assert "1 requests were cut off" in log.text()
    assert log.events().count("closed_in_use") == 2
    gate.go.set()
    with pytest.raises(OSError, match=r".*"):
        waiting.result()
    for lease in leases:
        lease.release()


@pytest.mark.parametrize("during", ["drain", "request", "pool"])
def test_a_second_signal(
    gate: Gate, make: Make, serving: Serving, spawn: Spawn, log: Log, during: str
) -> None:
    """The second signal cuts off what is left, whatever is being waited for."""
    pool = make()
    lease = pool.acquire()
    server = serving(mount(gate, "/ops", probes(pool)))
    waiting = None

    def tell() -> None:
        log.until("serving")
        kill()
        log.until({"drain": "drain", "request": "shutdown", "pool": "server_closed"}[during])
        assert "pool_closed" not in log.events()
        kill()

    if during == "request":
        waiting = spawn(lambda: ask(server.address, "/slow"))
        assert gate.entered.wait(10)
    telling = spawn(tell)
    drain = 60.0 if during == "drain" else 0.0
    began = time.monotonic()
    assert run_until_signal(server, pool, grace=60.0, drain=drain) is False
    assert time.monotonic() - began < 30
    telling.result()
    assert "SIGTERM again: cutting off what is left" in log.text()
    assert log.events()[-1] == "cut_short"
    assert pool.stats().size == 0
    lease.release()
    gate.go.set()
    if waiting is not None:
        with pytest.raises(OSError, match=r".*"):
            waiting.result()


def test_a_server_that_breaks_down(
    make: Make, serving: Serving, spawn: Spawn, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is raised as it is, at once, and the pool is closed all the same."""
    pool = make()
    server = serving(probes(pool))
    error = LookupError("no more")

    def broken() -> None:
        raise error

    telling = spawn(
        lambda: (
            log.until("serving"),
            monkeypatch.setattr(server._listener, "service_actions", broken),
        )
    )
    began = time.monotonic()
    with pytest.raises(LookupError) as raised:
        run_until_signal(server, pool, grace=60.0, drain=60.0)
    assert raised.value is error
    assert time.monotonic() - began < 30
    telling.result()
    assert "the HTTP server has ended: shutting down" in log.text()
    assert "closed" in repr(pool)


def test_a_server_that_is_closed(make: Make, serving: Serving, spawn: Spawn, log: Log) -> None:
    """A server that somebody has closed is an orderly end too."""
    pool = make()
    server = serving(probes(pool))
    telling = spawn(lambda: (log.until("serving"), server.close()))
    assert run_until_signal(server, pool) is True
    telling.result()
    assert "closed" in repr(pool)


@pytest.mark.parametrize("step", ["set_ready", "close"])
def test_an_application_that_fails(
    make: Make, serving: Serving, spawn: Spawn, log: Log, step: str
) -> None:
    """What the application's own part in it raises is raised, after all was closed."""
    pool = make()
    app = probes(pool)

    def broken(*given: object) -> None:
        raise LookupError("not now")

    setattr(app, step, broken)
    server = serving(app)
    telling = spawn(lambda: (log.until("serving"), kill()))
    with pytest.raises(LookupError, match="not now"):
        run_until_signal(server, pool)
    telling.result()
    delattr(app, step)
    assert server.wait(0) is True
    assert "closed" in repr(pool)


def test_readiness_of_ones_own(make: Make, serving: Serving, spawn: Spawn, log: Log) -> None:
    """Where the served application has no readiness, it is given."""
    pool = make()
    kubernetes = KubernetesProbes(pool)
    kubernetes.set_ready()
    server = serving(mount(Gate(), "/ops", probes(pool, kubernetes=kubernetes)))
    telling = spawn(lambda: (log.until("serving"), kill()))
    assert run_until_signal(server, pool, readiness=kubernetes) is True
    telling.result()
    assert "not_ready" in log.events()


def test_a_signal_before_it_listens(
    make: Make, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that is there before it begins to wait is heard."""
    pool = make()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "event", "") == "serving":
                signal.raise_signal(signal.SIGTERM)

    logger, handler = logging.getLogger("fastpool"), Handler()
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.addHandler(handler)
    try:
        assert run_until_signal(serving(probes(pool)), pool) is True
    finally:
        logger.removeHandler(handler)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_childs_signal(make: Make, serving: Serving, spawn: Spawn, log: Log) -> None:
    """A child that was forked meanwhile ends by its signal, and its parent goes on."""
    need(hasattr(os, "fork"), "fork()")
    pool = make()
    server = serving(probes(pool))

    def tell() -> int:
        log.until("serving")
        child = os.fork()
        if child == 0:
            try:
                kill()
                eventually(lambda: False, "it has ended", timeout=5.0)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert ask(server.address, "/healthz").status == 200
        assert "shutdown" not in log.events()
        kill()
        return status

    telling = spawn(tell)
    assert run_until_signal(server, pool) is True
    assert os.WTERMSIG(telling.result()) == signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"grace": -1.0}, "grace: expected seconds"),
        ({"grace": "30"}, "grace: expected seconds"),
        ({"drain": -1.0}, "drain: expected seconds"),
        ({"grace": 5.0, "drain": 6.0}, "drain: expected at most grace, 5 s"),
        ({"signals": []}, "signals: expected one or several"),
        ({"signals": [signal.SIGKILL]}, "signals: nobody can listen to SIGKILL"),
        ({"signals": [12345]}, "12345"),
        ({"pools": []}, "pools: expected"),
        ({"server": "127.0.0.1:80"}, "server: expected what serve"),
        ({"readiness": object()}, "readiness: expected something with set_ready"),
    ],
)
def test_bad_arguments(make: Make, serving: Serving, arguments: dict[str, Any], error: str) -> None:
    """Each wrong argument is refused by its name, and nothing has been touched."""
    pool = make()
    right = {"server": serving(probes(pool)), "pools": pool}
    with pytest.raises((TypeError, ValueError), match=error):
        run_until_signal(**{**right, **arguments})
    assert "new" in repr(pool)


def test_another_thread(make: Make, serving: Serving, spawn: Spawn) -> None:
    """Only the main thread hears signals: elsewhere it is refused."""
    pool = make()
    server = serving(probes(pool))
    with pytest.raises(RuntimeError, match="main thread"):
        spawn(lambda: run_until_signal(server, pool)).result()


def test_no_limit(make: Make, serving: Serving, spawn: Spawn, log: Log) -> None:
    """An infinite grace is one that does not end."""
    pool = make()
    lease = pool.acquire()

    def tell() -> None:
        log.until("serving")
        kill()
        log.until("server_closed")
        lease.release()

    telling = spawn(tell)
    assert run_until_signal(serving(probes(pool)), pool, grace=float("inf")) is True
    telling.result()


def test_threads_end(make: Make, serving: Serving, spawn: Spawn, log: Log) -> None:
    """Afterwards no thread of the shutdown is left."""
    pool = make()
    telling = spawn(lambda: (log.until("serving"), kill()))
    assert run_until_signal(serving(probes(pool)), pool) is True
    telling.result()
    eventually(lambda: "fastpool-shutdown" not in {t.name for t in threading.enumerate()})
