"""The JSON header of a file of states.

It is one object::

    {"format": "multitrainer states", "version": 1,
     "parameters": {name: {"shape", "dtype", "lr_mult", "wd_mult", "frozen", "grad_req", "before", "schedules",
                           "updates", "state"}},
     "groups": [name], "num_update": int, "was_frozen": bool,
     "optimizer": {"class", "attributes", "by_parameter": {attribute: {name: value}}},
     "lr_scheduler": value or null, "loss_scaler": {attribute: value} or null,
     "shared": [[path]],
     "accumulated": {"accumulate", "steps", "batch_size", "scale", "gradients": {name: value}}}

Values and states are nodes, as in `encoding`. BatchNorm statistics and constants have only a shape and a dtype. Each
list of "shared" holds the paths that lead to one array, list or dict; files of early versions have no such entry.
"accumulated" is there only if gradients were collected that no update has used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .archive import Reader
from .encoding import Node

FORMAT, VERSION = "multitrainer states", 1


class Header(NamedTuple):
    """The entries of a header, whose types were checked."""

    parameters: dict[str, Any]  # name -> record
    num_update: int
    was_frozen: bool
    optimizer_class: str
    optimizer_attributes: dict[str, Node]
    by_parameter: dict[str, Any]
    lr_scheduler: Node
    loss_scaler: dict[str, Node] | None
    shared: list[list[str]] | None
    accumulated: dict[str, Any] | None


def read_header(reader: Reader) -> Header:
    """Read the header of a file.

    Raises
    ------
    ValueError
        If the file is damaged, or of another format or version.
    """
    header = reader.header
    if entry(reader, header, "format", str) != FORMAT:
        raise reader.damaged("it has another format")
    if entry(reader, header, "version", int) != VERSION:
        raise ValueError(f"{reader.path} has format version {header['version']}; only version {VERSION} can be read")
    optimizer = entry(reader, header, "optimizer", dict)
    return Header(
        parameters=entry(reader, header, "parameters", dict),
        num_update=count_entry(reader, header, "num_update"),
        was_frozen=entry(reader, header, "was_frozen", bool),
        optimizer_class=entry(reader, optimizer, "class", str),
        optimizer_attributes=entry(reader, optimizer, "attributes", dict),
        by_parameter=entry(reader, optimizer, "by_parameter", dict),
        lr_scheduler=header.get("lr_scheduler"),
        loss_scaler=entry(reader, header, "loss_scaler", dict, type(None)) if "loss_scaler" in header else None,
        shared=_shared(reader) if "shared" in header else None,
        accumulated=entry(reader, header, "accumulated", dict) if "accumulated" in header else None,
    )


def entry(reader: Reader, record: Any, name: str, *types: type) -> Any:
    """Return the entry `name` of a JSON object; raise a ValueError if it is missing or of none of the types."""
    if not isinstance(record, dict) or name not in record or type(record[name]) not in types:
        raise reader.damaged(f"its {name!r} is missing or of a wrong type")
    return record[name]


def count_entry(reader: Reader, record: Any, name: str) -> int:
    """Return the entry `name` of a JSON object; raise a ValueError if it is not a number of updates."""
    count = entry(reader, record, name, int)
    if not 0 <= count < 2**63:
        raise reader.damaged(f"its {name!r} is {count}")
    return count


def _shared(reader: Reader) -> list[list[str]]:
    groups = entry(reader, reader.header, "shared", list)
    seen: set[str] = set()
    for paths in groups:
        if not isinstance(paths, list) or not all(isinstance(path, str) and path not in seen for path in paths):
            raise reader.damaged("its 'shared' is not a list of lists of different paths")
        seen.update(paths)
    return groups
