"""What the trainer does, for people: the table of groups, the reasons behind a multiplier, the learning-rate plot."""

from __future__ import annotations

import copy
import math
from typing import Any, Mapping, NamedTuple, Sequence

from mxnet.gluon import Parameter
from mxnet.gluon.utils import shape_is_known

from ._mxnet import is_auxiliary
from .groups.param_group import FIELDS
from .groups.resolve import Plan
from .groups.targets import Multiplier
from .multipliers.schedules import evaluate


class Row(NamedTuple):
    """Parameters of one group that share their multipliers."""

    name: str
    parameters: int
    values: int | None  # None while a shape is still deferred
    lr_mult: float
    learning_rate: float
    wd: float

    @property
    def state(self) -> str:
        """'frozen' or 'trained'."""
        return "frozen" if self.lr_mult == 0 else "trained"


def rows(
    plan: Plan, params: Sequence[Parameter], learning_rate: float, wd: float, by: Sequence[str] = FIELDS
) -> list[Row]:
    """Divide Parameters into rows, by the groups that decide the fields ``by`` and by the multipliers they have now."""
    result = []
    for name, held in shares(plan, params, by):
        lr_mult, wd_mult = held[0].lr_mult, held[0].wd_mult
        result.append(Row(name, len(held), _size(held), lr_mult, learning_rate * lr_mult, wd * wd_mult))
    return result


def shares(plan: Plan, params: Sequence[Parameter], by: Sequence[str]) -> list[tuple[str, list[Parameter]]]:
    """Divide Parameters as `rows` does; return the name of each share with its Parameters."""
    parts: dict[tuple[int, ...], dict[tuple[float, ...], list[Parameter]]] = {}
    for param in params:
        values = tuple(getattr(param, field) for field in by)
        parts.setdefault(_label(plan, param, by), {}).setdefault(values, []).append(param)
    result = []
    for label, shared in sorted(parts.items(), key=lambda item: item[0]):
        differing = [i for i in range(len(by)) if len({values[i] for values in shared}) > 1]
        for values, held in shared.items():
            names = [plan.groups[i].name or "" for i in label] + [f"{by[i]}={values[i]:.10g}" for i in differing]
            result.append((" ".join(names), held))
    return result


def explain(
    plan: Plan, param: Parameter, rates: Mapping[str, float], schedules: Mapping[str, Mapping[Parameter, Multiplier]]
) -> str:
    """Say where the multipliers of ``param`` come from; ``rates`` are the optimizer's, by field."""
    shape = "shape not known yet" if not shape_is_known(param.shape) else " x ".join(map(str, param.shape))
    if is_auxiliary(param):
        return f"{param.name}: {shape}, a statistic or a constant, which no multiplier moves"
    lines = [f"{param.name}: {shape}, {'frozen' if param.lr_mult == 0 else 'trained'}"]
    for field, title in zip(FIELDS, ("learning rate", "weight decay")):
        number = getattr(param, field)
        lines.append(f"  {title} {rates[field] * number:g} = {rates[field]:g} * {field} {number:g}")
        lines.append(f"    {_source(plan, param, field, schedules[field].get(param))}")
    return "\n".join(lines)


def _source(plan: Plan, param: Parameter, field: str, schedule: Multiplier | None) -> str:
    number, entries = getattr(param, field), plan.entries_for(param, field)
    now = f"{number:g}" if schedule is None else f"{schedule!r}"
    if not entries:
        return "the default; no entry sets it" if now == "1" else f"{now}, the Parameter's own; no entry sets it"
    *earlier, last = entries
    said = getattr(plan.groups[last], field)
    reason = f"{_shown(said)} by {_entry(plan, last)}"
    for i in earlier[-1:]:
        verb = "refines" if len(plan.groups[last].params) < len(plan.groups[i].params) else "agrees with"
        reason += f", which {verb} {_entry(plan, i)} ({_shown(getattr(plan.groups[i], field))})"
    if (schedule if callable(said) or schedule is not None else number) == said:
        return reason
    return f"{now}, set since the trainer was built with {reason}"


def _entry(plan: Plan, number: int) -> str:
    return f"entry {number} {plan.groups[number].name!r}"


def _shown(multiplier: Multiplier) -> str:
    return repr(multiplier) if callable(multiplier) else f"{multiplier:g}"


def table(rows: Sequence[Row]) -> str:
    """Return ``rows`` as aligned text."""
    head = ("group", "parameters", "values", "lr_mult", "learning rate", "wd", "state")
    cells = [head] + [
        (
            row.name,
            str(row.parameters),
            "?" if row.values is None else f"{row.values:,}",
            f"{row.lr_mult:.4g}",
            f"{row.learning_rate:.4g}",
            f"{row.wd:.4g}",
            row.state,
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = []
    for line in cells:
        first, *numbers, last = (
            text.ljust(width) if i in (0, len(head) - 1) else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths))
        )
        lines.append("  ".join([first, *numbers, last]).rstrip())
    return "\n".join(lines)


def planned(
    plan: Plan,
    params: Sequence[Parameter],
    schedules: Mapping[Parameter, Multiplier],
    updates: Sequence[int],
    rates: Sequence[float],
) -> list[tuple[str, list[float]]]:
    """Return the learning rates that each group will have at ``updates``, where the optimizer's own are ``rates``."""
    found = []
    for name, held in shares(plan, params, ("lr_mult",)):
        by_schedule = {id(schedules.get(param)): param for param in reversed(held)}
        for param in reversed(list(by_schedule.values())):
            schedule = schedules.get(param)
            label = name if len(by_schedule) == 1 else f"{name} {schedule or param.lr_mult!r}"
            multiplier = param.lr_mult if schedule is None else _copied(schedule)
            multipliers = [evaluate({param: multiplier}, "lr_mult", update)[param] for update in updates]
            found.append((label, [rate * number for rate, number in zip(rates, multipliers)]))
    return found


def _copied(schedule: Any) -> Any:
    try:
        return copy.deepcopy(schedule)
    except Exception as error:
        raise TypeError(
            f"the schedule {schedule!r} cannot be copied ({error}), and asking it itself could change the training"
        ) from error


def _label(plan: Plan, param: Parameter, by: Sequence[str]) -> tuple[int, ...]:
    """Return the groups that a Parameter is shown under: those that decide its fields, else the last that holds it."""
    first = plan.deciding["lr_mult"].get(param, plan.member_of[param])
    others = (plan.deciding[field].get(param, first) for field in by)
    return tuple(dict.fromkeys((first, *others)))


def _size(params: Sequence[Parameter]) -> int | None:
    total = 0
    for param in params:
        if not shape_is_known(param.shape):
            return None
        total += math.prod(param.shape)
    return total
