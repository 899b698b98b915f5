"""A progress bar for commands that take a while."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator

__all__ = ["progress"]


@contextlib.contextmanager
def progress(seconds: float) -> Iterator[Callable[[float, str], None]]:
    """A bar on a terminal, where tqdm is installed; else nothing. It is told how many of
    the *seconds* have passed, and what is done now."""
    if importlib.util.find_spec("tqdm") is None:
        yield lambda elapsed, text: None
        return
    from tqdm import tqdm

    with tqdm(
        total=seconds,
        bar_format="   |{bar:30}| {percentage:3.0f} %  {desc}",
        file=sys.stderr,
        leave=False,
        disable=None,  # shown on terminals only
    ) as bar:

        def show(elapsed: float, text: str) -> None:
            bar.set_description_str(text, refresh=False)
            bar.update(min(elapsed, seconds) - bar.n)

        yield show
