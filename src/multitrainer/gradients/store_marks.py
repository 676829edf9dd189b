"""Which gradients a kvstore that updates has used."""

from __future__ import annotations

import contextlib
from typing import Iterator, Sequence

from mxnet.gluon import Parameter
from mxnet.ndarray import NDArray

from .. import _mxnet


class StoreMarks:
    """Marks the gradients that a kvstore has used as used, between the updates.

    Stock Trainer leaves them marked as fresh (``Trainer._update`` in mxnet/gluon/trainer.py), so nobody could tell
    later whether another backward pass has reached a Parameter. During an update the marks are those of stock.
    """

    def __init__(self) -> None:
        self._used: dict[Parameter, None] = {}

    @contextlib.contextmanager
    def update(self, params: Sequence[Parameter]) -> Iterator[None]:
        """Surround stock Trainer's loop over ``params``, which raises an error for a gradient that is not fresh."""
        trained = [param for param in params if param.grad_req != "null"]
        again = [param for param in trained if param in self._used and not _mxnet.has_fresh_gradient(param)]
        _mxnet.mark_gradients_fresh(_arrays(again))
        try:
            yield
        except BaseException:
            _mxnet.mark_gradients_used(_arrays(again))
            raise
        _mxnet.mark_gradients_used(_arrays(trained))
        self._used = {**self._used, **dict.fromkeys(trained)}


def _arrays(params: Sequence[Parameter]) -> list[NDArray]:
    return [array for param in params for array, _ in _mxnet.arrays_and_gradients(param)]
