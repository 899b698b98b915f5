"""From a connection string to what one attempt to connect needs.

:func:`parse` only reads the string. :func:`resolve` completes it as libpq does,
each parameter from the first of these that has it: the string, the service
file, the ``PG*`` environment, the default; it checks every value and refuses
what the driver could not keep. The result, a :class:`ConnInfo`, answers for one
host at a time and looks a missing password up in the password file then.

Where this differs from libpq, on purpose:

* the pool's own settings are further parameters (``max_size=10``);
* ``connect_timeout`` also takes fractions and Go durations, and 1 means 1 s
  (libpq before PostgreSQL 17 made 2 of it);
* with no host given, libpq tries the socket directory that it was compiled
  with. Here it is ``/var/run/postgresql`` or ``/tmp``, whichever has a socket
  for the port, else ``localhost``;
* an empty ``PGSERVICE`` or ``service`` is none, and the empty value of a number
  is an error that names it;
* ``PGDATESTYLE``, ``PGTZ``, ``PGGEQO`` and the locale (``client_encoding=auto``)
  are not read: the encoding is always UTF-8;
* a host name or port that cannot be one is refused before anything is looked
  up, since it usually is a password with an unescaped ``@`` or ``/`` in it.

:class:`DatabaseConfig` is the small alternative: the ``DB_*`` variables.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import iscoroutinefunction
from typing import Any, NamedTuple

from .._secrets import Params, hides_arguments
from ..errors import ConfigError
from ._db_env import DatabaseConfig
from ._libpq import PARAMETERS, POOL_SETTINGS, parse
from ._service import SOCKET_DIRS, home_directory, password_from_file, read_service
from ._values import check_text, parse_duration, parse_flag, parse_integer

__all__ = ["ConnInfo", "DatabaseConfig", "Host", "parse", "parse_duration", "resolve"]

_INTEGERS = (
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)
_PATHS = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
# What a number, duration or word can consist of. Other texts are not repeated
# in errors: "sslmode=require;password=..." is one value to libpq.
_PLAIN = re.compile(r"[\w.+ -]{0,40}")
_NO_HOST_NAME = re.compile(r"[@/;=?#&'\"\s]")
_UNESCAPED = (
    '(in a URI, a "/" in the user name or password is written %2F and a "@" is written %40; '
    "name=value pairs are separated by spaces)"
)
_NEGATIVE = re.compile(r"-[0-9]+")
_ENCODINGS = frozenset({"utf8", "unicode", "auto"})
_MAY_BE_PLAIN = ("disable", "allow", "prefer")


class Host(NamedTuple):
    """One server to try."""

    host: str
    """A name, an address, or the directory of a unix socket (``/...``, ``@...``
    for the abstract namespace); empty if only *hostaddr* was given."""
    hostaddr: str
    """An address that saves looking *host* up, or empty."""
    port: int


@dataclass(frozen=True, repr=False)
class ConnInfo:
    """A connection string, completed and checked: see :func:`resolve`."""

    hosts: tuple[Host, ...]
    """The servers, in the order in which to try them."""
    settings: dict[str, Any]
    """The pool's settings among the parameters, converted: durations are
    seconds as ``float`` or ``None`` for off, ``check=off`` and the like are
    ``None``. libpq's ``connect_timeout`` is here too: the pool's to enforce."""
    origins: dict[str, str]
    """Where each value comes from: ``"conninfo"``, ``"service <name>"``, the
    environment variable's name, ``"default"``."""
    _params: dict[str, Any]
    _passfile: str | None
    _warned: set[str] = field(default_factory=set, compare=False)

    @property
    def host_count(self) -> int:
        """How many servers there are to try, at least 1."""
        return len(self.hosts)

    def for_host(self, index: int) -> dict[str, Any]:
        """Return libpq's parameters for one attempt at host *index*.

        The dict is new each time and may be changed. ``port`` and the
        ``keepalives`` and ``tcp_user_timeout`` numbers are ``int``, all others
        ``str``; what has no value is absent. A password that was not given is
        looked up in the password file now.
        """
        host = self.hosts[index]
        params = Params(self._params)
        params["port"] = host.port
        if host.host:
            params["host"] = host.host
        if host.hostaddr:
            params["hostaddr"] = host.hostaddr
        if "password" not in params and self._passfile is not None:
            password = password_from_file(
                self._passfile,
                host=host.host or host.hostaddr,
                port=host.port,
                dbname=params["dbname"],
                user=params["user"],
                warned=self._warned,
            )
            if password:
                params["password"] = password
        return params

    def fit_pgbouncer(self) -> None:
        """Raise ``ConfigError`` if PgBouncer would refuse what every attempt asks for."""
        if "options" in self._params:
            label = _label("options", self.origins)
            raise ConfigError(
                f"{label}: PgBouncer refuses it as a start-up parameter; use ALTER ROLE ... SET "
                "on the server, or SET LOCAL in each transaction",
                setting=label,
            )

    def with_password(self, password: str | Callable[[], str]) -> ConnInfo:
        """The same with *password*, or with a function that is asked at each attempt.

        An empty text is none, as in libpq. Raises ``ConfigError``, which does not
        show it, for anything else.
        """
        if not callable(password) and not isinstance(password, str):
            message = f"password: expected text or a function, not a {type(password).__name__}"
            raise ConfigError(message, setting="password")
        if iscoroutinefunction(password):
            raise ConfigError("password: expected a plain function, not an async one")
        return replace(self, _params={**self._params, "password": password}) if password else self

    def __repr__(self) -> str:
        # Only what cannot hold a secret, so neither options nor passwords. A
        # "@" in a database name is the end of a password with a "/" in it.
        hosts = ",".join(f"{h.host or h.hostaddr}:{h.port}" for h in self.hosts)
        dbname = self._params["dbname"]
        shown = {
            "hosts": hosts,
            "user": self._params["user"],
            "dbname": "***" if "@" in dbname else dbname,
            "sslmode": self._params["sslmode"],
            "settings": self.settings,
        }
        if "password" in self._params:
            shown["password"] = "***"
        return f"ConnInfo({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


@hides_arguments
def resolve(text: str = "", *, environ: Mapping[str, str] = os.environ) -> ConnInfo:
    """Complete the connection string *text* as libpq does, and check it.

    Precedence: *text*, then the service file (``service``, ``servicefile`` or
    ``PGSERVICE``, ``PGSERVICEFILE``, ``PGSYSCONFDIR``), then the ``PG*``
    variables in *environ*, then the defaults. Defaults: the operating system's
    user, a database of the user's name, the local socket, port 5432,
    ``sslmode=prefer``.

    Raises ``ConfigError`` for a string that :func:`parse` refuses, a value that
    libpq refuses, and a parameter that asks for what the driver does not have.
    No connection is tried and no host name is looked up.
    """
    values, origins = _collect(text, environ)
    for name in PARAMETERS:
        if name in values:
            values[name] = _checked(name, values[name], _label(name, origins))
    _check_tls(values, origins)

    params: dict[str, Any] = {}
    for name, value in values.items():
        # To libpq, too, a parameter that is empty is one that was not given.
        if value and name in PARAMETERS and PARAMETERS[name].use == "honoured":
            params[name] = _to_integer(name, value, origins) if name in _INTEGERS else value
    if "client_encoding" in params:
        params["client_encoding"] = _encoding(params["client_encoding"], origins)
    if "user" not in params:
        params["user"], origins["user"] = _os_user(), "default"
    if "dbname" not in params:
        params["dbname"], origins["dbname"] = params["user"], "default"
    host, hostaddr, port = (params.pop(name, "") for name in ("host", "hostaddr", "port"))
    passfile = values.get("passfile")
    if not passfile and (home := home_directory(environ)):
        passfile = os.path.join(home, ".pgpass")
    return ConnInfo(
        _hosts(host, hostaddr, port, origins),
        _settings(values, origins),
        origins,
        params,
        passfile or None,
    )


def _collect(text: str, environ: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The value of every parameter that has one, and where it comes from."""
    values = parse(text)
    origins = dict.fromkeys(values, "conninfo")

    if service := values.get("service", environ.get("PGSERVICE")):
        file = values.get("servicefile", environ.get("PGSERVICEFILE"))
        for name, value in read_service(service, file, environ).items():
            if name not in values:
                values[name], origins[name] = value, f"service {service}"
    for name, parameter in PARAMETERS.items():
        if name in values:
            continue
        if parameter.env is not None and parameter.env in environ:
            values[name], origins[name] = environ[parameter.env], parameter.env
        elif name == "sslmode" and environ.get("PGREQUIRESSL", "").startswith("1"):
            values[name], origins[name] = "require", "PGREQUIRESSL"
        elif parameter.default is not None:
            values[name], origins[name] = parameter.default, "default"
    if values.get("sslrootcert") == "system" and origins["sslmode"] == "default":
        values["sslmode"] = "verify-full"  # libpq's default with the public authorities
    return values, origins


def _label(name: str, origins: Mapping[str, str]) -> str:
    """What the user has to correct: the parameter or the variable."""
    origin = origins.get(name, "default")
    if origin.startswith("service "):
        return f"{name} ({origin})"
    return name if origin in ("conninfo", "default") else origin


def _checked(name: str, value: str, label: str) -> str:
    """*value* as libpq spells it, if it is one that can be kept."""
    parameter = PARAMETERS[name]
    if parameter.values:
        if name in ("ssl_min_protocol_version", "ssl_max_protocol_version"):
            # Alone among the lists, these are read in any case and may be empty.
            spellings = {"": "", **{known.lower(): known for known in parameter.values}}
            value = spellings.get(value.lower(), value)
            known = value == "" or value in parameter.values
        else:
            known = value in parameter.values
        if not known:
            accepted = ", ".join(parameter.values)
            raise ConfigError(f"{label}: {_shown(value)} is not one of {accepted}", setting=label)
    if parameter.use == "refused" and value and value not in parameter.neutral:
        besides = f" (but for {', '.join(parameter.neutral)})" if parameter.neutral else ""
        raise ConfigError(f"{label} is not supported{besides}: {parameter.why}", setting=label)
    if parameter.use == "honoured" and name not in _PATHS:
        check_text(value, label)
    return value


def _check_tls(values: Mapping[str, str], origins: Mapping[str, str]) -> None:
    sslmode = values["sslmode"]
    if values.get("sslrootcert") == "system" and sslmode != "verify-full":
        message = f"sslmode {sslmode} is too weak for sslrootcert=system, use verify-full"
        raise ConfigError(message, setting=_label("sslmode", origins))
    if values["sslnegotiation"] == "direct" and sslmode in _MAY_BE_PLAIN:
        message = (
            f"sslmode {sslmode} is too weak for sslnegotiation=direct, "
            "use require, verify-ca or verify-full"
        )
        raise ConfigError(message, setting=_label("sslmode", origins))
    lowest = values["ssl_min_protocol_version"]
    highest = values.get("ssl_max_protocol_version", "")
    if highest and lowest > highest:
        message = f"ssl_min_protocol_version {lowest} is above ssl_max_protocol_version {highest}"
        raise ConfigError(message, setting="ssl_min_protocol_version")


def _hosts(host: str, hostaddr: str, port: str, origins: Mapping[str, str]) -> tuple[Host, ...]:
    """Match the three lists as libpq does: as many names as addresses, and one
    port for all or one for each."""
    names = host.split(",") if host else []
    addresses = hostaddr.split(",") if hostaddr else []
    ports = port.split(",")
    count = len(addresses) or len(names) or 1
    if names and len(names) != count:
        message = f"{len(names)} host names do not match {count} hostaddr values"
        raise ConfigError(message, setting=_label("hostaddr", origins))
    if len(ports) not in (1, count):
        message = f"{len(ports)} port numbers do not match {count} hosts"
        raise ConfigError(message, setting=_label("port", origins))
    numbers = [_port(text, _label("port", origins)) for text in ports]
    hosts = []
    for i, number in enumerate(numbers * (count // len(numbers))):
        address = _address(addresses[i], origins) if addresses else ""
        name = _host_name(names[i], _label("host", origins)) if names else ""
        hosts.append(Host(name if name or address else _default_host(number), address, number))
    return tuple(hosts)


def _port(text: str, label: str) -> int:
    text = text.strip()
    if not text:
        return 5432
    if re.fullmatch(r"\+?[0-9]{1,10}", text) and 1 <= int(text) <= 65535:
        return int(text)
    message = f"{label}: not a number from 1 to 65535 {_UNESCAPED}"
    raise ConfigError(message, setting=label)


def _address(text: str, origins: Mapping[str, str]) -> str:
    try:
        if text:
            socket.getaddrinfo(text, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        label = _label("hostaddr", origins)
        raise ConfigError(f"{label}: not an IP address", setting=label) from None
    return text


def _host_name(text: str, label: str) -> str:
    if not text.startswith(("/", "@")) and (match := _NO_HOST_NAME.search(text)):
        message = f"{label}: a host name cannot have {match[0]!r} in it {_UNESCAPED}"
        raise ConfigError(message, setting=label)
    return text


def _default_host(port: int) -> str:
    for directory in SOCKET_DIRS:
        if os.path.exists(f"{directory}/.s.PGSQL.{port}"):
            return directory
    return "localhost"


def _os_user() -> str:
    try:
        import pwd  # not on every platform

        name: str = pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):
        message = "user is not given, and the operating system has no name for this process's user"
        raise ConfigError(message, setting="user") from None
    return name


def _encoding(value: str, origins: Mapping[str, str]) -> str:
    if re.sub(r"[^a-z0-9]", "", value.lower()) in _ENCODINGS:
        return "UTF8"
    label = _label("client_encoding", origins)
    raise ConfigError(f"{label}: {_shown(value)} is not supported, only UTF8", setting=label)


def _settings(values: Mapping[str, str], origins: Mapping[str, str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in ("connect_timeout", *POOL_SETTINGS):
        if name not in values:
            continue
        value, label = values[name].strip(), _label(name, origins)
        if not _PLAIN.fullmatch(value):
            raise ConfigError(f"{label}: {_shown(value)} is not valid", setting=label)
        kind = POOL_SETTINGS.get(name)
        if kind == "integer":
            settings[name] = parse_integer(value, label)
        elif kind == "flag":
            settings[name] = parse_flag(value, label)
        elif kind == "text":
            settings[name] = None if value == "off" else value
        elif kind is None and _NEGATIVE.fullmatch(value):
            settings[name] = None  # libpq: zero, negative or not given is no limit
        else:
            settings[name] = parse_duration(value, label)
            if kind == "amount":
                settings[name] = settings[name] or 0.0
    return settings


def _to_integer(name: str, value: str, origins: Mapping[str, str]) -> int:
    value, label = value.strip(), _label(name, origins)
    if not _PLAIN.fullmatch(value):
        raise ConfigError(f"{label}: {_shown(value)} is not valid", setting=label)
    number = parse_integer(value, label)
    # libpq: keepalives is on or off, and a negative number is the system's default.
    return int(number != 0) if name == "keepalives" else max(0, number)


def _shown(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return repr(value)
    return "the value (not shown, it may hold a password)"
