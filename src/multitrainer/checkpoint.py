"""Optimizer state on disk, by parameter name, without pickle.

The header of a file is one JSON object::

    {"format": "multitrainer states", "version": 1,
     "parameters": {name: {"shape", "dtype", "lr_mult", "wd_mult", "frozen", "grad_req", "before", "schedules",
                           "updates", "state"}},
     "groups": [name], "num_update": int, "was_frozen": bool,
     "optimizer": {"class", "attributes", "by_parameter": {attribute: {name: value}}},
     "lr_scheduler": value or null, "loss_scaler": {attribute: value} or null}

Values and states are nodes of `values`; statistics and constants have a shape and a dtype alone.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

import numpy as np
from mxnet.base import MXNetError
from mxnet.context import Context
from mxnet.gluon import Parameter
from mxnet.optimizer import Optimizer, Updater

from . import _mxnet
from .groups import FIELDS
from .multipliers import ACTS, ENDED, Multipliers, Saved
from .statefile import Array, Reader, write
from .values import Unpacker, class_name, key, moved, of_type, pack

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
    arrays: list[Array] = []
    optimizer = training.optimizer
    attributes, by_parameter = _split(training, arrays)
    scheduler, scaler = optimizer.lr_scheduler, training.loss_scaler
    counts = _mxnet.update_counts(optimizer)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": {
            param.name: _describe(param, i, training, counts.get(i), arrays) for i, param in enumerate(training.params)
        },
        "groups": list(training.groups),
        "num_update": optimizer.num_update,
        "was_frozen": training.multipliers.was_frozen,
        "optimizer": {"class": class_name(optimizer), "attributes": attributes, "by_parameter": by_parameter},
        "lr_scheduler": _pack(scheduler, "@lr_scheduler", arrays, f"lr_scheduler {class_name(scheduler)}", True),
        "loss_scaler": None if scaler is None else _pack_all(vars(scaler), "@loss_scaler", arrays, "AMP's loss scaler"),
    }
    write(path, header, arrays)


def _describe(
    param: Parameter, index: int, training: Training, count: int | None, arrays: list[Array]
) -> dict[str, Any]:
    record: dict[str, Any] = {"shape": list(param.shape), "dtype": np.dtype(param.dtype).name}
    if _mxnet.is_auxiliary(param):
        return record
    saved = training.multipliers.saved(param)
    record.update(saved._asdict(), frozen=saved.lr_mult == 0, schedules=dict(saved.schedules))
    if count is not None:
        record["updates"] = count
    states = training.updaters[0].states
    if index in states:
        where = f"the state of Parameter {param.name!r} under {class_name(training.optimizer)}"
        record["state"] = _pack(states[index], key(param.name), arrays, where)
    return record


def _split(training: Training, arrays: list[Array]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the optimizer's attributes, and apart those that are by index: these go by parameter name."""
    params, optimizer = training.params, training.optimizer
    attributes = {name: value for name, value in vars(optimizer).items() if name not in _NOT_STATE}
    by_index = {name: attributes.pop(name) for name in list(attributes) if _is_by_index(attributes[name], params)}
    who = f"optimizer {class_name(optimizer)}"
    by_name = {
        name: {
            params[i].name: _pack(value[i], f"@optimizer/{key(name)}/{key(params[i].name)}", arrays, f"{name} of {who}")
            for i in value
        }
        for name, value in by_index.items()
    }
    return _pack_all(attributes, "@optimizer", arrays, who), by_name


def _is_by_index(value: Any, params: Sequence[Parameter]) -> bool:
    return bool(isinstance(value, dict) and value and all(type(i) is int and 0 <= i < len(params) for i in value))


def _pack_all(values: Mapping[str, Any], stem: str, arrays: list[Array], who: str) -> dict[str, Any]:
    return {name: _pack(value, f"{stem}/{key(name)}", arrays, f"{name} of {who}") for name, value in values.items()}


def _pack(value: Any, stem: str, arrays: list[Array], what: str, objects: bool = False) -> Any:
    try:
        return pack(value, stem, arrays, objects)
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
        self._unpacker = Unpacker(reader, training.contexts[0])
        header = reader.header
        if self._take(header, "format", str) != FORMAT:
            raise reader.damaged("it is of another format")
        if self._take(header, "version", int) != VERSION:
            raise ValueError(f"{reader.path} is of version {header['version']}, and {VERSION} is what is read here")
        self._records: dict[str, Any] = self._take(header, "parameters", dict)
        kept = self._kept(self._take(header, "optimizer", dict), keep)
        self.left_out = self._compare(partial)
        self._index = {p.name: i for i, p in enumerate(training.params) if p.name not in self.left_out}
        self._num_update = self._count(header, "num_update")
        self._read_optimizer(header["optimizer"], kept)
        self._read_scheduler(header.get("lr_scheduler"), _RATE in keep)
        self._read_scaler(self._take(header, "loss_scaler", dict, type(None)), "loss_scale" in keep)
        self._read_states()
        self._counts = self._read_counts()
        reader.finish()
        fields = [field for field in FIELDS if field not in keep]
        was_frozen = self._take(header, "was_frozen", bool)
        self._go_on = training.multipliers.going_on(self._read_saved(), self._num_update, was_frozen, fields)

    def go_on(self) -> None:
        """Change the trainer; nothing is left that could fail."""
        optimizer, contexts = self._training.optimizer, self._training.contexts
        for thing, attributes in self._unpacker.updates:
            thing.__dict__.update(attributes)
        optimizer.num_update = self._num_update
        _mxnet.set_update_counts(optimizer, self._counts, contexts)
        kept = [i for i, param in enumerate(self._training.params) if param.name in self.left_out]
        for updater, context in zip(self._training.updaters, contexts):
            # Where a kvstore keeps the weights that it updates is its own affair.
            in_place = not self._training.on_kvstore
            _mxnet.set_states(updater, kept, moved(self._states, context), in_place)
        self._go_on()

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
        now = {name: value for name, value in vars(optimizer).items() if name not in _NOT_STATE | kept}
        indexed = {name: self._by_index(name, by_name[name], now.get(name)) for name in by_name if name not in kept}
        nodes = {name: node for name, node in nodes.items() if name not in kept}
        rest = {name: value for name, value in now.items() if name not in indexed}
        self._attributes = self._unpacker.attributes(
            nodes, rest, {*indexed, *_NOT_STATE}, type(optimizer), "@optimizer"
        )
        self._attributes.update(indexed)
        self._unpacker.updates.append((optimizer, self._attributes))

    def _by_index(self, name: str, nodes: Any, now: Any) -> Any:
        """Return an attribute that is by index; Parameters that are left out keep theirs."""
        if not isinstance(nodes, dict) or not (now is None or isinstance(now, dict)):
            raise self._reader.damaged(f"{name!r} of the optimizer is not by parameter name")
        params = self._training.params
        values = {i: value for i, value in (now or {}).items() if i < len(params) and params[i].name in self.left_out}
        for of, node in nodes.items():
            stem = f"@optimizer/{key(name)}/{key(of)}"
            if of in self._index:
                values[self._index[of]] = self._unpacker.value(node, stem)
            elif of in self.left_out:
                self._reader.skip(stem)
            else:
                raise self._reader.damaged(f"{name!r} is of {of!r}, which is none of its Parameters")
        return of_type(now, values)

    def _read_scheduler(self, node: Any, keep: bool) -> None:
        if keep:
            self._reader.skip("@lr_scheduler")
            return
        scheduler = self._training.optimizer.lr_scheduler
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
        self._unpacker.updates.append((scaler, attributes))

    def _read_states(self) -> None:
        """Read the states; of what shape and dtype they must be, an optimizer with the file's attributes tells."""
        optimizer = self._training.optimizer
        probe = object.__new__(type(optimizer))
        vars(probe).update({**vars(optimizer), **self._attributes})
        # MXNet's own make every state anew; another's might be a part of something that it keeps.
        makers = (probe.create_state, probe.create_state_multi_precision)
        self._unpacker.fills = all(maker.__module__.startswith("mxnet.") for maker in makers)
        self._states: dict[int, Any] = {}
        for name, index in self._index.items():
            if "state" in self._records[name]:
                weight = _mxnet.weight_like(self._training.params[index], self._training.contexts[0])
                like = _made(probe, index, weight, name)
                self._states[index] = self._unpacker.value(self._records[name]["state"], key(name), like)

    def _read_counts(self) -> dict[int, int]:
        params = self._training.params
        counts = _mxnet.update_counts(self._training.optimizer)
        counts = {i: count for i, count in counts.items() if i < len(params) and params[i].name in self.left_out}
        for name, index in self._index.items():
            if "updates" in self._records[name]:
                counts[index] = self._count(self._records[name], "updates")
        return counts

    def _read_saved(self) -> dict[Parameter, Saved]:
        found = {}
        for param in self._training.multipliers.movable:
            record = self._records.get(param.name, {})
            if param.name in self._index and "lr_mult" in record:
                found[param] = self._saved(record)
        return found

    def _saved(self, record: dict[str, Any]) -> Saved:
        numbers = {name: self._take(record, name, float, int) for name in (*FIELDS, "before")}
        grad_req = self._take(record, "grad_req", str)
        schedules = self._take(record, "schedules", dict)
        if (
            grad_req not in ("null", "write", "add")
            or not all(field in FIELDS and what in (ACTS, ENDED) for field, what in schedules.items())
            or self._take(record, "frozen", bool) != (numbers["lr_mult"] == 0)
        ):
            raise self._reader.damaged("it has a multiplier that is none")
        return Saved(grad_req=grad_req, schedules=schedules, **{name: float(value) for name, value in numbers.items()})


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
