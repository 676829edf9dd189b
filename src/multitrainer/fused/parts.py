"""Use the fused update for each optimizer of a trainer that it covers."""

from __future__ import annotations

from typing import Callable, NamedTuple, Sequence

from mxnet.gluon import Parameter
from mxnet.optimizer import Updater

from ..optimizers.partition import Partition
from .update import FusedUpdate


class PreparedUpdate(NamedTuple):
    """One optimizer's update that the fused update covers."""

    params: list[Parameter]
    run: Callable[[], None]


class FusedUpdates:
    """The fused updates of one trainer, one for each of its optimizers.

    Parameters
    ----------
    partition : Partition
        The optimizers.
    """

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._updates: list[FusedUpdate] = []

    def prepare(self, updater: Updater, params: Sequence[Parameter]) -> list[PreparedUpdate]:
        """List the updates that are covered; nothing changes before they are run.

        ``params`` are in the order of the indices; those that request no gradient are not updated.
        """
        updaters = self._partition.updaters(updater)
        self._updates += [FusedUpdate() for _ in updaters[len(self._updates) :]]
        prepared = []
        for update, (own, indices) in zip(self._updates, updaters):
            members = {i: params[i] for i in indices if params[i].grad_req != "null"}
            run = update.prepare(own, members)
            if run is not None:
                prepared.append(PreparedUpdate(list(members.values()), run))
        return prepared
