"""The training loop: epochs of updates, validation, and one row of metrics for each epoch."""

from __future__ import annotations

import math
import random
import time
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from multitrainer import MultiLRTrainer, WeightAverage, _mxnet

from ..errors import UserError, require
from ..interrupts import Interrupts
from ..ranks.exchange import Ranks
from . import average as averaging
from .losses import Objective


class DivergedError(UserError):
    """The loss is no longer a finite number."""


def seed_everything(seed: int) -> None:
    """Seed the generators of MXNet, NumPy and Python."""
    random.seed(seed)
    np.random.seed(seed)
    mx.random.seed(seed)


class _Tally:
    """Loss and accuracy of an epoch, read one batch late so that the device does not wait for Python."""

    def __init__(self) -> None:
        self.loss = self.correct = 0.0
        self.images = 0.0
        self._pending: tuple[list[mx.nd.NDArray], list[mx.nd.NDArray], int] | None = None

    def add(self, losses: list[mx.nd.NDArray], correct: list[mx.nd.NDArray], images: int) -> None:
        self.read_pending()
        self._pending = ([loss.sum() for loss in losses], correct, images)

    def read_pending(self) -> None:
        if self._pending is not None:
            losses, correct, images = self._pending
            self.loss += sum(float(loss.asscalar()) for loss in losses)
            self.correct += sum(float(count.asscalar()) for count in correct)
            self.images += images
            self._pending = None
        if not math.isfinite(self.loss):
            raise DivergedError("training diverged, the loss is no longer a number: lower --lr or the multipliers")

    def sum_over(self, ranks: Ranks) -> _Tally:
        """Return the tally of all ranks together."""
        total = _Tally()
        total.loss, total.correct, total.images = ranks.sum(np.array([self.loss, self.correct, self.images])).tolist()
        total.read_pending()  # in float32 the sum may not be finite
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
    *,
    objective: Objective | None = None,
    title: str = "",
    measure_every: int = 1,
    ranks: Ranks | None = None,
    seed: int = 0,
    epochs_done: int = 0,
    average: WeightAverage | None = None,
) -> Iterator[dict[str, Any]]:
    """Train, and yield one row of metrics after every epoch.

    Parameters
    ----------
    net : Block
        The network; the parameters it has on `contexts` are trained in place.
    trainer : MultiLRTrainer
        Updates the parameters.
    train, val : DataLoader
        Batches of images and labels.
    contexts : sequence of Context
        The devices that share a batch.
    epochs : int
        The number of epochs of the run.
    interrupts : Interrupts
        Checked between two batches.
    objective : Objective, optional
        What is minimized, by default the mean cross-entropy.
    title : str
        The beginning of the progress bar.
    measure_every : int
        Epochs between two validations; the last epoch always ends with one. In between, val_loss and val_accuracy are
        None.
    ranks : Ranks, optional
        The ranks that train together; each has batches of its own, and all get the same rows.
    seed : int
        Decides what is drawn by layers such as Dropout and by the objective. Every epoch seeds MXNet again, so that a
        run can resume at any epoch.
    epochs_done : int
        Epochs of this run that were trained before; `train` has skipped them.
    average : WeightAverage, optional
        Averages the weights after every update; the network is validated with these averages.

    Yields
    ------
    dict
        epoch, train_loss (the mean of what is minimized), train_accuracy, val_loss (the mean cross-entropy, whatever
        is minimized), val_accuracy, images_per_second, seconds (both of the training alone) and learning_rates by
        group, at the epoch's first update.
    """
    training = _Training(net, trainer, contexts, interrupts, objective or Objective(), ranks or Ranks(), seed, average)
    for epoch in range(epochs_done + 1, epochs + 1):
        mx.random.seed((seed + 1_000_003 * epoch) % 2**31)
        rates = dict(trainer.learning_rates)
        began = time.perf_counter()
        trained = training.train_epoch(train, epoch, f"{title}epoch {epoch}/{epochs}")
        seconds = time.perf_counter() - began
        # Each rank's statistics follow its own batches; all validate the network that rank 0 keeps.
        statistics = (param for param in net.collect_params().values() if _mxnet.is_statistic(param))
        training.ranks.broadcast_parameters(statistics)
        with averaging.applied(average):
            measured = training.validate(val) if epoch % measure_every == 0 or epoch == epochs else None
        yield {
            "epoch": epoch,
            "train_loss": round(trained.mean_loss, 6),
            "train_accuracy": round(trained.accuracy, 6),
            "val_loss": round(measured.mean_loss, 6) if measured else None,
            "val_accuracy": round(measured.accuracy, 6) if measured else None,
            "images_per_second": round(trained.images / seconds, 1),
            "seconds": round(seconds, 3),
            "learning_rates": rates,
        }


def split_batch(array: mx.nd.NDArray, contexts: Sequence[mx.Context]) -> list[mx.nd.NDArray]:
    """Divide a batch among devices."""
    # The last batch to validate on may hold fewer images than there are devices.
    used = list(contexts[: len(array)])
    return gluon.utils.split_and_load(array, used, even_split=False)


def compute_gradients(
    net: gluon.Block,
    objective: Objective,
    images: mx.nd.NDArray,
    targets: mx.nd.NDArray,
    contexts: Sequence[mx.Context],
) -> tuple[list[mx.nd.NDArray], list[mx.nd.NDArray]]:
    """Make the forward and the backward pass of a batch; return outputs and losses, an array for each device."""
    with autograd.record():
        outputs = [net(part) for part in split_batch(images, contexts)]
        losses = [objective.loss(output, part) for output, part in zip(outputs, split_batch(targets, contexts))]
    autograd.backward(losses)
    return outputs, losses


class _Training(NamedTuple):
    """A network in training, and what an epoch of it needs."""

    net: gluon.Block
    trainer: MultiLRTrainer
    contexts: Sequence[mx.Context]
    interrupts: Interrupts
    objective: Objective
    ranks: Ranks
    seed: int
    average: WeightAverage | None

    def train_epoch(self, loader: gluon.data.DataLoader, epoch: int, title: str) -> _Tally:
        """Train on every batch of an epoch; return loss and accuracy on all ranks."""
        tally = _Tally()
        disable = None if self.ranks.is_first else True  # None: tqdm draws no bar if stderr is not a terminal
        with require("tqdm").tqdm(desc=title, unit=" images", leave=False, disable=disable, dynamic_ncols=True) as bar:
            count = len(loader)  # of this epoch; once it runs, the loader gives the length of the next one
            for images, labels, targets in self.objective.batches(loader, self.seed, epoch):
                self.interrupts.check()
                bar.total = count * len(images)
                outputs, losses = compute_gradients(self.net, self.objective, images, targets, self.contexts)
                self.trainer.step(self.ranks.step_batch_size(len(images)))
                averaging.update(self.average)
                tally.add(losses, _count_correct(outputs, split_batch(labels, self.contexts)), len(images))
                if tally.images:
                    bar.set_postfix(loss=f"{tally.mean_loss:.4g}", accuracy=f"{tally.accuracy:.1%}", refresh=False)
                bar.update(len(images))
            self.trainer.flush()  # the batches that are left of the epoch, if an update has several
            averaging.update(self.average)
            tally.read_pending()
        return tally.sum_over(self.ranks)

    def validate(self, loader: Iterable[Any]) -> _Tally:
        """Return the cross-entropy, and how many labels have the highest score, on all ranks."""
        cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()
        tally = _Tally()
        for images, labels in loader:
            self.interrupts.check()
            parts = split_batch(labels, self.contexts)
            outputs = [self.net(x) for x in split_batch(images, self.contexts)]
            losses = [cross_entropy(output, part) for output, part in zip(outputs, parts)]
            tally.add(losses, _count_correct(outputs, parts), len(images))
        tally.read_pending()
        return tally.sum_over(self.ranks)


def _count_correct(outputs: list[mx.nd.NDArray], labels: list[mx.nd.NDArray]) -> list[mx.nd.NDArray]:
    return [(output.argmax(axis=1) == y.astype("float32")).sum() for output, y in zip(outputs, labels)]
