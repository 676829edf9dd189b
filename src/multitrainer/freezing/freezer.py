"""Freeze and unfreeze Parameters."""

from __future__ import annotations

from typing import Callable, Collection, Iterable, Sequence

from mxnet.gluon import Block, Parameter

from .. import _mxnet
from . import trace_splitting
from .batchnorm import hold_statistics
from .gradients import restore_gradients
from .state import forget, is_frozen, remember


def freeze_parameter(param: Parameter, lr_mult: float | None = None) -> None:
    """Note that one Parameter is frozen, with its gradient request and its multiplier.

    ``lr_mult`` is the multiplier to note if the Parameter already holds the 0.
    """
    if not is_frozen(param):
        remember(param, param.grad_req, param.lr_mult if lr_mult is None else lr_mult)
    param.lr_mult = 0.0


def unfreeze_parameters(params: Collection[Parameter]) -> None:
    """Give Parameters the gradient request back that they had; what is in their gradients counts as used."""
    restore_gradients(params)
    for param in params:
        forget(param)


def hold_blocks(roots: Sequence[Block], params: Iterable[Parameter], pending: Callable[[], bool]) -> set[Parameter]:
    """Bring traces and BatchNorms of known Blocks in line with which ``params`` are frozen; see `hold_statistics`."""
    if any(map(is_frozen, params)):
        trace_splitting.divide_traces(roots)
    return hold_statistics(roots, pending)


def gradient_pending(params: Iterable[Parameter]) -> bool:
    """Whether a backward pass was made whose gradients no step has used yet."""
    return any(_mxnet.has_fresh_gradient(param) for param in params if not is_frozen(param))
