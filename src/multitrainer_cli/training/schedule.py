"""The learning rate over the updates of a run, and epochs expressed as numbers of updates."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import mxnet as mx

from ..arguments.training import FACTOR, POWER, STEPS
from ..errors import UserError
from .optimizer import OptimizerChoice, default_rate


class TrainingLength(NamedTuple):
    """How long a run is, in epochs, batches and updates.

    The images that are left over after the last batch of an epoch begin the next epoch. An update has the gradients of
    `accumulate` batches, and the last update of an epoch those of the batches that are left.
    """

    images: int
    batch_size: int
    epochs: int
    accumulate: int = 1

    def batches_in(self, epochs: float) -> int:
        """Return the number of batches in the first `epochs` epochs."""
        return int(epochs * self.images // self.batch_size)

    def updates_in(self, epochs: float) -> int:
        """Return the number of updates in the first `epochs` epochs."""
        whole = int(epochs)
        begun = self.batches_in(epochs) - self.batches_in(whole)  # of the epoch under way
        fewest = self.images // self.batch_size  # batches in an epoch; some have one more
        longer = self.batches_in(whole) - whole * fewest
        complete = (whole - longer) * self._updates_of(fewest) + longer * self._updates_of(fewest + 1)
        return complete + begun // self.accumulate

    def _updates_of(self, batches: int) -> int:
        """Return the number of updates in an epoch of so many batches."""
        return -(-batches // self.accumulate)

    def first_update(self, epoch: int) -> int:
        """Return the number of the first update of an epoch; both are counted from 1."""
        return self.updates_in(epoch - 1) + 1

    def epoch_of(self, update: int) -> int:
        """Return the epoch of an update; both are counted from 1."""
        first, last = 1, self.epochs
        while first < last:
            middle = (first + last) // 2
            first, last = (first, middle) if self.updates_in(middle) >= update else (middle + 1, last)
        return first

    @property
    def updates(self) -> int:
        """The number of updates in the whole run."""
        return self.updates_in(self.epochs)


def depends_on_epochs(args: argparse.Namespace) -> bool:
    """Return whether a run of more epochs would have other learning rates from the start."""
    return args.lr_schedule not in (None, "constant")


def add_scheduler(optimizer: OptimizerChoice, args: argparse.Namespace, length: TrainingLength) -> OptimizerChoice:
    """Add the scheduler that --lr-schedule and --warmup ask for to the settings of an optimizer.

    Raises
    ------
    UserError
        If the warm-up is as long as the run, or the optimizer has no learning rate.
    """
    if not (depends_on_epochs(args) or args.warmup):
        return optimizer
    option = f"--lr-schedule {args.lr_schedule}" if depends_on_epochs(args) else f"--warmup {args.warmup:g}"
    if optimizer.name == "adadelta":
        raise UserError(f"{option}: AdaDelta has no learning rate to change; choose another --optimizer")
    warmup = length.updates_in(min(args.warmup or 0, length.epochs))
    if warmup >= length.updates:
        raise UserError(f"--warmup {args.warmup:g}: expected fewer than the {length.epochs} --epochs of the run")
    rate = optimizer.settings.get("learning_rate", default_rate(optimizer.name))
    scheduler = _make_scheduler(args.lr_schedule, length, base_lr=rate, warmup_steps=warmup)
    return optimizer._replace(settings={**optimizer.settings, "learning_rate": rate, "lr_scheduler": scheduler})


def _make_scheduler(name: str | None, length: TrainingLength, **options: Any) -> mx.lr_scheduler.LRScheduler:
    # To 0 after the last update: at 0, Ftrl and FTML make the weights nan, and SGLD raises an error.
    if name == "cosine":
        return mx.lr_scheduler.CosineScheduler(length.updates + 1, **options)
    if name == "poly":
        return mx.lr_scheduler.PolyScheduler(length.updates + 1, pwr=POWER, **options)
    if name == "step":
        steps = sorted({max(1, length.updates_in(share * length.epochs)) for share in STEPS})
        return mx.lr_scheduler.MultiFactorScheduler(steps, FACTOR, **options)
    return mx.lr_scheduler.FactorScheduler(length.updates, 1.0, **options)
