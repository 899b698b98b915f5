"""``examples/production``: each variant as a process of its own, from its start to its end."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.kit import Admin, eventually
from ops.kit import Answer, ask, exchange
from support import need

from fastpool.testing import LocalPostgres

EXAMPLE = Path(__file__).parents[2] / "examples" / "production"
pytestmark = pytest.mark.skipif(not EXAMPLE.is_dir(), reason="the source is out of reach here")

APP = [sys.executable, "app.py"]
LISTENS = r"(?:starting on |running on http://|Listening at: http://)(127\.0\.0\.1:\d+)"


class Service:
    """A running variant."""

    def __init__(self, command: list[str], environment: dict[str, str], home: Path) -> None:
        self._log = home / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=EXAMPLE,
                env={**os.environ, **environment, "HOME": str(home)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def address(self) -> str:
        """Where it listens; waits until it says so."""
        eventually(lambda: re.search(LISTENS, self.log()) or self.ended, "it listens")
        found = re.search(LISTENS, self.log())
        assert found, self.log()
        return found[1]

    def log(self) -> str:
        """All that it has said so far."""
        return self._log.read_text(errors="replace")

    def ask(self, path: str) -> Answer:
        return ask(self.address, path)

    def becomes(self, status: int, path: str = "/readyz") -> None:
        """Wait until *path* is answered so."""
        eventually(lambda: self.ask(path).status == status, f"{path}: {status}")

    def answers(self, path: str, timeout: float) -> bool:
        """Whether anything comes back in time."""
        try:
            return exchange(self.address, f"GET {path} HTTP/1.0\r\n\r\n".encode(), timeout) != b""
        except OSError:
            return False

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def status(self) -> int:
        """Its exit status; waits for its end."""
        return self._process.wait(30)

    def kill(self) -> None:
        """End it, and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)


Start = Callable[..., Service]


@pytest.fixture
def start(locked_server: LocalPostgres, tmp_path: Path) -> Iterator[Start]:
    """``start(command, **environment)``: a variant on *locked_server*, on a free port."""
    services: list[Service] = []

    def start(command: list[str], **environment: str) -> Service:
        assert locked_server.password is not None
        settings = {
            "ADDRESS": "127.0.0.1:0",
            "DB_HOST": locked_server.host,
            "DB_PORT": str(locked_server.port),
            "DB_PASSWORD": locked_server.password,
            "DB_SSLMODE": "disable",
            "DB_MIN_CONNS": "1",
            "DB_MAX_CONNS": "4",
            "PYTHONDONTWRITEBYTECODE": "1",
            **environment,
        }
        services.append(Service(command, settings, tmp_path))
        return services[-1]

    yield start
    for service in services:
        service.kill()
        assert locked_server.password not in service.log()


def look(server: LocalPostgres, what: Callable[[Admin], Any]) -> Any:
    """What *what* finds by a connection of its own."""
    with contextlib.closing(Admin(server)) as admin:
        return what(admin)


def assert_nothing_left(server: LocalPostgres) -> None:
    assert look(server, lambda admin: admin.backends("orders")) == set()


@contextlib.contextmanager
def a_report(service: Service, server: LocalPostgres) -> Iterator[None]:
    """A request that the database works on for 2 s; after the block it was answered."""
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.append(service.ask("/report?seconds=2")))
    asking.start()
    try:
        with contextlib.closing(Admin(server)) as admin:
            eventually(lambda: admin.busy("orders"), "the report is under way")
        yield
    finally:
        asking.join(30)
    assert [(answer.status, answer.json) for answer in answers] == [(200, {"slept": 2.0})]


def manifest() -> tuple[dict[str, Any], dict[str, Any]]:
    """The Deployment and the Service."""
    need(importlib.util.find_spec("yaml"), "pyyaml")
    import yaml

    deployment, service = yaml.safe_load_all((EXAMPLE / "kubernetes.yaml").read_text())
    return deployment, service


def probe_paths() -> set[str]:
    (container,) = manifest()[0]["spec"]["template"]["spec"]["containers"]
    probes = [container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")]
    return {probe["httpGet"]["path"] for probe in probes}


def test_from_start_to_end(locked_server: LocalPostgres, start: Start) -> None:
    """Starting without its database, ready with it, not ready after SIGTERM; a request in
    progress is answered, and nothing is left in the server."""
    locked_server.stop()
    service = start(APP, GRACE="30", DRAIN="2")
    assert service.ask("/healthz").json["status"] == "alive"
    starting = service.ask("/readyz")
    assert (starting.status, starting.json["status"]) == (503, "starting")
    locked_server.start()
    service.becomes(200)
    assert service.ask("/readyz").json["status"] == "ready"
    for path in probe_paths():
        assert service.ask(path).status == 200
    assert "postgres" in [database["name"] for database in service.ask("/databases").json]
    for seconds in ("soon", "nan", "-1"):
        assert service.ask(f"/report?seconds={seconds}").status == 400
    assert service.ask("/").status == 404  # the page is not for everybody
    began = time.monotonic()
    with a_report(service, locked_server):
        service.terminate()
        service.becomes(503)
        assert service.ask("/healthz").status == 200
    assert service.status() == 0, service.log()
    assert time.monotonic() - began < 30
    assert "shut down in order" in service.log()
    assert_nothing_left(locked_server)


LEAKING = """
import sys
import app

kept = []

def leak(pool, query):
    kept.append(pool.acquire())
    return "kept"

app.ROUTES["/leak"] = leak
sys.exit(app.main())
"""


def test_a_leaked_connection(locked_server: LocalPostgres, start: Start, tmp_path: Path) -> None:
    """It ends at the deadline all the same, and names who holds a connection."""
    script = tmp_path / "leaking.py"
    script.write_text(LEAKING)
    service = start([sys.executable, str(script)], GRACE="1", PYTHONPATH=str(EXAMPLE))
    service.becomes(200)
    assert service.ask("/leak").json == "kept"
    began = time.monotonic()
    service.terminate()
    assert service.status() == 1, service.log()
    assert 1.0 <= time.monotonic() - began < 20
    assert re.search(r"1 connections still in use.*leaking\.py:8 ", service.log()), service.log()
    eventually(lambda: look(locked_server, lambda admin: not admin.backends("orders")))


def test_the_database_stops(locked_server: LocalPostgres, start: Start) -> None:
    """Stopped: alive and not ready, and a request in progress is told so; started again:
    ready, all by itself."""
    service = start(APP)
    service.becomes(200)
    interrupted: list[Answer] = []
    asking = threading.Thread(target=lambda: interrupted.append(service.ask("/report?seconds=9")))
    asking.start()
    with contextlib.closing(Admin(locked_server)) as admin:
        eventually(lambda: admin.busy("orders"), "the report is under way")
    locked_server.stop("immediate")
    try:
        asking.join(30)
        assert [answer.status for answer in interrupted] == [503]
        service.becomes(503)
        assert service.ask("/healthz").status == 200
        assert service.ask("/readyz").json["database"] == "disconnected"
        assert service.ask("/databases").status == 503
    finally:
        locked_server.start()
    service.becomes(200)
    assert service.ask("/databases").status == 200
    service.terminate()
    assert service.status() == 0, service.log()


def test_more_than_it_can_do(locked_server: LocalPostgres, start: Start) -> None:
    """More requests than it takes: it refuses some at once, and goes on answering probes."""
    service = start(APP)
    service.becomes(200)
    host, _, port = service.address.rpartition(":")
    with contextlib.ExitStack() as stack:
        asking = []
        for _ in range(60):
            asking.append(socket.create_connection((host, int(port)), 20))
            stack.enter_context(asking[-1])
            asking[-1].sendall(b"GET /report?seconds=19 HTTP/1.0\r\n\r\n")
        eventually(lambda: len(select.select(asking, [], [], 0.1)[0]) == 12, "it refuses twelve")
        refused = select.select(asking, [], [], 0)[0]
        assert all(sock.recv(99).startswith(b"HTTP/1.1 503 ") for sock in refused)
        assert service.ask("/healthz").status == 200
        readiness = service.ask("/readyz")
        assert (readiness.status, readiness.json["status"]) == (200, "degraded")
    service.kill()  # its statements sleep on
    look(locked_server, lambda admin: admin.kill(admin.backends("orders")))


def test_a_start_that_fails(start: Start) -> None:
    """With a wrong password it ends at once, with the server's words."""
    service = start(APP, DB_PASSWORD="wrong")
    assert service.status() == 1
    assert "password authentication failed" in service.log()


VARIANTS = {
    "fastapi": ("uvicorn", ["uvicorn", "fastapi_app:app", "--port=0"], ""),
    "flask": ("gunicorn", ["gunicorn", "--config=gunicorn_conf.py", "flask_app:app"], "/ops"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(locked_server: LocalPostgres, start: Start, variant: str) -> None:
    """On FastAPI and on Flask: it answers, becomes ready, and after SIGTERM accepts no
    more, answers what is in progress, and leaves nothing in the server."""
    package, command, prefix = VARIANTS[variant]
    for name in (variant, package):
        need(importlib.util.find_spec(name), name)
    service = start([sys.executable, "-m", *command])
    service.becomes(200, f"{prefix}/readyz")
    assert service.ask(f"{prefix}/healthz").json["status"] == "alive"
    assert "postgres" in [database["name"] for database in service.ask("/databases").json]
    with a_report(service, locked_server):
        service.terminate()
        # gunicorn's workers leave new connections to the kernel, which answers none.
        eventually(lambda: not service.answers(f"{prefix}/readyz", 0.5), "it accepts no more")
    # uvicorn ends by the signal that it was sent, once all is done.
    assert service.status() in (0, -signal.SIGTERM), service.log()
    assert "Traceback" not in service.log(), service.log()
    assert_nothing_left(locked_server)


def test_the_readmes_commands(locked_server: LocalPostgres, tmp_path: Path) -> None:
    """What the README says to type gives what it says, one after the other has had its effect."""
    need(shutil.which("bash") and shutil.which("curl"), "bash and curl")
    (block,) = re.findall(r"^```sh\n(.*?)^```$", (EXAMPLE / "README.md").read_text(), re.M | re.S)
    settings, serve, ready, report, end = block.splitlines()
    assert (settings.partition(" ")[0], serve) == ("export", "python app.py &")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"localhost:{port}"
    lines = [
        settings,
        f"export DB_HOST={locked_server.host} DB_PORT={locked_server.port} DB_USER=postgres",
        f"export DB_NAME={locked_server.dbname} DB_PASSWORD={locked_server.password}",
        serve,
        f"until curl -fso /dev/null {address}/readyz; do :; done",
        ready,
        report.replace("seconds=5", "seconds=1"),
        f"until curl -s {address}/pgxpool/stats | grep -q 'acquired_conns\": 1'; do :; done",
        end,
        "wait %1; status=$?; wait; echo; echo status $status",
    ]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines).replace("localhost:8080", address)],
        cwd=EXAMPLE,
        env={
            **os.environ,
            "ADDRESS": f"127.0.0.1:{port}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(tmp_path),
        },
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert '"status": "ready"' in done.stdout
    assert '{"slept": 1.0}' in done.stdout
    assert done.stdout.endswith("status 0\n")


def test_manifest() -> None:
    """The manifest agrees with itself and with the application: ports, labels, the time to
    end, and no password in it."""
    deployment, service = manifest()
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    assert deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]
    assert probe_paths() == {"/healthz", "/readyz"}
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    environment = {entry["name"]: entry for entry in container["env"]}
    assert "secretKeyRef" in environment["DB_PASSWORD"]["valueFrom"]
    _, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    grace = float(environment["GRACE"]["value"])
    assert pod["spec"]["terminationGracePeriodSeconds"] > float(pause) + grace + 2.0
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
