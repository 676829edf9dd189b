"""Save the state of a trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Mapping

import numpy as np
from mxnet.gluon import Parameter

from .. import _mxnet
from ..groups.param_group import FIELDS
from ..multipliers.object_state import attributes_of, check_settings, class_name
from ..optimizers.partition import Part
from . import accumulated, archive
from .encoding import Encoder, Node, ObjectEncoder
from .header import FORMAT, VERSION
from .paths import component, group_optimizer_path, optimizer_path
from .trainer_state import NOT_SAVED, TrainerState, check_loss_scale, has_index_keys


def save(path: Path, trainer: TrainerState) -> None:
    """Write the file; see `MultiLRTrainer.save_states`."""
    encoder, (main, *own) = Encoder(), trainer.partition.parts
    record = _encode_optimizer(encoder, trainer, main, "@optimizer")
    counts = {part: _mxnet.update_counts(part.optimizer) for part in trainer.partition.parts}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": {
            param.name: _encode_parameter(encoder, param, i, counts[trainer.partition.part_of(param)].get(i), trainer)
            for i, param in enumerate(trainer.params)
        },
        "groups": list(trainer.groups),
        "num_update": main.optimizer.num_update,
        "was_frozen": trainer.multipliers.was_frozen,
        "optimizer": record,
        "lr_scheduler": _encode_scheduler(encoder, main.optimizer.lr_scheduler, "@lr_scheduler"),
        "loss_scaler": _encode_loss_scaler(encoder, trainer.loss_scaler),
        **accumulated.encode(encoder, trainer),
    }
    if own:
        header["group_optimizers"] = [_encode_own(encoder, trainer, part, i) for i, part in enumerate(own)]
    header["shared"] = encoder.shared.groups()
    archive.write(path, header, encoder.arrays)


def _encode_parameter(
    encoder: Encoder, param: Parameter, index: int, count: int | None, trainer: TrainerState
) -> dict[str, Any]:
    """Create the record of one Parameter, with its state if it has one."""
    record: dict[str, Any] = {"shape": list(param.shape), "dtype": np.dtype(param.dtype).name}
    if _mxnet.is_auxiliary(param):
        return record
    saved = trainer.multipliers.saved(param)
    for name in (*FIELDS, "before"):
        if not math.isfinite(getattr(saved, name)):
            raise ValueError(
                f"{name} of Parameter {param.name!r} is {getattr(saved, name)}; a multiplier must be finite to be saved"
            )
    record.update(saved._asdict(), frozen=saved.lr_mult == 0, schedules=dict(saved.schedules))
    if count is not None:
        record["updates"] = count
    part = trainer.partition.part_of(param)
    if part is not trainer.partition.main:
        record["optimizer"] = trainer.partition.parts.index(part) - 1
    states = [updater.states[index] for updater in trainer.updaters if index in updater.states]
    if states:
        description = f"the state of Parameter {param.name!r} under {class_name(part.optimizer)}"
        record["state"] = _encode(encoder, states[0], component(param.name), description)
        for state in states[1:]:
            encoder.add_replica(state, component(param.name))
    return record


def _encode_own(encoder: Encoder, trainer: TrainerState, part: Part, number: int) -> dict[str, Any]:
    """Create the record of an optimizer that a group has of its own."""
    path = group_optimizer_path(number)
    return {
        "group": part.group,
        "num_update": part.optimizer.num_update,
        **_encode_optimizer(encoder, trainer, part, f"{path}/optimizer"),
        "lr_scheduler": _encode_scheduler(encoder, part.optimizer.lr_scheduler, f"{path}/lr_scheduler"),
    }


def _encode_optimizer(encoder: Encoder, trainer: TrainerState, part: Part, root: str) -> dict[str, Any]:
    """Encode the attributes of an optimizer; those that are dicts by index become dicts by Parameter name."""
    attributes = attributes_of(part.optimizer)
    check_settings(type(part.optimizer), attributes)
    attributes = {name: value for name, value in attributes.items() if name not in NOT_SAVED}
    params, updated = trainer.params, trainer.updated_indices(part)
    by_index = {
        name: attributes.pop(name)
        for name, value in list(attributes.items())
        if has_index_keys(value, len(params)) and value and value.keys() in updated
    }
    owner = f"optimizer {class_name(part.optimizer)}"
    by_parameter = {
        name: {
            params[i].name: _encode(
                encoder, item, optimizer_path(name, params[i].name, root=root), f"{name} of {owner}"
            )
            for i, item in value.items()
        }
        for name, value in by_index.items()
    }
    for name, value in by_index.items():
        encoder.shared.add(optimizer_path(name, root=root), value)
    encoded = _encode_attributes(encoder, attributes, root, owner)
    return {"class": class_name(part.optimizer), "attributes": encoded, "by_parameter": by_parameter}


def _encode_scheduler(encoder: Encoder, scheduler: Any, path: str) -> Node:
    return _encode(ObjectEncoder(encoder), scheduler, path, f"lr_scheduler {class_name(scheduler)}")


def _encode_loss_scaler(encoder: Encoder, scaler: Any) -> dict[str, Node] | None:
    if scaler is None:
        return None
    check_loss_scale(vars(scaler))
    return _encode_attributes(encoder, vars(scaler), "@loss_scaler", "AMP's loss scaler")


def _encode_attributes(encoder: Encoder, attributes: Mapping[str, Any], path: str, owner: str) -> dict[str, Node]:
    return {
        name: _encode(encoder, value, f"{path}/{component(name)}", f"{name} of {owner}")
        for name, value in attributes.items()
    }


def _encode(encoder: Encoder, value: Any, path: str, description: str) -> Node:
    try:
        return encoder.encode(value, path)
    except (TypeError, RecursionError) as error:
        raise TypeError(
            f"{description} cannot be saved: {error}. Numbers, str, None, arrays, and tuples, lists and dicts of these "
            "can"
        ) from error
