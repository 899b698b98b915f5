"""A PgBouncer of one's own, in front of a LocalPostgres."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from support import need

from fastpool.testing import LocalPostgres

__all__ = ["PgBouncer"]


class PgBouncer:
    """PgBouncer over TCP on 127.0.0.1, for the server's one user; gone when closed.

    *settings* are those of its section ``[pgbouncer]``. It refuses to run as root, and
    runs as ``postgres`` or ``nobody`` then.
    """

    def __init__(self, server: LocalPostgres, **settings: object) -> None:
        self._program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
        need(self._program, "no pgbouncer program (Debian: apt install pgbouncer)")
        self._server = server
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self.port: int = unused.getsockname()[1]

    @property
    def dsn(self) -> str:
        """The server by way of this PgBouncer."""
        return f"postgresql://{self._server.user}@127.0.0.1:{self.port}/postgres?sslmode=disable"

    @property
    def version(self) -> tuple[int, ...]:
        """Its version, such as (1, 18, 0)."""
        done = subprocess.run([str(self._program), "--version"], capture_output=True, text=True)
        return tuple(map(int, done.stdout.split()[1].split(".")))

    def __enter__(self) -> PgBouncer:
        self._directory = tempfile.TemporaryDirectory(prefix="fastpool-")
        try:
            self.start()
        except BaseException:
            self._directory.cleanup()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._directory.cleanup()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        directory = Path(self._directory.name)
        directory.chmod(0o755)
        users, ini, log = (directory / name for name in ("users", "ini", "log"))
        users.write_text(f'"{self._server.user}" ""\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": users,
            "admin_users": self._server.user,
            "server_login_retry": 1,
            **self._settings,
        }
        ini.write_text(
            f"[databases]\n* = host={self._server.host} port={self._server.port}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        options: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = _account()
            options = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [str(self._program), ini],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                **options,
            )
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            running = self._process.poll() is None and time.monotonic() < deadline
            assert running, f"pgbouncer does not start:\n{log.read_text()}"
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop it at once; its clients see their connections end."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(20)

    def restart(self) -> None:
        """Stop and start: the same port."""
        self.stop()
        self.start()


def _account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError("there is no user 'postgres' or 'nobody'")
