"""Check that all ranks train the same Parameters: a rank that leaves one out would let the others wait forever."""

from __future__ import annotations

from typing import Any, Sequence

from mxnet import nd
from mxnet.gluon import Parameter

NUMBER_BITS = 24  # a number is compared bit by bit: then all ranks see it if it differs, and raise
_FIRST_KEY = 10**9  # a kvstore's keys are the indices of Parameters, and then these


class StoreComparison:
    """Compares what the ranks train over a distributed kvstore, whose servers add up what the workers push.

    Parameters
    ----------
    kvstore : KVStore
        A distributed one, on which the workers update.
    size : int
        The number of Parameters.
    """

    def __init__(self, kvstore: Any, size: int) -> None:
        self.size = size
        self._kvstore, self._key = kvstore, _FIRST_KEY + size
        start = nd.zeros(size + 2 * NUMBER_BITS)
        kvstore.broadcast(self._key, start, start)
        self._shape = start.shape

    def check(self, params: Sequence[Parameter], added: int = 0, collected_steps: int = 0) -> None:
        """Raise a RuntimeError on all ranks if they do not agree; see `comparison_message`."""
        message = nd.array(comparison_message(params, added, collected_steps))
        self._kvstore.pushpull(self._key, message, out=message)
        check_counts(params, message.asnumpy().tolist(), self._kvstore.num_workers)

    def mean(self, value: float) -> float:
        """Return on all ranks the mean of the values that they pass."""
        sent = nd.zeros(self._shape)
        sent[0] = value
        self._kvstore.pushpull(self._key, sent, out=sent)
        return float(sent[0].asscalar()) / int(self._kvstore.num_workers)


def comparison_message(params: Sequence[Parameter], added: int = 0, collected_steps: int = 0) -> list[bool]:
    """Return what a rank sends: which Parameters it trains, how many it has, and how many steps it collected.

    While some are being added, nothing is said about the others: they may still be frozen before the next step.

    Parameters
    ----------
    params : sequence of Parameter
        All Parameters of the trainer.
    added : int
        The number of Parameters that are being added to them.
    collected_steps : int
        The number of steps whose gradients were collected for this update.
    """
    trained = [param.grad_req != "null" and not added for param in params]
    return [*trained, *_bits(len(params) + added), *_bits(collected_steps)]


def _bits(number: int) -> list[bool]:
    return [bool(number >> bit & 1) for bit in range(NUMBER_BITS)]


def check_counts(params: Sequence[Parameter], counts: Sequence[float], ranks: int) -> None:
    """Raise a RuntimeError if the ranks differ in their Parameters, in what they train, or in the steps they collected.

    Parameters
    ----------
    params : sequence of Parameter
        All Parameters of a trainer.
    counts : sequence of float
        The sum of the `comparison_message` of all ranks.
    ranks : int
        The number of ranks.
    """
    size_bits, step_bits = counts[len(params) :][:NUMBER_BITS], counts[len(params) :][NUMBER_BITS:]
    if not {0, ranks}.issuperset(size_bits):
        raise RuntimeError(
            f"Parameters were added to the trainers of some of the {ranks} ranks only: call trainer.add on every "
            "rank, with the same groups, before the same step"
        )
    if not {0, ranks}.issuperset(step_bits):
        raise RuntimeError(
            f"the {ranks} ranks collected the gradients of different numbers of steps for this update. Give every rank "
            "the same accumulate, and call step() and flush() equally often on each"
        )
    differing = [param.name for param, count in zip(params, counts) if count not in (0, ranks)]
    if differing:
        raise RuntimeError(
            f"the ranks train different Parameters: {', '.join(differing[:3])}{', ...' if len(differing) > 3 else ''} "
            f"({len(differing)} of {len(params)}) are frozen on some of the {ranks} ranks only, or were unfrozen after "
            "the backward pass on some. Give every rank the same multipliers, schedules and calls of set_lr_mult, "
            "before the same step, and make a backward pass on each"
        )
