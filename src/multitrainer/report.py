"""What the trainer does, for people: the table of groups."""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence

from mxnet.gluon import Parameter
from mxnet.gluon.utils import shape_is_known

from .groups import FIELDS, Plan


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
    parts: dict[tuple[int, ...], dict[tuple[float, ...], list[Parameter]]] = {}
    for param in params:
        values = tuple(getattr(param, field) for field in by)
        parts.setdefault(_label(plan, param, by), {}).setdefault(values, []).append(param)
    result = []
    for label, shares in sorted(parts.items(), key=lambda item: item[0]):
        differing = [i for i in range(len(by)) if len({values[i] for values in shares}) > 1]
        for values, held in shares.items():
            names = [plan.groups[i].name or "" for i in label] + [f"{by[i]}={values[i]:.10g}" for i in differing]
            lr_mult, wd_mult = held[0].lr_mult, held[0].wd_mult
            result.append(Row(" ".join(names), len(held), _size(held), lr_mult, learning_rate * lr_mult, wd * wd_mult))
    return result


def table(rows: Sequence[Row]) -> str:
    """Return ``rows`` as aligned text."""
    head = ("group", "parameters", "values", "lr_mult", "learning rate", "wd", "state")
    cells = [head] + [
        (
            row.name,
            str(row.parameters),
            "?" if row.values is None else f"{row.values:,}",
            f"{row.lr_mult:g}",
            f"{row.learning_rate:g}",
            f"{row.wd:g}",
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
