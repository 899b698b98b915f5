"""The page in a real browser, against a pool under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ops.kit import Browser, browser
from pool.kit import Refused, filled
from support import eventually

from fastpool import Pool
from fastpool.ops import Server, serve
from fastpool.testing import StubDriver

PATIENCE = 30.0
TAB, LEFT, RIGHT, HOME, SPACE, ENTER = "\ue004", "\ue012", "\ue014", "\ue011", "\ue00d", "\ue007"


class Load:
    """Eight threads that use a pool of three; one connection is leaked."""

    def __init__(self, pool: Pool[Any]) -> None:
        self._pool = pool
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.work, daemon=True) for _ in range(8)]
        self.threads.append(threading.Thread(target=self.leak, name="leaking-thread", daemon=True))
        for thread in self.threads:
            thread.start()

    def work(self) -> None:
        while not self.over.is_set():
            with self._pool.connection():
                time.sleep(0.01)

    def leak(self) -> None:
        lease = self._pool.acquire()
        self.over.wait()
        lease.release()

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(10)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The page of a pool under load and of one whose database is down."""
    down = StubDriver()
    down.fail("connect", Refused("nobody listens at db2:5432"), times=10**6)
    with (
        Pool(
            driver=StubDriver(), name="orders", min_size=3, max_size=3, leak_threshold=2.0
        ) as orders,
        Pool(driver=down, name="reports", min_size=1, max_size=2) as reports,
    ):
        filled(orders)
        load = Load(orders)
        try:
            with serve([orders, reports], "127.0.0.1:0") as server:
                yield server
        finally:
            load.end()


@pytest.fixture
def page(chromium: Browser, server: Server) -> Browser:
    """The page, with figures on it."""
    chromium.emulate(width=1200, height=1500, scheme="light")
    chromium.open(server.url)
    eventually(lambda: len(rows(chromium)) > 1, "samples are there")
    return chromium


def rows(page: Browser) -> list[Any]:
    """The samples that the page has of the pool under load."""
    return page.run("return views.get('orders') ? views.get('orders').rows : []") or []


def tile(page: Browser, name: str) -> str:
    """What stands under that name."""
    tiles = "[...document.querySelectorAll('#pool-1 .tiles div')]"
    return str(page.run(f"return {tiles}.find(t => t.innerText.includes({name!r})).innerText"))


def test_figures_move(page: Browser) -> None:
    """The page shows the load, and goes on by itself."""
    before = len(rows(page))
    assert page.text("#pool-1 h2") == "orders"
    eventually(lambda: page.text("#pool-1 .badge") == "saturated", "the verdict")
    assert "All 3 connections are taken" in page.text("#pool-1 .says")
    assert "of 3" in tile(page, "In use")
    assert page.run("return document.title").startswith(("cannot connect", "saturated"))
    eventually(lambda: len(rows(page)) >= before + 2, "new samples")
    drawn = "return document.querySelector('#pool-1 svg.connections path.k-used').getAttribute('d')"
    one = page.run(drawn)
    eventually(lambda: page.run(drawn) != one, "the chart is drawn anew")
    assert max(row["in_use"] for row in rows(page)) == 3
    assert max(row["waiting"] for row in rows(page)) > 0
    assert rows(page)[-1]["p99"] > 0
    assert page.messages() == []


def test_a_leaked_holder_is_seen(page: Browser) -> None:
    """Who has held a connection longest stands first, with place, thread and age."""
    first = "#pool-1 .holders tbody tr"
    eventually(lambda: "leaking-thread" in page.text(first), "the leak")
    assert "test_page.py:" in page.text(first)
    assert page.run(f"return document.querySelector('{first} td').innerText") != ""
    eventually(lambda: "▲" in page.text(first), "it is marked when it has been long")
    assert "Longest holder: test_page.py:" in page.text("#pool-1 .says")


def test_a_database_that_is_down_is_seen(page: Browser) -> None:
    """The pool that cannot connect says so, and why, above its figures."""
    eventually(lambda: page.text("#pool-2 .badge") == "cannot connect", "the verdict")
    assert "nobody listens at db2:5432" in page.text("#pool-2 .connect")
    top = "document.querySelector('#pool-2 {}').getBoundingClientRect().top"
    assert page.run(f"return {top.format('.connect')} < {top.format('.tiles')}")


def test_without_a_mouse(page: Browser) -> None:
    """Tab reaches everything, the focus is seen, and keys read the chart, choose the
    minutes, pause and open."""
    page.run("document.body.tabIndex = -1; document.body.focus()")
    reached: list[str] = []
    for _ in range(20):
        page.press(TAB)
        reached.append(
            str(
                page.run(
                    "const e = document.activeElement; return e.id || e.name || e.className "
                    "|| e.localName"
                )
            )
        )
        if reached.count("summary") == 2:
            break
    assert [name for name in reached if name in ("range", "pause", "charts", "summary")] == [
        "range",
        "pause",
        *("charts", "summary") * 2,
    ]
    page.run("document.querySelector('#pool-1 .charts').focus()")
    page.press(HOME)
    first = page.text("#pool-1 .readout")
    assert "in use" in first
    page.press(RIGHT)
    assert page.text("#pool-1 .readout") != first
    spoken = "return document.querySelector('#pool-1 .charts').getAttribute('aria-valuetext')"
    assert page.run(spoken) == page.text("#pool-1 .readout")
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.run(outline) == "solid"
    page.run("document.querySelector('[name=range]:checked').focus()")
    page.press(RIGHT)
    assert "in 10 min" in tile(page, "Timeouts")
    page.run("document.getElementById('pause').focus()")
    page.press(SPACE)
    assert page.text("#pause") == "Go on"
    page.press(SPACE)
    page.run("document.querySelector('#pool-1 summary').focus()")
    page.press(ENTER)
    eventually(lambda: "max size" in page.text("#pool-1 .facts"), "counters and settings")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(page: Browser, scheme: str) -> None:
    """320 pixels wide nothing is cut off and nothing scrolls sideways, light and dark."""
    page.emulate(width=320, height=700, scheme=scheme)
    eventually(lambda: page.run("return innerWidth") == 320, "a narrow screen")
    assert page.run("return document.documentElement.scrollWidth") <= 320
    wide = (
        "return [...document.querySelectorAll('main *:not(thead, thead *)')]"
        ".filter(e => e.namespaceURI.endsWith('html') && e.getBoundingClientRect().right > 321)"
        ".map(e => e.className || e.localName)"
    )
    assert page.run(wide) == []
    assert "thread" in page.text("#pool-1 .holders tbody")
    dark = page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 26)"
    assert dark == (scheme == "dark")


def test_text_can_be_read(page: Browser) -> None:
    """Text has a contrast of 4.5 to 1 at least, light and dark (WCAG AA)."""
    script = """
        const light = (c) => { const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map((v) => {
            v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const ground = (e) => { for (; e; e = e.parentElement) { const c =
            getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; } };
        return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility()
            && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())
            && !['SCRIPT', 'STYLE'].includes(e.tagName)
            && e.namespaceURI.endsWith('html')).map((e) => {
                const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort();
                return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05),
                    e.className || e.localName, e.innerText.slice(0, 30)]; })
            .filter(([contrast]) => contrast < 4.5);
    """
    for scheme in ("light", "dark"):
        page.emulate(scheme=scheme)
        assert page.run(script) == [], scheme


def test_it_says_when_it_is_old(page: Browser, server: Server) -> None:
    """When the process does not answer the page says that it shows old figures."""
    page.run("window.fetch = () => Promise.reject(new Error('gone'))")
    eventually(lambda: "No answer from the process" in page.text("#banner"), "the banner")
    assert page.run("return document.body.classList.contains('stale')")


def test_a_name_is_only_a_name(chromium: Browser) -> None:
    """Names and errors are shown as text, whatever they look like."""
    driver = StubDriver()
    driver.fail("connect", Refused("<img src=x onerror=window.hit=1>"), times=10**6)
    name = "<script>window.hit=1</script>"
    with Pool(driver=driver, name=name, min_size=1) as pool, serve(pool, "127.0.0.1:0") as server:
        chromium.open(server.url)
        eventually(lambda: "<img src=x" in chromium.text("#pool-1 .connect"), "the error as text")
        assert chromium.text("#pool-1 h2") == name
        assert chromium.run("return window.hit === undefined")
