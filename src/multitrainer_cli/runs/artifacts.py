"""Write and check the files of a run. A file is written beside its place and then moved: it is complete or absent."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any, Iterator

import mxnet as mx

from multitrainer import MultiLRTrainer, WeightAverage, _mxnet
from multitrainer.checkpoint import atomic

from ..errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the same folder; move it to `path` if the block succeeds, and remove it if not.

    Raises
    ------
    UserError
        If it cannot be written (a full disk, no permission), naming `path`.
    """
    try:
        with atomic.replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise cannot_write(path, error.strerror or str(error)) from error


def save_parameters(net: mx.gluon.Block, path: Path) -> None:
    """Save the parameters of a network, as they are on its first device, and check that they can be read back."""
    with replacing(path) as temporary:
        _write_parameters(net, temporary, path)


@contextlib.contextmanager
def saving_parameters(net: mx.gluon.Block, path: Path) -> Iterator[int]:
    """Save parameters as `save_parameters` does, but move the file to `path` after the block; yield its checksum."""
    with replacing(path) as temporary:
        _write_parameters(net, temporary, path)
        yield checksum(temporary)


def _write_parameters(net: mx.gluon.Block, temporary: Path, path: Path) -> None:
    mx.nd.waitall()  # reading a frozen weight while a step runs can give wrong values, or crash MXNet
    # `net.save_parameters` saves the average over the devices, which on three of equal values has other last digits.
    arrays = {
        name: param.list_data()[0].as_in_context(mx.cpu()) for name, param in _mxnet.parameters_by_path(net).items()
    }
    try:
        mx.nd.save(str(temporary), arrays)
        # MXNet does not check the last write; only reading the file shows that the disk cut it short.
        mx.nd.load(str(temporary))
    except mx.MXNetError as error:
        reason = str(error).strip().splitlines()[-1]
        raise cannot_write(path, f"the file is incomplete ({reason})") from error


def save_states(trainer: MultiLRTrainer, path: Path) -> None:
    """Save the states of a trainer."""
    with _reported(path):
        trainer.save_states(path)


def save_average(average: WeightAverage, path: Path) -> None:
    """Save an average of weights."""
    with _reported(path):
        average.save(path)


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn an OSError into the UserError that a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error.strerror or str(error)) from error


def check_parameters(path: Path) -> None:
    """Raise a ValueError if the path is not a file of parameters that can be read as a whole."""
    try:
        if path.is_file() and isinstance(mx.nd.load(str(path)), dict):
            return
    except mx.MXNetError:
        pass  # its message holds the stack of MXNet
    raise ValueError(f"{path.name} cannot be read as MXNet parameters")


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    return zlib.crc32(path.read_bytes())


def save_text(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_figure(figure: Any, path: Path) -> None:
    """Save a matplotlib figure as PNG; a letter that its font lacks is drawn as a box, without a warning."""
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(str(temporary), format="png", dpi=150)


class MetricsFile:
    """A JSON Lines file that is rewritten with every row, so that it never ends in half a line.

    Parameters
    ----------
    path : Path
        The file. The first row replaces what is in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Append a row and write the file."""
        self.rows.append(row)
        save_text(self.path, "".join(json.dumps(each, allow_nan=False) + "\n" for each in self.rows))


def make_folder(path: Path) -> None:
    """Make the folder of a run, and check that it can be written to before any work is done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=str(path)):
            pass
    except OSError as error:
        raise cannot_use(path, error) from error


def cannot_use(folder: Path, error: OSError) -> UserError:
    """Return the error that a run cannot write to a folder."""
    return UserError(f"--out {folder}: {error.strerror or error}; choose a folder that can be written to")


def cannot_write(path: Path, reason: str) -> UserError:
    """Return the error that a file cannot be written."""
    return UserError(f"cannot write {path}: {reason}; make room on the disk or choose another --out")
