"""Read floats as MXNet's operators do: Python writes them as text, and C++ parses that as float32 in two ways.

Neither way always gives the float32 nearest to the Python number.
"""

from __future__ import annotations

import functools
import re
from typing import Callable

import numpy as np

_PLAIN_NUMBER = re.compile(r"(-?)(\d{1,18})(?:\.(\d+))?(?:[eE]([+-]?\d{1,3}))?")
_FRACTION_DIGITS = 19  # MXNet ignores further digits
_MAX_EXPONENT = 37  # MXNet has special rules for larger ones


@functools.lru_cache(maxsize=4096)
def parse_field(text: str) -> float:
    """Parse ``text`` as MXNet parses a float field of an operator: ``ParseFloat`` in dmlc-core's strtonum.h.

    Raises
    ------
    ValueError
        If the text is not a plain number, or is so large or small that special rules apply.

    Examples
    --------
    >>> parse_field('0.1') == np.float32(0.1)
    True
    >>> parse_field('2e-13') == np.float32(2e-13)
    False
    """
    sign, whole, fraction, exponent = _split(text)
    value = np.float32(int(whole))
    if fraction:
        digits = fraction[:_FRACTION_DIGITS]
        value = np.float32(value + np.float32(float(int(digits)) / float(10 ** len(digits))))
    power = int(exponent or 0)
    scale = np.float32(1)
    for factor in [1e8] * (abs(power) // 8) + [10] * (abs(power) % 8):
        scale = np.float32(scale * np.float32(factor))
    value = np.float32(value / scale if power < 0 else value * scale)
    return float(-value if sign else value)


@functools.lru_cache(maxsize=4096)
def parse_tuple_element(text: str) -> float:
    """Parse ``text`` as MXNet parses an element of a tuple of floats: to the nearest float32 (``std::istream``).

    Raises
    ------
    ValueError
        If the text is not a plain number, is too large or small, or is half-way between two float32 as a float64,
        which hides the nearest one.

    Examples
    --------
    >>> parse_tuple_element('2e-13') == np.float32(2e-13)
    True
    """
    _split(text)
    exact = float(text)
    value = np.float32(exact)
    other = np.nextafter(value, np.float32(np.inf if exact > value else -np.inf))
    if exact != value and exact == (float(value) + float(other)) / 2:
        raise ValueError(f"{text} is half-way between two float32")
    return float(value)


def parse_all(parse: Callable[[str], float], values: list[float]) -> list[float]:
    """Apply ``parse`` to the text of each of ``values``, and only once to equal ones."""
    parsed = {value: parse(repr(value)) for value in set(values)}
    return [parsed[value] for value in values]


def _split(text: str) -> tuple[str, str, str | None, str | None]:
    """Split a plain number into sign, whole part, fraction and exponent."""
    match = _PLAIN_NUMBER.fullmatch(text)
    if match is None or not (float(text) == 0 or 10.0**-_MAX_EXPONENT < abs(float(text)) < 10.0**_MAX_EXPONENT):
        raise ValueError(f"{text} is not a number that can be parsed as MXNet does")
    sign, whole, fraction, exponent = match.groups()
    if abs(int(exponent or 0)) > _MAX_EXPONENT:
        raise ValueError(f"{text} has an exponent for which MXNet has special rules")
    return sign, whole, fraction, exponent
