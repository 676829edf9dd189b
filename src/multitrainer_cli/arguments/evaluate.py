"""The options of ``multitrainer evaluate``."""

from __future__ import annotations

import argparse
from typing import Any

from .saved_run import add_saved_run_arguments
from .values import non_negative_int, positive_int, utf8_path

DESCRIPTION = """\
Measure the network of a finished run: accuracy, top-5 accuracy and mean cross-entropy, a table of the classes, and
which classes are taken for which.

Without --data, it measures on the images that the run set aside for validation, and checks that the accuracy is the one
that the run has recorded."""

EPILOG = """\
If DIR holds the images of the run, wherever it is now, those that the run set aside for validation are measured, unless
--split says otherwise. The run knows their names and checksums. Of another folder, all images are measured, or those in
val/ if it has train/ and val/. Its class folders need the names that the run knows, but it need not hold every class.

evaluation.json and confusion.png go to --out, by default RUN/evaluation. They replace those of the same weights and
images. If RUN/evaluation holds others, they go to RUN/evaluation-2 and so on; an --out that holds others is refused.
With fewer than six classes, the top-k accuracy is that of all classes but one.

examples:
  multitrainer evaluate runs/finetune
  multitrainer evaluate runs/finetune --data new-photos --out runs/finetune/new-photos
  multitrainer evaluate runs/finetune --split train --json - | python -m json.tool"""


def add_parser(commands: Any) -> None:
    """Add the subcommand's parser to those of the command."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a finished run on images: accuracy, classes, confusions",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_saved_run_arguments(parser)
    add = parser.add_argument
    add("--data", metavar="DIR", type=utf8_path, help="a folder of images (default: the one that the run was given)")
    add(
        "--split",
        choices=("val", "train", "all"),
        help="of the images of the run, those it measured on (default) or trained on; of another folder, val/ or "
        "train/ in it; or all images",
    )
    add("--batch-size", type=positive_int, help="images in a batch, over all devices (default: as in the run)")
    add("--workers", type=non_negative_int, default=0, help="processes that read images (default 0: none)")
    add("--out", metavar="DIR", type=utf8_path, help="the folder of the results (default RUN/evaluation)")
    add(
        "--json",
        metavar="FILE",
        type=utf8_path,
        help="write evaluation.json to this file, too, which is replaced; - prints it in place of the tables",
    )
    parser.set_defaults(command="evaluate")
