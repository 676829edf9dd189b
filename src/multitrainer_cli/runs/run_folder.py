"""The files of a run: their names, and which of them are in a folder."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from multitrainer.saved_run import RECORD, WEIGHTS

from ..arguments.defaults import DEMO_FOLDER, RUN_FOLDER
from ..errors import UserError
from . import artifacts, record

METRICS, CLASSES = "metrics.jsonl", "classes.txt"
BEST, LAST = (f"{weights}.params" for weights in WEIGHTS)
CHECKPOINT = "checkpoint"
OLD_RECORD = f"{CHECKPOINT}/run.json"  # where earlier versions kept the record
AVERAGE_SUFFIX = ".average"  # of the file with the averaged weights, in the checkpoints of a run with --ema
TENSORBOARD, EVENTS_SUFFIX = "tensorboard", ".multitrainer"
EVENTS = f"events.out.tfevents.*{EVENTS_SUFFIX}"
SOURCE = "mnist-source.params"  # what a comparison fine-tunes; a new run reads it and does not replace it
# A new run replaces these; other files in the folder are the user's.
FILES = (METRICS, CLASSES, BEST, LAST, "finetune.png", "comparison.png")


class CheckpointFiles(NamedTuple):
    """The files of one checkpoint: the weights, the states of the trainer, and the checksum of the weights."""

    weights: Path
    states: Path
    checksum: Path


CHECKPOINT_SUFFIXES = (".params", ".npz", ".json")  # of these files, in this order


def checkpoint_files(folder: Path, number: int) -> CheckpointFiles:
    """Return the paths of the files of a checkpoint."""
    return CheckpointFiles(*(folder / CHECKPOINT / f"{number:06}{suffix}" for suffix in CHECKPOINT_SUFFIXES))


def holds_run(folder: Path) -> bool:
    """Return whether the folder holds anything that a new run would overwrite.

    A record alone does not count: the run that wrote it was stopped before it had written anything else. A file of this
    name that is no record counts, because it is the user's.
    """
    return any(path != folder / RECORD or not has_record(folder) for path in files_of_run(folder))


def has_record(folder: Path) -> bool:
    """Return whether a run has begun in the folder, even if it was stopped before its first epoch had ended."""
    return record.identify(folder / RECORD) == record.FORMAT


def is_run(folder: Path) -> bool:
    """Return whether the folder is that of a run, whatever has become of it and whichever version wrote it."""
    if record.identify(folder / RECORD) is not None or (folder / OLD_RECORD).exists():
        return True
    return (folder / METRICS).exists() and (folder / CHECKPOINT).is_dir()


def contains_runs(folder: Path) -> bool:
    """Return whether the folder is that of a run or holds one at any depth, such as ``runs`` after a run.

    Such a folder among those of the classes is no class, unless it holds images and is not a run itself.
    """
    if is_run(folder):
        return True
    inside = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()]
    # Another process may have made a default folder and not yet begun its run there.
    numbers = (default_number(entry, default) for entry in inside for default in (RUN_FOLDER, DEMO_FOLDER))
    by_default = folder.name == RUN_FOLDER.parent.name and any(number is not None for number in numbers)
    return by_default or any(map(contains_runs, inside))


def default_number(folder: Path, default: Path) -> int | None:
    """Return which of the default folders this is, by its name: 1, or 3 for ``finetune-3``; None if it is none."""
    match = re.fullmatch(rf"{default.name}(?:-([1-9][0-9]*))?", folder.name)
    return match and int(match.group(1) or 1)


def files_of_run(folder: Path) -> list[Path]:
    """Return the files of the run in a folder, its record first."""
    kept = sorted(path for path in (folder / CHECKPOINT).glob("*") if checkpoint_number(path) is not None)
    named = [folder / name for name in (RECORD, OLD_RECORD, *FILES)]
    return [*(path for path in (*named, *kept) if os.path.lexists(path)), *event_files(folder)]


def event_files(folder: Path) -> list[Path]:
    """Return the files of --tensorboard; others in their folder are the user's."""
    return sorted((folder / TENSORBOARD).glob(EVENTS))


def average_file(folder: Path, number: int) -> Path:
    """Return the path of the averaged weights of a checkpoint."""
    return folder / CHECKPOINT / f"{number:06}{AVERAGE_SUFFIX}"


def check_replaceable(folder: Path) -> None:
    """Raise a UserError if a file of the run in a folder could not be removed. Nothing is changed."""
    files = files_of_run(folder)
    for path in files:
        if path.is_dir() and not path.is_symlink():
            raise UserError(
                f"--overwrite: {path} is a folder, not a file of a run; move it away or choose another --out"
            )
    for parent in sorted({path.parent for path in files}):
        artifacts.make_folder(parent)  # checks that it can be written to


def remove_run(folder: Path) -> None:
    """Remove the files of a run, all of them or none.

    They are moved aside first, and moved back if one of them cannot be moved. The record is the first to go and the
    last to come back: if this is interrupted, the folder has no record, and the rest cannot be resumed.

    Raises
    ------
    UserError
        If one of them cannot be removed; the run is then as it was.
    """
    check_replaceable(folder)
    moved: list[tuple[Path, Path]] = []
    try:
        for path in files_of_run(folder):
            aside = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
            os.replace(str(path), str(aside))
            moved.append((path, aside))
    except OSError as error:
        for before, aside in reversed(moved):
            os.replace(str(aside), str(before))
        raise UserError(
            f"--overwrite: cannot remove {path}: {error.strerror or error}; remove it or choose another --out"
        ) from error
    for _, aside in moved:
        _remove_hidden(aside)


def remove_temporary_files(folder: Path) -> None:
    """Remove what a killed process has left of files of a run that it was writing or removing."""
    for parent in (folder, folder / CHECKPOINT, folder / TENSORBOARD):
        for path in parent.glob(".*.tmp"):
            match = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.tmp", path.name, re.DOTALL)
            if match and path.is_file() and _is_of_run(str((parent / match.group(1)).relative_to(folder))):
                _remove_hidden(path)


def checkpoint_number(path: Path) -> int | None:
    """Return the number of the checkpoint that a file belongs to, by its name; None if it belongs to none."""
    known = path.stem.isdecimal() and path.suffix in (*CHECKPOINT_SUFFIXES, AVERAGE_SUFFIX)
    return int(path.stem) if known else None


def _is_of_run(name: str) -> bool:
    """Return whether the file of this name in the folder of a run is the run's."""
    path = PurePosixPath(name)
    if str(path.parent) == TENSORBOARD:
        return path.match(EVENTS)
    numbered = str(path.parent) == CHECKPOINT and checkpoint_number(Path(path)) is not None
    return numbered or name in (RECORD, OLD_RECORD, *FILES)


def _remove_hidden(path: Path) -> None:
    with contextlib.suppress(OSError):  # it is in nobody's way
        path.unlink()
