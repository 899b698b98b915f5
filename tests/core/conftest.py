"""What every test of the core starts from."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from core.kit import Rig

MakeRig = Callable[..., Rig]


@pytest.fixture
def make(core: ModuleType) -> MakeRig:
    """``make(size=0, clock=None, **settings)``: an open core."""

    def make(*args: Any, **settings: Any) -> Rig:
        return Rig(core, *args, **settings)

    return make


@pytest.fixture(autouse=True)
def _no_skipped_frames(core: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames of a test are callers; the package may have named others."""
    monkeypatch.setattr(core, "_skip", None)
