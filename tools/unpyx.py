#!/usr/bin/env python3
"""Make the interpreted core from the compiled one.

``fastpool/_core.pyx`` is written in Cython's pure-Python syntax; this drops what
only the compiler needs and writes ``fastpool/_core_py.py``, which is committed.

    python tools/unpyx.py            write it
    python tools/unpyx.py --check    fail if it is not what would be written

A rule that nothing uses, and a ``cython.`` that no rule takes away, are errors:
the two cores must not drift apart unseen.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "fastpool" / "_core.pyx"
TARGET = ROOT / "fastpool" / "_core_py.py"

HEADER = "# Generated from _core.pyx by tools/unpyx.py: edit that file, not this one.\n"

TYPES = {
    "cython.double": "float",
    "cython.int": "int",
    "cython.longlong": "int",
    "cython.ulong": "int",
    "cython.ulonglong": "int",
    "cython.Py_ssize_t": "int",
    "cython.bint": "bool",
}

# Whole lines, then parts of lines: (pattern, replacement).
DROPPED = [
    r"# cython: .*",
    r"import cython",
    r"\s*@cython\.(cfunc|ccall|inline|cclass|final|no_gc)",
    r"\s*@cython\.freelist\(\d+\)",
]
REPLACED = [
    (r"^([A-Z_]+) = cython\.declare\([\w.]+, (.+)\)$", r"\1 = \2"),
    (r"\bdef __dealloc__\b", "def __del__"),
    (r"\bdef __getattribute__\b", "def __getattr__"),
    # What with_sections() needs.
    (r"^(from fastpool\._runtime import \()$", r"\1\n    Mutexed,"),
    (r"^    site,$", r"    section,\n    site,"),
]
CIMPORTS = re.compile(
    r"^from cython\.cimports\.[\w.]+ import (?:\([\w\s,]+\)\n|\w+)\n", re.MULTILINE
)
FIELD = re.compile(r"    (\w+) = cython\.declare\(([\w.\[\]]+)(, visibility=\"\w+\")?\)$")
BRANCH = re.compile(r"(\s*)if (not )?cython\.compiled:$")
SECTION = re.compile(r"\s*with cython\.critical_section\(self(, \w+)?\):$")
CLASS = re.compile(r"class \w+(\(Mutexed\))?:$")


def indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def block(lines: list[str], start: int, margin: int) -> int:
    """The end of the block that begins at *start*, deeper than *margin*."""
    end = start
    while end < len(lines) and (not lines[end].strip() or indent(lines[end]) > margin):
        end += 1
    while not lines[end - 1].strip():
        end -= 1
    return end


def dedented(lines: list[str]) -> list[str]:
    return [line[4:] if line.strip() else line for line in lines]


def without_branches(lines: list[str]) -> list[str]:
    """Of each ``if cython.compiled`` keep what the interpreter runs."""
    out: list[str] = []
    i = 0
    while i < len(lines):
        match = BRANCH.match(lines[i])
        if not match:
            out.append(lines[i])
            i += 1
            continue
        margin = len(match[1])
        end = block(lines, i + 1, margin)
        body = lines[i + 1 : end]
        if match[2]:
            out += dedented(body)
        elif end < len(lines) and lines[end] == match[1] + "else:":
            start, end = end + 1, block(lines, end + 1, margin)
            out += without_branches(dedented(lines[start:end]))
        i = end
    return out


def with_sections(lines: list[str]) -> list[str]:
    """A method with a critical section becomes a ``@section``; its class is Mutexed."""
    out = list(lines)
    i = 0
    while i < len(out):
        if SECTION.match(out[i]):
            margin = indent(out[i])
            end = block(out, i + 1, margin)
            out[i:end] = dedented(out[i + 1 : end])
            method = next(j for j in range(i, -1, -1) if out[j].startswith("    def "))
            out.insert(method, "    @section")
            owner = next(j for j in range(i, -1, -1) if CLASS.match(out[j]))
            if "(Mutexed)" not in out[owner]:
                out[owner] = out[owner].replace(":", "(Mutexed):")
        i += 1
    return out


def with_slots(lines: list[str]) -> list[str]:
    """Declared fields become annotations, and ``__slots__``."""
    out: list[str] = []
    owner = -1
    names: list[str] = []
    for line in [*lines, "class _:"]:
        if line.startswith("class "):
            if names:
                first = next(j for j in range(owner, len(out)) if FIELD.match(out[j]))
                while out[first - 1].strip().startswith("#"):
                    first -= 1
                for j in range(first, len(out)):
                    out[j] = FIELD.sub(
                        lambda m: f"    {m[1]}: {TYPES.get(m[2], m[2]).replace('object', 'Any')}",
                        out[j],
                    )
                slots = ", ".join(f'"{name}"' for name in sorted(names))
                out.insert(first, f"    __slots__ = ({slots},)")
            owner, names = len(out), []
        elif match := FIELD.match(line):
            names.append(match[1])
        out.append(line)
    return out[:-1]


def generate(source: str) -> str:
    used: set[str] = set()
    lines: list[str] = []
    for line in without_branches(CIMPORTS.sub("", source).splitlines()):
        rule = next((r for r in DROPPED if re.fullmatch(r, line)), None)
        if rule:
            used.add(rule)
            continue
        for pattern, replacement in REPLACED:
            line, count = re.subn(pattern, replacement, line)
            if count:
                used.add(pattern)
        lines.append(line)
    lines = with_slots(with_sections(lines))
    text = "\n".join(lines) + "\n"
    for name, plain in TYPES.items():
        text, count = re.subn(rf"\b{re.escape(name)}\b", plain, text)
        if count:
            used.add(name)
    unused = {*DROPPED, *(p for p, _ in REPLACED), *TYPES} - used
    if unused:
        raise SystemExit(f"unpyx: rules that nothing uses: {sorted(unused)}")
    if left := [line for line in text.splitlines() if "cython." in line]:
        raise SystemExit("unpyx: left over:\n" + "\n".join(left))
    text = text.replace("generated from this file", "generated from ``_core.pyx``")
    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(TARGET), "-"],
        input=HEADER + text,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return formatted.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description="Make _core_py.py from _core.pyx.")
    parser.add_argument("--check", action="store_true", help="only compare")
    made = generate(SOURCE.read_text())
    if parser.parse_args().check:
        if TARGET.read_text() != made:
            print("unpyx: fastpool/_core_py.py is not what _core.pyx gives: run tools/unpyx.py")
            return 1
        return 0
    TARGET.write_text(made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
