"""Keep the multipliers of a trainer's Parameters true, by whatever door they come.

The Parameters hold the multipliers. Here it is noticed when they change; then Parameters are frozen and unfrozen,
schedules evaluated, and the optimizer's own table brought in line.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Dict, Iterable, Iterator, Mapping, Sequence

from mxnet.gluon import Block, Parameter
from mxnet.optimizer import Optimizer

from . import _mxnet
from .freezing import freeze_parameter, gradient_pending, hold_statistics, is_held, unfreeze_parameter
from .groups import FIELDS
from .optimizers import NameTable, check_honoured
from .targets import Multiplier, check_multiplier

_Numbers = Dict[Parameter, float]


class Multipliers:
    """The multipliers of the Parameters of one trainer.

    Parameters
    ----------
    params : sequence of Parameter
        In the order of the optimizer's indices.
    optimizer : Optimizer
        The trainer's own.
    """

    def __init__(self, params: Sequence[Parameter], optimizer: Optimizer) -> None:
        self.movable = [param for param in params if not _mxnet.is_auxiliary(param)]
        self._params = list(params)
        self._roots: dict[Block, None] = {}
        self._schedules: dict[str, dict[Parameter, Multiplier]] = {field: {} for field in FIELDS}
        self._unfreeze_after: list[Parameter] = []
        self._await_backward: list[Parameter] = []
        self._was_frozen = False
        self._due = optimizer.num_update + 1
        self.adopt(optimizer)

    def adopt(self, optimizer: Optimizer) -> None:
        """Serve ``optimizer`` from now on; the Parameters' multipliers hold, whatever its table says."""
        self._optimizer = optimizer
        self._table = NameTable(self._params, optimizer)
        self._remember()

    def assign(self, given: Mapping[str, Mapping[Parameter, Multiplier]], blocks: Iterable[Block] = ()) -> None:
        """Set multipliers, field by field, and freeze or unfreeze at once; ``blocks`` is where they may be found."""
        numbers = {}
        for field, multipliers in given.items():
            numbers[field] = evaluate(multipliers, field, self._optimizer.num_update + 1)
            check_honoured(type(self._optimizer), field, numbers[field])
        self._roots.update(dict.fromkeys(blocks))
        for field, multipliers in given.items():
            for param, multiplier in multipliers.items():
                self._schedules[field].pop(param, None)
                if callable(multiplier):
                    self._schedules[field][param] = multiplier
        self._write(numbers)
        self._settle(explicit=given.get("lr_mult", {}))

    def take_over(self, at_step: bool = False) -> None:
        """Take over what was assigned by another door; ``at_step``, what that unfreezes has no gradient yet."""
        found = self._table.read()
        self._write(found)
        changed = {field: self._changed(field) for field in FIELDS}
        for field, params in changed.items():
            for param in params:
                number = check_multiplier(getattr(param, field), f"{field} of Parameter {param.name!r}")
                check_honoured(type(self._optimizer), field, {param: number})
        for field, params in changed.items():
            for param in params:
                self._schedules[field].pop(param, None)
        moved = self._optimizer.num_update + 1 != self._due
        if moved:
            self._advance()
        if found or moved or any(changed.values()) or any(param.grad_req != "null" for param in self._frozen):
            self._settle(at_step=at_step)

    def before_gradients_are_used(self) -> None:
        """Take over what was assigned since; what has no gradient from the backward pass just made is left out."""
        self.take_over(at_step=True)
        waiting, self._await_backward = self._await_backward, []
        for param in waiting:
            # Unfrozen between backward and step: stock Trainer would call its gradient stale and raise.
            if param.grad_req != "null" and not _mxnet.has_fresh_gradient(param):
                lr_mult = param.lr_mult
                freeze_parameter(param)
                param.lr_mult = lr_mult
                self._unfreeze_after.append(param)

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """Surround one update of the Parameters; afterwards all is ready for the next forward pass."""
        with self._clock():
            yield
        waiting, self._unfreeze_after = self._unfreeze_after, []
        for param in waiting:
            unfreeze_parameter(param)
        if waiting or any(self._schedules.values()):
            self._advance()
            self._settle(unfrozen=waiting)
        self._due = self._optimizer.num_update + 1

    # -- noticing -----------------------------------------------------------------------------------------------------

    def _changed(self, field: str) -> list[Parameter]:
        now = [getattr(param, field) for param in self.movable]
        if now == self._seen[field]:
            return []
        return [param for param, old, new in zip(self.movable, self._seen[field], now) if old != new]

    def _remember(self) -> None:
        self._seen = {field: [getattr(param, field) for param in self.movable] for field in FIELDS}
        self._frozen = [param for param in self.movable if param.lr_mult == 0]

    # -- schedules and their clock ------------------------------------------------------------------------------------

    def _advance(self) -> None:
        due = self._optimizer.num_update + 1
        numbers = {field: evaluate(self._schedules[field], field, due) for field in FIELDS}
        for field, values in numbers.items():
            check_honoured(type(self._optimizer), field, values)
        self._write(numbers)
        self._due = due

    @contextlib.contextmanager
    def _clock(self) -> Iterator[None]:
        """Let ``num_update`` count updates, whichever Parameters take part.

        MXNet takes the largest count of any one Parameter. That stands still while the one with the largest is frozen,
        and lags where one that was unfrozen late comes first in an update; lr_scheduler and schedules go by it.
        """
        if not (self._was_frozen or self._frozen):
            yield
            return
        made = _mxnet.updates_made(self._optimizer)
        self._optimizer.num_update = self._due
        try:
            yield
        finally:
            all_frozen = all(param.grad_req == "null" for param in self.movable)
            if not all_frozen and made == _mxnet.updates_made(self._optimizer):
                self._optimizer.num_update = self._due - 1  # AMP skipped the update, or it failed

    # -- freezing -----------------------------------------------------------------------------------------------------

    def _write(self, numbers: Mapping[str, _Numbers]) -> None:
        for field, values in numbers.items():
            for param, number in values.items():
                setattr(param, field, number)

    def _settle(
        self, explicit: Iterable[Parameter] = (), unfrozen: Sequence[Parameter] = (), at_step: bool = False
    ) -> None:
        """Freeze and unfreeze Parameters as their multipliers say, and bring what depends on that up to date.

        ``explicit`` ones were named with a multiplier: above 0 it asks for a gradient even where ``grad_req`` was set
        to 'null' by hand. ``unfrozen`` ones have just been. ``at_step``, the backward pass for it has been made.
        """
        explicit = set(explicit)
        to_freeze, to_unfreeze = [], []
        for param, seen in zip(self.movable, self._seen["lr_mult"]):
            if param.lr_mult == 0 and not (is_held(param) and param.grad_req == "null"):
                to_freeze.append((param, seen))
            elif param.lr_mult != 0 and (is_held(param) or (param in explicit and param.grad_req == "null")):
                to_unfreeze.append(param)
        if to_freeze or to_unfreeze or unfrozen:
            pending = gradient_pending(self.movable)
            for param, seen in to_freeze:
                freeze_parameter(param, seen)
            for param in to_unfreeze:
                unfreeze_parameter(param)
            if pending or at_step:
                self._await_backward += to_unfreeze
            self._was_frozen = True
            covered = hold_statistics(list(self._roots), pending and not unfrozen)
            self._warn_of_statistics([param for param, _ in to_freeze], covered)
        self._remember()
        self._table.fill()

    def _warn_of_statistics(self, frozen: Sequence[Parameter], covered: Iterable[Parameter]) -> None:
        """Warn of statistics beside frozen Parameters whose BatchNorm cannot be reached from here."""
        stems = {_mxnet.stem(param) for param in frozen}
        moving = [
            param.name
            for param in self._params
            if param.name.endswith(_mxnet.STATISTICS) and _mxnet.stem(param) in stems and param not in covered
        ]
        if moving:
            warnings.warn(
                f"frozen, but their BatchNorm statistics still move: {', '.join(moving[:3])}"
                f"{', ...' if len(moving) > 3 else ''}. Give the trainer the Block instead of its Parameters, "
                "MultiLRTrainer([net, ...]), so that it can hold them",
                stacklevel=5,
            )


def evaluate(multipliers: Mapping[Parameter, Multiplier], field: str, num_update: int) -> dict[Parameter, float]:
    """Return each multiplier as a number: a schedule as what it says for update ``num_update``, asked once."""
    values: dict[int, float] = {}
    for param, multiplier in multipliers.items():
        if callable(multiplier) and id(multiplier) not in values:
            where = f"{field} of Parameter {param.name!r}, from its schedule at update {num_update},"
            number = check_multiplier(multiplier(num_update), where)
            if callable(number):
                raise TypeError(f"{where} must be a number, got another schedule")
            values[id(multiplier)] = number
    return {param: values[id(value)] if callable(value) else value for param, value in multipliers.items()}
