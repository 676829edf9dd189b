"""The average of the weights that --ema asks for, or None without it."""

from __future__ import annotations

import contextlib
from typing import ContextManager

from multitrainer import MultiLRTrainer, WeightAverage


def make_average(trainer: MultiLRTrainer, decay: float | None) -> WeightAverage | None:
    """Return an average that soon forgets the weights that training begins with; None without a decay."""
    return None if decay is None else WeightAverage(trainer, decay, warmup=True)


def update(average: WeightAverage | None) -> None:
    """Average the weights after a step, if there is an average."""
    if average is not None:
        average.update()


def applied(average: WeightAverage | None) -> ContextManager[None]:
    """Let the network have the averages for its weights inside the block, if there is an average."""
    return contextlib.nullcontext() if average is None else average.applied()
