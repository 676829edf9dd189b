"""Put a trainer and all that it trains back as they were."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

from mxnet import autograd, nd
from mxnet.base import MXNetError
from mxnet.optimizer import Optimizer

from .. import _mxnet
from ..checkpoint import TrainerState
from ..freezing.gradients import request_gradients
from ..freezing.state import before_freezing, mark_frozen, wait_for_backward, waiting_for_backward
from ..groups import FIELDS
from .object_snapshot import ObjectSnapshot
from .random_states import RandomStates


class TrainerSnapshot:
    """Everything that training changes, as it is now.

    These are the values and gradients of all Parameters that the trainer or its Blocks have, optimizers with states and
    counts, AMP's loss scale, multipliers, and the random generators. It takes as much memory as all these arrays.

    Parameters
    ----------
    trainer : MultiLRTrainer
        Its kvstore is set up.
    state : TrainerState
        What it holds.
    """

    def __init__(self, trainer: Any, state: TrainerState) -> None:
        self._trainer, self._state = trainer, state
        self._recording, self._training = autograd.is_recording(), autograd.is_training()
        trainable = state.multipliers.trainable
        self._multipliers = {field: {param: getattr(param, field) for param in trainable} for field in FIELDS}
        self._grad_reqs = {param: param.grad_req for param in trainable}
        self._before_freezing = {param: before_freezing(param) for param in trainable}
        self._waiting = waiting_for_backward(trainable)
        self._objects = ObjectSnapshot([trainer, *state.multipliers.known_parameters()])
        self._random = RandomStates(state.contexts)

    @property
    def optimizers(self) -> list[Optimizer]:
        """All optimizers of the trainer."""
        return self._objects.objects(Optimizer)

    def restore(self) -> None:
        """Put everything back, in the same objects. It can be called again, for example after an interrupt."""
        # An interrupt can end a block of ``autograd.record`` without its end.
        autograd.set_recording(False)
        with contextlib.suppress(MXNetError):  # of an operation that failed; the caller has that error already
            nd.waitall()
        self._restore_multipliers()
        try:
            self._objects.restore()
        finally:
            if self._state.update_on_kvstore:
                _mxnet.set_stored_weights(self._trainer, self._state.multipliers.trainable)
            wait_for_backward(self._waiting)
            self._random.restore()
            autograd.set_recording(self._recording)
            autograd.set_training(self._training)

    def _restore_multipliers(self) -> None:
        changed = {
            field: {param: before for param, before in numbers.items() if getattr(param, field) != before}
            for field, numbers in self._multipliers.items()
        }
        if any(changed.values()):
            self._state.multipliers.assign(changed)
        request_gradients(self._grad_reqs)
        for param, before in self._before_freezing.items():
            if before is not None and before != before_freezing(param):
                mark_frozen(param, *before)


@contextlib.contextmanager
def restored(trainer: Any, state: TrainerState) -> Iterator[TrainerSnapshot]:
    """Put everything back at the end of the block, however it ends."""
    with state.multipliers.held():
        snapshot = TrainerSnapshot(trainer, state)
        try:
            yield snapshot
        finally:
            try:
                snapshot.restore()
            except KeyboardInterrupt:
                snapshot.restore()
                raise
