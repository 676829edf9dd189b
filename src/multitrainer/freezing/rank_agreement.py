"""Check that all ranks train the same Parameters: a rank that leaves one out would let the others wait forever."""

from __future__ import annotations

from typing import Any, Sequence

from mxnet import nd
from mxnet.gluon import Parameter


class StoreComparison:
    """Compares what the ranks train over a distributed kvstore, whose servers add up what the workers push.

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
        start = nd.zeros(size)
        kvstore.broadcast(key, start, start)
        self._shape = start.shape

    def check(self, params: Sequence[Parameter]) -> None:
        """Raise a RuntimeError on all ranks if they request the gradients of different ``params``."""
        trained = nd.array([param.grad_req != "null" for param in params])
        self._kvstore.pushpull(self._key, trained, out=trained)
        check_counts(params, trained.asnumpy().tolist(), self._kvstore.num_workers)

    def mean(self, value: float) -> float:
        """Return on all ranks the mean of the values that they pass."""
        sent = nd.zeros(self._shape)
        sent[0] = value
        self._kvstore.pushpull(self._key, sent, out=sent)
        return float(sent[0].asscalar()) / int(self._kvstore.num_workers)


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
