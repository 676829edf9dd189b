"""Choose the folder that a run writes to, and lock it against other processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
from pathlib import Path
from typing import Iterator

from ..errors import UserError
from ..ranks.exchange import Ranks
from . import artifacts
from .run_folder import CHECKPOINT, check_replaceable, default_number, files_of_run, has_record, holds_run, is_run


@contextlib.contextmanager
def claim_folder(out: Path | None, default: Path, resume: bool, overwrite: bool, ranks: Ranks) -> Iterator[Path]:
    """Yield the folder that the run writes to, and keep other processes from it while the block runs.

    Parameters
    ----------
    out : Path, optional
        The folder that was asked for; by default, `default` or the next one that is free.
    default : Path
        The first of the default folders, such as runs/finetune; the second is runs/finetune-2.
    resume, overwrite : bool
        Whether the run continues or replaces the one in the folder.
    ranks : Ranks
        Those that train together; rank 0 decides, on its machine.

    Raises
    ------
    UserError
        On all ranks, if the folder cannot be written to, another process uses it, it holds a run and neither `resume`
        nor `overwrite` was asked for, or `overwrite` could not remove one of its files.
    """
    named = _last_default(default) if out is None else out
    elsewhere = ranks.any(not ranks.is_first and named is not None and holds_run(named))
    with contextlib.ExitStack() as stack:
        yield Path(ranks.run_on_first(lambda: str(_claim(out, default, resume, overwrite, elsewhere, stack))))


def _claim(
    wanted: Path | None, default: Path, resume: bool, overwrite: bool, elsewhere: bool, stack: contextlib.ExitStack
) -> Path:
    if wanted is None and overwrite:
        raise UserError("--overwrite replaces a run; say which one with --out")
    out = wanted or (_last_default(default) if resume else None)
    if out is None:
        out = _lock_next_default(default, stack)
    elif not _lock(out, stack):
        raise UserError(f"--out {out}: another process is training there; wait for it, or choose another --out")
    if os.path.lexists(out / CHECKPOINT):
        artifacts.make_folder(out / CHECKPOINT)  # checks that it can be written to
    if holds_run(out):
        if not (resume or overwrite):
            raise _occupied(out)
        if overwrite:
            check_replaceable(out)
    elif resume and elsewhere:
        raise UserError(
            f"--resume: there is no run in {out} on the machine of rank 0, but there is one in --out of another rank; "
            "copy that folder to this machine, or leave --resume out to begin a new run"
        )
    elif resume and not has_record(out):
        print(f"nothing to resume in {out}; a new run begins", flush=True)
    return out


def _occupied(out: Path) -> UserError:
    if is_run(out):
        return UserError(
            f"--out {out} holds a run already; go on with it (--resume), replace it (--overwrite), or choose another "
            "--out"
        )
    names = ", ".join(str(path.relative_to(out)) for path in files_of_run(out))
    return UserError(
        f"--out {out} holds {names}, in whose place a run would write; choose another --out, or let the run replace it "
        "(--overwrite)"
    )


def _lock_next_default(default: Path, stack: contextlib.ExitStack) -> Path:
    """Lock a free default folder with a higher number than all that hold a run, so that --resume finds it."""
    last = _last_default(default)
    for number in itertools.count(1 if last is None else _number(last, default) + 1):
        out = _nth(default, number)
        if _lock(out, stack) and not holds_run(out):
            break
    if number > 1:
        before = _nth(default, number - 1)
        what = "holds a run" if is_run(before) else "is in use"
        print(f"{before} {what}; this run goes to {out}", flush=True)
    return out


def _nth(default: Path, number: int) -> Path:
    return default if number == 1 else default.with_name(f"{default.name}-{number}")


def _number(folder: Path, default: Path) -> int:
    return default_number(folder, default) or 0


def _last_default(default: Path) -> Path | None:
    """Return the default folder with the highest number among those in which a run has begun."""
    numbered = [path for path in default.parent.glob("*") if _number(path, default)]
    begun = [path for path in numbered if holds_run(path) or has_record(path)]
    return max(begun, key=lambda path: _number(path, default), default=None)


_ATTEMPTS = 100
_locked: dict[int, Path] = {}  # file descriptor -> folder


def _lock(folder: Path, stack: contextlib.ExitStack) -> bool:
    """Make the folder and lock it until the stack is closed; return False if another process has locked it.

    The lock is on the folder itself and ends with the process for whatever reason, so no file is left behind. On a
    file system without locks for folders, the folder is used without one.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    handle = _open_locked(folder, made)
    if handle is None:
        return False
    _locked[handle] = folder
    stack.callback(_unlock, handle, made)
    artifacts.make_folder(folder)  # checks that it can be written to
    return True


def _open_locked(folder: Path, made: list[Path]) -> int | None:
    """Return a handle of the locked folder, or None if another process has locked it; add to `made` what it makes."""
    for _ in range(_ATTEMPTS):
        try:
            _make(folder, made)
            handle = os.open(str(folder), os.O_RDONLY)
        except FileNotFoundError as error:
            reason = artifacts.cannot_use(folder, error)
            continue  # another process, which had made the folder or one above it, has removed it again
        except OSError as error:
            raise artifacts.cannot_use(folder, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                return None
        if folder.exists() and os.path.samestat(os.fstat(handle), os.stat(str(folder))):
            return handle
        os.close(handle)
        reason = UserError(f"--out {folder}: the folder is removed again and again; choose another --out")
    raise reason


def _make(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it; add what did not exist to `made`, the innermost first."""
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            with contextlib.suppress(FileExistsError):  # another process was faster, or it is a file
                each.mkdir()
                if each not in made:  # it was there a moment ago
                    made.insert(0, each)


def _unlock(handle: int, made: list[Path]) -> None:
    """Unlock a folder, and remove it and those above it if this process has made them and nothing is in them."""
    del _locked[handle]
    with contextlib.suppress(OSError):  # not empty: the run has begun
        for folder in made:
            folder.rmdir()
    os.close(handle)


def _close_locks_of_parent() -> None:
    for handle in _locked:
        os.close(handle)
    _locked.clear()


# A process that loads images may live longer than this one if this one is killed, and must not keep its lock.
os.register_at_fork(after_in_child=_close_locks_of_parent)
