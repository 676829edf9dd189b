"""One training loop, for a user's images and for the embedded digits alike."""

from __future__ import annotations

import collections
import math
import random
import signal
import threading
import time
from typing import Any, Iterable, Iterator, Sequence

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from ... import MultiLRTrainer, _mxnet
from ..errors import UserError, require
from ..ranks.exchange import Ranks


def seed_everything(seed: int) -> None:
    """Seed the generators of MXNet, NumPy and Python."""
    random.seed(seed)
    np.random.seed(seed)
    mx.random.seed(seed)


class Loader(gluon.data.DataLoader):
    """A DataLoader that can go on where another one stopped.

    Parameters
    ----------
    dataset : Dataset
        What there is.
    batches : BatchSampler
        Which of it makes a batch, epoch by epoch.
    **options
        Passed on to `gluon.data.DataLoader`.
    """

    def __init__(self, dataset: Any, batches: gluon.data.BatchSampler, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=batches, **options)
        self.batches = batches

    def skip(self, epochs: int) -> None:
        """Draw the order of as many epochs, without loading anything: the next one is as if they had been trained."""
        for _ in range(epochs):
            collections.deque(self.batches, maxlen=0)


class Interrupts:
    """Ctrl-C as a question asked between two batches; a second one ends the process at once.

    Python raises KeyboardInterrupt wherever it happens to be. With MXNet that is often the ``__del__`` of an array,
    where it is printed and lost.

    Examples
    --------
    >>> with Interrupts() as interrupts:
    ...     interrupts.check()
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        # Whoever has set a handler of their own keeps it; only the main thread may set one.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler and _in_main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, *_: object) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._asked:
            raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class _Tally:
    """Loss and accuracy of an epoch, read one batch late so that the device does not wait for Python."""

    def __init__(self) -> None:
        self.loss = self.correct = 0.0
        self.images = 0.0
        self._pending: tuple[list[mx.nd.NDArray], list[mx.nd.NDArray], int] | None = None

    def add(self, losses: list[mx.nd.NDArray], correct: list[mx.nd.NDArray], images: int) -> None:
        self.settle()
        self._pending = (losses, correct, images)

    def settle(self) -> None:
        if self._pending is not None:
            losses, correct, images = self._pending
            self.loss += sum(float(loss.asscalar()) for loss in losses)
            self.correct += sum(float(count.asscalar()) for count in correct)
            self.images += images
            self._pending = None
        if not math.isfinite(self.loss):
            raise UserError("training diverged, the loss is no longer a number: lower --lr or the multipliers")

    def over(self, ranks: Ranks) -> _Tally:
        """Return what all ranks have together."""
        total = _Tally()
        total.loss, total.correct, total.images = ranks.sum(np.array([self.loss, self.correct, self.images])).tolist()
        return total

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.images, 1)

    @property
    def accuracy(self) -> float:
        return self.correct / max(self.images, 1)


def fit(
    net: gluon.Block,
    trainer: MultiLRTrainer,
    train: gluon.data.DataLoader,
    val: Iterable[Any],
    contexts: Sequence[mx.Context],
    epochs: int,
    interrupts: Interrupts,
    title: str = "",
    measure_every: int = 1,
    ranks: Ranks | None = None,
    seed: int = 0,
    done: int = 0,
) -> Iterator[dict[str, Any]]:
    """Train, and give one row of metrics after every epoch.

    Parameters
    ----------
    net : Block
        The network; the parameters it has on `contexts` are trained in place.
    trainer : MultiLRTrainer
        Owns the groups.
    train, val : DataLoader
        Batches of images and labels.
    contexts : sequence of Context
        The devices a batch is divided among.
    epochs : int
        How often to go through `train`.
    interrupts : Interrupts
        Asked between two batches whether to stop.
    title : str
        What the progress bar begins with.
    measure_every : int
        Epochs between two measurements on `val`; the last epoch is always measured. In between, val_accuracy is None.
    ranks : Ranks, optional
        Those that train together; each has batches of its own, and all get the same rows.
    seed : int
        Decides what layers such as Dropout draw; each epoch begins anew from it, so that a run can go on from any.
    done : int
        Epochs of this run that were trained before; `train` has skipped them.

    Yields
    ------
    dict
        epoch, train_loss, train_accuracy, val_accuracy, images_per_second, seconds (both of the training alone) and
        learning_rates by group, at the epoch's first update.
    """
    ranks = ranks or Ranks()
    for epoch in range(done + 1, epochs + 1):
        mx.random.seed((seed + 1_000_003 * epoch) % 2**31)
        rates = dict(trainer.learning_rates)
        began = time.perf_counter()
        tally = _train(net, trainer, train, contexts, interrupts, f"{title}epoch {epoch}/{epochs}", ranks).over(ranks)
        seconds = time.perf_counter() - began
        # Each rank's statistics follow its own batches; all measure the network that rank 0 keeps.
        ranks.broadcast_parameters(param for param in net.collect_params().values() if _mxnet.is_statistic(param))
        measured = epoch % measure_every == 0 or epoch == epochs
        yield {
            "epoch": epoch,
            "train_loss": round(tally.mean_loss, 6),
            "train_accuracy": round(tally.accuracy, 6),
            "val_accuracy": round(_measure(net, val, contexts, interrupts, ranks), 6) if measured else None,
            "images_per_second": round(tally.images / seconds, 1),
            "seconds": round(seconds, 3),
            "learning_rates": rates,
        }


def _measure(
    net: gluon.Block, batches: Iterable[Any], contexts: Sequence[mx.Context], interrupts: Interrupts, ranks: Ranks
) -> float:
    """Return the share of images whose highest score is their label."""
    tally = _Tally()
    for data, label in batches:
        interrupts.check()
        outputs = [net(x) for x in split(data, contexts)]
        tally.add([], _count_correct(outputs, split(label, contexts)), len(data))
    tally.settle()
    return tally.over(ranks).accuracy


def _train(
    net: gluon.Block,
    trainer: MultiLRTrainer,
    batches: gluon.data.DataLoader,
    contexts: Sequence[mx.Context],
    interrupts: Interrupts,
    title: str,
    ranks: Ranks,
) -> _Tally:
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    tally = _Tally()
    hidden = None if ranks.is_first else True  # None: no bar where stderr is no terminal
    with require("tqdm").tqdm(desc=title, unit=" images", leave=False, disable=hidden, dynamic_ncols=True) as bar:
        count = len(batches)  # of this epoch; asked while it runs, the loader tells the next one's
        for data, label in batches:
            interrupts.check()
            bar.total = count * len(data)
            labels = split(label, contexts)
            with autograd.record():
                outputs = [net(x) for x in split(data, contexts)]
                losses = [loss_function(output, y) for output, y in zip(outputs, labels)]
            autograd.backward(losses)
            trainer.step(ranks.step_batch_size(len(data)))
            tally.add([loss.sum() for loss in losses], _count_correct(outputs, labels), len(data))
            if tally.images:
                bar.set_postfix(loss=f"{tally.mean_loss:.3f}", accuracy=f"{tally.accuracy:.1%}", refresh=False)
            bar.update(len(data))
        tally.settle()
    return tally


def split(array: mx.nd.NDArray, contexts: Sequence[mx.Context]) -> list[mx.nd.NDArray]:
    """Divide a batch among devices."""
    # The last batch of a validation set may hold fewer images than there are devices.
    used = list(contexts[: len(array)])
    return gluon.utils.split_and_load(array, used, even_split=False)


def _count_correct(outputs: list[mx.nd.NDArray], labels: list[mx.nd.NDArray]) -> list[mx.nd.NDArray]:
    return [(output.argmax(axis=1) == y.astype("float32")).sum() for output, y in zip(outputs, labels)]
