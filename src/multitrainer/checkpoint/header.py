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

If groups had optimizers of their own, there is also "group_optimizers", a list of ``{"group": name, "num_update": int,
"class", "attributes", "by_parameter", "lr_scheduler"}``, and the Parameters of each such group have "optimizer", the
index in that list. Otherwise there is neither.

Values and states are nodes, as in `encoding`. BatchNorm statistics and constants have only a shape and a dtype. Each
list of "shared" holds the paths that lead to one array, list or dict; files of early versions have no such entry.
"accumulated" is there only if gradients were collected that no update has used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .archive import Reader
from .encoding import Node
from .paths import group_optimizer_path

FORMAT, VERSION = "multitrainer states", 1


class OptimizerRecord(NamedTuple):
    """What a file holds of one optimizer."""

    group: str | None  # None: the trainer's own
    num_update: int
    kind: str  # the name of its class
    attributes: dict[str, Node]
    by_parameter: dict[str, Any]
    lr_scheduler: Node
    root: str  # the path of its attributes
    scheduler_path: str


class Header(NamedTuple):
    """The entries of a header, whose types were checked."""

    parameters: dict[str, Any]  # name -> record
    was_frozen: bool
    optimizers: list[OptimizerRecord]  # the trainer's own comes first
    loss_scaler: dict[str, Node] | None
    shared: list[list[str]] | None
    accumulated: dict[str, Any] | None

    @property
    def num_update(self) -> int:
        """The number of the last update before the file was saved."""
        return self.optimizers[0].num_update

    def optimizer_of(self, name: str) -> int:
        """Return which of the ``optimizers`` updated a Parameter."""
        number: int = self.parameters[name].get("optimizer", -1)
        return number + 1


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
    parameters = entry(reader, header, "parameters", dict)
    return Header(
        parameters=parameters,
        was_frozen=entry(reader, header, "was_frozen", bool),
        optimizers=_optimizers(reader, parameters),
        loss_scaler=entry(reader, header, "loss_scaler", dict, type(None)) if "loss_scaler" in header else None,
        shared=_shared(reader) if "shared" in header else None,
        accumulated=entry(reader, header, "accumulated", dict) if "accumulated" in header else None,
    )


def _optimizers(reader: Reader, parameters: dict[str, Any]) -> list[OptimizerRecord]:
    """Read the records of all optimizers, and check that each Parameter names one of them."""
    header = reader.header
    main = {**entry(reader, header, "optimizer", dict), "lr_scheduler": header.get("lr_scheduler")}
    num_update = count_entry(reader, header, "num_update")
    records = [_optimizer(reader, main, None, num_update, "@optimizer", "@lr_scheduler")]
    own = entry(reader, header, "group_optimizers", list) if "group_optimizers" in header else []
    for number, record in enumerate(own):
        group, num_update = entry(reader, record, "group", str), count_entry(reader, record, "num_update")
        path = group_optimizer_path(number)
        records.append(_optimizer(reader, record, group, num_update, f"{path}/optimizer", f"{path}/lr_scheduler"))
    for name, record in parameters.items():
        is_own = isinstance(record, dict) and "optimizer" in record
        if is_own and not 0 <= entry(reader, record, "optimizer", int) < len(own):
            raise reader.damaged(f"the optimizer of {name!r} is {record['optimizer']}")
    return records


def _optimizer(
    reader: Reader, record: Any, group: str | None, num_update: int, root: str, scheduler_path: str
) -> OptimizerRecord:
    return OptimizerRecord(
        group=group,
        num_update=num_update,
        kind=entry(reader, record, "class", str),
        attributes=entry(reader, record, "attributes", dict),
        by_parameter=entry(reader, record, "by_parameter", dict),
        lr_scheduler=record.get("lr_scheduler"),
        root=root,
        scheduler_path=scheduler_path,
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
