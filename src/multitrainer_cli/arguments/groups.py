"""The options of ``multitrainer groups``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .images import add_split_argument
from .network import add_network_arguments
from .param_groups import add_group_arguments
from .training import add_schedule_arguments, add_training_arguments
from .updates import add_accumulate_argument
from .values import positive_int, utf8_path

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
    add_split_argument(parser)
    add("--classes", type=positive_int, help=f"number of classes without --data (default {CLASSES})")
    add("--images", type=positive_int, help=f"number of images to train on without --data (default {IMAGES})")
    add_network_arguments(parser)
    add_group_arguments(parser)
    add_training_arguments(parser, f"default {EPOCHS}")
    add_schedule_arguments(parser)
    add_accumulate_argument(parser)
    add("--out", metavar="FILE", type=utf8_path, default=Path("groups.png"), help="the picture (default groups.png)")
    parser.set_defaults(command="groups")
