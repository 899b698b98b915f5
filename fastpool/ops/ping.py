"""Why can I not connect? One server after the other, layer by layer.

Each layer is tried by itself with the very code that the pool dials with: the name
is looked up, a socket connected, TLS agreed on, a session begun, its role compared
with what is wanted, and statements sent there and back. The first one that fails is
what is wrong; those above it cannot be reached.
"""

from __future__ import annotations

import argparse
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple, TypeVar

from pg8000.exceptions import DatabaseError, InterfaceError

from .._hosts import Hosts, fits
from .._impl import State
from .._opener import describe
from ..config import PoolConfig
from ..conninfo import ConnInfo, resolve
from ..drivers import _socket
from ..drivers._tls import ATTEMPTS, Contexts, sslmode
from ..drivers.base import hang_up
from ..drivers.pg8000 import Native
from ..errors import ConfigError
from . import CommandError

__all__ = ["HELP", "LAYERS", "Layer", "add_arguments", "layers", "run"]

T = TypeVar("T")

HELP = "find out, layer by layer, why a connection fails, or how quick it is"

LAYERS = ("name", "tcp", "tls", "capacity", "authentication", "database", "role", "latency")
"""From the bottom up."""

_PINGS = 10
_HINTS = {
    "name": "is it spelt right, and does this machine's resolver know it? (getent hosts NAME)",
    "tcp": "refused: does the server run, on that port and address (listen_addresses)? "
    "No answer: a firewall, or the wrong address",
    "tls": "does the server offer TLS (ssl = on), and is its certificate made out to that host "
    "name by an authority in sslrootcert?",
    "capacity": "its connections are used up: see who has them in pg_stat_activity, and what "
    "a pool may take with `fastpool size`",
    "authentication": "check user and password, and the line of pg_hba.conf that fits this host",
    "database": "does it exist, and may this user CONNECT to it?",
    "role": "another host may be the one that target_session_attrs wants: name them all",
    "latency": "",
}
_SECRET = ("password", "sslpassword")
_MAY_HOLD_SECRETS = ("options",)
_ALWAYS_SHOWN = ("host", "port", "user", "dbname", "sslmode")


class Layer(NamedTuple):
    """One layer of one host."""

    name: str
    ok: bool | None
    """``None``: it could not be reached."""
    seconds: float
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dsn", nargs="?", default="", help="connection string (default: the PG* environment)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="for each layer (default: 5)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """0: a host is as it should be; 1: none is. Raises ``CommandError`` for a
    connection string that is none."""
    if not args.timeout > 0:
        raise CommandError(f"--timeout: expected seconds > 0, not {args.timeout:g}")
    try:
        conninfo = resolve(args.dsn)
        settings = effective(conninfo)
        hosts = Hosts(conninfo)
    except ConfigError as error:
        raise CommandError(str(error)) from error
    if not args.json:
        print("settings")
        width = max(map(len, settings))
        for name, (value, origin) in settings.items():
            if origin != "default" or name in _ALWAYS_SHOWN:
                print(f"  {name:{width}}  {value}  ({origin})")
    found: dict[str, list[Layer]] = {}
    for index in range(conninfo.host_count):
        name = hosts.name(index)
        found[name] = []
        if not args.json:
            print(f"\n{name}")
        for layer in layers(hosts, index, args.timeout):
            found[name].append(layer)
            if not args.json:
                _print(layer)
    well = any(all(layer.ok for layer in each) for each in found.values())
    if args.json:
        report = {
            "ok": well,
            "settings": {
                name: {"value": value, "origin": origin}
                for name, (value, origin) in settings.items()
            },
            "hosts": {name: [layer._asdict() for layer in each] for name, each in found.items()},
        }
        print(json.dumps(report))
    return 0 if well else 1


def _print(layer: Layer) -> None:
    mark = {True: "ok", False: "FAIL", None: "-"}[layer.ok]
    took = "" if layer.ok is None else f"{layer.seconds * 1e3:.1f} ms"
    print(f"  {mark:4}  {layer.name:14}  {took:>9}  {layer.detail}".rstrip(), flush=True)
    if layer.ok is False and _HINTS[layer.name]:
        print(f"{'':35}{_HINTS[layer.name]}", flush=True)


def effective(conninfo: ConnInfo) -> dict[str, tuple[str, str]]:
    """Each setting in force, as text, and where it comes from. Secrets are masked."""
    params = conninfo.for_host(0)
    params["host"] = ",".join(host.host or host.hostaddr for host in conninfo.hosts)
    params["port"] = ",".join(str(host.port) for host in conninfo.hosts)
    found: dict[str, tuple[str, str]] = {}
    for name, value in sorted(params.items()):
        origin = conninfo.origins.get(name, "password file" if name == "password" else "default")
        if name in _SECRET:
            value = "***"
        elif name in _MAY_HOLD_SECRETS:
            value = "(not shown)"
        found[name] = str(value), origin
    config = PoolConfig.build(**conninfo.settings)
    for name in PoolConfig.__dataclass_fields__:
        if name[0] != "_":
            found[name] = repr(getattr(config, name)), conninfo.origins.get(name, "default")
    return found


class _Broken(Exception):
    """A layer that failed, and its words."""

    def __init__(self, layer: str, detail: str) -> None:
        self.layer, self.detail = layer, detail


def layers(hosts: Hosts, index: int, timeout: float) -> Iterator[Layer]:
    """All layers of host *index*, as they are reached, each in *timeout* seconds."""
    steps = _steps(hosts, index, timeout)
    reached = 0
    began = time.monotonic()
    try:
        for name, detail in steps:
            now = time.monotonic()
            yield Layer(name, True, now - began, detail)
            reached, began = LAYERS.index(name) + 1, time.monotonic()
    except _Broken as broken:
        failed = LAYERS.index(broken.layer)
        # A session is begun in one step, which passes the layers below the one that fails.
        for name in LAYERS[reached:failed]:
            yield Layer(name, True, 0.0, "")
        yield Layer(broken.layer, False, time.monotonic() - began, broken.detail)
        for name in LAYERS[failed + 1 :]:
            yield Layer(name, None, 0.0, "not reached")


def _attempt(layer: str, step: Callable[[float], T], timeout: float) -> T:
    try:
        return step(time.monotonic() + timeout)
    except TimeoutError:
        raise _Broken(layer, f"no answer in {timeout:g} s") from None
    except (OSError, InterfaceError, ConfigError) as error:
        raise _Broken(layer, describe(error)) from None


def _steps(hosts: Hosts, index: int, timeout: float) -> Iterator[tuple[str, str]]:
    params = hosts.params(index)
    endpoints = _attempt("name", lambda until: _socket.resolve(params, until), timeout)
    local = endpoints[0].family == socket.AF_UNIX
    yield "name", "a unix socket" if local else ", ".join(str(e.address[0]) for e in endpoints)

    for number, endpoint in enumerate(endpoints, 1):
        try:
            _attempt("tcp", lambda until: _reach(endpoint, until), timeout)  # noqa: B023
            break
        except _Broken:
            if number == len(endpoints):
                raise
    yield "tcp", "" if local else str(endpoint.address[0])

    mode = sslmode(params)
    if local or True not in ATTEMPTS[mode]:
        yield "tls", "not used on a unix socket" if local else f"off (sslmode={mode})"
    else:
        yield "tls", _attempt("tls", lambda until: _shake_hands(endpoint, params, until), timeout)

    driver, state = Native(), State()
    params.setdefault("application_name", "fastpool ping")
    try:
        conn = _attempt(
            "authentication", lambda until: driver.connect(params, state, until), timeout
        )
    except DatabaseError as error:
        raise _Broken(_layer_of(driver.sqlstate(error) or ""), describe(error)) from None
    try:
        yield "capacity", ""
        yield "authentication", f"as {params['user']}"
        yield "database", params["dbname"]
        role = driver.role(conn)
        words = f"{'a standby' if role.standby else 'a primary'}" + ", read-only" * role.read_only
        if not fits(role, hosts.wanted):
            raise _Broken("role", f"{words}: not what target_session_attrs={hosts.wanted} wants")
        yield "role", f"{words}; PostgreSQL {conn.parameter_statuses.get('server_version', '?')}"
        times = []
        for _ in range(_PINGS):
            began = time.monotonic()
            try:
                _attempt("latency", lambda _: driver.ping(conn, timeout), timeout)
            except DatabaseError as error:
                raise _Broken("latency", describe(error)) from None
            times.append(time.monotonic() - began)
        yield "latency", f"{median(times) * 1e3:.2f} ms, the median of {_PINGS} round trips"
    finally:
        hang_up(driver, conn)


def _layer_of(code: str) -> str:
    """What a server that refuses a session complains of."""
    if code == "53300":
        return "capacity"
    return "authentication" if code.startswith("28") else "database"


def _reach(endpoint: _socket.Endpoint, until: float) -> None:
    _socket.drive(_socket.dial(endpoint, None), until).close()


def _shake_hands(endpoint: _socket.Endpoint, params: dict[str, Any], until: float) -> str:
    tls = Contexts().tls(params)
    sock = _socket.drive(_socket.dial(endpoint, tls), until)
    with sock:
        if not isinstance(sock, ssl.SSLSocket):
            return f"the server has none; sslmode={sslmode(params)} goes on without"
        cipher = sock.cipher()
        proof = "certificate verified" if tls.verified else "certificate not verified"
        return f"{sock.version()}, {cipher[0] if cipher else '?'}, {proof}"
