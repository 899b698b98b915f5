"""The two applications: every path, every refusal, and where they can be mounted."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from ops.kit import Answer, call
from pool.kit import Caller, Refused, eventually, filled, give_back, leases
from support import django

from fastpool import Holder, Pool
from fastpool.ops import App, KubernetesProbes, admin, http, mount, probes
from fastpool.ops._history import COLUMNS, KEPT, History
from fastpool.testing import StubDriver

Make = Callable[..., Pool[Any]]
Spawn = Callable[[Callable[[], Any]], Caller]
PROBES = ["/healthz", "/readyz", "/health", "/db/stats", "/pgxpool/stats", "/metrics"]
PAGES = ["/", "/pools", "/holders"]
SECRET = "s3cr3t-p4ss"


@pytest.fixture
def pool(make: Make) -> Pool[Any]:
    pool = make(f"postgresql://app:{SECRET}@db.example/app", name="orders", min_size=2, max_size=4)
    filled(pool)
    return pool


# -- probes ----------------------------------------------------------------------


def test_liveness(pool: Pool[Any]) -> None:
    """/healthz is 200 and JSON, whatever the pool does."""
    pool.close()
    answer = call(probes(pool), "/healthz")
    assert (answer.status, answer.json["status"]) == (200, "alive")
    assert answer.headers["Content-Type"] == "application/json"


def test_readiness(pool: Pool[Any]) -> None:
    """/readyz is 503 until it is set, then 200, and 503 again."""
    app = probes(pool)
    assert (call(app, "/readyz").status, call(app, "/readyz").json["status"]) == (503, "starting")
    app.set_ready(True)
    assert (call(app, "/readyz").status, call(app, "/readyz").json["status"]) == (200, "ready")
    app.set_ready(False)
    assert call(app, "/readyz").status == 503


def test_own_probes(pool: Pool[Any]) -> None:
    """Readiness and its grace period can be the application's own."""
    own = KubernetesProbes(pool, startup_grace=0.0)
    assert call(probes(pool, kubernetes=own), "/readyz").json["status"] == "not_ready"


def test_health(pool: Pool[Any], make: Make) -> None:
    """/health is 200 when healthy, 503 when not."""
    assert (call(probes(pool), "/health").status, call(probes(pool), "/health").json["status"]) == (
        200,
        "healthy",
    )
    driver = StubDriver()
    driver.fail("connect", Refused("nobody"), times=1000)
    down = make(driver=driver)
    answer = call(probes(down, timeout=0.4), "/health")
    assert (answer.status, answer.json["status"]) == (503, "unhealthy")


def test_statistics_have_the_names_of_go(pool: Pool[Any]) -> None:
    """/db/stats and /pgxpool/stats are the seeds' keys, all whole numbers."""
    held = leases(pool, 1)
    stats = call(probes(pool), "/db/stats").json
    assert list(stats) == [
        "max_open_connections",
        "open_connections",
        "in_use",
        "idle",
        "wait_count",
        "wait_duration_ms",
        "max_idle_closed",
        "max_idle_time_closed",
        "max_lifetime_closed",
    ]
    assert (stats["max_open_connections"], stats["open_connections"], stats["in_use"]) == (4, 2, 1)
    pgx = call(probes(pool), "/pgxpool/stats").json
    assert list(pgx) == [
        "acquire_count",
        "acquire_duration_ms",
        "acquired_conns",
        "canceled_acquire_count",
        "constructing_conns",
        "empty_acquire_count",
        "idle_conns",
        "max_conns",
        "total_conns",
        "new_conns_count",
        "max_lifetime_destroy_count",
        "max_idle_destroy_count",
    ]
    assert (pgx["acquired_conns"], pgx["idle_conns"], pgx["max_conns"]) == (1, 1, 4)
    assert all(type(value) is int for value in [*stats.values(), *pgx.values()])
    give_back(held)


@pytest.mark.parametrize("path", ["/db/stats", "/pgxpool/stats", "/health"])
def test_several_pools(make: Make, path: str) -> None:
    """Several pools answer by their names, and one of them when it is asked for."""
    app = probes([make(name="orders"), make(name="reports")])
    assert sorted(call(app, path).json["pools"]) == ["orders", "reports"]
    assert "pools" not in call(app, f"{path}?pool=orders").json
    answer = call(app, f"{path}?pool=nope")
    assert (answer.status, "orders, reports" in answer.json["error"]) == (404, True)


def test_names_of_ones_own(make: Make) -> None:
    """A mapping gives the pools names; without one, two equal names are refused."""
    same = [make(name="a"), make(name="a", driver=StubDriver())]
    app = probes({"primary": same[0], "replica": same[1]})
    assert sorted(call(app, "/db/stats").json["pools"]) == ["primary", "replica"]
    with pytest.raises(ValueError, match="two are named 'a'"):
        probes(same)
    for none in ([], {}, ["x"]):
        with pytest.raises(ValueError, match="pools"):
            probes(none)  # type: ignore[arg-type]


def test_metrics_need_no_package(pool: Pool[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """/metrics answers where prometheus_client is not installed."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    answer = call(probes(pool), "/metrics")
    assert (answer.status, b'fastpool_connections_max{pool="orders"} 4\n' in answer.body) == (
        200,
        True,
    )


@pytest.mark.parametrize("path", PROBES)
def test_wsgi_by_the_book(pool: Pool[Any], path: str) -> None:
    """The standard library's validator of WSGI has nothing to complain of."""
    app = validator(probes(pool))
    for method in ("GET", "HEAD", "POST"):
        environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path}
        environ["SCRIPT_NAME"] = environ["QUERY_STRING"] = ""
        setup_testing_defaults(environ)
        result = app(environ, lambda status, headers, exc_info=None: lambda data: None)
        b"".join(result)
        result.close()  # type: ignore[attr-defined]


# -- admin -----------------------------------------------------------------------


def test_page(pool: Pool[Any]) -> None:
    """The page is one file: it names nothing outside, and its policy lets only its own
    style and script run."""
    app = admin(pool)
    answer = call(app, "/")
    app.close()
    text = answer.body.decode()
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert not [
        part
        for part in ("http:", "https:", "src=", "@import", "url(")
        if part in text.replace("http://www.w3.org/2000/svg", "")
    ]
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_holders(pool: Pool[Any]) -> None:
    """/holders names who has a connection, where from, and since when."""
    app = admin(pool)
    held = leases(pool, 2)
    first, second = call(app, "/holders").json["pools"]["orders"]
    assert first["age"] >= second["age"] >= 0
    assert "kit.py:" in first["site"]
    assert first["thread_name"] == threading.current_thread().name
    give_back(held)
    assert call(app, "/holders?pool=orders").json == {"pools": {"orders": []}}
    app.close()


def test_everything(pool: Pool[Any], driver: StubDriver) -> None:
    """/pools has the state, figures, settings and holders of each pool."""
    app = admin(pool)
    held = leases(pool, 1)
    (one,) = call(app, "/pools").json["pools"]
    assert (one["name"], one["phase"], one["failing"]) == ("orders", "open", False)
    assert (one["stats"]["in_use"], one["settings"]["max_size"]) == (1, 4)
    assert len(one["holders"]) == 1
    give_back(held)
    app.close()
    pool.close()
    assert call(app, "/pools").json["pools"][0]["phase"] == "closed"


def test_whatever_a_holder_has(pool: Pool[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields and properties of a holder are shown whichever there are."""

    @dataclass(frozen=True)
    class Detailed(Holder):
        mood: str = "calm"

        @property
        def now_at(self) -> str:
            return "app.py:7"

    monkeypatch.setattr(pool, "holders", lambda: [Detailed("a.py:1", 1, "main", 2.5)])
    (one,) = History({"orders": pool}).holders("orders")
    assert one == {
        "site": "a.py:1",
        "thread_id": 1,
        "thread_name": "main",
        "age": 2.5,
        "state": "idle",
        "running": None,
        "alive": True,
        "mood": "calm",
        "now_at": "app.py:7",
    }


def test_samples_in_a_forked_child(pool: Pool[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is gone in a forked child; the first request there starts another."""
    monkeypatch.setattr("fastpool.ops._history.INTERVAL", 0.01)
    app = admin(pool)
    first = app._history._ticker._thread
    monkeypatch.setattr("fastpool.ops._pools.os.getpid", lambda: 1)
    call(app, "/pools")
    assert app._history._ticker._thread is not first
    second = app._history._ticker._thread
    call(app, "/pools")
    assert app._history._ticker._thread is second
    app.close()
    assert first is not None
    first.join(10)


def test_samples(pool: Pool[Any], spawn: Spawn) -> None:
    """A sample has the gauges of its moment, and what was counted since the one before."""
    history = History({"orders": pool})
    held = leases(pool, 4)
    history.sample()
    waiting = spawn(lambda: pool.acquire(30).release())
    eventually(lambda: pool.stats().waiting == 1)
    history.sample()
    give_back(held)
    waiting.join()
    history.sample()
    everything = history.everything(["orders"])
    rows = [dict(zip(COLUMNS, r, strict=True)) for r in everything["pools"][0]["history"]]
    assert [row["in_use"] for row in rows] == [4, 4, 0]
    assert [row["waiting"] for row in rows] == [0, 1, 0]
    assert [row["acquires"] for row in rows] == [4, 0, 1]
    assert rows[0]["time"] <= rows[1]["time"] <= rows[2]["time"]
    assert rows[2]["p99"] >= rows[2]["p50"] > 0
    # Two of the acquires waited for a dial, before the first sample.
    assert [row["waits"] for row in rows[1:]] == [0, 1]


def test_only_new_samples(pool: Pool[Any]) -> None:
    """Who has some gets the others; who has those of another process gets all."""
    history = History({"orders": pool})
    for _ in range(5):
        history.sample()
    first = history.everything(["orders"])
    history.sample()
    run = first["process"]["run"]

    def count(since: int | None, run: str | None) -> int:
        return len(history.everything(["orders"], since, run)["pools"][0]["history"])

    assert count(first["samples"], run) == 1
    assert count(6, run) == 0
    assert count(5, "another") == count(None, None) == 6
    assert count(99, run) == 0


@pytest.mark.parametrize("since", ["9" * 5000, "-1", "x", "\u00b2"])
def test_a_past_that_is_none(pool: Pool[Any], since: str) -> None:
    """What is no number of a sample gets all of them."""
    page = admin(pool)
    assert call(page, f"/pools?since={since}").status == 200
    page.close()


def test_samples_are_bounded(pool: Pool[Any]) -> None:
    """The oldest sample makes room."""
    history = History({"orders": pool})
    for _ in range(KEPT + 5):
        history.sample()
    assert len(history.everything(["orders"])["pools"][0]["history"]) == KEPT


def test_sampling_runs_by_itself(pool: Pool[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has a past when it is first looked at, and the thread ends with the page."""
    monkeypatch.setattr("fastpool.ops._history.INTERVAL", 0.01)
    apps = [admin(pool)]
    eventually(lambda: call(apps[0], "/pools").json["samples"] > 3)
    assert any(thread.name == "fastpool-history" for thread in threading.enumerate())
    apps.clear()
    gc.collect()
    eventually(lambda: all(t.name != "fastpool-history" for t in threading.enumerate()))


# -- both ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [probes, admin])
def test_methods(pool: Pool[Any], kind: Callable[[Any], Any]) -> None:
    """HEAD is GET without a body; every other method is 405 with Allow; a path that is
    not there is 404; each in JSON."""
    app = kind(pool)
    path = "/healthz" if kind is probes else "/holders"
    head, get = call(app, path, "HEAD"), call(app, path)
    assert (head.status, head.body) == (200, b"")
    assert abs(int(head.headers["Content-Length"]) - len(get.body)) < 5
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):
        answer = call(app, path, method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
        assert "error" in answer.json
    for missing in ("/nope", path + "/", "//", "/../etc/passwd", "/\x00"):
        answer = call(app, missing)
        assert (answer.status, list(answer.json)) == (404, ["error"])
    app.close()


def test_an_error_of_ours(pool: Pool[Any], caplog: pytest.LogCaptureFixture) -> None:
    """A path that fails answers 500 without saying why; the log says it."""

    def broken(request: object) -> Any:
        raise LookupError(SECRET)

    answer = call(App({"/x": http.Route(broken)}), "/x")
    assert (answer.status, SECRET in answer.body.decode()) == (500, False)
    assert "an operations page failed" in caplog.text


def test_too_many_checks(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """Askers of a database that hangs cannot take every thread; liveness goes on."""
    pool = make(min_size=1, max_size=2)
    filled(pool)
    driver.gates["ping"] = threading.Event()
    app = probes(pool, timeout=20.0)
    askers = [spawn(lambda: call(app, "/health")) for _ in range(16)]
    checking = app._checking["/health"]
    eventually(lambda: not checking.acquire(blocking=False) or checking.release())
    refused = call(app, "/health")
    assert (refused.status, refused.json["error"]) == (503, "too many checks at one time")
    assert call(app, "/healthz").status == 200
    driver.gates["ping"].set()
    assert {asker.result().status for asker in askers} == {200}


def test_a_crowd_at_health_leaves_readiness(make: Make, spawn: Spawn) -> None:
    """Sixteen who wait at /health of a full pool do not make the pod unready."""
    pool = make(max_size=1)
    app = probes(pool, timeout=80.0)
    app.set_ready()
    with pool.connection():
        askers = [spawn(lambda: call(app, "/health")) for _ in range(16)]
        checking = app._checking["/health"]
        eventually(lambda: not checking.acquire(blocking=False) or checking.release())
        answer = call(app, "/readyz")
        assert (answer.status, answer.json["status"]) == (200, "degraded")
    assert {asker.result().status for asker in askers} == {200}


def test_nothing_secret(make: Make, driver: StubDriver) -> None:
    """No answer of any path holds the password or a statement."""
    driver.fail("connect", Refused("nobody"), times=1)
    pool = make(f"postgresql://app:{SECRET}@db.example/app?application_name=x", max_size=2)
    lease = pool.acquire(10)
    lease.run("SELECT 'top', 'secret'")
    ops, page = probes(pool), admin(pool)
    said = b"".join([*(call(ops, p).body for p in PROBES), *(call(page, p).body for p in PAGES)])
    assert b"nobody" in said
    for word in (SECRET.encode(), b"SELECT 'top'", b"app:"):
        assert word not in said
    lease.release()
    page.close()


# -- where they can be mounted -----------------------------------------------------


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [])
    return [environ["SCRIPT_NAME"].encode() + b"|" + environ["PATH_INFO"].encode()]


def test_mounted(pool: Pool[Any]) -> None:
    """Below a prefix in any WSGI application; the page's own path ends with a slash."""
    page = admin(pool)
    app = mount(hello, "/ops/", mount(probes(pool), "/page", page))
    assert call(app, "/ops/healthz", SCRIPT_NAME="").json["status"] == "alive"
    assert call(app, "/opsx", SCRIPT_NAME="/a").body == b"/a|/opsx"
    assert b"<title>" in call(app, "/ops/page/", SCRIPT_NAME="").body
    answer = call(app, "/ops/page", SCRIPT_NAME="/base")
    assert (answer.status, answer.headers["Location"]) == (308, "/base/ops/page/")
    page.close()


@pytest.mark.parametrize("root", ["//evil.example", "/\r\nSet-Cookie: a=b", "/ü"])
def test_a_redirect_stays_here(pool: Pool[Any], root: str) -> None:
    """The redirect to the page's slash leads to no other server and ends no header."""
    location = call(probes(pool), "", SCRIPT_NAME=root).headers["Location"]
    assert location.startswith("/")
    assert not location.startswith("//")
    assert location.isascii()
    assert location.isprintable()


def test_flask(pool: Pool[Any]) -> None:
    """Mounted in Flask, both its own views and ours answer."""
    flask = pytest.importorskip("flask")
    app = flask.Flask("shop")
    app.add_url_rule("/", "index", lambda: "shop")
    app.wsgi_app = mount(app.wsgi_app, "/ops", probes(pool))
    client = app.test_client()
    assert client.get("/").text == "shop"
    assert client.get("/ops/healthz").json["status"] == "alive"
    assert client.post("/ops/healthz").status_code == 405


def test_django(pool: Pool[Any]) -> None:
    """Mounted in Django likewise."""
    django()
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.test import override_settings
    from django.urls import path

    views = (path("", lambda request: HttpResponse("shop")),)
    with override_settings(ROOT_URLCONF=views, ALLOWED_HOSTS=["*"]):
        app = mount(get_wsgi_application(), "/ops", probes(pool))
        assert call(app, "/").body == b"shop"
        assert call(app, "/ops/healthz").json["status"] == "alive"
        assert call(app, "/ops/healthz", "POST").status == 405


def request_asgi(
    app: Any, path: str, method: str = "GET", root: str = "", query: str = ""
) -> Answer:
    """One request to an ASGI application, without a server."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": root,
        "query_string": query.encode(),
        "headers": [],
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(app(scope, receive, send))
    start, *bodies = sent
    headers = {name.decode().title(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], headers, b"".join(m.get("body", b"") for m in bodies))


def test_asgi(pool: Pool[Any]) -> None:
    """As an ASGI application it answers the same, also to HEAD and below a root path."""
    app = probes(pool)
    app.set_ready()
    for path in PROBES:
        assert request_asgi(app.asgi, path).status == call(app, path).status
    assert request_asgi(app.asgi, "/healthz", "HEAD").body == b""
    assert request_asgi(app.asgi, "/healthz", "POST").headers["Allow"] == "GET, HEAD"
    assert request_asgi(app.asgi, "/a/healthz", root="/a").status == 200
    assert request_asgi(app.asgi, "/a", root="/a").headers["Location"] == "/a/"
    assert request_asgi(app.asgi, "/db/stats", query="pool=nope").status == 404


def test_asgi_does_not_block_the_loop(make: Make, driver: StubDriver) -> None:
    """While a check hangs, the event loop goes on and liveness is answered."""
    pool = make(min_size=1, max_size=2)
    filled(pool)
    app = probes(pool, timeout=20.0)
    gate = driver.gates["ping"] = threading.Event()

    async def one(path: str) -> int:
        statuses: list[int] = []

        async def send(message: dict[str, Any]) -> None:
            statuses.append(message.get("status", 0))

        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        await app.asgi(scope, send, send)  # type: ignore[arg-type]
        return statuses[0]

    async def both() -> None:
        health = asyncio.create_task(one("/health"))
        while driver.counts["ping"] == 0:
            await asyncio.sleep(0.001)
        assert await one("/healthz") == 200
        assert not health.done()
        gate.set()
        assert await health == 200

    asyncio.run(asyncio.wait_for(both(), 20))


def test_asgi_lifespan_and_websocket(pool: Pool[Any]) -> None:
    """Standing alone it takes part in the server's lifespan, and refuses websockets."""
    incoming = iter(["lifespan.startup", "lifespan.shutdown", "websocket.connect"])
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        return {"type": next(incoming)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    async def life() -> None:
        await probes(pool).asgi({"type": "lifespan"}, receive, send)
        await probes(pool).asgi({"type": "websocket"}, receive, send)

    asyncio.run(life())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]


def test_starlette(pool: Pool[Any]) -> None:
    """Mounted in Starlette (and so in FastAPI) it answers below its prefix."""
    routing = pytest.importorskip("starlette.routing")
    applications = pytest.importorskip("starlette.applications")
    page = admin(pool)
    app = applications.Starlette(
        routes=[routing.Mount("/ops", app=probes(pool).asgi), routing.Mount("/page", app=page.asgi)]
    )
    assert request_asgi(app, "/ops/healthz").json["status"] == "alive"
    assert request_asgi(app, "/ops/nope").json["error"].startswith("no such path")
    assert b"<title>" in request_asgi(app, "/page/").body
    assert json.loads(request_asgi(app, "/page/pools").body)["pools"][0]["name"] == "orders"
    page.close()
