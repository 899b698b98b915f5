"""The plots of docs/benchmarks.md, from what a run recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["PLOTS", "draw"]

Table = Sequence[Mapping[str, Any]]

# Text as text, and nothing that changes from run to run but the data.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fastpool", "font.size": 9})

STYLES = {
    "fastpool": "#0b6623",
    "fastpool, interpreted": "#7bb661",
    "psycopg_pool": "#c0392b",
    "SQLAlchemy": "#2c6fbb",
    "DBUtils": "#e08e0b",
    "asyncpg": "#8e44ad",
    "queue.Queue": "#888888",
    "lock": "#bbbbbb",
}


def colour(name: str) -> str:
    """Each pool has one, whatever is said of it behind a comma."""
    plain = name.partition(",")[0].removeprefix("pg8000 + ")
    return STYLES.get(name) or STYLES.get(plain) or "#555555"


def lines(axes: Axes, table: Table, x: str, y: str, factor: float = 1.0) -> None:
    for name in dict.fromkeys(row["pool"] for row in table):
        points = [(row[x], factor * row[y]) for row in table if row["pool"] == name and y in row]
        if points:
            across, up = zip(*sorted(points), strict=True)
            axes.plot(across, up, marker="o", ms=3, label=name, color=colour(name))


def bars(axes: Axes, names: Sequence[str], values: Sequence[float], unit: str) -> None:
    axes.barh(names, values, color=[colour(name) for name in names])
    axes.invert_yaxis()
    for at, value in enumerate(values):
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        axes.text(value, at, f" {text} {unit}", va="center", fontsize=7)
    axes.margins(x=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def threads(series: Mapping[str, Table]) -> Figure:
    """Throughput and tail against threads; 4 connections, each held for 1 ms"""
    table = [
        row
        for row in series["grid"]
        if (row["connections"], row["hold"], row["compute"]) == (4, 0.001, 0)
    ]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    rate, tail = figure.subplots(1, 2)
    lines(rate, table, "threads", "throughput")
    rate.set(xscale="log", xlabel="threads", ylabel="checkouts per second", ylim=0)
    lines(tail, table, "threads", "p99.9", 1e3)
    tail.set(xscale="log", yscale="log", xlabel="threads", ylabel="p99.9 of the wait, ms")
    tail.legend(frameon=False, fontsize=7)
    for axes in (rate, tail):
        axes.minorticks_off()
    return figure


def checkout(series: Mapping[str, Table]) -> Figure:
    """What a checkout costs one thread, in microseconds"""
    labels = {"c": "fastpool", "python": "fastpool, interpreted"}
    table = sorted(
        (row for row in series["checkout"] if row["pool"] != "empty"),
        key=lambda row: row["seconds"],
    )
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    pools = [str(row["pool"]) for row in table]
    names = [labels.get(pool, pool) for pool in pools]
    bars(figure.subplots(), names, [1e6 * row["seconds"] for row in table], "us")
    return figure


def recovery(series: Mapping[str, Table]) -> Figure:
    """The server crashes, and is back at second 0: statements served, and failed (red)"""
    names = list(dict.fromkeys(row["pool"] for row in series["timeline"]))
    figure = Figure(figsize=(8, 1.3 * len(names) + 0.5), layout="constrained")
    for axes, name in zip(
        figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0], names, strict=True
    ):
        table = [row for row in series["timeline"] if row["pool"] == name]
        at = [row["second"] for row in table]
        axes.step(at, [row["served"] for row in table], color=colour(name), where="post")
        axes.step(at, [row["failed"] for row in table], color="red", lw=0.7, where="post")
        axes.axvline(0, color="black", lw=0.5)
        axes.set(ylabel="per second", ylim=0)
        axes.set_title(name, loc="left", fontsize=9)
    axes.set_xlabel("seconds since the server is back")
    return figure


def statements(series: Mapping[str, Table]) -> Figure:
    """Microseconds a call on a real PostgreSQL, client and server on one processor"""
    table = series["statements"]
    whats, ways = ([*dict.fromkeys(row[key] for row in table)] for key in ("what", "way"))
    figure = Figure(figsize=(10, 2.3 * len(ways)), layout="constrained")
    grid = figure.subplots(len(ways), len(whats), squeeze=False)
    for i, way in enumerate(ways):
        for j, what in enumerate(whats):
            chosen = [row for row in table if (row["way"], row["what"]) == (way, what)]
            names = [row["client"] for row in chosen]
            bars(grid[i, j], names, [1e6 * row["seconds"] for row in chosen], "")
            grid[i, j].set_title(f"{what}, {way}", loc="left", fontsize=9)
            if j:
                grid[i, j].set_yticklabels([])
    return figure


def handoffs(series: Mapping[str, Table]) -> Figure:
    """From a release until the next has it: p50, and p99 in light, in microseconds"""
    table = series["handoff"]
    conditions = list(dict.fromkeys(row["condition"] for row in table))
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    for j, (axes, condition) in enumerate(
        zip(figure.subplots(1, len(conditions), squeeze=False)[0], conditions, strict=True)
    ):
        chosen = [row for row in table if row["condition"] == condition]
        names = [str(row["pool"]) for row in chosen]
        colours = [colour(name) for name in names]
        axes.barh(names, [1e6 * row["p99"] for row in chosen], color=colours, alpha=0.25)
        bars(axes, names, [1e6 * row["p50"] for row in chosen], "")
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_title(condition, loc="left", fontsize=9)
        if j:
            axes.set_yticklabels([])
    return figure


PLOTS: dict[str, tuple[str, str, Callable[[Mapping[str, Table]], Figure]]] = {
    "checkout": ("checkout", "checkout", checkout),
    "grid": ("threads", "grid", threads),
    "handoff-loads": ("handoff", "handoff", handoffs),
    "end-to-end": ("statements", "statements", statements),
    "recovery": ("recovery", "timeline", recovery),
}
"""By group: the file's name, the table it needs, and who draws it."""


def draw(group: str, series: Mapping[str, Table], directory: Path) -> tuple[Path, str] | None:
    """The plot of a group and what it shows, if it has one and was measured."""
    if group not in PLOTS or not series.get(PLOTS[group][1]):
        return None
    name, _, make = PLOTS[group]
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.svg"
    make(series).savefig(file, metadata={"Date": None, "Creator": None})
    return file, (make.__doc__ or "").strip()
