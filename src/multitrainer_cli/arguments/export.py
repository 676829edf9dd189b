"""The options of ``multitrainer export``."""

from __future__ import annotations

import argparse
from typing import Any

from .values import utf8_path

DESCRIPTION = """\
Write the network of a run to files that programs without multitrainer load: MXNet's symbol and parameters, and with
--onnx an ONNX model. The classes, the preprocessing of images and the Python to load the network are written beside
them. The files are loaded and compared with the network before they appear."""


def add_parser(commands: Any) -> None:
    """Add the subcommand's parser to those of the command."""
    parser = commands.add_parser(
        "export",
        help="write the network of a run to files for plain MXNet and ONNX",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=utf8_path, help="the folder of the run, which was the --out of finetune")
    add("--out", metavar="DIR", type=utf8_path, help="the folder for the files (default RUN/export)")
    add("--weights", choices=("best", "last"), default="best", help="which weights of the run (default best)")
    add("--onnx", action="store_true", help="write an ONNX model too; needs the extra onnx")
    add("--softmax", action="store_true", help="let the exported network compute probabilities, not scores")
    add("--overwrite", action="store_true", help="replace an earlier export in --out")
    parser.set_defaults(command="export")
