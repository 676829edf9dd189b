"""Gradient clipping by the norm of all gradients together."""

from __future__ import annotations

import contextlib
import math
import numbers
from typing import Any, Iterable, Iterator, Sequence

from mxnet.gluon import Parameter, Trainer
from mxnet.optimizer import Optimizer

from .. import _mxnet
from ..optimizers.partition import Partition
from .norms import UpdateGradients

_CURE = (
    "Let the workers update: a synchronous kvstore such as 'dist_sync', dense weights and gradients, "
    "update_on_kvstore=False"
)
_SMALLEST = 2.0**-126  # of float32, unless denormal; MXNet's operators refuse a setting between it and 0
EPSILON = 1e-6  # that of torch.nn.utils.clip_grad_norm_


class GradientClipping:
    """Clips the gradients of a trainer's updates by the norm of all of them together.

    Parameters
    ----------
    max_norm : float or None
        None for no clipping.

    Raises
    ------
    TypeError, ValueError
        If it is neither a finite number above 0 nor None.
    """

    def __init__(self, max_norm: float | None = None) -> None:
        self.max_norm = check_max_norm(max_norm)
        self._last: UpdateGradients | None = None

    def check(self, trainer: Trainer) -> None:
        """Raise an error if gradients are to be clipped and ``trainer`` cannot do it; see `check_can_clip`."""
        if self.max_norm is not None:
            check_can_clip(trainer)

    @contextlib.contextmanager
    def update(
        self, partition: Partition, params: Sequence[Parameter], ignore_stale_grad: bool, store_updates: bool
    ) -> Iterator[None]:
        """Surround one update of ``params`` by the optimizers of a trainer, after the exchange of gradients.

        ``store_updates`` says that a kvstore has made it by now.
        """
        params = [param for param in params if param.grad_req != "null"]
        if ignore_stale_grad and not store_updates:  # a kvstore has used stale ones by now
            params = [param for param in params if _mxnet.has_fresh_gradient(param)]
        scales = {param: partition.part_of(param).optimizer.rescale_grad for param in params}
        gradients, coefficient = UpdateGradients(scales, not store_updates), 1.0
        if self.max_norm is not None:
            gradients.measure()
            coefficient = clip_coefficient(gradients.norm(), self.max_norm)
        made = partition.updates_made
        with scaled_gradients(partition.optimizers, coefficient):
            yield
        self._last = gradients
        if not store_updates and made == partition.updates_made:
            gradients.measure()  # AMP skipped the update and left the gradients marked as fresh, as if they were new

    def forget_gradients(self) -> None:
        """Note that a step is about to replace the gradients of the last update."""
        if self._last is not None:
            self._last.forget()

    def read_gradients(self) -> None:
        """Read those of the last update now, because they are about to be replaced."""
        if self._last is not None:
            self._last.measure()

    def last_gradients(self, trainer: Trainer) -> UpdateGradients:
        """Return the gradients of the last update of ``trainer``.

        Raises
        ------
        RuntimeError
            If there was none, or parameter servers have the sums.
        """
        if _mxnet.has_sent_optimizer(trainer):
            raise RuntimeError(f"the norms of gradients are not known here: parameter servers have the sums. {_CURE}")
        if self._last is None:
            raise RuntimeError("nothing was updated yet: ask for the norms of gradients after a step")
        return self._last


def check_max_norm(value: Any) -> float | None:
    """Return ``value`` as a float, or None for None.

    Raises
    ------
    TypeError, ValueError
        If it is neither a finite number above 0 nor None.
    """
    if value is None:
        return None
    expected = "expected a finite number above 0, or None for no clipping"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"max_grad_norm is {value!r}: {expected}")
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"max_grad_norm is {value!r}: {expected}")
    return number


def check_can_clip(trainer: Trainer) -> None:
    """Raise an error if a kvstore updates, for it does so before the norm of all gradients is known.

    Raises
    ------
    ValueError
        If ``trainer`` was built so that its kvstore has to update.
    RuntimeError
        If nobody asked for that, but the kvstore has begun to.
    """
    reason = "clipping by max_grad_norm needs the norm of all gradients before the first weight is updated, and"
    if _mxnet.servers_update(trainer):
        raise ValueError(f"{reason} parameter servers update each weight when they have its gradient. {_CURE}")
    if _mxnet.has_sparse_weights(trainer):
        raise ValueError(
            f"{reason} MXNet has the kvstore update row_sparse weights, each when it has its gradient. Use dense "
            "weights (stype='default')"
        )
    if _mxnet.chosen_update_on_kvstore(trainer):
        raise ValueError(
            f"{reason} with update_on_kvstore=True the kvstore updates each weight when it has its gradient. Leave "
            "update_on_kvstore out, or pass False"
        )
    if _mxnet.store_updates(trainer):
        raise RuntimeError(
            f"{reason} the kvstore has been set up to update each weight when it has its gradient. Build the trainer "
            "with max_grad_norm or with update_on_kvstore=False, or set max_grad_norm before the first step"
        )


def clip_coefficient(norm: float, max_norm: float) -> float:
    """Return the factor that brings gradients of a norm down to at most ``max_norm``.

    It is that of ``torch.nn.utils.clip_grad_norm_``, except that a norm that is infinite or not a number gives 1:
    a factor of 0 or nan would only spread it.

    Examples
    --------
    >>> from multitrainer.gradients.clipping import clip_coefficient
    >>> clip_coefficient(0.5, max_norm=1)
    1.0
    >>> round(clip_coefficient(4, max_norm=1), 6)
    0.25
    """
    return min(1.0, max_norm / (norm + EPSILON)) if math.isfinite(norm) else 1.0


@contextlib.contextmanager
def scaled_gradients(optimizers: Iterable[Optimizer], coefficient: float) -> Iterator[None]:
    """Have ``optimizers`` update as if all gradients were multiplied by ``coefficient``.

    The gradients stay as they are. Every optimizer multiplies them with its ``rescale_grad``, which is also how
    `Trainer.step` divides by the batch size, and applies its own ``clip_gradient`` afterwards.
    """
    before = [(optimizer, optimizer.rescale_grad) for optimizer in optimizers]
    try:
        if coefficient != 1:
            for optimizer, rescale_grad in before:
                scaled = rescale_grad * coefficient
                optimizer.rescale_grad = scaled if abs(scaled) >= _SMALLEST else 0.0
        yield
    finally:
        for optimizer, rescale_grad in before:
            optimizer.rescale_grad = rescale_grad
