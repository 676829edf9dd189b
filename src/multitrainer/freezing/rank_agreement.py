"""Check that all ranks exchange the same gradients: a rank that leaves some out would let the others wait forever."""

from __future__ import annotations

from typing import Any, Sequence

from mxnet import nd
from mxnet.gluon import Parameter

_ROUNDING = 1e-6  # relative, of a few sums of float32


class StoreComparison:
    """Compares over a distributed kvstore, whose servers add up what the workers push.

    Parameters
    ----------
    kvstore : KVStore
        A distributed one, on which the workers update.
    key : int
        A key that nothing else uses.
    size : int
        The number of Parameters.
    """

    def __init__(self, kvstore: Any, key: int, size: int) -> None:
        self._kvstore, self._key = kvstore, key
        start = nd.zeros(size + len(_step_numbers(0)))
        kvstore.broadcast(key, start, start)

    def check(self, params: Sequence[Parameter], collected_steps: int) -> None:
        """Raise a RuntimeError on all ranks if they do not agree; see `numbers_to_sum`."""
        numbers = nd.array(numbers_to_sum(params, collected_steps))
        self._kvstore.pushpull(self._key, numbers, out=numbers)
        check_sums(params, numbers.asnumpy().tolist(), self._kvstore.num_workers)


def numbers_to_sum(params: Sequence[Parameter], collected_steps: int) -> list[float]:
    """Return numbers whose sums over all ranks show whether the ranks agree.

    Parameters
    ----------
    params : sequence of Parameter
        All Parameters of a trainer.
    collected_steps : int
        The number of steps whose gradients were collected for this update.
    """
    return [*(float(param.grad_req != "null") for param in params), *_step_numbers(collected_steps)]


def check_sums(params: Sequence[Parameter], sums: Sequence[float], ranks: int) -> None:
    """Raise a RuntimeError if the ranks train different ``params``, or collected the gradients of unlike many steps.

    Parameters
    ----------
    params : sequence of Parameter
        All Parameters of a trainer.
    sums : sequence of float
        The sums over all ranks of what `numbers_to_sum` returns.
    ranks : int
        The number of ranks.
    """
    check_counts(params, sums[: len(params)], ranks)
    steps, squares = sums[len(params) :]
    if abs(ranks * squares - steps**2) > _ROUNDING * steps**2:  # the variance is 0 if all are equal
        raise RuntimeError(
            f"the {ranks} ranks collected gradients in different numbers of steps, {steps / ranks:g} on average, "
            "before this update. Give every rank the same accumulate, and call step() and flush() equally often on each"
        )


def _step_numbers(collected_steps: int) -> tuple[float, float]:
    return float(collected_steps), float(collected_steps) ** 2


def check_counts(params: Sequence[Parameter], counts: Sequence[float], ranks: int) -> None:
    """Raise a RuntimeError if some of ``params`` are trained on some of the ranks only.

    Parameters
    ----------
    params : sequence of Parameter
        All Parameters of a trainer.
    counts : sequence of float
        For each Parameter, the number of ranks that train it.
    ranks : int
        The number of ranks.
    """
    differing = [param.name for param, count in zip(params, counts) if count not in (0, ranks)]
    if differing:
        raise RuntimeError(
            f"the ranks train different Parameters: {', '.join(differing[:3])}{', ...' if len(differing) > 3 else ''} "
            f"({len(differing)} of {len(params)}) are frozen on some of the {ranks} ranks only, or were unfrozen after "
            "the backward pass on some. Give every rank the same multipliers, schedules and calls of set_lr_mult, "
            "before the same step, and make a backward pass on each"
        )
