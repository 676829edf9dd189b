"""Put back the random generators of Python, NumPy and MXNet."""

from __future__ import annotations

import random
from typing import Iterable

import mxnet as mx
import numpy as np
from mxnet.context import Context

from .. import _mxnet


class RandomStates:
    """The states of the global random generators, as they are now.

    MXNet can seed its generators and cannot read them. On the CPU their memory is read. If that is not possible, they
    are seeded with a number that was drawn from them before: then every run continues with the same numbers, but not
    with those that it would have had.

    Parameters
    ----------
    contexts : iterable of Context
        The devices on which numbers are drawn.
    """

    def __init__(self, contexts: Iterable[Context]) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._generators = _mxnet.cpu_generators()
        self._saved = [states.copy() for states in self._generators or ()]
        self._seeds = {context: _draw_seed(context) for context in contexts if self._must_be_seeded(context)}

    def restore(self) -> None:
        """Put the states back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        for context, seed in self._seeds.items():
            mx.random.seed(seed, ctx=context)
        mx.nd.waitall()
        for states, before in zip(self._generators or (), self._saved):
            states[:] = before

    def _must_be_seeded(self, context: Context) -> bool:
        return self._generators is None or not context.device_type.startswith("cpu")


def _draw_seed(context: Context) -> int:
    return int(mx.nd.random.randint(0, 2**31 - 1, shape=1, ctx=context).asscalar())
