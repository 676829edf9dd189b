"""The files of a run: their names, and which of them are in a folder."""

from __future__ import annotations

import os
from pathlib import Path

METRICS, CLASSES, BEST, LAST = "metrics.jsonl", "classes.txt", "best.params", "last.params"
CHECKPOINT, RECORD = "checkpoint", "run.json"
CHECKPOINT_SUFFIXES = (".params", ".npz", ".json")  # weights, states, checksum
AVERAGE_SUFFIX = ".average"  # of the file with the averaged weights, in the checkpoints of a run with --ema
TENSORBOARD, EVENTS_SUFFIX = "tensorboard", ".multitrainer"
# A new run replaces these; other files in the folder are the user's. digits-source.params is read and never replaced.
FILES = (METRICS, CLASSES, BEST, LAST, "finetune.png", "comparison.png")


def holds_run(folder: Path) -> bool:
    """Return whether the folder holds anything that a new run would overwrite.

    A record alone does not count: the run that wrote it was stopped before it had written anything else.
    """
    return any(path.name != RECORD for path in files_of_run(folder))


def has_record(folder: Path) -> bool:
    """Return whether a run has begun in the folder, even if it was stopped before its first epoch had ended."""
    return os.path.lexists(folder / CHECKPOINT / RECORD)


def files_of_run(folder: Path) -> list[Path]:
    """Return the files of the run in a folder, its record first."""
    checkpoint, suffixes = folder / CHECKPOINT, (*CHECKPOINT_SUFFIXES, AVERAGE_SUFFIX)
    kept = sorted(path for path in checkpoint.glob("*") if path.stem.isdecimal() and path.suffix in suffixes)
    named = [path for path in (checkpoint / RECORD, *(folder / name for name in FILES)) if os.path.lexists(path)]
    return [*named, *kept, *event_files(folder)]


def event_files(folder: Path) -> list[Path]:
    """Return the files of --tensorboard; others in their folder are the user's."""
    return sorted((folder / TENSORBOARD).glob(f"events.out.tfevents.*{EVENTS_SUFFIX}"))


def checkpoint_files(folder: Path, number: int) -> list[Path]:
    """Return the paths of the weights, the states and the checksum of a checkpoint."""
    return [folder / CHECKPOINT / f"{number:06}{suffix}" for suffix in CHECKPOINT_SUFFIXES]


def average_file(folder: Path, number: int) -> Path:
    """Return the path of the averaged weights of a checkpoint."""
    return folder / CHECKPOINT / f"{number:06}{AVERAGE_SUFFIX}"


def remove_run(folder: Path) -> None:
    """Remove the files of a run. If this is interrupted, the folder has no record, and the rest cannot be resumed."""
    for path in files_of_run(folder):
        path.unlink()
