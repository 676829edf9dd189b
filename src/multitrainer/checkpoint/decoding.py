"""Decode JSON nodes to values; the file is not trusted. See `encoding` for the format."""

from __future__ import annotations

import json
import numbers
from typing import Any, Callable, Sequence

import numpy as np
from mxnet import nd
from mxnet.context import Context
from mxnet.ndarray import NDArray
from mxnet.ndarray.sparse import RowSparseNDArray

from ..multipliers.object_state import class_name, with_type_of
from .archive import DTYPES, Reader
from .encoding import PLAIN, Node
from .paths import SharedValues, key_component

ANYTHING = object()  # the template that any value fits
_MXNET_DTYPES = frozenset((np.bool_, np.int8, np.int32, np.int64, np.uint8, np.float16, np.float32, np.float64))
_MAX_AXES = 32  # of a NumPy array


class Decoder:
    """Decodes the nodes of one file.

    A value must be able to take the place of its template, if it has one: arrays get the same shape, dtype and context.

    Parameters
    ----------
    reader : Reader
        The file.
    context : Context
        The context of arrays that have no template.
    shared : SharedValues
        The values of the file so far.
    decode_object : callable
        Decodes the content of an "object" node, given its path and template.
    """

    def __init__(
        self,
        reader: Reader,
        context: Context,
        shared: SharedValues,
        decode_object: Callable[[Any, str, Any], Any],
    ) -> None:
        self._reader = reader
        self._context = context
        self._shared = shared
        self._decoders: dict[str, Callable[[Any, str, Any], Any]] = {
            "plain": lambda content, path, template: content,
            "float": self._float,
            "scalar": self._scalar,
            "array": self._array,
            "numpy": self._numpy,
            "row_sparse": self._row_sparse,
            "list": self._list,
            "tuple": self._tuple,
            "dict": self._dict,
            "object": decode_object,
        }

    def decode(self, node: Node, path: str, template: Any = ANYTHING) -> Any:
        """Decode the value at `path`; if an equal one shared its object when saved, return that object.

        Raises
        ------
        ValueError
            If the value does not fit the template, or the file is damaged.
        """
        return self._shared.resolve(path, self.decode_separately(node, path, template))

    def decode_separately(self, node: Node, path: str, template: Any) -> Any:
        """Decode the value at `path` as an object of its own; its parts may be shared."""
        kind, content = kind_and_content(node)
        if kind not in self._decoders:
            raise self._reader.damaged(f"{path!r} is of an unknown kind")
        if template is not ANYTHING and not _fits(node, template):
            raise mismatch(node, path, template)
        return self._decoders[kind](content, path, template)

    def items(self, content: Any, path: str, count: int | None = None) -> list[Any]:
        """Check that the content of the node at `path` is a list, of `count` items if that is given."""
        if not isinstance(content, list) or (count is not None and len(content) != count):
            raise self._reader.damaged(f"{path!r} is incomplete")
        return content

    def _float(self, content: Any, path: str, template: Any) -> float:
        if content not in ("nan", "inf", "-inf"):
            raise self._reader.damaged(f"{path!r} is not a number")
        return float(content)

    def _scalar(self, content: Any, path: str, template: Any) -> Any:
        dtype, node = self.items(content, path, 2)
        number = self.decode(node, path) if kind_and_content(node)[0] in ("plain", "float") else None
        if not isinstance(number, (bool, int, float)):
            raise self._reader.damaged(f"{path!r} is not a number")
        scalar_type = self._dtype(dtype, path).type
        try:
            return scalar_type(number)
        except (OverflowError, ValueError) as error:
            raise self._reader.damaged(f"{path!r} is not of dtype {dtype}") from error

    def _array(self, content: Any, path: str, template: Any) -> NDArray:
        dtype, shape = self._dtype_and_shape(content, path)
        if np.dtype(dtype).type not in _MXNET_DTYPES:
            raise self._reader.damaged(f"{path!r} is of dtype {dtype}, which MXNet does not have")
        return self._make_array(self._reader.array(path, dtype, shape), template)

    def _make_array(self, data: np.ndarray, template: Any) -> NDArray:
        return nd.array(data, ctx=self._context_of(template), dtype=data.dtype.name)

    def _numpy(self, content: Any, path: str, template: Any) -> np.ndarray:
        dtype, shape = self._dtype_and_shape(content, path)
        return self._reader.array(path, dtype, shape).copy()

    def _row_sparse(self, content: Any, path: str, template: Any) -> RowSparseNDArray:
        *dtype_and_shape, rows = self.items(content, path, 3)
        dtype, shape = self._dtype_and_shape(dtype_and_shape, path)
        if not (shape and type(rows) is int and 0 <= rows <= shape[0]):
            raise self._reader.damaged(f"{path!r} cannot have {rows!r} rows")
        indices = self._reader.array(f"{path}/indices", "int64", (rows,)).copy()
        data = self._reader.array(f"{path}/data", dtype, (rows, *shape[1:]))
        if rows and not (indices[0] >= 0 and indices[-1] < shape[0] and (np.diff(indices) > 0).all()):
            raise self._reader.damaged(f"the row indices of {path!r} are out of range or out of order")
        return nd.sparse.row_sparse_array((data, indices), shape=shape, ctx=self._context_of(template), dtype=dtype)

    def _list(self, content: Any, path: str, template: Any) -> list[Any]:
        templates = template if isinstance(template, list) else []
        return [
            self._part(node, f"{path}/{i}", templates[i] if i < len(templates) else ANYTHING)
            for i, node in enumerate(content)
        ]

    def _tuple(self, content: Any, path: str, template: Any) -> tuple[Any, ...]:
        nodes = self.items(content, path)
        templates: Sequence[Any] = [ANYTHING] * len(nodes) if template is ANYTHING else template
        return with_type_of(
            template, tuple(self.decode(node, f"{path}/{i}", templates[i]) for i, node in enumerate(nodes))
        )

    def _dict(self, content: Any, path: str, template: Any) -> dict[Any, Any]:
        templates = template if isinstance(template, dict) else {}
        found: dict[Any, Any] = {}
        for pair in self.items(content, path):
            key, node = self.items(pair, path, 2)
            if not isinstance(key, (int, *PLAIN)) or key in found:
                raise self._reader.damaged(f"{path!r} has the key {key!r}, which is not a valid key or occurs twice")
            found[key] = self._part(node, f"{path}/{key_component(key)}", templates.get(key, ANYTHING))
        return with_type_of(template, found)

    def _part(self, node: Node, path: str, template: Any) -> Any:
        """Decode a part of a list or dict, which training may have replaced by a value of any kind."""
        return self.decode(
            node, path, template if template is ANYTHING or _fits_throughout(node, template) else ANYTHING
        )

    def _context_of(self, template: Any) -> Context:
        return self._context if template is ANYTHING else template.context

    def _dtype_and_shape(self, content: Any, path: str) -> tuple[str, tuple[int, ...]]:
        dtype, shape = self.items(content, path, 2)
        if not is_shape(shape):
            raise self._reader.damaged(f"the shape of {path!r} is not valid")
        return self._dtype(dtype, path).name, tuple(shape)

    def _dtype(self, name: Any, path: str) -> np.dtype:
        if name not in DTYPES:
            raise self._reader.damaged(f"the dtype of {path!r} is not valid")
        return np.dtype(name)


class InPlaceDecoder(Decoder):
    """Decodes arrays into the memory of their templates, which nothing else must use."""

    def _make_array(self, data: np.ndarray, template: Any) -> NDArray:
        if template is ANYTHING:
            return super()._make_array(data, template)
        template[:] = data
        return template


def kind_and_content(node: Node) -> tuple[str, Any]:
    """Split a node into the kind of its value and what it says of the value; the kind is '' if it is malformed."""
    if isinstance(node, (bool, int, float, str)) or node is None:
        return "plain", node
    if isinstance(node, list):
        return "list", node
    kind, content = next(iter(node.items())) if isinstance(node, dict) and len(node) == 1 else ("", None)
    return ("", None) if kind in ("plain", "list") else (kind, content)


def contains_object(node: Node) -> bool:
    """Whether a node, or a node inside it, is of kind "object"."""
    if isinstance(node, dict):
        return "object" in node or any(map(contains_object, node.values()))
    return isinstance(node, list) and any(map(contains_object, node))


def is_shape(value: Any) -> bool:
    """Whether a JSON value is the shape of an array."""
    return (
        isinstance(value, list)
        and len(value) <= _MAX_AXES
        and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def mismatch(node: Node, path: str, template: Any) -> ValueError:
    """Create the error that says that the value at `path` cannot take the place of `template`."""
    return ValueError(
        f"{path!r} is {json.dumps(node)[:60]} in the file, but the optimizer of this trainer keeps {describe(template)}"
    )


def describe(value: Any) -> str:
    """Describe a value in an error message: its class, and its dtype and shape or its value."""
    if isinstance(value, (NDArray, np.ndarray)):
        return f"{class_name(value)} {np.dtype(value.dtype).name} {value.shape}"
    return f"{class_name(value)} {value!r}"[:60]


def _fits(node: Node, template: Any) -> bool:
    """Whether a value of the kind of `node` can take the place of `template`, whatever their parts are."""
    kind, content = kind_and_content(node)
    if kind == "plain" and (node is None or template is None):
        return node is template
    if kind in ("plain", "float", "scalar"):
        return isinstance(template, (numbers.Number, np.generic, str))
    if kind in ("array", "numpy", "row_sparse"):
        if kind == "numpy":
            fits = isinstance(template, np.ndarray)
        else:
            fits = type(template) is (NDArray if kind == "array" else RowSparseNDArray)
        expected = [np.dtype(template.dtype).name, list(template.shape)] if fits else None
        return fits and isinstance(content, list) and content[:2] == expected
    if kind == "tuple":
        return isinstance(template, tuple) and isinstance(content, list) and len(template) == len(content)
    if kind in ("list", "dict"):
        return isinstance(template, list if kind == "list" else dict)
    return True  # the decoder of objects checks more than the kind


def _fits_throughout(node: Node, template: Any) -> bool:
    """Whether a value of the kind of `node` can take the place of `template`, and in tuples their parts can, too."""
    kind, content = kind_and_content(node)
    parts = zip(content, template) if kind == "tuple" and _fits(node, template) else ()
    return _fits(node, template) and all(_fits_throughout(part, inner) for part, inner in parts)
