"""What a user holds: the driver's connection, until it is given back, and nothing after."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import sys
import threading
import time
import weakref
from types import ModuleType
from typing import Any

import pytest
from core.conftest import MakeRig
from core.kit import Conn
from support import eventually

from fastpool.errors import ConnectionReleased


def test_forwards_reading(make: MakeRig) -> None:
    """Attributes and methods are those of the driver's connection."""
    rig = make(1)
    with rig.connection() as conn:
        assert conn.name == 0
        assert conn.kind == "straw"
        assert conn.run("select", a=1) == ("select", {"a": 1})
        assert conn.driver_connection.calls == ["select"]
        with pytest.raises(AttributeError, match="nonesuch"):
            _ = conn.nonesuch


def test_forwards_writing(make: MakeRig) -> None:
    """Attributes are set and deleted on the driver's connection."""
    rig = make(1)
    with rig.connection() as conn:
        conn.driver_connection.autocommit = False
        conn.autocommit = True
        assert conn.driver_connection.autocommit is True
        del conn.autocommit
        assert not hasattr(conn.driver_connection, "autocommit")
        with pytest.raises(AttributeError):
            del conn.autocommit


def test_nothing_is_left_for_the_next(make: MakeRig) -> None:
    """What the driver's connection does not have cannot be set on it: the next user would
    find it there."""
    rig = make(1)
    with rig.connection() as conn:
        with pytest.raises(AttributeError, match="'tenant': a connection of the pool takes no"):
            conn.tenant = 42
        assert not hasattr(conn.driver_connection, "tenant")


def test_class(make: MakeRig, core: ModuleType) -> None:
    """A lease passes for the driver's class while it is held, and always for a Lease."""
    rig = make(1)
    lease = rig.connection()
    assert lease.__class__ is core.Lease
    with lease:
        assert isinstance(lease, Conn)
        assert lease.__class__ is Conn
        assert isinstance(lease, core.Lease)
        assert type(lease) is core.Lease
    assert not isinstance(lease, Conn)
    assert lease.__class__ is core.Lease


def test_dir_and_repr(make: MakeRig) -> None:
    """A lease lists the connection's names beside its own, and says whose it is."""
    rig = make(1)
    lease = rig.acquire()
    assert {"release", "close", "transaction", "driver_connection", "run", "name"} <= set(
        dir(lease)
    )
    assert repr(lease) == "<Lease of <Conn 0>>"
    lease.release()
    assert repr(lease) == "<Lease released>"


def test_use_after_release(make: MakeRig) -> None:
    """Every use of a lease that was given back raises."""
    rig = make(1)
    lease = rig.acquire()
    lease.release()
    uses: list[Any] = [
        lambda: lease.run,
        lambda: lease.name,
        lambda: lease.driver_connection,
        lambda: setattr(lease, "name", 1),
        lambda: delattr(lease, "name"),
        lambda: dir(lease),
        lambda: lease.__enter__(),
        lambda: lease._entry_of(rig.core),
    ]
    for use in uses:
        with pytest.raises(ConnectionReleased, match="given back"):
            use()


def test_method_dies_with_the_lease(make: MakeRig) -> None:
    """A method taken from a lease does not reach the next user's connection."""
    rig = make(1)
    lease = rig.acquire()
    run = lease.run
    assert run("one") == ("one", {})
    lease.release()
    with pytest.raises(ConnectionReleased):
        run("two")
    with rig.connection() as conn:
        with pytest.raises(ConnectionReleased):
            run("three")
        assert conn.calls == ["one"]


def test_method_is_described(make: MakeRig) -> None:
    """A method of a lease tells its name, its text and where it came from."""
    rig = make(1)
    with rig.connection() as conn:
        run = conn.run
        assert run.__name__ == "run"
        assert run.__doc__ == "Run a statement."
        assert run.__self__ is conn
        assert run.__wrapped__ == conn.driver_connection.run
        assert repr(run) == "<run of <Lease of <Conn 0>>>"


def test_two_blocks(make: MakeRig) -> None:
    """A lease lives once: a second block does not bring back what was taken in the first."""
    rig = make(1)
    lease = rig.connection()
    with lease as conn:
        run = conn.run
    with pytest.raises(ConnectionReleased), lease:
        pass
    with pytest.raises(ConnectionReleased):
        run("again")
    rig.check_whole()


def test_block_in_a_block(make: MakeRig) -> None:
    """A held lease may be entered again; the first block that ends gives it back."""
    rig = make(1)
    with rig.acquire() as outer:
        with outer as inner:
            assert inner is outer
        with pytest.raises(ConnectionReleased):
            _ = outer.name
    rig.check_whole()


def test_block_after_a_failed_wait(make: MakeRig) -> None:
    """A block that got no connection may be tried again."""
    rig = make(1)
    block = rig.connection(timeout=0.001)
    with rig.acquire(), pytest.raises(Exception, match="timeout"), block:
        pass
    with block as conn:
        assert conn.name == 0


def test_one_block_entered_by_two_threads(make: MakeRig) -> None:
    """Who comes while another enters is refused, and no connection is lost by it."""
    rig = make(2)

    def both() -> None:
        leases, block = [rig.acquire(), rig.acquire()], rig.connection()
        served = Entering(block)
        eventually(lambda: rig.core.waiting == 1)
        with pytest.raises(ConnectionReleased), block:
            pass
        for lease in leases:
            lease.release()
        served.end()

    both()
    rig.check_serves()


def test_one_block_entered_in_the_wait_of_another(make: MakeRig) -> None:
    """The same when the second comes at the very moment in which the first begins to wait."""
    rig = make(2)

    def both() -> None:
        leases, block = [rig.acquire(), rig.acquire()], rig.connection()
        others: list[Entering] = []

        def queueing() -> float:
            rig.house.queueing = lambda: math.inf  # type: ignore[method-assign]
            others.append(Entering(block))
            eventually(lambda: rig.core.waiting == 1)
            return math.inf

        rig.house.queueing = queueing  # type: ignore[method-assign]
        with pytest.raises(ConnectionReleased, match="another thread has entered"), block:
            pass
        for lease in leases:
            lease.release()
        others[0].end()

    both()
    rig.check_serves()


class Entering(threading.Thread):
    """A thread that enters a block, and leaves it."""

    def __init__(self, block: Any) -> None:
        super().__init__(daemon=True)
        self._block = block
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            with self._block:
                pass
        except BaseException as error:
            self._error = error
        self._block = None

    def end(self) -> None:
        """It was served."""
        self.join(30)
        assert not self.is_alive()
        assert self._error is None


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
def test_not_copied(make: MakeRig, copying: Any, held: bool) -> None:
    """A lease is neither copied nor pickled."""
    rig = make(1)
    lease = rig.acquire()
    if not held:
        lease.release()
    with pytest.raises((TypeError, ConnectionReleased), match=r"copied or pickled|given back"):
        copying(lease)
    lease.release()
    rig.check_whole()


def test_identity(make: MakeRig) -> None:
    """A lease equals itself alone, can be a key, and cannot be referred to weakly."""
    rig = make(2)
    a, b = rig.acquire(), rig.acquire()
    same = a
    assert a == same
    assert a != b
    assert len({a, b}) == 2
    with pytest.raises(TypeError):
        weakref.ref(a)
    a.release()
    b.release()


def test_transaction_is_the_houses(make: MakeRig) -> None:
    """A transaction on a lease is made by the house, options and all."""
    rig = make(1)
    with rig.connection() as conn:
        assert conn.transaction(read_only=True) == (conn, {"read_only": True})


def test_a_release_beneath_a_call(make: MakeRig) -> None:
    """Who is on the way into a connection through a lease that another thread gives back
    is not let loose on the next user's: that connection is not handed on."""
    rig = make(1)
    rig.house.on_settle = lambda entry: "in use" if entry.state.calls else None
    lease = rig.acquire()
    lease.within(lambda: rig.checkout.release(lease))  # before it has reached the wire
    assert [entry.reason for entry in rig.core.closing] == ["in use"]
    assert rig.core.idle == 0
    with pytest.raises(ConnectionReleased):
        lease.within(bool)


def test_a_call_that_raises_has_ended(make: MakeRig) -> None:
    """However a call ends, the connection goes back."""
    rig = make(1)
    lease = rig.acquire()
    state = rig.entry_of(lease).state
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            lease.within(lambda: 1 / 0)
        assert lease.within(lambda: lease.within(lambda: state.calls)) == 2
    assert state.calls == 0
    lease.release()
    assert rig.core.idle == 1


def test_exception_passes(make: MakeRig) -> None:
    """A block swallows no exception."""
    rig = make(1)
    with pytest.raises(ZeroDivisionError), rig.connection():
        _ = 1 / 0
    rig.check_whole()


@pytest.mark.c_extension
@pytest.mark.parametrize("core", ["c"], indirect=True)
def test_a_finalizer_gives_back_before_anything_else(make: MakeRig) -> None:
    """Of the compiled core no Python code runs before the connection is given back: an
    interrupt at its entry would end the finalizer, and nobody else knows of the lease."""
    rig = make(1)
    lease = rig.acquire()
    entry = rig.entry_of(lease)
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + 0.02)  # long enough to be counted as a use
    lease.driver_connection  # noqa: B018 - it was held all the time
    holders: list[int] = []

    def look(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            holders.append(entry.holder)

    gc.disable()
    sys.setprofile(look)
    try:
        del lease
    finally:
        sys.setprofile(None)
        gc.enable()
    assert rig.house.sites
    assert holders
    assert set(holders) == {0}
