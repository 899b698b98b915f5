"""The pages in ``docs``: every Python block runs, and the settings are the pool's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from integration.kit import Admin

import fastpool
from fastpool import ops
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
