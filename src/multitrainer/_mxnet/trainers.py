"""Trainers: leaving Parameters out of the exchange and the update."""

from __future__ import annotations

import contextlib
from typing import Any, Collection, Iterator

from mxnet.gluon import Parameter, Trainer


class _LeftOut:
    """Stands in for a Parameter that is left out: trainers skip a Parameter that requests no gradient."""

    grad_req, _grad = "null", None

    def __init__(self, param: Parameter) -> None:
        self._param = param

    def __getattr__(self, name: str) -> Any:
        return getattr(self._param, name)


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
