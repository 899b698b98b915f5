"""The dashboard and the alert rules in ``examples/monitoring`` ask for what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ops.kit import call
from pool.kit import filled

from fastpool import Pool
from fastpool.ops import probes

EXAMPLES = Path(__file__).parents[2] / "examples" / "monitoring"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the source is out of reach here")

TARGETS = {"job", "instance"}
"""Labels that Prometheus adds to what it scrapes."""

Scrape = dict[str, list[dict[str, str]]]
"""The labels of each sample, by its name."""


@pytest.fixture
def scrape(make: Callable[..., Pool[Any]]) -> Scrape:
    """What /metrics sends of a pool."""
    parser = pytest.importorskip("prometheus_client.parser")
    pool = make(min_size=1)
    filled(pool)
    pool.close()  # without a closed connection there is no reason to show
    text = call(probes(pool), "/metrics").body.decode()
    found: Scrape = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def board() -> Any:
    return json.loads((EXAMPLES / "grafana-dashboard.json").read_text("utf-8"))


def alerts() -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((EXAMPLES / "alerts.yml").read_text("utf-8"))


def rules() -> list[dict[str, Any]]:
    return [rule for group in alerts()["groups"] for rule in group["rules"]]


# -- expressions -------------------------------------------------------------------


class Selector(NamedTuple):
    """A metric in an expression, and what its labels have to be."""

    metric: str
    matchers: list[tuple[str, str, str]]


SELECTOR = re.compile(r"\b(fastpool_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*')
GROUPING = re.compile(r"\b(by|without)\s*\(([^)]*)\)")


def selectors(expr: str) -> Iterator[Selector]:
    """All in an expression. Raises for a matcher that cannot be read."""
    for metric, inside in SELECTOR.findall(expr):
        parts = [part for part in inside.split(",") if part]
        matches = [MATCHER.fullmatch(part) for part in parts]
        assert all(matches), f"{metric}: {inside}"
        yield Selector(metric, [match.groups() for match in matches if match])  # type: ignore[misc]


def check(expr: str, scrape: Scrape) -> set[str]:
    """Each metric of the expression, with each of its matchers, finds a sample; what it
    groups by is a label of one. Returns the labels that its result may have."""
    found = list(selectors(expr))
    assert found, expr
    labels = set(TARGETS)
    for metric, matchers in found:
        assert metric in scrape, metric
        for label, operator, value in matchers:
            if label in TARGETS:
                continue
            values = {sample.get(label) for sample in scrape[metric]}
            assert values != {None}, f"{metric} has no label {label}"
            if operator == "=" and "$" not in value:
                assert value in values, f"{metric}: no {label} is {value}"
        labels |= {label for sample in scrape[metric] for label in sample}
    for kind, names in GROUPING.findall(expr):
        grouped = {name.strip() for name in names.split(",")}
        assert grouped <= labels, f"{expr}: there is no {grouped - labels}"
        labels = grouped if kind == "by" else labels - grouped
    return labels


def test_a_wrong_expression_is_seen(scrape: Scrape) -> None:
    """A name, a label, a value and a grouping that there are not are each refused."""
    good = 'sum by (pool) (rate(fastpool_connections{state="used",pool=~"$pool"}[5m]))'
    assert check(good, scrape) == {"pool"}
    for right, wrong in (
        ("connections{", "connection{"),
        ("state=", "stat="),
        ('"used"', '"busy"'),
        ("by (pool)", "by (db)"),
        ("state=", "state~"),
    ):
        assert right in good
        with pytest.raises(AssertionError):
            check(good.replace(right, wrong), scrape)


# -- alerts ------------------------------------------------------------------------


def test_alerts_are_whole() -> None:
    """Each rule has a name of its own, an expression, a time, a severity and a summary,
    and nothing that Prometheus does not know."""
    document = alerts()
    assert document.keys() == {"groups"}
    assert all(group.keys() == {"name", "rules"} for group in document["groups"])
    assert len({rule["alert"] for rule in rules()}) == len(rules()) >= 5
    for rule in rules():
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}, rule
        assert re.fullmatch(r"[A-Z]\w+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule["for"]), rule["alert"]
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert {"summary"} <= rule["annotations"].keys() <= {"summary", "description"}


def test_alerts_ask_for_what_there_is(scrape: Scrape) -> None:
    """Metrics and labels of each expression are sent; its texts name labels that its
    result has, and metrics that there are."""
    for rule in rules():
        labels = check(rule["expr"], scrape)
        for text in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels, rule["alert"]
            assert set(re.findall(r"\bfastpool_\w+", text)) <= scrape.keys(), rule["alert"]
            assert text.count("{{") == text.count("}}")


# -- dashboard ---------------------------------------------------------------------


def test_dashboard() -> None:
    """The dashboard is JSON; each panel has a number, a place and a query of its own."""
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(target["expr"] for panel in panels for target in panel["targets"])
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(places)) == len(places)


def test_dashboard_asks_for_what_there_is(scrape: Scrape) -> None:
    """Metrics and labels of each query are sent, and its legend is of labels that are left."""
    for panel in board()["panels"]:
        for target in panel["targets"]:
            labels = check(target["expr"], scrape)
            legend = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]))
            assert legend <= labels, panel["title"]


def test_dashboard_variables(scrape: Scrape) -> None:
    """Each variable asks for a label that there is; each that is used is one, and set before."""
    known = {"__rate_interval"}
    for variable in board()["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["query"]["query"]
            match = re.fullmatch(r"label_values\((.+),\s*(\w+)\)", query)
            assert match is not None, query
            assert match[2] in check(match[1], scrape), query
            assert set(re.findall(r"\$\{?(\w+)", query)) <= known, query
        known.add(variable["name"])
    panels = json.dumps(board()["panels"])
    assert set(re.findall(r"\$\{?(\w+)", panels)) <= known
