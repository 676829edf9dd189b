"""Read the ``params`` of a trainer as a list of entries, each with a `ParamGroup` and its Parameters."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any, Iterator

from mxnet.gluon import Block, Parameter, ParameterDict

from .._mxnet import is_auxiliary
from .param_group import ParamGroup
from .targets import TARGETS, Description, Where, check_multiplier, collect, describe, is_parameter_mapping, is_target

_NO_DICT_OF_PYTORCH = "write a group as (target, lr_mult) or ParamGroup(target, lr_mult=...)"


class Entry:
    """One entry of ``params``: a group, the Parameters that it holds, and the words for it in error messages."""

    def __init__(self, where: Where, group: ParamGroup) -> None:
        self.where = where
        self.group = group
        self.params = collect(group.params, where)
        self.trainable = {name: param for name, param in self.params.items() if not is_auxiliary(param)}

    @property
    def sets_nothing(self) -> bool:
        """Whether the group has neither a multiplier nor a name nor an optimizer."""
        group = self.group
        return all(given is None for given in (group.lr_mult, group.wd_mult, group.name, group.optimizer_choice))

    def check_not_empty(self) -> None:
        """Raise ValueError if there is no Parameter, or if there is none that the multipliers could act on."""
        if not self.params:
            raise ValueError(f"{self.where}: the target holds no Parameter; a pattern that matched nothing?")
        if not self.trainable and not self.sets_nothing:
            raise ValueError(
                f"{self.where}: the target holds only statistics or constants ({', '.join(list(self.params)[:3])}), "
                "which no multiplier moves; a BatchNorm without trainable parameters is frozen with the group that it "
                "is in: build the trainer with it beside a layer, as in ([batchnorm, layer], 0), or create it with "
                "use_global_stats=True"
            )


def parse_entries(params: Any) -> list[Entry]:
    """Read ``params`` in any form that `MultiLRTrainer` takes; raise TypeError or ValueError naming the entry."""
    return [_parse_entry(number, item) for number, item in enumerate(_split(params))]


def _parse_entry(number: int, item: Any) -> Entry:
    where = Description("entry {} ({})", number, item)
    entry = Entry(where, _as_group(item, where))
    if not (isinstance(entry.group.params, Block) and entry.sets_nothing):
        entry.check_not_empty()
    return entry


def _split(params: Any) -> Iterator[Any]:
    """Yield the entries of ``params``; neighbouring Parameters in a list are one entry, as stock Trainer takes them."""
    if isinstance(params, (ParamGroup, Block, ParameterDict, Parameter)) or is_parameter_mapping(params):
        yield params
    elif isinstance(params, Mapping) and "params" in params:
        raise TypeError(f"entry 0 ({describe(params)}): {_NO_DICT_OF_PYTORCH}")
    elif isinstance(params, Mapping):
        for target, multiplier in params.items():
            if isinstance(multiplier, Parameter):
                raise TypeError(
                    f"params mixes multipliers and Parameters as values: {target!r}: {describe(multiplier)}"
                )
            if is_target(multiplier):
                raise TypeError(f"params[{describe(target)}] must be a multiplier, got {describe(multiplier)}")
            yield target, multiplier
    elif isinstance(params, (list, tuple)):
        for are_parameters, items in groupby(params, lambda item: isinstance(item, Parameter)):
            if are_parameters:
                yield list(items)
            else:
                yield from items
    else:
        raise TypeError(
            f"params must be {TARGETS}, (target, lr_mult) pairs or ParamGroups, or a dict of target to lr_mult; "
            f"got {describe(params)} of type {type(params).__name__}"
        )


def _as_group(item: Any, where: Where) -> ParamGroup:
    if isinstance(item, ParamGroup):
        return item
    if isinstance(item, tuple) and len(item) == 2 and not (is_target(item[1]) or isinstance(item[1], ParamGroup)):
        target, multiplier = item
        if isinstance(target, ParamGroup):
            raise TypeError(f"{where}: a ParamGroup carries its own multipliers; write ParamGroup(..., lr_mult=...)")
        if multiplier is None:
            return ParamGroup(target)
        return ParamGroup(target, lr_mult=check_multiplier(multiplier, where, "{}: lr_mult"))
    if isinstance(item, Mapping) and not is_parameter_mapping(item):
        raise TypeError(f"{where}: {_NO_DICT_OF_PYTORCH}")
    return ParamGroup(item)
