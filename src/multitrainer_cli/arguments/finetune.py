"""The options of ``multitrainer finetune``."""

from __future__ import annotations

import argparse
from typing import Any

from . import defaults
from .images import add_split_argument
from .loss import add_loss_arguments
from .network import add_network_arguments
from .param_groups import add_group_arguments
from .training import add_schedule_arguments, add_training_arguments
from .updates import add_accumulate_argument, add_average_argument, add_clip_argument
from .values import non_negative_int, out_folder, positive_int, utf8_path

KVSTORES = ("device", "local", "dist_sync", "dist_device_sync", "horovod")

DESCRIPTION = """\
Fine-tune an image classifier of GluonCV on your images, with a learning rate for each part of it.

DIR holds a folder of images for each class, or train/ and val/ with such folders. Without val/, one image in five of
every class is set aside for validation. The last layer of the network is replaced by one for your classes.

Without --data, the command compares five ways to fine-tune: a network that has learned MNIST learns scikit-learn's
digits from five images of each, at three learning rates. That takes about two minutes on two cores."""

EPILOG = f"""\
PATH is an attribute path, as in Python: features, features.0, layer1, output, fc.weight. If nothing is at a PATH, the
error lists the names that exist there. From scratch, everything trains at --lr. With --pretrained or --params, the new
last layer trains at --lr and everything else at {defaults.BACKBONE_MULT} times --lr, \
unless --layer-decay or --discriminative say
otherwise. In each case, the parts that --lr-mult and --freeze name train as these say. `multitrainer groups` with the
same options shows the groups that they make, without training.

The run writes to --out: best.params and last.params, classes.txt (one a line, in the order of the outputs),
metrics.jsonl (one line an epoch), finetune.png, run.json (the record of the run) and a checkpoint. Ctrl-C stops the run
and keeps its files. After that, or after a crash, the same command with --resume continues after the last whole epoch,
to the same metrics as if the run had never stopped.

A run is never replaced unless you ask for it. Without --out, a second run goes to {defaults.RUN_FOLDER}-2, a third to
{defaults.RUN_FOLDER}-3, and --resume takes the last one; without --data, they are {defaults.DEMO_FOLDER} and so on.
If --out names a folder that holds a run, the command refuses it: add
--resume, or --overwrite, which removes the old run when the first epoch of the new one has ended. --resume refuses
other options, other --params, other class folders, renumbered images, and a run with a missing or damaged file.
Images that were added since the run began are left out, so that it does not train on images that it validates on; for
an image that was removed, it trains on another one of the same class.

On several machines, use --kvstore dist_sync with the DMLC_ variables of MXNet's parameter servers, or --kvstore horovod
under horovodrun: each rank trains on its share of the images, and rank 0 prints and writes.
docs/distributed.md shows both.

examples:
  multitrainer finetune
  multitrainer finetune --data flowers --pretrained
  multitrainer finetune --data flowers --model resnet50_v1b --pretrained --freeze layer1 --lr-mult layer4=0.3
  multitrainer finetune --data flowers --pretrained --layer-decay 0.8 --no-bias-decay --lr-schedule cosine --warmup 1
  multitrainer finetune --data flowers --pretrained --discriminative 0.01:1 --unfreeze-at 2
  multitrainer finetune --data flowers --pretrained --ema 0.99 --epochs 50 --early-stop 5
  multitrainer finetune --data flowers --params runs/finetune/best.params --freeze features --ctx 'gpu(0),gpu(1)'"""


def add_parser(commands: Any) -> None:
    """Add the subcommand's parser to those of the command."""
    parser = commands.add_parser(
        "finetune",
        help="fine-tune an image classifier on a folder of images",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data_help = "the folder of images; without it, the command runs on scikit-learn's digits"
    parser.add_argument("--data", metavar="DIR", type=utf8_path, help=data_help)
    add_split_argument(parser)
    add_network_arguments(parser)
    add_group_arguments(parser)
    epochs = f"default {defaults.EPOCHS}; {defaults.DEMO_EPOCHS} for the digits"
    add_training_arguments(parser, epochs, defaults.DEMO_BATCH_SIZE)
    add_schedule_arguments(parser)
    add_accumulate_argument(parser)
    add_clip_argument(parser)
    add_average_argument(parser)
    add_loss_arguments(parser)
    add_data_arguments(parser)
    add_device_arguments(parser)
    add_run_arguments(parser)
    parser.set_defaults(command="finetune")


def add_data_arguments(parser: argparse._ActionsContainer) -> None:
    """Add --no-augment, --feature-memory and --workers to a parser."""
    add = parser.add_argument
    add(
        "--no-augment",
        action="store_true",
        default=None,
        help="do not crop, mirror and colour the images at random. If the backbone is frozen, its features are then "
        "computed only once, and an epoch takes no longer than the last layer takes",
    )
    add(
        "--feature-memory",
        metavar="MB",
        type=non_negative_int,
        default=defaults.FEATURE_MEMORY,
        help=f"keep such features in memory up to this size, and on disk beyond it (default {defaults.FEATURE_MEMORY})",
    )
    add("--workers", type=non_negative_int, help="processes that read images (default 0: none; try 4 with a GPU)")


def add_device_arguments(parser: argparse._ActionsContainer) -> None:
    """Add --kvstore, --ctx and --seed to a parser."""
    add = parser.add_argument
    add(
        "--kvstore",
        choices=KVSTORES,
        help="how gradients are summed: over devices (default device), or over machines, see below",
    )
    add("--ctx", metavar="CTX", help="cpu, gpu(0) or gpu(0),gpu(1) (default: gpu(0) if MXNet finds one)")
    add("--seed", type=non_negative_int, default=0, help="the same seed gives the same run (default 0)")


def add_run_arguments(parser: argparse._ActionsContainer) -> None:
    """Add --out and what else decides when a run begins and ends, and where it writes, to a parser."""
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=out_folder,
        help=f"the folder of the run (default {defaults.RUN_FOLDER}, or the next free one of {defaults.RUN_FOLDER}-2, "
        f"...; without --data, {defaults.DEMO_FOLDER})",
    )
    parser.add_argument(
        "--early-stop",
        metavar="N",
        type=positive_int,
        help="end the run if the validation accuracy has not risen above its best for N epochs",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        default=None,
        help="write the metrics to OUT/tensorboard, too (needs the extra tensorboard)",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume",
        action="store_true",
        help="continue after the last whole epoch of the run in --out (default: the last of the default folders)",
    )
    existing.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run in --out when the first epoch of the new one has ended",
    )
