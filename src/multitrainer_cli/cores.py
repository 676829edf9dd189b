"""All cores for the command: how many threads MXNet gets, before it is imported."""

from __future__ import annotations

import sys

from .errors import UserError
from .interrupts import Interrupts


def use_all_cores() -> None:
    """Let MXNet use all cores, unless a program has imported it before it called the command.

    Workers that read images, and several CPU devices, get no share: on two cores, with one thread left for the network,
    training with workers was no faster, and training on two devices was slower.

    Raises
    ------
    UserError
        If the cores cannot be counted, or the environment asks for a number of threads that MXNet cannot read.
    """
    if sys.modules.get("mxnet") is not None:
        return
    import multitrainer

    with Interrupts() as interrupts:
        try:
            multitrainer.use_all_cores()
        except (ImportError, ValueError) as error:
            raise UserError(str(error)) from error
        interrupts.check()
