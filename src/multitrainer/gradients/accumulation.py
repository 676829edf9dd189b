"""Collect the gradients of several steps, and make one update with their sum."""

from __future__ import annotations

import contextlib
import math
import numbers
from typing import Any, Collection, Iterable, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

from mxnet import autograd, nd
from mxnet.gluon import Parameter
from mxnet.ndarray import NDArray

from .. import _mxnet
from ..optimizers.partition import Partition

# The arrays of a Parameter, one for each context, each with its gradient.
_Trained = List[Tuple[Parameter, List[Tuple[NDArray, NDArray]]]]


class Collected(NamedTuple):
    """What the steps since the last update collected.

    Attributes
    ----------
    steps : int
        The number of these steps.
    batch_size : float
        The sum of their batch sizes.
    scale : float
        What the update multiplies gradients with before it divides by the batch size: 1, or 1 / loss scale under AMP.
    gradients : dict of Parameter to list of (NDArray or None)
        The sums of gradients, one for each context, and None if no backward pass reached the Parameter there.
    """

    steps: int
    batch_size: float
    scale: float
    gradients: Mapping[Parameter, Sequence[Any]]


NOTHING = Collected(0, 0.0, 1.0, {})


class Accumulation:
    """Collects the gradients of all steps but every Nth, which updates with the sum of N.

    An error or an interrupt leaves it, and the gradients, as they were before the step.

    Parameters
    ----------
    steps : int
        The number N of steps that make one update.

    Attributes
    ----------
    collected : Collected
        What the next update adds to its own gradients.
    steps_in_update : int
        The number of steps whose gradients make the update under way.
    """

    def __init__(self, steps: int) -> None:
        self._steps = check_steps(steps)
        self.collected = NOTHING
        self.steps_in_update = 1

    @property
    def steps(self) -> int:
        """The number of steps that make one update; it can be set between updates only."""
        return self._steps

    @steps.setter
    def steps(self, steps: int) -> None:
        checked = check_steps(steps)
        if self.collected.steps and checked != self._steps:
            raise ValueError(
                f"accumulate cannot be set to {checked} now: {self.collected.steps} of {self._steps} steps were "
                "collected. Set it after an update; trainer.flush() makes one with what was collected"
            )
        self._steps = checked

    @property
    def updates_next(self) -> bool:
        """Whether the next step makes an update."""
        return self.collected.steps + 1 >= self._steps

    def check_whole_steps(self, method: str) -> None:
        """Raise a RuntimeError if a step is more than an exchange and an update, which `method` makes alone."""
        if self._steps > 1:
            raise RuntimeError(
                f"{method}() cannot be called with accumulate={self._steps}, because only one step of "
                f"{self._steps} exchanges gradients and updates. Call step(), or set trainer.accumulate = 1"
            )

    def check(self, batch_size: float, scale: float) -> None:
        """Raise an error if a step of this batch size and scale cannot be added to what was collected."""
        self._total(batch_size, scale)

    def unused(self, params: Iterable[Parameter]) -> set[Parameter]:
        """Return those of ``params`` that no backward pass has reached since the last update; see `added`.

        A kvstore that updates would use their old gradients again, and AMP would look for an overflow in them.
        """
        if self._steps == 1:
            return set()
        return {param for param in params if param.grad_req != "null" and not _mxnet.has_fresh_gradient(param)}

    def check_no_backward_pending(self, params: Iterable[Parameter]) -> None:
        """Raise a RuntimeError if a backward pass was made that no step has collected."""
        pending = [param.name for param in params if param.grad_req != "null" and _mxnet.has_fresh_gradient(param)]
        if pending:
            raise RuntimeError(
                f"the gradient of Parameter {pending[0]!r} is from a backward pass that no step has used, so its batch "
                "size is unknown: call step() after every backward pass, then flush()"
            )

    def collect(
        self, params: Sequence[Parameter], batch_size: float, scale: float, may_be_stale: Collection[Parameter]
    ) -> None:
        """Add the gradients of one step to what was collected; what is not trained any more is dropped.

        Parameters
        ----------
        params : sequence of Parameter
            Those whose ``grad_req`` is 'null' are not trained.
        batch_size : float
            The batch size of this step.
        scale : float
            See `Collected`.
        may_be_stale : collection of Parameter
            Those whose gradients are passed over if no backward pass has computed them since the last step.

        Raises
        ------
        UserWarning
            As stock Trainer does, if another gradient is stale.
        ValueError, RuntimeError
            If the batch size is not a number of 0 or more, or the scale has changed since the last update.
        """
        before, total = self.collected, self._total(batch_size, scale)
        trained = _trained(params, may_be_stale)
        with autograd.pause():
            sums = {param: _sums(before.gradients.get(param), arrays) for param, arrays in trained}
        gradients = {param: found for param, found in sums.items() if any(array is not None for array in found)}
        fresh = [weight for _, arrays in trained for weight, _ in arrays if _mxnet.is_fresh(weight)]
        try:
            self.collected = Collected(before.steps + 1, total, scale, gradients)
            _mxnet.mark_gradients_used(fresh)
        except BaseException:
            self.collected = before
            _mxnet.mark_gradients_fresh(fresh)
            raise

    @contextlib.contextmanager
    def added(
        self,
        params: Sequence[Parameter],
        partition: Partition,
        batch_size: float,
        scale: float,
        may_be_stale: Collection[Parameter],
        own_steps: int = 1,
    ) -> Iterator[float]:
        """Surround an update: its gradients are the sum of this step's and what was collected.

        The value of the context is the batch size of all of them. If the update fails before an optimizer has counted
        it, the gradients of this step are put back. ``own_steps`` is 0 if there is no step whose gradients are added.
        See `collect` for the other parameters and the errors.
        """
        self.steps_in_update = self.collected.steps + own_steps
        if self._steps == 1:
            yield batch_size
            return
        total, trained = self._total(batch_size, scale), _trained(params, may_be_stale)
        weights = [weight for _, arrays in trained for weight, _ in arrays]
        made, fresh, own = partition.updates_made, list(filter(_mxnet.is_fresh, weights)), _OwnGradients()
        try:
            with autograd.pause():
                for param, arrays in trained:
                    own.add(arrays, self.collected.gradients.get(param))
            yield total
            self.collected = NOTHING
        except BaseException:
            if made == partition.updates_made:
                own.put_back()
                _mxnet.mark_gradients_used(weights)
                _mxnet.mark_gradients_fresh(fresh)
            else:
                self.collected = NOTHING
            raise
        # A kvstore that updates leaves them marked as fresh, and so does AMP if it skips the update.
        _mxnet.mark_gradients_used(weights)

    @contextlib.contextmanager
    def flushed(self, params: Sequence[Parameter], partition: Partition, scale: float) -> Iterator[float]:
        """Surround an update whose gradients are what was collected; see `added`."""
        with self.added(params, partition, 0, scale, params, own_steps=0) as total:
            yield total
        for param in params:
            if param.grad_req == "add":  # the next backward pass must not add to what was used
                _mxnet.discard_gradient(param)

    def _total(self, batch_size: float, scale: float) -> float:
        """Add a batch size to those that were collected."""
        size = float(batch_size)
        if not 0 <= size < math.inf:
            raise ValueError(f"batch_size must be a finite number, 0 or more, not {batch_size!r}")
        if self.collected.steps and scale != self.collected.scale:
            raise RuntimeError(
                f"the gradients of {self.collected.steps} steps were collected at a scale of {self.collected.scale:g}, "
                f"and those of this step have {scale:g}: under AMP, call amp.unscale after each backward pass or after "
                "none, and amp.scale_loss before each"
            )
        return self.collected.batch_size + size


class _OwnGradients:
    """Keeps the gradients of one step while others are added to them."""

    def __init__(self) -> None:
        self._own: list[tuple[NDArray, NDArray]] = []

    def add(self, arrays: Sequence[tuple[NDArray, NDArray]], collected: Sequence[Any] | None) -> None:
        """Add what was collected to the gradients of one Parameter; it replaces a stale gradient.

        A context that no batch has used gets 0, if another one was used.
        """
        others_of = collected or [None] * len(arrays)
        is_used = any(others is not None or _mxnet.is_fresh(weight) for (weight, _), others in zip(arrays, others_of))
        for (weight, gradient), others in zip(arrays, others_of):
            own = gradient.copy()
            self._own.append((gradient, own))
            if _mxnet.is_fresh(weight):
                if others is not None:
                    nd.elemwise_add(own, others, out=gradient)
            elif is_used:
                if others is None:
                    nd.zeros_like(gradient, out=gradient)
                else:
                    others.copyto(gradient)
                _mxnet.mark_gradients_fresh([weight])

    def put_back(self) -> None:
        """Restore the gradients."""
        for gradient, own in self._own:
            own.copyto(gradient)


def check_steps(steps: Any) -> int:
    """Return the number of steps that make one update, or raise an error if it is not a whole number above 0."""
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral):
        raise TypeError(f"accumulate must be a whole number of steps, 1 or more, not {steps!r}")
    if steps < 1:
        raise ValueError(f"accumulate must be 1 or more, not {steps}: it is the number of steps that make one update")
    return int(steps)


def _trained(params: Iterable[Parameter], may_be_stale: Collection[Parameter]) -> _Trained:
    """Return the Parameters that train, with their arrays and gradients; raise as stock does if one is stale."""
    trained = [(param, _mxnet.arrays_and_gradients(param)) for param in params if param.grad_req != "null"]
    ignored = set(may_be_stale)
    for param, arrays in trained:
        for weight, _ in arrays:
            if not (param in ignored or _mxnet.is_fresh(weight)):
                raise UserWarning(
                    f"Gradient of Parameter `{param.name}` on context {weight.context} has not been updated by "
                    "backward since last `step`. This could mean a bug in your model that made it only use a "
                    "subset of the Parameters (Blocks) for this iteration. If you are intentionally only using a "
                    "subset, call step with ignore_stale_grad=True to suppress this warning and leave out "
                    "Parameters with stale gradient"
                )
    return trained


def _sums(collected: Sequence[Any] | None, arrays: Sequence[tuple[NDArray, NDArray]]) -> list[NDArray | None]:
    """Return new arrays with the sums of what was collected and the fresh gradients of one Parameter."""
    sums = []
    for others, (weight, gradient) in zip(collected or [None] * len(arrays), arrays):
        if not _mxnet.is_fresh(weight):
            sums.append(others)
        else:
            sums.append(gradient.copy() if others is None else nd.elemwise_add(others, gradient))
    return sums
