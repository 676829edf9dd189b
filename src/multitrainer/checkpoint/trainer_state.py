"""Optimizer state on disk, by parameter name, without pickle.

The header of a file is one JSON object::

    {"format": "multitrainer states", "version": 1,
     "parameters": {name: {"shape", "dtype", "lr_mult", "wd_mult", "frozen", "grad_req", "before", "schedules",
                           "updates", "state"}},
     "groups": [name], "num_update": int, "was_frozen": bool,
     "optimizer": {"class", "attributes", "by_parameter": {attribute: {name: value}}},
     "lr_scheduler": value or null, "loss_scaler": {attribute: value} or null,
     "shared": [[path]]}

Values and states are nodes of `values`; statistics and constants have a shape and a dtype alone. Each list of
``shared`` holds the paths to one array, list or dict that was in several places; older files have none.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from pathlib import Path
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

import numpy as np
from mxnet.base import MXNetError
from mxnet.context import Context
from mxnet.gluon import Parameter
from mxnet.optimizer import Optimizer, Updater

from .. import _mxnet
from ..groups.param_group import FIELDS
from ..multipliers.multipliers import Multipliers
from ..multipliers.object_state import attributes_of, check_settings, check_turns, class_name, copied, of_type, same
from ..multipliers.saved import ACTS, ENDED, SavedMultipliers
from .archive import Reader, write
from .decoding import Decoder, Update, can_be_added, is_shape
from .encoding import Encoder, key

FORMAT, VERSION = "multitrainer states", 1


_NOT_STATE = _mxnet.NOT_STATE | {"_multitrainer_filled"}


_RATE = "learning_rate"


class Training(NamedTuple):
    """What there is to save of a trainer, and to load into."""

    params: Sequence[Parameter]
    optimizer: Optimizer
    updaters: Sequence[Updater]  # one for each context, or that of a kvstore which updates
    on_kvstore: bool
    contexts: Sequence[Context]
    multipliers: Multipliers
    groups: Sequence[str]
    loss_scaler: Any  # AMP's, or None


def save(path: Path, training: Training) -> None:
    """Write the file; see `MultiLRTrainer.save_states`."""
    packer, optimizer = Encoder(), training.optimizer
    attributes, by_parameter = _pack_optimizer(packer, attributes_of(optimizer), training)
    scheduler, scaler = optimizer.lr_scheduler, training.loss_scaler
    counts = _mxnet.update_counts(optimizer)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": {
            param.name: _describe(param, i, training, counts.get(i), packer) for i, param in enumerate(training.params)
        },
        "groups": list(training.groups),
        "num_update": optimizer.num_update,
        "was_frozen": training.multipliers.was_frozen,
        "optimizer": {"class": class_name(optimizer), "attributes": attributes, "by_parameter": by_parameter},
        "lr_scheduler": _pack(packer, scheduler, "@lr_scheduler", f"lr_scheduler {class_name(scheduler)}", True),
        "loss_scaler": None if scaler is None else _pack_all(packer, vars(scaler), "@loss_scaler", "AMP's loss scaler"),
        "shared": packer.shared(),
    }
    if scaler is not None:
        _check_scale(vars(scaler))
    write(path, header, packer.arrays)


def _describe(param: Parameter, index: int, training: Training, count: int | None, packer: Encoder) -> dict[str, Any]:
    record: dict[str, Any] = {"shape": list(param.shape), "dtype": np.dtype(param.dtype).name}
    if _mxnet.is_auxiliary(param):
        return record
    saved = training.multipliers.saved(param)
    for name in (*FIELDS, "before"):
        if not math.isfinite(getattr(saved, name)):
            raise ValueError(f"{name} of Parameter {param.name!r} is {getattr(saved, name)}, which is no multiplier")
    record.update(saved._asdict(), frozen=saved.lr_mult == 0, schedules=dict(saved.schedules))
    if count is not None:
        record["updates"] = count
    states = [updater.states[index] for updater in training.updaters if index in updater.states]
    if states:
        where = f"the state of Parameter {param.name!r} under {class_name(training.optimizer)}"
        record["state"] = _pack(packer, states[0], key(param.name), where)
        for state in states[1:]:
            packer.also(state, key(param.name))
    return record


def _pack_optimizer(
    packer: Encoder, attributes: Mapping[str, Any], training: Training
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the optimizer's attributes, and apart those that are by index: these go by parameter name."""
    check_settings(type(training.optimizer), attributes)
    params, updated = training.params, _updated(training)
    others = {name: value for name, value in attributes.items() if name not in _NOT_STATE}
    by_index = {
        name: others.pop(name)
        for name, value in attributes.items()
        if name in others and _has_indices(value, len(params)) and value and value.keys() in updated
    }
    who = f"optimizer {class_name(training.optimizer)}"
    by_name = {
        name: {
            params[i].name: _pack(packer, value[i], f"@optimizer/{key(name)}/{key(params[i].name)}", f"{name} of {who}")
            for i in value
        }
        for name, value in by_index.items()
    }
    for name, value in by_index.items():
        packer.noted(f"@optimizer/{key(name)}", value)
    return _pack_all(packer, others, "@optimizer", who), by_name


def _updated(training: Training) -> tuple[set[int], set[int]]:
    """Return the indices that were updated, and those that have a state."""
    return set(_mxnet.update_counts(training.optimizer)), set(training.updaters[0].states)


def _has_indices(value: Any, count: int) -> bool:
    """Whether `value` is a dict whose keys may be indices of `count` Parameters, or may be something else."""
    return isinstance(value, dict) and all(type(i) is int and 0 <= i < count for i in value)


def _pack_all(packer: Encoder, values: Mapping[str, Any], stem: str, who: str) -> dict[str, Any]:
    return {name: _pack(packer, value, f"{stem}/{key(name)}", f"{name} of {who}") for name, value in values.items()}


def _pack(packer: Encoder, value: Any, stem: str, what: str, objects: bool = False) -> Any:
    try:
        return packer.value(value, stem, objects)
    except (TypeError, RecursionError) as error:
        raise TypeError(
            f"{what} cannot be saved: {error}. Numbers, str, None, arrays, and tuples, lists and dicts of these can"
        ) from error


def load(path: Path, training: Training, partial: bool, keep: Iterable[str]) -> dict[str, str]:
    """Load the file, or raise with nothing changed; see `MultiLRTrainer.load_states`."""
    with Reader(path) as reader:
        try:
            loading = _Loading(reader, training, partial, {keep} if isinstance(keep, str) else set(keep))
        except (MXNetError, RecursionError) as error:
            raise reader.damaged(str(error)) from error
    loading.go_on()
    return loading.left_out


class _Loading:
    """Everything that a file brings, read and compared with the trainer it is for; `go_on` puts it in force."""

    def __init__(self, reader: Reader, training: Training, partial: bool, keep: set[str]) -> None:
        self._reader = reader
        self._training = training
        self._unpacker = Decoder(reader, training.contexts[0])
        header = reader.header
        if self._take(header, "format", str) != FORMAT:
            raise reader.damaged("it is of another format")
        if self._take(header, "version", int) != VERSION:
            raise ValueError(f"{reader.path} is of version {header['version']}, and {VERSION} is what is read here")
        self._records: dict[str, Any] = self._take(header, "parameters", dict)
        self._positions = {name: i for i, name in enumerate(self._records)}
        if "shared" in header:
            self._unpacker.shared = self._read_shared(self._take(header, "shared", list))
        kept = self._kept(self._take(header, "optimizer", dict), keep)
        self.left_out = self._compare(partial)
        self._index = {p.name: i for i, p in enumerate(training.params) if p.name not in self.left_out}
        self._num_update = self._unpacker.num_update = self._count(header, "num_update")
        self._read_optimizer(header["optimizer"], kept)
        self._read_scheduler(header.get("lr_scheduler"), _RATE in keep)
        self._read_scaler(self._take(header, "loss_scaler", dict, type(None)), "loss_scale" in keep)
        for update in self._unpacker.updates:
            check_turns(update.thing, update.attributes, self._num_update)
        self._states = self._read_states(kept)
        self._counts = self._read_counts()
        reader.finish()
        fields = [field for field in FIELDS if field not in keep]
        was_frozen = self._take(header, "was_frozen", bool)
        self._prepared = training.multipliers.prepare_restore(self._read_saved(), self._num_update, was_frozen, fields)

    def go_on(self) -> None:
        """Change the trainer; nothing is left that could fail."""
        optimizer, contexts = self._training.optimizer, self._training.contexts
        for update in self._unpacker.updates:
            update.make()
        optimizer.num_update = self._num_update
        _mxnet.set_update_counts(optimizer, self._counts, contexts)
        kept = [i for i, param in enumerate(self._training.params) if param.name in self.left_out]
        for updater, states in zip(self._training.updaters, self._states):
            # Where a kvstore keeps the weights that it updates is its own affair.
            _mxnet.set_states(updater, kept, states, in_place=not self._training.on_kvstore)
        self._training.multipliers.restore(self._prepared)

    def _take(self, record: Any, name: str, *kinds: type) -> Any:
        value = record.get(name) if isinstance(record, dict) else self
        if type(value) not in kinds:
            raise self._reader.damaged(f"its {name!r} is not as it should be")
        return value

    def _count(self, record: Any, name: str) -> int:
        count = self._take(record, name, int)
        if not 0 <= count < 2**63:
            raise self._reader.damaged(f"its {name!r} is {count}")
        return count

    def _read_shared(self, groups: list[Any]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for stems in groups:
            if not isinstance(stems, list) or not all(isinstance(stem, str) and stem not in found for stem in stems):
                raise self._reader.damaged("its 'shared' is not as it should be")
            found.update(dict.fromkeys(stems, stems))
        return found

    def _kept(self, saved: dict[str, Any], keep: set[str]) -> set[str]:
        """Return the attributes of the optimizer that the file does not bring, by what the user wants kept."""
        optimizer = self._training.optimizer
        was = self._take(saved, "class", str)
        if was != class_name(optimizer):
            raise ValueError(
                f"{self._reader.path} holds states of {was}, and the optimizer of this trainer is "
                f"{class_name(optimizer)}: build the trainer with the optimizer that they are of"
            )
        attributes = sorted(set(vars(optimizer)).difference(_NOT_STATE, ["lr"]))
        known = [_RATE, *FIELDS, "loss_scale", *attributes]
        unknown = sorted(keep.difference(known))
        if unknown:
            raise ValueError(f"keep: there is no {unknown[0]!r} to keep; it takes {', '.join(known)}")
        return {"lr" if name == _RATE else name for name in keep.difference(FIELDS, ["loss_scale"])}

    def _compare(self, partial: bool) -> dict[str, str]:
        """Return which Parameters the file and the trainer do not share, and why; raise unless that is wanted."""
        here = {param.name: (np.dtype(param.dtype).name, list(param.shape)) for param in self._training.params}
        there = {
            name: (self._take(record, "dtype", str), self._take(record, "shape", list))
            for name, record in self._records.items()
        }
        for name, (_, shape) in there.items():
            if not is_shape(shape):
                raise self._reader.damaged(f"the shape of {name!r} is not one")
        lacking = [name for name in here if name not in there]
        more = [name for name in there if name not in here]
        other = {
            name: f"{_text(there[name])} in the file, {_text(here[name])} in this trainer"
            for name in here
            if name in there and here[name] != there[name]
        }
        left_out = {**dict.fromkeys(lacking, "not in the file"), **dict.fromkeys(more, "not in this trainer"), **other}
        if left_out and (not partial or len(lacking) + len(other) == len(here)):
            raise ValueError(_misfit(str(self._reader.path), lacking, more, other, partial))
        for name in left_out:
            self._reader.skip(key(name))
        return left_out

    def _read_optimizer(self, saved: dict[str, Any], kept: set[str]) -> None:
        optimizer = self._training.optimizer
        nodes, by_name = self._take(saved, "attributes", dict), self._take(saved, "by_parameter", dict)
        for name in kept:
            self._reader.skip(f"@optimizer/{key(name)}")
        now = {name: value for name, value in attributes_of(optimizer).items() if name not in _NOT_STATE | kept}
        by_index = {
            name: self._read_by_index(name, by_name[name], now.get(name)) for name in by_name if name not in kept
        }
        nodes = {name: node for name, node in nodes.items() if name not in kept}
        rest = {name: value for name, value in now.items() if name not in by_index}
        attributes = self._unpacker.attributes(nodes, rest, {*by_index, *_NOT_STATE}, type(optimizer), "@optimizer")
        attributes.update(by_index)
        self._attributes = {
            name: self._unpacker.noted(f"@optimizer/{key(name)}", self._reindexed(name, value, now.get(name)))
            for name, value in attributes.items()
        }
        self._unpacker.updates.append(Update(optimizer, self._attributes))

    def _read_by_index(self, name: str, nodes: Any, now: Any) -> dict[int, Any]:
        """Return an attribute that is by Parameter, with the indices that these had when it was saved."""
        is_attribute = isinstance(now, dict) or (now is None and can_be_added(name, type(self._training.optimizer)))
        fits = isinstance(nodes, dict) and nodes.keys() <= self._positions.keys()
        if not (is_attribute and fits) or name in _NOT_STATE:
            raise self._reader.damaged(f"{name!r} of the optimizer is not by parameter name")
        stem = f"@optimizer/{key(name)}"
        return {self._positions[of]: self._unpacker.value(node, f"{stem}/{key(of)}") for of, node in nodes.items()}

    def _reindexed(self, name: str, value: Any, now: Any) -> Any:
        """Return an attribute with the indices of this trainer, if it is a dict by index.

        A dict with other whole numbers for keys looks the same. That makes no difference where the Parameters are the
        same in the same order. If they are not, one that this trainer has just so is not by index, and one that has
        the Parameters that were updated, no less and no more, is.
        """
        here, names = [param.name for param in self._training.params], list(self._records)
        if names == here or not _has_indices(value, len(names)) or not (value or now):
            return of_type(now, value)
        readings = [value] if same(value, now) else []
        if self._is_by_index(value, {} if now is None else now):
            own = {i: part for i, part in (now or {}).items() if here[i] in self.left_out}
            moved = {self._index[names[i]]: part for i, part in value.items() if names[i] in self._index}
            readings.append({**own, **moved})
        if not readings or not same(readings[0], readings[-1]):
            raise ValueError(
                f"{name!r} of {class_name(self._training.optimizer)} has whole numbers for keys. They may be indices "
                f"of Parameters, and this trainer has other Parameters than {self._reader.path}, or in another order. "
                "Build the trainer with the same ones in the same order, or keep the attribute as it is here: "
                f"keep={name!r}"
            )
        return of_type(now, readings[0])

    def _is_by_index(self, value: dict[int, Any], now: Any) -> bool:
        """Whether an attribute has the Parameters that were updated, in the file and in this trainer."""
        records = self._records.values()
        updated = [{i for i, record in enumerate(records) if what in record} for what in ("updates", "state")]
        known = set.union(*_updated(self._training))
        return (not value or value.keys() in updated) and isinstance(now, dict) and now.keys() <= known

    def _read_scheduler(self, node: Any, keep: bool) -> None:
        scheduler = self._training.optimizer.lr_scheduler
        if keep:
            self._reader.skip("@lr_scheduler")
            check_turns(scheduler, getattr(scheduler, "__dict__", {}), self._num_update)
            return
        if (node is None) != (scheduler is None):
            raise ValueError(
                f"{self._reader.path} was saved {'without an' if node is None else 'with an'} lr_scheduler, and this "
                f"trainer has {'none' if scheduler is None else class_name(scheduler)}: build the trainer with the "
                f"same one, or keep the learning rate of this trainer: keep={_RATE!r}"
            )
        if scheduler is not None:
            self._unpacker.value(node, "@lr_scheduler", scheduler)

    def _read_scaler(self, nodes: dict[str, Any] | None, keep: bool) -> None:
        scaler = self._training.loss_scaler
        if keep or nodes is None:
            self._reader.skip("@loss_scaler")
            return
        if scaler is None:
            raise ValueError(
                f"{self._reader.path} was saved under AMP, with a loss scale: call amp.init_trainer(trainer) before "
                "load_states, or go on without: keep='loss_scale'"
            )
        attributes = self._unpacker.attributes(nodes, vars(scaler), set(), type(scaler), "@loss_scaler")
        try:
            _check_scale(attributes)
        except ValueError as error:
            raise self._reader.damaged(str(error)) from error
        self._unpacker.updates.append(Update(scaler, attributes))

    def _read_states(self, kept: set[str]) -> list[dict[int, Any]]:
        """Return the states for each updater; what they must be like, an optimizer with the file's attributes tells."""
        optimizer, contexts = self._training.optimizer, self._training.contexts
        probe = object.__new__(type(optimizer))
        # It may keep the states that it makes, in the place of those that were read.
        vars(probe).update(copied({**vars(optimizer), **self._attributes}))
        # MXNet's own make every state anew; another's might be a part of something that it keeps.
        makers = (probe.create_state, probe.create_state_multi_precision)
        self._unpacker.fills = all(maker.__module__.startswith("mxnet.") for maker in makers)
        states: dict[int, Any] = {}
        for name, index in self._index.items():
            if "state" in self._records[name]:
                weight = _mxnet.weight_like(self._training.params[index], contexts[0])
                states[index] = _made(probe, index, weight, name)
        if "shared" not in self._reader.header and not self._unpacker.fills:
            self._unpacker.shared = self._shared_by(probe, states, kept)
        for index in states:
            name = self._training.params[index].name
            states[index] = self._unpacker.value(self._records[name]["state"], key(name), states[index])
        return [states, *(copied(states, context) for context in contexts[1 : len(self._training.updaters)])]

    def _shared_by(self, probe: Optimizer, states: dict[int, Any], kept: set[str]) -> dict[str, list[str]]:
        """Return what an older file does not say is shared: what a new optimizer keeps in several places."""
        packer, names = Encoder(), [param.name for param in self._training.params]
        found = {key(names[index]): state for index, state in states.items()}
        for name, value in vars(probe).items():
            stem = f"@optimizer/{key(name)}"
            if name in _NOT_STATE | kept:
                continue
            if name in self._reader.header["optimizer"]["by_parameter"] and _has_indices(value, len(names)):
                packer.noted(stem, value)
                found.update((f"{stem}/{key(names[i])}", part) for i, part in value.items())
            else:
                found[stem] = value
        for stem, value in found.items():
            with contextlib.suppress(TypeError):  # the file has nothing like it
                packer.value(value, stem)
        return {stem: stems for stems in packer.shared() for stem in stems}

    def _read_counts(self) -> dict[int, int]:
        params = self._training.params
        counts = _mxnet.update_counts(self._training.optimizer)
        counts = {i: count for i, count in counts.items() if i < len(params) and params[i].name in self.left_out}
        for name, index in self._index.items():
            if "updates" in self._records[name]:
                counts[index] = self._count(self._records[name], "updates")
        return counts

    def _read_saved(self) -> dict[Parameter, SavedMultipliers]:
        found = {}
        for param in self._training.multipliers.trainable:
            record = self._records.get(param.name, {})
            if param.name in self._index and "lr_mult" in record:
                found[param] = self._saved(param.name, record, self._training.multipliers.saved(param))
        return found

    def _saved(self, of: str, record: dict[str, Any], now: SavedMultipliers) -> SavedMultipliers:
        numbers = {name: self._take(record, name, float, int) for name in (*FIELDS, "before")}
        for name, value in numbers.items():
            # Before its trainer was built, a Parameter may have been given any multiplier, as under stock.
            if value < 0 and value not in ((now.wd_mult,) if name == "wd_mult" else (now.lr_mult, now.before)):
                raise self._reader.damaged(f"the {name} of {of!r} is {value}, and a multiplier is 0 or more")
        grad_req = self._take(record, "grad_req", str)
        schedules = self._take(record, "schedules", dict)
        if (
            grad_req not in ("null", "write", "add")
            or not all(field in FIELDS and what in (ACTS, ENDED) for field, what in schedules.items())
            or self._take(record, "frozen", bool) != (numbers["lr_mult"] == 0)
        ):
            raise self._reader.damaged("it has a multiplier that is none")
        return SavedMultipliers(
            grad_req=grad_req, schedules=schedules, **{name: float(value) for name, value in numbers.items()}
        )


def _check_scale(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise ValueError(f"{name} of AMP's loss scaler is {value}")


def _made(optimizer: Optimizer, index: int, weight: Any, name: str) -> Any:
    """Return a state as the optimizer makes it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of a weight was said when that was first updated
            return optimizer.create_state_multi_precision(index, weight)
    except Exception as error:
        raise ValueError(
            f"{class_name(optimizer)} makes no state for Parameter {name!r} with the settings in the file: {error!r}"
        ) from error


def _text(kind: tuple[str, list[int]]) -> str:
    return f"{kind[0]} {tuple(kind[1])}"


def _misfit(path: str, lacking: list[str], more: list[str], other: dict[str, str], partial: bool) -> str:
    said = [f"not in the file: {', '.join(lacking)}"] if lacking else []
    said += [f"in the file, not in this trainer: {', '.join(more)}"] if more else []
    said += (
        [f"of another shape or dtype: {', '.join(f'{name} ({what})' for name, what in other.items())}"] if other else []
    )
    cure = "No Parameter is in both" if partial else "partial=True loads those that are in both"
    if lacking and more:
        cure += ". If they are the same ones by other names, give the Blocks the prefix= that they had"
    return f"{path} does not fit this trainer; {'; '.join(said)}. {cure}"
