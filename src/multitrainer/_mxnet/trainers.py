"""Trainers: leaving Parameters out of the exchange and the update, appending others, and AMP."""

from __future__ import annotations

import contextlib
from typing import Any, Collection, Iterator, Sequence

from mxnet.gluon import Parameter, Trainer


class _LeftOut:
    """Stands in for a Parameter that is left out: trainers skip a Parameter that requests no gradient."""

    grad_req, _grad = "null", None

    def __init__(self, param: Parameter) -> None:
        self._param = param

    def __getattr__(self, name: str) -> Any:
        return getattr(self._param, name)


def scales_loss(trainer: Trainer) -> bool:
    """Whether ``amp.init_trainer`` was called with ``trainer``, which then skips an update if a gradient overflows."""
    return hasattr(trainer, "_amp_loss_scaler")


@contextlib.contextmanager
def without_parameters(trainer: Trainer, params: Collection[Parameter]) -> Iterator[None]:
    """Leave ``params`` out of the exchange and the updates of ``trainer``, without changing the Parameters.

    The list of Parameters is replaced by one assignment, so an interrupt cannot leave a Parameter half changed.
    """
    everything = trainer._params
    try:
        if params:
            trainer._params = [_LeftOut(param) if param in params else param for param in everything]
        yield
    finally:
        trainer._params = everything


def check_one_horovod_rank(trainer: Trainer) -> None:
    """Raise a RuntimeError if ``trainer`` is one of several Horovod trainers."""
    process_set = getattr(trainer, "_process_set", None)
    if process_set is not None and process_set.size() > 1:
        raise RuntimeError(
            f"{type(trainer).__name__} cannot exchange losses with Horovod's other {process_set.size() - 1} ranks: use "
            "multitrainer.horovod.DistributedMultiLRTrainer"
        )


def append_parameters(trainer: Trainer, params: Sequence[Parameter]) -> None:
    """Append ``params`` to those of ``trainer``; the earlier ones keep their indices.

    Attributes are replaced and not changed in place, so a caller can put back what they were.

    Raises
    ------
    RuntimeError
        If a sparse Parameter belongs to another Trainer.
    """
    for param in params:
        param._set_trainer(trainer)
    added = dict(enumerate(params, len(trainer._params)))
    trainer._param2idx = {**trainer._param2idx, **{param.name: index for index, param in added.items()}}
    trainer._contains_sparse_weight |= any(param._stype != "default" for param in params)
    trainer._contains_sparse_grad |= any(param._grad_stype != "default" for param in params)
    trainer._params_to_init = [*trainer._params_to_init, *params]
    trainer._params = [*trainer._params, *params]
