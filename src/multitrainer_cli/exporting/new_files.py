"""A folder whose files appear together, and which replace those of an earlier export alone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Iterator, Sequence

from ..errors import UserError

MANIFEST = "preprocess.json"  # its list "files" names the files of an export, itself included


@contextlib.contextmanager
def new_files(out: Path, names: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder to write files to; move them to `out` if the block succeeds, and remove them if it fails.

    A folder that does not exist yet appears with all of its files at once. Into one that exists, the files are moved
    one after the other, complete as they are; what else it holds stays.

    Parameters
    ----------
    out : Path
        The folder for the files.
    names : sequence of str
        The names of all files that the block writes, `MANIFEST` among them.
    overwrite : bool
        Whether to replace an earlier export in `out`.

    Raises
    ------
    UserError
        Before the block runs: if `out` cannot be written to, or holds a file of one of these names, which belongs to
        no earlier export or must not be replaced.
    """
    target = out.resolve()
    earlier = _files_of_export(target)
    _check_free(out, target, names, earlier, overwrite)
    try:
        stage = _make_stage(target)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; choose a folder that can be written to") from error
    try:
        yield stage
        _publish(stage, target, names)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror or error}; make room on the disk or choose another --out"
        ) from error
    finally:
        shutil.rmtree(str(stage), ignore_errors=True)
    for name in set(earlier) - set(names):
        with contextlib.suppress(FileNotFoundError):
            (target / name).unlink()


def _files_of_export(folder: Path) -> list[str]:
    """Return the names of the files that an earlier export wrote to a folder; there are none in another folder."""
    try:
        names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return [name for name in names if Path(name).name == name]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _check_free(out: Path, target: Path, names: Sequence[str], earlier: Sequence[str], overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"--out {out}: not a folder; choose another --out")
    present = [name for name in (*names, *earlier) if os.path.lexists(target / name)]
    foreign = [name for name in present if name not in earlier or (target / name).is_dir()]
    if foreign:
        raise UserError(f"--out {out} holds {foreign[0]}, which no earlier export wrote; choose another --out")
    if present and not overwrite:
        raise UserError(f"--out {out} holds an earlier export; replace it with --overwrite, or choose another --out")


def _make_stage(target: Path) -> Path:
    """Make an empty folder on the file system of `target`: inside it, or in the nearest folder above that exists."""
    parent = next(folder for folder in (target, *target.parents) if folder.exists())
    if not parent.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    stage = parent / f".{target.name[:40]}.{os.urandom(8).hex()}.tmp"
    stage.mkdir()
    return stage


def _publish(stage: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        with open(stage / name, "rb+") as file:  # a full disk may show only when the system writes out its buffers
            os.fsync(file.fileno())
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(stage, target)
        return
    for name in sorted(names, key=MANIFEST.__ne__):  # first what says which files are ours
        os.replace(stage / name, target / name)
