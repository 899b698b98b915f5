"""``fastpool serve``, run as its users do."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ops.kit import ask

from fastpool.ops import cli

SERVE = (sys.executable, "-W", "always", "-m", "fastpool", "serve")
SECRET = "s3cr3t-p4ss"
# Nobody listens on port 1; the command starts all the same.
DSN = f"postgresql://app:{SECRET}@127.0.0.1:1/app"


@contextmanager
def serve(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command, and the address that it tells on stderr."""
    command = [*SERVE, DSN, "--address", "127.0.0.1:0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            found = re.search(r"serving on http://(\S+) until SIGINT or SIGTERM", first)
            assert found, first + process.stderr.read()
            yield process, found[1]
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_until_a_signal(number: signal.Signals) -> None:
    """Probes and the page, whether or not there is a database; status 0 after a signal."""
    with serve() as (process, address):
        assert ask(address, "/healthz").status == 200
        assert ask(address, "/readyz").json["database"] == "disconnected"
        assert ask(address, "/").status == 200
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert "shut down in order" in said
    assert SECRET not in said


def test_not_in_time() -> None:
    """Status 1 when its time was over before everything had ended."""
    with serve("--grace", "0") as (process, _):
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1, said


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["postgresql://u@h:port/d"], "port"),
        (["postgresql://h/d?max_sise=3"], "max_size"),
        ([DSN, "--address", "8080"], 'expected "host:port"'),
    ],
)
def test_cannot_start(capsys: pytest.CaptureFixture[str], arguments: list[str], error: str) -> None:
    """Status 2 and the reason for a wrong connection string or address."""
    assert cli.main(["serve", *arguments]) == 2
    said = capsys.readouterr().err
    assert error in said
    assert SECRET not in said


def test_the_environment_says_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a connection string the PG* variables hold."""
    monkeypatch.setenv("PGPORT", "zero")
    assert cli.main(["serve"]) == 2
    assert "PGPORT" in capsys.readouterr().err


def test_address_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and the reason when somebody else listens there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", DSN, "--address", f"127.0.0.1:{port}"]) == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize("grace", ["-1", "soon", "nan"])
def test_bad_grace(capsys: pytest.CaptureFixture[str], grace: str) -> None:
    """A grace that is no time is bad usage."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(["serve", DSN, f"--grace={grace}"])
    assert f"expected seconds, 0 or more, not '{grace}'" in capsys.readouterr().err
