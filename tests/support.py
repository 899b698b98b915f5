"""What several test modules share."""

from __future__ import annotations

import os

import pytest

__all__ = ["need"]


def need(condition: object, reason: str) -> None:
    """Go on only if *condition* holds: something of this machine that the test depends on.

    Without it the test is skipped, but under ``FASTPOOL_CI=1`` it fails: there
    every part has to be present, and a skip would hide that nothing was tested.
    May be called in a test, in a fixture or at the top of a module.
    """
    if condition:
        return
    if os.environ.get("FASTPOOL_CI") == "1":
        pytest.fail(f"missing in CI: {reason}", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
