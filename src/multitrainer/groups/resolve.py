"""Decide which Parameter gets which multiplier and which optimizer. Parameters are read and not changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Sequence

from mxnet.gluon import Block, Parameter, ParameterDict

from .entries import Entry, parse_entries
from .names import group_names
from .param_group import FIELDS, ParamGroup
from .targets import (
    TARGETS,
    Description,
    Multiplier,
    Parameters,
    blocks_of,
    check_multiplier,
    describe,
    is_parameter_mapping,
    is_target,
    known_name,
)

OPTIMIZER = "optimizer_choice"


class ResolvedGroup(ParamGroup):
    """A `ParamGroup` of a trainer: ``params`` is a dict of name to trainable Parameter, and ``name`` is unique."""

    __slots__ = ()
    params: Parameters
    name: str

    def __init__(self, params: Parameters, written: ParamGroup, name: str) -> None:
        self.params, self.name, self.root = params, name, None
        self.lr_mult, self.wd_mult = written.lr_mult, written.wd_mult
        self.optimizer, self.optimizer_params = written.optimizer, written.optimizer_params


class ResolvedGroups(NamedTuple):
    """The groups of a trainer and the multipliers that they give to Parameters."""

    parameters: list[Parameter]  # all of them, in the order of stock Trainer
    groups: tuple[ResolvedGroup, ...]  # in the order given
    # field, or OPTIMIZER -> Parameter -> index of the group whose multiplier or own optimizer it gets
    deciding: dict[str, dict[Parameter, int]]
    assignments: dict[str, dict[Parameter, Multiplier]]  # field -> Parameter -> the multiplier that it gets
    member_of: dict[Parameter, int]  # trainable Parameter -> index of the last group that holds it
    blocks: tuple[Block, ...]  # the Blocks among the targets, and the networks that recipes made groups of
    companions: dict[Parameter, list[Parameter]]  # statistic -> trainable Parameters with lr_mult from the same entry

    @property
    def trainable(self) -> list[Parameter]:
        """The Parameters that a multiplier can move: all but statistics and constants."""
        return [param for param in self.parameters if param in self.member_of]

    def extended(self, added: ResolvedGroups) -> ResolvedGroups:
        """Return these groups followed by ``added``, whose Parameters are others; the indices here stay."""
        first = len(self.groups)
        deciding = {
            field: {**self.deciding[field], **{param: first + i for param, i in added.deciding[field].items()}}
            for field in self.deciding
        }
        return ResolvedGroups(
            [*self.parameters, *added.parameters],
            (*self.groups, *added.groups),
            deciding,
            {field: {**self.assignments[field], **added.assignments[field]} for field in FIELDS},
            {**self.member_of, **{param: first + i for param, i in added.member_of.items()}},
            tuple(dict.fromkeys([*self.blocks, *added.blocks])),
            {**self.companions, **added.companions},
        )

    def groups_setting(self, param: Parameter, field: str) -> list[int]:
        """Return the indices of the groups that set ``field`` of ``param``; the last one decides."""
        return [
            i
            for i, group in enumerate(self.groups)
            if getattr(group, field) is not None and group.params.get(param.name) is param
        ]


def resolve(params: Any) -> ResolvedGroups:
    """Decide which Parameter gets which multiplier, given the ``params`` of a trainer in any form that it takes.

    Raises
    ------
    TypeError, ValueError
        Naming the entry, what it was and what was expected.
    """
    entries, ordered = _read(params)
    return _resolve_entries(entries, ordered)


def resolve_addition(params: Any, present: ResolvedGroups, blocks: Sequence[Block] = ()) -> ResolvedGroups:
    """Decide which new Parameter gets which multiplier, given ``params`` in any form that `resolve` takes.

    Parameters
    ----------
    params : targets, groups or pairs
        As for `resolve`.
    present : ResolvedGroups
        The groups that the new ones are added to; see `ResolvedGroups.extended`.
    blocks : sequence of Block
        The Blocks that are known already, from which groups may get their names.

    Raises
    ------
    TypeError, ValueError
        As `resolve` does; also for a Parameter of ``present``, and for another one of its name.
    """
    entries, ordered = _read(params)
    by_name = {param.name: param for param in present.parameters}
    for entry in entries:
        for name, param in entry.params.items():
            if by_name.get(name) is param:
                raise ValueError(_already_present(entry, by_name))
            if name in by_name:
                raise ValueError(
                    f"{entry.where}: another Parameter called {name!r} is in this trainer already; give the new Block "
                    "a different prefix=, or build a new trainer if it takes the place of the other one"
                )
    return _resolve_entries(entries, ordered, blocks, [group.name for group in present.groups])


def _already_present(entry: Entry, by_name: Mapping[str, Parameter]) -> str:
    present = [name for name, param in entry.params.items() if by_name.get(name) is param]
    new = [name for name in entry.params if name not in by_name]
    text = (
        f"{entry.where}: {', '.join(present[:3])}{', ...' if len(present) > 3 else ''} "
        f"({len(present)} of {len(entry.params)}) belong to this trainer already: set_lr_mult and set_wd_mult change "
        "their multipliers. `add` takes new Parameters only"
    )
    return f"{text}; new here: {', '.join(new[:3])}{', ...' if len(new) > 3 else ''}" if new else text


def _read(params: Any) -> tuple[list[Entry], list[Parameter]]:
    """Return the entries of ``params``, and all Parameters in the order of stock Trainer."""
    entries = parse_entries(params)
    merged = _merge(entries)
    if not merged:
        raise ValueError(f"params holds no Parameter to train: {describe(params)}")
    if isinstance(params, (list, tuple)) and all(isinstance(item, Parameter) for item in params):
        return entries, list(merged.values())
    if isinstance(params, ParameterDict) or is_parameter_mapping(params):
        return entries, list(dict.fromkeys(params[key] for key in sorted(params.keys())))
    return entries, [merged[name] for name in sorted(merged)]


def resolve_assignment(
    mapping: Mapping[Any, Any], field: str, members: Sequence[Parameter]
) -> tuple[dict[Parameter, Multiplier], tuple[Block, ...]]:
    """Decide which ``members`` of a trainer get which ``field``, given a dict of target or exact name to multiplier.

    Returns
    -------
    dict of Parameter to multiplier, tuple of Block
        What the Parameters get, and the Blocks among the targets.

    Raises
    ------
    TypeError, ValueError
        Naming the entry, what it was and what was expected.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"set_{field} takes a dict of target to multiplier, got {describe(mapping)}")
    if not mapping:
        raise ValueError(f"set_{field} was given an empty dict: it would change nothing")
    by_name = {param.name: param for param in members}
    entries = [
        _parse_assignment(number, target, value, field, by_name)
        for number, (target, value) in enumerate(mapping.items())
    ]
    return _multipliers(entries, field, _deciding_entries(entries, field)), _blocks_of(entries)


def _parse_assignment(number: int, target: Any, value: Any, field: str, members: Parameters) -> Entry:
    """Read one item of the dict that `resolve_assignment` takes as an entry; ``members`` are by name."""
    where = Description("entry {} ({}: {})", number, target, value)
    if not (isinstance(target, str) or is_target(target)):
        raise TypeError(f"{where}: {describe(target)} is not a target; expected {TARGETS}, or a parameter's exact name")
    group = ParamGroup(members[known_name(target, members, where)] if isinstance(target, str) else target)
    setattr(group, field, check_multiplier(value, where, field + " of {}"))
    entry = Entry(where, group)
    entry.check_not_empty()
    for name, param in entry.trainable.items():
        if members.get(name) is not param:
            raise ValueError(f"{where}: Parameter {name!r} does not belong to this trainer")
    return entry


def _merge(entries: Sequence[Entry]) -> Parameters:
    """Return all Parameters by name; raise ValueError if two of them have the same name."""
    merged: Parameters = {}
    for entry in entries:
        for name, param in entry.params.items():
            if merged.setdefault(name, param) is not param:
                first = next(each for each in entries if name in each.params)
                raise ValueError(
                    f"two different Parameters are called {name!r}, one in {first.where} and one in {entry.where}; "
                    "give their Blocks different prefix="
                )
    return merged


def _resolve_entries(
    entries: Sequence[Entry],
    parameters: list[Parameter],
    known_blocks: Sequence[Block] = (),
    taken_names: Sequence[str] = (),
) -> ResolvedGroups:
    written, blocks = [entry.group for entry in entries], _blocks_of(entries)
    groups = tuple(
        ResolvedGroup({name: entry.trainable[name] for name in sorted(entry.trainable)}, entry.group, group_name)
        for entry, group_name in zip(entries, group_names(written, [*known_blocks, *blocks], taken_names))
    )
    deciding = {field: _deciding_entries(entries, field) for field in (*FIELDS, OPTIMIZER)}
    assignments = {field: _multipliers(entries, field, deciding[field]) for field in FIELDS}
    member_of = {param: i for i, entry in enumerate(entries) for param in entry.trainable.values()}
    companions = _companions(entries, deciding["lr_mult"])
    return ResolvedGroups(parameters, groups, deciding, assignments, member_of, blocks, companions)


def _blocks_of(entries: Sequence[Entry]) -> tuple[Block, ...]:
    """Return the networks that recipes made groups of, and the Blocks among the targets."""
    roots = [entry.group.root for entry in entries if entry.group.root is not None]
    return tuple(dict.fromkeys([*roots, *blocks_of([entry.group.params for entry in entries])]))


def _multipliers(
    entries: Sequence[Entry], field: str, deciding: Mapping[Parameter, int]
) -> dict[Parameter, Multiplier]:
    """Return the multiplier that each Parameter gets, given the index of the entry that decides it."""
    values = [getattr(entry.group, field) for entry in entries]
    return {param: values[i] for param, i in deciding.items()}


def _companions(entries: Sequence[Entry], deciding: Mapping[Parameter, int]) -> dict[Parameter, list[Parameter]]:
    """Return, for what no multiplier moves, the Parameters that get theirs from the last entry that holds both."""
    companions = {}
    for i, entry in enumerate(entries):
        if entry.group.lr_mult is not None and len(entry.trainable) < len(entry.params):
            decided = [param for param in entry.trainable.values() if deciding[param] == i]
            others = (param for name, param in entry.params.items() if name not in entry.trainable)
            companions.update(dict.fromkeys(others, decided))
    return companions


def _deciding_entries(entries: Sequence[Entry], field: str) -> dict[Parameter, int]:
    """Return the index of the entry that decides ``field`` of each Parameter: the last one that sets it.

    Raises
    ------
    ValueError
        If an entry neither refines an earlier one that it overlaps, nor has the same multiplier or optimizer.
    """
    deciding: dict[Parameter, int] = {}
    overridden: dict[Parameter, tuple[int, ...]] = {}  # the entries that set it before the deciding one
    for i, entry in enumerate(entries):
        value = getattr(entry.group, field)
        if value is None:
            continue
        shared: dict[int, list[Parameter]] = {}  # index of an earlier entry -> the Parameters that both hold
        for param in entry.trainable.values():
            if param in deciding:
                overridden[param] = (*overridden.get(param, ()), deciding[param])
                for j in overridden[param]:
                    shared.setdefault(j, []).append(param)
            deciding[param] = i
        for j, params in shared.items():
            earlier = entries[j]
            refines = len(params) == len(entry.trainable) < len(earlier.trainable)
            if not refines and getattr(earlier.group, field) != value:
                raise ValueError(_conflict(params[0], field, earlier, entry))
    return deciding


def _conflict(param: Parameter, field: str, earlier: Entry, later: Entry) -> str:
    what = "the optimizer" if field == OPTIMIZER else field
    return (
        f"Parameter {param.name!r} gets {what} {getattr(earlier.group, field)!r} from {earlier.where} and "
        f"{getattr(later.group, field)!r} from {later.where}. A later entry overrides an earlier one only if it "
        "is a proper part of it; write the larger target first, or give both the same"
    )
