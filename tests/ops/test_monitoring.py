"""The dashboard and the alert rules in ``examples/monitoring`` ask for what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ops.kit import call

from fastpool import Pool
from fastpool.ops import probes

EXAMPLES = Path(__file__).parents[2] / "examples" / "monitoring"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the source is out of reach here")


@pytest.fixture
def known(make: Callable[..., Pool[Any]]) -> set[str]:
    """The names of all samples that /metrics sends."""
    pytest.importorskip("prometheus_client")
    text = call(probes(make()), "/metrics").body.decode()
    names = set(re.findall(r"^(fastpool_\w+)[{ ]", text, re.MULTILINE))
    # Without a closed connection there is no reason to show.
    return {*names, "fastpool_connections_closed_total"}


@pytest.mark.parametrize("file", ["grafana-dashboard.json", "alerts.yml"])
def test_metrics_exist(known: set[str], file: str) -> None:
    """Every metric that is asked for is one that the pool sends."""
    asked = set(re.findall(r"\bfastpool_\w+", (EXAMPLES / file).read_text()))
    assert len(asked) > 5
    assert asked <= known


def test_dashboard() -> None:
    """The dashboard is JSON; each panel has a number, a place and a query of its own."""
    board = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(target["expr"] for panel in panels for target in panel["targets"])
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(places)) == len(places)
