#!/usr/bin/env python3
"""Can the tests fail? Plant known defects, one at a time, and see who notices.

Each mutant is one wrong line in a copy of the tree. The test named beside it
must turn red on the copy. A mutant that survives, one whose text is not in the
source any more, and a test that is red already without it, are all failures.

    python tools/mutants.py                 all of them
    python tools/mutants.py --quick         those whose test needs no server
    python tools/mutants.py --sample N      every N-th of those chosen
    python tools/mutants.py NAME ...        only these
    python tools/mutants.py --soak NAME ... the soak has to notice, not the test
    python tools/mutants.py --list          what there is

A defect in ``_core.pyx`` is planted there and carried into the interpreted core
by ``tools/unpyx.py``; the copy runs on the interpreted core, so no compiler is
needed and each mutant takes seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from planted import MUTANTS, Mutant  # type: ignore[import-not-found]

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("fastpool", "tests", "tools", "pyproject.toml")
HUNG = 20.0
"""Seconds for one test; a mutant that hangs it has been noticed."""


def copy_tree(source: Path, to: Path) -> None:
    """What a run needs; with the bytecode that an earlier one has left."""
    for name in COPIED:
        if (source / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", ".hypothesis")
            shutil.copytree(source / name, to / name, ignore=ignored)
        else:
            shutil.copy(source / name, to / name)


def plant(mutant: Mutant, tree: Path) -> None:
    """Write the defect into *tree*; the text that it replaces is there once."""
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    found = text.count(mutant.right)
    if found != 1:
        raise LookupError(f"its line is in {mutant.file} {found} times, not once")
    path.write_text(text.replace(mutant.right, mutant.wrong), encoding="utf-8")
    if path.suffix == ".pyx":
        command = [sys.executable, "tools/unpyx.py"]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
        if done.returncode:
            raise LookupError(f"no core can be made of it:\n{done.stderr[-2000:]}")


def run_tests(tests: list[str], tree: Path) -> tuple[bool, str]:
    """Whether *tests* pass in *tree*, and the end of what they printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "FASTPOOL_IMPL": "python",
    }
    # A hung test is ended by itself, or, if that cannot be, with its process.
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"--timeout={HUNG:g}"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    with tempfile.TemporaryFile("w+") as output:  # a pipe may outlive the run, in a child
        run = subprocess.Popen(
            command, cwd=tree, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = run.wait(HUNG * len(tests) + 5.0)
        except subprocess.TimeoutExpired:
            return False, "hung"
        finally:
            # With what a test that was ended has forked and could not wait for.
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        output.seek(0)
        said = output.read()[-2000:]
    if status not in (0, 1):
        raise LookupError(f"pytest could not run {' '.join(tests)}:\n{said}")
    return status == 0, said


@contextmanager
def copied(source: Path = ROOT) -> Iterator[Path]:
    """A copy of a tree, for a while."""
    with tempfile.TemporaryDirectory(prefix="fastpool-mutant-") as directory:
        # A server that root starts runs as somebody else, who must get here.
        os.chmod(directory, 0o755)
        tree = Path(directory)
        copy_tree(source, tree)
        yield tree


def judge(mutant: Mutant, sound: Path) -> str | None:
    """``None`` when the test noticed the defect in a copy of *sound*, else what is wrong."""
    with copied(sound) as tree:
        try:
            plant(mutant, tree)
            passed, _ = run_tests([mutant.test], tree)
        except LookupError as error:
            return str(error)
        return "SURVIVED" if passed else None


def soak(mutant: Mutant, tree: Path) -> str:
    """What the soak says of *tree*, and when it did."""
    try:
        plant(mutant, tree)
    except LookupError as error:
        return f"SURVIVED, not planted: {error}"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "tests")]),
        "FASTPOOL_IMPL": "python",
    }
    command = [sys.executable, "-m", "soak", "--seconds", "60"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode == 0:
        return f"SURVIVED {seconds:.0f} s"
    said = done.stdout.splitlines()
    # A finding says when it was made; a check is made at the end.
    evidence = [line for kind in ("FINDING", "FAIL ") for line in said if line.startswith(kind)]
    what = evidence[0] if evidence else (done.stdout + done.stderr)[-500:]
    return f"noticed after {seconds:.1f} s, start and end included: {what}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant defects; a test must notice each.")
    parser.add_argument("names", nargs="*", help="only these mutants")
    parser.add_argument("--quick", action="store_true", help="only those that need no server")
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="every N-th of them")
    parser.add_argument("--soak", action="store_true", help="by the soak, for a minute at most")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args()
    unknown = set(options.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    chosen = [m for m in MUTANTS if not options.names or m.name in options.names]
    if options.quick:
        chosen = [m for m in chosen if "integration" not in m.test and "drivers" not in m.test]
    chosen = chosen[:: options.sample]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name:44} {mutant.test}")
        return 0

    if options.soak:
        survivors = 0
        for mutant in chosen:
            with copied() as tree:
                said = soak(mutant, tree)
            survivors += said.startswith("SURVIVED")
            print(f"{mutant.name}: {said}", flush=True)
        return 1 if survivors else 0

    began = time.monotonic()
    failures = 0
    with copied() as sound, ThreadPoolExecutor(os.cpu_count()) as workers:
        passed, said = run_tests(sorted({mutant.test for mutant in chosen}), sound)
        if not passed:
            print(f"red without any defect:\n{said}")
            return 1
        problems = workers.map(partial(judge, sound=sound), chosen)
        for mutant, problem in zip(chosen, problems, strict=True):
            failures += problem is not None
            print(f"{problem or 'noticed':10} {mutant.name:44} {mutant.test}", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(chosen) - failures} passed, {failures} failed in {seconds:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
