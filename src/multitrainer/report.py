"""What the trainer does, for people: the table of groups, the reasons behind a multiplier, the learning-rate plot."""

from __future__ import annotations

import copy
import math
import numbers
from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np
from mxnet.gluon import Parameter
from mxnet.gluon.utils import shape_is_known

from ._mxnet import is_auxiliary
from .groups import FIELDS, Plan
from .schedules import evaluate
from .targets import Multiplier


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


# -- the plot ---------------------------------------------------------------------------------------------------------

_LEGEND = 20  # entries that a legend can hold beside the axes
_WIDE = 10  # groups whose rates are further apart than this factor are drawn on a logarithmic axis


def plot_learning_rates(trainer: Any, num_updates: int, ax: Any = None) -> Any:
    """Draw the learning rate of each group over the updates to come, without training.

    Parameters
    ----------
    trainer : MultiLRTrainer
        It is not changed: copies of its lr_scheduler and of its schedules are asked. A plain function cannot be
        copied; one that keeps count of its calls counts these too.
    num_updates : int
        How many updates to draw, from the trainer's next one on.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure of matplotlib.pyplot.

    Returns
    -------
    matplotlib.axes.Axes
        One line a group, labelled with its name. Where a group is frozen its line has a gap. The axis is
        logarithmic if the rates of one update differ by more than a factor of 10. Of more than 20 groups the legend
        names 20.

    Raises
    ------
    TypeError, ValueError
        If ``trainer`` is no `MultiLRTrainer`, ``num_updates`` is no whole number above 0, or a schedule cannot be
        copied.
    ImportError
        Without matplotlib, with the extra to install.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import MultiLRTrainer, gradual_unfreezing, plot_learning_rates
    >>> net = mx.gluon.model_zoo.vision.resnet18_v1()
    >>> net.initialize()
    >>> trainer = MultiLRTrainer([net, *gradual_unfreezing(net, every=100)], 'sgd', {'learning_rate': 0.1})
    >>> len(plot_learning_rates(trainer, 600).get_lines())
    6
    """
    planned = getattr(trainer, "_planned", None)
    if planned is None:
        raise TypeError(f"trainer must be a MultiLRTrainer, got {type(trainer).__name__}")
    if not isinstance(num_updates, numbers.Integral) or isinstance(num_updates, bool) or num_updates < 1:
        raise ValueError(f"num_updates must be a whole number above 0, got {num_updates!r}")
    updates, lines = planned(int(num_updates))
    try:
        from matplotlib import colormaps, pyplot
    except ImportError as error:
        raise ImportError("plot_learning_rates needs matplotlib: pip install 'multitrainer[plot]'") from error
    ax = pyplot.subplots(figsize=(9, 4.5), layout="constrained")[1] if ax is None else ax
    colours = colormaps["tab10"].colors if len(lines) <= 10 else colormaps["viridis"](np.linspace(0, 0.95, len(lines)))
    drawn, by_group = [], [rates for _, rates in lines]
    for (name, rates), colour in zip(lines, colours):
        shown = np.where(np.asarray(rates) > 0, rates, np.nan)
        drawn += ax.plot(updates, shown, label=name, color=colour, drawstyle="steps-mid")
    if any(max(now) > _WIDE * min(now) for now in (list(filter(None, rates)) for rates in zip(*by_group)) if now):
        ax.set_yscale("log")
    ax.set(xlabel="update", ylabel="learning rate", xlim=(updates[0] - 0.5, updates[-1] + 0.5))
    chosen = [drawn[i] for i in sorted({round(i) for i in np.linspace(0, len(drawn) - 1, min(len(drawn), _LEGEND))})]
    title = f"{len(chosen)} of {len(drawn)} groups" if len(chosen) < len(drawn) else None
    ax.legend(handles=chosen, title=title, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return ax


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
