"""``multitrainer groups``: the table of groups and their learning rates over a run, without training."""

from __future__ import annotations

import argparse
from pathlib import Path

import mxnet as mx

from multitrainer import MultiLRTrainer, plot_learning_rates

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
    plot_learning_rates(trainer, length.updates, ax=figure.subplots())
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
