"""The text of one setting, as a number.

Connection strings and environment variables hold text. Both accept what Go's
``time.ParseDuration`` accepts, so that a value can be carried over unchanged,
and plain seconds. Ranges and relations are not judged here but in
``PoolConfig``, whose settings these become.
"""

from __future__ import annotations

import math
import re

from ..errors import ConfigError

__all__ = ["check_text", "parse_duration", "parse_flag", "parse_integer"]

_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SECONDS = re.compile(rf"\+?({_NUMBER})")
# Both of Unicode's micros are in use: U+00B5 (micro sign), U+03BC (Greek mu).
_PART = re.compile(rf"({_NUMBER})(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_DURATION = re.compile(rf"\+?(?:{_PART.pattern})+")
# Numerator and divisor: 1001 / 1000 is exact where 1001 * 0.001 is not.
_UNITS = {
    "ns": (1, 1_000_000_000),
    "us": (1, 1_000_000),
    "\u00b5s": (1, 1_000_000),
    "\u03bcs": (1, 1_000_000),
    "ms": (1, 1000),
    "s": (1, 1),
    "m": (60, 1),
    "h": (3600, 1),
}
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}")
_INT32 = 2**31 - 1
_FLAGS = {
    **dict.fromkeys(("true", "on", "yes", "1"), True),
    **dict.fromkeys(("false", "off", "no", "0"), False),
}


def parse_duration(text: str, setting: str = "duration") -> float | None:
    """Return the seconds that *text* says, ``None`` for any zero: off.

    Accepted are plain seconds (``"30"``, ``"0.5"``) and Go durations: numbers
    with units, ``"1h30m"``, ``"1.5s"``, ``"250ms"``; the units are ``ns``,
    ``us`` (or ``µs``), ``ms``, ``s``, ``m``, ``h``.

    Raises ``ConfigError`` naming *setting* for anything else, negative values
    among them.
    """
    if match := _SECONDS.fullmatch(text):
        seconds = float(match[1])
    elif _DURATION.fullmatch(text):
        seconds = 0.0
        for number, unit in _PART.findall(text):
            times, divisor = _UNITS[unit]
            seconds += float(number) * times / divisor
    else:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise ConfigError(
            f"{setting}: {text!r} is not a duration; accepted are seconds (30, 0.5), "
            "numbers with the units ns, us, ms, s, m, h (250ms, 1h30m), and 0 for off",
            setting=setting,
        )
    return seconds or None


def parse_integer(text: str, setting: str) -> int:
    """Return the whole number that *text* says, in decimal, in 32 bits.

    Raises ``ConfigError`` naming *setting* otherwise.
    """
    if _INTEGER.fullmatch(text) and abs(number := int(text)) <= _INT32:
        return number
    raise ConfigError(
        f"{setting}: {text!r} is not an integer; accepted are decimal digits, such as 25",
        setting=setting,
    )


def check_text(value: str, setting: str) -> None:
    """Raise ``ConfigError`` for what cannot be sent: bytes that were no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        # Not chained: that error holds the value, perhaps a password.
        raise ConfigError(f"{setting} is not valid UTF-8", setting=setting) from None


def parse_flag(text: str, setting: str) -> bool:
    """Return whether *text* says yes: ``true``, ``on``, ``yes``, ``1``, in any case.

    Raises ``ConfigError`` naming *setting* for what is neither that nor its opposite.
    """
    try:
        return _FLAGS[text.lower()]
    except KeyError:
        raise ConfigError(
            f"{setting}: {text!r} is not one of {', '.join(_FLAGS)}", setting=setting
        ) from None
