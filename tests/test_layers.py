"""The arrows between the package's modules, read from their import statements.

Every import counts, also one inside a function or under ``TYPE_CHECKING``: an
arrow is a reason to change together, whenever it is followed.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

# From the bottom up. A room (a module, or a package with all its modules) may
# import from the rows below its own, and within itself.
LAYERS = (
    ("_logs", "_secrets", "errors"),
    ("_deadline", "_fork", "_runtime", "config", "stats"),
    ("sizing", "_diagnosis"),
    ("conninfo", "drivers"),
    ("_core", "_core_py", "_hosts", "retry"),
    ("_impl",),
    ("_liveness",),
    ("_turnaround",),
    ("_transaction",),
    ("_opener",),
    ("_facts",),
    ("_keeper",),
    ("_house",),
    ("pool",),
    ("_listen",),
    ("ops",),
    ("__main__",),
)
LEVEL = {room: level for level, row in enumerate(LAYERS) for room in row}
# The public names: imports every room but this one, and no room imports it.
TOP = "__init__"
# The test kit stands beside the layers: it may import every room.
BESIDE = "testing"
# What a room may import at its top besides the standard library (scramp comes
# with pg8000); the last two rooms are loaded on demand and may import anything.
THIRD_PARTY = {"_core": {"cython"}, "drivers": {"pg8000", "scramp"}}
ON_DEMAND = {"ops", BESIDE}


class Import(NamedTuple):
    """One imported module, by its full name."""

    module: str
    line: int
    deferred: bool
    """Inside a function or under ``TYPE_CHECKING``: not followed at import."""


def imports_of(path: Path, package: list[str]) -> Iterator[Import]:
    """All that the module at *path* imports; *package* is the one it lies in."""

    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, deferred)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            parts = [*parts, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                yield Import(".".join([*parts, alias.name]), node.lineno, deferred)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for guarded in node.body:
                yield from visit(guarded, True)
            for other in node.orelse:
                yield from visit(other, deferred)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, deferred or inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), False)


def sources(root: Path) -> list[Path]:
    """The package's modules; a compiled one's source is only in the source tree."""
    return sorted([*root.rglob("*.py"), *root.rglob("*.pyx")])


def room_of(path: Path, root: Path) -> str:
    return path.relative_to(root).parts[0].partition(".")[0]


def violations(root: Path) -> list[str]:
    """What is wrong with the package at *root*, one sentence each."""
    # An installed package has the compiled core without its source.
    rooms = {"_core"} | {room_of(path, root) for path in sources(root)}
    found = [
        f"{room}: not in the table of layers; give it a row"
        for room in sorted(rooms - LEVEL.keys() - {TOP, BESIDE})
    ]
    for path in sources(root):
        room = room_of(path, root)
        if room not in LEVEL and room not in (TOP, BESIDE):
            continue
        for imported in imports_of(path, ["fastpool", *path.relative_to(root).parts[:-1]]):
            problem = judge(room, imported, rooms)
            if problem:
                found.append(f"{path.relative_to(root)}:{imported.line}: {problem}")
    return found


def judge(room: str, imported: Import, rooms: set[str]) -> str | None:
    """What is wrong with this import in this room, if something is."""
    first, _, rest = imported.module.partition(".")
    if first != "fastpool":
        allowed = first in sys.stdlib_module_names or first in THIRD_PARTY.get(room, ())
        if allowed or imported.deferred or room in ON_DEMAND:
            return None
        return f"imports {first} at the top of {room}"
    target = rest.partition(".")[0]
    if target not in rooms:
        target = TOP
    if target == BESIDE and room != BESIDE:
        if room == "ops" and imported.deferred:
            return None
        return f"{room} imports {BESIDE}, which only a function of ops may"
    if target == room or room in (TOP, BESIDE):
        return None
    if target == TOP:
        return f"{room} imports the package's top instead of the module that has the name"
    if LEVEL.get(target, -1) >= LEVEL[room]:
        return f"{room} imports {target}, which is not below it"
    return None


def package_root() -> Path:
    spec = importlib.util.find_spec("fastpool")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def test_arrows_point_down() -> None:
    """No module of the package imports one that is not below it."""
    assert violations(package_root()) == []


def test_table_is_current() -> None:
    """Every room of the table exists, so the drawing shows what is there."""
    rooms = {room_of(path, package_root()) for path in sources(package_root())}
    # An installed package holds the compiled core without its source.
    assert LEVEL.keys() - rooms <= {"_core"}


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("config.py", "from fastpool.pool import Pool", "config imports pool"),
        ("config.py", "from .pool import Pool", "config imports pool"),
        ("config.py", "from . import pool", "config imports pool"),
        ("config.py", "import fastpool.pool", "config imports pool"),
        ("config.py", "def f():\n    from .pool import Pool", "config imports pool"),
        ("config.py", "if TYPE_CHECKING:\n    from .pool import Pool", "config imports pool"),
        ("config.py", "try:\n    from .stats import S\nfinally:\n    pass", "config imports stats"),
        ("drivers/base.py", "from ..pool import Pool", "drivers imports pool"),
        ("drivers/base.py", "from .. import pool", "drivers imports pool"),
        ("_core.pyx", "from fastpool._impl import Core", "_core imports _impl"),
        ("pool.py", "from fastpool import Pool", "pool imports the package's top"),
        ("pool.py", "from . import __version__", "pool imports the package's top"),
        ("pool.py", "def f():\n    from .testing import StubDriver", "pool imports testing"),
        ("__init__.py", "from .testing import StubDriver", "__init__ imports testing"),
        ("ops/demo.py", "from ..testing import StubDriver", "ops imports testing"),
        ("pool.py", "import pg8000.native", "imports pg8000 at the top of pool"),
        ("stats.py", "if True:\n    import prometheus_client", "imports prometheus_client"),
        ("novel.py", "", "novel: not in the table"),
    ],
)
def test_wrong_arrow_is_found(tmp_path: Path, file: str, text: str, expected: str) -> None:
    """Each way to write an import against the layers is noticed and named."""
    for name in ("pool.py", "_impl.py", "stats.py", "testing/__init__.py", "__init__.py", file):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if name == file else "")
    (problem,) = violations(tmp_path)
    assert expected in problem


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pool.py", "import threading\nfrom . import _impl\nfrom .config import PoolConfig"),
        ("pool.py", "def f():\n    import pg8000"),
        ("pool.py", "if TYPE_CHECKING:\n    import pg8000"),
        ("drivers/pg8000.py", "import pg8000.native\nfrom .base import Driver"),
        ("_core.pyx", "import cython\nfrom cython.cimports.fastpool._core_c import poll"),
        ("ops/demo.py", "def f():\n    from fastpool.testing import StubDriver"),
        ("ops/metrics.py", "import prometheus_client"),
        ("testing/stub.py", "from fastpool import Pool\nfrom fastpool.pool import Pool"),
        ("__init__.py", "from .pool import Pool"),
    ],
)
def test_right_arrow_is_accepted(tmp_path: Path, file: str, text: str) -> None:
    """Imports that follow the layers are not complained about."""
    others = ("pool.py", "_impl.py", "config.py", "testing/__init__.py", "drivers/base.py")
    for name in (*others, file):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if name == file else "")
    assert violations(tmp_path) == []
