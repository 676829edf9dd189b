"""The objective from the options: --label-smoothing, --mixup and --class-weights."""

from __future__ import annotations

import argparse
from typing import Sequence

import numpy as np

from multitrainer.groups.targets import closest_names

from ..arguments import defaults
from ..arguments.loss import has_class_weights, parse_class_weights
from ..data.layout import class_names
from ..data.split import Split
from ..errors import UserError
from .losses import Objective, SoftTargets
from .mixup import Mixup
from .schedule import TrainingLength

MAX_LISTED = 8  # class weights that a line has room for


def check_options(args: argparse.Namespace) -> None:
    """Raise a UserError if the options of the loss contradict each other or the class folders; no image is read."""
    if args.mixup_off_epoch is not None:
        if not args.mixup:
            raise UserError(f"--mixup-off-epoch {args.mixup_off_epoch} needs --mixup ALPHA")
        epochs = args.epochs or defaults.EPOCHS
        if args.mixup_off_epoch >= epochs:
            raise UserError(
                f"--mixup-off-epoch {args.mixup_off_epoch}: the last {args.mixup_off_epoch} of {epochs} epochs would "
                f"be all of them; give a number below {epochs}, or leave --mixup out"
            )
    _weights_as_given(args, class_names(args.data))


def depends_on_epochs(args: argparse.Namespace) -> bool:
    """Return whether a run of more epochs would minimize something else in its earlier ones."""
    return args.mixup_off_epoch is not None


def make_objective(args: argparse.Namespace, split: Split, length: TrainingLength) -> Objective:
    """Make the objective that the options ask for.

    Raises
    ------
    UserError
        If mixup has no two images to mix.
    """
    if not (args.label_smoothing or args.mixup or has_class_weights(args.class_weights or [])):
        return Objective()
    targets = SoftTargets(len(split.classes), args.label_smoothing or 0.0, class_weights(args, split))
    if not args.mixup:
        return Objective(targets)
    if length.batch_size < 2:
        raise UserError("--mixup mixes the images of a batch, and these batches hold one image: raise --batch-size")
    return Objective(targets, Mixup(args.mixup, length.epochs - (args.mixup_off_epoch or 0)))


def describe(args: argparse.Namespace, split: Split) -> str:
    """Return a line for each option whose effect its value does not show."""
    lines = []
    if args.class_weights:
        weights = _list_weights(split.classes, class_weights(args, split))
        lines.append(f"class weights, scaled to a mean of 1 over the images to train on: {weights}")
    if args.mixup:
        lines.append("the training accuracy counts, of the two labels of a mixed image, the one with the larger share")
    return "".join(f"{line}\n" for line in lines)


def class_weights(args: argparse.Namespace, split: Split) -> np.ndarray:
    """Return the weight of each class, scaled so that their mean over the images to train on is 1.

    The loss then has the scale that it has without weights, so that a learning rate keeps its meaning. Torch divides
    the loss of each batch by the sum of its weights instead: the gradient of an image then depends on which other
    images are in its batch, on all ranks.
    """
    counts = np.bincount([label for _, label in split.train.items], minlength=len(split.classes))
    given = _weights_as_given(args, split.classes)
    weights = 1 / counts if given is None else np.array(given) / max(given)
    return np.asarray(weights * (counts.sum() / (weights @ counts)))


def _weights_as_given(args: argparse.Namespace, classes: Sequence[str]) -> list[float] | None:
    """Return the weight of each class as --class-weights names it, or 1; None if they are to be balanced."""
    chosen = parse_class_weights(args.class_weights or [])
    if chosen is None:
        return None
    for name, weight in chosen.items():
        if name not in classes:
            closest = ", ".join(closest_names(name, classes, 5))
            raise UserError(f"--class-weights {name}={weight:g}: there is no class {name}; closest: {closest}")
    weights = [chosen.get(name, 1.0) for name in classes]
    if classes and not any(weights):
        raise UserError("--class-weights: all classes have the weight 0; give one of them a weight above 0")
    return weights


def _list_weights(classes: Sequence[str], weights: np.ndarray) -> str:
    if len(classes) <= MAX_LISTED:
        return ", ".join(f"{name} {weight:.3g}" for name, weight in zip(classes, weights))
    low, high = int(np.argmin(weights)), int(np.argmax(weights))
    return f"from {weights[low]:.3g} ({classes[low]}) to {weights[high]:.3g} ({classes[high]})"
