"""What a frozen Parameter had before, kept on the Parameter itself."""

from __future__ import annotations

import weakref
from typing import Iterable, NamedTuple

from mxnet.gluon import Parameter

from .. import _mxnet

# What a frozen Parameter had before is kept on the object itself, where copies and pickles take it along.
_BEFORE = "_multitrainer_before"


# Those that were unfrozen after the backward pass whose gradients the next update uses.
_awaiting: weakref.WeakSet[Parameter] = weakref.WeakSet()


_changes = 0  # how often a Parameter was frozen or unfrozen


class Before(NamedTuple):
    """What a frozen Parameter is to have again when it is unfrozen."""

    grad_req: str
    lr_mult: float


def before(param: Parameter) -> Before | None:
    """Return what a frozen Parameter had before, or None if it is not frozen."""
    found = getattr(param, _BEFORE, None)
    if found is None:
        return None
    # While the gradient is on, and as soon as the user requests one, it is the Parameter that knows.
    return Before(param.grad_req if param.grad_req != "null" else found[0], found[1])


def remember(param: Parameter, grad_req: str, lr_mult: float) -> None:
    """Note that ``param`` is frozen, and what it is to have again."""
    _note_change()
    setattr(param, _BEFORE, (grad_req, lr_mult))


def forget(param: Parameter) -> None:
    """Note that ``param`` is not frozen."""
    if is_frozen(param):
        _note_change()
        delattr(param, _BEFORE)


def await_backward(params: Iterable[Parameter]) -> None:
    """Let updates pass over Parameters that were unfrozen until a backward pass has reached them, or one is made."""
    _awaiting.update(params)


def awaiting_backward(params: Iterable[Parameter]) -> list[Parameter]:
    """Return those of ``params`` that were unfrozen and that no backward pass has reached since."""
    if not _awaiting:
        return []
    return [param for param in params if param in _awaiting and not _mxnet.has_fresh_gradient(param)]


def stop_awaiting(params: Iterable[Parameter]) -> None:
    """Note that an update was made after ``params`` were unfrozen."""
    _awaiting.difference_update(params)


def last_change() -> int:
    """Return a number that grows whenever a Parameter is frozen or unfrozen, by whichever trainer or function."""
    return _changes


def _note_change() -> None:
    global _changes
    _changes += 1


def is_frozen(param: Parameter) -> bool:
    """Whether this package froze ``param``."""
    return hasattr(param, _BEFORE)
