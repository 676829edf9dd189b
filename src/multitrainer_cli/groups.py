"""``multitrainer groups``: the table of groups and their learning rates over a run, without training."""

from __future__ import annotations

import argparse

import mxnet as mx

from multitrainer import plot_learning_rates

from .arguments import defaults
from .arguments.groups import CLASSES, EPOCHS, IMAGES
from .data.split import open_folder
from .errors import UserError, require
from .ranks.exchange import Ranks
from .runs import artifacts
from .training import network, param_groups, schedule
from .training.optimizer import parse_optimizer


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    optimizer = parse_optimizer(args.optimizer, args.lr, args.wd)
    model = args.model or defaults.MODEL
    classes, images = args.classes or CLASSES, args.images or IMAGES
    if args.data is not None:
        split = open_folder(args.data, seed=0, val_split=args.val_split)
        print("".join(f"{note}\n" for note in split.notes), end="")
        classes, images = len(split.classes), len(split.train)
    elif args.val_split is not None:
        raise UserError("--val-split can only be used with --data DIR; without it, --images is what to train on")
    net, head = network.build(model, classes)
    batch_size = min(args.batch_size or defaults.BATCH_SIZE, images)
    length = schedule.TrainingLength(images, batch_size, args.epochs or EPOCHS, args.accumulate or 1)
    optimizer = schedule.add_scheduler(optimizer, args, length)
    network.initialize(net, [mx.cpu()], model, classes, args.input_size)
    trainer = param_groups.make_trainer(net, head, args, length, optimizer, Ranks())
    print(f"{model}, {classes} classes; {length.epochs} epochs of {images} images, {length.updates} updates")
    print(f"{trainer.summary()}\n{param_groups.describe_unfreezing(trainer, length)}", end="")
    figure = require("matplotlib.figure").Figure(figsize=(10, 4.5), layout="constrained")
    plot_learning_rates(trainer, length.updates, ax=figure.subplots())
    artifacts.save_figure(figure, args.out)
    print(f"learning rates of all groups over the updates: {args.out}")
    return 0
