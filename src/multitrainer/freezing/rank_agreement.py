"""Check that all ranks train the same Parameters: a rank that leaves one out would let the others wait forever."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Sequence

import numpy as np
from mxnet import nd
from mxnet.gluon import Parameter

from .. import _mxnet

NUMBER_BITS = 24  # a number is compared bit by bit: then all ranks see it if it differs, and raise
NUMBERS = 3  # see `comparison_message`
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
        start = nd.zeros(size + NUMBERS * NUMBER_BITS)
        kvstore.broadcast(self._key, start, start)
        self._shape = start.shape

    def check(self, params: Sequence[Parameter], steps: int, added: Sequence[Parameter] = ()) -> None:
        """Raise a RuntimeError on all ranks if they do not agree; see `comparison_message`."""
        message = nd.array(comparison_message(params, steps, added))
        self._kvstore.pushpull(self._key, message, out=message)
        check_counts(params, message.asnumpy().tolist(), self._kvstore.num_workers)

    def mean(self, value: float) -> float:
        """Return on all ranks the mean of the values that they pass."""
        sent = nd.zeros(self._shape)
        sent[0] = value
        self._kvstore.pushpull(self._key, sent, out=sent)
        return float(sent[0].asscalar()) / int(self._kvstore.num_workers)


def comparison_message(params: Sequence[Parameter], steps: int, added: Sequence[Parameter] = ()) -> list[bool]:
    """Describe one rank, so that the sum over the ranks shows whether they agree.

    The message says which Parameters the rank trains with a gradient of this update, how many it has, which it is
    adding, and how many steps the gradients come from. While some are added, nothing is said about the others: they may
    still be frozen before the next step.

    Parameters
    ----------
    params : sequence of Parameter
        All Parameters of the trainer.
    steps : int
        The number of steps whose gradients make this update.
    added : sequence of Parameter
        Those that are being added.
    """
    trained = [not added and param.grad_req != "null" and _mxnet.has_fresh_gradient(param) for param in params]
    numbers = (len(params) + len(added), _fingerprint(added), steps)
    return [*trained, *(bool(number >> bit & 1) for number in numbers for bit in range(NUMBER_BITS))]


def _fingerprint(params: Sequence[Parameter]) -> int:
    """Return a number that is equal on all ranks if they add the same.

    The numbers in names are left out: a rank may have made other networks before, which take up numbers.
    """
    described = [(re.sub(r"\d+", "", param.name), param.shape, np.dtype(param.dtype).name) for param in params]
    return int(hashlib.sha256(repr(described).encode()).hexdigest(), 16) % 2**NUMBER_BITS


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
    bits = counts[len(params) :]
    sizes, fingerprints, steps = (bits[i * NUMBER_BITS : (i + 1) * NUMBER_BITS] for i in range(NUMBERS))
    if not {0, ranks}.issuperset(sizes):
        raise RuntimeError(
            f"Parameters were added to the trainers of some of the {ranks} ranks only: call trainer.add on every "
            "rank, with the same groups, before the same step"
        )
    if not {0, ranks}.issuperset(fingerprints):
        raise RuntimeError(
            f"the {ranks} ranks add different Parameters: call trainer.add on every rank with the same groups, in the "
            "same order, with the same shapes"
        )
    if not {0, ranks}.issuperset(steps):
        raise RuntimeError(
            f"the {ranks} ranks collected the gradients of different numbers of steps for this update. Give every rank "
            "the same accumulate, and call step() and flush() equally often on each"
        )
    differing = [param.name for param, count in zip(params, counts) if count not in (0, ranks)]
    if differing:
        raise RuntimeError(
            f"the ranks train different Parameters: {', '.join(differing[:3])}{', ...' if len(differing) > 3 else ''} "
            f"({len(differing)} of {len(params)}) are frozen on some of the {ranks} ranks only, or have no gradient of "
            "this step on some. Give every rank the same multipliers, schedules and calls of set_lr_mult, before the "
            "same step, and make a backward pass through the same layers on each"
        )
