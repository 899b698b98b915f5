"""``docs/operations.md``: its tables and samples are what the code sends and logs."""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ops.kit import call
from pool.kit import filled

import fastpool
from fastpool import Pool
from fastpool.ops import admin, http, instrument, metrics, probes

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the source is out of reach here")

Make = Callable[..., Pool[Any]]


def table(first: str) -> list[list[str]]:
    """The cells of the rows of all tables whose first column is named so."""
    rows: list[list[str]] = []
    inside = False
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == first:
            inside = True
        elif inside and set(cells[0]) != {"-"}:
            rows.append(cells)
    assert rows, first
    return rows


def code(cell: str) -> str:
    """What stands in backticks."""
    (found,) = re.findall(r"^`([^`]+)`$", cell)
    return str(found)


# -- endpoints ---------------------------------------------------------------------


def test_paths(make: Make) -> None:
    """The tables have each path of both applications, and no other."""
    page = admin(make())
    shown = [code(row[0]) for row in table("path")]
    assert shown == [*probes(make())._routes, *page._routes]
    assert f" {http._CHECKS} requests of one path" in PAGE.read_text("utf-8")
    page.close()


def shape(body: Any) -> Any:
    """Names and kinds of values, without the values; numbers are of one kind."""
    if isinstance(body, dict):
        return {name: shape(value) for name, value in body.items()}
    if isinstance(body, list):
        return [shape(value) for value in body]
    return "number" if type(body) in (int, float) else type(body).__name__


SAMPLE = re.compile(r"^(/\S+) (\d+)\n(\{.*\})$", re.MULTILINE)


def test_samples(make: Make) -> None:
    """The bodies have the names, in their order, and the kinds of values of real ones."""
    pool = make(name="orders", min_size=1, max_size=2, timeout=1.0)
    app, page = probes(pool), admin(pool)
    app.set_ready()
    filled(pool)
    lease = pool.acquire()
    found = {path: call(app, path) for path in app._routes} | {"/holders": call(page, "/holders")}
    ready = SAMPLE.findall(PAGE.read_text("utf-8"))
    assert len(ready) >= 8
    for path, status, body in ready:
        shown = json.loads(body)
        if shown.get("status") in ("degraded", "not_ready"):
            continue
        assert found[path].status == int(status), path
        assert json.dumps(shape(shown)) == json.dumps(shape(found[path].json)), path
    page.close()
    other = pool.acquire()
    degraded = call(app, "/readyz")
    lease.release()
    other.release()
    pool.close()
    away = call(app, "/readyz")
    for answer in (degraded, away):
        (shown,) = [
            (int(status), json.loads(body))
            for _, status, body in ready
            if json.loads(body).get("status") == answer.json["status"]
        ]
        assert (answer.status, shape(answer.json)) == (shown[0], shape(shown[1]))


# -- metrics -----------------------------------------------------------------------


def test_prometheus_table(make: Make) -> None:
    """Each metric of a scrape with its type, and with the label that it has besides the pool."""
    parser = pytest.importorskip("prometheus_client.parser")
    pool = make(min_size=1)
    filled(pool)
    pool.close()  # so that there is a reason for which one was closed
    scrape = call(probes(pool), "/metrics").body.decode()
    sent = {}
    for family in parser.text_string_to_metric_families(scrape):
        labels = {label for sample in family.samples for label in sample.labels} - {"pool", "le"}
        total = "_total" if family.type == "counter" else ""
        sent[f"{family.name}{total}"] = (family.type, labels)
    shown = {}
    for metric, kind, unit, meaning in table("metric"):
        name = code(metric)
        if name.startswith("fastpool_"):
            assert (unit == "seconds") == name.endswith("_seconds"), name
            shown[name] = (kind, set(re.findall(r"^by `(\w+)`", meaning)))
    assert shown == sent
    states = re.findall(r'^fastpool_connections\{.*state="(\w+)"', scrape, re.MULTILINE)
    (row,) = [row for row in table("metric") if row[0] == "`fastpool_connections`"]
    assert re.findall(r"`(\w+)`", row[3])[1:] == states


def test_opentelemetry_table(make: Make) -> None:
    """Each metric that the SDK's reader gets, with its kind and unit."""
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    pool = make(max_size=1)
    reader = export.InMemoryMetricReader()
    provider = sdk.MeterProvider([reader], shutdown_on_exit=False)
    instrument(pool, provider)
    # Somebody has to wait, so that each histogram has something to tell.
    with pool.connection(), pytest.raises(fastpool.PoolTimeout):
        pool.acquire(timeout=0.01)
    for _ in range(2):  # histograms are recorded while the others are read
        (resource,) = reader.get_metrics_data().resource_metrics
    sent = {}
    for metric in resource.scope_metrics[0].metrics:
        kind = type(metric.data).__name__.lower()
        if kind == "sum":
            kind = "counter" if metric.data.is_monotonic else "updowncounter"
        sent[metric.name] = (kind, metric.unit)
    shown = {
        code(metric): (kind, code(unit))
        for metric, kind, unit, _ in table("metric")
        if metric.startswith("`db.")
    }
    assert shown == sent
    most = f"{metrics._RECORDED:,}".replace(",", " ")
    assert f"at most {most} values" in PAGE.read_text("utf-8")
    provider.shutdown()


# -- the log -----------------------------------------------------------------------

LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARNING", "exception": "ERROR"}


class Record(NamedTuple):
    """One place that writes to the log."""

    event: str
    levels: set[str]
    message: str | None
    """The format, where it stands in the call."""


def levels_in(tree: ast.AST) -> set[str]:
    """The levels that an expression names, as ``logging.INFO``."""
    named = (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {name.removeprefix("logging.") for name in named if name.startswith("logging.")}


def text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def records() -> Iterator[Record]:
    """Each call of a method of ``Log`` in the source."""
    source = Path(fastpool.__file__).parent
    for path in source.rglob("*.py"):
        if path.name == "_logs.py":
            continue
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        variables: dict[str, set[str]] = defaultdict(set)
        for node in nodes:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    variables[ast.unparse(target)] |= levels_in(node.value)
        for node in nodes:
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            method, args = node.func.attr, node.args
            if method in LEVELS and len(args) > 1:
                levels = {LEVELS[method]}
            elif method == "log" and len(args) > 2:
                level, *args = args
                levels = levels_in(level) or variables[ast.unparse(level)]
            else:
                continue
            event = text(args[0])
            assert levels, f"{path.name}:{node.lineno}: which level?"
            assert event, f"{path.name}:{node.lineno}: which event?"
            yield Record(event, levels, text(args[1]))


def test_events() -> None:
    """The table has each event that is ever logged, with all its levels."""
    logged: dict[str, set[str]] = defaultdict(set)
    for record in records():
        logged[record.event] |= record.levels
    shown = {code(event): set(levels.split(", ")) for event, levels, _ in table("event")}
    assert shown == logged
    assert len(table("event")) == len(shown)  # none twice


def test_what_the_log_says_at_the_end() -> None:
    """The texts in the table of the steps are made from the formats in the source."""
    rows, logged = table("step"), list(records())
    assert len(rows) > 8
    for _, event, said in rows:
        formats = {
            ".+".join(map(re.escape, re.split(r"%[.0-9]*[a-z]", record.message)))
            for record in logged
            if record.event == code(event) and record.message is not None
        }
        message = re.sub(r"^pool '\w+': ", "", said)
        assert any(re.fullmatch(form, message) for form in formats), f"{event}: {formats}"
