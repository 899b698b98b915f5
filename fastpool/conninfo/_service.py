"""The files that complete a connection string: services and passwords.

Both are libpq's, see https://www.postgresql.org/docs/current/libpq-pgservice.html
and https://www.postgresql.org/docs/current/libpq-pgpass.html. A service file is
read once, when a connection string is resolved; the password file at each
attempt to connect, so that a changed password is found.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping

from .._logs import Log
from ..errors import ConfigError
from ._libpq import PARAMETERS, POOL_SETTINGS

__all__ = ["SOCKET_DIRS", "home_directory", "password_from_file", "read_service"]

SOCKET_DIRS = ("/var/run/postgresql", "/tmp")
"""Where servers put their sockets: packages for Linux, and PostgreSQL's own default."""

# Compiled into libpq; this is Debian's. PGSYSCONFDIR overrides it.
_SYSCONFDIR = "/etc/postgresql-common"

_PASSWORD = re.compile(r"(?:\\.|[^:\\]|\\\Z)*", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

_log = Log()


def home_directory(environ: Mapping[str, str]) -> str | None:
    """``HOME``, or the effective user's from the system's list of users."""
    if home := environ.get("HOME"):
        return home
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_dir
    except (ImportError, KeyError):
        return None


def read_service(name: str, file: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of service *name*.

    *file* is the ``servicefile`` or ``PGSERVICEFILE`` given, which must exist;
    without one, ``~/.pg_service.conf`` is read if it exists. A service that is
    not found there is looked for in ``pg_service.conf`` in ``PGSYSCONFDIR``.

    Raises ``ConfigError`` when the service is nowhere or its file is wrong.
    """
    candidates = []
    if file:
        candidates.append((file, True))
    elif home := home_directory(environ):
        candidates.append((os.path.join(home, ".pg_service.conf"), False))
    directory = environ.get("PGSYSCONFDIR", _SYSCONFDIR)
    candidates.append((os.path.join(directory, "pg_service.conf"), False))
    for path, must_exist in candidates:
        if must_exist or os.path.exists(path):
            found = _read_group(path, name)
            if found is not None:
                return found
    raise ConfigError(f'definition of service "{name}" not found', setting="service")


def _read_group(path: str, name: str) -> dict[str, str] | None:
    found: dict[str, str] | None = None
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            lines = file.readlines()
    except OSError as error:
        message = f'service file "{path}" cannot be read: {error.strerror}'
        raise ConfigError(message, setting="servicefile") from error
    for number, line in enumerate(lines, 1):
        line = line.strip(" \t\n\v\f\r")
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            if found is not None:
                break
            if line.startswith(f"[{name}]"):
                found = {}
        elif found is not None:
            key, equals, value = line.partition("=")
            if problem := _problem(key, equals):
                message = f'service file "{path}", line {number}: {problem}'
                raise ConfigError(message, setting="service")
            found.setdefault(key, value)
    return found


def _problem(key: str, equals: str) -> str | None:
    """What is wrong with a line of a service, without its words: it may be a
    password's."""
    if key.startswith("ldap"):
        return "LDAP look-up is not supported"
    if not equals:
        return 'missing "="'
    if key in ("service", "servicefile"):
        return f"{key} cannot be set by a service"
    if key not in PARAMETERS and key not in POOL_SETTINGS:
        return "unknown parameter (no spaces are allowed around its name)"
    return None


def password_from_file(
    path: str, *, host: str, port: int, dbname: str, user: str, warned: set[str]
) -> str | None:
    """Return the password that the password file at *path* has for a host.

    The first line that matches ``host:port:dbname:user:password`` counts. A
    file that others may read is ignored, with one warning while *path* is not
    in *warned*; one that is missing or unreadable, without.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            _warn_once(warned, path, 'password file "%s" is not a plain file')
            return None
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            message = (
                'password file "%s" has group or world access and is ignored; '
                "permissions should be u=rw (0600) or less"
            )
            _warn_once(warned, path, message)
            return None
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            lines = file.readlines()
    except OSError:
        return None
    if host in SOCKET_DIRS:
        host = "localhost"
    for line in lines:
        # A comment matches no host, since none begins with "#".
        rest: str | None = line.rstrip("\r\n")
        for token in (host, str(port), dbname, user):
            if rest is not None:
                rest = _match_field(rest, token)
        if rest is not None and (match := _PASSWORD.match(rest)):
            return _ESCAPE.sub(r"\1", match[0])
    return None


def _match_field(line: str, token: str) -> str | None:
    """What follows the first field of *line*, if that field says *token*."""
    if line.startswith("*:"):
        return line[2:]
    pos = 0
    for char in token:
        if line[pos : pos + 1] == "\\":
            pos += 1
        if line[pos : pos + 1] != char:
            return None
        pos += 1
    return line[pos + 1 :] if line[pos : pos + 1] == ":" else None


def _warn_once(warned: set[str], path: str, message: str) -> None:
    if path not in warned:
        warned.add(path)
        _log.warning("password_file", message, path)
