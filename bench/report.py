"""Rows, verdicts, and how they are printed."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import fastpool

__all__ = [
    "Row",
    "Target",
    "amount",
    "as_dict",
    "as_table",
    "compiled",
    "machine",
    "optimised_build",
    "save",
]

Target = tuple[str, float]
"""``("<=", 1.0)`` or ``(">=", 5)``."""


@dataclass
class Row:
    """One figure: *left* over *right*, one value of each a round.

    The figure is the median of the rounds' ratios, since what disturbs a round disturbs
    both sides of it. A row without values was skipped, and *note* says why.
    """

    name: str
    left: Sequence[float] = ()
    right: Sequence[float] = ()
    unit: str = "s"
    target: Target | None = None
    note: str = ""
    group: str = ""
    """What to measure to get this row again."""
    ratios: list[float] = field(init=False)

    def __post_init__(self) -> None:
        pairs = zip(self.left, self.right, strict=True)
        self.ratios = [left / right if right else math.inf for left, right in pairs]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the rounds' ratios."""
        low, _, high = quantiles(self.ratios * 2, method="inclusive")  # *2: one is too few
        return low, high

    @property
    def verdict(self) -> str:
        if not self.ratios:
            return "skipped"
        if self.target is None:
            return ""
        sign, limit = self.target
        met = self.ratio <= limit if sign == "<=" else self.ratio >= limit
        return "pass" if met else "falls short"


def compiled(sign: str, limit: float) -> Target | None:
    """A target of the compiled core; on the interpreted one the row has none."""
    return (sign, limit) if fastpool.__impl__ == "c" else None


def amount(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:,.0f}{unit}"
    for scale, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value / 1e-9:.3g} ns"


def as_table(rows: Sequence[Row], judged: bool) -> str:
    """One line a row, its note below it."""
    lines = [["figure", "left", "right", "ratio", "quartiles", "target", "verdict"]]
    notes = [""]
    for row in rows:
        notes.append(row.note)
        if not row.ratios:
            lines.append([row.name, "", "", "", "", "", row.verdict])
            continue
        sides = [amount(median(side), row.unit) for side in (row.left, row.right)]
        spread = "{:.3g} .. {:.3g}".format(*row.spread)
        target = "" if row.target is None else "{} {:g}".format(*row.target)
        verdict = row.verdict if judged else ""
        lines.append([row.name, *sides, f"{row.ratio:.3g}", spread, target, verdict])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line, note in zip(lines, notes, strict=True):
        cells = zip(line, widths, strict=True)
        text.append("  ".join(cell.ljust(width) for cell, width in cells).rstrip())
        text += [f"    {part}" for part in note.splitlines()]
    return "\n".join(text)


def as_dict(row: Row, judged: bool) -> dict[str, Any]:
    """All of a row that is printed anywhere, infinite ratios as None."""
    found = {
        **asdict(row),
        "left": median(row.left) if row.left else None,
        "right": median(row.right) if row.right else None,
        "ratio": row.ratio if row.ratios else None,
        "spread": row.spread if row.ratios else None,
        "verdict": row.verdict if judged or not row.ratios else "",
    }
    return {name: _finite(value) for name, value in found.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def save(
    path: Path,
    described: Mapping[str, str],
    rows: Sequence[Row],
    judged: bool,
    series: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Write everything as JSON: one line a row, so that two runs can be compared."""

    def lines(items: Sequence[Mapping[str, Any]]) -> str:
        plain = ({name: _finite(value) for name, value in item.items()} for item in items)
        return "[\n" + ",\n".join(json.dumps(item) for item in plain) + "\n]"

    parts = [f'"machine": {json.dumps(dict(described), indent=1)}']
    parts.append('"rows": ' + lines([as_dict(row, judged) for row in rows]))
    tables = ",\n".join(f"{json.dumps(name)}: {lines(table)}" for name, table in series.items())
    parts.append(f'"series": {{\n{tables}\n}}')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def optimised_build() -> bool:
    """Whether the interpreter was built with profile-guided optimisation."""
    return "-fprofile-use" in f"{sysconfig.get_config_vars('PY_CFLAGS', 'PY_CORE_CFLAGS')}"


def machine() -> dict[str, str]:
    """What the figures are measured on."""
    cpu, info = platform.machine(), Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    packages = []
    for package in ("pg8000", "psycopg", "psycopg-pool", "SQLAlchemy", "DBUtils", "asyncpg"):
        try:
            packages.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            packages.append(f"no {package}")
    build = "optimised build" if optimised_build() else "plain build"
    return {
        "fastpool": f"{fastpool.__version__}, core {fastpool.__impl__}",
        "python": f"{platform.python_version()}, {platform.python_compiler()}, {build}",
        "machine": f"{cpu}, {os.cpu_count()} processors, {platform.platform()}",
        "packages": ", ".join(packages),
        "load average": " ".join(f"{average:.2f}" for average in os.getloadavg()),
    }
