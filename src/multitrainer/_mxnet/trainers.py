"""Leave Parameters out of what a stock Trainer does."""

from __future__ import annotations

import contextlib
from typing import Any, Collection, Iterator

from mxnet.gluon import Parameter, Trainer


class _LeftOut:
    """Stands in for a Parameter that an update passes over: the loops of trainers skip what requests no gradient."""

    grad_req, _grad = "null", None

    def __init__(self, param: Parameter) -> None:
        self._param = param

    def __getattr__(self, name: str) -> Any:
        return getattr(self._param, name)


@contextlib.contextmanager
def leaving_out(trainer: Trainer, params: Collection[Parameter]) -> Iterator[None]:
    """Let ``trainer`` exchange and update nothing of ``params``; the Parameters themselves do not change.

    Replacing the list takes one assignment, so an interrupt leaves no Parameter half changed.
    """
    everything = trainer._params
    try:
        if params:
            trainer._params = [_LeftOut(param) if param in params else param for param in everything]
        yield
    finally:
        trainer._params = everything
