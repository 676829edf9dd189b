"""`DistributedMultiLRTrainer`: a `MultiLRTrainer` whose gradients Horovod sums. Needs the extra ``horovod``."""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from typing import Any, Iterator, Sequence

from mxnet import nd
from mxnet.gluon import Parameter

from ._mxnet import use_plain_layout
from .freezing.rank_agreement import check_counts, comparison_message
from .groups import resolve
from .trainer import MultiLRTrainer

# Horovod shows the symbols of MXNet to all libraries that are loaded later. Pillow would then call the libjpeg in them,
# not the one that it was built with, and could read no JPEG file.
with contextlib.suppress(ImportError):
    import PIL.Image  # noqa: F401

try:
    import horovod.mxnet as hvd
except ImportError as error:
    raise ImportError(
        f"multitrainer.horovod needs Horovod, built for the MXNet that is installed ({error}). With a C++ compiler and "
        "make, beside multitrainer:\n"
        "  pip install 'cmake<4' cffi cloudpickle packaging psutil pyyaml 'setuptools<81' wheel\n"
        "  HOROVOD_WITH_MXNET=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 "
        "pip install --no-build-isolation 'multitrainer[horovod]'"
    ) from error


# The ranks of a process set create the same trainers in the same order, so each trainer has the same number on all.
_numbers: defaultdict[int, Iterator[int]] = defaultdict(itertools.count)


class _HorovodTrainer(hvd.DistributedTrainer):
    """Adds to Horovod's trainer what `MultiLRTrainer` needs: equal weights on all ranks, own names, and checks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        number = next(_numbers[self._process_set.process_set_id])
        if number and not self._prefix:  # Horovod fails if two trainers exchange gradients under one name at a time
            self._prefix: str = f"trainer{number}."
        self._broadcast_weights(self._params)

    def _check_contexts(self) -> Any:
        contexts = super()._check_contexts()
        if len(contexts) > 1:
            raise ValueError(
                f"the Parameters are on {len(contexts)} contexts, {contexts}: Horovod sums the gradients of the first "
                "only. Run one process for each device, with net.initialize(ctx=mx.gpu(hvd.local_rank()))"
            )
        return contexts

    def _allreduce_grads(self) -> None:
        self._compare_ranks()
        super()._allreduce_grads()

    def _compare_ranks(self, added: Sequence[Parameter] = ()) -> None:
        """Raise an error if ranks train or add different Parameters; Horovod would wait for the others for ever."""
        if self._process_set.size() > 1 and self._process_set.included():
            message = nd.array(comparison_message(self._params, self._steps_in_update(), added))
            name = f"{self._prefix}trained"
            counts = hvd.allreduce(message, average=False, name=name, process_set=self._process_set).asnumpy()
            check_counts(self._params, counts.tolist(), self._process_set.size())

    def _steps_in_update(self) -> int:
        return 1

    def _broadcast_weights(self, params: Sequence[Parameter]) -> None:
        use_plain_layout(params)
        prefix = f"{self._prefix}initial."
        if self._process_set.process_set_id == hvd.global_process_set.process_set_id:
            hvd.broadcast_parameters({param.name: param for param in params}, prefix=prefix)
        elif self._process_set.included():
            for param in params:
                name = prefix + param.name
                hvd.broadcast_(param.data(), min(self._process_set.ranks), name, process_set=self._process_set)


class DistributedMultiLRTrainer(MultiLRTrainer, _HorovodTrainer):
    """A `MultiLRTrainer` for one process per device: Horovod averages gradients, and all ranks make the same update.

    Parameters
    ----------
    params, optimizer, optimizer_params
        As for `MultiLRTrainer`, and the same on all ranks.
    *args, **kwargs
        Passed on to ``horovod.mxnet.DistributedTrainer``: ``compression``, ``gradient_predivide_factor``, ``prefix``,
        ``num_groups``, ``process_set``. There is no kvstore.

    Raises
    ------
    TypeError, ValueError
        As `MultiLRTrainer` does. Also for Parameters on more than one context, for a ``DistributedOptimizer``, and
        before ``hvd.init()``.

    Notes
    -----
    *Weights.* The trainer broadcasts the weights of rank 0 to all ranks; deferred weights when they are initialized.
    ``hvd.broadcast_parameters`` is needed only for weights that are loaded or set afterwards, or belong to no trainer.
    With a ``process_set``, the weights come from its lowest rank, and the Parameters must be initialized before.
    BatchNorm statistics that are not frozen then depend on the batches of each rank; save the network on rank 0.

    *All ranks must agree on what is frozen.* Multipliers of 0, schedules and calls of `set_lr_mult` must be the same
    on every rank before the same step. A frozen layer takes no part in the exchange, and Horovod would wait forever
    for a rank that offers no gradient. Each step therefore compares first, with one number per Parameter, and raises
    RuntimeError on all ranks if they differ. Multipliers above 0 are not compared: if they differ, so will the weights.

    *Several trainers,* such as those of a GAN, exchange their gradients under names of their own: from the second on,
    ``prefix`` is by default the number of the trainer. Create them in the same order on every rank.

    *Batch size.* `step` takes the batch size of one rank, because the gradients are averaged over the ranks.

    *Optimizer states.* `save_states` writes on rank 0 (of the ``process_set``) and does nothing on the other ranks.
    Call `load_states` on every rank.

    Examples
    --------
    >>> import mxnet as mx
    >>> import horovod.mxnet as hvd
    >>> from multitrainer.horovod import DistributedMultiLRTrainer
    >>> hvd.init()
    >>> net = mx.gluon.model_zoo.vision.mobilenet_v2_0_25(classes=5)
    >>> net.initialize(ctx=mx.gpu(hvd.local_rank()) if mx.context.num_gpus() else mx.cpu())
    >>> trainer = DistributedMultiLRTrainer([net, (net.features, 0), (net.output, 10)], 'sgd', {'learning_rate': 0.01})
    >>> trainer.learning_rates
    {'features': 0.0, 'output': 0.1}
    """

    def __init__(
        self,
        params: Any,
        optimizer: Any,
        optimizer_params: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        optimizers = [optimizer, *(group.optimizer for group in resolve(params).groups)]
        if any(isinstance(each, hvd.DistributedOptimizer) for each in optimizers):
            raise TypeError(
                "optimizer must be one that MXNet knows, not a DistributedOptimizer around it: that has divided "
                "rescale_grad by the number of ranks already, and the trainer would divide it again"
            )
        super().__init__(params, optimizer, optimizer_params, *args, **kwargs)

    def _mean_over_ranks(self, value: float) -> float:
        if not self._process_set.included():
            return value
        name = f"{self._prefix}mean"
        return float(hvd.allreduce(nd.array([value]), name=name, process_set=self._process_set).asscalar())

    def _compare_addition(self, added: Sequence[Parameter]) -> None:
        self._compare_ranks(added)

    def _share_added(self, params: Sequence[Parameter]) -> None:
        super()._share_added(params)
        self._broadcast_weights(params)

    def _steps_in_update(self) -> int:
        return self._accumulation.steps_in_update

    def _num_ranks(self) -> int:
        return self._process_set.size()

    def _writes_states(self) -> bool:
        return self._process_set.included() and self._process_set.rank() == 0
