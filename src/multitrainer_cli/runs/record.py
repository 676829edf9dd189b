"""run.json, the record of a run: what was trained, on what, and how. It is written for people to read, too."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import mxnet as mx
import numpy as np

import multitrainer
from multitrainer.saved_run import FORMAT, parse_json

from . import artifacts

_KEYS = ("format", "model", "options", "versions")  # of every format; a file without them was not written by a run
_DEPTH = 3  # how deep entries have lines of their own: a line for each option and for each image


class NewerFormatError(ValueError):
    """A record of a format that only a newer version can read."""


class NetworkRecord(NamedTuple):
    """What it takes to predict with the weights of a run.

    Attributes
    ----------
    model : str
        The name in GluonCV's model zoo.
    classes : list of str
        The names of the outputs, in their order.
    input : dict
        How an image becomes the input: size, resize, mean and std.
    """

    model: str
    classes: list[str]
    input: dict[str, Any]


def write(
    path: Path,
    network: NetworkRecord,
    options: dict[str, str],
    data: str | None,
    weights: dict[str, Any] | None,
    images: dict[str, Any] | None,
    threads: int | None = None,
) -> None:
    """Write the record of a run.

    Parameters
    ----------
    path : Path
        The file.
    network : NetworkRecord
        The network and its classes.
    options : dict of str to str
        The options that decide what the run computes.
    data : str, optional
        The folder of the images.
    weights : dict, optional
        The file that the run starts from, or a comparison fine-tunes, and its checksum.
    images : dict, optional
        How the images are divided: what `Split.record` returns.
    threads : int, optional
        The threads that MXNet computes with on a CPU, on which the last bits depend.
    """
    split = None
    if images is not None:
        split = {part: {name: images["contents"][name] for name in images[part]} for part in ("train", "val")}
    record = {
        "format": FORMAT,
        **network._asdict(),
        "options": options,
        "versions": _versions(),
        "threads": threads,
        "data": data,
        "weights": weights,
        "split": split,
    }
    # JSON's own escapes for what is not text in UTF-8, such as a folder whose name is in Latin-1.
    artifacts.save_text(path, _format(record).encode("utf-8", "backslashreplace").decode() + "\n")


def read(path: Path) -> dict[str, Any]:
    """Read what is needed to resume a run, as it was given to `write`; the network is a dict of its fields.

    Raises
    ------
    NewerFormatError
        If a newer version has written the file.
    OSError, ValueError, LookupError, TypeError
        If the file cannot be read, is not a record, lacks a field, or a field has another type.
    """
    record = _parse(path)
    if record["format"] != FORMAT:
        versions = record["versions"]
        version = f", {versions['multitrainer']}" if isinstance(versions, dict) and "multitrainer" in versions else ""
        raise NewerFormatError(f"{path} was written by a newer multitrainer{version}")
    if not isinstance(record["data"], (str, type(None))):
        raise TypeError(f"expected the name of a folder as data, got {record['data']!r}")
    threads = record.get("threads")  # which an earlier version did not write
    if type(threads) not in (int, type(None)):
        raise TypeError(f"expected a number of threads, got {threads!r}")
    weights, split = record["weights"], record["split"]
    if split is not None and record["data"] is None:
        raise ValueError("there is a split, and no folder as data")
    return {
        "network": {field: record[field] for field in NetworkRecord._fields},
        "options": dict(record["options"]),
        "data": record["data"],
        "weights": None if weights is None else {key: weights[key] for key in ("file", "crc32")},
        "images": None if split is None else _parse_images(record["classes"], split),
        "threads": threads,
    }


def identify(path: Path) -> int | None:
    """Return the format of a record; None if there is no file, or if it is not the record of a run."""
    try:
        return int(_parse(path)["format"])
    except (OSError, ValueError):
        return None


def _parse(path: Path) -> dict[str, Any]:
    record = parse_json(path.read_text(encoding="utf-8"))
    known = isinstance(record, dict) and all(key in record for key in _KEYS)
    if not (known and type(record["format"]) is int and record["format"] >= FORMAT):
        raise ValueError(f"{path.name} is not the record of a run")
    return dict(record)


def _parse_images(classes: list[str], split: dict[str, Any]) -> dict[str, Any]:
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise TypeError(f"expected a list of names as classes, got {classes!r}")
    images: dict[str, Any] = {"classes": classes, "contents": {}}
    for part in ("train", "val"):
        images[part] = list(dict(split[part]))
        for name in images[part]:
            _check_image(name, split[part][name], classes)
            if name in images["contents"]:
                raise ValueError(f"the image {name!r} is in train and in val")
            images["contents"][name] = split[part][name]
    return images


def check_split(images: dict[str, Any]) -> None:
    """Raise a ValueError if there is nothing to train on or nothing to validate on, which no run records."""
    for part in ("train", "val"):
        if not images[part]:
            raise ValueError(f"the split has no images in {part}")


def _check_image(name: str, contents: Any, classes: list[str]) -> None:
    """Refuse an image that is not named CLASS/FILE or PART/CLASS/FILE, or has no size and checksum."""
    path = PurePath(name)
    if path.is_absolute() or len(path.parts) not in (2, 3) or path.parent.name not in classes:
        raise ValueError(f"the image {name!r} is in none of the classes")
    if not (isinstance(contents, list) and len(contents) == 2 and all(type(number) is int for number in contents)):
        raise ValueError(f"the image {name!r} has no size and checksum, but {contents!r}")


def _versions() -> dict[str, str | None]:
    return {
        "multitrainer": multitrainer.__version__,
        "mxnet": mx.__version__,
        "gluoncv": _installed_version("gluoncv"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _format(value: Any, depth: int = 0) -> str:
    """Return JSON in which every entry of an object has a line, down to the images of a split."""
    if not (isinstance(value, dict) and value and depth < _DEPTH):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    indent = "  " * (depth + 1)
    lines = [f"{indent}{json.dumps(key, ensure_ascii=False)}: {_format(value[key], depth + 1)}" for key in value]
    return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"
