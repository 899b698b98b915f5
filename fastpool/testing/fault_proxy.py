"""A proxy that goes wrong on demand, between a client and a server, for tests.

``with FaultProxy(pg) as proxy:`` stands in front of a :class:`LocalPostgres` (or of
any TCP or unix socket server), counts what passes, delays it, holds it, cuts it, and
heals again. With a certificate it speaks TLS, so that a client's TLS can be tested on
a server without it.

It runs in a process of its own, started in a few hundredths of a second: its work
never takes the interpreter lock of the client under test. This module is the handle;
the process is in ``_relay``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import math
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from .local_postgres import LocalPostgres

__all__ = [
    "Certificate",
    "Counters",
    "FaultProxy",
    "FaultProxyError",
    "ProxiedConnection",
    "make_certificate",
]

_PROGRAM: Final = Path(__file__).with_name("_relay.py")

Direction = Literal["to_client", "to_server"]
Target = LocalPostgres | tuple[str, int] | str | os.PathLike[str]
File = str | os.PathLike[str]


class FaultProxyError(RuntimeError):
    """The proxy, or ``openssl``, failed, or cannot do what was asked."""


class Counters(NamedTuple):
    """What has happened since the start, or since ``reset_counters()``."""

    connections: int
    """Connections accepted."""
    flights: int
    """How often it became a client's turn to speak and it did: all that a client
    sends until it is answered is one flight, so there are as many round trips."""
    bytes_to_server: int
    """Bytes taken from clients and passed on, TLS included."""
    bytes_to_client: int
    """Bytes sent to clients, TLS included."""
    cancels: int
    """Cancel requests seen, passed on or dropped."""


class ProxiedConnection(NamedTuple):
    """One open connection through the proxy."""

    number: int
    """1 for the first that was accepted, 2 for the second, ..."""
    client_port: int
    """The port of the client's own socket."""
    server_port: int | None
    """The port of the proxy's socket to the server: PostgreSQL's ``inet_client_port()``
    and ``pg_stat_activity.client_port``. ``None`` over a unix socket, and while (or
    since) there is no server behind the connection."""
    flights: int
    bytes_to_server: int
    bytes_to_client: int


class FaultProxy:
    """A server's address at which things go wrong.

    *target*: a :class:`LocalPostgres`, ``(host, port)``, or the absolute path of a unix
    socket.
    *tls*: the files of a PEM certificate and its key; clients that ask for TLS then
    get it, by SSLRequest or directly, others go on without. See
    :func:`make_certificate`.
    *client_ca*: the file of a PEM certificate; with *tls*, clients then have to show one
    of their own that it has signed.

    Nothing happens before :meth:`start`, which ``with`` calls. The proxy listens on
    ``host`` and ``port``; each client's connection is one to the server. One that
    cannot be made resets the client's.

    **Faults.** A method returns when its fault is in force. ``latency``,
    ``bandwidth``, ``drip``, ``cut_after`` and ``black_hole`` are *states* of all
    connections, present and future, until :meth:`heal`; with *connection*, a
    ``ProxiedConnection.number``, of that one alone. ``refuse``, ``slow_accept``,
    ``silent_accept`` and ``drop_cancels`` are states for new connections. ``reset``,
    ``half_open`` and ``fatal`` are *events*: they happen to the connections that are
    there, or to one, and the next connection knows nothing of them. States add up; a
    state that is set again replaces itself.

    Raises ``ValueError`` for a number out of range and ``FaultProxyError`` for a
    proxy that is not running or a connection that is not there. An object may be used
    from several threads. In a forked child it can be read, and :meth:`close` does
    nothing.
    """

    host: Final = "127.0.0.1"

    def __init__(
        self,
        target: Target,
        *,
        tls: tuple[File, File] | None = None,
        client_ca: File | None = None,
    ) -> None:
        if not isinstance(target, LocalPostgres | tuple) and not os.path.isabs(target):
            raise ValueError(
                "target must be a LocalPostgres, (host, port) or the absolute path of a "
                f"unix socket, not {target!r}"
            )
        self._target: Final = target
        if client_ca is not None and tls is None:
            raise ValueError("client_ca must come with tls")
        self._tls: Final = tls if tls is None else (*tls, client_ca)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._serial = 0
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        target = self._target
        if isinstance(target, LocalPostgres):
            where = repr(target)
        else:
            where = "{}:{}".format(*target) if isinstance(target, tuple) else os.fspath(target)
        state = "new" if self._port is None else f"{self.host}:{self._port}"
        if self._port is not None and self._process is None:
            state = "closed"
        return f"<FaultProxy {state}{' with TLS' if self._tls else ''} before {where}>"

    def __enter__(self) -> FaultProxy:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Life.

    def start(self) -> None:
        """Start the proxy's process and listen; does nothing when it has been started.

        Raises ``FaultProxyError`` when the target's name cannot be resolved or the
        certificate cannot be loaded, and when the proxy has been closed.
        """
        with self._lock:
            if self._process is not None:
                return
            if self._port is not None:
                raise FaultProxyError("the proxy is closed")
            self._owner = os.getpid()
            tls = self._tls and [file and os.path.abspath(file) for file in self._tls]
            # Isolated and without site-packages: nothing of the caller's is imported.
            command: list[File] = [sys.executable, "-I", "-S", _PROGRAM]
            self._process = subprocess.Popen(
                [*command, json.dumps([self._address(), tls])],
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in the terminal is for the caller
            )
            try:
                self._port = self._answer(self._process, 0)
            except BaseException:
                self._end(self._process)
                raise

    def close(self) -> None:
        """End the proxy and every connection through it. May be repeated.

        In a forked child it does nothing: the proxy is its parent's.
        """
        if os.getpid() != self._owner:
            return
        process = self._process
        if process is not None:
            # Killed: the kernel closes all there is, and a forked child that holds the
            # pipe open cannot keep it alive. A command under way in another thread
            # fails, and gives the lock back.
            process.kill()
            with self._lock:
                self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process = None

    @property
    def port(self) -> int:
        """The TCP port clients connect to; it stays the same under every fault."""
        if self._port is None:
            raise FaultProxyError("the proxy has not been started")
        return self._port

    @property
    def dsn(self) -> str:
        """The :class:`LocalPostgres`'s connection URI, by way of this proxy.

        It says nothing about TLS: with the default ``sslmode=prefer`` a client first
        asks for it, which is a flight. Raises ``FaultProxyError`` for another target.
        """
        if not isinstance(self._target, LocalPostgres):
            raise FaultProxyError("only a proxy in front of a LocalPostgres has a dsn")
        url = urlsplit(self._target.dsn)
        userinfo = url.netloc.rpartition("@")[0]
        return url._replace(netloc=f"{userinfo}@{self.host}:{self.port}").geturl()

    # States of connections.

    def latency(
        self, seconds: float, jitter: float = 0.0, *, connection: int | None = None
    ) -> None:
        """Deliver every byte *seconds* later, in each direction: a round trip takes
        twice that. *jitter*: up to so many seconds more, at random; order is kept."""
        _check("seconds", seconds, at_least=0)
        _check("jitter", jitter, at_least=0)
        self._command("latency", connection=connection, seconds=seconds, jitter=jitter)

    def bandwidth(self, bytes_per_second: float, *, connection: int | None = None) -> None:
        """Pass at most so many bytes per second, per connection and direction."""
        _check("bytes_per_second", bytes_per_second, above=0)
        self._command("bandwidth", connection=connection, bytes_per_second=bytes_per_second)

    def drip(self, count: int, interval: float, *, connection: int | None = None) -> None:
        """Give clients what the server says *count* bytes at a time, one such piece in
        *interval* seconds. Replaces :meth:`bandwidth` in that direction."""
        _check("count", count, at_least=1, whole=True)
        _check("interval", interval, above=0)
        self._command("drip", connection=connection, count=count, interval=interval)

    def cut_after(
        self,
        count: int,
        direction: Direction = "to_client",
        *,
        how: Literal["reset", "close"] = "reset",
        connection: int | None = None,
    ) -> None:
        """End each connection after *count* more bytes in one direction.

        These bytes arrive, the next do not. ``reset`` sends RST to both sides,
        ``close`` ends both in the regular way of TCP, without a word of TLS.
        """
        _check("count", count, at_least=1, whole=True)
        _one_of("direction", direction, ("to_client", "to_server"))
        _one_of("how", how, ("reset", "close"))
        self._command("cut_after", connection=connection, count=count, direction=direction, how=how)

    def black_hole(self, *, acknowledge: bool = True, connection: int | None = None) -> None:
        """Let nothing through, not even the end of a connection, and lose nothing.

        New connections hang as well: on Linux before ``connect()`` returns, and after
        :meth:`heal` until the client's kernel tries again (at 1, 3, 7, ... seconds).

        The proxy's kernel still acknowledges what clients send, so that
        ``TCP_USER_TIMEOUT`` and keepalive do not see this fault. With *acknowledge*
        false they do: for the connections that are there, it is as if the cable had been
        cut. What their clients send meanwhile comes after :meth:`heal`, when their
        kernel sends it again. Linux only, and some kernels want root for it; else this
        is a ``FaultProxyError``.
        """
        if not acknowledge and sys.platform != "linux":
            raise FaultProxyError("only Linux can keep a kernel from acknowledging")
        self._command("black_hole", connection=connection, acknowledge=acknowledge)

    # States for new connections.

    def refuse(self) -> None:
        """Stop listening: who connects now gets ECONNREFUSED. The port stays reserved."""
        self._command("refuse")

    def slow_accept(self, seconds: float) -> None:
        """Leave each new connection unattended for *seconds*: ``connect()`` succeeds,
        but nothing is read, and the server not dialled, before."""
        _check("seconds", seconds, at_least=0)
        self._command("slow_accept", seconds=seconds)

    def silent_accept(self) -> None:
        """Leave new connections unattended until :meth:`heal`."""
        self._command("silent_accept")

    def drop_cancels(self) -> None:
        """Close cancel requests without passing them on; their senders cannot tell."""
        self._command("drop_cancels")

    # Events.

    def reset(self, *, connection: int | None = None) -> int:
        """Send RST to client and server, now. Returns how many connections there were."""
        return int(self._command("reset", connection=connection))

    def half_open(self, *, connection: int | None = None) -> int:
        """Close the server's side and tell the client nothing.

        What the client sends from now on is swallowed. :meth:`heal` resets the
        connection, as a server does that has forgotten it. Returns how many
        connections it happened to.
        """
        return int(self._command("half_open", connection=connection))

    def fatal(self, sqlstate: str, message: str, *, connection: int | None = None) -> int:
        """Tell clients a FATAL error in the server's name, then close both sides.

        It comes between two messages of the server, so also in the middle of a result.
        Returns how many connections it happened to: not to those that are not
        PostgreSQL's, or encrypted between client and server (that is a
        ``FaultProxyError`` for a *connection* that was named).
        """
        if not re.fullmatch(r"[0-9A-Z]{5}", sqlstate):
            raise ValueError(f"sqlstate must be five of 0-9 and A-Z, not {sqlstate!r}")
        if "\0" in message:
            raise ValueError("message must not contain a NUL character")
        arguments = {"connection": connection, "sqlstate": sqlstate, "message": message}
        return int(self._command("fatal", **arguments))

    def heal(self, *, connection: int | None = None) -> None:
        """End all states, of everything or of one connection.

        What was held back is delivered, in order and at once. Connections that were
        left unattended are taken to the server, half-open ones are reset.
        """
        self._command("heal", connection=connection)

    # What passed.

    def counters(self) -> Counters:
        """The counters, over all connections."""
        return Counters(**self._command("counters"))

    def connections(self) -> list[ProxiedConnection]:
        """The open connections, oldest first, each with its own counters."""
        return [ProxiedConnection(*fields) for fields in self._command("connections")]

    def reset_counters(self) -> None:
        """Set all counters to zero, also those of each connection."""
        self._command("reset_counters")

    # Inside.

    def _address(self) -> str | list[str | int]:
        target = self._target
        if isinstance(target, LocalPostgres):
            return [target.host, target.port]
        if isinstance(target, tuple):
            return list(target)
        return os.fspath(target)

    def _command(self, name: str, **arguments: Any) -> Any:
        if os.getpid() != self._owner:
            raise FaultProxyError("the proxy belongs to the process that started it")
        with self._lock:
            process = self._process
            if process is None:
                state = "closed" if self._port is not None else "not started"
                raise FaultProxyError(f"the proxy is {state}")
            self._serial += 1
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended, and _answer tells why
                process.stdin.write(json.dumps([self._serial, name, arguments]).encode() + b"\n")
                process.stdin.flush()
            return self._answer(process, self._serial)

    def _answer(self, process: subprocess.Popen[bytes], expected: int) -> Any:
        assert process.stdout is not None
        assert process.stderr is not None
        # A command whose caller was interrupted has left its answer behind.
        for line in process.stdout:
            serial, ok, value = json.loads(line)
            if serial == expected:
                if not ok:
                    raise FaultProxyError(value)
                return value
        process.wait()
        last_words = process.stderr.read().decode(errors="replace").strip()
        raise FaultProxyError(f"the proxy's process has ended\n{last_words}".strip())


def _check(
    name: str,
    value: float,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    whole: bool = False,
) -> None:
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < at_least or value <= above:
        kind = "a whole number" if whole else "a number"
        limit = f"of at least {at_least:g}" if at_least > above else f"above {above:g}"
        raise ValueError(f"{name} must be {kind} {limit}, not {value!r}")


def _one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}, not {value!r}")


class Certificate(NamedTuple):
    """The PEM files of a certificate; fits ``FaultProxy(tls=)``."""

    certfile: Path
    keyfile: Path


def make_certificate(
    directory: File, hostnames: Iterable[str], ca: Certificate | None = None
) -> Certificate:
    """Make a key and a certificate for these host names and IP addresses, in *directory*.

    Signed by *ca*, which :func:`make_certificate` has made too; without one it signs
    itself, and its own file is what a client has to trust (``sslrootcert``). It is
    valid for a week. The files are named after the first host name.

    Runs the ``openssl`` command. Raises ``FileNotFoundError`` when there is none,
    ``FileExistsError`` rather than overwrite a file, ``ValueError`` for a host name
    that cannot be written, and ``FaultProxyError`` with what ``openssl`` said.
    """
    names = [hostnames] if isinstance(hostnames, str) else list(hostnames)
    if not names:
        raise ValueError("hostnames must name at least one host")
    alternatives = []
    for name in names:
        try:
            alternatives.append(f"IP:{ipaddress.ip_address(name)}")
        except ValueError:
            if not re.fullmatch(r"(\*\.)?[A-Za-z0-9._-]+", name):
                raise ValueError(f"hostnames: {name!r} is neither host name nor address") from None
            alternatives.append(f"DNS:{name}")
    if shutil.which("openssl") is None:
        raise FileNotFoundError("make_certificate needs the openssl command; install OpenSSL")
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", names[0])
    made = Certificate(Path(directory, f"{stem}.crt"), Path(directory, f"{stem}.key"))
    for file in made:
        if file.exists():
            raise FileExistsError(f"{file} exists")
    kind = "CA:TRUE" if ca is None else "CA:FALSE"
    usage = "digitalSignature" + (", keyCertSign" if ca is None else "")
    with tempfile.TemporaryDirectory() as work:
        request, settings = Path(work, "request"), Path(work, "settings")
        settings.write_text(
            "[req]\ndistinguished_name = dn\n[dn]\n[extensions]\n"
            f"basicConstraints = critical, {kind}\n"
            f"keyUsage = critical, {usage}\n"
            f"subjectAltName = {', '.join(alternatives)}\n"
            "subjectKeyIdentifier = hash\n"
            + ("" if ca is None else "authorityKeyIdentifier = keyid:always\n")
        )
        key = "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"
        # A common name may have 64 characters at most; who verifies reads the others.
        subject = "-subj", f"/CN={names[0][:64]}"
        files = "-config", settings, "-keyout", made.keyfile, "-out", request
        _openssl("req", "-new", *key, *subject, *files)
        made.keyfile.chmod(0o600)
        if ca is None:
            signer: tuple[File, ...] = ("-signkey", made.keyfile)
        else:
            signer = "-CA", ca.certfile, "-CAkey", ca.keyfile
        serial = "-set_serial", str(secrets.randbits(64) + 1), "-days", "7"
        extensions = "-extfile", settings, "-extensions", "extensions"
        _openssl(
            "x509", "-req", "-in", request, *signer, *serial, *extensions, "-out", made.certfile
        )
    return made


def _openssl(*arguments: File) -> None:
    done = subprocess.run(["openssl", *arguments], stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise FaultProxyError(f"openssl {os.fspath(arguments[0])} failed:\n{text}")
