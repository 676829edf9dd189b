"""All cores for the command: how many threads MXNet gets, before it is imported."""

from __future__ import annotations

import argparse
import sys

from .errors import UserError
from .interrupts import Interrupts


def use_all_cores(args: argparse.Namespace) -> None:
    """Let MXNet use all cores on the devices of --ctx, unless a program has imported it before it called the command.

    Raises
    ------
    UserError
        If the cores cannot be counted, or the environment asks for a number of threads that MXNet cannot read.
    """
    if sys.modules.get("mxnet") is not None:
        return
    from multitrainer import use_all_cores as share_cores

    devices = [part.strip() for part in (getattr(args, "ctx", None) or "cpu").split(",")]
    with Interrupts() as interrupts:
        try:
            share_cores(max(1, sum(device.startswith("cpu") for device in devices)))
        except (ImportError, ValueError) as error:
            raise UserError(str(error)) from error
        interrupts.check()
