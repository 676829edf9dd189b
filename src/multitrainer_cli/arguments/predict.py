"""The options of ``multitrainer predict``."""

from __future__ import annotations

import argparse
from typing import Any

from . import defaults
from .saved_run import add_saved_run_arguments
from .values import positive_int

DESCRIPTION = """\
Print the class of each image, as the network of a finished run sees it: path, class and probability, separated by tabs.

IMAGE is an image file; a folder, whose images are found in all folders below it, in the order of their names; or - for
a list of paths on standard input, one a line."""

EPILOG = """\
Lines come in the order of the images, batch by batch. In paths and classes, a tab, a newline, a backslash and whatever
else cannot be printed is escaped as in Python (\\t, \\n, \\\\); --json escapes as JSON does. Hidden files, and files
that are not called like images, are left out of folders and counted on standard error. An image that cannot be read is
reported on standard error; the others are predicted all the same, and the exit status is 1 in the end.

examples:
  multitrainer predict runs/finetune photo.jpg
  multitrainer predict runs/finetune photos --top 3
  multitrainer predict runs/finetune photos --json > predictions.jsonl
  find photos -newer last.txt -print0 | multitrainer predict runs/finetune - --null"""


def add_parser(commands: Any) -> None:
    """Add the subcommand's parser to those of the command."""
    parser = commands.add_parser(
        "predict",
        help="print the classes of images, as a finished run predicts them",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_saved_run_arguments(parser)
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="+", help="an image, a folder of images, or - for a list of paths")
    add(
        "--top",
        metavar="K",
        type=positive_int,
        default=1,
        help="print the K most probable classes, each with its probability, or all if there are fewer (default 1)",
    )
    add("--json", action="store_true", help="print a JSON object a line, with the fields image and classes")
    add("--null", action="store_true", help="paths on standard input end in a NUL byte, as find -print0 writes them")
    add(
        "--batch-size",
        type=positive_int,
        default=defaults.BATCH_SIZE,
        help=f"images in a batch, over all devices (default {defaults.BATCH_SIZE}); output follows each batch",
    )
    parser.set_defaults(command="predict")
