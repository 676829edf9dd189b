"""Remember the contents of everything that can be reached from an object, and put them back in place."""

from __future__ import annotations

import functools
import io
import logging
import queue
import random
import threading
from array import array
from collections import OrderedDict, deque
from concurrent.futures import Executor, Future
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, Callable, Iterable, Iterator, NamedTuple
from weakref import WeakSet

import numpy as np
from mxnet.gluon import Block, Parameter, ParameterDict
from mxnet.initializer import Initializer
from mxnet.ndarray import NDArray

from .. import _mxnet

_NOT_LOOKED_INTO = (
    *(type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, Block, Initializer),
    _mxnet.Structure,  # what a Block holds stays as it is
    # What threads and the outside world do meanwhile cannot be undone, and must not be half undone.
    *(threading.Thread, threading.Condition, threading.Event, threading.Semaphore, threading.local, queue.Queue),
    *(Executor, Future, io.IOBase, logging.Filterer, logging.Manager),
)


class ObjectSnapshot:
    """The contents of collections, arrays, generators, Parameters and objects with attributes, as they are now.

    They are put back into the same objects, so it does not matter how many names an object has. Code is not looked
    into: functions, methods, classes, modules, Blocks, initializers.

    Parameters
    ----------
    roots : iterable
        The objects to begin with.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self._found: dict[int, Any] = {}  # keeps the objects alive whose ids these are
        self._restorers: list[Callable[[], None]] = []
        waiting = list(roots)
        while waiting:
            each = waiting.pop()
            if id(each) not in self._found:
                self._found[id(each)] = each
                waiting.extend(self._remember(each))

    def restore(self) -> None:
        """Put the contents back. It can be called again, for example after an interrupt.

        Raises
        ------
        RuntimeError
            When all others are back, if the contents of some objects could not be put back.
        """
        errors = []
        for restorer in self._restorers:
            try:
                restorer()
            except Exception as error:
                errors.append(error)
        if errors:
            raise RuntimeError(
                f"{len(errors)} objects that the trainer holds could not be put back, the first one because of "
                f"{errors[0]!r}"
            ) from errors[0]

    def objects(self, kind: type) -> list[Any]:
        """List the objects of one class, or of its subclasses, that were found."""
        return [each for each in self._found.values() if isinstance(each, kind)]

    def _remember(self, target: Any) -> list[Any]:
        """Remember the contents of one object; return the objects that it holds."""
        if isinstance(target, _NOT_LOOKED_INTO):
            return []
        if isinstance(target, Parameter):
            self._restorers.append(self._parameter_restorer(target))
            return []
        if isinstance(target, NDArray):
            self._restorers.append(functools.partial(target.copy().copyto, target))
            return []
        if isinstance(target, ParameterDict):  # it may be that of a Block
            return list(target.values())
        if isinstance(target, WeakSet):  # objects join it by themselves
            return list(target)
        held: list[Any] = []
        for kind in _kinds(target):
            contents = kind.read(target)
            self._restorers.append(functools.partial(kind.write, target, contents))
            held.extend(kind.held(contents))
        return held

    def _parameter_restorer(self, param: Parameter) -> Callable[[], None]:
        """Remember the values and gradients of a Parameter, which may be in other arrays when they are put back."""
        values, gradients = _mxnet.values_and_gradients(param)
        self._found.update((id(each), each) for each in (*values, *gradients))
        fresh = _mxnet.fresh_gradients(param)
        saved = [each.copy() for each in (*values, *gradients)]

        def restore() -> None:
            values, gradients = _mxnet.values_and_gradients(param)
            for before, each in zip(saved, (*values, *gradients)):
                before.copyto(each)
            _mxnet.set_fresh_gradients(param, fresh)

        return restore


class _Kind(NamedTuple):
    """How contents of an object are read and put back, and which objects are among them.

    Methods are called on the built-in class: a subclass may give them another meaning, as ``Counter.update`` has.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any, Any], Any]
    held: Callable[[Any], Iterable[Any]]


def _kinds(target: Any) -> Iterator[_Kind]:
    """Yield the kind of an object, and those of its attributes."""
    for builtin, kind in _BUILTIN_KINDS.items():
        if isinstance(target, builtin):
            yield kind
            break
    if isinstance(getattr(target, "__dict__", None), dict):
        yield _ATTRIBUTES
    if _slots(target):
        yield _SLOTS


def _nothing(*_: Any) -> Iterable[Any]:
    return ()


def _write_mapping(builtin: Any, target: Any, contents: dict[Any, Any]) -> None:
    # At most one entry is missing at any time, in case this is interrupted.
    for key in [key for key in builtin.keys(target) if key not in contents]:
        builtin.__delitem__(target, key)
    for key, value in contents.items():
        builtin.__setitem__(target, key, value)
    if any(key is not before for key, before in zip(builtin.keys(target), contents)):
        for key, value in contents.items():  # in their order
            builtin.__delitem__(target, key)
            builtin.__setitem__(target, key, value)


def _mapping(builtin: Any) -> _Kind:
    return _Kind(lambda target: dict(builtin.items(target)), functools.partial(_write_mapping, builtin), dict.values)


def _write_set(target: set[Any], contents: set[Any]) -> None:
    set.difference_update(target, set(target) - contents)
    set.update(target, contents)


def _write_deque(target: deque[Any], contents: list[Any]) -> None:
    deque.clear(target)
    deque.extend(target, contents)


def _read_array(target: np.ndarray) -> np.ndarray:
    return target.view(np.ndarray).copy()


def _write_array(target: np.ndarray, contents: np.ndarray) -> None:
    if target.flags.writeable:
        target.view(np.ndarray)[...] = contents


def _objects_in_array(contents: np.ndarray) -> Iterable[Any]:
    return contents.flat if contents.dtype == object else ()


def _set_state(target: Any, state: Any) -> None:
    target.state = state


def _slots(target: Any) -> list[Any]:
    """Return the descriptors of the attributes that the classes of an object keep in ``__slots__``."""
    classes = [vars(each) for each in type(target).__mro__ if "__slots__" in vars(each)]
    return [each for members in classes for each in members.values() if isinstance(each, MemberDescriptorType)]


def _read_slots(target: Any) -> dict[Any, Any]:
    contents = {}
    for slot in _slots(target):
        try:
            contents[slot] = slot.__get__(target)
        except AttributeError:  # not set
            continue
    return contents


def _write_slots(target: Any, contents: dict[Any, Any]) -> None:
    for slot in _read_slots(target).keys() - contents.keys():
        slot.__delete__(target)
    for slot, value in contents.items():
        slot.__set__(target, value)


_DICT = _mapping(dict)
_ATTRIBUTES = _Kind(
    lambda target: dict(vars(target)), lambda target, contents: _DICT.write(vars(target), contents), dict.values
)
_SLOTS = _Kind(_read_slots, _write_slots, dict.values)
_SLICE = slice(None)

# The first one that fits is taken.
_BUILTIN_KINDS: dict[Any, _Kind] = {
    OrderedDict: _mapping(OrderedDict),
    dict: _DICT,
    list: _Kind(list.copy, lambda target, contents: list.__setitem__(target, _SLICE, contents), iter),
    set: _Kind(set, _write_set, iter),
    (tuple, frozenset): _Kind(list, _nothing, iter),
    deque: _Kind(lambda target: list(deque.__iter__(target)), _write_deque, iter),
    bytearray: _Kind(bytes, lambda target, contents: bytearray.__setitem__(target, _SLICE, contents), _nothing),
    array: _Kind(
        lambda target: target[:], lambda target, contents: array.__setitem__(target, _SLICE, contents), _nothing
    ),
    np.ndarray: _Kind(_read_array, _write_array, _objects_in_array),
    random.Random: _Kind(random.Random.getstate, random.Random.setstate, _nothing),
    np.random.RandomState: _Kind(
        lambda target: target.get_state(legacy=False), np.random.RandomState.set_state, _nothing
    ),
    np.random.BitGenerator: _Kind(lambda target: target.state, _set_state, _nothing),
    np.random.Generator: _Kind(lambda target: [target.bit_generator], _nothing, iter),
}
