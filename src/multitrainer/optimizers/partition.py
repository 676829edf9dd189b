"""Which optimizer of a trainer updates which Parameter."""

from __future__ import annotations

import copy
from typing import Any, Iterable, Mapping, Sequence, TypeVar

from mxnet.gluon import Parameter, Trainer
from mxnet.optimizer import Optimizer, Updater

from .. import _mxnet

_Value = TypeVar("_Value")


class Part:
    """The Parameters that one optimizer updates.

    Parameters
    ----------
    group : str or None
        The name of the group whose optimizer it is; None for the trainer's own.
    optimizer : Optimizer
        It knows all Parameters of the trainer by the trainer's indices.

    Attributes
    ----------
    initial_scale : float
        The optimizer's ``rescale_grad`` before the first step, which the trainer replaces at each step.
    """

    def __init__(self, group: str | None, optimizer: Optimizer) -> None:
        self.group = group
        self.optimizer = optimizer
        self.initial_scale = optimizer.rescale_grad

    @property
    def owner(self) -> str:
        """Whose optimizer it is, in words, for texts and messages."""
        return "the trainer" if self.group is None else f"group {self.group!r}"

    def planned_rates(self, ahead: Sequence[int]) -> list[float]:
        """Evaluate the optimizer's own learning rate at later updates, in ascending order; its next one is 0 ahead."""
        # With a copy: schedulers count their calls, and stock Trainer asks them in order.
        scheduler, rate = copy.deepcopy(self.optimizer.lr_scheduler), self.optimizer.lr
        first = self.optimizer.num_update + 1
        return [rate if scheduler is None else scheduler(first + n) for n in ahead]


class Partition:
    """The optimizers of one trainer, and which Parameters each of them updates.

    Parameters
    ----------
    params : sequence of Parameter
        All Parameters of the trainer, in the order of the optimizers' indices.
    optimizer : Optimizer
        The trainer's own, which updates all that no group has an optimizer for.

    Attributes
    ----------
    parts : list of Part
        The trainer's own comes first, and the others in the order in which they were added.
    """

    def __init__(self, params: Sequence[Parameter], optimizer: Optimizer) -> None:
        self._params = params
        self._part_of: dict[Parameter, Part] = {}
        self.parts = [Part(None, optimizer)]

    @property
    def main(self) -> Part:
        """The part of the trainer's own optimizer."""
        return self.parts[0]

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers of all parts."""
        return [part.optimizer for part in self.parts]

    @property
    def updates_made(self) -> int:
        """The number of updates of single Parameters by all optimizers, whichever was updated how often."""
        return sum(map(_mxnet.updates_made, self.optimizers))

    @property
    def is_divided(self) -> bool:
        """Whether a group has an optimizer of its own."""
        return len(self.parts) > 1

    # Attributes are replaced and not changed in place, so a caller can put back what they were.

    def append(self, params: Iterable[Parameter]) -> None:
        """Take in Parameters that were appended to the trainer's; its own optimizer updates them."""
        self._params = [*self._params, *params]
        for optimizer in self.optimizers:
            optimizer.param_dict = dict(enumerate(self._params))

    def add(self, group: str, optimizer: Optimizer, params: Iterable[Parameter]) -> None:
        """Let ``optimizer`` update ``params`` from now on."""
        optimizer.param_dict = dict(enumerate(self._params))
        part = Part(group, optimizer)
        self._part_of = {**self._part_of, **dict.fromkeys(params, part)}
        self.parts = [*self.parts, part]

    def part_of(self, param: Parameter) -> Part:
        """Return the part that a Parameter is in."""
        return self._part_of.get(param, self.main)

    def indices(self, part: Part) -> list[int]:
        """Return the indices of the Parameters of one part."""
        return [i for i, param in enumerate(self._params) if self.part_of(param) is part]

    def divide(self, values: Mapping[Parameter, _Value]) -> list[tuple[Part, Mapping[Parameter, _Value]]]:
        """Divide a dict by the parts that its Parameters are in; a part without any is left out."""
        if not self.is_divided:
            return [(self.main, values)] if values else []
        divided: dict[Part, dict[Parameter, _Value]] = {}
        for param, value in values.items():
            divided.setdefault(self.part_of(param), {})[param] = value
        return list(divided.items())

    def takes_part(self, params: Iterable[Parameter]) -> list[bool]:
        """Tell of each part whether one of ``params`` is in it."""
        if not self.is_divided:
            return [any(True for _ in params)]
        found = {self.part_of(param) for param in params}
        return [part in found for part in self.parts]

    def rescale(self, scale: float, batch_size: Any) -> None:
        """Set ``rescale_grad`` of the groups' optimizers for a step, as stock Trainer sets that of its own.

        ``scale`` is the trainer's: the initial one of its optimizer, unless AMP or Horovod have scaled the gradients.
        """
        for part in self.parts[1:]:
            part.optimizer.rescale_grad = part.initial_scale * (scale / self.main.initial_scale) / batch_size

    def divided(self, updaters: Iterable[Updater]) -> list[Updater]:
        """Return Updaters with the states of ``updaters`` that update each Parameter with the optimizer of its part."""
        return [PartitionedUpdater(self, updater) for updater in updaters]

    def updaters(self, updater: Updater) -> list[tuple[Updater, list[int]]]:
        """Return the Updaters of the parts, of which the trainer's ``updater`` consists, with their indices."""
        if not isinstance(updater, PartitionedUpdater):
            return [(updater, list(range(len(self._params))))]
        return [(updater.of_part(part), self.indices(part)) for part in self.parts]


class PartitionedUpdater(Updater):
    """An Updater that updates each Parameter with the optimizer of its part.

    All parts share the dict of states of ``updater``, which is by the trainer's indices.
    """

    def __init__(self, partition: Partition, updater: Updater) -> None:
        super().__init__(partition.main.optimizer)
        self.states, self.states_synced = updater.states, updater.states_synced
        self._partition = partition

    def __call__(self, index: Any, grad: Any, weight: Any) -> None:
        """Update weights given their gradients and indices; see `mxnet.optimizer.Updater`."""
        if not isinstance(index, (list, tuple)):
            index, grad, weight = (index,), (grad,), (weight,)
        rows = dict(zip(index, zip(index, grad, weight)))
        for part in self._partition.parts:
            own = [rows[i] for i in self._partition.indices(part) if i in rows]
            if own:
                self.of_part(part)(*zip(*own))

    def of_part(self, part: Part) -> Updater:
        """Return stock's Updater for one part."""
        updater = Updater(part.optimizer)
        updater.states, updater.states_synced = self.states, self.states_synced
        return updater


def require_workers_update(trainer: Trainer) -> None:
    """Prepare a stock Trainer for more than one optimizer.

    Raises
    ------
    ValueError
        If a kvstore would have to update, or if the scale of its gradients would be lost.
    """
    reason = _mxnet.why_not_workers(trainer)
    if reason is not None:
        raise ValueError(
            f"groups with an optimizer of their own need workers that update, but {reason}, and a kvstore holds one "
            "optimizer only. Use a synchronous kvstore such as 'device' or 'dist_sync', dense weights and gradients, "
            "and update_on_kvstore=None or False; or give each optimizer a trainer of its own"
        )
    if not trainer.optimizer.rescale_grad:
        raise ValueError(
            "rescale_grad of the trainer's optimizer is 0, so the scale of the gradients of groups with an optimizer "
            "of their own cannot be found; use another, or freeze with lr_mult=0"
        )
    _mxnet.let_workers_update(trainer)
