"""Restore the state of a trainer: read and check the whole file first, then change the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, NamedTuple, Sequence

from mxnet.base import MXNetError
from mxnet.context import Context
from mxnet.gluon import Parameter

from .. import _mxnet
from ..gradients.accumulation import NOTHING, Collected
from ..groups.param_group import FIELDS
from ..multipliers.object_state import check_iterations, class_name
from ..multipliers.saved import ACTS, ENDED, PreparedRestore, SavedMultipliers
from ..optimizers.partition import Part, Partition
from . import accumulated
from .archive import Reader
from .header import Header, count_entry, entry, read_header
from .matching import Match, match_optimizers, match_parameters
from .object_decoding import ObjectDecoder, ObjectUpdate
from .optimizer_decoding import Source, decode_attributes, decode_states
from .paths import SharedValues
from .trainer_state import NOT_SAVED, TrainerState, check_loss_scale

_LEARNING_RATE, _LOSS_SCALE, _ACCUMULATED = (
    "learning_rate",
    "loss_scale",
    "accumulated",
)  # what `keep` can name beside attributes


def load(path: Path, trainer: TrainerState, partial: bool, keep: Iterable[str]) -> dict[str, str]:
    """Load the file, or raise with nothing changed; see `MultiLRTrainer.load_states`."""
    with Reader(path) as reader:
        try:
            restoration = _prepare(reader, trainer, partial, {keep} if isinstance(keep, str) else set(keep))
        except (MXNetError, RecursionError) as error:
            raise reader.damaged(str(error)) from error
    restoration.apply()
    return restoration.left_out


class _OptimizerRestoration(NamedTuple):
    """Everything that was read for one optimizer of a trainer, and checked."""

    part: Part
    num_update: int
    updates: Sequence[ObjectUpdate]
    counts: dict[int, int]
    states: Sequence[dict[int, Any]]  # one for each updater

    def apply(self, contexts: Sequence[Context]) -> None:
        """Change all but the states; no step of this can fail."""
        for update in self.updates:
            update.apply()
        self.part.optimizer.num_update = self.num_update
        _mxnet.set_update_counts(self.part.optimizer, self.counts, contexts)


class _Restoration(NamedTuple):
    """Everything that was read for one trainer, and checked."""

    trainer: TrainerState
    left_out: dict[str, str]
    optimizers: Sequence[_OptimizerRestoration]
    multipliers: PreparedRestore
    collected: Collected

    def apply(self) -> None:
        """Change the trainer; no step of this can fail."""
        trainer = self.trainer
        for optimizer in self.optimizers:
            optimizer.apply(trainer.contexts)
        kept = [i for i, param in enumerate(trainer.params) if param.name in self.left_out]
        for updater, *parts in zip(trainer.updaters, *(optimizer.states for optimizer in self.optimizers)):
            states = {index: state for part in parts for index, state in part.items()}
            # A kvstore that updates may keep the weights on another context.
            _mxnet.set_states(updater, kept, states, in_place=not trainer.update_on_kvstore)
        trainer.accumulation.collected = self.collected
        trainer.multipliers.restore(self.multipliers)


def _prepare(reader: Reader, trainer: TrainerState, partial: bool, keep: set[str]) -> _Restoration:
    """Read and check the whole file; nothing of the trainer changes."""
    header = read_header(reader)
    kept = _kept_attributes(reader, header, trainer.partition, keep)
    match = match_parameters(reader, header.parameters, trainer.params, partial)
    shared = SharedValues()
    shared.set_groups(header.shared or ())
    optimizers = []
    for record, part in match_optimizers(reader, header, trainer, match):
        objects = ObjectDecoder(reader, trainer.contexts[0], shared, record.num_update)
        own = match.restricted_to(set(trainer.partition.indices(part)))
        optimizers.append(_prepare_optimizer(Source(reader, header, trainer, record, part, own, kept, objects), keep))
    objects = ObjectDecoder(reader, trainer.contexts[0], shared, header.num_update)
    collected = _collected(reader, header, trainer, match, objects, dropped=_ACCUMULATED in keep)
    reader.check_all_read()
    fields = [field for field in FIELDS if field not in keep]
    saved = _saved_multipliers(reader, header, trainer, match)
    multipliers = trainer.multipliers.prepare_restore(saved, header.num_update, header.was_frozen, fields)
    return _Restoration(trainer, match.left_out, optimizers, multipliers, collected)


def _prepare_optimizer(source: Source, keep: set[str]) -> _OptimizerRestoration:
    """Read and check one optimizer; the trainer's loss scale comes with its own."""
    reader, record, part = source.reader, source.record, source.part
    attributes = decode_attributes(source)
    if _LEARNING_RATE in keep:
        _keep_scheduler(source)
    else:
        _decode_scheduler(source)
    if part is source.trainer.partition.main:
        if _LOSS_SCALE in keep or source.header.loss_scaler is None:
            reader.skip("@loss_scaler")
        else:
            _decode_loss_scaler(source, source.header.loss_scaler)
    updates = source.objects.updates
    for update in updates:
        check_iterations(update.target, update.attributes, record.num_update)
    states, counts = decode_states(source, attributes), _update_counts(source)
    return _OptimizerRestoration(part, record.num_update, updates, counts, states)


def _kept_attributes(reader: Reader, header: Header, partition: Partition, keep: set[str]) -> set[str]:
    """Check the class of the optimizer and what the user wants to keep; return the attributes that are kept."""
    optimizer, kind = partition.main.optimizer, header.optimizers[0].kind
    if kind != class_name(optimizer):
        raise ValueError(
            f"{reader.path} holds states of {kind}, but the optimizer of this trainer is "
            f"{class_name(optimizer)}: build the trainer with the optimizer of the file"
        )
    found = {name for part in partition.parts for name in vars(part.optimizer)}
    attributes = sorted(found.difference(NOT_SAVED, ["lr"]))
    known = [_LEARNING_RATE, *FIELDS, _LOSS_SCALE, _ACCUMULATED, *attributes]
    unknown = sorted(keep.difference(known))
    if unknown:
        raise ValueError(f"keep: {unknown[0]!r} cannot be kept; choose from {', '.join(known)}")
    return {"lr" if name == _LEARNING_RATE else name for name in keep.difference(FIELDS, [_LOSS_SCALE, _ACCUMULATED])}


def _keep_scheduler(source: Source) -> None:
    scheduler = source.part.optimizer.lr_scheduler
    source.reader.skip(source.record.scheduler_path)
    check_iterations(scheduler, getattr(scheduler, "__dict__", {}), source.record.num_update)


def _decode_scheduler(source: Source) -> None:
    node, scheduler = source.record.lr_scheduler, source.part.optimizer.lr_scheduler
    if (node is None) != (scheduler is None):
        owner = "this trainer" if source.part.group is None else source.part.owner
        raise ValueError(
            f"{source.reader.path} was saved {'without an' if node is None else 'with an'} lr_scheduler, but {owner} "
            f"has {'none' if scheduler is None else class_name(scheduler)}: build the trainer with the same "
            f"one, or keep the learning rate of this trainer: keep={_LEARNING_RATE!r}"
        )
    if scheduler is not None:
        source.objects.values.decode(node, source.record.scheduler_path, scheduler)


def _decode_loss_scaler(source: Source, nodes: dict[str, Any]) -> None:
    scaler = source.trainer.loss_scaler
    if scaler is None:
        raise ValueError(
            f"{source.reader.path} was saved under AMP, with a loss scale: call amp.init_trainer(trainer) before "
            f"load_states, or continue without: keep={_LOSS_SCALE!r}"
        )
    attributes = source.objects.decode_attributes(nodes, vars(scaler), (), type(scaler), "@loss_scaler")
    try:
        check_loss_scale(attributes)
    except ValueError as error:
        raise source.reader.damaged(str(error)) from error
    source.objects.updates.append(ObjectUpdate(scaler, attributes))


def _collected(
    reader: Reader, header: Header, trainer: TrainerState, match: Match, objects: ObjectDecoder, dropped: bool
) -> Collected:
    """Return the gradients that were collected, unless they are dropped."""
    if dropped:
        reader.skip(accumulated.PATH)
        return NOTHING
    return accumulated.decode(reader, header.accumulated, trainer, match.loaded, objects)


def _update_counts(source: Source) -> dict[int, int]:
    """Return how often each Parameter was updated: in the file, or in the trainer if it is not loaded."""
    params = source.trainer.params
    counts = {
        index: count
        for index, count in _mxnet.update_counts(source.part.optimizer).items()
        if index < len(params) and params[index].name in source.match.left_out
    }
    for name, index in source.match.loaded.items():
        if "updates" in source.header.parameters[name]:
            counts[index] = count_entry(source.reader, source.header.parameters[name], "updates")
    return counts


def _saved_multipliers(
    reader: Reader, header: Header, trainer: TrainerState, match: Match
) -> dict[Parameter, SavedMultipliers]:
    multipliers, found = trainer.multipliers, {}
    for param in multipliers.trainable:
        record = header.parameters.get(param.name, {})
        if param.name in match.loaded and "lr_mult" in record:
            found[param] = _saved(reader, param.name, record, multipliers.saved(param))
    return found


def _saved(reader: Reader, name: str, record: dict[str, Any], current: SavedMultipliers) -> SavedMultipliers:
    """Read the multipliers of one Parameter, and its `grad_req` and schedules."""
    numbers = {field: entry(reader, record, field, float, int) for field in (*FIELDS, "before")}
    for field, value in numbers.items():
        # As under stock, a Parameter may have had a negative multiplier before its trainer was built.
        accepted = (current.wd_mult,) if field == "wd_mult" else (current.lr_mult, current.before)
        if value < 0 and value not in accepted:
            raise reader.damaged(f"the {field} of {name!r} is {value}; a multiplier must be 0 or more")
    grad_req = entry(reader, record, "grad_req", str)
    schedules = entry(reader, record, "schedules", dict)
    if grad_req not in ("null", "write", "add"):
        raise reader.damaged(f"the grad_req of {name!r} is {grad_req!r}")
    if not all(field in FIELDS and state in (ACTS, ENDED) for field, state in schedules.items()):
        raise reader.damaged(f"the schedules of {name!r} are {schedules}")
    if entry(reader, record, "frozen", bool) != (numbers["lr_mult"] == 0):
        raise reader.damaged(f"{name!r} is frozen and has an lr_mult of {numbers['lr_mult']}, or neither")
    floats = {field: float(value) for field, value in numbers.items()}
    return SavedMultipliers(grad_req=grad_req, schedules=schedules, **floats)
