"""Numbers as MXNet's operators get them: written as text by Python, read as float32 by C++ in two ways of its own.

Neither is always the float32 nearest to the Python number, so who computes in MXNet's place has to read as it does.
"""

from __future__ import annotations

import functools
import re
from typing import Callable

import numpy as np

_NUMBER = re.compile(r"(-?)(\d{1,18})(?:\.(\d+))?(?:[eE]([+-]?\d{1,3}))?")


_DIGITS = 19  # after the point, what comes later is left out


_MOST = 37  # the largest exponent without a rule of its own


@functools.lru_cache(maxsize=4096)
def from_text(text: str) -> float:
    """Return what a float field of an operator gets from ``text``: ``ParseFloat`` in dmlc-core's strtonum.h.

    Raises
    ------
    ValueError
        If the text is not a plain number, or so large or small that other rules hold.

    Examples
    --------
    >>> from_text('0.1') == np.float32(0.1)
    True
    >>> from_text('2e-13') == np.float32(2e-13)
    False
    """
    sign, whole, fraction, exponent = _split(text)
    value = np.float32(int(whole))
    if fraction:
        digits = fraction[:_DIGITS]
        value = np.float32(value + np.float32(float(int(digits)) / float(10 ** len(digits))))
    power = int(exponent or 0)
    scale = np.float32(1)
    for factor in [1e8] * (abs(power) // 8) + [10] * (abs(power) % 8):
        scale = np.float32(scale * np.float32(factor))
    value = np.float32(value / scale if power < 0 else value * scale)
    return float(-value if sign else value)


@functools.lru_cache(maxsize=4096)
def from_stream(text: str) -> float:
    """Return what an element of a tuple of floats gets from ``text``: the nearest float32 (``std::istream``).

    Raises
    ------
    ValueError
        If the text is not a plain number, or too large or small; or if the nearest float32 cannot be told by way of a
        float64, which is half-way between two.

    Examples
    --------
    >>> from_stream('2e-13') == np.float32(2e-13)
    True
    """
    _split(text)
    exact = float(text)
    value = np.float32(exact)
    other = np.nextafter(value, np.float32(np.inf if exact > value else -np.inf))
    if exact != value and exact == (float(value) + float(other)) / 2:
        raise ValueError(f"{text} is half-way between two float32")
    return float(value)


def each(read: Callable[[str], float], values: list[float]) -> list[float]:
    """Return all ``values`` as ``read`` reads them; most are the same."""
    known = {value: read(repr(value)) for value in set(values)}
    return [known[value] for value in values]


def _split(text: str) -> tuple[str, str, str | None, str | None]:
    found = _NUMBER.fullmatch(text)
    if found is None or not (float(text) == 0 or 10.0**-_MOST < abs(float(text)) < 10.0**_MOST):
        raise ValueError(f"{text} is no number that can be read as MXNet does")
    sign, whole, fraction, exponent = found.groups()
    if abs(int(exponent or 0)) > _MOST:
        raise ValueError(f"{text} has an exponent that MXNet has a rule of its own for")
    return sign, whole, fraction, exponent
