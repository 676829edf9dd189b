"""What an optimizer keeps, as JSON, and back: numbers and text as they are, arrays set aside under the path to them.

A number, a str, True, False and None stand for themselves, a JSON array for a list; everything else is an object with
one key, its kind: ``{"tuple": [...]}``, ``{"array": ["float32", [64, 3, 7, 7]]}``.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
import numbers
import types
from typing import Any, Callable, Collection, Dict, Tuple
from urllib.parse import quote

import numpy as np
from mxnet import nd
from mxnet.context import Context
from mxnet.ndarray import NDArray
from mxnet.ndarray.sparse import RowSparseNDArray

from .statefile import DTYPES, Array, Reader

ANYTHING = object()  # what any value fits
_PLAIN = (type(None), bool, str)
_STATELESS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, type)
_LARGEST = 10**300  # a longer integer takes longer to read than it is worth
Node = Any
Update = Tuple[Any, Dict[str, Any]]  # an object, and what its attributes are to be


def key(name: str) -> str:
    """Return the key of an array under `name`: the name itself, but for what would look like a path."""
    return quote(name, safe="").replace(".npy", "%2Enpy")


def class_name(value: Any) -> str:
    """Return the name of the class of `value`, without its module: a class that was moved is still the same."""
    return type(value).__name__


def pack(value: Any, stem: str, arrays: list[Array], objects: bool = False) -> Node:
    """Return `value` as a node; its arrays are added to `arrays`, with keys that begin with `stem`.

    With `objects`, what can be called is stored as the name of its class and its attributes.

    Raises
    ------
    TypeError
        If there is something in it that has no place in such a file.
    """
    go = functools.partial(pack, arrays=arrays, objects=objects)
    if type(value) in _PLAIN or (type(value) is int and abs(value) < _LARGEST):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, np.generic) and value.dtype.name in DTYPES:
        return {"scalar": [value.dtype.name, go(value.item(), stem)]}
    if type(value) in (NDArray, RowSparseNDArray, np.ndarray) and np.dtype(value.dtype).name in DTYPES:
        return _pack_array(value, stem, arrays)
    if isinstance(value, (tuple, list)):
        parts = [go(part, f"{stem}/{i}") for i, part in enumerate(value)]
        return parts if isinstance(value, list) else {"tuple": parts}
    if isinstance(value, dict) and all(type(name) in (int, *_PLAIN) for name in value):
        return {"dict": [[name, go(part, f"{stem}/{_token(name)}")] for name, part in value.items()]}
    if objects and callable(value):
        kept = {} if isinstance(value, _STATELESS) else vars(value)
        return {"object": [class_name(value), {name: go(part, f"{stem}/{key(name)}") for name, part in kept.items()}]}
    raise TypeError(f"{stem} is {value!r} of type {type(value).__name__}")


def _pack_array(value: Any, stem: str, arrays: list[Array]) -> Node:
    name, shape = np.dtype(value.dtype).name, list(value.shape)
    if isinstance(value, RowSparseNDArray):
        arrays += [(f"{stem}/data", value.data), (f"{stem}/indices", value.indices)]
        return {"row_sparse": [name, shape, value.indices.shape[0]]}
    arrays.append((stem, value))
    return {"numpy" if isinstance(value, np.ndarray) else "array": [name, shape]}


def _token(name: Any) -> str:
    """Return the part of a key that stands for a dict's key; 1 and '1' differ."""
    return key(name) if isinstance(name, str) else f"={name!r}"


class Unpacker:
    """Turns nodes of one file into values again; none of it is believed.

    Parameters
    ----------
    reader : Reader
        The file.
    context : Context
        Where the arrays are to be.

    Attributes
    ----------
    fills : bool
        Whether what a value is to be like was made for it alone, and is the place for its arrays.
    updates : list of (object, dict)
        What the attributes of objects are to be, which are there already and of which only these are in the file.
    """

    def __init__(self, reader: Reader, context: Context) -> None:
        self._reader = reader
        self._context = context
        self.fills = False
        self.updates: list[Update] = []
        self._kinds: dict[str, Callable[[Any, str, Any], Any]] = {
            "float": self._float,
            "scalar": self._scalar,
            "array": self._array,
            "numpy": self._numpy,
            "row_sparse": self._row_sparse,
            "tuple": self._tuple,
            "dict": self._dict,
            "object": self._object,
        }

    def value(self, node: Node, stem: str, like: Any = ANYTHING) -> Any:
        """Return the value of `node`, whose arrays are of the shape, dtype and place of those in `like`.

        Raises
        ------
        ValueError
            If it does not fit, or the file is damaged.
        """
        if isinstance(node, (bool, int, float, str)) or node is None:
            if like is None or node is None:
                self._expect(like is ANYTHING or like is node, node, stem, like)
            else:
                self._expect(like is ANYTHING or isinstance(like, (numbers.Number, np.generic, str)), node, stem, like)
            return node
        if isinstance(node, list):
            self._expect(like is ANYTHING or isinstance(like, list), node, stem, like)
            # A list may have grown since it was made, and None in it become something.
            made = [ANYTHING if part is None else part for part in like] if isinstance(like, list) else []
            made += [ANYTHING] * (len(node) - len(made))
            return [self.value(part, f"{stem}/{i}", made[i]) for i, part in enumerate(node)]
        kind, content = next(iter(node.items())) if isinstance(node, dict) and len(node) == 1 else ("", None)
        if kind not in self._kinds:
            raise self._reader.damaged(f"{stem!r} is of no kind that is known")
        return self._kinds[kind](content, stem, like)

    def _expect(self, fits: bool, node: Node, stem: str, like: Any) -> None:
        if not fits:
            raise ValueError(
                f"{stem!r} is {json.dumps(node)[:60]} in the file, where the optimizer of this trainer keeps "
                f"{_describe(like)}"
            )

    def _float(self, content: Any, stem: str, like: Any) -> float:
        if content not in ("nan", "inf", "-inf"):
            raise self._reader.damaged(f"{stem!r} is no number")
        return self.value(float(content), stem, like)

    def _scalar(self, content: Any, stem: str, like: Any) -> Any:
        dtype, node = self._parts(content, stem, 2)
        number = self.value(node, stem, like)
        if not isinstance(number, (bool, int, float)):
            raise self._reader.damaged(f"{stem!r} is no number")
        try:
            return self._dtype(dtype, stem).type(number)
        except (OverflowError, ValueError) as error:
            raise self._reader.damaged(f"{stem!r} is no {dtype}") from error

    def _array(self, content: Any, stem: str, like: Any) -> NDArray:
        dtype, shape = self._array_parts(content, stem, 2)
        if like is not ANYTHING:
            self._expect(type(like) is NDArray and _is(like, dtype, shape), {"array": content}, stem, like)
        data = self._reader.array(stem, dtype, shape)
        if self.fills and like is not ANYTHING:
            like[:] = data
            return like
        return nd.array(data, ctx=self._context if like is ANYTHING else like.context, dtype=dtype)

    def _numpy(self, content: Any, stem: str, like: Any) -> np.ndarray:
        dtype, shape = self._array_parts(content, stem, 2)
        if like is not ANYTHING:
            self._expect(isinstance(like, np.ndarray) and _is(like, dtype, shape), {"numpy": content}, stem, like)
        return self._reader.array(stem, dtype, shape).copy()

    def _row_sparse(self, content: Any, stem: str, like: Any) -> RowSparseNDArray:
        dtype, shape = self._array_parts(content[:2] if isinstance(content, list) else content, stem, 2)
        rows = self._parts(content, stem, 3)[2]
        if like is not ANYTHING:
            fits = isinstance(like, RowSparseNDArray) and _is(like, dtype, shape)
            self._expect(fits, {"row_sparse": content}, stem, like)
        if not (shape and type(rows) is int and 0 <= rows <= shape[0]):
            raise self._reader.damaged(f"{stem!r} has no {rows!r} rows")
        indices = self._reader.array(f"{stem}/indices", "int64", (rows,)).copy()
        data = self._reader.array(f"{stem}/data", dtype, (rows, *shape[1:]))
        if rows and not (indices[0] >= 0 and indices[-1] < shape[0] and (np.diff(indices) > 0).all()):
            raise self._reader.damaged(f"{stem!r} has rows that are none of its {shape[0]}, or not in order")
        context = self._context if like is ANYTHING else like.context
        return nd.sparse.row_sparse_array((data, indices), shape=shape, ctx=context, dtype=dtype)

    def _tuple(self, content: Any, stem: str, like: Any) -> tuple[Any, ...]:
        parts = self._parts(content, stem)
        if like is ANYTHING:
            like = (ANYTHING,) * len(parts)
        self._expect(isinstance(like, tuple) and len(like) == len(parts), {"tuple": parts}, stem, like)
        values = tuple(self.value(part, f"{stem}/{i}", like[i]) for i, part in enumerate(parts))
        return of_type(like, values)

    def _dict(self, content: Any, stem: str, like: Any) -> dict[Any, Any]:
        self._expect(like is ANYTHING or isinstance(like, dict), {"dict": content}, stem, like)
        found: dict[Any, Any] = {}
        for pair in self._parts(content, stem):
            name, node = self._parts(pair, stem, 2)
            if not isinstance(name, (int, *_PLAIN)) or name in found:
                raise self._reader.damaged(f"{stem!r} has {name!r} twice, or as a key")
            made = like.get(name) if isinstance(like, dict) else None
            found[name] = self.value(node, f"{stem}/{_token(name)}", ANYTHING if made is None else made)
        return of_type(like, found)

    def _object(self, content: Any, stem: str, like: Any) -> Any:
        name, nodes = self._parts(content, stem, 2)
        if like is ANYTHING or not callable(like) or class_name(like) != name or not isinstance(nodes, dict):
            raise ValueError(
                f"{stem!r} is an object of class {name!r} in the file, and {_describe(like)} in this trainer"
            )
        if not isinstance(like, _STATELESS):
            self.updates.append((like, self.attributes(nodes, vars(like), (), type(like), stem)))
        return like

    def attributes(
        self, nodes: dict[str, Node], now: dict[str, Any], barred: Collection[str], kind: type, stem: str
    ) -> dict[str, Any]:
        """Return the attributes of an object of class `kind`, which has those of `now` and may get others in time."""
        lacking = sorted(set(now).difference(nodes))
        if lacking:
            raise ValueError(
                f"the file has no {lacking[0]!r} of {kind.__name__}: it was saved by another version of that class, or "
                "before that attribute came to be"
            )
        more = [name for name in nodes if name in barred or (name not in now and not _can_be_added(name, kind))]
        if more:
            raise self._reader.damaged(f"{more[0]!r} is no attribute to set of {kind.__name__}")
        return {name: self.attribute(node, f"{stem}/{key(name)}", now.get(name)) for name, node in nodes.items()}

    def attribute(self, node: Node, stem: str, now: Any) -> Any:
        """Return the value of an attribute, of much the same kind as it is now; a number may be None or an array."""
        value = self.value(node, stem, now if _has_objects(node) else ANYTHING)
        if now is not None and value is not None:
            self._expect(_rough_kind(now) == _rough_kind(value), node, stem, now)
        return of_type(now, value)

    def _parts(self, content: Any, stem: str, count: int | None = None) -> list[Any]:
        if not isinstance(content, list) or (count is not None and len(content) != count):
            raise self._reader.damaged(f"{stem!r} has parts missing")
        return content

    def _array_parts(self, content: Any, stem: str, count: int) -> tuple[str, tuple[int, ...]]:
        dtype, shape = self._parts(content, stem, count)
        if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
            raise self._reader.damaged(f"{stem!r} has no shape")
        return self._dtype(dtype, stem).name, tuple(shape)

    def _dtype(self, name: Any, stem: str) -> np.dtype:
        if name not in DTYPES:
            raise self._reader.damaged(f"{stem!r} has no dtype")
        return np.dtype(name)


def moved(value: Any, context: Context) -> Any:
    """Return a state with its arrays on `context`."""
    if isinstance(value, NDArray):
        return value.as_in_context(context)
    if isinstance(value, dict):
        return of_type(value, {name: moved(part, context) for name, part in value.items()})
    if isinstance(value, tuple):
        return of_type(value, tuple(moved(part, context) for part in value))
    return [moved(part, context) for part in value] if isinstance(value, list) else value


def of_type(like: Any, value: Any) -> Any:
    """Return `value` as the kind of dict or of tuple that `like` is."""
    if isinstance(like, tuple) and isinstance(value, tuple) and hasattr(like, "_make"):
        return like._make(value)
    if isinstance(like, dict) and isinstance(value, dict) and type(like) is not dict:
        made = copy.copy(like)
        made.clear()
        made.update(value)
        return made
    return value


def _is(like: Any, dtype: str, shape: tuple[int, ...]) -> bool:
    return like.shape == shape and np.dtype(like.dtype).name == dtype


def _describe(value: Any) -> str:
    if isinstance(value, (NDArray, np.ndarray)):
        return f"{class_name(value)} {np.dtype(value.dtype).name} {value.shape}"
    return f"{class_name(value)} {value!r}"[:60]


def _rough_kind(value: Any) -> Any:
    if isinstance(value, (numbers.Number, np.generic, NDArray, np.ndarray)):
        return numbers.Number
    return next((kind for kind in (str, list, tuple, dict) if isinstance(value, kind)), object)


def _has_objects(node: Node) -> bool:
    if isinstance(node, dict):
        return "object" in node or any(map(_has_objects, node.values()))
    return isinstance(node, list) and any(map(_has_objects, node))


def _can_be_added(name: str, kind: type) -> bool:
    """Whether `name` hides no method or property of a class."""
    here = inspect.getattr_static(kind, name, None)
    return name.isidentifier() and not (callable(here) or hasattr(here, "__get__"))
