"""Whether a picture can be written where an option names it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..data.layout import class_roots
from ..errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"


def check_picture(option: str, path: Path, data: Path | None) -> None:
    """Refuse a picture that cannot be written, would replace something else, or would be taken for an image of a class.

    Parameters
    ----------
    option : str
        The option that names it, such as ``--out``.
    path : Path
        The file.
    data : Path, optional
        The folder of images of the run.

    Raises
    ------
    UserError
        In these cases; nothing is written.
    """
    parents = [parent.resolve() for parent in path.resolve().parents]
    if data is not None and any(root.resolve() in parents[1:] for root in class_roots(data)):
        raise UserError(f"{option} {path} is inside a class folder of --data; choose another {option}")
    try:
        if path.is_dir() or (path.exists() and path.read_bytes()[: len(PNG)] != PNG):
            raise UserError(f"{option} {path} exists and is not a PNG picture; choose another {option}")
        with tempfile.TemporaryFile(dir=str(path.parent)):
            pass
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}; choose a place that can be written to") from error
