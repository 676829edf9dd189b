"""Ranks that ``horovodrun`` started."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np

from multitrainer import MultiLRTrainer, ParamGroup

from ..errors import UserError
from .exchange import Ranks


class HorovodRanks(Ranks):
    """The processes that ``horovodrun`` started; a UserError says so if Horovod is not installed."""

    def __init__(self) -> None:
        super().__init__("horovod")
        try:
            from multitrainer import horovod
        except ImportError as error:
            raise UserError(f"--kvstore horovod: {error}") from error
        self._trainer_class = horovod.DistributedMultiLRTrainer
        self._hvd = horovod.hvd
        self._hvd.init()
        self.rank, self.size, self.local_rank = self._hvd.rank(), self._hvd.size(), self._hvd.local_rank()

    def make_trainer(
        self, groups: list[ParamGroup], optimizer: str, settings: dict[str, float], **options: Any
    ) -> MultiLRTrainer:
        """Make a trainer whose gradients Horovod averages."""
        return self._trainer_class(groups, optimizer, settings, **options)

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        """Return the sum that Horovod computes."""
        summed = self._hvd.allreduce(mx.nd.array(numbers), average=False, name=f"sum of {numbers.size}")
        return np.asarray(summed.asnumpy())
