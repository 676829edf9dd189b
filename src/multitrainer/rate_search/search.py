"""`find_learning_rate`: train a little with rising learning rates, and record the losses."""

from __future__ import annotations

import itertools
import math
import numbers
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from mxnet.ndarray import NDArray
from mxnet.optimizer import Optimizer

from .. import _mxnet
from ..checkpoint import TrainerState
from ..trainer import MultiLRTrainer
from .result import LearningRateSearch
from .snapshot import restored

FEWEST_UPDATES = 10
SMOOTHING = 0.9 ** (99 / 7)  # of the losses that decide when to stop, over one decade: 0.9 with the default arguments
STOP_RATIO = 4  # to the best loss, as in fastai and Lightning


def find_learning_rate(
    trainer: MultiLRTrainer,
    train_step: Callable[[Any], Any],
    batches: Iterable[Any],
    lowest: float = 1e-6,
    highest: float = 10.0,
    num_batches: int = 100,
) -> LearningRateSearch:
    """Suggest a learning rate: train with rising rates, watch the loss, and put everything back.

    Parameters
    ----------
    trainer : MultiLRTrainer
        With the multipliers, the optimizer and the weights from which training is to begin or to go on.
    train_step : callable
        Called as ``train_step(batch)``. It makes a forward and a backward pass, calls ``trainer.step`` once, and
        returns the loss: a number, an array of any shape, or a list of arrays, one for each context.
    batches : iterable
        What `train_step` takes, for example a DataLoader. If it has fewer than `num_batches` batches, it starts again
        from the beginning; an iterator cannot, so it is consumed, and the search ends with it.
    lowest, highest : float, default 1e-6 and 10
        The first and the last base learning rate. Those in between are spaced evenly on a logarithmic scale.
    num_batches : int, default 100
        The number of training steps. If the trainer accumulates gradients, ``trainer.accumulate`` of them make one
        update, at one rate: pass ``100 * trainer.accumulate`` to search as many rates. The search ends before if the
        smoothed loss exceeds four times its best value or the loss is not finite.

    Returns
    -------
    LearningRateSearch
        The rates, the losses, the `suggestion`, a method to set it and one to `plot` it.

    Raises
    ------
    TypeError
        If `trainer` is not a `MultiLRTrainer`, or `train_step` returns something else than a loss.
    ValueError
        If there are batches for fewer than 10 updates, all Parameters are frozen, no loss is finite, or `train_step`
        does not call ``trainer.step`` once. Also for an optimizer without learning rate, for optimizers of groups if
        the trainer's own rate is 0 or one of their rates is unknown, and if the gradients are compressed.
    RuntimeError
        If parameter servers update, because they cannot be reset; or if a Parameter has no values yet.

    Notes
    -----
    *What is varied* is the base rate, which each group multiplies, so the ratios of the groups stay. An optimizer of a
    group keeps the ratio of its base rate to that of the trainer. Schedules stand still: the lr_scheduler is set aside,
    and multipliers that are schedules keep their value of the next update.

    *An lr_scheduler* cannot be given another rate. Build the scheduler and the trainer again, with
    ``found.suggestion`` as its ``base_lr`` and as the ``learning_rate`` of the optimizer.

    *What is put back*, bit for bit, also after an error or Ctrl-C: weights, gradients and statistics of all Parameters
    of the trainer and of its Blocks, the optimizer with its states and counts, the learning rate, schedules,
    multipliers, AMP's loss scale, and the random generators of Python, NumPy and MXNet. Copies of all these arrays are
    kept meanwhile. What `train_step` changes elsewhere, for example in another trainer or a metric, stays changed. The
    kvstore is set up if it was not. MXNet's generators on a GPU cannot be read: they
    are seeded with a number that was drawn from them before the search.

    *Several ranks* call it together, with equally many batches. The loss is the mean over the ranks, so all stop at
    the same rate and get the same suggestion.

    The test is Leslie Smith's (`Cyclical Learning Rates <https://arxiv.org/abs/1506.01186>`_); fastai's ``lr_find`` and
    Lightning's ``Tuner.lr_find`` stop at four times the best loss, too.

    Examples
    --------
    >>> import mxnet as mx
    >>> from mxnet import autograd
    >>> from multitrainer import MultiLRTrainer, find_learning_rate
    >>> net = mx.gluon.nn.Dense(1, in_units=2)
    >>> net.initialize()
    >>> trainer = MultiLRTrainer(net, 'sgd')
    >>> l2 = mx.gluon.loss.L2Loss()
    >>> def train_step(batch):
    ...     with autograd.record():
    ...         loss = l2(net(batch), batch.sum(axis=1))
    ...     loss.backward()
    ...     trainer.step(len(batch))
    ...     return loss
    >>> found = find_learning_rate(trainer, train_step, [mx.nd.random.normal(shape=(8, 2)) for _ in range(20)])
    >>> 0.01 < found.suggestion < 1
    True
    >>> found.set_learning_rates(trainer)  # of all its optimizers
    >>> trainer.learning_rate == found.suggestion
    True
    """
    _check_trainer(trainer)
    per_update = getattr(trainer, "accumulate", 1)
    rates = _rates(lowest, highest, num_batches, per_update)
    state = _set_up(trainer)
    with restored(trainer, state) as snapshot:
        ratios = _ratios(trainer, snapshot.optimizers)
        update = _Update(state, ratios, train_step, per_update)
        losses = _losses(trainer, update, _endless(batches), rates.tolist())
    own = {name: ratios[optimizer] for name, optimizer in trainer.optimizers.items()}
    return LearningRateSearch(rates[: len(losses)], np.array(losses), own)


def _rates(lowest: float, highest: float, num_batches: int, per_update: int) -> np.ndarray:
    for name, value in (("lowest", lowest), ("highest", highest)):
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 < lowest < highest < math.inf:
        raise ValueError(f"learning rates must satisfy 0 < lowest < highest, got {lowest!r} and {highest!r}")
    fewest = FEWEST_UPDATES * per_update
    if not isinstance(num_batches, numbers.Integral) or isinstance(num_batches, bool):
        raise TypeError(f"num_batches must be a whole number, got {num_batches!r}")
    if num_batches < fewest:
        raise ValueError(f"num_batches must be at least {fewest}, for {FEWEST_UPDATES} updates, got {num_batches}")
    return np.geomspace(lowest, highest, int(num_batches) // per_update)


def _check_trainer(trainer: MultiLRTrainer) -> None:
    """Raise an error if this is not a trainer that can be put back."""
    if not isinstance(trainer, MultiLRTrainer):
        raise TypeError(f"trainer must be a MultiLRTrainer, got {type(trainer).__name__}")
    if _mxnet.servers_update(trainer):
        raise RuntimeError(
            "the learning rate cannot be searched if parameter servers update: their weights and states cannot be put "
            "back. Let the workers update: a synchronous kvstore such as 'dist_sync', dense weights and gradients, "
            "update_on_kvstore=False"
        )
    if _mxnet.compresses_gradients(trainer):
        raise ValueError(
            "the learning rate cannot be searched if the kvstore compresses gradients: it keeps what it rounds off, "
            "which cannot be put back. Search with a trainer without compression_params"
        )


def _set_up(trainer: MultiLRTrainer) -> TrainerState:
    """Set up the kvstore and return what the trainer holds, or raise an error if no rate can be found with it."""
    multipliers = trainer._multipliers
    multipliers.sync()
    waiting = [param.name for param in multipliers.known_parameters() if not _mxnet.is_initialized(param)]
    if waiting:
        raise RuntimeError(
            f"these Parameters have no values yet, to which they could be reset: {', '.join(waiting[:3])}"
            f"{', ...' if len(waiting) > 3 else ''}. Initialize the network, and run one forward pass if shapes are "
            "still unknown, before the learning rate is searched"
        )
    if not any(param.lr_mult != 0 and param.grad_req != "null" for param in multipliers.trainable):
        raise ValueError("all Parameters are frozen, so no learning rate has an effect: unfreeze some of them first")
    kind: type = type(trainer.optimizer)
    if not _mxnet.supports_multiplier(kind, "lr_mult"):
        raise ValueError(f"{kind.__name__} has no learning rate that could be searched")
    state = trainer._training()
    trainer._mean_over_ranks(0.0)  # raises if the ranks cannot exchange it
    return state


def _ratios(trainer: MultiLRTrainer, optimizers: Sequence[Optimizer]) -> dict[Optimizer, float]:
    """Divide the base rate of each optimizer by that of the trainer's own."""
    if len(optimizers) == 1:
        return {trainer.optimizer: 1.0}
    base = _base_rate(trainer.optimizer)
    if base == 0:
        raise ValueError("the learning rate of the trainer is 0, to which those of its groups have no ratio")
    return {each: _base_rate(each) / base for each in optimizers}


def _base_rate(optimizer: Optimizer) -> float:
    """Return what the lr_scheduler was built with, or else the learning rate."""
    scheduler = optimizer.lr_scheduler
    # Schedulers change `base_lr` as they go; those that compute it from an original one use that at every update.
    rate = getattr(scheduler, "base_lr_orig", getattr(scheduler, "base_lr", optimizer.lr))
    if rate is None:
        raise ValueError(
            f"the lr_scheduler {scheduler!r} has no base_lr, so the rates of the trainer's optimizers have no ratio: "
            "give it the attribute base_lr"
        )
    return float(rate)


class _Update:
    """Makes one update at a given learning rate, and returns the loss.

    Parameters
    ----------
    state : TrainerState
        What the trainer holds that `train_step` steps.
    ratios : dict of Optimizer to float
        All optimizers of the trainer, and what the learning rate is multiplied with for them.
    train_step : callable
        The user's own.
    num_calls : int
        The most calls of `train_step` that an update takes.
    """

    def __init__(
        self,
        state: TrainerState,
        ratios: Mapping[Optimizer, float],
        train_step: Callable[[Any], Any],
        num_calls: int,
    ) -> None:
        self._ratios, self._train_step, self.num_calls = ratios, train_step, num_calls
        self._may_skip = state.loss_scaler is not None  # AMP skips an update after an overflow

    def __call__(self, rate: float, batches: Iterable[Any]) -> float:
        """Train on ``batches`` until an update is made; return the mean loss."""
        for optimizer, ratio in self._ratios.items():
            optimizer.lr_scheduler, optimizer.lr = None, rate * ratio
        before, losses, made = self._counts(), [], 0
        for batch in batches:
            losses.append(_mean(self._train_step(batch)))
            made = self._updates_since(before)
            if made:
                break
        if made > 1 or not (made or self._may_skip):
            raise ValueError(
                f"train_step made {made or 'no'} update{'s' * (made > 1)}: each call of it must call trainer.step "
                "once, after a backward pass"
            )
        if any(opt.lr != rate * ratio or opt.lr_scheduler for opt, ratio in self._ratios.items()):
            raise ValueError("train_step must not set the learning rate, which find_learning_rate varies")
        return sum(losses) / len(losses)

    def _counts(self) -> list[dict[int, int]]:
        return [_mxnet.update_counts(optimizer) for optimizer in self._ratios]

    def _updates_since(self, before: list[dict[int, int]]) -> int:
        """Count the updates of the Parameter that was updated most."""
        grown = (
            count - earlier.get(index, 0)
            for now, earlier in zip(self._counts(), before)
            for index, count in now.items()
        )
        return max(grown, default=0)


def _losses(trainer: MultiLRTrainer, update: _Update, batches: Iterator[Any], rates: Sequence[float]) -> list[float]:
    """Make an update at each of the rates, until the loss diverges or a rank has no batches left."""
    losses: list[float] = []
    average, best = 0.0, math.inf
    smoothing = SMOOTHING ** math.log10(rates[1] / rates[0])
    for rate in rates:
        group = list(itertools.islice(batches, update.num_calls))
        if trainer._mean_over_ranks(float(len(group) == update.num_calls)) < 1:
            _check_enough(len(losses))
            break
        losses.append(trainer._mean_over_ranks(update(rate, group)))
        average = smoothing * average + (1 - smoothing) * losses[-1]
        smoothed = average / (1 - smoothing ** len(losses))
        best = min(best, smoothed)
        if not smoothed - best <= (STOP_RATIO - 1) * abs(best):  # which nan is not either
            break
    if not math.isfinite(losses[0]):
        raise ValueError(
            f"the loss is {losses[0]} at the lowest learning rate, {rates[0]:g}, before any update: check the weights, "
            "the data and the loss"
        )
    return losses


def _check_enough(num_updates: int) -> None:
    if num_updates < FEWEST_UPDATES:
        raise ValueError(
            f"batches ended after {num_updates} update{'s' * (num_updates != 1)}, and a search needs at least "
            f"{FEWEST_UPDATES}: pass a list or a DataLoader, which can start again, or more batches"
        )


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches, again and again unless they come from an iterator."""
    while True:
        iterator, count = iter(batches), 0
        for batch in iterator:
            count += 1
            yield batch
        if iterator is batches or not count:
            return


def _mean(loss: Any) -> float:
    """Return the mean of all values of a loss."""
    parts = loss if isinstance(loss, (list, tuple)) else [loss]
    try:
        if any(part is None or isinstance(part, str) for part in parts):
            raise TypeError("it is no number")
        values = [np.ravel(part.asnumpy() if isinstance(part, NDArray) else part).astype(float) for part in parts]
        if not any(map(len, values)):
            raise TypeError("it has no values")
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"train_step must return the loss, a number, an array or a list of arrays, got {type(loss).__name__}"
        ) from error
    return float(np.concatenate(values).mean())
