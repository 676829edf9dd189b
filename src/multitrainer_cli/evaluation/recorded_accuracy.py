"""The validation accuracy that a run has recorded for its weights."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import NamedTuple

from ..runs import artifacts, run_folder


class RecordedAccuracy(NamedTuple):
    """An epoch, and its validation accuracy, rounded to six decimals."""

    epoch: int
    accuracy: float

    def compare(self, accuracy: float) -> str:
        """Say whether an accuracy is the recorded one, and if not, what the reason may be."""
        if round(accuracy, 6) == self.accuracy:
            return f"this is the accuracy that the run has recorded in epoch {self.epoch}"
        return (
            f"warning: the run has recorded another accuracy in epoch {self.epoch}, {self.accuracy:.4%}, not "
            f"{accuracy:.4%}; if it was killed after it wrote the weights and before it recorded that epoch, and not "
            "resumed since, they are of that epoch, which --resume trains again; other devices, batches or versions of "
            "MXNet can change the last digits of the scores, and with them the class of an image for which two are "
            "equal"
        )


def read_accuracy(run: Path, weights: str) -> RecordedAccuracy | None:
    """Return what a run has recorded for its best or its last weights; None if its metrics are gone or damaged."""
    try:
        lines = (run / run_folder.METRICS).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        pairs = [RecordedAccuracy(int(row["epoch"]), float(row["val_accuracy"])) for row in rows]
        return max(pairs, key=lambda pair: pair.accuracy) if weights == "best" else pairs[-1]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def describe_interruption(run: Path, weights: str) -> tuple[str, ...]:
    """Say that the last weights may be those of an unfinished epoch, unless they are those of the last checkpoint.

    With --ema, a checkpoint holds the weights that are trained, and last.params their average: it cannot be told.
    """
    if weights != "last":
        return ()
    recorded = read_accuracy(run, weights)
    if recorded is not None:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            checkpoint = run_folder.checkpoint_files(run, recorded.epoch).checksum
            if json.loads(checkpoint.read_text(encoding="utf-8"))["crc32"] == artifacts.checksum(run / run_folder.LAST):
                return ()
    return (f"if the run was interrupted, {run_folder.LAST} may hold the weights of an unfinished epoch",)
