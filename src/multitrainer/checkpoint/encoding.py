"""Encode values as JSON nodes, with their arrays set aside.

A number, a str, True, False and None stand for themselves, and a JSON array for a list. Any other node is an object
with one key, the kind of the value: ``{"tuple": [...]}``, ``{"array": ["float32", [64, 3, 7, 7]]}``.
"""

from __future__ import annotations

import functools
import math
import types
from typing import Any

import numpy as np
from mxnet.ndarray import NDArray
from mxnet.ndarray.sparse import RowSparseNDArray

from ..multipliers.object_state import attributes_of, check_settings, class_name
from .archive import DTYPES, Array
from .paths import SharedPaths, component, key_component

Node = Any
PLAIN = (type(None), bool, str)
STATELESS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, type)

_INT_LIMIT = 10**300  # the archive refuses longer integers
_MAX_DEPTH = 64  # of nested values; decoding needs more stack for each level than encoding


class Encoder:
    """Encodes values of one file.

    Attributes
    ----------
    arrays : list of (str, array)
        The arrays of all values so far, with their paths.
    shared : SharedPaths
        The paths to all arrays, lists and dicts so far.
    """

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self.shared = SharedPaths()

    def encode(self, value: Any, path: str) -> Node:
        """Encode `value` as a node; the paths of its arrays begin with `path`.

        Raises
        ------
        TypeError
            If a part of it cannot be stored in a file.
        """
        if path.count("/") > _MAX_DEPTH:
            raise TypeError(f"{path[:60]}... is nested more than {_MAX_DEPTH} deep")
        if _is_plain(value):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, np.generic) and value.dtype.name in DTYPES:
            return {"scalar": [value.dtype.name, self.encode(value.item(), path)]}
        if type(value) in (NDArray, RowSparseNDArray, np.ndarray) and np.dtype(value.dtype).name in DTYPES:
            return self._encode_array(value, path)
        if isinstance(value, (tuple, list)):
            parts = [self.encode(part, f"{path}/{i}") for i, part in enumerate(value)]
            if isinstance(value, tuple):
                return {"tuple": parts}
            self.shared.add(path, value)
            return parts
        if isinstance(value, dict) and all(map(_is_plain, value)):
            pairs = [[key, self.encode(part, f"{path}/{key_component(key)}")] for key, part in value.items()]
            self.shared.add(path, value)
            return {"dict": pairs}
        return self._encode_other(value, path)

    def add_replica(self, value: Any, path: str) -> None:
        """Record that `value` is a copy, for another context, of what is stored at `path`."""
        count = len(self.arrays)
        self.encode(value, path)
        del self.arrays[count:]

    def _encode_array(self, value: Any, path: str) -> Node:
        self.shared.add(path, value)
        dtype, shape = np.dtype(value.dtype).name, list(value.shape)
        if isinstance(value, RowSparseNDArray):
            self.arrays += [(f"{path}/data", value.data), (f"{path}/indices", value.indices)]
            return {"row_sparse": [dtype, shape, value.indices.shape[0]]}
        if isinstance(value, np.ndarray):
            self.arrays.append((path, np.asarray(value, dtype)))  # in the byte order of this machine
            return {"numpy": [dtype, shape]}
        self.arrays.append((path, value))
        return {"array": [dtype, shape]}

    def _encode_other(self, value: Any, path: str) -> Node:
        raise TypeError(f"{path} is {_shortened_repr(value)} of type {class_name(value)}")


class ObjectEncoder(Encoder):
    """Encodes callable objects too, such as schedulers: the name of the class, and the attributes.

    Parameters
    ----------
    encoder : Encoder
        The encoder of the same file, whose arrays and shared paths it adds to.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.arrays, self.shared = encoder.arrays, encoder.shared

    def _encode_other(self, value: Any, path: str) -> Node:
        return self._encode_object(value, path) if callable(value) else super()._encode_other(value, path)

    def _encode_object(self, value: Any, path: str) -> Node:
        if isinstance(value, types.MethodType) and not isinstance(value.__self__, type):
            # The object that it is a method of need not be callable.
            parts = {"__self__": self._encode_object(value.__self__, f"{path}/__self__")}
        elif isinstance(value, functools.partial):
            parts = {"func": self._encode_object(value.func, f"{path}/func")}
        elif isinstance(value, STATELESS):
            parts = {}
        else:
            attributes = attributes_of(value)
            check_settings(type(value), attributes)
            parts = {name: self.encode(part, f"{path}/{component(name)}") for name, part in attributes.items()}
        return {"object": [class_name(value), parts]}


def _is_plain(value: Any) -> bool:
    return type(value) in PLAIN or (type(value) is int and abs(value) < _INT_LIMIT)


def _shortened_repr(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        text = "an integer of too many digits"
    return text if len(text) <= 60 else f"{text[:60]}..."
