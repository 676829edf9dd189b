"""Remember the contents of everything that can be reached from an object, and put them back in place."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Callable, Iterable
from weakref import WeakSet

import numpy as np
from mxnet.gluon import Parameter
from mxnet.lr_scheduler import LRScheduler
from mxnet.ndarray import NDArray
from mxnet.optimizer import Updater

from .. import _mxnet


class ObjectSnapshot:
    """The contents of dicts, lists, sets, arrays, Parameters and other objects, as they are now.

    They are put back into the same objects, so it does not matter how many names an object has. What is called is not
    looked into: functions, classes, Blocks, schedules, initializers. Updaters and LRSchedulers are the exceptions.

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
        """Put the contents back. It can be called again, for example after an interrupt."""
        for restorer in self._restorers:
            restorer()

    def objects(self, kind: type) -> list[Any]:
        """List the objects of one class, or of its subclasses, that were found."""
        return [each for each in self._found.values() if isinstance(each, kind)]

    def _remember(self, target: Any) -> Iterable[Any]:
        """Remember the contents of one object; return the objects that it holds."""
        if isinstance(target, Parameter):
            self._restorers.append(self._parameter_restorer(target))
            return ()
        if isinstance(target, (NDArray, np.ndarray)):
            self._restorers.append(_array_restorer(target))
            return ()
        if isinstance(target, (tuple, frozenset, WeakSet)):
            return list(target)
        if isinstance(target, (dict, set)):
            return self._remember_collection(target)
        if isinstance(target, list):
            items = list(target)
            self._restorers.append(lambda: target.__setitem__(slice(None), items))
            return items
        if hasattr(target, "__dict__") and not _is_code(target):
            return self._remember_collection(vars(target))
        return ()

    def _remember_collection(self, target: Any) -> list[Any]:
        contents = target.copy()

        def restore() -> None:
            # Nothing is missing at any time, in case this is interrupted.
            for key in [key for key in target if key not in contents]:
                target.pop(key) if isinstance(target, dict) else target.discard(key)
            target.update(contents)

        self._restorers.append(restore)
        return list(contents.values() if isinstance(contents, dict) else contents)

    def _parameter_restorer(self, param: Parameter) -> Callable[[], None]:
        """Remember the values and gradients of a Parameter, which may be in other arrays when they are put back."""
        values, gradients = _mxnet.values_and_gradients(param)
        self._found.update((id(array), array) for array in (*values, *gradients))
        fresh = _mxnet.fresh_gradients(param)
        saved = [array.copy() for array in (*values, *gradients)]

        def restore() -> None:
            values, gradients = _mxnet.values_and_gradients(param)
            for before, array in zip(saved, (*values, *gradients)):
                before.copyto(array)
            _mxnet.set_fresh_gradients(param, fresh)

        return restore


def _array_restorer(target: Any) -> Callable[[], None]:
    saved = target.copy()

    def restore() -> None:
        if isinstance(target, NDArray):
            saved.copyto(target)
        elif target.flags.writeable:
            target[...] = saved

    return restore


def _is_code(target: Any) -> bool:
    return isinstance(target, ModuleType) or (callable(target) and not isinstance(target, (Updater, LRScheduler)))
