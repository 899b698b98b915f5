"""``fastpool size`` and ``fastpool load``: how large a pool should be, and why."""

from __future__ import annotations

import json

import pytest
from integration.kit import Admin, eventually

from fastpool import Pool
from fastpool.ops import cli
from fastpool.ops.load import Step, knee
from fastpool.testing import LocalPostgres

Capture = pytest.CaptureFixture[str]


def test_size_from_arguments(capsys: Capture) -> None:
    """The documented example, and the sentence that explains it."""
    arguments = ["--instances", "4", "--max-connections", "200", "--reserved", "20"]
    assert cli.main(["size", *arguments, "--concurrency", "50"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("max_size=45 min_size=11\n")
    assert "200 connections, less 20 reserved, between 4 instances: 45 each." in said


def test_few_processors(capsys: Capture) -> None:
    """Where little is done at a time, three connections a processor are enough, and it says so."""
    arguments = ["--max-connections", "100", "--concurrency", "4", "--cpus", "2"]
    assert cli.main(["size", *arguments]) == 0
    said = capsys.readouterr().out
    assert said.startswith("max_size=6 ")
    assert "three connections for each of them are enough" in said


def test_size_asks_the_server(server: LocalPostgres, admin: Admin, capsys: Capture) -> None:
    """Limits, what the server reserves, and who is connected, from the server itself."""
    assert cli.main(["size", "--dsn", server.dsn, "--instances", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["max_connections"], report["reserved"]) == (80, 3)
    assert (report["max_size"], report["share"]) == (38, 38)
    assert report["connected"] >= 1
    assert (report["replicas"], report["standby"]) == (0, False)
    assert cli.main(["size", "--dsn", server.dsn]) == 0
    assert "others connected, 0 replicas" in capsys.readouterr().out


def test_size_for_an_ordinary_role(server: LocalPostgres, admin: Admin, capsys: Capture) -> None:
    """A role that is shown little of others' sessions counts them all the same."""
    admin.run("CREATE ROLE ordinary LOGIN")
    dsn = f"postgresql://ordinary@{server.host}:{server.port}/{server.dbname}"

    def connected(dsn: str) -> int:
        assert cli.main(["size", "--dsn", dsn, "--json"]) == 0
        count: int = json.loads(capsys.readouterr().out)["connected"]
        return count

    try:
        with Pool(server.dsn, min_size=7, max_size=7) as pool:
            pool.wait()
            eventually(lambda: connected(dsn) == connected(server.dsn) >= 8)
    finally:
        admin.run("DROP ROLE ordinary")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either --max-connections or --dsn"),
        (["--max-connections", "3", "--instances", "9"], "leaves no connection"),
        (["--max-connections", "9", "--instances", "0"], "--instances must be"),
        (["--dsn", "host=127.0.0.1 port=1"], "refused"),
        (["--dsn", "host=x sslmod=1"], "sslmod"),
    ],
)
def test_no_size_can_be_told(arguments: list[str], words: str, capsys: Capture) -> None:
    """Numbers that leave no room, and servers that cannot be asked, are told as such."""
    assert cli.main(["size", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rates", "size"),
    [([100, 200, 390, 400, 380], 4), ([100, 99, 98], 1), ([10, 20, 40], 4), ([100, 96, 120], 4)],
)
def test_knee(rates: list[float], size: int) -> None:
    """The smallest size that is within 5 % of the best throughput."""
    steps = [Step(2**n, rate, 0.001, 0.002, 0) for n, rate in enumerate(rates)]
    assert knee(steps).size == size


def test_load(server: LocalPostgres, admin: Admin, capsys: Capture) -> None:
    """Each size is measured with real connections, and one is recommended."""
    arguments = [server.dsn, "--query", "SELECT pg_sleep(0.01)", "--sizes", "4,1"]
    assert cli.main(["load", *arguments, "--seconds", "0.3", "--callers", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    first, second = report["steps"]
    assert (first["size"], second["size"]) == (1, 4)
    assert 0 < first["per_second"] < 110  # one connection sleeps 10 ms each time
    assert first["p99_seconds"] >= first["p50_seconds"] >= 0.02  # of which most in the queue
    assert report["recommended"] == 4
    assert (first["errors"], second["errors"]) == (0, 0)
    assert cli.main(["load", server.dsn, "--sizes", "1", "--seconds", "0.05"]) == 0
    assert "max_size=1: within 5 %" in capsys.readouterr().out
    assert not admin.backends("fastpool-load")


def test_load_of_failures(server: LocalPostgres, admin: Admin, capsys: Capture) -> None:
    """Queries that fail now and then are counted, with the first one's words; nothing is
    recommended where none succeeds."""
    admin.run("CREATE TABLE once (a int PRIMARY KEY)")
    try:
        arguments = ["load", server.dsn, "--sizes", "2", "--seconds", "0.2", "--callers", "2"]
        assert cli.main([*arguments, "--query", "INSERT INTO once VALUES (1)"]) == 2
        said = capsys.readouterr().err
        assert "every query failed" in said
        assert "duplicate key" in said
        admin.run("CREATE SEQUENCE seldom")
        query = "SELECT 1 / (nextval('seldom') % 10)"
        assert cli.main([*arguments, "--query", query]) == 1
        assert "failed, the first with: ERROR" in capsys.readouterr().out
    finally:
        admin.run("DROP TABLE once")
        admin.run("DROP SEQUENCE IF EXISTS seldom")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--query", "SELECT nix"], "the query failed: ERROR"),
        (["--sizes", "1,x"], "--sizes: expected numbers like"),
        (["--sizes", "0"], "from 1, not 0"),
        (["--seconds", "0"], "more than 0"),
        (["--sizes", "200"], "200 connections cannot be had"),
    ],
)
def test_no_load(server: LocalPostgres, arguments: list[str], words: str, capsys: Capture) -> None:
    """A wrong query, sizes that are none, and more connections than there are."""
    assert cli.main(["load", server.dsn, "--seconds", "0.1", *arguments]) == 2
    assert words in capsys.readouterr().err
