"""What is committed, what is rolled back, and what nobody can know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pool.kit import eventually

from fastpool import ConnectionReleased, Pool, TransactionAborted
from fastpool.testing import StubConnection, StubDriver, StubError

Make = Callable[..., Pool[Any]]


def savepoints(statements: list[str]) -> list[str]:
    """The statements, each savepoint's name replaced by its number."""
    names: dict[str, str] = {}
    found = []
    for sql in statements:
        words = [
            names.setdefault(word, f"s{len(names) + 1}") if word.startswith("fastpool_") else word
            for word in sql.split()
        ]
        found.append(" ".join(words))
    return found


def test_a_block_that_ends_well_commits(make: Make, driver: StubDriver) -> None:
    """What a connection() block leaves open is committed, once."""
    with make().connection() as conn:
        conn.run("BEGIN")
    assert driver.connections[0].statements == ["BEGIN", "COMMIT"]


def test_a_block_that_raises_rolls_back(make: Make, driver: StubDriver) -> None:
    """What a raising block leaves open is rolled back, and its exception passes."""
    pool = make()
    with pytest.raises(KeyError), pool.connection() as conn:  # noqa: PT012
        conn.run("BEGIN")
        raise KeyError
    assert driver.connections[0].statements == ["BEGIN", "ROLLBACK"]
    assert pool.stats().idle == 1


def test_release_only_rolls_back(make: Make, driver: StubDriver) -> None:
    """acquire() commits nothing, neither by release() nor by a block of its own."""
    pool = make()
    for end in ("release", "close"):
        lease = pool.acquire()
        lease.run("BEGIN")
        getattr(lease, end)()
    with pool.acquire() as conn:
        conn.run("BEGIN")
    assert driver.connections[0].statements == ["BEGIN", "ROLLBACK"] * 3


def test_an_aborted_block_says_so(make: Make, driver: StubDriver) -> None:
    """A block that ends well though its transaction has failed raises TransactionAborted."""
    pool = make()
    with pytest.raises(TransactionAborted) as caught, pool.connection() as conn:  # noqa: PT012
        conn.run("BEGIN")
        with pytest.raises(StubError):
            conn.run("FAIL")
    assert caught.value.outcome == "rolled_back"
    assert driver.connections[0].statements == ["BEGIN", "FAIL", "ROLLBACK"]
    assert pool.stats().idle == 1


def test_an_aborted_block_that_raises(make: Make, driver: StubDriver) -> None:
    """The failed statement's own error is what a block without a handler raises."""
    with pytest.raises(StubError, match="statement failed"), make().connection() as conn:  # noqa: PT012
        conn.run("BEGIN")
        conn.run("FAIL")
    assert driver.connections[0].statements == ["BEGIN", "FAIL", "ROLLBACK"]


def test_an_unanswered_commit(make: Make, driver: StubDriver) -> None:
    """A COMMIT without an answer is neither done nor undone: nobody knows."""
    pool = make()
    with pytest.raises(TransactionAborted) as caught, pool.connection() as conn:  # noqa: PT012
        conn.run("BEGIN")
        driver.connections[0].kill()
    assert caught.value.outcome == "unknown"
    assert isinstance(caught.value.__cause__, StubError)
    eventually(lambda: pool.stats().size == 0)


def test_a_block_that_ends_while_another_thread_is_inside(make: Make, driver: StubDriver) -> None:
    """A transaction that could not be committed, as a call was still inside, is not passed over."""
    pool = make()
    with (  # noqa: PT012
        pytest.raises(TransactionAborted, match="lost before the COMMIT") as caught,
        pool.connection() as conn,
    ):
        conn.run("BEGIN")
        driver.connections[0]._state.enter()
    assert caught.value.outcome == "unknown"
    eventually(lambda: pool.stats().size == 0)


def test_a_refused_commit(make: Make, driver: StubDriver) -> None:
    """A COMMIT that the server refuses raises the server's error; nothing is left open."""
    pool = make()
    driver.fail("control", StubError("deferred constraint"))
    with pytest.raises(StubError, match="deferred constraint"), pool.connection() as conn:
        conn.run("BEGIN")
    assert driver.connections[0].statements == ["BEGIN", "ROLLBACK"]
    assert pool.stats().idle == 1


# -- transaction() -------------------------------------------------------------------


def test_transaction_commits(make: Make, driver: StubDriver) -> None:
    """transaction() begins and commits."""
    with make().transaction() as conn:
        conn.run("SELECT 1")
    assert driver.connections[0].statements == ["BEGIN", "SELECT 1", "COMMIT"]


def test_transaction_rolls_back(make: Make, driver: StubDriver) -> None:
    """transaction() rolls back when its block raises, and lets the exception pass."""
    pool = make()
    with pytest.raises(KeyError), pool.transaction():
        raise KeyError
    assert driver.connections[0].statements == ["BEGIN", "ROLLBACK"]
    assert pool.stats().idle == 1


@pytest.mark.parametrize(
    ("options", "begin"),
    [
        ({"isolation": "serializable"}, "BEGIN ISOLATION LEVEL SERIALIZABLE"),
        ({"isolation": "Repeatable Read"}, "BEGIN ISOLATION LEVEL REPEATABLE READ"),
        ({"read_only": True}, "BEGIN READ ONLY"),
        ({"read_only": False}, "BEGIN READ WRITE"),
        (
            {"isolation": "serializable", "read_only": True, "deferrable": True},
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE",
        ),
        ({"deferrable": False}, "BEGIN NOT DEFERRABLE"),
    ],
)
def test_transaction_modes(
    make: Make, driver: StubDriver, options: dict[str, Any], begin: str
) -> None:
    """Modes are part of the BEGIN."""
    with make().transaction(**options):
        pass
    assert driver.connections[0].statements == [begin, "COMMIT"]


@pytest.mark.parametrize("isolation", ["snapshot", "serializable; DROP TABLE t", 1, ""])
def test_a_wrong_isolation_is_refused(make: Make, driver: StubDriver, isolation: Any) -> None:
    """Only the levels of PostgreSQL reach it; a wrong one costs no connection."""
    pool = make()
    with pytest.raises(ValueError, match="isolation"):
        pool.transaction(isolation=isolation)
    assert driver.counts["connect"] == 0
    with pool.connection() as conn, pytest.raises(ValueError, match="isolation"):
        conn.transaction(isolation=isolation)


def test_modes_belong_to_the_outermost(make: Make) -> None:
    """A savepoint has no isolation level."""
    with make().transaction() as conn, pytest.raises(ValueError, match="outermost"):
        conn.transaction(isolation="serializable").__enter__()


def test_nested_transactions(make: Make, driver: StubDriver) -> None:
    """Inner transactions are savepoints: released, or rolled back alone."""
    with make().transaction() as conn:
        with conn.transaction():
            conn.run("A")
            with pytest.raises(KeyError), conn.transaction():  # noqa: PT012
                conn.run("B")
                raise KeyError
        conn.run("C")
    assert savepoints(driver.connections[0].statements) == [
        "BEGIN",
        "SAVEPOINT s1",
        "A",
        "SAVEPOINT s2",
        "B",
        "ROLLBACK TO SAVEPOINT s2",
        "RELEASE SAVEPOINT s2",
        "RELEASE SAVEPOINT s1",
        "C",
        "COMMIT",
    ]


def test_a_failed_inner_transaction_is_undone_alone(make: Make, driver: StubDriver) -> None:
    """An inner block that ends well after a failure says so; the outer one goes on."""
    with make().transaction() as conn:
        with pytest.raises(TransactionAborted), conn.transaction(), pytest.raises(StubError):
            conn.run("FAIL")
        conn.run("A")
    assert savepoints(driver.connections[0].statements) == [
        "BEGIN",
        "SAVEPOINT s1",
        "FAIL",
        "ROLLBACK TO SAVEPOINT s1",
        "RELEASE SAVEPOINT s1",
        "A",
        "COMMIT",
    ]


def test_a_transaction_block_lives_once(make: Make, driver: StubDriver) -> None:
    """Shared by two threads it would end the one's transaction for the other."""
    pool = make(max_size=2)
    block = pool.transaction()
    with block as conn:
        with pytest.raises(ConnectionReleased, match="lives once"), block:
            pass
        conn.run("INSERT")
    assert pool.stats().in_use == 0
    with pytest.raises(ConnectionReleased, match="lives once"), block:
        pass
    assert driver.connections[0].statements == ["BEGIN", "INSERT", "COMMIT"]


def test_transaction_on_a_held_connection(make: Make, driver: StubDriver) -> None:
    """lease.transaction() begins one where none is open, and leaves the lease held."""
    lease = make().acquire()
    for _ in range(2):
        with lease.transaction() as conn:
            assert conn is lease
    lease.release()
    assert driver.connections[0].statements == ["BEGIN", "COMMIT"] * 2


def test_transaction_after_failure_is_aborted(make: Make, driver: StubDriver) -> None:
    """transaction() that ends well after a failed statement raises TransactionAborted."""
    pool = make()
    with (
        pytest.raises(TransactionAborted) as caught,
        pool.transaction() as conn,
        pytest.raises(StubError),
    ):
        conn.run("FAIL")
    assert caught.value.outcome == "rolled_back"
    assert driver.connections[0].statements == ["BEGIN", "FAIL", "ROLLBACK"]
    assert pool.stats().idle == 1


def test_the_user_may_commit(make: Make, driver: StubDriver) -> None:
    """A transaction that its block has ended itself is not ended twice."""
    pool = make()
    with pool.transaction() as conn:
        conn.run("COMMIT")
    with pytest.raises(KeyError), pool.transaction() as conn:  # noqa: PT012
        conn.run("ROLLBACK")
        raise KeyError
    assert driver.connections[0].statements == ["BEGIN", "COMMIT", "BEGIN", "ROLLBACK"]


def test_a_transaction_whose_commit_is_unanswered(make: Make, driver: StubDriver) -> None:
    """The same for transaction(): the outcome of an unanswered COMMIT is unknown."""
    pool = make()
    with pytest.raises(TransactionAborted) as caught, pool.transaction():
        driver.connections[0].kill()
    assert caught.value.outcome == "unknown"
    eventually(lambda: pool.stats().size == 0)


def test_a_transaction_whose_connection_was_lost(make: Make) -> None:
    """A block that swallows the loss of its connection does not pass for committed."""
    pool = make()
    with (
        pytest.raises(TransactionAborted, match="lost before the COMMIT"),
        pool.transaction() as conn,
        pytest.raises(StubError),
    ):
        conn.run("LOSE")
    eventually(lambda: pool.stats().size == 0)


def test_a_failing_rollback_hides_nothing(make: Make, driver: StubDriver) -> None:
    """The block's own exception is raised, though its rollback fails too."""
    pool = make()
    with pytest.raises(KeyError), pool.transaction():  # noqa: PT012
        driver.connections[0].kill()
        raise KeyError
    eventually(lambda: pool.stats().size == 0)


def test_a_failing_begin_releases(make: Make, driver: StubDriver) -> None:
    """When BEGIN fails the connection goes back, and the error is raised."""
    driver.fail("control")
    pool = make()
    with pytest.raises(StubError):
        pool.transaction().__enter__()
    assert (pool.stats().in_use, pool.stats().idle) == (0, 1)


def test_a_block_that_gives_its_connection_back(make: Make, driver: StubDriver) -> None:
    """A transaction whose connection was released inside was rolled back, and that is said."""
    pool = make()
    with pytest.raises(ConnectionReleased), pool.transaction() as conn:
        conn.release()
    with pytest.raises(KeyError), pool.transaction() as conn:  # noqa: PT012
        conn.release()
        raise KeyError
    assert driver.connections[0].statements == ["BEGIN", "ROLLBACK"] * 2


def test_run_commits(make: Make, driver: StubDriver) -> None:
    """pool.run() is a block of its own."""
    assert make().run("BEGIN") == "BEGIN"
    assert driver.connections[0].statements == ["BEGIN", "COMMIT"]


class StubCursor:
    """As much of PEP 249 as ``pool.execute`` needs."""

    description: Any = None

    def __init__(self, conn: StubConnection) -> None:
        self._conn = conn

    def execute(self, sql: str, args: Sequence[Any]) -> None:
        self._conn.run(sql)
        self._args = list(args)
        self.description = [("column",)] if sql.startswith("SELECT") else None

    def fetchall(self) -> list[Any]:
        return self._args


def test_execute(make: Make, driver: StubDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """pool.execute() is a block with a cursor: rows, or none for a statement without any."""
    monkeypatch.setattr(StubConnection, "cursor", lambda conn: StubCursor(conn), raising=False)
    pool = make()
    assert pool.execute("SELECT %s", (1, 2)) == [1, 2]
    assert pool.execute("BEGIN") == ()
    assert driver.connections[0].statements == ["SELECT %s", "BEGIN", "COMMIT"]
