"""What libpq knows: its parameters, and how it reads a connection string.

``PARAMETERS`` is libpq's own table (``PQconninfoOptions`` in ``fe-connect.c``,
up to PostgreSQL 19) with one more column: what becomes of each parameter here.
Every one is honoured, accepted because it asks for nothing that could be
missed, or refused by name; none is dropped in silence.

:func:`parse` accepts and refuses what ``PQconninfoParse`` of PostgreSQL 18 does
and finds the same values. Texts of errors never repeat a value, nor a name that
could be the rest of an unquoted password: they give the parameter or the
position.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, NoReturn

from .._secrets import SECRETS, hides_arguments
from ..errors import ConfigError

__all__ = ["PARAMETERS", "POOL_SETTINGS", "Parameter", "parse"]

Use = Literal["honoured", "consumed", "harmless", "refused"]


class Parameter(NamedTuple):
    """One connection parameter of libpq, and what becomes of it."""

    use: Use
    """``honoured``: handed to the driver. ``consumed``: its work is done when
    the string is resolved. ``harmless``: accepted, and nothing to do.
    ``refused``: an error unless its value is one of *neutral*."""
    env: str | None = None
    """The environment variable that stands in for it."""
    default: str | None = None
    values: tuple[str, ...] = ()
    """All values there are, where libpq has a list of them."""
    neutral: tuple[str, ...] = ()
    """The values of a refused parameter that ask for nothing we lack."""
    why: str = ""
    """Why it is harmless or refused."""


_OAUTH = "the driver has no OAuth"
_TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_PROTOCOLS = ("3.0", "3.2", "latest")

PARAMETERS: dict[str, Parameter] = {
    "service": Parameter("consumed", "PGSERVICE"),
    "servicefile": Parameter("consumed", "PGSERVICEFILE"),
    "passfile": Parameter("consumed", "PGPASSFILE"),
    "connect_timeout": Parameter("consumed", "PGCONNECT_TIMEOUT"),
    "host": Parameter("honoured", "PGHOST"),
    "hostaddr": Parameter("honoured", "PGHOSTADDR"),
    "port": Parameter("honoured", "PGPORT", "5432"),
    "user": Parameter("honoured", "PGUSER"),
    "password": Parameter("honoured", "PGPASSWORD"),
    "dbname": Parameter("honoured", "PGDATABASE"),
    "client_encoding": Parameter("honoured", "PGCLIENTENCODING"),
    "options": Parameter("honoured", "PGOPTIONS"),
    "application_name": Parameter("honoured", "PGAPPNAME"),
    "fallback_application_name": Parameter("honoured"),
    "keepalives": Parameter("honoured"),
    "keepalives_idle": Parameter("honoured"),
    "keepalives_interval": Parameter("honoured"),
    "keepalives_count": Parameter("honoured"),
    "tcp_user_timeout": Parameter("honoured"),
    "sslmode": Parameter(
        "honoured",
        "PGSSLMODE",
        "prefer",
        ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    ),
    "sslnegotiation": Parameter("honoured", "PGSSLNEGOTIATION", "postgres", ("postgres", "direct")),
    "sslrootcert": Parameter("honoured", "PGSSLROOTCERT"),
    "sslcert": Parameter("honoured", "PGSSLCERT"),
    "sslkey": Parameter("honoured", "PGSSLKEY"),
    "sslpassword": Parameter("honoured"),
    "sslcrl": Parameter("honoured", "PGSSLCRL"),
    "sslsni": Parameter("honoured", "PGSSLSNI", "1", ("0", "1")),
    "ssl_min_protocol_version": Parameter(
        "honoured", "PGSSLMINPROTOCOLVERSION", "TLSv1.2", _TLS_VERSIONS
    ),
    "ssl_max_protocol_version": Parameter(
        "honoured", "PGSSLMAXPROTOCOLVERSION", None, _TLS_VERSIONS
    ),
    "channel_binding": Parameter(
        "honoured", "PGCHANNELBINDING", "prefer", ("disable", "prefer", "require")
    ),
    "target_session_attrs": Parameter(
        "honoured",
        "PGTARGETSESSIONATTRS",
        "any",
        ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    ),
    "load_balance_hosts": Parameter(
        "honoured", "PGLOADBALANCEHOSTS", "disable", ("disable", "random")
    ),
    "sslcompression": Parameter(
        "harmless", "PGSSLCOMPRESSION", why="libpq ignores it where TLS cannot compress"
    ),
    "krbsrvname": Parameter("harmless", "PGKRBSRVNAME", why="only GSSAPI reads it"),
    "gsslib": Parameter("harmless", "PGGSSLIB", why="only GSSAPI reads it"),
    "gssdelegation": Parameter("harmless", "PGGSSDELEGATION", why="only GSSAPI reads it"),
    "max_protocol_version": Parameter(
        "harmless", "PGMAXPROTOCOLVERSION", values=_PROTOCOLS, why="3.0 is below each of them"
    ),
    "min_protocol_version": Parameter(
        "refused",
        "PGMINPROTOCOLVERSION",
        values=_PROTOCOLS,
        neutral=("3.0",),
        why="the driver speaks protocol 3.0",
    ),
    "gssencmode": Parameter(
        "refused",
        "PGGSSENCMODE",
        values=("disable", "prefer", "require"),
        neutral=("disable", "prefer"),
        why="the driver has no GSSAPI",
    ),
    "sslcertmode": Parameter(
        "refused",
        "PGSSLCERTMODE",
        values=("disable", "allow", "require"),
        neutral=("allow",),
        why="a client certificate is sent when there is one and the server asks",
    ),
    "sslcrldir": Parameter("refused", "PGSSLCRLDIR", why="name one file with sslcrl"),
    "sslkeylogfile": Parameter("refused", why="it would write the session's keys to a file"),
    "requirepeer": Parameter(
        "refused", "PGREQUIREPEER", why="the owner of a unix socket is not checked"
    ),
    "require_auth": Parameter(
        "refused",
        "PGREQUIREAUTH",
        why="use channel_binding=require, which refuses all but SCRAM over TLS",
    ),
    "replication": Parameter(
        "refused",
        neutral=("0", "false", "off", "no"),
        why="a pool keeps ordinary sessions, not replication streams",
    ),
    "scram_client_key": Parameter("refused", why="the driver needs the password itself"),
    "scram_server_key": Parameter("refused", why="the driver needs the password itself"),
    "oauth_issuer": Parameter("refused", why=_OAUTH),
    "oauth_client_id": Parameter("refused", why=_OAUTH),
    "oauth_client_secret": Parameter("refused", why=_OAUTH),
    "oauth_scope": Parameter("refused", why=_OAUTH),
}

POOL_SETTINGS: dict[str, Literal["duration", "amount", "integer", "text", "flag"]] = {
    "min_size": "integer",
    "max_size": "integer",
    "min_idle": "integer",
    "max_idle": "integer",
    "timeout": "duration",
    "max_waiting": "integer",
    "max_lifetime": "duration",
    "max_lifetime_jitter": "amount",
    "max_idle_time": "duration",
    "max_uses": "integer",
    "health_check_period": "amount",
    "connect_concurrency": "integer",
    "connect_backoff": "amount",
    "connect_backoff_max": "amount",
    "fail_fast_after": "duration",
    "check": "text",
    "check_after_idle": "duration",
    "ping_timeout": "amount",
    "reset": "text",
    "idle_order": "text",
    "leak_threshold": "duration",
    "deadlock": "text",
    "cancel_budget": "amount",
    "close_timeout": "amount",
    "pgbouncer": "flag",
}
"""The pool's own settings that a connection string may hold, and their kind. A zero
``duration`` is "off", a zero ``amount`` is none."""

_SPACE = " \t\n\v\f\r"  # isspace() in the C locale
_UNQUOTED = re.compile(r"(?:[^\\ \t\n\v\f\r]|\\.|\\\Z)*", re.DOTALL)
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)
_ESCAPE = re.compile(r"\\(.?)", re.DOTALL)
_PERCENT = re.compile(rb"%(..)", re.DOTALL)
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_OTHER_SCHEME = re.compile(r"\s*['\"]?([A-Za-z][\w+.:-]*)://")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


@hides_arguments
def parse(text: str) -> dict[str, str]:
    """Return the parameters that a connection string names, nothing filled in.

    *text* is a URI (``postgresql://user:password@host:port/dbname?name=value``)
    or ``name=value`` pairs, in libpq's syntax and with libpq's names, see
    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING.
    The pool's own settings (``max_size`` and so on) are accepted as further
    names. Bytes that are not UTF-8 become surrogate escapes, as in
    ``os.environ``.

    Raises ``ConfigError`` for whatever ``PQconninfoParse`` refuses. Positions
    in its text count characters from 1.
    """
    if not isinstance(text, str):
        raise ConfigError(f"the connection string must be a str, not {type(text).__name__}")
    if "\0" in text:
        raise ConfigError(_at("NUL character", text.index("\0")))
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        # Not chained: that error holds the whole string.
        raise ConfigError(_at("lone surrogate", error.start)) from None
    if text.startswith(("postgresql://", "postgres://")):
        return _parse_uri(text)
    # libpq goes on to look for name=value pairs and cannot find a known name,
    # since the first one has the "://" in it. Say what is really wrong.
    if match := _OTHER_SCHEME.match(text):
        _refuse_scheme(match)
    return _parse_pairs(text)


def _refuse_scheme(match: re.Match[str]) -> NoReturn:
    scheme = match[1].lower()
    if match.start(1) and scheme in ("postgresql", "postgres"):
        problem = f"it must begin with its scheme, found at character {match.start(1) + 1}"
    elif scheme.startswith(("postgresql+", "postgres+")):
        problem = 'drop the "+driver" part of the scheme: write "postgresql://"'
    elif scheme in ("postgresql", "postgres"):
        problem = 'the scheme is lower case: write "postgresql://"'
    else:
        problem = 'unknown URI scheme, expected "postgresql://" or "postgres://"'
    raise ConfigError(f"connection string: {problem}")


def _parse_uri(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    pos = text.index("://") + 3

    # A user and password end at the first "@", if no "/" comes before it.
    at = _find(text, "@/", pos)
    if text[at : at + 1] == "@":
        colon = _find(text, ":@", pos)
        if user := text[pos:colon]:
            found["user"] = _decode(user, "user")
        if password := text[colon + 1 : at]:
            found["password"] = _decode(password, "password")
        pos = at + 1

    hosts, ports = [], []
    while True:
        if text[pos : pos + 1] == "[":
            end = text.find("]", pos)
            if end < 0:
                raise ConfigError(_at('no "]" for the "["', pos), setting="host")
            if end == pos + 1:
                raise ConfigError(_at("empty IPv6 address", pos), setting="host")
            hosts.append(text[pos + 1 : end])
            pos = end + 1
            if pos < len(text) and text[pos] not in ":/?,":
                problem = 'expected ":", "/", "?" or "," after the IPv6 address'
                raise ConfigError(_at(problem, pos), setting="host")
        else:
            end = _find(text, ":/?,", pos)
            hosts.append(text[pos:end])
            pos = end
        end = _find(text, "/?,", pos)
        ports.append(text[pos + 1 : end])
        pos = end
        if text[pos : pos + 1] != ",":
            break
        pos += 1
    if host := ",".join(hosts):
        found["host"] = _decode(host, "host")
    if port := ",".join(ports):
        found["port"] = _decode(port, "port")

    end = _find(text, "?", pos)
    if dbname := text[pos + 1 : end]:
        found["dbname"] = _decode(dbname, "dbname")
    _parse_query(text, end + 1, found)
    return found


def _parse_query(text: str, pos: int, found: dict[str, str]) -> None:
    query: dict[str, str] = {}
    while pos < len(text):
        end = _find(text, "&", pos)
        raw_name, equals, raw_value = text[pos:end].partition("=")
        if not equals:
            raise ConfigError(_at('missing "=" in the URI parameter', pos))
        name = _decode(raw_name, "the name of a URI parameter")
        # A "@" further on may end a password that has the "?" in it, and an
        # unknown name may be the rest of a password that has the "&" in it.
        may_show = "@" not in text[pos:] and not SECRETS & query.keys()
        if name == "ssl":
            # JDBC's spelling, of which libpq knows this one value.
            if _decode(raw_value, name) != "true":
                raise ConfigError(
                    _at("ssl: only ssl=true is known, use sslmode", pos), setting=name
                )
            name, raw_value = "sslmode", "require"
        _check_name(name, pos, may_show)
        if "=" in raw_value:
            position = pos + len(raw_name) + 1 + raw_value.index("=")
            raise ConfigError(_at(f'{name}: a second "=" must be written %3D', position))
        _store(query, name, _decode(raw_value, name))
        pos = end + 1
    found.update(query)


def _parse_pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    pos = _skip_space(text, 0)
    while pos < len(text):
        start, pos = pos, _find(text, "=" + _SPACE, pos)
        name = text[start:pos]
        pos = _skip_space(text, pos)
        if text[pos : pos + 1] != "=":
            problem = 'missing "=" after the name (a value with spaces needs single quotes)'
            raise ConfigError(_at(problem, start))
        # Behind a secret, an unknown name may be the rest of it, unquoted.
        _check_name(name, start, not SECRETS & found.keys())
        pos = _skip_space(text, pos + 1)
        if text[pos : pos + 1] != "'":
            match = _UNQUOTED.match(text, pos)
            assert match is not None  # it matches nothing, too
            raw_value = match[0]
        elif match := _QUOTED.match(text, pos):
            raw_value = match[1]
        else:
            raise ConfigError(_at(f"{name}: no end of the quotes opened", pos), setting=name)
        _store(found, name, _ESCAPE.sub(r"\1", raw_value))
        pos = _skip_space(text, match.end())
    return found


def _store(found: dict[str, str], name: str, value: str) -> None:
    if name == "requiressl":  # sslmode's name before PostgreSQL 8
        name, value = "sslmode", "require" if value.startswith("1") else "prefer"
    found[name] = value


def _check_name(name: str, pos: int, may_show: bool) -> None:
    if name in PARAMETERS or name in POOL_SETTINGS or name == "requiressl":
        return
    may_show = may_show and _WORD.fullmatch(name) is not None
    problem = f'unknown parameter "{name}"' if may_show else "unknown parameter"
    from difflib import get_close_matches  # only an error needs it

    # Of a text that is not shown, only a likely name is a hint worth giving.
    cutoff = 0.6 if may_show else 0.8
    near = get_close_matches(name.lower(), [*PARAMETERS, *POOL_SETTINGS], 1, cutoff)
    hint = f', did you mean "{near[0]}"?' if near else ""
    raise ConfigError(_at(problem, pos) + hint, setting=name if may_show else None)


def _decode(raw: str, what: str) -> str:
    """Undo percent-encoding; blanks around are dropped since PostgreSQL 18."""
    raw = raw.strip(" ")
    if " " in raw:
        raise ConfigError(f"connection string: {what}: a space must be written %20", setting=what)
    if match := _BAD_PERCENT.search(raw):
        problem = "%00 is forbidden" if match[0] == "%00" else "a percent sign must be written %25"
        raise ConfigError(f"connection string: {what}: {problem}", setting=what)
    encoded = raw.encode("utf-8", "surrogateescape")
    plain = _PERCENT.sub(lambda m: bytes([int(m[1], 16)]), encoded)
    return plain.decode("utf-8", "surrogateescape")


def _find(text: str, chars: str, pos: int) -> int:
    """The first position from *pos* that holds one of *chars*, or the end."""
    while pos < len(text) and text[pos] not in chars:
        pos += 1
    return pos


def _skip_space(text: str, pos: int) -> int:
    while pos < len(text) and text[pos] in _SPACE:
        pos += 1
    return pos


def _at(problem: str, pos: int) -> str:
    return f"connection string: {problem} at character {pos + 1}"
