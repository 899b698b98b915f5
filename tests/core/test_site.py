"""Where a connection was acquired: file and line of the user's own call."""

from __future__ import annotations

import _thread
import asyncio
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from core.conftest import MakeRig
from core.kit import Rig
from support import eventually


def line() -> int:
    """The line of the caller."""
    return sys._getframe(1).f_lineno


def site_of(rig: Rig, lease: Any) -> int:
    """The line at which *lease* was acquired; in this file."""
    name, _, number = rig.entry_of(lease).site().rpartition(":")
    assert name == __file__
    return int(number)


@pytest.fixture
def rig(make: MakeRig) -> Rig:
    return make(1)


def test_function(rig: Rig) -> None:
    """Each way to acquire in a function is found."""
    for take in (rig.acquire, rig.try_acquire):
        lease, here = take(), line()
        assert site_of(rig, lease) == here
        lease.release()
    with rig.connection() as conn:
        here = line() - 1
        assert site_of(rig, conn) == here
    block = rig.connection()

    with block as conn:
        here = line() - 1
        assert site_of(rig, conn) == here


def test_same_function_other_line(rig: Rig) -> None:
    """The line is that of the running instruction, not of the function."""
    for _ in range(2):
        lease, here = rig.acquire(), line()
        assert site_of(rig, lease) == here
        lease.release()
        lease, here = rig.acquire(), line()
        assert site_of(rig, lease) == here
        lease.release()


def test_lambda(rig: Rig) -> None:
    """A lambda's own line is found."""
    here = line() + 1
    take = lambda: rig.acquire()  # noqa: E731
    lease = take()
    assert site_of(rig, lease) == here
    lease.release()


def test_comprehension(rig: Rig) -> None:
    """A call in a comprehension is found, whether that has a frame or not."""
    (lease,), here = [rig.acquire() for _ in range(1)], line()
    assert site_of(rig, lease) == here
    lease.release()


def test_generator(rig: Rig) -> None:
    """A generator's own line is found, whoever drives it."""

    def generate() -> Iterator[Any]:
        lease = rig.acquire()
        yield line() - 1
        yield lease

    here, lease = generate()
    assert site_of(rig, lease) == here
    lease.release()


def test_coroutine(rig: Rig) -> None:
    """A coroutine's own line is found."""

    async def take() -> tuple[Any, int]:
        await asyncio.sleep(0)
        return rig.acquire(), line()

    lease, here = asyncio.run(take())
    assert site_of(rig, lease) == here
    lease.release()


def test_class_body(rig: Rig) -> None:
    """A class body's own line is found."""

    class Body:
        lease, here = rig.acquire(), line()

    assert site_of(rig, Body.lease) == Body.here
    Body.lease.release()


def test_module_level(rig: Rig) -> None:
    """Compiled text that is no function names its file and line."""
    scope = {"rig": rig}
    exec(compile("\n\nlease = rig.acquire()\n", "made-up.py", "exec"), scope)
    lease: Any = scope.pop("lease")
    assert rig.entry_of(lease).site() == "made-up.py:3"
    lease.release()


def test_through_c(rig: Rig) -> None:
    """When C calls for the user, the user's line is named."""
    (lease,), here = map(lambda take: take(), [rig.acquire]), line()  # noqa: C417
    assert site_of(rig, lease) == here
    lease.release()
    (lease,), here = map(type(rig.checkout).acquire, [rig.checkout]), line()
    assert site_of(rig, lease) == here
    lease.release()


def test_thread(rig: Rig) -> None:
    """Each thread's own line is found."""
    found: list[tuple[int, int]] = []

    def work() -> None:
        lease, here = rig.acquire(), line()
        found.append((site_of(rig, lease), here))
        lease.release()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(seen == here for seen, here in found)


def test_no_python_caller(rig: Rig) -> None:
    """A raw thread that runs nothing but the acquire has no line, and gets its connection."""
    _thread.start_new_thread(rig.checkout.acquire, ())
    eventually(lambda: "lost" in rig.house.calls)
    assert rig.house.sites == ["?"]
    rig.check_whole()


def test_who_waits(rig: Rig) -> None:
    """A connection handed over bears the waiter's place, not the giver's."""
    lease = rig.acquire()
    found: list[tuple[int, int]] = []

    def work() -> None:
        mine, here = rig.acquire(), line()
        found.append((site_of(rig, mine), here))
        mine.release()

    thread = threading.Thread(target=work)
    thread.start()
    eventually(lambda: rig.core.waiting == 1)
    lease.release()
    thread.join()
    assert found[0][0] == found[0][1]


def test_skipped_frames(rig: Rig, core: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of the module named are passed over, however many, also when C called them."""
    also: dict[str, Any] = {}
    exec("def call(f): return f()", also)
    scope: dict[str, Any] = {"rig": rig, "call": also["call"]}
    text = "def inner(): return rig.acquire()\ndef outer(): return list(map(call, [inner]))[0]\n"
    exec(text, scope)
    for name in ("_skip", "_also"):
        monkeypatch.setattr(core, name, None)
    core.skip_frames_of(scope, also)
    for take in (scope["inner"], scope["outer"]):
        lease, here = take(), line()
        assert site_of(rig, lease) == here
        lease.release()


def test_many_instructions(rig: Rig) -> None:
    """A place far into a long function is found."""
    body = "\n".join(f"    x = {n} + len(str({n}))" for n in range(400))
    scope: dict[str, Any] = {"rig": rig}
    exec(compile(f"def f():\n{body}\n    return rig.acquire()\n", "long.py", "exec"), scope)
    lease = scope["f"]()
    assert rig.entry_of(lease).site() == "long.py:402"
    lease.release()
