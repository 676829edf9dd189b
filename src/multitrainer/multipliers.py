"""Keep the multipliers of a trainer's Parameters true, by whatever door they come.

The Parameters hold the multipliers. Here it is noticed when they change; then Parameters are frozen and unfrozen,
schedules evaluated, and the optimizer's own table brought in line.
"""

from __future__ import annotations

import contextlib
from operator import attrgetter
from typing import Any, Callable, Dict, Iterable, Iterator, Mapping, NamedTuple, Sequence

from mxnet.gluon import Block, Parameter
from mxnet.optimizer import Optimizer

from . import _mxnet, prefix, symbolic
from .freezing import (
    freeze_parameter,
    gradient_pending,
    hold_statistics,
    is_held,
    remember,
    remembered,
    unfreeze_parameter,
    warn_of_statistics,
)
from .groups import FIELDS
from .optimizers import NameTable, Shipped, check_honoured
from .rewinding import ask
from .targets import Multiplier, check_multiplier

_Numbers = Dict[Parameter, float]

ACTS, ENDED = "acts", "ended"  # what became of a schedule


class Saved(NamedTuple):
    """What a file of states says of the multipliers of one Parameter."""

    lr_mult: float
    wd_mult: float
    grad_req: str  # of a frozen one, the request that it is to have again
    before: float  # of a frozen one, the lr_mult that it had before
    schedules: Mapping[str, str]  # field -> ACTS or ENDED, where there is one to tell of


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
        self._roots: list[Block] = []
        self._schedules: dict[str, dict[Parameter, Multiplier]] = {field: {} for field in FIELDS}
        self._ended: dict[str, set[Parameter]] = {field: set() for field in FIELDS}
        self._unfreeze_after: list[Parameter] = []
        self._await_backward: list[Parameter] = []
        self._was_frozen = False
        self._shipped: Shipped | None = None
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
            self._check(field, numbers[field])
            self._refuse_schedules_on_servers(multipliers)
        self._roots = _outermost([*self._roots, *blocks])
        self.take_over(except_for=given)
        for field, multipliers in given.items():
            self._end(field, multipliers)
            schedules = {param: multiplier for param, multiplier in multipliers.items() if callable(multiplier)}
            self._schedules[field].update(schedules)
            self._ended[field].difference_update(schedules)
        self._write(numbers)
        self._settle(named=given.get("lr_mult", {}), anew=True)

    def take_over(
        self, at_step: bool = False, except_for: Mapping[str, Mapping[Parameter, Multiplier]] | None = None
    ) -> None:
        """Take over what was assigned by another door; ``at_step``, what that unfreezes has no gradient yet.

        What ``except_for`` is about to set anew is passed over, so that it can mend what an error was raised for.
        """
        except_for = except_for or {}
        if self._shipped is not None:
            self._shipped.check_rates(lr=self._optimizer.lr, wd=self._optimizer.wd)
            for schedules in self._schedules.values():
                self._refuse_schedules_on_servers(schedules)
        news = self._table.read()
        for field in FIELDS:
            numbers = {**self._changed(field), **news.get(field, {})}
            news[field] = {param: value for param, value in numbers.items() if param not in except_for.get(field, {})}
            for param, value in news[field].items():
                self._check(field, {param: check_multiplier(value, f"{field} of Parameter {param.name!r}")})
        for field, params in (*news.items(), *except_for.items()):
            self._end(field, params)
        self._write(news)
        moved = self._optimizer.num_update + 1 != self._due
        if moved:
            self._advance()
        if moved or any(news.values()) or any(param.grad_req != "null" for param in self._frozen):
            self._settle(at_step=at_step)

    @property
    def schedules(self) -> Mapping[str, Mapping[Parameter, Multiplier]]:
        """The schedules in force, by field and Parameter."""
        return self._schedules

    def shipped(self) -> None:
        """Note that parameter servers have the optimizer as it is now; nothing that changes will reach them."""
        self._shipped = Shipped(self._params, self._optimizer)
        for schedules in self._schedules.values():
            self._refuse_schedules_on_servers(schedules)

    def check_learning_rate(self, lr: float) -> None:
        """Raise a RuntimeError if a new learning rate cannot reach those that update."""
        if self._shipped is not None:
            self._shipped.check_rates(lr=lr)

    def _check(self, field: str, numbers: Mapping[Parameter, Multiplier]) -> None:
        check_honoured(type(self._optimizer), field, numbers)
        if self._shipped is not None:
            self._shipped.check(field, numbers)

    def _refuse_schedules_on_servers(self, multipliers: Mapping[Parameter, Multiplier]) -> None:
        scheduled = [param.name for param, multiplier in multipliers.items() if callable(multiplier)]
        if self._shipped is not None and scheduled:
            raise RuntimeError(
                f"the schedule of Parameter {scheduled[0]!r} cannot act where parameter servers update: they got the "
                "optimizer once, before the first step. Let the workers update: a synchronous kvstore such as "
                "'dist_sync', dense weights and gradients, update_on_kvstore=False"
            )

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
        waiting = [param for param in self._unfreeze_after if param.lr_mult != 0]
        self._unfreeze_after = []
        for param in waiting:
            unfreeze_parameter(param)
        if any(self._schedules.values()):
            try:
                self._advance()
            except Exception:
                self._due = -1  # this update is made; the next one raises, before it begins
                return
        if waiting or any(self._schedules.values()):
            self._settle(unfrozen=waiting)
        self._due = self._optimizer.num_update + 1

    # -- noticing -----------------------------------------------------------------------------------------------------

    def _changed(self, field: str) -> dict[Parameter, Any]:
        """Return what somebody assigned to Parameters since; it may be anything."""
        now = list(map(attrgetter(field), self.movable))
        if now == self._seen[field]:
            return {}
        return {param: new for param, old, new in zip(self.movable, self._seen[field], now) if old != new}

    def _remember(self) -> None:
        self._seen = {field: list(map(attrgetter(field), self.movable)) for field in FIELDS}
        self._frozen = [param for param in self.movable if param.lr_mult == 0]

    # -- what is saved ------------------------------------------------------------------------------------------------

    @property
    def was_frozen(self) -> bool:
        """Whether a Parameter is frozen or ever was, since when `num_update` counts updates in a way of its own."""
        return self._was_frozen or bool(self._frozen)

    def saved(self, param: Parameter) -> Saved:
        """Return what is to be known of one Parameter to go on from here; a schedule is not saved, but that it acts."""
        grad_req, before = remembered(param) or (param.grad_req, param.lr_mult)
        schedules = {field: ENDED for field in FIELDS if param in self._ended[field]}
        schedules.update((field, ACTS) for field in FIELDS if param in self._schedules[field])
        return Saved(float(param.lr_mult), float(param.wd_mult), grad_req, float(before), schedules)

    def going_on(
        self, saved: Mapping[Parameter, Saved], num_update: int, was_frozen: bool, fields: Sequence[str]
    ) -> Callable[[], None]:
        """Return what makes the Parameters go on from what was saved, in some `fields`, after update `num_update`.

        A schedule that acts here goes on acting, by that clock, unless the file says that it was ended.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            Before anything has changed: a schedule that acted has none here to follow it, or one of this trainer fails.
        """
        for field in fields:
            acted = [p for p, was in saved.items() if was.schedules.get(field) == ACTS]
            missing = [p.name for p in acted if p not in self._schedules[field]]
            if missing:
                raise ValueError(
                    f"the {field} of {', '.join(missing)} went by a schedule when the states were saved, and has none "
                    f"in this trainer: schedules are not saved, so build the trainer with the same ones, or keep the "
                    f"multipliers of this trainer: keep={field!r}"
                )
        numbers: dict[str, _Numbers] = {}
        ended = {field: [p for p, was in saved.items() if was.schedules.get(field) == ENDED] for field in fields}
        for field in FIELDS:
            acting = {p: value for p, value in self._schedules[field].items() if p not in ended.get(field, ())}
            numbers[field] = {p: getattr(was, field) for p, was in saved.items() if field in fields}
            numbers[field].update(evaluate(acting, field, num_update + 1))
            self._check(field, numbers[field])

        def go_on() -> None:
            for param, was in saved.items() if "lr_mult" in fields else ():
                if was.lr_mult == 0:
                    freeze_parameter(param)
                if is_held(param):
                    remember(param, was.grad_req, was.before)
            for field, params in ended.items():
                self._end(field, params)
            self._write(numbers)
            self._due = num_update + 1
            self._settle(anew=True)
            if "lr_mult" in fields:
                self._was_frozen = was_frozen

        return go_on

    # -- schedules and their clock ------------------------------------------------------------------------------------

    def _end(self, field: str, params: Iterable[Parameter]) -> None:
        ended = self._schedules[field].keys() & params
        for param in ended:
            del self._schedules[field][param]
        self._ended[field] |= ended

    def _advance(self) -> None:
        due = self._optimizer.num_update + 1
        numbers = {field: evaluate(self._schedules[field], field, due) for field in FIELDS}
        for field, values in numbers.items():
            self._check(field, values)
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
        self,
        named: Iterable[Parameter] = (),
        unfrozen: Sequence[Parameter] = (),
        at_step: bool = False,
        anew: bool = False,
    ) -> None:
        """Freeze and unfreeze Parameters as their multipliers say, and bring what depends on that up to date.

        Those ``named`` were given a multiplier, as those with a schedule were: above 0 it asks for a gradient even
        where ``grad_req`` was 'null' before. ``unfrozen`` ones have just been. ``at_step``, the backward pass for it
        has been made. ``anew``, look at BatchNorm layers even if nothing is to be frozen or unfrozen.
        """
        named = {*named, *self._schedules["lr_mult"]}
        to_freeze, to_unfreeze = [], []
        for param, seen in zip(self.movable, self._seen["lr_mult"]):
            if param.lr_mult == 0 and not (is_held(param) and param.grad_req == "null"):
                to_freeze.append((param, seen))
            elif param.lr_mult != 0 and (is_held(param) or (param in named and param.grad_req == "null")):
                to_unfreeze.append(param)
        if to_freeze or to_unfreeze or unfrozen or anew:
            moves = bool(to_freeze or to_unfreeze)
            pending = moves and gradient_pending(self.movable)  # before any gradient is let go
            for param, seen in to_freeze:
                freeze_parameter(param, seen)
            for param in to_unfreeze:
                unfreeze_parameter(param, asked_for=param in named)
            if pending or at_step:
                self._await_backward += to_unfreeze
            self._was_frozen = self._was_frozen or bool(to_freeze or to_unfreeze or unfrozen)
            if 0 in map(attrgetter("lr_mult"), self.movable):
                prefix.divide_traces(self._roots)
            asked_late = not (moves or unfrozen)  # asking every Parameter is slow, and seldom of use
            covered = hold_statistics(
                self._roots, lambda: gradient_pending(self.movable) if asked_late else pending and not unfrozen
            )
            if to_freeze or anew:
                covered |= symbolic.on_global_statistics(self._roots)
                warn_of_statistics([p for p in self.movable if p.lr_mult == 0], self._params, covered)
        symbolic.record([param for field in FIELDS for param in self._changed(field)], self._roots)
        self._remember()
        self._table.fill()


def _outermost(blocks: Sequence[Block]) -> list[Block]:
    """Leave out what tells nothing new: a Block below another one, or a slice whose parts all are."""
    below: set[Block] = set()
    kept = []
    for block in dict.fromkeys(blocks):
        parts = [child for _, child in _mxnet.children(block)]
        if block in below or (parts and below.issuperset(parts)):
            continue
        kept.append(block)
        block.apply(below.add)
    return kept


def evaluate(multipliers: Mapping[Parameter, Multiplier], field: str, num_update: int) -> dict[Parameter, float]:
    """Return each multiplier as a number: a schedule as what it says for update ``num_update``, asked once."""
    values: dict[int, float] = {}
    for param, multiplier in multipliers.items():
        if callable(multiplier) and id(multiplier) not in values:
            where = f"{field} of Parameter {param.name!r}, from its schedule at update {num_update},"
            try:
                value = ask(multiplier, num_update)
            except Exception as error:
                raise RuntimeError(f"{where} cannot be had: {error!r}") from error
            number = check_multiplier(value, where)
            if callable(number):
                raise TypeError(f"{where} must be a number, got another schedule")
            values[id(multiplier)] = number
    if not values:
        return dict(multipliers)
    return {param: values[id(value)] if callable(value) else value for param, value in multipliers.items()}
