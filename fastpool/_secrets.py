"""Passwords where an error reporter looks: in reprs and in the locals of tracebacks.

Texts of errors and logs hold none anyway. But reporters print the local variables of
each frame that an exception came through, so no frame of ours may be left in a
traceback that holds a password, or a connection string, as something that shows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

__all__ = ["SECRETS", "Params", "Secret", "SecretBytes", "bare", "hides_arguments"]

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

SECRETS = frozenset(
    {
        "password",
        "sslpassword",
        "scram_client_key",
        "scram_server_key",
        "oauth_client_secret",
    }
)
"""The connection parameters that are one."""


class Secret(str):
    """A text that does not show itself. What is cut from it does."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class SecretBytes(bytes):
    """The same for bytes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "b'***'"


class Params(dict[str, Any]):
    """Connection parameters; the secret ones are there, but are not shown."""

    def __repr__(self) -> str:
        return repr({name: "***" if name in SECRETS else value for name, value in self.items()})


def bare(error: E) -> E:
    """*error*, itself and all behind it without the frames that they came through."""
    links: list[BaseException | None] = [error]
    seen = set()
    while links:
        link = links.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            if link.__suppress_context__:  # not shown, but there to be found
                link.__context__ = None
            links += link.__cause__, link.__context__
    return error


def hides_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose arguments hold secrets: what is wrong with them is raised
    without a frame that shows them. The text says all there is to know."""

    @functools.wraps(function)
    def hiding(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (ValueError, TypeError, ImportError) as error:  # ConfigError is a ValueError
            wrong = bare(error)
        del args, kwargs
        try:
            raise wrong
        finally:
            del wrong  # or it and this frame would keep each other

    return hiding
