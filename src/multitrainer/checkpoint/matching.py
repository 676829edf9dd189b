"""Match the Parameters of a file with those of a trainer, by name, and the optimizers by their Parameters."""

from __future__ import annotations

from typing import Any, Collection, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from mxnet.gluon import Parameter

from ..multipliers.object_state import class_name
from ..optimizers.partition import Part
from .archive import Reader
from .decoding import is_shape
from .header import Header, OptimizerRecord, entry
from .paths import component, group_optimizer_path
from .trainer_state import TrainerState

_Kinds = Dict[str, Tuple[str, List[int]]]  # dtype and shape, by name
_LISTED = 5  # names of a kind that an error lists


class Match(NamedTuple):
    """The Parameters that are loaded, and those that are not."""

    loaded: dict[str, int]  # name -> index in the trainer
    left_out: dict[str, str]  # the others of the file or of the trainer: name -> reason

    def restricted_to(self, indices: Collection[int]) -> Match:
        """Return the match of those Parameters that have one of the ``indices``."""
        return Match({name: i for name, i in self.loaded.items() if i in indices}, self.left_out)


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


def match_optimizers(
    reader: Reader, header: Header, trainer: TrainerState, match: Match
) -> list[tuple[OptimizerRecord, Part]]:
    """Pair the optimizers that update the same Parameters, in the file and in the trainer; the main ones come first.

    The arrays of optimizers without a Parameter that is loaded are skipped.

    Raises
    ------
    ValueError
        If a Parameter is updated by another optimizer than before, or two optimizers differ in their class.
    """
    partition = trainer.partition
    part_of, number_of = {0: partition.main}, {partition.main: 0}
    for name, index in match.loaded.items():
        if "lr_mult" in header.parameters[name]:  # the others are never updated
            number, part = header.optimizer_of(name), partition.part_of(trainer.params[index])
            if part_of.setdefault(number, part) is not part or number_of.setdefault(part, number) != number:
                raise ValueError(_moved_text(reader, header, trainer, match, name))
    pairs = [(header.optimizers[number], part) for number, part in sorted(part_of.items(), key=lambda item: item[0])]
    for record, part in pairs:
        if record.kind != class_name(part.optimizer):
            raise ValueError(
                f"{reader.path} holds states of {record.kind}, but the optimizer of {part.owner} is "
                f"{class_name(part.optimizer)}: build the trainer with the optimizer of the file"
            )
    for number in set(range(1, len(header.optimizers))).difference(part_of):
        reader.skip(group_optimizer_path(number - 1))
    return pairs


def _moved_text(reader: Reader, header: Header, trainer: TrainerState, match: Match, name: str) -> str:
    number, part = header.optimizer_of(name), trainer.partition.part_of(trainer.params[match.loaded[name]])
    record = header.optimizers[number]
    there = "the trainer" if record.group is None else f"group {record.group!r}"
    text = (
        f"{reader.path}: {name!r} was updated by {record.kind}, the optimizer of {there}, when the states were saved, "
        f"and is updated by {class_name(part.optimizer)}, the optimizer of {part.owner}, here"
    )
    if number != 0 and part is not trainer.partition.main:  # the optimizer is the same, for others than before
        text += _sharing_text(header, trainer, match, number, part)
    return f"{text}; give the groups of this trainer the optimizers that those of the file had"


def _sharing_text(header: Header, trainer: TrainerState, match: Match, number: int, part: Part) -> str:
    """Name a Parameter that an optimizer updates in the file or in the trainer, and not in both."""
    for name, index in match.loaded.items():
        there = header.optimizer_of(name) == number
        here = trainer.partition.part_of(trainer.params[index]) is part
        if there and not here:
            return f". In the file it shares its optimizer with {name!r}, here it does not"
        if here and not there and "lr_mult" in header.parameters[name]:
            return f". Here it shares its optimizer with {name!r}, in the file it does not"
    return ""


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
        parts.append(f"not in the file: {_listed(missing)}")
    if unknown:
        parts.append(f"in the file, not in this trainer: {_listed(unknown)}")
    if different:
        differences = [f"{name} ({text})" for name, text in different.items()]
        parts.append(f"of another shape or dtype: {_listed(differences)}")
    cure = "No Parameter is in both" if partial else "partial=True loads those that are in both"
    if unknown and not missing:
        replaced = "" if partial else "; if they are of a layer that was replaced, pass partial=True"
        cure = f"If the trainer got those with trainer.add, add them here before load_states{replaced}. {cure}"
    if missing and unknown:
        cure += (
            ". If they are the same ones under other names, give the Blocks the prefix= that they had, or build the "
            "network within `with mx.name.NameManager():` both times"
        )
    return f"{path} does not fit this trainer; {'; '.join(parts)}. {cure}"


def _listed(texts: list[str]) -> str:
    more = f", and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return f"{', '.join(texts[:_LISTED])}{more}"
