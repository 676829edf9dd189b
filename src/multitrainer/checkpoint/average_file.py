"""The file of an average of weights: an archive whose header is one JSON object.

::

    {"format": "multitrainer average", "version": 1, "decay": float, "warmup": bool, "num_updates": int,
     "is_behind": bool, "parameters": {name: {"shape", "dtype", "averaged": bool}}}

Shape and dtype are those of the weight. "averaged" says whether the Parameter has an array, which one that was never
trained has not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

import numpy as np
from mxnet.gluon import Parameter

from .. import _mxnet
from . import archive
from .archive import Reader
from .header import count_entry, entry
from .matching import match_parameters
from .paths import component

FORMAT, VERSION = "multitrainer average", 1


class AverageState(NamedTuple):
    """What a file holds."""

    arrays: Mapping[str, Any]  # by the name of the Parameter
    decay: float
    warmup: bool
    num_updates: int
    is_behind: bool  # whether the trainer had made an update that was not averaged yet


def average_dtype(dtype: Any) -> np.dtype:
    """Return the dtype of the average of weights: float16 would round away what a single update adds."""
    return np.promote_types(np.dtype(dtype), np.float32)


def check_initialized(params: Iterable[Parameter]) -> None:
    """Raise a RuntimeError if a Parameter has no values, and perhaps no shape, yet."""
    waiting = [param.name for param in params if not _mxnet.is_initialized(param)]
    if waiting:
        raise RuntimeError(
            f"these Parameters have no values yet: {', '.join(waiting)}. Initialize the network, and run one forward "
            "pass if shapes are still unknown, before averages are saved or loaded"
        )


def save(path: Path, params: Sequence[Parameter], state: AverageState) -> None:
    """Write the file atomically."""
    records = {
        param.name: {
            "shape": list(param.shape),
            "dtype": np.dtype(param.dtype).name,
            "averaged": param.name in state.arrays,
        }
        for param in params
    }
    header = {"format": FORMAT, "version": VERSION, **state._asdict(), "parameters": records}
    del header["arrays"]
    # In the order of the Parameters, not in that of their first updates, and in the dtypes that they have now: a
    # network may have been cast since its averages began.
    arrays = (
        (component(param.name), state.arrays[param.name].asnumpy().astype(average_dtype(param.dtype), copy=False))
        for param in params
        if param.name in state.arrays
    )
    archive.write(path, header, arrays)


def load(path: Path, params: Sequence[Parameter], partial: bool) -> tuple[AverageState, dict[str, str]]:
    """Read and check the file; return what it holds, and the Parameters that `partial` left out with the reasons.

    Raises
    ------
    ValueError
        If the file is damaged, of another format or version, or has other Parameters.
    """
    with Reader(path, written_by="WeightAverage.save") as reader:
        header = reader.header
        found = entry(reader, header, "format", str)
        if found != FORMAT:
            raise ValueError(f"{path} holds {found!r}, not what WeightAverage.save wrote")
        if entry(reader, header, "version", int) != VERSION:
            raise ValueError(f"{path} has format version {header['version']}; only version {VERSION} can be read")
        records = entry(reader, header, "parameters", dict)
        match = match_parameters(reader, records, params, partial)
        arrays = {}
        for name in match.loaded:
            if entry(reader, records[name], "averaged", bool):
                dtype = average_dtype(records[name]["dtype"]).name
                arrays[name] = reader.array(component(name), dtype, tuple(records[name]["shape"])).copy()
        reader.check_all_read()
        state = AverageState(
            arrays,
            entry(reader, header, "decay", float, int),
            entry(reader, header, "warmup", bool),
            count_entry(reader, header, "num_updates"),
            entry(reader, header, "is_behind", bool),
        )
        if not 0 <= state.decay < 1:
            raise reader.damaged(f"its decay is {state.decay}")
        return state, match.left_out
