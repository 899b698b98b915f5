"""``fastpool ping`` names the layer that is broken, and no secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from integration.conftest import MakePool, started

from fastpool.ops import cli
from fastpool.ops.ping import LAYERS
from fastpool.testing import FaultProxy, LocalPostgres

SECRET = "se:cr@t/ü"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def small_server() -> Iterator[LocalPostgres]:
    """Has passwords, and room for two."""
    settings = {"max_connections": 4, "superuser_reserved_connections": 0, "max_wal_senders": 0}
    settings["reserved_connections"] = 0
    yield from started(LocalPostgres(password=SECRET, settings=settings))


def ping(capsys: Capture, dsn: str, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and what ``--json`` says."""
    status = cli.main(["ping", dsn, "--json", *options])
    return status, json.loads(capsys.readouterr().out)


def broken(capsys: Capture, dsn: str, *options: str) -> tuple[str, str]:
    """The layer that failed, and its words; all below are well, none above is reached."""
    status, report = ping(capsys, dsn, *options)
    assert (status, report["ok"]) == (1, False)
    [layers] = report["hosts"].values()
    assert [layer["name"] for layer in layers] == [*LAYERS]
    marks = [layer["ok"] for layer in layers]
    failed = marks.index(False)
    assert marks == [True] * failed + [False] + [None] * (len(LAYERS) - failed - 1)
    return layers[failed]["name"], layers[failed]["detail"]


def test_all_is_well(server: LocalPostgres, capsys: Capture) -> None:
    """Each layer answers, and the last one tells how quickly."""
    for dsn in (server.dsn, server.unix_dsn):
        status, report = ping(capsys, dsn)
        assert (status, report["ok"]) == (0, True)
        [layers] = report["hosts"].values()
        assert [(layer["name"], layer["ok"]) for layer in layers] == [(n, True) for n in LAYERS]
        assert "round trips" in layers[-1]["detail"]


def test_unknown_host(capsys: Capture) -> None:
    """A name that nobody knows."""
    layer, detail = broken(capsys, "host=no-such-host.invalid")
    assert layer == "name"
    assert "no-such-host.invalid" in detail


def test_refused(server: LocalPostgres, capsys: Capture) -> None:
    """A port where nobody listens."""
    with FaultProxy(server) as proxy:
        proxy.refuse()
        layer, detail = broken(capsys, proxy.dsn)
    assert layer == "tcp"
    assert "refused" in detail


def test_black_hole(server: LocalPostgres, capsys: Capture) -> None:
    """Somebody who takes the connection and says nothing: it is not the network."""
    with FaultProxy(server) as proxy:
        proxy.silent_accept()
        asked = broken(capsys, f"{proxy.dsn}?sslmode=require", "--timeout", "0.2")
        plain = broken(capsys, f"{proxy.dsn}?sslmode=disable", "--timeout", "0.2")
    assert asked == ("tls", "no answer in 0.2 s")
    assert plain == ("authentication", "no answer in 0.2 s")


def test_an_address_that_leads_nowhere(server: LocalPostgres, capsys: Capture) -> None:
    """Packets that nobody answers."""
    with FaultProxy(server) as proxy:
        proxy.black_hole()
        layer, detail = broken(capsys, proxy.dsn, "--timeout", "0.2")
    assert (layer, detail) == ("tcp", "no answer in 0.2 s")


def test_no_tls(server: LocalPostgres, capsys: Capture) -> None:
    """A server without TLS, where TLS is required."""
    layer, detail = broken(capsys, f"{server.dsn}?sslmode=require")
    assert layer == "tls"
    assert "does not support TLS" in detail


def test_wrong_certificate(tls_proxy: FaultProxy, capsys: Capture) -> None:
    """A certificate that nobody vouches for; without a proof wanted it will do."""
    assert tls_proxy._tls is not None
    files = tls_proxy._tls
    untrusted = f"{tls_proxy.dsn}?sslmode=verify-full&sslrootcert=system"
    layer, detail = broken(capsys, untrusted)
    assert layer == "tls"
    assert "CERTIFICATE_VERIFY_FAILED" in detail
    other_name = f"{tls_proxy.dsn}?sslmode=verify-full&sslrootcert={files[0]}"
    layer, detail = broken(capsys, other_name)
    assert layer == "tls"
    assert "127.0.0.1" in detail
    status, report = ping(capsys, f"{tls_proxy.dsn}?sslmode=require")
    [layers] = report["hosts"].values()
    assert (status, layers[2]["name"]) == (0, "tls")
    assert "certificate not verified" in layers[2]["detail"]


def test_wrong_password(small_server: LocalPostgres, capsys: Capture) -> None:
    """The server's words, and neither password."""
    dsn = f"host={small_server.host} port={small_server.port} user=postgres dbname=postgres"
    layer, detail = broken(capsys, f"{dsn} password=wrong-one")
    assert (layer, "28P01" in detail) == ("authentication", True)
    status = cli.main(["ping", f"{dsn} password=wrong-one"])
    said = capsys.readouterr().out
    assert status == 1
    assert "FAIL  authentication" in said
    assert "pg_hba.conf" in said
    assert "wrong-one" not in said


def test_missing_database(small_server: LocalPostgres, capsys: Capture) -> None:
    """The password is right, the database is not there."""
    layer, detail = broken(capsys, small_server.dsn.removesuffix("postgres") + "nowhere")
    assert (layer, "3D000" in detail) == ("database", True)


def test_too_many_clients(
    small_server: LocalPostgres, make_pool: MakePool, capsys: Capture
) -> None:
    """A server whose connections are used up."""
    pool = make_pool(small_server.dsn, max_size=4)
    held = [pool.acquire(timeout=20) for _ in range(4)]
    layer, detail = broken(capsys, small_server.dsn)
    for lease in held:
        lease.release()
    assert (layer, "53300" in detail) == ("capacity", True)


def test_read_only_server(server: LocalPostgres, capsys: Capture) -> None:
    """A server that takes no writes, where some are wanted."""
    dsn = f"{server.dsn}?options=-c%20default_transaction_read_only%3Don"
    layer, detail = broken(capsys, f"{dsn}&target_session_attrs=read-write")
    assert layer == "role"
    assert "read-only" in detail
    assert ping(capsys, dsn)[0] == 0


def test_one_of_two_hosts_will_do(server: LocalPostgres, capsys: Capture) -> None:
    """Every host is told of; one that works is enough."""
    with FaultProxy(server) as proxy:
        proxy.refuse()
        dsn = (
            f"host={proxy.host},{server.host} port={proxy.port},{server.port} "
            "user=postgres dbname=postgres"
        )
        status, report = ping(capsys, dsn)
    assert status == 0
    assert [all(x["ok"] for x in layers) for layers in report["hosts"].values()] == [False, True]


def test_settings_and_their_origins(
    server: LocalPostgres, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each setting comes from; what is secret, or may be, is masked."""
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    dsn = (
        f"host={server.host} port={server.port} dbname=postgres max_size=7 options='-c a.b=hunter3'"
    )
    status, report = ping(capsys, dsn)
    settings = {k: (v["value"], v["origin"]) for k, v in report["settings"].items()}
    assert status == 0
    assert settings["user"] == ("postgres", "PGUSER")
    assert settings["password"] == ("***", "PGPASSWORD")
    assert settings["options"] == ("(not shown)", "conninfo")
    assert settings["max_size"] == ("7", "conninfo")
    assert settings["timeout"][1] == "default"
    assert "hunter" not in json.dumps(report)


@pytest.mark.parametrize(
    "arguments", [["postgresql://h/db?sslmod=require"], ["host=h", "--timeout", "0"]]
)
def test_bad_usage(arguments: list[str], capsys: Capture) -> None:
    """What is no connection string, or no time, is told at once."""
    assert cli.main(["ping", *arguments]) == 2
    assert "fastpool ping: " in capsys.readouterr().err
