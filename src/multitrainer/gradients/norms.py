"""The norms of the gradients of one update."""

from __future__ import annotations

import math
from typing import Any, Iterable, Mapping, Sequence

import numpy as np
from mxnet import nd
from mxnet.gluon import Parameter
from mxnet.ndarray import NDArray

from .. import _mxnet

_BLOCK = 1 << 16  # this many float64 values stay in the cache


class UpdateGradients:
    """The gradients that one update uses, after the exchange.

    They are read only if their norms are asked for, and then once. A copy of this object has the norms alone.

    Parameters
    ----------
    scales : dict of Parameter to float
        The Parameters that are updated, and ``rescale_grad`` of the optimizer of each, the factor that it applies to
        the gradient: 1 over the batch size, and over AMP's loss scale.
    are_summed : bool
        Whether each context has the sum over all contexts. If a kvstore updates, it has the sum and they do not.
    """

    def __init__(self, scales: Mapping[Parameter, float], are_summed: bool) -> None:
        # The arrays themselves, because a schedule that freezes does so before the step is over.
        self._arrays: dict[Parameter, Sequence[NDArray]] | None = {p: _mxnet.gradient_arrays(p) for p in scales}
        self._scales, self._are_summed = scales, are_summed
        self._squares: dict[Parameter, float] | None = None
        self._why_gone = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_arrays": None, "_why_gone": "this trainer is a copy"}

    def forget(self) -> None:
        """Note that a step is about to replace the gradients; norms that were read stay."""
        self._arrays, self._why_gone = None, "a later step has begun"

    def measure(self) -> None:
        """Read the gradients if they are there and were not read."""
        if self._arrays is None:
            return
        found, scales = self._arrays.items(), self._scales
        self._squares = {p: scales[p] ** 2 * sum_of_squares(self._total(arrays)) for p, arrays in found if arrays}
        self._arrays = None

    def norm(self, params: Iterable[Parameter] | None = None) -> float:
        """Return the norm of the gradients of ``params``, by default of all together, times ``rescale_grad``.

        A Parameter that took no part in the update counts as 0.

        Raises
        ------
        RuntimeError
            If the gradients were not read before the update, and have been replaced since.
        """
        if self._squares is None:
            self._check_still_there()
            self.measure()
        squares = self._squares or {}
        return math.sqrt(sum(squares.get(p, 0.0) for p in (squares if params is None else params)))

    def _total(self, arrays: Sequence[NDArray]) -> NDArray:
        total, *others = arrays
        for array in () if self._are_summed else others:
            total = total + array.as_in_context(total.context)
        return total

    def _check_still_there(self) -> None:
        # If a kvstore updates, MXNet does not mark gradients as used.
        new = [p.name for p in self._arrays or () if self._are_summed and _mxnet.has_fresh_gradient(p)]
        if new or self._arrays is None:
            happened = f"Parameter {new[0]!r} has a new gradient since" if new else self._why_gone
            raise RuntimeError(
                f"the gradients of the last update are gone: {happened}. Ask for their norms right after the step "
                "that updated, or set max_grad_norm, with which every update computes them"
            )


def sum_of_squares(array: NDArray) -> float:
    """Return the sum of the squares of the values of ``array``, added up in float64.

    MXNet's own ``norm`` and ``multi_sum_sq`` add up in float32, one value after the other: on the CPU the result for a
    large array is off by about one in a thousand.

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
    """Compute the sum of squares as `sum_of_squares` does, without moving the values to the host."""
    return float(nd.square(array.astype("float64")).sum().asscalar())
