"""The options of ``multitrainer groups``: those of finetune, and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .finetune import add_data_arguments, add_device_arguments, add_run_arguments
from .images import add_split_argument
from .loss import add_loss_arguments
from .network import add_network_arguments
from .param_groups import add_group_arguments
from .training import add_schedule_arguments, add_training_arguments
from .updates import add_accumulate_argument, add_average_argument, add_clip_argument
from .values import positive_int, utf8_path

CLASSES, IMAGES, EPOCHS = 10, 1000, 10
PICTURE = Path("groups.png")

DESCRIPTION = """\
Show which groups of parameters `multitrainer finetune` would train with the same options, and how fast: a table of the
groups, and a picture of their learning rates over all updates. Nothing is trained or downloaded."""

IGNORED = """\
These are accepted, so that a command line of finetune works with `groups` in place of `finetune`. An --out that ends in
.png is taken for the picture, if --picture does not name one."""

EPILOG = """\
example:
  multitrainer groups --model resnet50_v1b --pretrained --freeze layer1 --lr-mult layer4=0.3"""


def add_parser(commands: Any) -> None:
    """Add the subcommand's parser to those of the command."""
    parser = commands.add_parser(
        "groups",
        help="show the groups that the options of finetune make, without training",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", metavar="DIR", type=utf8_path, help="a folder of images, to count its classes and images")
    add_split_argument(parser)
    add("--classes", type=positive_int, help=f"number of classes without --data (default {CLASSES})")
    add("--images", type=positive_int, help=f"number of images to train on without --data (default {IMAGES})")
    add_network_arguments(parser)
    add_group_arguments(parser)
    add_training_arguments(parser, f"default {EPOCHS}")
    add_schedule_arguments(parser)
    add_accumulate_argument(parser)
    add_clip_argument(parser)
    add("--picture", metavar="FILE", type=utf8_path, help=f"the picture (default {PICTURE})")
    ignored = parser.add_argument_group("options of finetune that do not change the groups", IGNORED)
    add_average_argument(ignored)
    add_loss_arguments(ignored)
    add_data_arguments(ignored)
    add_device_arguments(ignored)
    add_run_arguments(ignored)
    parser.set_defaults(command="groups")
