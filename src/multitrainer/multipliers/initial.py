"""The multipliers that Parameters have before the groups of a new trainer are applied."""

from __future__ import annotations

from typing import Any, Mapping

from mxnet.optimizer import Optimizer

from .._mxnet import supports_multiplier
from ..groups import FIELDS, Plan
from ..symbolic import attributes
from .name_table import explicit_multipliers, parse_multipliers
from .schedules import evaluate
from .supported import check_supported, optimizer_class
from .tracker import Numbers


def inherited_multipliers(plan: Plan, optimizer: Any) -> dict[str, Numbers]:
    """Collect, by field, what imported symbols say, and what the user told a ready-made Optimizer.

    Raises
    ------
    TypeError, ValueError
        If one of them is not a multiplier or names no Parameter.
    """
    told = {
        field: parse_multipliers(explicit_multipliers(optimizer, field), plan.parameters, f"optimizer.{field}")
        for field in FIELDS
    }
    imported = attributes.symbol_multipliers(plan.blocks)
    return {field: {**imported[field], **told[field]} for field in FIELDS}


def check_initial(
    plan: Plan, inherited: Mapping[str, Numbers], optimizer: Any, optimizer_params: Mapping[str, Any] | None
) -> None:
    """Raise an error if the optimizer would not apply one of the multipliers that the first update needs.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If the optimizer does not read a multiplier other than 0 and 1, or a schedule fails.
    """
    kind = optimizer_class(optimizer)
    for field in FIELDS:
        numbers = evaluate(plan.assignments(field), field, _first_update(optimizer, optimizer_params))
        if not supports_multiplier(kind, field):  # else there is nothing to check, however many Parameters there are
            own = {param: getattr(param, field) for param in plan.member_of}
            check_supported(kind, field, {**own, **inherited[field], **numbers})


def _first_update(optimizer: Any, optimizer_params: Mapping[str, Any] | None) -> int:
    """Give the number of the next update of an optimizer that may not have been made yet."""
    if isinstance(optimizer, Optimizer):
        return optimizer.num_update + 1
    return (optimizer_params or {}).get("begin_num_update", 0) + 1
