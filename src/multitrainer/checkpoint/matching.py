"""Match the Parameters of a file with those of a trainer, by name."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from mxnet.gluon import Parameter

from .archive import Reader
from .decoding import is_shape
from .header import entry
from .paths import component

_Kinds = Dict[str, Tuple[str, List[int]]]  # dtype and shape, by name


class Match(NamedTuple):
    """The Parameters that are loaded, and those that are not."""

    loaded: dict[str, int]  # name -> index in the trainer
    left_out: dict[str, str]  # the others of the file or of the trainer: name -> reason


def match_parameters(reader: Reader, records: dict[str, Any], params: Sequence[Parameter], partial: bool) -> Match:
    """Match Parameters by name, and skip the arrays of those that are not loaded.

    Raises
    ------
    ValueError
        If the file and the trainer do not have the same Parameters, of the same shapes and dtypes, unless `partial`
        permits that and at least one matches.
    """
    here = {param.name: (np.dtype(param.dtype).name, list(param.shape)) for param in params}
    there = _kinds(reader, records)
    missing = [name for name in here if name not in there]
    unknown = [name for name in there if name not in here]
    different = {
        name: f"{_text(there[name])} in the file, {_text(here[name])} in this trainer"
        for name in here
        if name in there and here[name] != there[name]
    }
    left_out = {
        **dict.fromkeys(missing, "not in the file"),
        **dict.fromkeys(unknown, "not in this trainer"),
        **different,
    }
    if left_out and (not partial or len(missing) + len(different) == len(here)):
        raise ValueError(_mismatch_text(str(reader.path), missing, unknown, different, partial))
    for name in left_out:
        reader.skip(component(name))
    return Match({name: i for i, name in enumerate(here) if name not in left_out}, left_out)


def _kinds(reader: Reader, records: dict[str, Any]) -> _Kinds:
    kinds = {
        name: (entry(reader, record, "dtype", str), entry(reader, record, "shape", list))
        for name, record in records.items()
    }
    for name, (_, shape) in kinds.items():
        if not is_shape(shape):
            raise reader.damaged(f"the shape of {name!r} is not valid")
    return kinds


def _text(kind: tuple[str, list[int]]) -> str:
    return f"{kind[0]} {tuple(kind[1])}"


def _mismatch_text(path: str, missing: list[str], unknown: list[str], different: dict[str, str], partial: bool) -> str:
    parts = []
    if missing:
        parts.append(f"not in the file: {', '.join(missing)}")
    if unknown:
        parts.append(f"in the file, not in this trainer: {', '.join(unknown)}")
    if different:
        differences = ", ".join(f"{name} ({text})" for name, text in different.items())
        parts.append(f"of another shape or dtype: {differences}")
    cure = "No Parameter is in both" if partial else "partial=True loads those that are in both"
    if unknown and not missing:
        cure = f"If the trainer got those with trainer.add, add them here before load_states. {cure}"
    if missing and unknown:
        cure += ". If they are the same ones under other names, give the Blocks the prefix= that they had"
    return f"{path} does not fit this trainer; {'; '.join(parts)}. {cure}"
