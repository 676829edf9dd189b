"""Texts and figures about a trainer: the table of groups, the reasons for a multiplier, the planned learning rates."""

from __future__ import annotations

import copy
import math
from typing import Any, Collection, Iterable, Iterator, Mapping, NamedTuple, Sequence

from mxnet.gluon import Parameter
from mxnet.gluon.utils import shape_is_known

from ._mxnet import is_auxiliary
from .groups.param_group import FIELDS
from .groups.resolve import OPTIMIZER, ResolvedGroups
from .groups.targets import Multiplier
from .multipliers.schedules import evaluate
from .optimizers.partition import Partition


class SummaryRow(NamedTuple):
    """Parameters of one group that share their multipliers."""

    name: str
    parameters: int
    values: int | None  # None while a shape is still deferred
    lr_mult: float
    learning_rate: float
    wd: float
    optimizer: str = ""  # its class, if a group of the trainer has an optimizer of its own
    state: str = "trained"


def summary_rows(
    resolved: ResolvedGroups,
    params: Sequence[Parameter],
    partition: Partition,
    by: Sequence[str] = FIELDS,
    departed: Collection[Parameter] = (),
) -> list[SummaryRow]:
    """Divide Parameters by group and by the current values of the fields ``by``; return a row for each part.

    Those of a part that are among ``departed``, because they left the network, have a row of their own.
    """
    rates = {part: part.planned_rates([0])[0] for part in partition.parts}
    rows = []
    for name, members in _apart(_divide(resolved, params, by), departed):
        part, lr_mult, wd_mult = partition.part_of(members[0]), members[0].lr_mult, members[0].wd_mult
        rate, wd = rates[part] * lr_mult, part.optimizer.wd * wd_mult
        optimizer = type(part.optimizer).__name__ if partition.is_divided else ""
        state = _state(members[0], departed)
        rows.append(SummaryRow(name, len(members), _size(members), lr_mult, rate, wd, optimizer, state))
    return rows


def _apart(
    named: Iterable[tuple[str, list[Parameter]]], departed: Collection[Parameter]
) -> Iterator[tuple[str, list[Parameter]]]:
    """Divide each part into those that are in the network and those that left it."""
    for name, members in named:
        for among in (False, True):
            own = [param for param in members if (param in departed) is among]
            if own:
                yield name, own


def _state(param: Parameter, departed: Collection[Parameter]) -> str:
    if param in departed:
        return "left the network"
    return "frozen" if param.lr_mult == 0 else "trained"


def members_of_groups(resolved: ResolvedGroups, params: Sequence[Parameter]) -> dict[str, list[Parameter]]:
    """Divide Parameters by group and by their current ``lr_mult``, under the names of ``trainer.learning_rates``."""
    return dict(_divide(resolved, params, ("lr_mult",)))


def format_table(rows: Sequence[SummaryRow]) -> str:
    """Return ``rows`` as aligned text."""
    with_optimizer = any(row.optimizer for row in rows)
    texts = (0, 1, 7) if with_optimizer else (0, 6)  # the columns that are aligned to the left
    head = ("group", *["optimizer"][:with_optimizer], "parameters", "values", "lr_mult", "learning rate", "wd", "state")
    cells = [head] + [
        (
            row.name,
            *[row.optimizer][:with_optimizer],
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
        padded = (
            text.ljust(width) if i in texts else text.rjust(width) for i, (text, width) in enumerate(zip(line, widths))
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def explain(
    resolved: ResolvedGroups,
    param: Parameter,
    partition: Partition,
    schedules: Mapping[str, Mapping[Parameter, Multiplier]],
    departed: Collection[Parameter] = (),
) -> str:
    """Explain where the multipliers of ``param`` come from, and which of the optimizers updates it."""
    shape = "shape not known yet" if not shape_is_known(param.shape) else " x ".join(map(str, param.shape))
    if is_auxiliary(param):
        return f"{param.name}: {shape}, a statistic or a constant, which no multiplier moves"
    part = partition.part_of(param)
    rates = {"lr_mult": part.planned_rates([0])[0], "wd_mult": part.optimizer.wd}
    state = _state(param, departed)
    lines = [f"{param.name}: {shape}, {state}"]
    if partition.is_divided:
        lines[0] += (
            f"{', updated' if state == 'left the network' else ''} by {type(part.optimizer).__name__} of {part.owner}"
        )
    for field, title in zip(FIELDS, ("learning rate", "weight decay")):
        number = getattr(param, field)
        lines.append(f"  {title} {rates[field] * number:g} = {rates[field]:g} * {field} {number:g}")
        lines.append(f"    {_reason(resolved, param, field, schedules[field].get(param))}")
    return "\n".join(lines)


def _reason(resolved: ResolvedGroups, param: Parameter, field: str, schedule: Multiplier | None) -> str:
    current = getattr(param, field) if schedule is None else schedule
    shown = _format_multiplier(current)
    setting = resolved.groups_setting(param, field)
    if not setting:
        return "the default; no entry sets it" if shown == "1" else f"{shown}, the Parameter's own; no entry sets it"
    group = resolved.groups[setting[-1]]
    given = getattr(group, field)
    reason = f"{_format_multiplier(given)} by entry {setting[-1]} {group.name!r}"
    for i in setting[-2:-1]:
        earlier = resolved.groups[i]
        verb = "refines" if len(group.params) < len(earlier.params) else "agrees with"
        reason += f", which {verb} entry {i} {earlier.name!r} ({_format_multiplier(getattr(earlier, field))})"
    return reason if current == given else f"{shown}, set since the trainer was built with {reason}"


def _format_multiplier(multiplier: Multiplier) -> str:
    return repr(multiplier) if callable(multiplier) else f"{multiplier:g}"


def planned_rates(
    resolved: ResolvedGroups,
    params: Sequence[Parameter],
    partition: Partition,
    schedules: Mapping[Parameter, Multiplier],
    updates: Sequence[int],
) -> list[tuple[str, list[float]]]:
    """Return the name of each group with its learning rates at later updates, whose numbers are ``updates``."""
    following = partition.main.optimizer.num_update + 1
    rates_of = {part: part.planned_rates([n - following for n in updates]) for part in partition.parts}
    planned = []
    for name, members in _divide(resolved, params, ("lr_mult",)):
        rates = rates_of[partition.part_of(members[0])]
        by_schedule: dict[int, Parameter] = {}
        for param in members:
            by_schedule.setdefault(id(schedules.get(param)), param)
        for param in by_schedule.values():
            schedule = schedules.get(param)
            label = name if len(by_schedule) == 1 else f"{name} {schedule or param.lr_mult!r}"
            multiplier = param.lr_mult if schedule is None else _copy(schedule)
            multipliers = [evaluate({param: multiplier}, "lr_mult", update)[param] for update in updates]
            planned.append((label, [rate * number for rate, number in zip(rates, multipliers)]))
    return planned


def _copy(schedule: Any) -> Any:
    try:
        return copy.deepcopy(schedule)
    except Exception as error:
        raise TypeError(
            f"the schedule {schedule!r} cannot be copied ({error}), and asking it itself could change the training"
        ) from error


def _divide(
    resolved: ResolvedGroups, params: Sequence[Parameter], by: Sequence[str]
) -> list[tuple[str, list[Parameter]]]:
    """Divide Parameters by group and by the current values of the fields ``by``; return a name for each part."""
    parts: dict[tuple[int, ...], dict[tuple[float, ...], list[Parameter]]] = {}
    for param in params:
        values = tuple(getattr(param, field) for field in by)
        parts.setdefault(_groups_shown(resolved, param, by), {}).setdefault(values, []).append(param)
    named = []
    for indices, by_values in sorted(parts.items(), key=lambda item: item[0]):
        differing = [i for i in range(len(by)) if len({values[i] for values in by_values}) > 1]
        for values, members in by_values.items():
            words = [resolved.groups[i].name for i in indices] + [f"{by[i]}={values[i]:.10g}" for i in differing]
            named.append((" ".join(words), members))
    return named


def _groups_shown(resolved: ResolvedGroups, param: Parameter, by: Sequence[str]) -> tuple[int, ...]:
    """Return the groups that decide the learning rate of a Parameter, its fields ``by`` and its optimizer.

    If no group sets its learning-rate multiplier, the last group that holds it stands for that one.
    """
    first = resolved.deciding["lr_mult"].get(param, resolved.member_of[param])
    others = (resolved.deciding[field].get(param, first) for field in (*by, OPTIMIZER))
    return tuple(dict.fromkeys((first, *others)))


def _size(params: Sequence[Parameter]) -> int | None:
    """Return the number of values in ``params``, or None while a shape is still deferred."""
    if not all(shape_is_known(param.shape) for param in params):
        return None
    return sum(math.prod(param.shape) for param in params)
