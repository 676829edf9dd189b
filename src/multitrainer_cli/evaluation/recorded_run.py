"""What the record of a run says of its images and batches, which an evaluation repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from multitrainer.saved_run import read_record

from ..errors import UserError
from ..runs import record, run_folder
from .selection import Recorded


class RecordedRun(NamedTuple):
    """A run as it was recorded.

    Attributes
    ----------
    folder : Path
        The folder of the run.
    model : str
        The name of its network.
    batch_size : int
        Images in a batch: with other batches, MXNet may compute other last digits.
    data : str or None
        The folder of its images; None if it was of the digits.
    images : dict or None
        Size and checksum of its images, by part and name.
    """

    folder: Path
    model: str
    batch_size: int
    data: str | None
    images: Recorded | None

    def find_folder(self) -> Path:
        """Return the folder of the images; raise a UserError if there is none, or none any more."""
        if self.data is None:
            raise UserError(f"the run in {self.folder} was not trained on a folder of images; add --data DIR")
        if not Path(self.data).is_dir():
            raise UserError(
                f"the images of the run were in {self.data}, which is gone; add --data with their folder, or others"
            )
        return Path(self.data)


def read_recorded_run(folder: Path) -> RecordedRun:
    """Read the record of a run; raise a UserError if it is damaged."""
    path = folder / run_folder.RECORD
    try:
        model = read_record(folder)["model"]
        fields = record.read(path)
        batch_size = _parse_batch_size(fields["options"]["batch_size"])
        if fields["images"] is not None:
            record.check_split(fields["images"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); put a copy of it back, or train again") from error
    images = None if fields["images"] is None else _by_part(fields["images"])
    return RecordedRun(
        folder=folder,
        model=model,
        batch_size=batch_size if images is None else min(batch_size, len(images["train"])),
        data=fields["data"],
        images=images,
    )


def _parse_batch_size(text: Any) -> int:
    """Return the size of batches from the text of the option; raise a ValueError if it is none."""
    if not (isinstance(text, str) and text.isdecimal() and int(text) > 0):
        raise ValueError(f"batch_size is {text!r}, not the text of a number above 0")
    return int(text)


def _by_part(images: dict[str, Any]) -> Recorded:
    return {part: {name: tuple(images["contents"][name]) for name in images[part]} for part in ("train", "val")}
