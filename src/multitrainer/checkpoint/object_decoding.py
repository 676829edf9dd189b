"""Decode objects that are callable, such as schedulers, and the attributes of any object.

No object is created: a node of kind "object" names the class of an object that the trainer has already, and its
attributes. These are collected as updates, which are applied when the whole file has been checked.
"""

from __future__ import annotations

import copy
import functools
import inspect
import numbers
import types
import warnings
from typing import Any, Callable, Collection, Mapping, NamedTuple

import numpy as np
from mxnet.context import Context
from mxnet.ndarray import NDArray

from ..multipliers.object_state import (
    attributes_of,
    check_iterations,
    check_settings,
    class_name,
    settings_of,
    with_type_of,
)
from .archive import Reader
from .decoding import ANYTHING, Decoder, contains_object, describe, kind_and_content, mismatch
from .encoding import STATELESS, Node
from .paths import SharedValues, component


class ObjectUpdate(NamedTuple):
    """New values for the attributes of an object."""

    target: Any
    attributes: dict[str, Any]
    removed: Collection[str] = ()

    def apply(self) -> None:
        """Set the attributes, and delete those that the object did not have yet when it was saved."""
        for name in self.removed:
            del vars(self.target)[name]
        vars(self.target).update(self.attributes)


class ObjectDecoder:
    """Decodes attributes of the objects of one trainer.

    Parameters
    ----------
    reader : Reader
        The file.
    context : Context
        The context of arrays for which the trainer has none yet.
    shared : SharedValues
        The values of the file so far.
    num_update : int
        The last update before the file was saved.

    Attributes
    ----------
    shared : SharedValues
        As given.
    values : Decoder
        The decoder of the values in these attributes.
    updates : list of ObjectUpdate
        The updates of the objects decoded so far.
    """

    def __init__(self, reader: Reader, context: Context, shared: SharedValues, num_update: int) -> None:
        self._reader = reader
        self.shared = shared
        self._num_update = num_update
        self.values = Decoder(reader, context, shared, self.decode_object)
        self.updates: list[ObjectUpdate] = []

    def decode_object(self, content: Any, path: str, target: Any) -> Any:
        """Decode a node of kind "object" for the callable `target` of the trainer, and return that."""
        name, nodes = self.values.items(content, path, 2)
        if not callable(target):
            raise _class_mismatch(name, path, target)
        return self._decode_parts(name, nodes, path, target, _call)

    def decode_attributes(
        self, nodes: dict[str, Node], current: Mapping[str, Any], forbidden: Collection[str], kind: type, path: str
    ) -> dict[str, Any]:
        """Decode the attributes of an object of class `kind` that has the `current` ones and may get others later.

        Raises
        ------
        ValueError
            If one of the current attributes is missing, has an unusable value, or is `forbidden`.
        """
        missing = set(current).difference(nodes)
        if missing:
            raise _missing_attributes(missing, kind)
        for name in nodes:
            if name in forbidden or (name not in current and not can_be_added(name, kind)):
                raise self._reader.damaged(f"{name!r} is not an attribute of {kind.__name__} that can be set")
        found = {
            name: self._decode_attribute(
                node, f"{path}/{component(name)}", current.get(name), name in settings_of(kind)
            )
            for name, node in nodes.items()
        }
        try:
            check_settings(kind, found)
        except ValueError as error:
            raise self._reader.damaged(str(error)) from error
        return found

    def _decode_parts(self, name: Any, nodes: Any, path: str, target: Any, call: Callable[[Any, int], Any]) -> Any:
        """Decode what a callable is made of; `call` calls the object that has its attributes, given an update."""
        if class_name(target) != name or not isinstance(nodes, dict):
            raise _class_mismatch(name, path, target)
        if isinstance(target, types.MethodType) and "__self__" in nodes:
            self._decode_inner(nodes, "__self__", path, target.__self__, target.__func__)
        elif isinstance(target, functools.partial) and "func" in nodes:
            self._decode_inner(nodes, "func", path, target.func, _call)
        elif isinstance(target, types.MethodType) and not isinstance(target.__self__, type):
            warnings.warn(
                f"{self._reader.path} was saved by an earlier version, and does not hold the attributes of the "
                f"{describe(target)}: they stay as they are",
                stacklevel=2,
            )
        elif not isinstance(target, STATELESS):
            self._plan_update(target, nodes, path, call)
        return target

    def _decode_inner(
        self, nodes: dict[str, Node], part: str, path: str, target: Any, call: Callable[[Any, int], Any]
    ) -> None:
        kind, content = kind_and_content(nodes[part])
        if kind != "object":
            raise self._reader.damaged(f"{part!r} of {path!r} is not an object")
        name, inner = self.values.items(content, f"{path}/{part}", 2)
        self._decode_parts(name, inner, f"{path}/{part}", target, call)

    def _plan_update(self, target: Any, nodes: dict[str, Node], path: str, call: Callable[[Any, int], Any]) -> None:
        """Add the update of an object; attributes that it lacked when saved are removed if a call sets them again."""
        current = attributes_of(target)
        removed = set(current).difference(nodes)
        kept = {name: value for name, value in current.items() if name not in removed}
        attributes = self.decode_attributes(nodes, kept, (), type(target), path)
        if removed and not self._call_sets(removed, target, attributes, call):
            raise _missing_attributes(removed, type(target))
        self.updates.append(ObjectUpdate(target, attributes, removed))

    def _call_sets(
        self, names: set[str], target: Any, attributes: dict[str, Any], call: Callable[[Any, int], Any]
    ) -> bool:
        """Whether a scheduler with only these attributes has `names` after it was called."""
        check_iterations(target, attributes, self._num_update)
        try:
            trial = copy.copy(target)
            vars(trial).clear()
            vars(trial).update(attributes)
            trial = copy.deepcopy(trial)  # the objects among the attributes are the trainer's own
            call(trial, self._num_update + 1)
        except Exception:
            return False
        return names <= vars(trial).keys()

    def _decode_attribute(self, node: Node, path: str, current: Any, is_setting: bool) -> Any:
        """Decode one attribute; a setting keeps its rough kind (a number or array, a str, ...) unless it is None."""
        value = self.values.decode_separately(node, path, current if contains_object(node) else ANYTHING)
        value = with_type_of(current, value)
        keeps_kind = current is not None and value is not None and (is_setting or _rough_kind(current) is object)
        if keeps_kind and _rough_kind(current) is not _rough_kind(value):
            raise mismatch(node, path, current)
        return self.shared.resolve(path, value)


def can_be_added(name: str, kind: type) -> bool:
    """Whether an attribute `name` would hide no method or property of the class `kind`."""
    hidden = inspect.getattr_static(kind, name, None)
    return name.isidentifier() and not (callable(hidden) or hasattr(hidden, "__get__"))


def _call(target: Any, num_update: int) -> Any:
    return target(num_update)


def _rough_kind(value: Any) -> type:
    if isinstance(value, (numbers.Number, np.generic, NDArray, np.ndarray)):
        return numbers.Number
    return next((kind for kind in (str, list, tuple, dict) if isinstance(value, kind)), object)


def _class_mismatch(name: Any, path: str, target: Any) -> ValueError:
    return ValueError(f"{path!r} is an object of class {name!r} in the file, but {describe(target)} in this trainer")


def _missing_attributes(names: Collection[str], kind: type) -> ValueError:
    return ValueError(
        f"the file has no {min(names)!r} of {kind.__name__}: it was saved by a version of that class, or at a time, "
        "that did not have this attribute"
    )
