"""Keep the multipliers of a trainer's Parameters true, by whatever door they come.

The Parameters hold the multipliers. Here it is noticed when they change; then Parameters are frozen and unfrozen,
schedules evaluated, and the optimizer's own table brought in line.
"""

from __future__ import annotations

import contextlib
from operator import attrgetter
from typing import Any, Callable, Collection, Dict, Iterable, Iterator, Mapping, NamedTuple, Sequence

from mxnet.gluon import Block, Parameter, Trainer
from mxnet.optimizer import Optimizer

from .. import _mxnet
from ..freezing.batchnorm import warn_of_statistics
from ..freezing.freezer import freeze_parameter, gradient_pending, hold_blocks, unfreeze_parameters
from ..freezing.gradients import request_gradients, switch_off_gradients
from ..freezing.known_blocks import KnownBlocks
from ..freezing.state import await_backward, awaiting_backward, before, is_frozen, last_change, remember, stop_awaiting
from ..groups.param_group import FIELDS
from ..groups.targets import Multiplier, check_multiplier
from ..symbolic import attributes
from .clock import UpdateClock
from .name_table import NameTable
from .schedules import Schedules, evaluate
from .servers import ServerSnapshot
from .supported import check_supported

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
        self.trainable = [param for param in params if not _mxnet.is_auxiliary(param)]
        self._params = list(params)
        self._blocks = KnownBlocks()
        self._schedules = Schedules()
        self._clock = UpdateClock(optimizer)
        self._servers: ServerSnapshot | None = None
        self.adopt(optimizer)

    def adopt(self, optimizer: Optimizer) -> None:
        """Serve ``optimizer`` from now on; the Parameters' multipliers hold, whatever its table says."""
        self._optimizer = self._clock.optimizer = optimizer
        self._table = NameTable(self._params, optimizer)
        self._remember()

    def assign(self, given: Mapping[str, Mapping[Parameter, Multiplier]], blocks: Iterable[Block] = ()) -> None:
        """Set multipliers, field by field, and freeze or unfreeze at once; ``blocks`` is where they may be found."""
        numbers = {}
        for field, multipliers in given.items():
            numbers[field] = evaluate(multipliers, field, self._clock.next_update)
            self._check(field, numbers[field])
            self._refuse_schedules_on_servers(multipliers)
        self._take_over(except_for=given)
        self._blocks.add(blocks)
        for field, multipliers in given.items():
            self._schedules.assign(field, multipliers)
        self._schedules.evaluated_for = self._clock.next_update
        self._freeze_named(numbers.get("lr_mult", {}))
        self._write(numbers)
        self._settle(named=given.get("lr_mult", {}), look_again=True)

    def sync(self, at_step: bool = False) -> None:
        """Take over what was assigned by another door; ``at_step``, what that unfreezes has no gradient yet."""
        if at_step:
            self._refuse_strangers()
        if self._take_over() or self._is_unsettled():
            self._settle(at_step=at_step)

    def _take_over(self, except_for: Mapping[str, Mapping[Parameter, Multiplier]] | None = None) -> bool:
        """Take over the multipliers that were assigned by another door; return whether there may be new ones.

        What ``except_for`` is about to set is passed over, so that it can correct what an error was raised for.
        """
        except_for = except_for or {}
        if self._servers is not None:
            self._servers.check_optimizer(self._optimizer)
            for schedules in self._schedules.acting.values():
                self._refuse_schedules_on_servers(schedules)
        self._schedules.check_followed(except_for)
        news = self._table.read()
        for field in FIELDS:
            changed, told = self._changed(field), news.get(field, {})
            self._refuse_two_values(field, changed, told, except_for.get(field, {}))
            numbers = {**changed, **told}
            news[field] = {param: value for param, value in numbers.items() if param not in except_for.get(field, {})}
            for param, value in news[field].items():
                self._check(field, {param: check_multiplier(value, f"{field} of Parameter {param.name!r}")})
        for field, params in (*news.items(), *except_for.items()):
            self._schedules.end(field, params)
        self._write(news)
        is_due = bool(self._schedules) and self._schedules.evaluated_for != self._clock.next_update
        if is_due:
            self._follow_schedules()
        return is_due or any(news.values())

    @property
    def schedules(self) -> Mapping[str, Mapping[Parameter, Multiplier]]:
        """The schedules in force, by field and Parameter."""
        return self._schedules.acting

    def shipped(self) -> None:
        """Note that parameter servers have the optimizer as it is now; nothing that changes will reach them."""
        self._servers = ServerSnapshot(self._params, self._optimizer)
        for schedules in self._schedules.acting.values():
            self._refuse_schedules_on_servers(schedules)

    def check_learning_rate(self, lr: float) -> None:
        """Raise a RuntimeError if a new learning rate cannot reach those that update."""
        if self._servers is not None:
            self._servers.check_learning_rate(lr)

    def left_out(self) -> set[Parameter]:
        """Return the Parameters that the next update passes over: frozen, or unfrozen after the backward pass."""
        return {*self._frozen, *awaiting_backward(self.trainable)}

    @contextlib.contextmanager
    def updating(self, trainer: Trainer) -> Iterator[None]:
        """Surround one update of the Parameters; afterwards all is ready for the next forward pass."""
        left_out = self.left_out()
        self._clock.counts_updates = self._clock.counts_updates or bool(left_out)
        if self._servers is not None:
            self._servers.count_update(self._trained(left_out))
        trains = any(True for _ in self._trained(left_out))
        with self._clock.update(trains), _mxnet.leaving_out(trainer, left_out):
            yield
        stop_awaiting(self.trainable)
        if self._schedules:
            try:
                self._follow_schedules()
            except Exception:
                self._schedules.evaluated_for = None  # this update is made; the next one raises, before it begins
                return
            self._settle()

    def _trained(self, left_out: Collection[Parameter]) -> Iterator[Parameter]:
        return (param for param in self.trainable if param not in left_out and param.grad_req != "null")

    def _check(self, field: str, numbers: Mapping[Parameter, Multiplier]) -> None:
        check_supported(type(self._optimizer), field, numbers)
        if self._servers is not None:
            self._servers.check(field, numbers)

    def _refuse_schedules_on_servers(self, multipliers: Mapping[Parameter, Multiplier]) -> None:
        scheduled = [param.name for param, multiplier in multipliers.items() if callable(multiplier)]
        if self._servers is not None and scheduled:
            raise RuntimeError(
                f"the schedule of Parameter {scheduled[0]!r} cannot act if parameter servers update: they got the "
                "optimizer once, before the first step. Let the workers update: a synchronous kvstore such as "
                "'dist_sync', dense weights and gradients, update_on_kvstore=False"
            )

    def _refuse_two_values(
        self, field: str, changed: _Numbers, told: _Numbers, except_for: Collection[Parameter]
    ) -> None:
        """Raise a ValueError if a Parameter and the optimizer's table were both changed: which was last is unknown."""
        for param in changed.keys() & told.keys() - set(except_for):
            if changed[param] != told[param]:
                raise ValueError(
                    f"{field} of Parameter {param.name!r} was set to {changed[param]!r} on the Parameter and to "
                    f"{told[param]!r} by optimizer.set_{field} since the last step, and which came last is unknown: "
                    f"set it once more with trainer.set_{field}"
                )

    def _refuse_strangers(self) -> None:
        strangers = [param.name for param in self._blocks.strangers()]
        if strangers:
            raise ValueError(
                f"{', '.join(strangers[:3])}{', ...' if len(strangers) > 3 else ''} received a gradient and belongs to "
                "no trainer, so it would never be trained: the layer was added to the network after its trainer was "
                "built. Build a new trainer on the network, or give the layer one of its own"
            )

    # -- noticing -----------------------------------------------------------------------------------------------------

    def _changed(self, field: str) -> dict[Parameter, Any]:
        """Return what somebody assigned to Parameters since; it may be anything."""
        now = list(map(attrgetter(field), self.trainable))
        if now == self._seen[field]:
            return {}
        return {param: new for param, old, new in zip(self.trainable, self._seen[field], now) if old != new}

    def _is_unsettled(self) -> bool:
        """Whether somebody else froze or unfroze Parameters since, or requested a gradient that was switched off."""
        return self._settled_at != last_change() or any(param.grad_req != "null" for param in self._switched_off)

    def _remember(self) -> None:
        self._settled_at = last_change()
        self._seen = {field: list(map(attrgetter(field), self.trainable)) for field in FIELDS}
        self._frozen = [param for param, lr_mult in zip(self.trainable, self._seen["lr_mult"]) if lr_mult == 0]
        self._switched_off = [param for param in self._frozen if param.grad_req == "null"]
        self._clock.counts_updates = self._clock.counts_updates or bool(self._frozen)

    # -- what is saved ------------------------------------------------------------------------------------------------

    @property
    def was_frozen(self) -> bool:
        """Whether a Parameter is frozen or ever was, since when `num_update` counts updates in a way of its own."""
        return self._clock.counts_updates

    def saved(self, param: Parameter) -> Saved:
        """Return what is to be known of one Parameter to go on from here; a schedule is not saved, but that it acts."""
        grad_req, lr_mult = before(param) or (param.grad_req, param.lr_mult)
        schedules = {field: ENDED for field in FIELDS if param in self._schedules.ended[field]}
        schedules.update((field, ACTS) for field in FIELDS if param in self._schedules.acting[field])
        return Saved(float(param.lr_mult), float(param.wd_mult), grad_req, float(lr_mult), schedules)

    def prepare_restore(
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
            missing = [p.name for p in acted if p not in self._schedules.acting[field]]
            if missing:
                raise ValueError(
                    f"the {field} of {', '.join(missing)} went by a schedule when the states were saved, and has none "
                    f"in this trainer: schedules are not saved, so build the trainer with the same ones, or keep the "
                    f"multipliers of this trainer: keep={field!r}"
                )
        numbers: dict[str, _Numbers] = {}
        ended = {field: [p for p, was in saved.items() if was.schedules.get(field) == ENDED] for field in fields}
        for field in FIELDS:
            acting = {p: value for p, value in self._schedules.acting[field].items() if p not in ended.get(field, ())}
            numbers[field] = {p: getattr(was, field) for p, was in saved.items() if field in fields}
            numbers[field].update(evaluate(acting, field, num_update + 1))
            self._check(field, numbers[field])

        def go_on() -> None:
            if "lr_mult" in fields:
                self._freeze_as_saved(saved, numbers["lr_mult"])
            for field, params in ended.items():
                self._schedules.end(field, params)
            self._write(numbers)
            self._schedules.evaluated_for = num_update + 1
            self._settle(look_again=True)
            if "lr_mult" in fields:
                self._clock.counts_updates = was_frozen or bool(self._frozen)

        return go_on

    def _freeze_as_saved(self, saved: Mapping[Parameter, Saved], numbers: _Numbers) -> None:
        for param in saved:
            if numbers[param] == 0:
                freeze_parameter(param)
        frozen = {param: was for param, was in saved.items() if is_frozen(param)}
        requests = {param: was.grad_req for param, was in frozen.items() if param.grad_req != "null"}
        request_gradients(requests)
        for param, was in frozen.items():
            remember(param, was.grad_req, was.before)

    # -- schedules ----------------------------------------------------------------------------------------------------

    def _follow_schedules(self) -> None:
        number = self._clock.next_update
        numbers = self._schedules.evaluate(number)
        for field, values in numbers.items():
            self._check(field, values)
        self._write(numbers)
        self._schedules.evaluated_for = number

    # -- freezing -----------------------------------------------------------------------------------------------------

    def _write(self, numbers: Mapping[str, _Numbers]) -> None:
        for field, values in numbers.items():
            for param, number in values.items():
                setattr(param, field, number)

    def _settle(self, named: Iterable[Parameter] = (), at_step: bool = False, look_again: bool = False) -> None:
        """Freeze and unfreeze Parameters as their multipliers say, and bring what depends on that up to date.

        Those ``named`` were given a multiplier, as those with a schedule were: above 0 it asks for a gradient even
        if ``grad_req`` was 'null' before. ``at_step``, the backward pass for it has been made. ``look_again`` at the
        Blocks even if nothing is to be frozen or unfrozen.
        """
        seen = dict(zip(self.trainable, self._seen["lr_mult"]))
        turned = [p for p, lr_mult in seen.items() if not (lr_mult == 0) == (p.lr_mult == 0) == is_frozen(p)]
        named = {*named, *self._schedules.acting["lr_mult"]}
        asked = [param for param in named if param.lr_mult != 0 and param.grad_req == "null" and not is_frozen(param)]
        if turned or asked or look_again or self._is_unsettled():
            pending = at_step or (bool(turned or asked) and gradient_pending(self.trainable))
            self._freeze_and_unfreeze(seen, named)
            if pending:
                await_backward(param for param in (*turned, *asked) if param.lr_mult != 0)
            self._update_blocks(pending, look_again or any(param.lr_mult == 0 for param in turned))
        attributes.record([param for field in FIELDS for param in self._changed(field)], self._blocks.roots)
        self._remember()
        self._table.fill()

    def _freeze_named(self, numbers: _Numbers) -> None:
        """Freeze what is given the multiplier 0 while it still has the one from before, which another may have set."""
        for param, number in numbers.items():
            if number == 0 and isinstance(param.lr_mult, (int, float)) and param.lr_mult > 0:
                freeze_parameter(param)

    def _freeze_and_unfreeze(self, seen: Mapping[Parameter, float], named: Iterable[Parameter]) -> None:
        for param, lr_mult in seen.items():
            if param.lr_mult == 0:
                freeze_parameter(param, lr_mult)
        unfrozen = [param for param in self.trainable if param.lr_mult != 0 and is_frozen(param)]
        unfreeze_parameters(unfrozen)
        wanted = {param: "write" for param in named if param.lr_mult != 0 and param.grad_req == "null"}
        request_gradients(wanted)

    def _update_blocks(self, pending: bool, warns: bool) -> None:
        """Bring gradients, traces and BatchNorms in line with what is frozen."""
        roots = self._blocks.roots
        switch_off_gradients(roots, self.trainable)
        covered = hold_blocks(roots, self.trainable, lambda: pending or gradient_pending(self.trainable))
        if warns:
            covered |= attributes.on_global_statistics(roots)
            warn_of_statistics([param for param in self.trainable if param.lr_mult == 0], self._params, covered)
