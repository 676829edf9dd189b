"""``multitrainer groups``: the table of groups and the learning rates to come, without training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mxnet as mx

from .. import plot_learning_rates
from .data import image_folder
from .errors import require
from .options import BATCH_SIZE, add_training_arguments, parse_optimizer, positive, utf8_path
from .ranks.exchange import Ranks
from .runs import artifacts
from .training import network, param_groups, schedule

CLASSES, IMAGES, EPOCHS = 10, 1000, 10

DESCRIPTION = """\
Show what the same options of `multitrainer finetune` would train, and how fast: the table of groups, and a picture of
each group's learning rate over all updates. Nothing is trained or downloaded."""


def add_parser(commands: Any) -> None:
    """Add the subcommand's parser to those of the command."""
    parser = commands.add_parser(
        "groups",
        help="show the groups that the options of finetune make, without training",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", metavar="DIR", type=utf8_path, help="take the numbers of classes and of images from this folder")
    add("--classes", type=positive(int), help=f"without --data (default {CLASSES})")
    add("--images", type=positive(int), help=f"in an epoch, without --data (default {IMAGES})")
    network.add_arguments(parser)
    param_groups.add_arguments(parser)
    add_training_arguments(parser, f"default {EPOCHS}")
    schedule.add_arguments(parser)
    add("--out", metavar="FILE", type=utf8_path, default=Path("groups.png"), help="the picture (default groups.png)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    optimizer, settings = parse_optimizer(args.optimizer, args.lr, args.wd)
    model = args.model or network.MODEL
    classes, images = args.classes or CLASSES, args.images or IMAGES
    if args.data is not None:
        found = image_folder.open_folder(args.data, seed=0)
        classes, images = len(found.classes), len(found.train)
    net, head = network.build(model, classes)
    clock = schedule.Clock(images, min(args.batch_size or BATCH_SIZE, images), args.epochs or EPOCHS)
    settings = {**settings, **schedule.settings_of(args, optimizer, clock)}
    network.initialize(net, [mx.cpu()], model, classes)
    has_weights = bool(args.pretrained or args.params)
    trainer = param_groups.make_trainer(
        param_groups.groups(net, head, has_weights, args, clock), optimizer, settings, Ranks()
    )
    print(f"{model}, {classes} classes; {clock.epochs} epochs of {images} images, {clock.total} updates")
    print(f"{trainer.summary()}\n{param_groups.calendar(trainer, clock)}", end="")
    figure = require("matplotlib.figure").Figure(figsize=(10, 4.5), layout="constrained")
    plot_learning_rates(trainer, clock.total, ax=figure.subplots())
    artifacts.save_figure(figure, args.out)
    print(f"learning rates of all groups over the updates: {args.out}")
    return 0
