"""The metrics of a run as TensorBoard reads them: a copy of metrics.jsonl, made again by every process of the run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Iterator, Sequence

from ..errors import UserError, require
from . import artifacts, run_folder

# Its SummaryWriter writes from a thread, and if the disk is full, it waits for that thread for ever.
LIBRARY = "tensorboardX.event_file_writer"
FIELDS = {
    "train_loss": "loss/training",
    "val_loss": "loss/validation",
    "train_accuracy": "accuracy/training",
    "val_accuracy": "accuracy/validation",
}


class TensorBoardFile:
    """The event file of a run. It is made when the first rows are written, in place of those of earlier processes.

    Parameters
    ----------
    out : Path
        The folder of the run.
    """

    def __init__(self, out: Path) -> None:
        self._folder = out / run_folder.TENSORBOARD
        self._writer: Any = None
        self._rows_written = 0

    def check(self) -> None:
        """Raise a UserError if the package tensorboardX is missing, or OUT/tensorboard is not a folder."""
        require(LIBRARY, extra="tensorboard")
        if os.path.lexists(self._folder) and not self._folder.is_dir():
            raise UserError(f"--tensorboard: {self._folder} is not a folder; remove it or choose another --out")

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append those rows that were not written yet."""
        try:
            self._open()
            for row in rows[self._rows_written :]:
                self._writer.write_event(_event(row))
            self._writer.flush()
        except OSError as error:
            raise artifacts.cannot_write(self._folder, error.strerror or str(error)) from error
        self._rows_written = len(rows)

    def _open(self) -> None:
        """Replace the event files of the run by a new one, once."""
        if self._writer is None:
            for path in run_folder.event_files(self._folder.parent):
                path.unlink()
            self._folder.mkdir(exist_ok=True)
            writer = require(LIBRARY, extra="tensorboard").EventsWriter
            self._writer = writer(str(self._folder.resolve() / "events"), run_folder.EVENTS_SUFFIX)


def _event(row: dict[str, Any]) -> Any:
    """Return a row of metrics as an event, whose step is the epoch."""
    values = [{"tag": tag, "simple_value": value} for tag, value in _scalars(row)]
    event = require("tensorboardX.proto.event_pb2", extra="tensorboard").Event
    return event(step=row["epoch"], wall_time=time.time(), summary={"value": values})


def _scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the name and the value of each number of a row."""
    for field, tag in FIELDS.items():
        if row.get(field) is not None:
            yield tag, row[field]
    for group, rate in row["learning_rates"].items():
        yield f"learning_rate/{group}", rate
