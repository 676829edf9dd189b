"""Decode what a file holds of an optimizer: its attributes, and the states of the Parameters that it updates."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, Mapping, NamedTuple

from mxnet.optimizer import Optimizer

from .. import _mxnet
from ..multipliers.object_state import attributes_of, class_name, copy_arrays, identical, with_type_of
from ..optimizers.partition import Part
from .archive import Reader
from .decoding import Decoder, InPlaceDecoder
from .encoding import Encoder
from .header import Header, OptimizerRecord
from .matching import Match
from .object_decoding import ObjectDecoder, ObjectUpdate, can_be_added
from .paths import SharedPaths, component, optimizer_path
from .trainer_state import NOT_SAVED, TrainerState, has_index_keys


class Source(NamedTuple):
    """An optimizer in a file that is open for loading, and the optimizer of the trainer that it is loaded into."""

    reader: Reader
    header: Header
    trainer: TrainerState
    record: OptimizerRecord
    part: Part
    match: Match  # of the Parameters that the optimizer updates
    kept: set[str]  # attributes of the optimizer that keep the trainer's value
    objects: ObjectDecoder

    def path(self, *names: str) -> str:
        """Create the path of an attribute of the optimizer, and of a part of it that belongs to a Parameter."""
        return optimizer_path(*names, root=self.record.root)


def decode_attributes(source: Source) -> dict[str, Any]:
    """Decode the optimizer's attributes, and add their update to those of ``source.objects``.

    Raises
    ------
    ValueError
        If the file is damaged, or an attribute is missing, does not fit or could be by index of the Parameters or not.
    """
    optimizer, objects, ignored = source.part.optimizer, source.objects, NOT_SAVED | source.kept
    for name in source.kept:
        source.reader.skip(source.path(name))
    current = {name: value for name, value in attributes_of(optimizer).items() if name not in ignored}
    index_in_file = {param: i for i, param in enumerate(source.header.parameters)}
    by_index = {
        name: _decode_by_index(source, name, nodes, current.get(name), index_in_file)
        for name, nodes in source.record.by_parameter.items()
        if name not in source.kept
    }
    nodes = {name: node for name, node in source.record.attributes.items() if name not in source.kept}
    others = {name: value for name, value in current.items() if name not in by_index}
    attributes = objects.decode_attributes(nodes, others, {*by_index, *NOT_SAVED}, type(optimizer), source.record.root)
    attributes = {
        name: objects.shared.resolve(source.path(name), _reindexed(source, name, value, current.get(name)))
        for name, value in {**attributes, **by_index}.items()
    }
    objects.updates.append(ObjectUpdate(optimizer, attributes))
    return attributes


def _decode_by_index(
    source: Source, name: str, nodes: Any, current: Any, index_in_file: Mapping[str, int]
) -> dict[int, Any]:
    """Decode an attribute that the file has by Parameter name, as a dict by the indices at the time of saving."""
    is_possible = isinstance(current, dict) or (current is None and can_be_added(name, type(source.part.optimizer)))
    is_by_name = isinstance(nodes, dict) and nodes.keys() <= index_in_file.keys()
    if not (is_possible and is_by_name) or name in NOT_SAVED:
        raise source.reader.damaged(f"{name!r} of the optimizer is not by Parameter name")
    return {
        index_in_file[param]: source.objects.values.decode(node, source.path(name, param))
        for param, node in nodes.items()
    }


def _reindexed(source: Source, name: str, value: Any, current: Any) -> Any:
    """Replace indices at the time of saving by those of this trainer, if `value` is a dict by index.

    A dict with other integer keys looks the same. That makes no difference if the Parameters are the same in the same
    order. If not, an attribute that is equal in this trainer is not by index, and one whose keys are exactly the
    Parameters that were updated is by index.
    """
    if not has_index_keys(value, len(source.header.parameters)) or not (value or current):
        return with_type_of(current, value)
    here, there = [param.name for param in source.trainer.params], list(source.header.parameters)
    if here == there:
        return with_type_of(current, value)
    candidates = [value] if identical(value, current) else []
    if _is_by_index(source, value, {} if current is None else current):
        own = {i: part for i, part in (current or {}).items() if here[i] in source.match.left_out}
        loaded = {source.match.loaded[there[i]]: part for i, part in value.items() if there[i] in source.match.loaded}
        candidates.append({**own, **loaded})
    if not candidates or not identical(candidates[0], candidates[-1]):
        raise ValueError(
            f"{name!r} of {class_name(source.part.optimizer)} has whole numbers for keys. They may be indices of "
            f"Parameters, and the Parameters of this trainer differ from those of {source.reader.path} or are in "
            "another order. Build the trainer with the same ones in the same order, or keep the attribute as it is "
            f"here: keep={name!r}"
        )
    return with_type_of(current, candidates[0])


def _is_by_index(source: Source, value: dict[int, Any], current: Any) -> bool:
    """Whether the keys are the Parameters that were updated, in the file and in this trainer."""
    number = source.header.optimizers.index(source.record)
    records = [
        record if source.header.optimizer_of(name) == number else {}
        for name, record in source.header.parameters.items()
    ]
    updated = [{i for i, record in enumerate(records) if field in record} for field in ("updates", "state")]
    updated_here = set.union(*source.trainer.updated_indices(source.part))
    return (not value or value.keys() in updated) and isinstance(current, dict) and current.keys() <= updated_here


def decode_states(source: Source, attributes: Mapping[str, Any]) -> list[dict[int, Any]]:
    """Decode the states of the Parameters by index, once for each updater of the trainer.

    The templates for the states are what the optimizer creates if it has the attributes of the file.

    Raises
    ------
    ValueError
        If the file is damaged, or the optimizer keeps states of another kind.
    """
    trainer, match = source.trainer, source.match
    # A copy, because an optimizer may keep the states that it creates in its attributes.
    optimizer = object.__new__(type(source.part.optimizer))
    vars(optimizer).update(copy_arrays({**vars(source.part.optimizer), **attributes}))
    templates = {
        name: _create_state(optimizer, index, _mxnet.weight_like(trainer.params[index], trainer.contexts[0]), name)
        for name, index in match.loaded.items()
        if "state" in source.header.parameters[name]
    }
    decoder: Decoder = source.objects.values
    if _creates_independent_states(optimizer):
        decoder = InPlaceDecoder(
            source.reader, trainer.contexts[0], source.objects.shared, source.objects.decode_object
        )
    elif source.header.shared is None:
        source.objects.shared.set_groups(_guess_shared(source, optimizer, templates).groups())
    states = {
        match.loaded[name]: decoder.decode(source.header.parameters[name]["state"], component(name), template)
        for name, template in templates.items()
    }
    return [states, *(copy_arrays(states, context) for context in trainer.contexts[1 : len(trainer.updaters)])]


def _creates_independent_states(optimizer: Optimizer) -> bool:
    """Whether no state is part of something else that the optimizer keeps; known of MXNet's own classes only."""
    creators = (optimizer.create_state, optimizer.create_state_multi_precision)
    return all(creator.__module__.startswith("mxnet.") for creator in creators)


def _create_state(optimizer: Optimizer, index: int, weight: Any, name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user saw its warnings when the weight was first updated
            return optimizer.create_state_multi_precision(index, weight)
    except Exception as error:
        raise ValueError(
            f"{class_name(optimizer)} cannot create a state for Parameter {name!r} with the settings in the file: "
            f"{error!r}"
        ) from error


def _guess_shared(source: Source, optimizer: Optimizer, states: Mapping[str, Any]) -> SharedPaths:
    """Find what was shared when a file of an early version was saved: what a new `optimizer` and its `states` share."""
    encoder, names = Encoder(), [param.name for param in source.trainer.params]
    values = {component(name): state for name, state in states.items()}
    for name, value in vars(optimizer).items():
        if name in NOT_SAVED | source.kept:
            continue
        if name in source.record.by_parameter and has_index_keys(value, len(names)):
            encoder.shared.add(source.path(name), value)
            values.update((source.path(name, names[i]), part) for i, part in value.items())
        else:
            values[source.path(name)] = value
    for path, value in values.items():
        with contextlib.suppress(TypeError):  # a value that no file can hold is not shared with one
            encoder.encode(value, path)
    return encoder.shared
