"""What the driver talks to in its tests: a state object, a scripted server."""

from __future__ import annotations

import contextlib
import hashlib
import math
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pg8000.core import scramp

from fastpool.drivers.base import BUSY
from fastpool.errors import ConnectionBusy, ConnectionReleased


class State:
    """``ConnState`` in plain Python; the core's counts leases the same way."""

    def __init__(self, leased: bool = False) -> None:
        self.flags = 0
        self.serial = 1 if leased else 0
        self.deadline = math.inf
        self.stray = 0
        self._lock = threading.Lock()

    def enter(self, serial: int = 0) -> None:
        with self._lock:
            if not self.serial & 1 or serial not in (0, self.serial):
                raise ConnectionReleased("given back")
            if self.flags & BUSY:
                raise ConnectionBusy("another call is inside")
            self.flags |= BUSY

    def leave(self, flags: int) -> None:
        self.flags = flags

    def cancelling(self) -> None:
        self.stray += 1

    def cancelled(self, proven: bool) -> None:
        self.stray = self.stray - 1 if proven else -1

    def lease(self) -> None:
        """Begin a lease."""
        self.serial += 1
        assert self.serial & 1

    def release(self) -> None:
        """End the lease."""
        self.serial += 1
        assert not self.serial & 1


class Listener:
    """A loopback server with a thread per client; ``serve`` is the subclass's."""

    def __init__(self) -> None:
        self.clients = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._open: list[tuple[threading.Thread, socket.socket]] = []
        threading.Thread(target=self._loop, daemon=True).start()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.drop()

    def drop(self) -> None:
        """Hang up on every client."""
        for _, sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def keep(self, sock: Any) -> Any:
        self._open.append((threading.current_thread(), sock))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _loop(self) -> None:
        while True:
            try:
                client = self._socket.accept()[0]
            except OSError:
                return
            self.clients += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        gone = OSError, EOFError, scramp.ScramException
        with contextlib.suppress(*gone):
            self.serve(self.keep(client))
        for thread, sock in self._open:
            if thread is threading.current_thread():
                sock.close()

    def serve(self, client: Any) -> None:
        raise NotImplementedError


def message(code: bytes, body: bytes = b"") -> bytes:
    return code + struct.pack("!i", len(body) + 4) + body


def error_response(sqlstate: str) -> bytes:
    fields = f"SFATAL\0VFATAL\0C{sqlstate}\0Mscripted\0\0"
    return message(b"E", fields.encode())


READY = message(b"R", struct.pack("!i", 0)) + message(b"K", bytes(8)) + message(b"Z", b"I")


class Script(Listener):
    """A server that gets as far as ReadyForQuery, or where it is told to stop.

    *answer*: to the request for TLS. *context*: what it then does. *auth*: "trust",
    "cleartext", "md5", "scram", "plus" (both offered), or "unproved" (SCRAM, without
    the server's own proof). *refuse*: encrypted or not -> SQLSTATE or None. *send*:
    replaces every ``sendall``. *password*: SCRAM's. What clients sent as passwords is in
    ``passwords``.
    """

    def __init__(
        self,
        answer: bytes = b"N",
        context: ssl.SSLContext | None = None,
        auth: str = "trust",
        refuse: Callable[[bool], str | None] = lambda encrypted: None,
        send: Callable[[Any, bytes], None] = lambda sock, data: sock.sendall(data),
        certificate: Path | None = None,
        password: str = "secret",
    ) -> None:
        self.answer, self.context, self.auth, self.refuse, self.send = (
            answer,
            context,
            auth,
            refuse,
            send,
        )
        self.certificate = certificate
        self.password = password
        self.passwords: list[bytes] = []
        self.started: list[dict[str, str]] = []
        self.encrypted: list[bool] = []
        self.server_names: list[str | None] = []
        self.cancelled = threading.Event()
        super().__init__()

    @staticmethod
    def _exactly(sock: Any, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = sock.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def _packet(self, sock: Any, coded: bool) -> bytes:
        if coded:
            self._exactly(sock, 1)
        return self._exactly(sock, struct.unpack("!i", self._exactly(sock, 4))[0] - 4)

    def serve(self, client: Any) -> None:
        if self.answer == b"direct":
            assert self.context is not None
            client = self.keep(self.context.wrap_socket(client, server_side=True))
        packet = self._packet(client, coded=False)
        if packet == b"\x04\xd2\x16\x2f":
            client.sendall(self.answer)
            if self.answer[:1] == b"S":
                assert self.context is not None
                client = self.keep(self.context.wrap_socket(client, server_side=True))
            packet = self._packet(client, coded=False)
        with client:
            if packet[:4] == struct.pack("!i", 80877102):
                self.cancelled.set()
                return
            encrypted = isinstance(client, ssl.SSLSocket)
            words = packet[4:].decode().split("\0")
            self.started.append(dict(zip(words[0:-2:2], words[1:-2:2], strict=True)))
            self.encrypted.append(encrypted)
            sqlstate = self.refuse(encrypted)
            if sqlstate:
                client.sendall(error_response(sqlstate))
                return
            self._authenticate(client)
            self.send(client, READY)
            while client.recv(65536):
                pass

    def _authenticate(self, client: Any) -> None:
        def request(code: int, body: bytes = b"") -> bytes:
            client.sendall(message(b"R", struct.pack("!i", code) + body))
            return self._packet(client, coded=True) if code != 12 else b""

        if self.auth == "cleartext":
            self.passwords.append(request(3))
        elif self.auth == "md5":
            self.passwords.append(request(5, b"salt"))
        elif self.auth in ("scram", "plus", "unproved"):
            offer = b"SCRAM-SHA-256-PLUS\0" if self.auth == "plus" else b""
            first = request(10, offer + b"SCRAM-SHA-256\0\0")
            name, rest = first.split(b"\0", 1)
            self.passwords.append(name)
            mechanism = scramp.ScramMechanism(name.decode())
            secret = mechanism.make_auth_info(self.password)
            binding = None
            if mechanism.use_binding:
                assert self.certificate is not None
                der = ssl.PEM_cert_to_DER_cert(self.certificate.read_text())
                binding = "tls-server-end-point", hashlib.sha256(der).digest()
            server = mechanism.make_server(lambda user: secret, channel_binding=binding)
            server.set_client_first(rest[4:].decode())
            final = request(11, server.get_server_first().encode())
            server.set_client_final(final.decode())
            if self.auth != "unproved":
                request(12, server.get_server_final().encode())


class Certificates:
    """A root, and certificates it signed for ``localhost`` and for a client."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = self._make("root", "-x509", "-addext", "basicConstraints=critical,CA:TRUE")
        self.other_root = self._make("other", "-x509")
        self.server = self._signed("server", "subjectAltName=DNS:localhost")
        self.client = self._signed("client", "extendedKeyUsage=clientAuth")

    def key(self, certificate: Path) -> Path:
        return certificate.with_suffix(".key")

    @property
    def pair(self) -> tuple[Path, Path]:
        """The server's certificate and its key."""
        return self.server, self.key(self.server)

    def context(self) -> ssl.SSLContext:
        """A server's, with the certificate for ``localhost``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.pair)
        return context

    def _openssl(self, *arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    def _make(self, name: str, *extra: object) -> Path:
        path = self.directory / f"{name}.crt"
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", self.key(path), "-out", path, *extra),
        )
        return path

    def _signed(self, name: str, extension: str) -> Path:
        request = self._make(name)
        extensions = self.directory / f"{name}.ext"
        extensions.write_text(extension)
        root = "-CA", self.root, "-CAkey", self.key(self.root), "-CAcreateserial"
        self._openssl(
            *("x509", "-req", "-in", request, *root, "-extfile", extensions, "-out", request)
        )
        return request


def md5_password(password: str, user: str) -> bytes:
    """What a client sends for AuthenticationMD5Password with the salt ``salt``."""
    inner = hashlib.md5((password + user).encode()).hexdigest()
    return b"md5" + hashlib.md5(inner.encode() + b"salt").hexdigest().encode() + b"\0"
