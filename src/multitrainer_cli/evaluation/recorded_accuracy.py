"""The validation accuracy that a run has recorded for its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from ..runs import run_folder


class RecordedAccuracy(NamedTuple):
    """An epoch, and its validation accuracy, rounded to six decimals."""

    epoch: int
    accuracy: float

    def compare(self, accuracy: float, weights: str) -> str:
        """Say whether an accuracy is the recorded one, and if not, what the reason may be."""
        if round(accuracy, 6) == self.accuracy:
            return f"this is the accuracy that the run has recorded in epoch {self.epoch}"
        interrupted = "if it was interrupted, last.params are of an unfinished epoch; " if weights == "last" else ""
        killed = (
            f"if it was killed after it wrote {weights}.params and before it recorded that epoch, and not resumed "
            "since, they are of that epoch, which --resume trains again; "
        )
        return (
            f"warning: the run has recorded another accuracy in epoch {self.epoch}, {self.accuracy:.4%}, not "
            f"{accuracy:.4%}; {interrupted}{killed}other devices, batches or versions of MXNet can change the last "
            "digits of the scores, and with them the class of an image for which two are equal"
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
