"""What a trainer tells the averages of its weights: which Parameters it is about to update, and that it did."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, Iterable, Iterator

from mxnet.gluon import Parameter, Trainer

from . import _mxnet


class Averages:
    """The averages of the weights of one trainer, for as long as somebody else holds them.

    A copy has the same number of updates and no averages, so that a copied trainer does not copy them: each copied
    `WeightAverage` joins the trainer that was copied with it.

    Attributes
    ----------
    updates : int
        How many updates the trainer has completed, without those that AMP skipped.
    applied : bool
        Whether the weights of the network are averages at the moment.
    """

    def __init__(self) -> None:
        self.updates = 0
        self.applied = False
        self._members: weakref.WeakSet[Any] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Averages.__init__(self)
        self.updates = state["updates"]

    def add(self, average: Any) -> None:
        """Add a `WeightAverage`, whose method `_include` is called before updates."""
        self._members.add(average)

    def check_not_applied(self, call: str) -> None:
        """Raise a RuntimeError if the weights of the network are averages."""
        if self.applied:
            raise RuntimeError(
                f"{call} was called inside `with average.applied():`, where the weights of the network are averages: "
                "leave the block first, which puts the trained weights back"
            )

    def include(self, params: Iterable[Parameter]) -> None:
        """Let the averages include those of ``params`` that the next update changes, with the weights from before it.

        This comes after the weights of all ranks were made equal.
        """
        if self._members:
            updated = [param for param in params if param.grad_req != "null"]
            for average in self._members:
                average._include(updated)

    @contextlib.contextmanager
    def update(self, trainer: Trainer) -> Iterator[None]:
        """Surround one update by ``trainer``, and count it if it is completed.

        Raises
        ------
        RuntimeError
            Before anything has changed, if the weights of the network are averages.
        """
        self.check_not_applied("the trainer's step or update")
        before = self._updates_unless_skipped(trainer)
        yield
        if before is None or before != self._updates_unless_skipped(trainer):
            self.updates += 1

    @staticmethod
    def _updates_unless_skipped(trainer: Trainer) -> int | None:
        """Return the number of updates of single Parameters, or None without AMP, which skips some."""
        return (
            sum(map(_mxnet.updates_made, (trainer.optimizer, *trainer.optimizers.values())))
            if _mxnet.scales_loss(trainer)
            else None
        )
