"""What the user wrote -> which Parameter gets which multiplier. Reads Parameters and changes none."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from mxnet.gluon import Block, Parameter, ParameterDict

from .._mxnet import is_auxiliary
from .names import group_names
from .param_group import FIELDS, ParamGroup
from .targets import (
    TARGETS,
    Multiplier,
    Parameters,
    blocks_of,
    check_multiplier,
    collect,
    describe,
    is_parameter_mapping,
    is_target,
    known_name,
)


class Plan(NamedTuple):
    """What `resolve` found: everything a trainer needs, with no Parameter changed yet."""

    parameters: list[Parameter]  # all of them, each once, in the order of stock Trainer
    groups: tuple[ParamGroup, ...]  # as written, in order; `params` is a dict of name to Parameter
    deciding: dict[str, dict[Parameter, int]]  # field -> Parameter -> the group whose value it gets
    member_of: dict[Parameter, int]  # the last group that holds a Parameter
    blocks: tuple[Block, ...]  # every Block among the targets

    def entries_for(self, param: Parameter, field: str) -> list[int]:
        """Return the groups that give ``param`` a ``field``, in order; the last decides and refines those before."""
        return [
            i
            for i, group in enumerate(self.groups)
            if getattr(group, field) is not None and group.params.get(param.name) is param
        ]

    def assignments(self, field: str) -> dict[Parameter, Multiplier]:
        """Return the multiplier that each Parameter is to get, for those that get one."""
        return {param: getattr(self.groups[i], field) for param, i in self.deciding[field].items()}


def resolve(params: Any) -> Plan:
    """Work out which Parameter gets which multiplier.

    Parameters
    ----------
    params : see `MultiLRTrainer`
        What the user wrote.

    Returns
    -------
    Plan
        The Parameters in stock Trainer's order, the groups, and for each field the group that decides it.

    Raises
    ------
    TypeError, ValueError
        Naming the entry, what it was and what was expected.
    """
    entries = _entries(params)
    merged = _merge(entries)
    if not merged:
        raise ValueError(f"params holds no Parameter to train: {describe(params)}")
    in_list_order = isinstance(params, (list, tuple)) and all(isinstance(entry, Parameter) for entry in params)
    if in_list_order:
        ordered = list(merged.values())
    elif isinstance(params, ParameterDict) or is_parameter_mapping(params):
        ordered = list(dict.fromkeys(params[key] for key in sorted(params.keys())))
    else:
        ordered = [merged[name] for name in sorted(merged)]
    return _plan(entries, ordered)


def resolve_within(mapping: Mapping[Any, Any], field: str, members: Sequence[Parameter]) -> Plan:
    """Work out ``{target: multiplier}`` for the ``members`` of a trainer; a target may be an exact name too."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"set_{field} takes a dict of target to multiplier, got {describe(mapping)}")
    if not mapping:
        raise ValueError(f"set_{field} was given an empty dict: it would change nothing")
    by_name = {param.name: param for param in members}
    entries = []
    for number, (target, value) in enumerate(mapping.items()):
        where = f"entry {number} ({describe(target)}: {describe(value)})"
        if isinstance(target, str):
            target = by_name[known_name(target, by_name, where)]
        elif not is_target(target):
            raise TypeError(
                f"{where}: {describe(target)} is no target; expected {TARGETS}, or a parameter's exact name"
            )
        value = check_multiplier(value, f"{field} of {where}")
        entry = _Entry(where, _group(target, {field: value}), collect(target, where))
        _refuse_empty(entry)
        for name, param in entry.trainable.items():
            if by_name.get(name) is not param:
                raise ValueError(f"{where}: Parameter {name!r} does not belong to this trainer")
        entries.append(entry)
    return _plan(entries, list(members))


class _Entry:
    """One entry as written: how to speak of it, the group it asks for, and the Parameters it names."""

    def __init__(self, where: str, group: ParamGroup, params: Parameters) -> None:
        self.where = where
        self.group = group
        self.params = params
        self.trainable = {name: param for name, param in params.items() if not is_auxiliary(param)}

    @property
    def says_nothing(self) -> bool:
        return self.group.lr_mult is None and self.group.wd_mult is None and self.group.name is None


def _entries(params: Any) -> list[_Entry]:
    entries = []
    for number, (item, group) in enumerate(_split(params)):
        where = f"entry {number} ({describe(item)})"
        group = group if isinstance(group, ParamGroup) else _as_group(item, where)
        entry = _Entry(where, group, collect(group.params, where))
        if not (entry.says_nothing and isinstance(group.params, Block)):
            _refuse_empty(entry)
        entries.append(entry)
    return entries


def _split(params: Any) -> Iterator[tuple[Any, ParamGroup | None]]:
    """Yield the entries of ``params``; neighbouring lone Parameters, as stock Trainer takes them, are one entry."""
    if isinstance(params, (ParamGroup, Block, ParameterDict, Parameter)) or is_parameter_mapping(params):
        yield params, None
    elif isinstance(params, Mapping):
        for target, multiplier in params.items():
            if isinstance(multiplier, Parameter):
                raise TypeError(
                    f"params mixes multipliers and Parameters as values: {target!r}: {describe(multiplier)}"
                )
            if is_target(multiplier):
                raise TypeError(f"params[{describe(target)}] must be a multiplier, got {describe(multiplier)}")
            yield (target, multiplier), None
    elif isinstance(params, (list, tuple)):
        lone: list[Parameter] = []
        for item in params:
            if isinstance(item, Parameter):
                lone.append(item)
                continue
            if lone:
                yield lone, ParamGroup(lone)
                lone = []
            yield item, None
        if lone:
            yield lone, ParamGroup(lone)
    else:
        raise TypeError(
            f"params must be {TARGETS}, (target, lr_mult) pairs or ParamGroups, or a dict of target to lr_mult; "
            f"got {describe(params)} of type {type(params).__name__}"
        )


def _as_group(item: Any, where: str) -> ParamGroup:
    if isinstance(item, ParamGroup):
        return item
    if isinstance(item, tuple) and len(item) == 2 and not (is_target(item[1]) or isinstance(item[1], ParamGroup)):
        target, multiplier = item
        if isinstance(target, ParamGroup):
            raise TypeError(f"{where}: a ParamGroup carries its own multipliers; write ParamGroup(..., lr_mult=...)")
        if multiplier is None:
            return ParamGroup(target)
        return ParamGroup(target, lr_mult=check_multiplier(multiplier, f"{where}: lr_mult"))
    if isinstance(item, Mapping) and not is_parameter_mapping(item):
        raise TypeError(f"{where}: in a list, write a group as (target, lr_mult) or ParamGroup(target, lr_mult=...)")
    return ParamGroup(item)


def _refuse_empty(entry: _Entry) -> None:
    if not entry.params:
        raise ValueError(f"{entry.where}: the target holds no Parameter; a pattern that matched nothing?")
    if not entry.trainable and not entry.says_nothing:
        raise ValueError(
            f"{entry.where}: the target holds only statistics or constants ({', '.join(list(entry.params)[:3])}), "
            "which no multiplier moves"
        )


def _merge(entries: Sequence[_Entry]) -> Parameters:
    """Return all Parameters by name; two of one name cannot share an optimizer."""
    merged: Parameters = {}
    source: dict[str, _Entry] = {}
    for entry in entries:
        for name, param in entry.params.items():
            if merged.setdefault(name, param) is not param:
                raise ValueError(
                    f"two different Parameters are called {name!r}, one in {source[name].where} and one in "
                    f"{entry.where}; give their Blocks different prefix="
                )
            source.setdefault(name, entry)
    return merged


def _group(target: Any, multipliers: Mapping[str, Multiplier]) -> ParamGroup:
    return ParamGroup(target, multipliers.get("lr_mult"), multipliers.get("wd_mult"))


def _plan(entries: Sequence[_Entry], parameters: list[Parameter]) -> Plan:
    networks = [entry.group.within for entry in entries if entry.group.within is not None]
    blocks = tuple(dict.fromkeys([*networks, *(b for entry in entries for b in blocks_of(entry.group.params))]))
    names = group_names([entry.group for entry in entries], blocks)
    groups = tuple(
        _resolved(entry.group, dict(sorted(entry.trainable.items())), name) for entry, name in zip(entries, names)
    )
    member_of = {param: i for i, entry in enumerate(entries) for param in entry.trainable.values()}
    return Plan(parameters, groups, {field: _decide(entries, field) for field in FIELDS}, member_of, blocks)


def _resolved(group: ParamGroup, params: Parameters, name: str) -> ParamGroup:
    resolved = ParamGroup.__new__(ParamGroup)
    resolved.params, resolved.lr_mult, resolved.wd_mult, resolved.name = params, group.lr_mult, group.wd_mult, name
    resolved.within = None
    return resolved


def _decide(entries: Sequence[_Entry], field: str) -> dict[Parameter, int]:
    """For each Parameter, the entry whose ``field`` it gets: the last one, if it refines or agrees with all before."""
    holders: dict[Parameter, list[int]] = {}
    for i, entry in enumerate(entries):
        value = getattr(entry.group, field)
        if value is None:
            continue
        shared: dict[int, list[Parameter]] = {}
        for param in entry.trainable.values():
            if param not in holders:
                holders[param] = [i]
                continue
            for j in holders[param]:
                shared.setdefault(j, []).append(param)
            holders[param].append(i)
        for j, params in shared.items():
            earlier = entries[j]
            refines = len(params) == len(entry.trainable) < len(earlier.trainable)
            if not refines and getattr(earlier.group, field) != value:
                raise ValueError(_conflict(params[0], field, earlier, entry))
    return {param: indices[-1] for param, indices in holders.items()}


def _conflict(param: Parameter, field: str, earlier: _Entry, later: _Entry) -> str:
    return (
        f"Parameter {param.name!r} gets {field} {getattr(earlier.group, field)!r} from {earlier.where} and "
        f"{getattr(later.group, field)!r} from {later.where}. A later entry overrides an earlier one only where it "
        "is a proper part of it; write the larger target first, or give both the same value"
    )
