"""The options of ``multitrainer lr-find``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import defaults
from .finetune import add_device_arguments
from .images import add_split_argument
from .loss import add_loss_arguments
from .network import add_network_arguments
from .param_groups import add_group_arguments
from .training import add_length_arguments, add_optimizer_arguments
from .updates import add_accumulate_argument, add_clip_argument
from .values import learning_rate, non_negative_int, positive_int, utf8_path

LOWEST, HIGHEST, UPDATES = 1e-6, 10.0, 100
OWN_OPTIONS = ("lowest", "highest", "batches", "out")  # the others are those of finetune

DESCRIPTION = f"""\
Suggest a learning rate for `multitrainer finetune` with the same options: train for at most {UPDATES} updates, with a
rate that rises from {LOWEST:g} to {HIGHEST:g}, and draw the loss. Nothing is kept but the picture."""

EPILOG = """\
The last line is the command to train with the suggested rate. The groups keep their multipliers, and what is frozen at
first stays frozen. If the loss shows no rate, the command says why and what to do, and its exit status is 2.

It runs in one process. Ranks that share the same --batch-size train at the same rate.

examples:
  multitrainer lr-find --data flowers --pretrained
  multitrainer lr-find --data flowers --params runs/finetune/best.params --freeze features --optimizer adamw"""


def add_parser(commands: Any) -> None:
    """Add the subcommand's parser to those of the command."""
    parser = commands.add_parser(
        "lr-find",
        help="suggest a learning rate for finetune",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", metavar="DIR", type=utf8_path, required=True, help="the folder of images")
    add_split_argument(parser)
    add_network_arguments(parser)
    add_group_arguments(parser)
    add_optimizer_arguments(parser)
    add_length_arguments(parser, f"of the run that the rate is for (default {defaults.EPOCHS})")
    add_accumulate_argument(parser)
    add_clip_argument(parser)
    add_loss_arguments(parser)
    add("--no-augment", action="store_true", default=None, help="take the images as they are")
    add("--workers", type=non_negative_int, help="processes that read images (default 0: none)")
    add_device_arguments(parser)
    add("--lowest", metavar="RATE", type=learning_rate, default=LOWEST, help=f"the first rate (default {LOWEST:g})")
    add("--highest", metavar="RATE", type=learning_rate, default=HIGHEST, help=f"the last (default {HIGHEST:g})")
    add("--batches", metavar="N", type=positive_int, help=f"batches to train on at most (default {UPDATES} updates)")
    add("--out", metavar="FILE", type=utf8_path, default=Path("lr-find.png"), help="the picture (default lr-find.png)")
    # What changes during a run of finetune stands still during the search.
    parser.set_defaults(command="lr_find", lr=None, lr_schedule=None, warmup=None, ema=None)
