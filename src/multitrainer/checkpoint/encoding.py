"""Encode what an optimizer keeps as JSON, with its arrays set aside under the path to each.

The format is described in `decoding`.
"""

from __future__ import annotations

import functools
import math
import types
from typing import Any
from urllib.parse import quote

import numpy as np
from mxnet.ndarray import NDArray
from mxnet.ndarray.sparse import RowSparseNDArray

from ..multipliers.object_state import attributes_of, check_settings, class_name
from .archive import DTYPES, Array

_PLAIN = (type(None), bool, str)


_STATELESS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, type)


_LARGEST = 10**300  # a longer integer takes longer to read than it is worth


_DEEPEST = 64  # of values in each other: what is read calls more functions for each than what is written


Node = Any


def key(name: str) -> str:
    """Return the key of an array under `name`: the name itself, but for what would look like a path."""
    return quote(name, safe="", errors="surrogatepass").replace(".npy", "%2Enpy")


class Encoder:
    """Turns values into nodes, and sets their arrays aside.

    Attributes
    ----------
    arrays : list of (str, array)
        The arrays of all values so far, by the path to them.
    """

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self._found: dict[int, tuple[Any, list[str]]] = {}  # by id, which holds as long as the object is kept here

    def value(self, value: Any, stem: str, objects: bool = False) -> Node:
        """Return `value` as a node; the keys of its arrays begin with `stem`.

        With `objects`, what can be called is stored as the name of its class and its attributes.

        Raises
        ------
        TypeError
            If there is something in it that has no place in such a file.
        """
        if stem.count("/") > _DEEPEST:
            raise TypeError(f"{stem[:60]}... is nested more than {_DEEPEST} deep")
        if type(value) in _PLAIN or (type(value) is int and abs(value) < _LARGEST):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, np.generic) and value.dtype.name in DTYPES:
            return {"scalar": [value.dtype.name, self.value(value.item(), stem)]}
        if type(value) in (NDArray, RowSparseNDArray, np.ndarray) and np.dtype(value.dtype).name in DTYPES:
            return self._array(value, stem)
        if isinstance(value, (tuple, list)):
            parts = [self.value(part, f"{stem}/{i}", objects) for i, part in enumerate(value)]
            if isinstance(value, tuple):
                return {"tuple": parts}
            self.noted(stem, value)
            return parts
        if isinstance(value, dict) and all(map(_can_be_key, value)):
            pairs = [[name, self.value(part, f"{stem}/{_token(name)}", objects)] for name, part in value.items()]
            self.noted(stem, value)
            return {"dict": pairs}
        if objects and callable(value):
            return self._object(value, stem)
        raise TypeError(f"{stem} is {_text(value)} of type {type(value).__name__}")

    def shared(self) -> list[list[str]]:
        """Return the paths that lead to one array, list or dict, for each that more than one path leads to."""
        seen: set[str] = set()
        groups = []
        for _, stems in self._found.values():
            stems = [stem for stem in dict.fromkeys(stems) if stem not in seen]
            if len(stems) > 1:
                groups.append(stems)
                seen.update(stems)
        return groups

    def noted(self, stem: str, value: Any) -> None:
        """Let `shared` know that `value` is what is stored under `stem`."""
        self._found.setdefault(id(value), (value, []))[1].append(stem)

    def also(self, value: Any, stem: str) -> None:
        """Let `shared` know that `value` and its parts are other copies of what is stored under `stem`."""
        count = len(self.arrays)
        self.value(value, stem)
        del self.arrays[count:]

    def _array(self, value: Any, stem: str) -> Node:
        self.noted(stem, value)
        name, shape = np.dtype(value.dtype).name, list(value.shape)
        if isinstance(value, RowSparseNDArray):
            self.arrays += [(f"{stem}/data", value.data), (f"{stem}/indices", value.indices)]
            return {"row_sparse": [name, shape, value.indices.shape[0]]}
        if isinstance(value, np.ndarray):
            self.arrays.append((stem, np.asarray(value, name)))  # in the byte order of this machine
            return {"numpy": [name, shape]}
        self.arrays.append((stem, value))
        return {"array": [name, shape]}

    def _object(self, value: Any, stem: str) -> Node:
        if isinstance(value, types.MethodType) and not isinstance(value.__self__, type):
            # What it is a method of may be no function itself.
            parts = {"__self__": self._object(value.__self__, f"{stem}/__self__")}
        elif isinstance(value, functools.partial):
            parts = {"func": self._object(value.func, f"{stem}/func")}
        elif isinstance(value, _STATELESS):
            parts = {}
        else:
            attributes = attributes_of(value)
            check_settings(type(value), attributes)
            parts = {name: self.value(part, f"{stem}/{key(name)}", True) for name, part in attributes.items()}
        return {"object": [class_name(value), parts]}


def _can_be_key(name: Any) -> bool:
    return type(name) in _PLAIN or (type(name) is int and abs(name) < _LARGEST)


def _token(name: Any) -> str:
    """Return the part of a key that stands for a dict's key; 1 and '1' differ."""
    return key(name) if isinstance(name, str) else f"={name!r}"


def _text(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        text = "too long a number"
    return text if len(text) <= 60 else f"{text[:60]}..."
