"""When: epochs as numbers of updates, and the learning rate over them."""

from __future__ import annotations

import argparse
import inspect
from typing import Any, NamedTuple

import mxnet as mx

from ..errors import UserError
from ..options import not_negative

SCHEDULES = ("constant", "step", "cosine", "poly")
STEPS, FACTOR = (0.5, 0.75), 0.1  # of the epochs, as the training scripts of GluonCV for CIFAR
POWER = 2


class Clock(NamedTuple):
    """A run in updates; the images that are left over from an epoch begin the next one."""

    images: int
    batch_size: int
    epochs: int

    def before(self, epochs: float) -> int:
        """Return how many updates are made in so many epochs."""
        return int(epochs * self.images // self.batch_size)

    def first_update(self, epoch: int) -> int:
        """Return the number of the first update of an epoch; both begin with 1."""
        return self.before(epoch - 1) + 1

    @property
    def total(self) -> int:
        """All updates of the run."""
        return self.before(self.epochs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument(
        "--lr-schedule",
        choices=SCHEDULES,
        help=f"--lr over the epochs: constant (default); step, times {FACTOR:g} after {STEPS[0]:.0%} and "
        f"{STEPS[1]:.0%} of them; cosine and poly (power {POWER}), down to 0".replace("%", "%%"),
    )
    parser.add_argument(
        "--warmup", metavar="EPOCHS", type=not_negative, help="let --lr rise from 0 over so many epochs (default 0)"
    )


def depends_on_epochs(args: argparse.Namespace) -> bool:
    """Whether a run of more epochs would have had other learning rates from the start."""
    return args.lr_schedule not in (None, "constant")


def settings_of(args: argparse.Namespace, optimizer: str, clock: Clock) -> dict[str, Any]:
    """Return what --lr-schedule and --warmup add to the settings of an optimizer.

    Raises
    ------
    UserError
        Where the warm-up is as long as the run, or the optimizer has no learning rate.
    """
    warmup = clock.before(args.warmup or 0)
    if not (depends_on_epochs(args) or args.warmup):
        return {}
    asked = f"--lr-schedule {args.lr_schedule}" if depends_on_epochs(args) else f"--warmup {args.warmup:g}"
    if optimizer == "adadelta":
        raise UserError(f"{asked}: AdaDelta has no learning rate to change; choose another --optimizer")
    if warmup >= clock.total:
        raise UserError(f"--warmup {args.warmup:g}: expected fewer than the {clock.epochs} --epochs of the run")
    rate = _rate(args, optimizer)
    options = {"base_lr": rate, "warmup_steps": warmup}
    schedulers = mx.lr_scheduler
    if args.lr_schedule == "cosine":
        scheduler = schedulers.CosineScheduler(clock.total, **options)
    elif args.lr_schedule == "poly":
        scheduler = schedulers.PolyScheduler(clock.total, pwr=POWER, **options)
    elif args.lr_schedule == "step":
        steps = sorted({max(1, clock.before(share * clock.epochs)) for share in STEPS})
        scheduler = schedulers.MultiFactorScheduler(steps, FACTOR, **options)
    else:
        scheduler = schedulers.FactorScheduler(clock.total, 1.0, **options)
    return {"learning_rate": rate, "lr_scheduler": scheduler}


def _rate(args: argparse.Namespace, optimizer: str) -> float:
    """Return --lr, or what the optimizer takes without it."""
    if args.lr is not None:
        return float(args.lr)
    parameter = inspect.signature(mx.optimizer.Optimizer.opt_registry[optimizer]).parameters.get("learning_rate")
    default = None if parameter is None else parameter.default
    return float(default) if isinstance(default, (int, float)) else 0.01  # mxnet/optimizer/optimizer.py
