"""Which Parameters are frozen, what they had before, and which wait for a backward pass before they are updated."""

from __future__ import annotations

import weakref
from typing import Iterable, NamedTuple

from mxnet.gluon import Parameter

from .. import _mxnet

# What a frozen Parameter had before is kept on the Parameter, so that copies and pickles of it have it too.
_BEFORE = "_multitrainer_before"

_waiting: weakref.WeakSet[Parameter] = weakref.WeakSet()

_changes = 0


class BeforeFreezing(NamedTuple):
    """What a frozen Parameter gets back when it is unfrozen."""

    grad_req: str
    lr_mult: float


def is_frozen(param: Parameter) -> bool:
    """Whether this package froze ``param``."""
    return hasattr(param, _BEFORE)


def before_freezing(param: Parameter) -> BeforeFreezing | None:
    """Give what a frozen Parameter had before it was frozen, or None if it is not frozen."""
    found = getattr(param, _BEFORE, None)
    if found is None:
        return None
    # If a gradient is requested, by us or by the user since, that request is the one to keep.
    return BeforeFreezing(param.grad_req if param.grad_req != "null" else found[0], found[1])


def mark_frozen(param: Parameter, grad_req: str, lr_mult: float) -> None:
    """Note that ``param`` is frozen, and what it gets back when it is unfrozen."""
    _count_change()
    setattr(param, _BEFORE, (grad_req, lr_mult))


def mark_unfrozen(param: Parameter) -> None:
    """Note that ``param`` is not frozen."""
    if is_frozen(param):
        _count_change()
        delattr(param, _BEFORE)


def change_count() -> int:
    """Count how often any Parameter was frozen or unfrozen, by whichever trainer or function."""
    return _changes


def _count_change() -> None:
    global _changes
    _changes += 1


def wait_for_backward(params: Iterable[Parameter]) -> None:
    """Leave unfrozen Parameters out of updates until a backward pass reaches them or an update is made."""
    _waiting.update(params)


def waiting_for_backward(params: Iterable[Parameter]) -> list[Parameter]:
    """List those of ``params`` that wait and that no backward pass has reached since they were unfrozen."""
    if not _waiting:
        return []
    return [param for param in params if param in _waiting and not _mxnet.has_fresh_gradient(param)]


def stop_waiting(params: Iterable[Parameter]) -> None:
    """Note that an update was made after ``params`` were unfrozen."""
    if _waiting:
        _waiting.difference_update(params)
