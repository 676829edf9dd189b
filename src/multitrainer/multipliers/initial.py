"""The multipliers that Parameters have before the groups of a new trainer are applied."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence, Tuple

from mxnet.gluon import Parameter
from mxnet.optimizer import Optimizer

from .._mxnet import supports_multiplier
from ..groups import FIELDS, ResolvedGroups
from ..optimizers.group_optimizers import GroupOptimizer, optimizer_class
from ..symbolic import attributes
from .name_table import explicit_multipliers, parse_multipliers
from .schedules import evaluate
from .supported import check_supported
from .tracker import Numbers

_Kind = Tuple[type, Optional[str], List[Parameter]]


def inherited_multipliers(
    resolved: ResolvedGroups, optimizer: Any, own: Sequence[GroupOptimizer] = ()
) -> dict[str, Numbers]:
    """Collect, by field, what imported symbols say, and what the user told a ready-made Optimizer.

    Any Optimizer, the trainer's or one that a group has of its ``own``, may have been told about any Parameter.

    Raises
    ------
    TypeError, ValueError
        If one of them is not a multiplier or names no Parameter, or if two Optimizers were told different ones.
    """
    given = [("optimizer", optimizer), *((f"optimizer of group {each.group!r}", each.given) for each in own)]
    sources = [(where, each) for where, each in given if isinstance(each, Optimizer)]
    told = {field: _told(sources, resolved, field) for field in FIELDS}
    imported = attributes.symbol_multipliers(resolved.blocks)
    return {field: {**imported[field], **told[field]} for field in FIELDS}


def _told(sources: Sequence[tuple[str, Optimizer]], resolved: ResolvedGroups, field: str) -> Numbers:
    told: Numbers = {}
    for where, optimizer in sources:
        numbers = parse_multipliers(explicit_multipliers(optimizer, field), resolved.parameters, f"{where}.{field}")
        for param, number in numbers.items():
            if told.setdefault(param, number) != number:
                raise ValueError(
                    f"{where}.{field}: {param.name!r} has {number!r} there and {told[param]!r} in another optimizer; "
                    "tell one of them only"
                )
    return told


def check_initial(
    resolved: ResolvedGroups,
    inherited: Mapping[str, Numbers],
    optimizer: Any,
    optimizer_params: Mapping[str, Any] | None,
    own: Sequence[GroupOptimizer] = (),
) -> None:
    """Raise an error if an optimizer would not apply one of the multipliers that the first update needs.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If the optimizer of a Parameter does not read a multiplier other than 0 and 1, or a schedule fails.
    """
    with_own = {param for each in own for param in each.params}
    others = [param for param in resolved.member_of if param not in with_own]
    kinds: list[_Kind] = [(optimizer_class(optimizer), None, others)]
    kinds += [(each.kind, each.group, each.params) for each in own]
    for field in FIELDS:
        numbers = evaluate(resolved.assignments[field], field, _first_update(optimizer, optimizer_params))
        for kind, group, params in kinds:
            if not supports_multiplier(kind, field):  # else there is nothing to check, however many Parameters
                given = {**inherited[field], **numbers}
                check_supported(kind, field, {p: given.get(p, getattr(p, field)) for p in params}, group)


def _first_update(optimizer: Any, optimizer_params: Mapping[str, Any] | None) -> int:
    """Give the number of the next update of an optimizer that may not have been made yet."""
    if isinstance(optimizer, Optimizer):
        return optimizer.num_update + 1
    return (optimizer_params or {}).get("begin_num_update", 0) + 1
