"""The files of a run: their names, and which of them are in a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from ..arguments.defaults import RUN_FOLDER
from . import record

RECORD, METRICS, CLASSES, BEST, LAST = "run.json", "metrics.jsonl", "classes.txt", "best.params", "last.params"
CHECKPOINT = "checkpoint"
OLD_RECORD = f"{CHECKPOINT}/run.json"  # where earlier versions kept the record
AVERAGE_SUFFIX = ".average"  # of the file with the averaged weights, in the checkpoints of a run with --ema
TENSORBOARD, EVENTS_SUFFIX = "tensorboard", ".multitrainer"
# A new run replaces these; other files in the folder are the user's. mnist-source.params is read and never replaced.
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
    by_default = folder.name == RUN_FOLDER.parent.name and any(default_number(entry) is not None for entry in inside)
    return by_default or any(map(contains_runs, inside))


def default_number(folder: Path) -> int | None:
    """Return which of the default folders this is, by its name: 1, or 3 for ``finetune-3``; None if it is none."""
    match = re.fullmatch(rf"{RUN_FOLDER.name}(?:-([1-9][0-9]*))?", folder.name)
    return match and int(match.group(1) or 1)


def files_of_run(folder: Path) -> list[Path]:
    """Return the files of the run in a folder, its record first."""
    numbered = (path for path in (folder / CHECKPOINT).glob("*") if path.stem.isdecimal())
    kept = sorted(path for path in numbered if path.suffix in (*CHECKPOINT_SUFFIXES, AVERAGE_SUFFIX))
    named = [folder / name for name in (RECORD, OLD_RECORD, *FILES)]
    return [*(path for path in (*named, *kept) if os.path.lexists(path)), *event_files(folder)]


def event_files(folder: Path) -> list[Path]:
    """Return the files of --tensorboard; others in their folder are the user's."""
    return sorted((folder / TENSORBOARD).glob(f"events.out.tfevents.*{EVENTS_SUFFIX}"))


def average_file(folder: Path, number: int) -> Path:
    """Return the path of the averaged weights of a checkpoint."""
    return folder / CHECKPOINT / f"{number:06}{AVERAGE_SUFFIX}"


def remove_run(folder: Path) -> None:
    """Remove the files of a run. If this is interrupted, the folder has no record, and the rest cannot be resumed."""
    for path in files_of_run(folder):
        path.unlink()
