"""`WeightAverage`: an exponential moving average of the weights that a trainer trains."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Iterable, Iterator

import numpy as np
from mxnet import autograd, nd
from mxnet.gluon import Parameter
from mxnet.ndarray import NDArray

from . import _mxnet
from .checkpoint import average_file
from .trainer import MultiLRTrainer


class WeightAverage:
    """Average the weights of a network over the updates of its trainer, to evaluate with the averages.

    Call `update` after every step. After the n-th update, with weights w(n), each average is ::

        average(n) = decay(n) * average(n - 1) + (1 - decay(n)) * w(n)
        decay(n)   = decay                              without warm-up
        decay(n)   = min(decay, (1 + n) / (10 + n))     with warm-up

    and average(0) is the weight before the first update.

    Parameters
    ----------
    trainer : MultiLRTrainer
        Its trained Parameters are averaged.
    decay : float, default 0.999
        In [0, 1). The average goes back about ``1 / (1 - decay)`` updates.
    warmup : bool, default False
        Start with a small decay, so that the average soon forgets the weights that training began with. Use it if
        there are fewer than some ``5 / (1 - decay)`` updates in all.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or value, or if a weight is row_sparse.

    Notes
    -----
    *Parameters.* A Parameter that is frozen equals its average, and takes no memory until an update changes it first.
    From then on it has an average, frozen or not. Parameters that are deferred, or added later, need nothing. BatchNorm
    statistics are not averaged: they are moving averages already, and `applied` leaves those of the network in place.

    *Memory.* One array for each Parameter that was trained, in float32 at least, on the Parameter's first context, and
    twice that inside `applied`; on several contexts, one more for each of them.

    *Counting.* An update counts if it changed weights: `update` does nothing if the trainer has completed none since
    the last call, because gradients were accumulated or AMP skipped it. Several steps between two calls count as one.

    *Weights that are assigned by hand*, as by ``load_parameters``, are averaged from the next update on, like all
    others. Build a new `WeightAverage` to begin with them.

    *Ranks* that hold the same weights hold the same averages; nothing is sent.

    The formula and the warm-up are those of ``tf.train.ExponentialMovingAverage``. Its ``num_updates`` is n.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import MultiLRTrainer, WeightAverage
    >>> net = mx.gluon.nn.Dense(1, use_bias=False, in_units=1)
    >>> net.initialize(mx.init.One())
    >>> trainer = MultiLRTrainer(net, 'sgd', {'learning_rate': 1})
    >>> average = WeightAverage(trainer, decay=0.75)
    >>> for _ in range(2):
    ...     with mx.autograd.record():
    ...         loss = net(mx.nd.ones((1, 1)))
    ...     loss.backward()
    ...     trainer.step(1)
    ...     average.update()
    >>> net.weight.data().asnumpy().item()
    -1.0
    >>> with average.applied():
    ...     net.weight.data().asnumpy().item()
    0.3125
    """

    def __init__(self, trainer: MultiLRTrainer, decay: float = 0.999, warmup: bool = False) -> None:
        if not isinstance(trainer, MultiLRTrainer):
            raise TypeError(f"trainer must be a MultiLRTrainer, got {type(trainer).__name__}")
        if not isinstance(warmup, bool):
            raise TypeError(f"warmup must be True or False, not {warmup!r}")
        _check_dense(trainer._multipliers.trainable)
        self.decay = decay
        self._warmup = warmup
        self._trainer = trainer
        self._arrays: dict[Parameter, NDArray] = {}
        self._num_updates = 0
        self._updates_seen = trainer._averages.updates
        trainer._averages.add(self)

    def __getstate__(self) -> dict[str, Any]:
        # `copy.copy`, too, must give an average with arrays of its own, because `update` changes them in place.
        return {**vars(self), "_arrays": {param: array.copy() for param, array in self._arrays.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._trainer._averages.add(self)

    def __repr__(self) -> str:
        warmup = ", warmup=True" if self._warmup else ""
        return (
            f"{type(self).__name__}(decay={self._decay:g}{warmup}, {self._num_updates} updates, "
            f"{len(self._arrays)} parameters)"
        )

    @property
    def decay(self) -> float:
        """The decay, after the warm-up; it can be set at any time."""
        return self._decay

    @decay.setter
    def decay(self, decay: float) -> None:
        self._decay = _checked_decay(decay)

    @property
    def num_updates(self) -> int:
        """How many updates were averaged."""
        return self._num_updates

    def update(self) -> None:
        """Average the weights as they are now; call it after each step, and after ``trainer.flush()``.

        Raises
        ------
        RuntimeError
            Inside `applied`, where the weights of the network are averages; or if another trainer was built for the
            Parameters, because this one makes no more updates.
        """
        self._trainer._averages.check_not_applied("average.update()")
        if self._updates_seen == self._trainer._averages.updates:
            self._check_owner()
            return
        self._updates_seen = self._trainer._averages.updates
        self._num_updates += 1
        n = self._num_updates
        decay = min(self._decay, (1 + n) / (10 + n)) if self._warmup else self._decay
        with autograd.pause():
            for param, average in self._arrays.items():
                _interpolate(average, _weight_like(average, param), decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the network have the averages for its weights inside a ``with`` block.

        The trained weights are put back at the end of the block, bit for bit, also after an exception. A network that
        was cast, moved or initialized again inside gets back all its arrays, with their dtype and context.
        ``net.save_parameters`` inside the block saves the averaged network.

        Do not assign weights inside the block, as with ``net.load_parameters``: what Parameters with an average get
        is lost at its end; weights that were always frozen, and BatchNorm statistics, keep it.

        Raises
        ------
        RuntimeError
            If called inside another `applied`. Inside the block, `update` and ``trainer.step`` raise it too.
        """
        averages = self._trainer._averages
        averages.check_not_applied("average.applied()")
        params = filter(_mxnet.is_initialized, self._trainer._multipliers.known_parameters())
        arrays = [_mxnet.ParameterArrays(param) for param in params]
        with autograd.pause():
            trained = {param: [array.copy() for array in _weights(param)] for param in self._arrays}
        try:
            averages.applied = True
            with autograd.pause():
                for param, average in self._arrays.items():
                    for array in _weights(param):
                        average.copyto(array)
            yield
        finally:
            for each in arrays:
                each.put_back()
            with autograd.pause():
                for param, weights in trained.items():
                    for weight, array in zip(weights, _weights(param)):
                        weight.copyto(array)
            averages.applied = False  # last: if this was interrupted, the next step raises

    def save(self, fname: str | os.PathLike[str]) -> None:
        """Save the averages, to be resumed bit for bit.

        The file is an .npz like that of `MultiLRTrainer.save_states`, written atomically. It identifies Parameters by
        name, and does not hold the weights.

        Parameters
        ----------
        fname : str or PathLike
            The file, which is replaced. If several workers update, rank 0 writes it and the others return.

        Raises
        ------
        RuntimeError
            If a Parameter has no values yet.
        OSError
            If the file cannot be written; an earlier file of that name is left as it was.

        Examples
        --------
        >>> import os, tempfile
        >>> import mxnet as mx
        >>> from multitrainer import MultiLRTrainer, WeightAverage
        >>> net = mx.gluon.nn.Dense(1, in_units=2, prefix='fc_')
        >>> net.initialize()
        >>> trainer = MultiLRTrainer(net, 'sgd')
        >>> fname = os.path.join(tempfile.mkdtemp(), 'average.npz')
        >>> WeightAverage(trainer, decay=0.99).save(fname)
        >>> average = WeightAverage(trainer)
        >>> average.load(fname)
        {}
        >>> average.decay
        0.99
        """
        state = average_file.AverageState(
            {param.name: array for param, array in self._arrays.items()},
            self._decay,
            self._warmup,
            self._num_updates,
            self._updates_seen != self._trainer._averages.updates,
        )
        trainable = self._trainer._multipliers.trainable
        average_file.check_initialized(trainable)
        if self._trainer._writes_states():
            average_file.save(Path(fname), trainable, state)

    def load(self, fname: str | os.PathLike[str], partial: bool = False) -> dict[str, str]:
        """Restore the averages, their number of updates, the decay and the warm-up from a file of `save`.

        A file that is refused changes nothing. Load the weights with ``net.load_parameters`` and the states with
        ``trainer.load_states``, in any order with this.

        Parameters
        ----------
        fname : str or PathLike
            The file. Every rank loads it.
        partial : bool, default False
            Load the Parameters that file and trainer share, even if others differ.

        Returns
        -------
        dict of str to str
            The Parameters of the file or of the trainer that `partial` left out, each with the reason.

        Raises
        ------
        ValueError
            If the file is damaged or not one of `save`; or if it has other Parameters, or other shapes or dtypes (all
            are listed).
        RuntimeError
            Inside `applied`; or if a Parameter has no values yet.
        """
        self._trainer._averages.check_not_applied("average.load()")
        trainable = self._trainer._multipliers.trainable
        average_file.check_initialized(trainable)
        state, left_out = average_file.load(Path(fname), trainable, partial)
        arrays = {param: array for param, array in self._arrays.items() if param.name in left_out}
        for param in trainable:
            loaded = state.arrays.get(param.name)
            if loaded is not None:
                arrays[param] = nd.array(loaded, param.list_ctx()[0], loaded.dtype)
        self._arrays, self._num_updates = arrays, state.num_updates
        self._decay, self._warmup = state.decay, state.warmup
        self._updates_seen = self._trainer._averages.updates - state.is_behind
        return left_out

    def _check_owner(self) -> None:
        others = [p.name for p in self._trainer._multipliers.trainable if _mxnet.trainer_of(p) is not self._trainer]
        if others:
            raise RuntimeError(
                f"the trainer of this average has made no update since the last average.update(), and another trainer "
                f"was built for {others[0]!r}: "
                "average the weights of that one, WeightAverage(trainer); its load() can take over these averages"
            )

    def _include(self, params: Iterable[Parameter]) -> None:
        """Begin averages of those Parameters that have none; the trainer calls it before each update."""
        new = [param for param in params if param not in self._arrays and _mxnet.is_initialized(param)]
        _check_dense(new)
        with autograd.pause():
            for param in new:
                weight = _weights(param)[0]
                self._arrays[param] = weight.astype(average_file.average_dtype(weight.dtype), copy=True)


def _weights(param: Parameter) -> list[NDArray]:
    """Return the arrays of a Parameter, one for each context."""
    return [array.as_nd_ndarray() for array in param.list_data()]


def _weight_like(average: NDArray, param: Parameter) -> NDArray:
    """Return the weight of a Parameter, as a copy if its dtype or context is not that of the average."""
    return _weights(param)[0].as_in_context(average.context).astype(average.dtype, copy=False)


def _interpolate(average: NDArray, weight: NDArray, decay: float) -> None:
    """Set `average` to ``decay * average + (1 - decay) * weight``."""
    # One of the two less a part of their difference: two factors, each rounded for itself, add up to 1 only nearly, and
    # long averages amplify that. The part is at most a half, so that a decay of 0 gives the weight itself.
    start, other, part = (average, weight, 1 - decay) if decay >= 0.5 else (weight, average, decay)
    difference = nd.elemwise_sub(start, other)
    difference *= part
    nd.elemwise_sub(start, difference, out=average)


def _checked_decay(decay: Any) -> float:
    if isinstance(decay, bool) or not isinstance(decay, (int, float, np.integer, np.floating)):
        raise TypeError(f"decay must be a number, not {decay!r}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), not {decay!r}: 0.999 averages over about 1,000 updates")
    return float(decay)


def _check_dense(params: Iterable[Parameter]) -> None:
    sparse = [param.name for param in params if _mxnet.has_sparse_weight(param)]
    if sparse:
        raise ValueError(
            f"the weights of these Parameters are row_sparse, and only dense weights can be averaged: "
            f"{', '.join(sparse)}. Use a dense weight, whose gradient may be row_sparse (grad_stype='row_sparse')"
        )
