"""The compiled core, ``fastpool._core``; every other fact is in pyproject.toml.

The core is optional. Where it cannot be built, the build says why and goes on:
fastpool then runs on its interpreted core. Two variables, ``1`` or ``0``, change that:

* ``FASTPOOL_REQUIRE_EXT=1``: a build that cannot make the compiled core fails.
* ``FASTPOOL_NO_EXT=1``: none is made, and the wheel is for any platform.

An error in the Cython source itself always fails the build.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError


def flag(name: str) -> bool:
    """The value of an environment variable that is ``1``, ``0`` or not set."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"fastpool: {name} must be 1 or 0, not {value!r}")
    return value == "1"


REQUIRE_EXT = flag("FASTPOOL_REQUIRE_EXT")
NO_EXT = flag("FASTPOOL_NO_EXT")
if REQUIRE_EXT and NO_EXT:
    sys.exit("fastpool: FASTPOOL_REQUIRE_EXT=1 and FASTPOOL_NO_EXT=1 exclude each other")


class BuildCore(build_ext):
    """``build_ext`` that keeps the generated C out of the tree and explains a failure."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.cython_c_in_temp = True

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError, CompileError):
            # setuptools passes over the error of an optional extension.
            outcome = "interpreted core" if ext.optional else "no compiled core"
            print(f"fastpool: {outcome} ({self.reason()})", file=sys.stderr)
            raise

    def reason(self) -> str:
        """What this machine lacks to build the extension."""
        if importlib.util.find_spec("Cython") is None:
            return "Cython is not installed"
        compiler = getattr(self.compiler, "compiler_so", ["cc"])[0]
        if shutil.which(compiler) is None:
            return f"no C compiler: {compiler} is not on PATH"
        if not any(os.path.exists(f"{path}/Python.h") for path in self.compiler.include_dirs):
            return f"no Python headers: Python.h is not in {sysconfig.get_path('include')}"
        return "the C compiler failed, see the build's log"


core = Extension(
    "fastpool._core",
    ["fastpool/_core.pyx"],
    depends=["fastpool/_core_c.h", "fastpool/_core_c.pxd"],
    include_dirs=["fastpool"],
    # -g0: debug information would make the wheel five times as large.
    extra_compile_args=[] if sys.platform == "win32" else ["-O3", "-g0"],
    optional=not REQUIRE_EXT,
)
# The core's sections rely on CPython; other interpreters are faster without it.
wanted = not NO_EXT and sys.implementation.name == "cpython"
setup(ext_modules=[core] if wanted else [], cmdclass={"build_ext": BuildCore})
