"""What an optimizer keeps, as JSON, and back: numbers and text as they are, arrays set aside under the path to them.

A number, a str, True, False and None stand for themselves, a JSON array for a list; everything else is an object with
one key, its kind: ``{"tuple": [...]}``, ``{"array": ["float32", [64, 3, 7, 7]]}``.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import numbers
import types
import warnings
from typing import Any, Callable, Collection, NamedTuple

import numpy as np
from mxnet import nd
from mxnet.context import Context
from mxnet.ndarray import NDArray
from mxnet.ndarray.sparse import RowSparseNDArray

from ..multipliers.object_state import (
    attributes_of,
    check_settings,
    check_turns,
    class_name,
    of_type,
    same,
    settings_of,
)
from .archive import DTYPES, Reader
from .encoding import _PLAIN, _STATELESS, Node, _token, key

ANYTHING = object()  # what any value fits


DTYPES_OF_MXNET = frozenset((np.bool_, np.int8, np.int32, np.int64, np.uint8, np.float16, np.float32, np.float64))


_MOST_AXES = 32  # NumPy has no array of more


_MUTABLE = (NDArray, np.ndarray, list, dict)


class Update(NamedTuple):
    """What becomes of an object that is there already."""

    thing: Any
    attributes: dict[str, Any]  # what these are to be
    gone: Collection[str] = ()  # what it is not to have any more

    def make(self) -> None:
        """Change the object."""
        for name in self.gone:
            del vars(self.thing)[name]
        vars(self.thing).update(self.attributes)


class Decoder:
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
    shared : dict of str to list of str
        For each path that leads to the same array, list or dict as others do: all of them, if what is there is equal.
    updates : list of Update
        What is to become of objects that are there already, and of which only the attributes are in the file.
    num_update : int
        The update that schedules were last asked for.
    """

    def __init__(self, reader: Reader, context: Context) -> None:
        self._reader = reader
        self._context = context
        self.fills = False
        self.shared: dict[str, list[str]] = {}
        self._found: dict[str, Any] = {}
        self.updates: list[Update] = []
        self.num_update = 0
        self._kinds: dict[str, Callable[[Any, str, Any], Any]] = {
            "plain": self._plain,
            "float": self._float,
            "scalar": self._scalar,
            "array": self._array,
            "numpy": self._numpy,
            "row_sparse": self._row_sparse,
            "list": self._list,
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
        return self.noted(stem, self._value(node, stem, like))

    def _value(self, node: Node, stem: str, like: Any) -> Any:
        kind, content = _kind(node)
        if kind not in self._kinds:
            raise self._reader.damaged(f"{stem!r} is of no kind that is known")
        self._expect(like is ANYTHING or _fits(node, like), node, stem, like)
        return self._kinds[kind](content, stem, like)

    def noted(self, stem: str, value: Any) -> Any:
        """Return `value`, read under `stem`, or what was read under another path to the same thing."""
        first = next((self._found[other] for other in self.shared.get(stem, ()) if other in self._found), None)
        if first is not None and same(first, value):
            value = first
        if isinstance(value, _MUTABLE):
            self._found[stem] = value
        return value

    def _expect(self, fits: bool, node: Node, stem: str, like: Any) -> None:
        if not fits:
            raise ValueError(
                f"{stem!r} is {json.dumps(node)[:60]} in the file, where the optimizer of this trainer keeps "
                f"{_describe(like)}"
            )

    def _plain(self, content: Any, stem: str, like: Any) -> Any:
        return content

    def _float(self, content: Any, stem: str, like: Any) -> float:
        if content not in ("nan", "inf", "-inf"):
            raise self._reader.damaged(f"{stem!r} is no number")
        return float(content)

    def _scalar(self, content: Any, stem: str, like: Any) -> Any:
        dtype, node = self._parts(content, stem, 2)
        kind = _kind(node)[0]
        number = self.value(node, stem) if kind in ("plain", "float") else None
        if not isinstance(number, (bool, int, float)):
            raise self._reader.damaged(f"{stem!r} is no number")
        try:
            return self._dtype(dtype, stem).type(number)
        except (OverflowError, ValueError) as error:
            raise self._reader.damaged(f"{stem!r} is no {dtype}") from error

    def _array(self, content: Any, stem: str, like: Any) -> NDArray:
        dtype, shape = self._array_parts(content, stem, 2)
        if np.dtype(dtype).type not in DTYPES_OF_MXNET:
            raise self._reader.damaged(f"{stem!r} is of dtype {dtype}, which MXNet has not")
        data = self._reader.array(stem, dtype, shape)
        if self.fills and like is not ANYTHING:
            like[:] = data
            return like
        return nd.array(data, ctx=self._context if like is ANYTHING else like.context, dtype=dtype)

    def _numpy(self, content: Any, stem: str, like: Any) -> np.ndarray:
        dtype, shape = self._array_parts(content, stem, 2)
        return self._reader.array(stem, dtype, shape).copy()

    def _row_sparse(self, content: Any, stem: str, like: Any) -> RowSparseNDArray:
        dtype, shape = self._array_parts(content[:2] if isinstance(content, list) else content, stem, 2)
        rows = self._parts(content, stem, 3)[2]
        if not (shape and type(rows) is int and 0 <= rows <= shape[0]):
            raise self._reader.damaged(f"{stem!r} has no {rows!r} rows")
        indices = self._reader.array(f"{stem}/indices", "int64", (rows,)).copy()
        data = self._reader.array(f"{stem}/data", dtype, (rows, *shape[1:]))
        if rows and not (indices[0] >= 0 and indices[-1] < shape[0] and (np.diff(indices) > 0).all()):
            raise self._reader.damaged(f"{stem!r} has rows that are none of its {shape[0]}, or not in order")
        context = self._context if like is ANYTHING else like.context
        return nd.sparse.row_sparse_array((data, indices), shape=shape, ctx=context, dtype=dtype)

    def _list(self, content: Any, stem: str, like: Any) -> list[Any]:
        made = like if isinstance(like, list) else []
        return [
            self._part(part, f"{stem}/{i}", made[i] if i < len(made) else ANYTHING) for i, part in enumerate(content)
        ]

    def _part(self, node: Node, stem: str, like: Any) -> Any:
        """Return a part of a list or a dict, which may have become anything since these were made."""
        return self.value(node, stem, like if like is ANYTHING or _fits(node, like, throughout=True) else ANYTHING)

    def _tuple(self, content: Any, stem: str, like: Any) -> tuple[Any, ...]:
        parts = self._parts(content, stem)
        made = (ANYTHING,) * len(parts) if like is ANYTHING else like
        return of_type(like, tuple(self.value(part, f"{stem}/{i}", made[i]) for i, part in enumerate(parts)))

    def _dict(self, content: Any, stem: str, like: Any) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for pair in self._parts(content, stem):
            name, node = self._parts(pair, stem, 2)
            if not isinstance(name, (int, *_PLAIN)) or name in found:
                raise self._reader.damaged(f"{stem!r} has {name!r} twice, or as a key")
            made = like.get(name, ANYTHING) if isinstance(like, dict) else ANYTHING
            found[name] = self._part(node, f"{stem}/{_token(name)}", made)
        return of_type(like, found)

    def _object(self, content: Any, stem: str, like: Any, call: Callable[..., Any] | None = None) -> Any:
        name, nodes = self._parts(content, stem, 2)
        call = call or like
        if like is ANYTHING or not callable(call) or class_name(like) != name or not isinstance(nodes, dict):
            raise ValueError(
                f"{stem!r} is an object of class {name!r} in the file, and {_describe(like)} in this trainer"
            )
        if isinstance(like, types.MethodType) and "__self__" in nodes:
            self._object(self._object_parts(nodes, "__self__", stem), f"{stem}/__self__", like.__self__, like.__func__)
        elif isinstance(like, functools.partial) and "func" in nodes:
            self._object(self._object_parts(nodes, "func", stem), f"{stem}/func", like.func)
        elif isinstance(like, types.MethodType) and not isinstance(like.__self__, type):
            warnings.warn(
                f"{self._reader.path} was saved by an earlier version, and does not say what the {_describe(like)} "
                "keeps: it goes on as it is",
                stacklevel=2,
            )
        elif not isinstance(like, _STATELESS):
            self._update(like, nodes, stem, call)
        return like

    def _object_parts(self, nodes: dict[str, Node], name: str, stem: str) -> Any:
        kind, content = _kind(nodes[name])
        if kind != "object":
            raise self._reader.damaged(f"{name!r} of {stem!r} is no object")
        return content

    def _update(self, thing: Any, nodes: dict[str, Node], stem: str, call: Callable[..., Any]) -> None:
        """Note what is to become of an object; what it did not have yet when it was saved goes, if a call makes it."""
        now = attributes_of(thing)
        gone = set(now).difference(nodes)
        here = {name: value for name, value in now.items() if name not in gone}
        attributes = self.attributes(nodes, here, (), type(thing), stem)
        if gone and not self._makes(thing, attributes, call, gone):
            raise _lacking(gone, type(thing))
        self.updates.append(Update(thing, attributes, gone))

    def _makes(self, thing: Any, attributes: dict[str, Any], call: Callable[..., Any], names: set[str]) -> bool:
        """Whether a schedule with those attributes has `names`, too, when it has been asked."""
        check_turns(thing, attributes, self.num_update)
        try:
            asked = copy.copy(thing)
            vars(asked).clear()
            vars(asked).update(attributes)
            asked = copy.deepcopy(asked)  # with the objects that it keeps: these are the trainer's own
            asked(self.num_update + 1) if call is thing else call(asked, self.num_update + 1)
        except Exception:
            return False
        return names <= vars(asked).keys()

    def attributes(
        self, nodes: dict[str, Node], now: dict[str, Any], barred: Collection[str], kind: type, stem: str
    ) -> dict[str, Any]:
        """Return the attributes of an object of class `kind`, which has those of `now` and may get others in time."""
        lacking = set(now).difference(nodes)
        if lacking:
            raise _lacking(lacking, kind)
        more = [name for name in nodes if name in barred or (name not in now and not can_be_added(name, kind))]
        if more:
            raise self._reader.damaged(f"{more[0]!r} is no attribute to set of {kind.__name__}")
        found = {
            name: self._attribute(node, f"{stem}/{key(name)}", now.get(name), name in settings_of(kind))
            for name, node in nodes.items()
        }
        try:
            check_settings(kind, found)
        except ValueError as error:
            raise self._reader.damaged(str(error)) from error
        return found

    def _attribute(self, node: Node, stem: str, now: Any, is_setting: bool) -> Any:
        """Return the value of an attribute; a setting stays a number, if it is one, an array, or None."""
        value = of_type(now, self._value(node, stem, now if _has_objects(node) else ANYTHING))
        if now is not None and value is not None and (is_setting or _rough_kind(now) is object):
            self._expect(_rough_kind(now) == _rough_kind(value), node, stem, now)
        return self.noted(stem, value)

    def _parts(self, content: Any, stem: str, count: int | None = None) -> list[Any]:
        if not isinstance(content, list) or (count is not None and len(content) != count):
            raise self._reader.damaged(f"{stem!r} has parts missing")
        return content

    def _array_parts(self, content: Any, stem: str, count: int) -> tuple[str, tuple[int, ...]]:
        dtype, shape = self._parts(content, stem, count)
        if not is_shape(shape):
            raise self._reader.damaged(f"{stem!r} has no shape")
        return self._dtype(dtype, stem).name, tuple(shape)

    def _dtype(self, name: Any, stem: str) -> np.dtype:
        if name not in DTYPES:
            raise self._reader.damaged(f"{stem!r} has no dtype")
        return np.dtype(name)


def is_shape(value: Any) -> bool:
    """Whether a JSON value is the shape of an array."""
    return (
        isinstance(value, list)
        and len(value) <= _MOST_AXES
        and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def _lacking(names: Collection[str], kind: type) -> ValueError:
    return ValueError(
        f"the file has no {min(names)!r} of {kind.__name__}: it was saved by another version of that class, or before "
        "that attribute came to be"
    )


def _kind(node: Node) -> tuple[str, Any]:
    """Return what kind of value a node is of, and what it has to say of it."""
    if isinstance(node, (bool, int, float, str)) or node is None:
        return "plain", node
    if isinstance(node, list):
        return "list", node
    kind, content = next(iter(node.items())) if isinstance(node, dict) and len(node) == 1 else ("", None)
    return ("", None) if kind in ("plain", "list") else (kind, content)


def _fits(node: Node, like: Any, throughout: bool = False) -> bool:
    """Whether a value of the kind of `node` can take the place of `like`; `throughout`, the parts of tuples, too."""
    kind, content = _kind(node)
    if kind == "plain" and (node is None or like is None):
        return node is like
    if kind in ("plain", "float", "scalar"):
        return isinstance(like, (numbers.Number, np.generic, str))
    if kind in ("array", "numpy", "row_sparse"):
        expected = {"array": NDArray, "numpy": np.ndarray, "row_sparse": RowSparseNDArray}[kind]
        fits = isinstance(like, np.ndarray) if kind == "numpy" else type(like) is expected
        return fits and isinstance(content, list) and content[:2] == [np.dtype(like.dtype).name, list(like.shape)]
    if kind == "tuple":
        if not (isinstance(like, tuple) and isinstance(content, list) and len(like) == len(content)):
            return False
        return not throughout or all(_fits(part, made, throughout) for part, made in zip(content, like))
    if kind in ("list", "dict"):
        return isinstance(like, list if kind == "list" else dict)
    return True  # an object, of which more than this is looked at


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


def can_be_added(name: str, kind: type) -> bool:
    """Whether `name` hides no method or property of a class."""
    here = inspect.getattr_static(kind, name, None)
    return name.isidentifier() and not (callable(here) or hasattr(here, "__get__"))
