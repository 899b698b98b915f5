"""What an installation holds, and which core it runs on."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import need

import fastpool

TREE = Path(__file__).parent.parent
PACKAGE = Path(fastpool.__file__).parent
HIDE_EXTENSION = "import sys; sys.modules['fastpool._core'] = None; "
compiled = pytest.mark.skipif(
    importlib.util.find_spec("fastpool._core") is None, reason="built without the compiled core"
)
in_tree = pytest.mark.skipif(
    not (TREE / "setup.py").exists(), reason="the source is out of reach here"
)


def run(code: str, impl: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run *code* in a fresh interpreter, with FASTPOOL_IMPL as given or not set."""
    environ = {name: value for name, value in os.environ.items() if name != "FASTPOOL_IMPL"}
    if impl is not None:
        environ["FASTPOOL_IMPL"] = impl
    return subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60
    )


def output(code: str, impl: str | None = None) -> str:
    done = run(code, impl)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def import_error(code: str, impl: str) -> str:
    """The text of the ImportError that *code* ends with."""
    done = run(code, impl)
    last = done.stderr.strip().rpartition("\n")[2]
    kind, _, text = last.partition(": ")
    assert done.returncode == 1
    assert kind in ("ImportError", "ModuleNotFoundError"), done.stderr
    return text


def metadata() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("fastpool")
    except importlib.metadata.PackageNotFoundError:
        need(False, "fastpool is imported from the source tree, not installed")
        raise


def test_python_can_be_forced() -> None:
    """FASTPOOL_IMPL=python runs on the interpreted core and leaves the compiled one alone."""
    code = "import sys, fastpool; print(fastpool.__impl__, 'fastpool._core' in sys.modules)"
    assert output(code, "python") == "python False"


@compiled
def test_c_can_be_forced() -> None:
    """FASTPOOL_IMPL=c runs on the compiled core."""
    assert output("import fastpool; print(fastpool.__impl__)", "c") == "c"


@compiled
def test_c_is_preferred() -> None:
    """Without FASTPOOL_IMPL the compiled core is taken where there is one."""
    assert output("import fastpool; print(fastpool.__impl__)") == "c"


def test_python_without_extension() -> None:
    """Without the extension and without FASTPOOL_IMPL the interpreted core is taken."""
    assert output(HIDE_EXTENSION + "import fastpool; print(fastpool.__impl__)") == "python"


def test_c_without_extension() -> None:
    """A forced compiled core that is not there is an error, not a slower pool."""
    assert "_core" in import_error(HIDE_EXTENSION + "import fastpool", "c")


@pytest.mark.parametrize("value", ["C", "cython", "0"])
def test_bad_impl(value: str) -> None:
    """Any other value of FASTPOOL_IMPL is refused by the name of the variable."""
    text = import_error("import fastpool", value)
    assert "FASTPOOL_IMPL" in text
    assert repr(value) in text


@pytest.mark.parametrize("module", ["pg8000", "ssl", "asyncio", "importlib.metadata"])
def test_import_is_light(module: str) -> None:
    """Importing fastpool loads nothing that is expensive and not yet needed."""
    assert output(f"import sys, fastpool; print({module!r} in sys.modules)") == "False"


@pytest.mark.parametrize(
    "name", ["drivers.pg8000.Native", "testing.StubDriver", "ops.probes", "conninfo.parse"]
)
def test_the_rest_is_there_when_asked_for(name: str) -> None:
    """One import is enough for what is not loaded with it."""
    assert output(f"import fastpool; print(callable(fastpool.{name}))") == "True"


@pytest.mark.parametrize("module", ["fastpool", "fastpool.drivers"])
def test_what_is_not_there(module: str) -> None:
    """A name that there is not is an AttributeError in the usual words."""
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        importlib.import_module(module).nothing  # noqa: B018


def test_types_are_shipped() -> None:
    """The package says that it is typed (PEP 561)."""
    assert (PACKAGE / "py.typed").is_file()


def test_interpreted_core_is_shipped() -> None:
    """The interpreted core is there whether or not the compiled one is."""
    assert (PACKAGE / "_core_py.py").is_file()


def test_version() -> None:
    """The installed version is the one the package names."""
    assert metadata().version == fastpool.__version__


def test_requirements() -> None:
    """pg8000 is the only package needed at run time."""
    needed = [line for line in metadata().requires or [] if "extra ==" not in line]
    assert [line.rstrip("0123456789.").rstrip("<>=~") for line in needed] == ["pg8000"]


def test_command() -> None:
    """The command that is installed can be loaded."""
    (command,) = (entry for entry in metadata().entry_points if entry.group == "console_scripts")
    assert command.name == "fastpool"
    assert callable(command.load())


def extension() -> tuple[str, list[str], dict[str, Any]]:
    """Name, sources and literal keywords of the one Extension of setup.py."""
    (call,) = (
        node
        for node in ast.walk(ast.parse((TREE / "setup.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Extension"
    )
    keywords = {
        keyword.arg: ast.literal_eval(keyword.value)
        for keyword in call.keywords
        if keyword.arg in ("depends", "include_dirs")
    }
    return ast.literal_eval(call.args[0]), ast.literal_eval(call.args[1]), keywords


@in_tree
def test_extension_matches_tree() -> None:
    """setup.py builds every Cython source of the tree and watches every header."""
    name, sources, keywords = extension()
    tree = TREE / "fastpool"
    found = {suffix: sorted(tree.rglob(f"*.{suffix}")) for suffix in ("pyx", "pxd", "h")}
    assert [TREE / source for source in sources] == found["pyx"]
    assert name == ".".join(Path(sources[0]).with_suffix("").parts)
    assert sorted(TREE / header for header in keywords["depends"]) == sorted(
        found["pxd"] + found["h"]
    )


@in_tree
def test_version_is_in_changelog() -> None:
    """The newest entry of the changelog is about this version, or not released yet."""
    text = (TREE / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = next(line for line in text.splitlines() if line.startswith("## "))
    assert newest.startswith(("## [Unreleased]", f"## [{fastpool.__version__}]"))


def test_page_is_shipped() -> None:
    """The page of the operations is there beside its code."""
    assert (PACKAGE / "ops" / "page.html").is_file()
