"""pg8000's own tests pass on the driver's connections as they do on pg8000's."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from support import need

from fastpool.testing.local_postgres import LocalPostgres

DIFFERS = {
    # It compares the text of the cursor's type; ours is a subclass.
    "test/dbapi/test_dbapi.py::test_cursor_type",
}
SERVER_LACKS = {
    # Without contrib and libxml these fail on pg8000's own classes as well.
    "test/native/test_typeconversion.py::test_xml_roundtrip",
    "test/dbapi/test_typeconversion.py::test_xml_roundtrip",
    'test/native/test_typeconversion.py::test_roundtrip_cast["a"=>"1"-hstore-None]',
    "test/dbapi/test_typeconversion.py::test_hstore_roundtrip",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pg8000s_own_suite(tmp_path: Path) -> None:
    """All but one of its tests, and those that the server has no parts for.

    Left out: authentication and TLS, where pg8000 makes the socket, and benchmarks.
    """
    release = importlib.metadata.version("pg8000")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = ["--no-binary", ":all:", f"pg8000=={release}", "-d", str(tmp_path)]
    for command in (
        [*pip, "download", "--no-deps", *source],
        [*pip, "install", "--no-deps", "--target", str(tmp_path / "more"), "pytest-mock", "pytz"],
    ):
        got = subprocess.run(command, capture_output=True, text=True)
        need(got.returncode == 0, f"pip could not {command[4]} pg8000's tests or what they need")
    with tarfile.open(tmp_path / f"pg8000-{release}.tar.gz") as archive:
        # From 3.12 on a warning without; the oldest 3.10 and 3.11 lack it.
        safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **safely)
    here = Path(__file__).parents[1]
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-rf", "--tb=no", "-p", "drivers.pg8000_suite"),
        *("-p", "no:cacheprovider", "--rootdir=.", "test/native", "test/dbapi"),
        *("-k", "not auth and not benchmark"),
    ]
    with LocalPostgres(password="pw") as server:
        environment = {
            **os.environ,
            "PGHOST": server.host,
            "PGPORT": str(server.port),
            "PGPASSWORD": "pw",
            "PYTHONPATH": os.pathsep.join([str(here), *sys.path, str(tmp_path / "more")]),
        }
        suite = tmp_path / f"pg8000-{release}"
        done = subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True)
    failed = set(re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE))
    assert failed - SERVER_LACKS == DIFFERS, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 400, done.stdout
