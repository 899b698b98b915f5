"""Two small web applications for a pool, or for several.

:func:`probes` is for the platform: liveness, readiness, health, statistics, metrics.
It may listen on the pod's address. :func:`admin` is for the person on call: a page,
and what it shows as JSON. It names source files and threads, so it is served apart,
on loopback unless somebody says otherwise.

Each is a WSGI application, to be mounted anywhere, and its ``asgi`` attribute is the
same as an ASGI application::

    app = probes(pool)
    flask_app.wsgi_app = mount(flask_app.wsgi_app, "/ops", app)        # Flask
    application = mount(get_wsgi_application(), "/ops", app)           # Django
    fastapi_app.mount("/ops", app.asgi)                                # FastAPI, Starlette
    server = serve(app, "127.0.0.1:8080")                              # nothing at all

No SQL, no parameters and no credentials are shown by either.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote

from .._logs import Log
from ._history import History
from ._pools import Pools, at_once, named
from .health import HealthChecker, HealthStatus, KubernetesProbes
from .metrics import CONTENT_TYPE, exposition

__all__ = ["Admin", "App", "Probes", "admin", "mount", "probes"]

_log = Log()

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_CHECKS = 16
"""Requests of one path that ask the database and are answered at one time; more are
refused at once, so that they cannot take every thread of the server. Each path has as
many of its own: no crowd at ``/health`` turns ``/readyz`` off."""

_REASONS = {
    200: "OK",
    308: "Permanent Redirect",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Request(NamedTuple):
    """What a route is told."""

    query: Mapping[str, str]


class Response(NamedTuple):
    """What a route answers."""

    status: int
    body: bytes
    content_type: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def all_headers(self) -> list[tuple[str, str]]:
        return [
            ("Content-Type", self.content_type),
            ("Content-Length", str(len(self.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *self.headers,
        ]


class Route(NamedTuple):
    """One path."""

    answer: Callable[[Request], Response]
    checks: bool = False
    """It asks the database, so it may take as long as that does."""


def _json(body: Any, status: int = 200, *headers: tuple[str, str]) -> Response:
    text = json.dumps(body, ensure_ascii=False, default=str) + "\n"
    return Response(status, text.encode("utf-8", "replace"), "application/json", headers)


def _error(status: int, message: str, *headers: tuple[str, str]) -> Response:
    return _json({"error": message}, status, *headers)


class App:
    """A table of paths, as a WSGI application; ``asgi`` is the same for ASGI.

    Answers GET and HEAD; every error is JSON: ``{"error": "..."}``.
    """

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = dict(routes)
        self._checking = {
            path: threading.BoundedSemaphore(_CHECKS) for path, r in routes.items() if r.checks
        }
        self._workers: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End what runs in the background. Idempotent."""
        if self._workers is not None:
            self._workers.shutdown(wait=False)
            self._workers = None

    def respond(self, method: str, path: str, request: Request) -> Response:
        """The answer to one request; *path* is relative to where this is mounted."""
        route = self._routes.get(path)
        if route is None:
            return _error(404, f"no such path; there are: {' '.join(self._routes)}")
        if method not in ("GET", "HEAD"):
            return _error(405, "only GET and HEAD", ("Allow", "GET, HEAD"))
        if not route.checks:
            return self._answer(route, request)
        checking = self._checking[path]
        if not checking.acquire(blocking=False):
            return _error(503, "too many checks at one time")
        try:
            return self._answer(route, request)
        finally:
            checking.release()

    def _answer(self, route: Route, request: Request) -> Response:
        try:
            return route.answer(request)
        except _NotFound as error:
            return _error(404, str(error))
        except Exception:
            _log.exception("page_failed", "an operations page failed")
            return _error(500, "internal error; the log has it")

    # -- WSGI ------------------------------------------------------------------

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        method, path = environ.get("REQUEST_METHOD", "GET"), environ.get("PATH_INFO", "")
        request = Request(_query(environ.get("QUERY_STRING", "")))
        if path:
            response = self.respond(method, path, request)
        else:
            response = _to_the_slash(environ.get("SCRIPT_NAME", "").encode("latin-1"))
        reason = _REASONS[response.status]
        start_response(f"{response.status} {reason}", response.all_headers)
        return [b"" if method == "HEAD" else response.body]

    # -- ASGI ------------------------------------------------------------------

    async def asgi(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Mapping[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """The same as an ASGI application. What asks the database does so in a thread
        of this application's own, so the event loop goes on."""
        if scope["type"] == "lifespan":
            while True:
                event = (await receive())["type"].partition(".")[2]
                await send({"type": f"lifespan.{event}.complete"})
                if event == "shutdown":
                    return
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        root, path = scope.get("root_path", ""), scope["path"]
        if root and (path == root or path.startswith(root + "/")):
            path = path[len(root) :]
        request = Request(_query(scope.get("query_string", b"").decode("latin-1")))
        route = self._routes.get(path)
        call = partial(self.respond, scope["method"], path, request)
        if not path:
            response = _to_the_slash(root.encode())
        elif route is not None and route.checks:
            response = await self._in_thread(call)
        else:
            response = call()
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in response.all_headers
        ]
        start = {"type": "http.response.start", "status": response.status, "headers": headers}
        await send(start)
        body = b"" if scope["method"] == "HEAD" else response.body
        await send({"type": "http.response.body", "body": body})

    async def _in_thread(self, call: Callable[[], Response]) -> Response:
        import asyncio  # here, since only ASGI needs it

        if self._workers is None:
            # One more than may check: somebody has to say that there are too many.
            workers = len(self._checking) * _CHECKS + 1
            self._workers = ThreadPoolExecutor(workers, "fastpool-probe")
        return await asyncio.get_running_loop().run_in_executor(self._workers, call)


class _NotFound(Exception):
    """What the query names does not exist."""


def _query(text: str) -> dict[str, str]:
    try:
        return {name: values[-1] for name, values in parse_qs(text, max_num_fields=20).items()}
    except ValueError:
        return {}


def _to_the_slash(root: bytes) -> Response:
    """The page's own links are relative, so its path ends with a slash. Quoted, and with
    one slash at its beginning, it ends no header and names no other server."""
    path = quote(root.strip(b"/"))
    return Response(308, b"", "text/plain", (("Location", f"/{path}/" if path else "/"),))


def mount(app: WSGIApp, prefix: str, ours: WSGIApp) -> WSGIApp:
    """A WSGI application that is *ours* below *prefix* (``"/ops"``), and *app* elsewhere."""
    prefix = "/" + prefix.strip("/")

    def mounted(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path != prefix and not path.startswith(prefix + "/"):
            return app(environ, start_response)
        script = environ.get("SCRIPT_NAME", "") + prefix
        below = {**environ, "SCRIPT_NAME": script, "PATH_INFO": path[len(prefix) :]}
        return ours(below, start_response)

    return mounted


class Probes(App):
    """See :func:`probes`."""

    def __init__(
        self, pools: Pools, *, kubernetes: KubernetesProbes | None = None, timeout: float = 5.0
    ) -> None:
        self._pools = named(pools)
        self._checkers = {name: HealthChecker(p, timeout) for name, p in self._pools.items()}
        self.kubernetes = KubernetesProbes(self._pools) if kubernetes is None else kubernetes
        """What answers ``/healthz`` and ``/readyz``."""
        probe = self.kubernetes
        super().__init__(
            {
                "/healthz": Route(lambda _: _json(probe.liveness().body)),
                "/readyz": Route(self._readyz, checks=True),
                "/health": Route(self._health, checks=True),
                "/db/stats": Route(
                    lambda r: self._each(r, lambda name: self._pools[name].stats().as_dbstats())
                ),
                "/pgxpool/stats": Route(
                    lambda r: self._each(r, lambda name: self._pools[name].stats().as_pgxpool())
                ),
                "/metrics": Route(self._metrics),
            }
        )

    def set_ready(self, ready: bool = True) -> None:
        """Short for ``kubernetes.set_ready``."""
        self.kubernetes.set_ready(ready)

    def _readyz(self, request: Request) -> Response:
        status, body = self.kubernetes.readiness()
        return _json(body, status)

    def _health(self, request: Request) -> Response:
        names = self._names(request)
        found: dict[str, HealthStatus] = at_once({n: self._checkers[n].check for n in names})
        worst = max(found.values(), key=lambda one: _SEVERITY.index(one.status))
        if len(found) == 1:
            return _json(worst.as_dict(), worst.http_status)
        pools = {name: one.as_dict() for name, one in found.items()}
        return _json({"status": worst.status, "pools": pools}, worst.http_status)

    def _metrics(self, request: Request) -> Response:
        return Response(200, exposition(self._pools).encode(), CONTENT_TYPE)

    def _each(self, request: Request, call: Callable[[str], Any]) -> Response:
        """One pool's answer as it is; those of several by their names."""
        names = self._names(request)
        found = {name: call(name) for name in names}
        return _json(found[names[0]] if len(names) == 1 else {"pools": found})

    def _names(self, request: Request) -> list[str]:
        return _chosen(self._pools, request)


_SEVERITY = ("healthy", "degraded", "unhealthy")


def _chosen(pools: Mapping[str, Any], request: Request) -> list[str]:
    """The pool that ``?pool=NAME`` asks for, or all."""
    name = request.query.get("pool")
    if name is None:
        return list(pools)
    if name not in pools:
        raise _NotFound(f"no such pool; there are: {', '.join(pools)}")
    return [name]


class Admin(App):
    """See :func:`admin`."""

    def __init__(self, pools: Pools) -> None:
        self._history = History(named(pools))
        page = (resources.files(__package__) / "page.html").read_text(encoding="utf-8")
        policy = f"default-src 'none'; connect-src 'self'; {_hashes(page)}; base-uri 'none'"
        headers = (("Content-Security-Policy", policy), ("Referrer-Policy", "no-referrer"))
        shown = Response(200, page.encode(), "text/html; charset=utf-8", headers)
        super().__init__(
            {
                "/": Route(lambda _: shown),
                "/pools": Route(self._everything),
                "/holders": Route(self._holders),
            }
        )
        self._history.start()

    def close(self) -> None:
        """End the sampling. Idempotent."""
        self._history.stop()
        super().close()

    def _everything(self, request: Request) -> Response:
        self._history.start()  # the process may have been forked since
        names = _chosen(self._history.pools, request)
        query = request.query
        since = query.get("since", "")
        known = int(since) if since.isdecimal() and len(since) < 20 else None
        return _json(self._history.everything(names, known, query.get("run")))

    def _holders(self, request: Request) -> Response:
        names = _chosen(self._history.pools, request)
        return _json({"pools": {name: self._history.holders(name) for name in names}})


def _hashes(page: str) -> str:
    """The policy that lets the page's own style and script run, and no other."""
    found = []
    for directive, tag in (("style-src", "style"), ("script-src", "script")):
        for text in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            found.append(f"{directive} 'sha256-{digest}'")
    return "; ".join(found)


def probes(
    pools: Pools, *, kubernetes: KubernetesProbes | None = None, timeout: float = 5.0
) -> Probes:
    """What a platform asks of one pool, or of several:

    - ``/healthz``: the process runs; the database is not asked.
    - ``/readyz``: 200 once :meth:`Probes.set_ready` was called and the database answers.
    - ``/health``: connectivity and pool together, for a person or a balancer.
    - ``/db/stats``, ``/pgxpool/stats``: the counters under Go's names.
    - ``/metrics``: for Prometheus.

    With several pools the bodies are under ``"pools"``, by name; of ``/health`` and the
    statistics ``?pool=NAME`` asks for one of them. *kubernetes*: your own, to have
    another grace period.
    *timeout*: seconds for ``/health``.
    """
    return Probes(pools, kubernetes=kubernetes, timeout=timeout)


def admin(pools: Pools) -> Admin:
    """A page about one pool, or several, for the person on call: at ``/``. As JSON:
    ``/pools`` (everything) and ``/holders``.

    From now on it looks at the pools once a second and keeps the last ten minutes,
    about 0.3 MB for each pool, until :meth:`Admin.close` or nobody has it any more.
    With several processes each has a page of its own.
    """
    return Admin(pools)
