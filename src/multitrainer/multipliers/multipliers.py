"""Keep the multipliers of a trainer's Parameters in force, however they are assigned."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any, Collection, Container, Iterable, Iterator, Mapping, Sequence

from mxnet.gluon import Block, Parameter, Trainer
from mxnet.optimizer import Optimizer

from .. import _mxnet
from ..freezing.freezer import Freezer
from ..freezing.stale_traces import warn_of_old_traces
from ..freezing.state import before_freezing
from ..groups import FIELDS
from ..groups.targets import Multiplier, check_multiplier
from ..optimizers.partition import Partition
from ..symbolic import attributes
from .clock import UpdateClock
from .saved import ACTS, ENDED, PreparedRestore, SavedMultipliers
from .schedules import Schedules, evaluate
from .servers import NoServers, ServerSnapshot
from .supported import check_supported
from .tracker import ChangeTracker, Numbers

_Given = Mapping[str, Mapping[Parameter, Multiplier]]


class Multipliers:
    """The multipliers of the Parameters of one trainer.

    The Parameters themselves hold the multipliers. This class calls, in order, the objects that notice changes, freeze,
    count updates and evaluate schedules.

    Parameters
    ----------
    params : sequence of Parameter
        All of the trainer, in the order of the optimizers' indices.
    trainable : sequence of Parameter
        Those that a multiplier can move: all but statistics and constants.
    partition : Partition
        The trainer's optimizers.
    inherited : dict of str to dict of Parameter to float
        By field, the multipliers that Parameters get before any group sets one; see `inherited_multipliers`.

    Attributes
    ----------
    trainable : list of Parameter
        Those that a multiplier can move now.
    """

    def __init__(
        self,
        params: Sequence[Parameter],
        trainable: Sequence[Parameter],
        partition: Partition,
        inherited: Mapping[str, Numbers],
    ) -> None:
        self._write(inherited)
        self._params, self.trainable = list(params), list(trainable)
        self._freezer = Freezer(self._params, self.trainable)
        self._schedules = Schedules()
        self._servers = NoServers()
        self._partition = partition
        self._clock = UpdateClock(partition)
        self._clock.counts_updates = self._freezer.freezes
        self._tracker = self._new_tracker()
        self._exchanged = False  # whether the gradients of the next update were exchanged apart from it
        self._held = False

    def use_optimizer(self, optimizer: Optimizer) -> None:
        """Use another optimizer of the trainer's own; the Parameters' multipliers hold, whatever its table says."""
        self._partition.main.optimizer = optimizer
        self._tracker = self._new_tracker()

    def _new_tracker(self) -> ChangeTracker:
        return ChangeTracker(self._params, self.trainable, self._partition.optimizers)

    @property
    def schedules(self) -> _Given:
        """The schedules in force, by field and Parameter."""
        return self._schedules.acting

    # -- setting and noticing multipliers ------------------------------------------------------------------------------

    def start(
        self, given: _Given, blocks: Iterable[Block], companions: Mapping[Parameter, Sequence[Parameter]]
    ) -> None:
        """Set the multipliers of the groups, and write all multipliers to the symbols that stand for Parameters.

        `check_initial` has checked them, and nothing was assigned since.
        """
        attributes.share_variables(blocks)
        self._freezer.add_companions(companions)
        self._set(given, self._evaluate(given), blocks)
        attributes.write_to_symbols(self.trainable, blocks)

    def add_parameters(
        self, params: Sequence[Parameter], trainable: Sequence[Parameter], inherited: Mapping[str, Numbers]
    ) -> None:
        """Take in Parameters that were appended to the trainer's; call `sync` before and `start` after it.

        From then on ``num_update`` counts updates, for the new Parameters count from 0 and may be the first of one.

        Raises
        ------
        ValueError
            While the multipliers are `held`.
        """
        if self._held:
            raise ValueError(
                f"train_step must not add Parameters to the trainer, got {params[0].name!r}: call trainer.add before "
                "find_learning_rate"
            )
        self._write(inherited)
        self._params, self.trainable = [*self._params, *params], [*self.trainable, *trainable]
        self._freezer.add_parameters(self._params, self.trainable, self._exchanged)
        self._tracker = self._new_tracker()
        self._clock.counts_updates = self._clock.counts_updates or self._clock.has_updates

    @property
    def state_holders(self) -> list[Any]:
        """The objects whose attributes `add_parameters` and `start` replace."""
        divided = [self._partition, *self._partition.parts, *self._partition.optimizers]
        return [self, self._freezer, self._freezer.blocks, self._schedules, self._clock, *divided]

    @property
    def blocks(self) -> list[Block]:
        """The outermost Blocks that the trainer knows."""
        return self._freezer.blocks.roots

    def assign(self, given: _Given, blocks: Iterable[Block] = ()) -> None:
        """Set multipliers, by field and Parameter, and freeze or unfreeze at once; `blocks` may hold the Parameters.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            Before anything has changed: a multiplier that the optimizer does not support or that cannot reach the
            parameter servers, a schedule that fails, or an earlier assignment that cannot be used.
        """
        numbers = self._evaluate(given)
        for field, multipliers in given.items():
            self._check(field, numbers[field])
            self._servers.check_schedules(multipliers)
        self._read_assignments(overridden=given)
        self._set(given, numbers, blocks)

    def _evaluate(self, given: _Given) -> dict[str, Numbers]:
        return {field: evaluate(multipliers, field, self._clock.next_update) for field, multipliers in given.items()}

    def _set(self, given: _Given, numbers: Mapping[str, Numbers], blocks: Iterable[Block]) -> None:
        self._freezer.add_blocks(blocks)
        for field, multipliers in given.items():
            self._schedules.assign(field, multipliers)
        self._schedules.evaluated_for = self._clock.next_update
        self._freezer.freeze_before_assignment(numbers.get("lr_mult", {}))
        self._write(numbers)
        self._apply(requested=given.get("lr_mult", {}))

    def sync(self) -> None:
        """Act on the multipliers that were assigned to Parameters or to the optimizer since the last step."""
        self._sync(backward_done=False)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the multipliers as they are while a learning rate is searched: schedules stand still, and go on later.

        Adding Parameters is an error, because a kvstore cannot forget them.
        """
        self.sync()
        schedules, self._schedules = self._schedules, Schedules()
        self._held = True
        try:
            yield
        finally:
            self._schedules, self._held = schedules, False

    def departed(self) -> set[Parameter]:
        """Look for the Parameters that left the Blocks that the trainer knows."""
        self._freezer.blocks.refresh()
        return set(self._freezer.blocks.departed(self.trainable))

    def known_parameters(self) -> list[Parameter]:
        """List all Parameters of the trainer and of the Blocks that it knows, each once."""
        in_blocks = (block.collect_params().values() for block in self._freezer.blocks.roots)
        return list(dict.fromkeys([*self._params, *itertools.chain.from_iterable(in_blocks)]))

    def _sync(self, backward_done: bool) -> None:
        if self._read_assignments(overridden={}) or not self._freezer.is_up_to_date:
            self._apply(backward_done=backward_done)

    def _read_assignments(self, overridden: _Given) -> bool:
        """Check and take over what was assigned since the last step, except to ``overridden``; tell whether any was."""
        self._servers.check_optimizer(self._partition.main.optimizer)
        for schedules in self._schedules.acting.values():
            self._servers.check_schedules(schedules)
        self._schedules.check_owned(overridden)
        changes = {field: numbers for field, numbers in self._tracker.changes(overridden).items() if numbers}
        for field, numbers in changes.items():
            self._check(field, {param: check_multiplier(number, field) for param, number in numbers.items()})
        for field, params in (*changes.items(), *overridden.items()):
            self._schedules.end(field, params)
        self._write(changes)
        is_due = bool(self._schedules) and self._schedules.evaluated_for != self._clock.next_update
        if is_due:
            self._follow_schedules()
        return is_due or bool(changes)

    def _follow_schedules(self) -> None:
        numbers = self._schedules.evaluate(self._clock.next_update)
        for field, values in numbers.items():
            self._check(field, values)
        self._write(numbers)
        self._schedules.evaluated_for = self._clock.next_update

    def _check(self, field: str, numbers: Mapping[Parameter, Multiplier]) -> None:
        for part, own in self._partition.divide(numbers):
            check_supported(type(part.optimizer), field, own, part.group)
        self._servers.check(field, numbers)

    def _write(self, numbers: Mapping[str, Numbers]) -> None:
        for field, values in numbers.items():
            for param, number in values.items():
                setattr(param, field, number)

    def _apply(self, requested: Iterable[Parameter] = (), backward_done: bool = False) -> None:
        """Bring everything in line with the multipliers of the Parameters; see `Freezer.apply`."""
        requested = {*requested, *self._schedules.acting["lr_mult"]}
        self._freezer.apply(self._tracker.previous("lr_mult"), requested, backward_done)
        attributes.write_to_symbols(self._tracker.changed_parameters(), self._freezer.blocks.roots)
        self._tracker.remember()
        self._clock.counts_updates = self._clock.counts_updates or self._freezer.freezes

    # -- steps ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def update(self, trainer: Trainer, collected: Container[Parameter] = ()) -> Iterator[set[Parameter]]:
        """Surround one update by ``trainer``; afterwards everything is ready for the next forward pass.

        Parameters
        ----------
        trainer : Trainer
            While it updates, it lacks the Parameters that are left out.
        collected : container of Parameter
            Those of which earlier steps collected gradients for this update.

        Yields
        ------
        set of Parameter
            Those that left the network, and so may have a stale gradient.
        """
        left_out = self._begin_step(trainer, collected)
        warn_of_old_traces(self.trainable)
        self._servers.count_update(self._trained(left_out))
        trains = self._partition.takes_part(self._trained(left_out))
        # An optimizer that updates nothing would not count by itself, and the trainer's own counts for the schedules.
        is_partial = bool(left_out) or (self._partition.is_divided and not all(trains))
        self._clock.counts_updates = self._clock.counts_updates or is_partial
        with self._clock.update(trains), _mxnet.without_parameters(trainer, left_out):
            yield self._freezer.departed()
        self._exchanged = False
        self._freezer.end_step(_mxnet.store_updates(trainer))
        self._advance_schedules()

    @contextlib.contextmanager
    def collect(self, trainer: Trainer, collected: Container[Parameter] = ()) -> Iterator[set[Parameter]]:
        """Surround a step by ``trainer`` that keeps its gradients for a later update; see `update`."""
        left_out = self._begin_step(trainer, collected)
        warn_of_old_traces(self.trainable)
        with _mxnet.without_parameters(trainer, left_out):
            yield self._freezer.departed()
        self._freezer.end_step()

    @contextlib.contextmanager
    def exchange(self, trainer: Trainer) -> Iterator[None]:
        """Surround an exchange of gradients by ``trainer`` that is made apart from the update."""
        with _mxnet.without_parameters(trainer, self._begin_step(trainer)):
            yield
        self._exchanged = True

    def _begin_step(self, trainer: Trainer, collected: Container[Parameter] = ()) -> set[Parameter]:
        """Act on assignments; return the Parameters that the step leaves out."""
        self._freezer.check_no_unowned_parameter()
        self._sync(backward_done=True)
        self._freezer.use_departed(_mxnet.store_updates(trainer))
        return self._freezer.left_out(collected)

    def _trained(self, left_out: Collection[Parameter]) -> Iterator[Parameter]:
        return (param for param in self.trainable if param not in left_out and param.grad_req != "null")

    def _advance_schedules(self) -> None:
        """Set the multipliers of the next update."""
        if not self._schedules:
            return
        try:
            self._follow_schedules()
        except Exception:
            self._schedules.evaluated_for = None  # this update is complete; the next one raises before it begins
            return
        self._apply()

    # -- parameter servers ---------------------------------------------------------------------------------------------

    def sent_to_servers(self) -> None:
        """Note that parameter servers got the optimizer as it is now, and that no later change reaches them."""
        self._servers = ServerSnapshot(self._params, self._partition.main.optimizer)
        for schedules in self._schedules.acting.values():
            self._servers.check_schedules(schedules)

    def check_learning_rate(self, lr: float) -> None:
        """Raise a RuntimeError if parameter servers update and have another learning rate."""
        self._servers.check_learning_rate(lr)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    @property
    def was_frozen(self) -> bool:
        """Whether a Parameter was ever frozen, left out or added late; since then, ``num_update`` counts updates."""
        return self._clock.counts_updates

    def saved(self, param: Parameter) -> SavedMultipliers:
        """Describe one Parameter for a checkpoint; of a schedule, only whether it acts or has ended."""
        grad_req, lr_mult = before_freezing(param) or (param.grad_req, param.lr_mult)
        schedules = {field: ENDED for field in FIELDS if param in self._schedules.ended[field]}
        schedules.update((field, ACTS) for field in FIELDS if param in self._schedules.acting[field])
        return SavedMultipliers(float(param.lr_mult), float(param.wd_mult), grad_req, float(lr_mult), schedules)

    def prepare_restore(
        self, saved: Mapping[Parameter, SavedMultipliers], num_update: int, was_frozen: bool, fields: Sequence[str]
    ) -> PreparedRestore:
        """Check what is to be restored after update ``num_update``, in some of the ``fields``; change nothing.

        A schedule that acts in this trainer goes on, by that number, unless the file says that it was ended.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            If a Parameter had a schedule that this trainer does not have, or a schedule of this trainer fails.
        """
        numbers: dict[str, Numbers] = {}
        ended = {field: {p for p, was in saved.items() if was.schedules.get(field) == ENDED} for field in fields}
        for field in fields:
            self._check_has_schedules(field, [p for p, was in saved.items() if was.schedules.get(field) == ACTS])
        for field in FIELDS:
            acting = {p: value for p, value in self._schedules.acting[field].items() if p not in ended.get(field, ())}
            numbers[field] = {p: getattr(was, field) for p, was in saved.items() if field in fields}
            numbers[field].update(evaluate(acting, field, num_update + 1))
            self._check(field, numbers[field])
        return PreparedRestore(saved, numbers, ended, num_update, was_frozen, fields)

    def _check_has_schedules(self, field: str, params: Iterable[Parameter]) -> None:
        missing = [param.name for param in params if param not in self._schedules.acting[field]]
        if missing:
            raise ValueError(
                f"the {field} of {', '.join(missing)} went by a schedule when the states were saved, and has none "
                f"in this trainer: schedules are not saved, so build the trainer with the same ones, or keep the "
                f"multipliers of this trainer: keep={field!r}"
            )

    def restore(self, prepared: PreparedRestore) -> None:
        """Set the multipliers that `prepare_restore` checked, and freeze or unfreeze at once."""
        numbers, restores_lr_mult = prepared.numbers, "lr_mult" in prepared.fields
        if restores_lr_mult:
            self._freezer.restore(
                {p: (numbers["lr_mult"][p], was.grad_req, was.before) for p, was in prepared.saved.items()}
            )
        for field, params in prepared.ended.items():
            self._schedules.end(field, params)
        self._write(numbers)
        self._schedules.evaluated_for = prepared.num_update + 1
        self._freezer.recheck_blocks()
        self._apply()
        if restores_lr_mult:
            self._clock.counts_updates = prepared.was_frozen or self._freezer.freezes
