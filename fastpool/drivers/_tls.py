"""What libpq's ``ssl*`` parameters ask for, as an ``SSLContext``.

The meanings are libpq's (https://www.postgresql.org/docs/current/libpq-ssl.html),
the two surprising ones with them: a root certificate file that exists is used
under *every* sslmode that encrypts, so ``require`` then verifies like
``verify-ca``; and a client certificate file that does not exist is no error.

Building a context costs tens of milliseconds, so each is kept and shared until
one of its files changes.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping
from typing import Any

from .._secrets import Secret
from ..errors import ConfigError
from ._socket import TLS, TLSSocket

_FILES = {
    "sslrootcert": "root.crt",
    "sslcrl": "root.crl",
    "sslcert": "postgresql.crt",
    "sslkey": "postgresql.key",
}
"""The parameters that name a file, and its default below ``~/.postgresql``."""

_OTHERS = ("sslmode", "ssl_min_protocol_version", "ssl_max_protocol_version")

ATTEMPTS = {
    "disable": (False,),
    "allow": (False, True),
    "prefer": (True, False),
    "require": (True,),
    "verify-ca": (True,),
    "verify-full": (True,),
}
"""For each sslmode: encrypt, in the order of the attempts."""

_VERSIONS = {
    "tlsv1": ssl.TLSVersion.TLSv1,
    "tlsv1.1": ssl.TLSVersion.TLSv1_1,
    "tlsv1.2": ssl.TLSVersion.TLSv1_2,
    "tlsv1.3": ssl.TLSVersion.TLSv1_3,
}

_Key = tuple[str | None, ...]
_Times = tuple[int | None, ...]


class Contexts:
    """The contexts of one driver: one per set of parameters."""

    def __init__(self) -> None:
        self._kept: dict[_Key, tuple[_Times, ssl.SSLContext]] = {}

    def tls(self, params: Mapping[str, Any]) -> TLS:
        """What *params* ask of an encrypted attempt.

        Raises ``ConfigError`` for values that contradict each other and for files
        that are missing or cannot be loaded.
        """
        mode = sslmode(params)
        host = params.get("host") or None
        system = params.get("sslrootcert") == "system"
        direct = params.get("sslnegotiation") == "direct"
        sni = str(params.get("sslsni") or "1") != "0"
        if system and mode != "verify-full":
            raise ConfigError(
                f"sslrootcert=system needs sslmode=verify-full, not {mode}", setting="sslmode"
            )
        if direct and ATTEMPTS[mode] != (True,):
            raise ConfigError(
                f"sslnegotiation=direct needs sslmode=require or stronger, not {mode}",
                setting="sslnegotiation",
            )
        if mode == "verify-full" and host is None:
            raise ConfigError("sslmode=verify-full needs a host name to verify", setting="host")
        if mode == "verify-full" and not sni:
            raise ConfigError("sslsni=0 cannot be had with sslmode=verify-full", setting="sslsni")
        try:
            (host or "").encode("idna")
        except UnicodeError:
            raise ConfigError(f"host {host!r} is no valid name", setting="host") from None
        context = self._context(params)
        return TLS(
            context,
            host if sni else None,
            direct,
            required=mode not in ("allow", "prefer"),
            verified=context.verify_mode is ssl.CERT_REQUIRED,
        )

    def _context(self, params: Mapping[str, Any]) -> ssl.SSLContext:
        files = {name: _path(params, name) for name in _FILES}
        others = (params.get(name) for name in _OTHERS)
        key = (*files.values(), *others, Secret(params.get("sslpassword") or ""))
        times = tuple(_changed(path) for path in files.values())
        kept = self._kept.get(key)
        if kept is None or kept[0] != times:
            kept = self._kept[key] = times, _build(params, files)
        return kept[1]


def sslmode(params: Mapping[str, Any]) -> str:
    """The sslmode; ``ConfigError`` if there is no such.

    Not given, it is ``prefer``, and ``verify-full`` with the system's roots.
    """
    system = params.get("sslrootcert") == "system"
    mode = params.get("sslmode") or ("verify-full" if system else "prefer")
    if mode not in ATTEMPTS:
        raise ConfigError(
            f"sslmode must be one of {', '.join(ATTEMPTS)}, not {mode!r}", setting="sslmode"
        )
    return str(mode)


def _build(params: Mapping[str, Any], files: Mapping[str, str | None]) -> ssl.SSLContext:
    mode = sslmode(params)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = TLSSocket
    context.set_alpn_protocols(["postgresql"])
    context.minimum_version = _version(params, "ssl_min_protocol_version", "TLSv1.2")
    if params.get("ssl_max_protocol_version"):
        context.maximum_version = _version(params, "ssl_max_protocol_version", "")
    context.check_hostname = mode == "verify-full"
    root = files["sslrootcert"]
    if root == "system":
        context.set_default_verify_paths()
    elif root is not None and os.path.exists(root):
        _load("sslrootcert", root, lambda: context.load_verify_locations(root))
        crl = files["sslcrl"]
        if crl is not None and os.path.exists(crl):
            _load("sslcrl", crl, lambda: context.load_verify_locations(crl))
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    elif mode.startswith("verify-"):
        raise ConfigError(
            f"sslmode={mode} needs a root certificate: {root or 'sslrootcert'} does not exist",
            setting="sslrootcert",
        )
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate, private_key = files["sslcert"], files["sslkey"]
    if certificate is not None and os.path.exists(certificate):
        key = _private_key(private_key)
        # Without a callback OpenSSL would ask for the password on the terminal.
        password = Secret(params.get("sslpassword") or "")
        _load("sslcert", certificate, lambda: context.load_cert_chain(certificate, key, password))
    return context


def _private_key(path: str | None) -> str:
    """*path*, if it is there and nobody else can read it: libpq's own rule."""
    if path is None or not os.path.exists(path):
        raise ConfigError(
            f"there is a client certificate, but no private key: {path or 'sslkey'}",
            setting="sslkey",
        )
    status = os.stat(path)
    forbidden = stat.S_IRWXO | (stat.S_IWGRP | stat.S_IXGRP if status.st_uid == 0 else stat.S_IRWXG)
    if status.st_mode & forbidden:
        raise ConfigError(f"private key file {path} can be read by others", setting="sslkey")
    return path


def _load(name: str, path: str, load: Any) -> None:
    try:
        load()
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"cannot load {name} file {path}: {error}", setting=name) from error


def _path(params: Mapping[str, Any], name: str) -> str | None:
    path = params.get(name)
    if path:
        return str(path)
    home = os.path.expanduser("~")
    return None if home == "~" else os.path.join(home, ".postgresql", _FILES[name])


def _changed(path: str | None) -> int | None:
    try:
        return None if path is None else os.stat(path).st_mtime_ns
    except OSError:
        return None


def _version(params: Mapping[str, Any], name: str, default: str) -> ssl.TLSVersion:
    value = str(params.get(name) or default)
    try:
        return _VERSIONS[value.lower()]
    except KeyError:
        raise ConfigError(
            f"{name} must be one of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3, not {value!r}", setting=name
        ) from None
