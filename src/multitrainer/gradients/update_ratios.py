"""How large an update is relative to the weights, by which learning rates are judged."""

from __future__ import annotations

import math
from typing import Iterable, Mapping, NamedTuple

from mxnet.gluon import Parameter, Trainer
from mxnet.ndarray import NDArray

from .. import _mxnet
from .norms import sum_of_squares


class Squares(NamedTuple):
    """The squared norms of the weights of one Parameter before an update, and of the change that the update made."""

    weights: float
    change: float


class UpdateMeasurement:
    """Copies of the weights from before and after the last update, while it is on.

    They are compared only if the ratios are asked for. Then an update waits for nothing.

    Attributes
    ----------
    is_on : bool
        Whether updates are measured.
    """

    def __init__(self) -> None:
        self.is_on = False
        self._before: dict[Parameter, NDArray] = {}
        self._both: dict[Parameter, tuple[NDArray, NDArray]] | None = None
        self._squares: dict[Parameter, Squares] | None = None

    def switch(self, on: bool, trainer: Trainer) -> None:
        """Begin to measure the updates of ``trainer``, or stop and drop all copies.

        Raises
        ------
        ValueError
            If weights are row_sparse, because only the kvstore has them.
        """
        if on and _mxnet.has_sparse_weights(trainer):
            raise ValueError(
                "update ratios need the weights after the update, and MXNet keeps row_sparse ones in the kvstore. Use "
                "dense weights (stype='default')"
            )
        if on != self.is_on:
            self._before, self._both, self._squares = {}, None, None
        self.is_on = on

    def begin_update(self, params: Iterable[Parameter]) -> None:
        """Copy the weights of those of ``params`` that are about to be updated."""
        if self.is_on:
            self._before = {p: p.list_data()[0].copy() for p in params if p.grad_req != "null"}

    def end_update(self) -> None:
        """Copy the same weights after the update."""
        if self.is_on:
            self._both = {param: (before, param.list_data()[0].copy()) for param, before in self._before.items()}
            self._before, self._squares = {}, None

    def squares(self) -> dict[Parameter, Squares] | None:
        """Return the squared norms of the last update, for each Parameter that took part; None before the first."""
        if self._squares is None and self._both is not None:
            self._squares = {
                param: Squares(sum_of_squares(before), sum_of_squares(after - before))
                for param, (before, after) in self._both.items()
            }
        return self._squares


def ratio(params: Iterable[Parameter], squares: Mapping[Parameter, Squares]) -> float:
    """Return the norm of the change of ``params`` over the norm of their weights before it, all of them together.

    Those without ``squares`` took no part. If all weights were 0, as biases are at first, the ratio is 1: the
    change is all of the weights. Without a change it is 0.

    Examples
    --------
    >>> from multitrainer.gradients.update_ratios import Squares, ratio
    >>> ratio(['weight', 'bias'], {'weight': Squares(9, change=0), 'bias': Squares(16, change=0.25)})
    0.1
    >>> ratio(['bias'], {'bias': Squares(0, change=0.25)})
    1.0
    """
    taking_part = [squares[param] for param in params if param in squares]
    weights, change = (sum(each[i] for each in taking_part) for i in (0, 1))
    return math.sqrt(change / weights) if weights else float(change != 0)
