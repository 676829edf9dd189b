"""The norms of the gradients of one update."""

from __future__ import annotations

import math
from typing import Iterable, Sequence

import numpy as np
from mxnet import nd
from mxnet.gluon import Parameter
from mxnet.ndarray import NDArray

from .. import _mxnet

_BLOCK = 1 << 16  # so many float64 values stay in the cache


class UpdateGradients:
    """The gradients that one update uses, after the exchange.

    They are read only if their norms are asked for, and then once.

    Parameters
    ----------
    params : sequence of Parameter
        Those that are updated.
    rescale_grad : float
        What the optimizer multiplies the gradients with: 1 over the batch size, and over AMP's loss scale.
    are_summed : bool
        Whether each context has the sum over all contexts. If a kvstore updates, it has the sum and they do not.
    """

    def __init__(self, params: Sequence[Parameter], rescale_grad: float, are_summed: bool) -> None:
        self._params, self._rescale_grad, self._are_summed = params, rescale_grad, are_summed
        self._squares: dict[Parameter, float] | None = None

    def measure(self) -> None:
        """Read the gradients, while they are there."""
        self._squares = {p: self._rescale_grad**2 * sum_of_squares(self._gradient_of(p)) for p in self._params}

    def norm(self, params: Iterable[Parameter] | None = None) -> float:
        """Return the norm of the gradients of ``params``, by default of all together, times ``rescale_grad``.

        A Parameter that took no part in the update counts as 0.

        Raises
        ------
        RuntimeError
            If the gradients were not read before the update, and have been replaced or dropped since.
        """
        if self._squares is None:
            self._check_still_there()
            self.measure()
        squares = self._squares or {}
        return math.sqrt(sum(squares.get(p, 0.0) for p in (squares if params is None else params)))

    def _gradient_of(self, param: Parameter) -> NDArray:
        first, *others = param.list_grad()
        for gradient in () if self._are_summed else others:
            first = first + gradient.as_in_context(first.context)
        return first

    def _check_still_there(self) -> None:
        for param in self._params:
            # If a kvstore updates, MXNet does not mark gradients as used.
            is_new = self._are_summed and _mxnet.has_fresh_gradient(param)
            if param.grad_req == "null" or is_new:
                happened = "has a new gradient" if is_new else "was frozen"
                raise RuntimeError(
                    f"the gradients of the last update are gone: Parameter {param.name!r} {happened} since. Ask for "
                    "their norms right after the step, or set max_grad_norm, with which every update computes them"
                )


def sum_of_squares(array: NDArray) -> float:
    """Return the sum of the squares of the values of ``array``, added up in float64.

    MXNet's own ``norm`` and ``multi_sum_sq`` add up in float32, one value after the other: on the CPU the result for a
    large array is off by one in a thousand.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer.gradients.norms import sum_of_squares
    >>> sum_of_squares(mx.nd.array([3, 4]))
    25.0
    """
    if array.stype != "default":
        array = array.data  # the rows that are stored; all others are 0
    if array.context.device_type != "cpu":
        return sum_of_squares_on_device(array)
    values = array.asnumpy().ravel()
    total = 0.0
    for begin in range(0, values.size, _BLOCK):
        block = values[begin : begin + _BLOCK].astype(np.float64)
        total += float(np.dot(block, block))
    return total


def sum_of_squares_on_device(array: NDArray) -> float:
    """Return what `sum_of_squares` does, without moving the values to the host."""
    return float(nd.square(array.astype("float64")).sum().asscalar())
