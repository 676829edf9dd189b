"""``multitrainer groups``: the table of groups and their learning rates over a run, without training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Sequence

import mxnet as mx
import numpy as np

from multitrainer import MultiLRTrainer, unfreeze_at
from multitrainer.plotting import draw_learning_rates

from .arguments import defaults
from .arguments.groups import CLASSES, EPOCHS, IMAGES, PICTURE
from .data.split import Split, open_folder
from .errors import UserError, require
from .ranks.exchange import Ranks
from .runs import artifacts
from .runs.picture import check_picture
from .training import loss_options, network, param_groups, schedule, zoo
from .training.group_table import describe_groups
from .training.optimizer import OptimizerChoice, parse_optimizer
from .training.schedule import TrainingLength

MAX_DRAWN = 5000  # updates; more than the picture has columns


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    optimizer = parse_optimizer(args.optimizer, args.lr, args.wd)
    picture = _check_picture(args)
    split = _open_data(args)
    model = args.model or defaults.MODEL
    classes = len(split.classes) if split else args.classes or CLASSES
    images = len(split.train) if split else args.images or IMAGES
    batch_size = min(args.batch_size or defaults.BATCH_SIZE, images)
    length = TrainingLength(images, batch_size, args.epochs or EPOCHS, args.accumulate or 1)
    trainer = _make_trainer(args, optimizer, model, classes, length)
    print(f"{model}, {classes} classes; {length.epochs} epochs of {images} images, {length.updates} updates")
    print(describe_groups(trainer, length, args.warmup or 0), end="")
    figure = require("matplotlib.figure").Figure(figsize=(10, 4.5), layout="constrained")
    ax = figure.subplots()
    drawn = _drawn_updates(trainer, length, args.warmup or 0)
    draw_learning_rates(ax, *trainer._planned([update - 1 for update in drawn]))
    ax.set(xlabel="update", ylabel="learning rate")
    artifacts.save_figure(figure, picture)
    print(f"learning rates of all groups over the updates: {picture}")
    return 0


def _check_picture(args: argparse.Namespace) -> Path:
    """Return where the picture goes; raise a UserError if it cannot be written there."""
    out_is_picture = args.picture is None and args.out is not None and args.out.suffix.lower() == ".png"
    option, picture = ("--out", args.out) if out_is_picture else ("--picture", args.picture or PICTURE)
    check_picture(option, picture, args.data)
    return Path(picture)


def _open_data(args: argparse.Namespace) -> Split | None:
    """List the images of --data, and print what of them is not used."""
    if args.data is None:
        if args.val_split is not None:
            raise UserError("--val-split can only be used with --data DIR; without it, --images is what to train on")
        return None
    for name in ("classes", "images"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} {getattr(args, name)} stands for --data, which counts them; keep one of the two")
    loss_options.check_options(args)
    split = open_folder(args.data, args.seed, val_split=args.val_split)
    for note in split.notes:
        print(note)
    return split


def _make_trainer(
    args: argparse.Namespace, optimizer: OptimizerChoice, model: str, classes: int, length: TrainingLength
) -> MultiLRTrainer:
    """Make the trainer that finetune would make, and check the weights as it does."""
    optimizer = schedule.add_scheduler(optimizer, args, length)
    net, head = network.build(model, classes)
    if args.pretrained:
        zoo.check_published(model)
    network.initialize(net, [mx.cpu()], model, classes, args.input_size)
    if args.params is not None:
        network.load_backbone(net, head, args.params)
    return param_groups.make_trainer(net, head, args, length, optimizer, Ranks(), args.clip_grad)


def _drawn_updates(trainer: MultiLRTrainer, length: TrainingLength, warmup: float) -> Sequence[int]:
    """Return the numbers of the updates to draw: of a long run some, with those before and after each sudden change."""
    last = length.updates
    if last <= MAX_DRAWN:
        return range(1, last + 1)
    # Learning rates are those of an MXNet scheduler, which is asked for later and later updates, in any steps.
    steps = getattr(trainer.optimizer.lr_scheduler, "step", [])
    changes = {step + 1 for step in steps} if isinstance(steps, list) else set()
    changes |= {group.lr_mult.num_update for group in trainer.groups if isinstance(group.lr_mult, unfreeze_at)}
    changes.add(length.updates_in(warmup) + 1)
    around = (update for change in changes for update in (change - 1, change) if 1 <= update <= last)
    return sorted({1, last, *around, *map(int, np.linspace(1, last, MAX_DRAWN))})
