"""``multitrainer groups``: the table of groups and their learning rates over a run, without training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mxnet as mx

from .. import plot_learning_rates
from .data.split import open_folder
from .errors import require
from .options import BATCH_SIZE, add_training_arguments, parse_optimizer, positive_int, utf8_path
from .ranks.exchange import Ranks
from .runs import artifacts
from .training import network, param_groups, schedule

CLASSES, IMAGES, EPOCHS = 10, 1000, 10

DESCRIPTION = """\
Show which groups of parameters `multitrainer finetune` would train with the same options, and how fast: a table of the
groups, and a picture of their learning rates over all updates. Nothing is trained or downloaded."""


def add_parser(commands: Any) -> None:
    """Add the subcommand's parser to those of the command."""
    parser = commands.add_parser(
        "groups",
        help="show the groups that the options of finetune make, without training",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", metavar="DIR", type=utf8_path, help="a folder of images, to count its classes and images")
    add("--classes", type=positive_int, help=f"number of classes without --data (default {CLASSES})")
    add("--images", type=positive_int, help=f"number of images to train on without --data (default {IMAGES})")
    network.add_arguments(parser)
    param_groups.add_arguments(parser)
    add_training_arguments(parser, f"default {EPOCHS}")
    schedule.add_arguments(parser)
    add("--out", metavar="FILE", type=utf8_path, default=Path("groups.png"), help="the picture (default groups.png)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    optimizer = parse_optimizer(args.optimizer, args.lr, args.wd)
    model = args.model or network.MODEL
    classes, images = args.classes or CLASSES, args.images or IMAGES
    if args.data is not None:
        split = open_folder(args.data, seed=0)
        classes, images = len(split.classes), len(split.train)
    net, head = network.build(model, classes)
    length = schedule.TrainingLength(images, min(args.batch_size or BATCH_SIZE, images), args.epochs or EPOCHS)
    optimizer = schedule.add_scheduler(optimizer, args, length)
    network.initialize(net, [mx.cpu()], model, classes)
    trainer = param_groups.make_trainer(net, head, args, length, optimizer, Ranks())
    print(f"{model}, {classes} classes; {length.epochs} epochs of {images} images, {length.updates} updates")
    print(f"{trainer.summary()}\n{param_groups.describe_unfreezing(trainer, length)}", end="")
    figure = require("matplotlib.figure").Figure(figsize=(10, 4.5), layout="constrained")
    plot_learning_rates(trainer, length.updates, ax=figure.subplots())
    artifacts.save_figure(figure, args.out)
    print(f"learning rates of all groups over the updates: {args.out}")
    return 0
