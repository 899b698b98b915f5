"""What several test modules share."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from fastpool.testing import FaultProxyError

__all__ = [
    "PATIENCE",
    "Child",
    "django",
    "eventually",
    "knocking",
    "need",
    "run_script",
    "unplugged",
]

PATIENCE = 10.0
"""Seconds for what must happen, and does so at once on an idle machine."""


def need(condition: object, reason: str) -> None:
    """Go on only if *condition* holds: something of this machine that the test depends on.

    Without it the test is skipped, but under ``FASTPOOL_CI=1`` it fails: there
    every part has to be present, and a skip would hide that nothing was tested.
    May be called in a test, in a fixture or at the top of a module.
    """
    if condition:
        return
    if os.environ.get("FASTPOOL_CI") == "1":
        pytest.fail(f"missing in CI: {reason}", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def unplugged(black_hole: Callable[..., None]) -> None:
    """A proxy's ``black_hole(acknowledge=False)``, where the system allows it."""
    try:
        black_hole(acknowledge=False)
    except FaultProxyError as error:
        need(False, str(error))


def eventually(condition: Callable[[], object], what: str = "", timeout: float = 30.0) -> None:
    """Wait until *condition* holds; fail with *what* after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout:g} s: {what or condition}"
        time.sleep(0.001)


@contextlib.contextmanager
def knocking(when: Callable[[], object], work: Callable[[], object]) -> Iterator[None]:
    """In the block, once *when* holds, *work* is done in a signal handler of this thread.

    A signal that comes just before the thread falls asleep does not wake it (CPython's
    locks do not look again), so it is sent until the handler was there.
    """
    need(hasattr(signal, "pthread_kill"), "pthread_kill()")
    handled = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if not handled.is_set():
            handled.set()
            work()

    def knock() -> None:
        eventually(when)
        while not handled.is_set():
            signal.pthread_kill(sleeper, signal.SIGUSR1)
            time.sleep(0.01)

    sleeper = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=knock)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)
        signal.signal(signal.SIGUSR1, before)


class Child:
    """A forked child that makes one call. It ends without unwinding this process's
    tests, and at the latest after *seconds*."""

    def __init__(self, call: Callable[[], Any], seconds: int = 30) -> None:
        self._read, write = os.pipe()
        self._seconds = seconds
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(seconds)
                os.close(self._read)
                outcome: tuple[bool, Any]
                try:
                    outcome = True, call()
                except BaseException:
                    outcome = False, traceback.format_exc()
                with open(write, "wb") as report:
                    pickle.dump(outcome, report)
                status = 0
            finally:
                os._exit(status)
        os.close(write)

    def result(self) -> Any:
        """What the call returned; fails with what it raised. The child has ended."""
        with open(self._read, "rb") as report:
            select.select([report], [], [], self._seconds)
            data = report.read()
        _, status = os.waitpid(self.pid, 0)
        assert data, f"the child said nothing; its wait status is {status}"
        well, outcome = pickle.loads(data)
        assert well, f"in the child:\n{outcome}"
        return outcome


def run_script(script: str, *options: str, timeout: float = 60.0) -> str:
    """Run *script* in an interpreter of its own; returns what it printed. It must end
    well, and write nothing to stderr."""
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]
    return done.stdout


def django() -> None:
    """Django is there, and set up; it has one configuration in a process."""
    need(importlib.util.find_spec("django"), "django")
    from django.conf import settings

    if not settings.configured:
        settings.configure(LOGGING_CONFIG=None)
