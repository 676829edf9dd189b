"""Decode every image before training begins, so that none can end it in the middle."""

from __future__ import annotations

import os
import warnings
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Sequence

from multitrainer.images import check_image

from ..errors import UserError, require

_SHOWN = 3  # broken images that an error names
_DELAY = 2  # seconds until there is a progress bar


def check_readable(paths: Sequence[str], root: Path) -> None:
    """Raise UserError if an image cannot be decoded; the message names the first ones and says why.

    Parameters
    ----------
    paths : sequence of str
        The images.
    root : Path
        The folder that the names in the message are relative to.
    """
    require("PIL.Image")
    threads = min(len(os.sched_getaffinity(0)), len(paths)) or 1  # Pillow decodes without Python's lock
    progress = require("tqdm").tqdm(
        desc="checking images", unit=" images", total=len(paths), leave=False, disable=None, delay=_DELAY
    )
    with progress, warnings.catch_warnings(), ThreadPool(threads) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata, which nothing here needs
        broken = {}
        for path, reason in zip(paths, pool.imap(explain_unreadable, paths, chunksize=8)):
            progress.update()
            if reason is not None:
                broken[path] = reason
    if broken:
        raise _unreadable(broken, root)


def explain_unreadable(path: str) -> str | None:
    """Return why an image cannot be read, or None if it can."""
    try:
        check_image(path)
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return str(error).replace(f"{path}: ", "", 1)
    return None


def _unreadable(broken: dict[str, str], root: Path) -> UserError:
    named = [f"{Path(path).relative_to(root)}: {reason}" for path, reason in list(broken.items())[:_SHOWN]]
    rest = f"; and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    count = f"{len(broken)} images" if len(broken) > 1 else "an image"
    return UserError(f"--data {root} holds {count} that cannot be read ({'; '.join(named)}{rest}); remove or replace")
