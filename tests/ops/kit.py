"""What the tests of operations share: clients of WSGI, of HTTP, and of a browser."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults

from support import need

__all__ = ["Answer", "Browser", "ask", "call", "exchange"]


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(app: Callable[..., Any], path: str, method: str = "GET", **environ: str) -> Answer:
    """One request to a WSGI application, without a server."""
    started: list[Any] = []
    path, _, query = path.partition("?")
    request = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, **environ}
    setup_testing_defaults(request)
    body = b"".join(app(request, lambda *given: started.extend(given)))
    status, headers = started
    return Answer(int(status.split()[0]), dict(headers), body)


def ask(address: str, path: str, method: str = "GET", **headers: str) -> Answer:
    """One request over HTTP."""
    conn = HTTPConnection(address, timeout=20)
    try:
        conn.request(method, path, headers=headers)
        response = conn.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        conn.close()


def exchange(address: str, data: bytes, timeout: float = 20.0) -> bytes:
    """Send *data* as it is; all that comes until the server hangs up."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(65536):
                found += part
        return found


FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Browser:
    """Chromium without a screen, driven through chromedriver's own protocol."""

    def __init__(self) -> None:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        driver = shutil.which("chromedriver")
        need(chromium and driver, "no chromium with chromedriver (Debian: chromium-driver)")
        self._home = tempfile.mkdtemp(prefix="fastpool-browser-")
        port = _free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [str(driver), f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": self._home},
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 30
            while not self._answers():
                assert time.monotonic() < deadline, "chromedriver does not come up"
                time.sleep(0.05)
            options = {"args": [*FLAGS, f"--user-data-dir={self._home}"], "binary": chromium}
            wanted = {"alwaysMatch": {"goog:chromeOptions": options}}
            session = self._post("/session", {"capabilities": wanted})["sessionId"]
            self._url += f"/session/{session}"
        except BaseException:
            self.close()
            raise

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/status", timeout=5) as answer:
                return bool(json.load(answer)["value"]["ready"])
        except OSError:
            return False

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self._url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        """Go there."""
        self._post("/url", {"url": url})

    def run(self, script: str) -> Any:
        """What *script* returns in the page."""
        return self._post("/execute/sync", {"script": script, "args": []})

    def text(self, selector: str) -> str:
        """The visible text of the first that matches."""
        return str(self.run(f"return document.querySelector({selector!r})?.innerText ?? ''"))

    def press(self, *keys: str) -> None:
        """Press and release each, one after the other, wherever the focus is."""
        actions = [{"type": kind, "value": k} for k in keys for kind in ("keyDown", "keyUp")]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self._post("/actions", {"actions": [source]})

    def emulate(self, **parameters: Any) -> None:
        """A screen of ``width`` and ``height``; ``scheme`` is "light" or "dark"."""
        scheme = parameters.pop("scheme", None)
        if scheme is not None:
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            self._tools("Emulation.setEmulatedMedia", media)
        if parameters:
            screen = {"deviceScaleFactor": 1, "mobile": True, **parameters}
            self._tools("Emulation.setDeviceMetricsOverride", screen)

    def messages(self) -> list[str]:
        """What the page complained of."""
        request = self._post("/se/log", {"type": "browser"})
        return [entry["message"] for entry in request if entry["level"] in ("SEVERE", "WARNING")]

    def _tools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def close(self) -> None:
        """End it, and all that it started."""
        with contextlib.suppress(OSError):
            request = urllib.request.Request(self._url, method="DELETE")
            urllib.request.urlopen(request, timeout=20).close()
        self._process.terminate()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)
        shutil.rmtree(self._home, ignore_errors=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    found = Browser()
    try:
        yield found
    finally:
        found.close()
