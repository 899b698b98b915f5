"""A connection is in step with its server, or it says so."""

from __future__ import annotations

import ctypes
import functools
import io
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pg8000.native
import pytest
from drivers.kit import State

from fastpool.drivers._wire import _shut
from fastpool.drivers.base import BUSY, CLOSED, DIRTY, FAILED, LOCAL, SESSION, TRANSACTION
from fastpool.drivers.pg8000 import DBAPI, Native
from fastpool.errors import ConnectionBusy, ConnectionReleased
from fastpool.testing import FaultProxy
from fastpool.testing.local_postgres import LocalPostgres

DatabaseError, InterfaceError = pg8000.native.DatabaseError, pg8000.native.InterfaceError


def sqlstate(error: BaseException) -> str | None:
    return Native().sqlstate(error)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def in_step(conn: Any) -> bool:
    """The next answer belongs to the next question."""
    token = str(time.monotonic_ns())
    if isinstance(conn, pg8000.native.Connection):
        return bool(conn.run("SELECT :t", t=token) == [[token]])
    cursor = conn.cursor()
    cursor.execute("SELECT %s", (token,))
    return bool(cursor.fetchall() == ([token],))


class Raises:
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("value", ["\ud800", Raises()], ids=["surrogate", "str"])
@pytest.mark.parametrize("driver", [Native(), DBAPI(autocommit=True)], ids=["native", "dbapi"])
def test_parameter_that_fails_sends_nothing(connect: Any, driver: Any, value: Any) -> None:
    """A parameter that cannot be written leaves the connection clean and in step."""
    conn = connect(driver)
    if isinstance(driver, Native):
        use = functools.partial(conn.run, "SELECT :a", a=value)
    else:
        use = functools.partial(conn.cursor().execute, "SELECT %s", (value,))
    with pytest.raises((UnicodeEncodeError, RuntimeError)):
        use()
    assert conn._state.flags == 0
    assert in_step(conn)


def test_statement_and_prepared_parameter_that_fail_send_nothing(connect: Any) -> None:
    """The same for the text of a statement and for prepared statements."""
    conn = connect()
    statement = conn.prepare("SELECT :a")
    for use in (
        lambda: conn.run("SELECT '\ud800'"),
        lambda: conn.prepare("SELECT '\ud800'"),
        lambda: statement.run(a="\ud800"),
    ):
        with pytest.raises(UnicodeEncodeError):
            use()
    statement.close()
    assert conn._state.flags == 0
    assert in_step(conn)


def test_as_many_parameters_as_the_protocol_has(connect: Any) -> None:
    """65 535 parameters go through; one more sends nothing."""
    conn = connect(DBAPI(autocommit=True))
    cursor = conn.cursor()
    most = f"SELECT 1 WHERE 1 IN ({','.join(['%s'] * 65_535)})"
    cursor.execute(most, [1] * 65_535)
    assert cursor.fetchall() == ([1],)
    with pytest.raises(struct.error):
        cursor.execute(f"{most} AND true = %s", [1] * 65_535 + [True])
    assert conn._state.flags == 0
    assert in_step(conn)


def test_out_adapter_that_raises_sends_nothing(connect: Any) -> None:
    """A registered adapter's exception comes out as it is."""
    conn = connect()

    def refuse(value: object) -> str:
        raise ZeroDivisionError

    conn.register_out_adapter(bytes, refuse)
    with pytest.raises(ZeroDivisionError):
        conn.run("SELECT :a", a=b"x")
    assert conn._state.flags == LOCAL  # the adapter, and nothing else
    assert in_step(conn)


def test_in_adapter_that_raises_costs_nothing(connect: Any) -> None:
    """A converter's exception is raised after the answer has been read."""
    conn = connect()
    conn.register_in_adapter(25, lambda text: int(text))
    with pytest.raises(ValueError, match="invalid literal"):
        conn.run("SELECT 'word'::text FROM generate_series(1, 5000)")
    assert conn._state.flags == LOCAL  # the converter, and nothing else
    assert conn.run("SELECT '1'::text") == [[1]]


@pytest.mark.parametrize("text", ["SELECT 1/0", "SELECT 1/:zero::int"])
def test_error_response_is_an_answer(connect: Any, text: str) -> None:
    """After an ERROR the connection is clean, in a transaction it is FAILED."""
    conn = connect()
    arguments = {"zero": 0} if ":" in text else {}
    with pytest.raises(DatabaseError) as caught:
        conn.run(text, **arguments)
    assert (sqlstate(caught.value), conn._state.flags) == ("22012", 0)
    conn.run("BEGIN")
    assert conn._state.flags == TRANSACTION
    with pytest.raises(DatabaseError):
        conn.run(text, **arguments)
    assert conn._state.flags == TRANSACTION | FAILED
    conn.run("ROLLBACK")
    assert conn._state.flags == 0
    assert in_step(conn)


def test_interrupt_in_mid_read_is_dirty(connect: Any) -> None:
    """KeyboardInterrupt while waiting: DIRTY, refused from then on, and never clean."""
    conn = connect()
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        conn.run("SELECT pg_sleep(5), :a", a=1)
    assert conn._state.flags == DIRTY
    for _ in range(2):
        with pytest.raises(InterfaceError, match="out of step"):
            conn.run("SELECT 1")
    assert conn._state.flags == DIRTY


def test_interrupts_anywhere_never_give_a_wrong_answer(connect: Any) -> None:
    """Asynchronous exceptions at arbitrary moments: right rows, or not clean."""

    class Stop(BaseException):
        pass

    wrong: list[object] = []
    hits = 0

    def work(ready: threading.Event, done: threading.Event) -> None:
        nonlocal hits
        conn = connect()
        asked = 0
        try:
            ready.set()
            while not done.is_set():
                asked += 1
                if conn.run("SELECT :a::int", a=asked) != [[asked]]:
                    wrong.append(asked)
        except Stop:
            hits += 1
        finally:
            done.set()
        if conn._state.flags & ~SESSION == 0 and not in_step(conn):
            wrong.append("clean, but out of step")

    for delay in range(30):
        ready, done = threading.Event(), threading.Event()
        thread = threading.Thread(target=work, args=(ready, done))
        thread.start()
        assert ready.wait(10)
        done.wait(0.0003 * delay)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stop)
        )
        thread.join(10)
        assert not thread.is_alive()
    assert not wrong
    assert hits > 15


def test_two_threads_are_refused_not_mixed_up(connect: Any) -> None:
    """The second thread inside gets ConnectionBusy, the first one its rows."""
    conn = connect()
    rows: list[object] = []
    thread = threading.Thread(target=lambda: rows.append(conn.run("SELECT pg_sleep(0.5), 'a'")))
    thread.start()
    wait_until(lambda: conn._state.flags & BUSY)
    with pytest.raises(ConnectionBusy):
        conn.run("SELECT 1")
    thread.join()
    assert rows == [[["", "a"]]]
    assert conn._state.flags == 0


def test_half_closing_leaves_a_reader_its_encrypted_answer(
    connect: Any, tls_proxy: FaultProxy, home: Path
) -> None:
    """A thread that reads under TLS is never given bytes that were not decrypted."""
    conn = connect(port=tls_proxy.port, sslmode="require")
    _shut(conn._usock, socket.SHUT_WR)
    assert conn._usock.version() is not None


def failing(items: list[str]) -> Iterator[str]:
    yield from items
    raise LookupError("the stream broke")


class FailingText(io.StringIO):
    def read(self, size: int | None = -1) -> str:
        raise LookupError("the stream broke")


class FailingBytes(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise LookupError("the stream broke")


@pytest.mark.parametrize(
    "stream",
    [lambda: failing(["1\n", "2\n"]), FailingText, FailingBytes, lambda: failing([])],
    ids=["iterable", "text", "bytes", "at once"],
)
def test_copy_from_a_failing_stream_stays_in_step(connect: Any, stream: Any) -> None:
    """The stream's own exception is raised, nothing was copied, the connection is good."""
    conn = connect()
    conn.run("CREATE TEMP TABLE t (a text)")
    with pytest.raises(LookupError, match="the stream broke"):
        conn.run("COPY t FROM STDIN", stream=stream())
    assert conn._state.flags == 0
    assert conn.run("SELECT count(*) FROM t") == [[0]]


@pytest.mark.parametrize("item", ["\ud800", 5], ids=["surrogate", "number"])
def test_copy_of_an_item_that_cannot_be_sent_stays_in_step(connect: Any, item: Any) -> None:
    """So it is for data that have no bytes."""
    conn = connect()
    conn.run("CREATE TEMP TABLE t (a text)")
    with pytest.raises((UnicodeEncodeError, TypeError)):
        conn.run("COPY t FROM STDIN", stream=["1\n", item])
    assert conn._state.flags == 0
    assert conn.run("SELECT count(*) FROM t") == [[0]]


def test_copy_refused_by_the_server_stays_in_step(connect: Any) -> None:
    """A row that does not fit, early or late in the data, is an ordinary error."""
    conn = connect()
    conn.run("CREATE TEMP TABLE t (a int)")
    for rows in (["x\n"], ["1\n"] * 50_000 + ["x\n"], ["x\n"] + ["1\n"] * 50_000):
        with pytest.raises(DatabaseError) as caught:
            conn.run("COPY t FROM STDIN", stream=iter(rows))
        assert sqlstate(caught.value) == "22P02"
        assert conn._state.flags == 0
        assert in_step(conn)


def test_copy_in_without_a_stream_stays_in_step(connect: Any) -> None:
    """pg8000's own complaint, and the next answer is the right one."""
    conn = connect()
    conn.run("CREATE TEMP TABLE t (a text)")
    with pytest.raises(InterfaceError, match="'stream' parameter is required"):
        conn.run("COPY t FROM STDIN")
    assert conn._state.flags == 0
    assert in_step(conn)


def test_stream_given_to_another_statement_is_ignored(connect: Any) -> None:
    """A stream does not disturb a statement that is no COPY, nor an empty one, nor an error."""
    conn = connect()
    assert conn.run("SELECT :a", stream=io.StringIO(), a="x") == [["x"]]
    conn.run("", stream=io.StringIO())
    with pytest.raises(DatabaseError):
        conn.run("COPY missing FROM STDIN", stream=io.StringIO())
    assert conn._state.flags == 0
    assert in_step(conn)


def test_copy_out_to_a_failing_sink_is_dirty(connect: Any) -> None:
    """What the server still sends is not read: the connection is not to be used again."""
    conn = connect()

    class Full(io.RawIOBase):
        def write(self, data: Any) -> int:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        conn.run("COPY (SELECT generate_series(1, 9)) TO STDOUT", stream=Full())
    assert conn._state.flags == DIRTY
    conn = connect()
    with pytest.raises(InterfaceError, match="output stream is required"):
        conn.run("COPY (SELECT 1) TO STDOUT")
    assert conn._state.flags == DIRTY


def test_large_copy_needs_little_memory(connect: Any) -> None:
    """Tens of megabytes pass through in both directions without being held."""
    import tracemalloc

    conn = connect()
    size = 30_000_000
    conn.run("CREATE UNLOGGED TABLE IF NOT EXISTS big (a text)")
    conn.run("TRUNCATE big")
    line = b"x" * 999 + b"\n"

    class Sink(io.RawIOBase):
        total = 0

        def write(self, data: Any) -> int:
            self.total += len(data)
            return len(data)

    sink = Sink()
    tracemalloc.start()
    try:
        conn.run("COPY big FROM STDIN", stream=(line * 50 for _ in range(size // 50_000)))
        conn.run("COPY big TO STDOUT", stream=sink)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        conn.run("DROP TABLE big")
    assert sink.total == size
    assert peak < 2_000_000


@pytest.mark.parametrize("payload", ["é", "日本", "\U0001f600"])
def test_notify_need_not_be_ascii(connect: Any, payload: str) -> None:
    """Channel and payload arrive as sent, and the connection is in step."""
    conn = connect()
    conn.run('LISTEN "känal"')
    conn.run(f"NOTIFY \"känal\", '{payload}'")
    assert [n[1:] for n in conn.notifications] == [("känal", payload)]
    assert conn._state.flags == SESSION | LOCAL
    assert in_step(conn)


def flights(proxy: FaultProxy, work: Callable[[], object]) -> int:
    before = proxy.counters().flights
    work()
    return proxy.counters().flights - before


def test_each_statement_is_one_round_trip(connect: Any, proxy: FaultProxy) -> None:
    """Parameters, prepared statements, commit and rollback: one flight each."""
    native = connect(port=proxy.port)
    dbapi = connect(DBAPI(), port=proxy.port)
    cursor = dbapi.cursor()
    statement = native.prepare("SELECT :a::int")
    for work, expected in (
        (lambda: native.run("SELECT 1"), 1),
        (lambda: native.run("SELECT :a::int, :b", a=1, b="x"), 1),
        (lambda: statement.run(a=1), 1),
        (lambda: native.prepare("SELECT 1"), 1),
        (lambda: cursor.execute("SELECT %s", (1,)), 2),  # begin transaction
        (lambda: cursor.execute("SELECT %s", (1,)), 1),
        (dbapi.commit, 1),
        (lambda: cursor.execute("SELECT 1"), 2),
        (dbapi.rollback, 1),
        (lambda: Native().discard(native, 5.0), 1),
        (lambda: Native().ping(native, 1.0), 1),
        (lambda: Native().restore(native), 0),
    ):
        assert flights(proxy, work) == expected


def test_fatal_keeps_its_sqlstate(
    connect: Any, params: dict[str, Any], server: LocalPostgres
) -> None:
    """ "network error" is chained from the server's last words, idle or in a query."""
    admin = connect()
    for host in (params["host"], str(server.socket_dir)):
        for busy in (False, True):
            changes = {"host": host}
            conn = connect(**changes)
            (pid,) = conn.run("SELECT pg_backend_pid()")[0]
            kill = lambda pid=pid: admin.run("SELECT pg_terminate_backend(:p)", p=pid)  # noqa: E731
            if busy:
                timer = threading.Timer(0.2, kill)
                timer.start()
            else:
                kill()
                gone = "SELECT 1 FROM pg_stat_activity WHERE pid = :p"
                wait_until(lambda pid=pid, gone=gone: not admin.run(gone, p=pid))
            with pytest.raises(InterfaceError, match="network error") as caught:
                conn.run("SELECT pg_sleep(10)")
            if busy:
                timer.join()
            assert sqlstate(caught.value) == "57P01"
            assert conn._state.flags == DIRTY | CLOSED
            with pytest.raises(InterfaceError, match="connection is closed"):
                conn.run("SELECT 1")


def test_reset_by_the_peer_is_a_network_error(connect: Any, proxy: FaultProxy) -> None:
    """Not a bare ConnectionResetError; the statement fails with pg8000's InterfaceError."""
    conn = connect(port=proxy.port)
    resetting = threading.Timer(0.2, proxy.reset)
    resetting.start()
    with pytest.raises(InterfaceError, match="network error"):
        conn.run("SELECT pg_sleep(3)")
    resetting.join()  # it hears of it after the client
    assert conn._state.flags & (DIRTY | CLOSED) == DIRTY | CLOSED


def test_session_changes_are_seen(connect: Any) -> None:
    """Reported parameters, SET, LISTEN, PREPARE and prepared statements set SESSION."""
    for text in (
        "SET timezone = 'Asia/Tokyo'",
        "SET statement_timeout = 5000",
        "set role pg_monitor",
        "LISTEN somewhere",
        "PREPARE p AS SELECT 1",
        "SET LOCAL timezone TO 'Asia/Tokyo'; SET work_mem = '5MB'",
    ):
        conn = connect()
        conn.run(text)
        assert conn._state.flags & SESSION, text
    conn = connect()
    conn.prepare("SELECT 1")
    assert conn._state.flags == SESSION


def test_what_ends_with_its_transaction_is_no_session_change(connect: Any) -> None:
    """SET LOCAL and SET TRANSACTION cost no reset afterwards."""
    conn = connect()
    conn.run("BEGIN")
    conn.run("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE;")
    conn.run("set local statement_timeout = 5000")
    conn.run("SET LOCAL timezone = 'Asia/Tokyo'")
    conn.run("COMMIT")
    assert conn._state.flags == 0
    statement = conn.prepare("SELECT 1")
    statement.close()
    assert conn._state.flags == 0


def test_discard_is_birth(connect: Any) -> None:
    """After it the session is as made, start-up settings included, and flags are 0."""
    driver = Native()
    conn = connect(driver, session_settings={"work_mem": "5MB", "application_name": "x"})
    conn.run("SET work_mem = '9MB'")
    conn.prepare("SELECT 1")
    conn.run("SET application_name = 'y'")
    conn.run("DO $$ BEGIN RAISE NOTICE 'n'; END $$")
    assert conn._state.flags == SESSION | LOCAL
    driver.discard(conn, 5.0)
    assert conn._state.flags == 0
    assert conn.run("SHOW work_mem") == [["5MB"]]
    assert conn.run("SHOW application_name") == [["x"]]
    assert conn.run("SELECT count(*) FROM pg_prepared_statements") == [[0]]
    assert not conn.notices
    assert conn.prepare("SELECT 1").run() == [[1]]


def test_rebase_takes_the_session_as_it_is(connect: Any) -> None:
    """What a hook has set and prepared is no change afterwards; what comes later is."""
    driver = Native()
    conn = connect(driver)
    conn.run("SET timezone = 'Asia/Tokyo'")
    statement = conn.prepare("SELECT 1")
    assert conn._state.flags == SESSION
    driver.rebase(conn)
    assert conn._state.flags == 0
    assert statement.run() == [[1]]
    assert conn._state.flags == 0
    conn.run("SET timezone = 'UTC'")
    assert conn._state.flags == SESSION
    conn.run("SET timezone = 'Asia/Tokyo'")
    statement.close()
    assert conn._state.flags == SESSION


def test_idle_limit_is_the_servers(connect: Any) -> None:
    """Seconds, or None where the server has no such limit."""
    driver = Native()
    assert driver.idle_limit(connect(driver)) is None
    conn = connect(driver, session_settings={"idle_session_timeout": "90s"})
    conn._state.release()
    assert driver.idle_limit(conn) == 90.0


def test_notifications_arrive_in_order_and_none_is_lost(connect: Any) -> None:
    """More than pg8000 would keep, also those that came along with an answer; then silence."""
    driver = Native()
    conn, sender = connect(driver), connect()
    driver.listen(conn, 'a "b" é')
    conn._state.release()
    for start in (0, 300):
        for i in range(start, start + 300):
            sender.run("SELECT pg_notify('a \"b\" é', :i::text)", i=i)
        got: list[tuple[int, str, str]] = []
        deadline = time.monotonic() + 10
        while len(got) < 300 and time.monotonic() < deadline:
            got += driver.notifications(conn, 0.5)
        (pid,) = sender.run("SELECT pg_backend_pid()")[0]
        assert got == [(pid, 'a "b" é', str(i)) for i in range(start, start + 300)]
        sender.run("SELECT pg_notify('a \"b\" é', 'x')")
        driver.ping(conn, 1.0)
        assert len(driver.notifications(conn, 1.0)) == 1
    begun = time.monotonic()
    assert driver.notifications(conn, 0.1) == []
    assert 0.05 < time.monotonic() - begun < 1.0
    assert not conn._state.flags & (BUSY | DIRTY)


def test_listener_learns_of_its_connections_end(connect: Any) -> None:
    """With the server's word for it."""
    driver = Native()
    conn, admin = connect(driver), connect()
    (pid,) = conn.run("SELECT pg_backend_pid()")[0]
    driver.listen(conn, "c")
    killing = threading.Timer(0.2, admin.run, ["SELECT pg_terminate_backend(:p)"], {"p": pid})
    killing.start()
    with pytest.raises(InterfaceError) as caught:
        driver.notifications(conn, 10.0)
    killing.join()
    assert sqlstate(caught.value) == "57P01"


def test_interrupted_transaction_is_still_told_of(connect: Any) -> None:
    """A connection that breaks inside a transaction says that there was one."""
    conn = connect()
    conn.run("BEGIN")
    conn._usock.limit = time.monotonic() + 0.1
    with pytest.raises(TimeoutError):
        conn.run("SELECT pg_sleep(5)")
    assert conn._state.flags == DIRTY | TRANSACTION


def test_restore_puts_local_state_back(connect: Any) -> None:
    """autocommit, notices and notifications, without a word to the server."""
    driver = DBAPI()
    conn = connect(driver)
    conn.autocommit = True
    assert conn._state.flags == LOCAL
    conn.cursor().execute("SELECT 1")
    assert conn._state.flags == LOCAL
    conn.cursor().execute("DO $$ BEGIN RAISE NOTICE 'n'; END $$")
    assert conn._state.flags == LOCAL
    driver.restore(conn)
    assert (conn._state.flags, conn.autocommit, len(conn.notices)) == (0, False, 0)
    conn = connect(DBAPI(autocommit=True))
    assert conn.autocommit
    assert conn._state.flags == 0
    conn.autocommit = False
    assert conn._state.flags == LOCAL


@pytest.mark.filterwarnings("ignore:DB-API extension cursor.connection")
def test_nothing_of_a_lease_outlives_it(connect: Any) -> None:
    """Connection, cursor and statement are refused before a byte is sent."""
    native, dbapi = connect(), connect(DBAPI())
    statement = native.prepare("SELECT :a")
    cursor = dbapi.cursor()
    cursor.execute("SELECT 1")
    dbapi.commit()
    uses: list[Callable[[], object]] = [
        lambda: statement.run(a=1),
        statement.close,
        lambda: cursor.execute("SELECT 1"),
        lambda: cursor.execute("SELECT %s", (1,)),
        lambda: cursor.executemany("SELECT %s", [(1,)]),
        lambda: cursor.callproc("nothing"),
        lambda: cursor.connection.rollback(),
    ]
    on_the_connection: list[Callable[[], object]] = [
        lambda: native.run("SELECT 1"),
        lambda: native.prepare("SELECT 1"),
        dbapi.commit,
        lambda: setattr(dbapi, "autocommit", True),
        native.close,
    ]
    for conn in (native, dbapi):
        conn._state.release()
    for use in uses + on_the_connection:
        with pytest.raises(ConnectionReleased):
            use()
    assert cursor.fetchall() == ([1],)
    for conn in (native, dbapi):
        conn._state.lease()
    for use in uses:
        with pytest.raises(ConnectionReleased):
            use()
    assert native._state.flags == SESSION
    assert dbapi._state.flags == 0
    assert in_step(native)


def test_what_another_lease_asked_is_not_told(connect: Any) -> None:
    """The names of the columns and the number of rows are for who ran the query."""
    conn = connect()
    conn.run("SELECT 1 AS salary")
    assert [column["name"] for column in conn.columns] == ["salary"]
    assert conn.row_count == 1
    conn._state.release()
    conn._state.lease()
    assert conn.columns is None
    assert conn.row_count is None


def test_released_while_parameters_become_text(connect: Any) -> None:
    """A statement that takes its time to be written is not sent in the next lease."""
    conn = connect()

    class Slow:
        def __str__(self) -> str:
            conn._state.release()
            conn._state.lease()
            return "1"

    with pytest.raises(ConnectionReleased):
        conn.run("SELECT :a", a=Slow())
    assert in_step(conn)


def test_cursor_born_outside_a_lease_belongs_to_none(connect: Any) -> None:
    """It is refused in the first lease as in every other."""
    conn = connect(DBAPI())
    conn._state.release()
    cursor = conn.cursor()
    conn._state.lease()
    with pytest.raises(ConnectionReleased):
        cursor.execute("SELECT 1")
    with pytest.warns(UserWarning, match="cursor.connection"):
        assert cursor.connection is conn


def test_control_and_ping_between_leases(connect: Any) -> None:
    """The pool's own statements are not refused, and mark the wire like any other."""
    driver = Native()
    conn = connect(driver)
    conn._state.release()
    driver.control(conn, "BEGIN")
    assert conn._state.flags == TRANSACTION
    driver.ping(conn, 1.0)
    assert conn._state.flags == TRANSACTION
    driver.control(conn, "ROLLBACK")
    assert conn._state.flags == 0
    with pytest.raises(DatabaseError):
        driver.control(conn, "nonsense")
    assert conn._state.flags == 0


def test_results_are_not_kept(connect: Any) -> None:
    """An idle connection does not hold its last rows; columns and row count stay."""
    conn = connect()
    assert len(conn.run("SELECT generate_series(1, 3) AS n")) == 3
    assert conn._context.rows is None
    assert conn.columns[0]["name"] == "n"
    assert conn.row_count == 3


def test_prepared_statement_of_failed_parse_leaves_no_name(connect: Any) -> None:
    """Names are those that the server knows, so none is used twice or left over."""
    conn = connect()
    with pytest.raises(DatabaseError):
        conn.prepare("nonsense")
    assert conn._state.flags == 0
    first, second = conn.prepare("SELECT 1"), conn.prepare("SELECT 2")
    first.close()
    third = conn.prepare("SELECT 3")
    assert (second.run(), third.run()) == ([[2]], [[3]])


def test_close_of_a_leased_connection_is_pg8000s(connect: Any) -> None:
    """It says goodbye, marks CLOSED, and complains when done twice."""
    conn = connect()
    conn.close()
    assert conn._state.flags == CLOSED
    for use in (conn.close, lambda: conn.run("SELECT 1")):
        with pytest.raises(InterfaceError, match="connection is closed"):
            use()


def test_state_is_what_a_state_object_says() -> None:
    """The stand-in for the core's state refuses what the core's refuses."""
    state = State(leased=True)
    state.enter(1)
    with pytest.raises(ConnectionBusy):
        state.enter()
    state.leave(0)
    state.release()
    with pytest.raises(ConnectionReleased):
        state.enter()
