"""What each ``sslmode`` does, as one table, and libpq as the judge of it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pg8000.native
import pytest
from support import need

from fastpool.drivers.pg8000 import Native
from fastpool.errors import ConfigError
from fastpool.testing import FaultProxy, make_certificate
from fastpool.testing.local_postgres import LocalPostgres, _server_account

try:
    from psycopg import pq
except ImportError:
    pq = None  # type: ignore[assignment]

MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SERVERS = ("right", "wrong host", "untrusted", "no TLS")

# With a root certificate in place and without. A server with TLS does without it too.
TABLE = """
sslmode      root | right      wrong host  untrusted  no TLS
disable      no   | plain      plain       plain      plain
disable      yes  | plain      plain       plain      plain
allow        no   | plain      plain       plain      plain
allow        yes  | plain      plain       plain      plain
prefer       no   | encrypted  encrypted   encrypted  plain
prefer       yes  | encrypted  encrypted   plain      plain
require      no   | encrypted  encrypted   encrypted  refused
require      yes  | encrypted  encrypted   refused    refused
verify-ca    no   | refused    refused     refused    refused
verify-ca    yes  | encrypted  encrypted   refused    refused
verify-full  no   | refused    refused     refused    refused
verify-full  yes  | encrypted  refused     refused    refused
"""

# What of a server decides over plain and encrypted in its pg_hba.conf, by user.
BY_USER = """
sslmode      root | either     only TLS    only plain
disable      yes  | plain      refused     plain
allow        yes  | plain      encrypted   plain
prefer       yes  | encrypted  encrypted   plain
require      yes  | encrypted  encrypted   refused
verify-ca    yes  | encrypted  encrypted   refused
verify-full  yes  | encrypted  encrypted   refused
"""
USERS = {"either": "postgres", "only TLS": "only_tls", "only plain": "only_plain"}


def cells(table: str) -> dict[tuple[str, str, str], str]:
    """(sslmode, root, column) -> outcome."""
    lines = [line.split("|") for line in table.strip().splitlines()]
    columns = re.split("  +", lines[0][1].strip())
    found = {}
    for left, right in lines[1:]:
        sslmode, root = left.split()
        for column, outcome in zip(columns, right.split(), strict=True):
            found[sslmode, root, column] = outcome
    return found


class Place(NamedTuple):
    """Where to connect: the name is ``localhost`` for the certificate's sake."""

    port: int
    roots: dict[str, Path]

    def params(self, sslmode: str, root: str, user: str = "postgres") -> dict[str, Any]:
        return {
            "host": "localhost",
            "hostaddr": "127.0.0.1",
            "port": self.port,
            "user": user,
            "dbname": "postgres",
            "sslmode": sslmode,
            "sslrootcert": str(self.roots[root]),
        }


def ours(connect: Any, params: dict[str, Any]) -> tuple[str, str]:
    """What becomes of a connect, and why if it is refused. It is refused for good."""
    driver = Native()
    try:
        conn = connect(driver, **params)
    except (pg8000.native.Error, ConfigError) as error:
        return ("refused" if driver.is_permanent(error) else "not for good"), str(error)
    assert conn.run("SELECT :a", a="x" * 50_000) == [["x" * 50_000]]
    encryption = driver.encryption(conn)
    root = params.get("sslrootcert")
    checked = root is None or os.path.exists(root)
    assert encryption in ("none", "verified" if checked else "unverified")
    return ("plain" if encryption == "none" else "encrypted"), encryption


def libpqs(params: dict[str, Any]) -> tuple[str, str]:
    """The same with libpq itself."""
    need(pq is not None, "no libpq with TLS (pip install psycopg[binary])")
    given = {**params, "gssencmode": "disable", "connect_timeout": 10}
    text = " ".join(f"{name}='{value}'" for name, value in given.items())
    conn = pq.PGconn.connect(text.encode())
    try:
        if conn.status != pq.ConnStatus.OK:
            return "refused", conn.error_message.decode()
        return ("encrypted" if conn.ssl_in_use else "plain"), ""
    finally:
        conn.finish()


@pytest.fixture(scope="module")
def places(
    server: LocalPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Place]]:
    """The four servers of the table, each before the same PostgreSQL."""
    directory = tmp_path_factory.mktemp("tls")
    try:
        root = make_certificate(directory, ["root.example"])
    except FileNotFoundError as error:
        need(False, str(error))
    other = make_certificate(directory, ["other.example"])
    roots = {"yes": root.certfile, "no": directory / "missing.crt"}
    for name in SERVERS:
        (directory / name).mkdir()
    certificates = {
        "right": make_certificate(directory / "right", ["localhost"], root),
        "wrong host": make_certificate(directory / "wrong host", ["elsewhere.example"], root),
        "untrusted": make_certificate(directory / "untrusted", ["localhost"], other),
        "no TLS": None,
    }
    proxies = {name: FaultProxy(server, tls=tls) for name, tls in certificates.items()}
    try:
        for proxy in proxies.values():
            proxy.start()
        yield {name: Place(proxy.port, roots) for name, proxy in proxies.items()}
    finally:
        for proxy in proxies.values():
            proxy.close()


@pytest.mark.parametrize("to", SERVERS)
@pytest.mark.parametrize("sslmode", MODES)
def test_sslmode(connect: Any, home: Path, places: dict[str, Place], sslmode: str, to: str) -> None:
    """Encrypted, plain or refused, as the table says; and why."""
    why = {"right": "does not exist", "no TLS": "does not support TLS|does not exist"}
    for root in ("no", "yes"):
        expected = cells(TABLE)[sslmode, root, to]
        params = places[to].params(sslmode, root)
        outcome, said = ours(connect, params)
        assert (root, outcome) == (root, expected), said
        if outcome == "refused":
            assert re.search(why.get(to, "CERTIFICATE_VERIFY_FAILED|does not exist"), said)


@pytest.mark.parametrize("to", SERVERS)
def test_libpq_gives_the_same_table(home: Path, places: dict[str, Place], to: str) -> None:
    """The table is libpq's own, not what we take for it."""
    for (sslmode, root, column), expected in cells(TABLE).items():
        if column == to:
            outcome, said = libpqs(places[to].params(sslmode, root))
            assert (sslmode, root, outcome) == (sslmode, root, expected), said


def test_root_certificate_in_its_usual_place(
    connect: Any, home: Path, places: dict[str, Place]
) -> None:
    """One in ``~/.postgresql`` counts under every mode that encrypts, as in libpq."""
    (home / "root.crt").write_bytes(places["right"].roots["yes"].read_bytes())
    for to in SERVERS:
        params = places[to].params("require", "yes")
        del params["sslrootcert"]
        assert ours(connect, params)[0] == cells(TABLE)["require", "yes", to]


@pytest.mark.parametrize("to", ["right", "no TLS"])
def test_the_systems_roots(connect: Any, places: dict[str, Place], to: str) -> None:
    """They have not signed it."""
    params = {**places[to].params("verify-full", "yes"), "sslrootcert": "system"}
    outcome, said = ours(connect, params)
    assert outcome == "refused"
    assert ("CERTIFICATE_VERIFY_FAILED" if to == "right" else "does not support TLS") in said


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A PostgreSQL with ``ssl = on``, whose ``pg_hba.conf`` has a say as well."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parts[4]))
    need(installed, "no PostgreSQL that can do TLS (Debian: apt install postgresql)")
    account = _server_account()
    with (
        tempfile.TemporaryDirectory(prefix="fastpool-") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        directory = Path(name)
        directory.chmod(0o755)
        root = make_certificate(directory, ["root.example"])
        made = make_certificate(directory, ["localhost"], root)
        hba = directory / "hba"
        hba.write_text(
            "local all all trust\nhostssl all only_tls all trust\n"
            "hostnossl all only_plain all trust\nhost all postgres all trust\n"
        )
        for file in (*made, hba):
            if account is not None:
                os.chown(file, *account)
        settings = {
            "ssl": "on",
            "ssl_cert_file": made.certfile,
            "ssl_key_file": made.keyfile,
            "hba_file": hba,
        }
        patch.setenv("FASTPOOL_PG_BIN", str(installed[-1]))
        with LocalPostgres(settings={k: str(v) for k, v in settings.items()}) as server:
            admin = pg8000.native.Connection("postgres", host="127.0.0.1", port=server.port)
            for user in ("only_tls", "only_plain"):
                admin.run(f"CREATE USER {user}")
            admin.close()
            yield Place(server.port, {"yes": root.certfile, "no": directory / "missing.crt"})


@pytest.mark.system
@pytest.mark.parametrize("sslmode", MODES)
def test_a_real_server(connect: Any, home: Path, real: Place, sslmode: str) -> None:
    """PostgreSQL's own TLS gives the column of the right certificate; and where it accepts
    only one way, allow and prefer find that."""
    expected = {
        (root, "either"): cells(TABLE)[sslmode, root, "right"] for root in ("no", "yes")
    } | {("yes", to): cells(BY_USER)[sslmode, "yes", to] for to in USERS}
    for (root, to), outcome in expected.items():
        params = real.params(sslmode, root, USERS[to])
        for found, said in (ours(connect, params), libpqs(params)):
            assert (root, to, found) == (root, to, outcome), said
