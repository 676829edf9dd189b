"""`MultiLRTrainer`: a drop-in `gluon.Trainer` whose multipliers hold."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any, Collection, ContextManager, Iterable, Iterator, Mapping, Sequence, SupportsFloat

from mxnet import nd
from mxnet.gluon import Parameter, Trainer
from mxnet.optimizer import Optimizer, Updater

from . import _mxnet, checkpoint, cores, report
from .adding import check_addition, undone_on_error
from .averages import Averages
from .checkpoint import archive
from .freezing.rank_agreement import StoreComparison
from .fused.parts import FusedUpdates
from .gradients.accumulation import NOTHING, Accumulation
from .gradients.clipping import GradientClipping
from .gradients.update_ratios import UpdateMeasurement, ratio
from .groups import ParamGroup, resolve, resolve_addition, resolve_assignment
from .groups.targets import Multiplier, describe, known_name
from .multipliers.initial import check_initial, inherited_multipliers
from .multipliers.multipliers import Multipliers
from .optimizers.group_optimizers import GroupOptimizer, read_group_optimizers
from .optimizers.partition import Partition, require_workers_update


class MultiLRTrainer(Trainer):
    """Train several Blocks at once, each with its own learning-rate multiplier; 0 freezes.

    Parameters
    ----------
    params : Block, ParameterDict, dict, list or tuple
        Any of: what `gluon.Trainer` takes; a Block; a list whose entries are targets, ``(target, lr_mult)`` pairs or
        `ParamGroup`; a dict of target to lr_mult. A target is a Block, a ParameterDict, a dict of name to Parameter, a
        Parameter, or a list of these. A multiplier is a finite number >= 0, or a schedule, a callable ``num_update ->
        number``. A later entry refines an earlier one that contains it. Name the whole network first: then no layer
        is forgotten, and a hybridized network is traced again when freezing requires it.
    optimizer : str or mxnet.optimizer.Optimizer
        As `gluon.Trainer` takes it. It updates all Parameters whose group has no optimizer of its own.
    optimizer_params : dict, optional
        As `gluon.Trainer` takes it.
    *args, **kwargs
        Passed on to `gluon.Trainer`: ``kvstore``, ``compression_params``, ``update_on_kvstore``.
    max_grad_norm : float, optional
        If the norm of the gradients of all trained Parameters together is larger, all are scaled down to it for the
        update; see `max_grad_norm`.
    accumulate : int, default 1
        The number of calls of `step` that make one update, with the sum of their gradients; see `accumulate`.

    Raises
    ------
    TypeError, ValueError
        Before anything has changed, naming the entry: something that is not a target or not a multiplier, an empty
        target, two entries that disagree, two Parameters of one name, a multiplier that the optimizer does not support
        (AdaDelta has no learning rate to multiply), a ``max_grad_norm`` that is not a finite number above 0, an
        optimizer of a group that cannot be created, or either of them if a kvstore has to update.

    Notes
    -----
    A multiplier is the Parameter's own ``lr_mult`` or ``wd_mult``, so ``param.lr_mult = x``,
    ``collect_params().setattr('lr_mult', x)`` and ``trainer.optimizer.set_lr_mult({name: x})`` work as well as
    `set_lr_mult`, and take effect at the next `step`. The optimizer looks up the multiplier of an index in
    ``param_dict``, then in ``lr_mult`` by index, then in ``lr_mult`` by the name in ``idx2name``
    (``Optimizer._get_lrs`` in mxnet/optimizer/optimizer.py). The first is lost when the optimizer is pickled; the
    trainer keeps the others filled.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import MultiLRTrainer
    >>> net = mx.gluon.model_zoo.vision.mobilenet_v2_0_25(classes=5)
    >>> net.initialize()
    >>> trainer = MultiLRTrainer([net, (net.features, 0.1), (net.output, 10)], 'sgd', {'learning_rate': 0.01})
    >>> trainer.learning_rates
    {'features': 0.001, 'output': 0.1}
    >>> trainer.set_lr_mult({net.features: 0})
    >>> trainer.learning_rates
    {'features': 0.0, 'output': 0.1}
    """

    leaves_out_frozen = True  # read by `freeze`: this trainer leaves out frozen Parameters by itself

    def __init__(
        self,
        params: Any,
        optimizer: Any,
        optimizer_params: dict[str, Any] | None = None,
        *args: Any,
        max_grad_norm: float | None = None,
        accumulate: int = 1,
        **kwargs: Any,
    ) -> None:
        self._accumulation = Accumulation(accumulate)
        resolved = resolve(params)
        self._clipping = GradientClipping(max_grad_norm)
        own = read_group_optimizers(resolved, optimizer, optimizer_params)
        inherited = inherited_multipliers(resolved, optimizer, own)
        check_initial(resolved, inherited, optimizer, optimizer_params, own)
        self._construct_stock_trainer(resolved.parameters, own, optimizer, optimizer_params, *args, **kwargs)
        # Without the Blocks: one that was hybridized and called could not be copied with the trainer.
        self._resolved = resolved._replace(blocks=())
        self._fused = FusedUpdates(self._partition)
        self._averages = Averages()
        self._measurement = UpdateMeasurement()
        self._multipliers = Multipliers(self._params, resolved.trainable, self._partition, inherited)
        self._multipliers.start(resolved.assignments, resolved.blocks, resolved.companions)
        cores.note_idle_cores(context for param in self._params for context in _mxnet.contexts(param))

    def _construct_stock_trainer(
        self, params: Sequence[Parameter], own: Sequence[GroupOptimizer], optimizer: Any, *args: Any, **kwargs: Any
    ) -> None:
        self._comparison: StoreComparison | None = None
        created = [each.create(params) for each in own]
        with _mxnet.restoring_owners(params, optimizer):
            # A dict by position: Horovod sorts a list, which Parameters do not allow; sorted keys keep this order.
            super().__init__(dict(enumerate(params)), optimizer, *args, **kwargs)
            self._clipping.check(self)
            if own:
                require_workers_update(self)
        self._creation_number = _mxnet.number_of_trainer(self)
        self._partition = Partition(self._params, self._optimizer)
        self._divide(own, created)

    def _divide(self, own: Sequence[GroupOptimizer], created: Sequence[Optimizer]) -> None:
        """Let optimizers of groups update the Parameters of these."""
        for each, optimizer in zip(own, created):
            self._partition.add(each.group, optimizer, each.params)
        if own:
            self._updaters: list[Updater] = self._partition.divided(self._updaters)

    @property
    def groups(self) -> tuple[ParamGroup, ...]:
        """The groups in the order given, each with its ``params`` as a dict of name to Parameter."""
        return self._resolved.groups

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers that groups have of their own, by the name of the group; `optimizer` is the trainer's.

        Examples
        --------
        >>> import mxnet as mx
        >>> from multitrainer import MultiLRTrainer, ParamGroup
        >>> net = mx.gluon.nn.HybridSequential(prefix='net_')
        >>> net.add(mx.gluon.nn.Dense(4, in_units=2), mx.gluon.nn.Dense(1, in_units=4))
        >>> net.initialize()
        >>> head = ParamGroup(net[1], name='head', optimizer='adam', optimizer_params={'learning_rate': 0.001})
        >>> trainer = MultiLRTrainer([net, head], 'sgd', {'learning_rate': 0.1, 'momentum': 0.9})
        >>> trainer.optimizers['head'].set_learning_rate(0.002)
        >>> trainer.learning_rates
        {'net': 0.1, 'head': 0.002}
        """
        return {part.group: part.optimizer for part in self._partition.parts if part.group is not None}

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rate of each group's next update, by the name of the group: for loggers.

        A group whose Parameters no longer share one multiplier has an entry for each.
        """
        return {row.name: row.learning_rate for row in self._rows(by=("lr_mult",))}

    @property
    def max_grad_norm(self) -> float | None:
        """The largest norm that the gradients of one update may have, all of them together; None for no clipping.

        Larger gradients are multiplied by ``max_grad_norm / (norm + 1e-6)`` for the update, as by PyTorch's
        ``clip_grad_norm_``. The norm is that of the gradients as the optimizer uses them: summed over contexts and
        workers, divided by the batch size and by AMP's loss scale. Frozen Parameters are left out. The optimizer's own
        ``clip_gradient`` acts after that. The gradients in ``param.grad()`` stay as they are.

        A norm that is infinite or not a number clips nothing: the update is what it is without clipping. AMP
        skips such an update.

        It can be set at any time. If it is set when the trainer is built, or before the first step, the trainer updates
        by itself also on several contexts, and not the kvstore.

        Raises
        ------
        TypeError, ValueError
            When it is set: not a finite number above 0 and not None; or parameter servers update, weights are
            row_sparse, or ``update_on_kvstore=True`` was given.
        RuntimeError
            When it is set: the kvstore has begun to update.

        Examples
        --------
        >>> import mxnet as mx
        >>> from multitrainer import MultiLRTrainer
        >>> net = mx.gluon.nn.Dense(1, in_units=2, use_bias=False, prefix='fc_')
        >>> net.initialize(mx.init.One())
        >>> trainer = MultiLRTrainer(net, 'sgd', {'learning_rate': 1}, max_grad_norm=1)
        >>> with mx.autograd.record():
        ...     loss = net(mx.nd.array([[3, 4]])).sum()
        >>> loss.backward()
        >>> trainer.step(1)
        >>> trainer.total_grad_norm()
        5.0
        >>> net.weight.data().asnumpy().round(3)  # one minus a fifth of the gradient
        array([[0.4, 0.2]], dtype=float32)
        """
        return self._clipping.max_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        clipping = GradientClipping(value)
        clipping.check(self)
        self._clipping.max_norm = clipping.max_norm

    def grad_norms(self) -> dict[str, float]:
        """Return the norm of each group's gradients in the last update, before clipping, by the name of the group.

        The names are those of `learning_rates`. A norm is that of the gradients as the optimizer uses them, divided by
        the batch size and by AMP's loss scale; see `max_grad_norm`. Parameters that were frozen, or that
        ``ignore_stale_grad`` left out, count as 0.

        Without `max_grad_norm`, the gradients are read when this is called: call it after the `step` that updated and
        before the gradients change. With `accumulate`, that is the call of `step` that made the update.

        Raises
        ------
        RuntimeError
            If nothing was updated yet; if the gradients of the last update are gone, as after a later `step`; or if
            parameter servers update, because they alone have the sums.

        Examples
        --------
        >>> import mxnet as mx
        >>> from multitrainer import MultiLRTrainer
        >>> net = mx.gluon.nn.Dense(1, in_units=2, prefix='fc_')
        >>> net.initialize()
        >>> trainer = MultiLRTrainer([net, (net.bias, 2)], 'sgd')
        >>> with mx.autograd.record():
        ...     loss = net(mx.nd.array([[3, 4]])).sum()
        >>> loss.backward()
        >>> trainer.step(1)
        >>> trainer.grad_norms()
        {'fc': 5.0, 'fc_bias': 1.0}
        """
        gradients = self._clipping.last_gradients(self)
        return {name: gradients.norm(members) for name, members in self._members_of_groups().items()}

    def total_grad_norm(self) -> float:
        """Return the norm of all gradients together in the last update, before clipping; see `grad_norms`."""
        return self._clipping.last_gradients(self).norm()

    def update_ratios(self, measure: bool = True) -> dict[str, float]:
        """Return the norm of each group's last update over the norm of its weights before it, by name of the group.

        It shows which multiplier a group needs: about 1e-3 is usual, and a group that is far below hardly learns. The
        names are those of `learning_rates`; a frozen group has 0.

        Parameters
        ----------
        measure : bool, default True
            Whether later updates are measured. The first call begins with that and returns an empty dict. While it is
            on, the trainer keeps two copies of the trained weights; False ends it and drops them.

        Returns
        -------
        dict of str to float
            Empty until an update was measured. If all weights of a group were 0, as biases are at first, its
            ratio is 1, or 0 if they still are.

        Raises
        ------
        ValueError
            If weights are row_sparse, because only the kvstore has them.

        References
        ----------
        A. Karpathy, CS231n, "Ratio of weights:updates": https://cs231n.github.io/neural-networks-3/#ratio

        Examples
        --------
        >>> import mxnet as mx
        >>> from multitrainer import MultiLRTrainer
        >>> net = mx.gluon.nn.Dense(1, in_units=2, prefix='fc_')
        >>> net.initialize(mx.init.One())
        >>> trainer = MultiLRTrainer([net, (net.bias, 0)], 'sgd', {'learning_rate': 0.25})
        >>> trainer.update_ratios()
        {}
        >>> with mx.autograd.record():
        ...     loss = net(mx.nd.array([[1, 1]])).sum()
        >>> loss.backward()
        >>> trainer.step(1)
        >>> trainer.update_ratios()
        {'fc': 0.25, 'fc_bias': 0.0}
        """
        measured = self._measurement.squares()
        self._measurement.switch(measure, self)
        if measured is None:
            return {}
        return {name: ratio(members, measured) for name, members in self._members_of_groups().items()}

    def summary(self) -> str:
        """Return the table of groups: parameters, values, multipliers, effective learning rate, weight decay, state.

        Examples
        --------
        >>> import mxnet as mx
        >>> from multitrainer import MultiLRTrainer
        >>> net = mx.gluon.nn.HybridSequential(prefix='net_')
        >>> net.add(mx.gluon.nn.Dense(4, in_units=2), mx.gluon.nn.Dense(1, in_units=4))
        >>> net.initialize()
        >>> trainer = MultiLRTrainer([net, (net[0], 0)], 'sgd', {'learning_rate': 0.1, 'wd': 1e-4})
        >>> print(trainer.summary())
        group  parameters  values  lr_mult  learning rate      wd  state
        net             2       5        1            0.1  0.0001  trained
        0               2      12        0              0  0.0001  frozen
        """
        return report.format_table(self._rows(departed=self._multipliers.departed()))

    def explain(self, name: str) -> str:
        """Explain the rates of a parameter: which entries gave its multipliers, and what they come to.

        Parameters
        ----------
        name : str
            The exact name of a parameter.

        Returns
        -------
        str
            For learning rate and weight decay: the value at the next update, the multiplier, the entry that set it and
            the entry that this one refines; or that it was set later, or is the Parameter's own.

        Raises
        ------
        ValueError
            If no parameter of this trainer has that name, with the closest ones.

        Examples
        --------
        >>> import mxnet as mx
        >>> from multitrainer import MultiLRTrainer
        >>> net = mx.gluon.nn.HybridSequential(prefix='net_')
        >>> with net.name_scope():
        ...     net.add(mx.gluon.nn.Dense(4, in_units=2), mx.gluon.nn.Dense(1, in_units=4))
        >>> net.initialize()
        >>> trainer = MultiLRTrainer([(net, 0.5), (net[0], 0.1)], 'sgd', {'learning_rate': 0.1, 'wd': 1e-4})
        >>> print(trainer.explain('net_dense0_weight'))
        net_dense0_weight: 4 x 2, trained
          learning rate 0.01 = 0.1 * lr_mult 0.1
            0.1 by entry 1 '0', which refines entry 0 'net' (0.5)
          weight decay 0.0001 = 0.0001 * wd_mult 1
            the default; no entry sets it
        """
        by_name = {param.name: param for param in self._params}
        param = by_name[known_name(name, by_name, "explain")]
        schedules, departed = self._multipliers.schedules, self._multipliers.departed()
        return report.explain(self._resolved, param, self._partition, schedules, departed)

    def __repr__(self) -> str:
        if "_multipliers" not in vars(self):  # construction failed, and a debugger shows the object
            return object.__repr__(self)
        trainable = self._multipliers.trainable
        own = "".join(
            f"{name!r}: {type(optimizer).__name__}, learning_rate={optimizer.learning_rate:g}, "
            for name, optimizer in self.optimizers.items()
        )
        if self.max_grad_norm is not None:
            own += f"max_grad_norm={self.max_grad_norm:g}, "
        if self.accumulate != 1:
            own += f"accumulate={self.accumulate}, "
        return (
            f"{type(self).__name__}({type(self._optimizer).__name__}, learning_rate={self.learning_rate:g}, {own}"
            f"{len(self.groups)} groups, {len(trainable)} parameters, {sum(p.lr_mult == 0 for p in trainable)} frozen)"
        )

    def set_lr_mult(self, multipliers: Mapping[Any, Multiplier]) -> None:
        """Set learning-rate multipliers; Parameters that are not named keep theirs.

        Parameters
        ----------
        multipliers : dict of target to multiplier
            A target is also the exact name of a Parameter. 0 freezes, above 0 unfreezes, from the next forward on.

        Raises
        ------
        TypeError, ValueError
            Before anything has changed: a name or a target that is not in this trainer (with the closest names), an
            empty target, something that is not a multiplier, or a multiplier that the optimizer does not support.

        Examples
        --------
        >>> import mxnet as mx
        >>> from multitrainer import MultiLRTrainer
        >>> net = mx.gluon.nn.Dense(1, in_units=2, prefix='fc_')
        >>> net.initialize()
        >>> trainer = MultiLRTrainer(net, 'sgd')
        >>> trainer.set_lr_mult({'fc_bias': 2})
        >>> trainer.set_lr_mult({net.weight: 0})
        >>> net.weight.lr_mult, net.bias.lr_mult
        (0.0, 2.0)
        """
        self._set("lr_mult", multipliers)

    def set_wd_mult(self, multipliers: Mapping[Any, Multiplier]) -> None:
        """Set weight-decay multipliers; Parameters that are not named keep theirs.

        Parameters
        ----------
        multipliers : dict of target to multiplier
            As for `set_lr_mult`; 0 means no weight decay.

        Raises
        ------
        TypeError, ValueError
            As `set_lr_mult` does.

        Examples
        --------
        >>> import mxnet as mx
        >>> from multitrainer import MultiLRTrainer
        >>> net = mx.gluon.nn.Dense(1, in_units=2)
        >>> net.initialize()
        >>> trainer = MultiLRTrainer(net, 'sgd', {'wd': 1e-4})
        >>> trainer.set_wd_mult({net.bias: 0})
        """
        self._set("wd_mult", multipliers)

    def add(self, params: Any) -> None:
        """Add Parameters, such as those of a layer that was assigned to the network after the trainer was built.

        The Parameters that the trainer has keep their states, counts and multipliers, bit for bit. The new ones start
        as in a new trainer: without momentum, and with the first update for Adam's bias correction. ``num_update``, and
        with it the lr_scheduler and all schedules, goes on.

        Parameters
        ----------
        params : Block, ParameterDict, dict, list or tuple
            What the constructor takes: targets, pairs, groups, schedules. All ranks add the same.

        Raises
        ------
        TypeError, ValueError
            Before anything has changed: what the constructor refuses; a Parameter that this trainer has already
            (`set_lr_mult` changes its multiplier), or another one of its name; one that is not initialized, or is on
            other contexts.
        RuntimeError
            Before anything has changed: if parameter servers update and have the optimizer already; if the kvstore was
            set up for dense Parameters and a new one is sparse; or, on all ranks, if some do not add the same number.

        Notes
        -----
        The new Parameters take part from the first step whose backward pass reached them. A Parameter that left the
        network, such as the head that was replaced, is left out of steps as long as it gets no gradient.

        To resume, build the trainer on the whole network, or build and `add` as before, then `load_states`: Parameters
        are identified by name.

        Examples
        --------
        >>> import mxnet as mx
        >>> from multitrainer import MultiLRTrainer
        >>> net = mx.gluon.model_zoo.vision.resnet18_v1(classes=5)
        >>> net.initialize()
        >>> trainer = MultiLRTrainer([net, (net.features, 0.1)], 'sgd', {'learning_rate': 0.01, 'momentum': 0.9})
        >>> with net.name_scope():
        ...     net.output = mx.gluon.nn.Dense(3)
        >>> net.output.initialize()
        >>> trainer.add([(net.output, 10)])
        >>> trainer.learning_rates['output']
        0.1
        """
        resolved = resolve_addition(params, self._resolved, self._multipliers.blocks)
        added = resolved.parameters
        own = read_group_optimizers(resolved, self._optimizer, None, self.optimizers)
        inherited = inherited_multipliers(resolved, None, own)
        check_initial(resolved, inherited, self._optimizer, None, own)
        check_addition(self, added, self._contexts)
        created = [each.create([*self._params, *added]) for each in own]
        if own:
            require_workers_update(self)
        self._multipliers.sync()
        self._compare_addition(added)
        with undone_on_error([self, *self._multipliers.state_holders]), _mxnet.restoring_owners(added):
            _mxnet.append_parameters(self, added)
            self._partition.append(added)
            self._divide(own, created)
            self._resolved = self._resolved.extended(resolved._replace(blocks=()))
            self._multipliers.add_parameters(added, resolved.trainable, inherited)
            self._multipliers.start(resolved.assignments, resolved.blocks, resolved.companions)
        self._share_added(added)

    def _compare_addition(self, added: Sequence[Parameter]) -> None:
        """Raise an error on all ranks if some of them do not add Parameters now, or add others."""
        if self._comparison is not None:
            self._comparison.check(self._params, 0, added)

    def _share_added(self, params: Sequence[Parameter]) -> None:
        """Give new Parameters the same values on all contexts and ranks."""
        if self._kv_initialized and self._params_to_init:
            self._init_params()

    def step(self, batch_size: int, ignore_stale_grad: bool = False) -> None:
        """Make one update of every Parameter that is not frozen; see `mxnet.gluon.Trainer.step`.

        If `accumulate` is more than 1, only the last of so many calls updates; the others collect gradients.
        """
        if self._accumulation.updates_next:
            with self._surrounded_update() as departed:
                may_be_stale = self._params if ignore_stale_grad else departed
                with self._summed_gradients(self._added_gradients(batch_size, may_be_stale)) as total:
                    super().step(total, ignore_stale_grad)
        else:
            self._averages.check_not_applied("the trainer's step")
            self._accumulation.check(batch_size, self._scale)
            self._clipping.forget_gradients()
            with self._multipliers.collect(self, self._accumulation.collected.gradients) as departed:
                if _mxnet.servers_update(self) and not self._kv_initialized:
                    # They get the optimizer with the batch size of an update.
                    self._check_and_rescale_grad(self._scale / (self.accumulate * batch_size))
                self._set_up_kvstore()  # now all ranks have the weights of rank 0, as after a step under stock
                may_be_stale = self._params if ignore_stale_grad else departed
                self._accumulation.collect(self._params, batch_size, self._scale, may_be_stale)

    @property
    def accumulate(self) -> int:
        """The number N: N calls of `step` make one update, the same as one call with all N batches.

        The first N - 1 calls add the gradients to a buffer and the batch size to a sum. The Nth call sums over
        contexts and ranks, and updates; the update count, schedules and the lr_scheduler go by updates. The batches
        may differ in size.

        N can be set between updates. A multiplier that is changed between the calls acts at the update: what is frozen
        at one of the calls drops what was collected of it, and what is unfrozen takes part with the batches since.

        Raises
        ------
        TypeError, ValueError
            When it is set to something other than an int of 1 or more, or while gradients are collected.

        Examples
        --------
        >>> import mxnet as mx
        >>> from multitrainer import MultiLRTrainer
        >>> net = mx.gluon.nn.Dense(1, in_units=2)
        >>> net.initialize(mx.init.Zero())
        >>> trainer = MultiLRTrainer(net, 'sgd', {'learning_rate': 0.5}, accumulate=2)
        >>> for x in mx.nd.array([[1, 2]]), mx.nd.array([[3, 4]]):
        ...     with mx.autograd.record():
        ...         loss = net(x)
        ...     loss.backward()
        ...     trainer.step(1)
        ...     print(trainer.accumulated, net.weight.data().asnumpy())
        1 [[0. 0.]]
        0 [[-1.  -1.5]]
        """
        return self._accumulation.steps

    @accumulate.setter
    def accumulate(self, steps: int) -> None:
        self._accumulation.steps = steps

    @property
    def accumulated(self) -> int:
        """The number of calls of `step` since the last update, whose gradients are collected; see `accumulate`."""
        return self._accumulation.collected.steps

    def flush(self) -> None:
        """Make the update with the gradients that were collected so far, if any: at the end of an epoch or of training.

        Without it, the next call of `step` goes on collecting. All ranks must call it after the same step.

        Raises
        ------
        RuntimeError
            If a backward pass was made since the last `step`.
        """
        if self.accumulated:
            with self._surrounded_update():
                self._accumulation.check_no_backward_pending(self._params)
                with self._summed_gradients(self._flushed_gradients()) as total:
                    super().step(total, ignore_stale_grad=True)
                    self._clipping.read_gradients()  # those with grad_req 'add' are about to be set to 0

    def allreduce_grads(self) -> None:
        """Sum the gradients over contexts and workers; see `mxnet.gluon.Trainer.allreduce_grads`."""
        self._accumulation.check_whole_steps("allreduce_grads")
        with self._multipliers.exchange(self):
            super().allreduce_grads()

    def update(self, batch_size: int, ignore_stale_grad: bool = False) -> None:
        """Make one update after `allreduce_grads`; see `mxnet.gluon.Trainer.update`."""
        self._accumulation.check_whole_steps("update")
        with self._surrounded_update():
            self._partition.rescale(self._scale, batch_size)
            super().update(batch_size, ignore_stale_grad)

    def save_states(self, fname: str | os.PathLike[str]) -> None:
        """Save everything that training needs to continue, except the weights (see `save_parameters`).

        Saved are the optimizers' states by parameter name, their settings and counts, the multipliers, which Parameters
        are frozen, the lr_schedulers, AMP's loss scale, and the gradients that `accumulate` has collected. The file is
        an .npz of uncompressed arrays, which ``numpy.load(fname)`` reads without pickle, and one JSON text,
        ``numpy.load(fname)['@header'].item()``. It is written next to `fname`, flushed to disk and renamed, so that it
        is complete even if the process is killed.

        Parameters
        ----------
        fname : str or PathLike
            The file, which is replaced. If several workers update, rank 0 writes it and the others return.

        Raises
        ------
        TypeError
            If the optimizer or its lr_scheduler keeps something that such a file cannot hold (a function, an object).
        RuntimeError
            If parameter servers update, because they hold the states; if a Parameter has no values yet; or if several
            ranks have collected gradients for their next update.
        OSError
            If the file cannot be written; an earlier file of that name is left as it was.

        Notes
        -----
        Multipliers that were assigned since the last step take effect first, as at a step. A schedule is code and is
        not saved; whether it acts or has ended is. The state of MXNet's random generators, from which SGLD draws its
        noise, is not saved either.

        Examples
        --------
        >>> import os, tempfile
        >>> import mxnet as mx
        >>> from multitrainer import MultiLRTrainer
        >>> net = mx.gluon.nn.Dense(1, in_units=2, prefix='fc_')
        >>> net.initialize()
        >>> trainer = MultiLRTrainer(net, 'sgd', {'learning_rate': 0.1})
        >>> trainer.set_lr_mult({net: 0})
        >>> fname = os.path.join(tempfile.mkdtemp(), 'trainer.npz')
        >>> trainer.save_states(fname)
        >>> fresh = MultiLRTrainer(net, 'sgd')
        >>> fresh.set_lr_mult({net: 1})
        >>> fresh.load_states(fname)
        {}
        >>> fresh.learning_rate, net.bias.lr_mult, net.bias.grad_req
        (0.1, 0.0, 'null')
        """
        self._multipliers.sync()
        training = self._training()
        checkpoint.check_can_be_saved(training)
        if self._writes_states():
            checkpoint.save(Path(fname), training)

    def load_states(
        self,
        fname: str | os.PathLike[str],
        allow_pickle: bool = False,
        partial: bool = False,
        keep: str | Iterable[str] = (),
    ) -> dict[str, str]:
        """Restore the states from a file of `save_states`; a file that is refused changes nothing.

        Load the weights first, with ``net.load_parameters``.

        Parameters
        ----------
        fname : str or PathLike
            The file. Every rank loads it.
        allow_pickle : bool, default False
            Also load a file that stock `gluon.Trainer` wrote. It is a pickle, which can run any code when it is loaded,
            identifies Parameters by position, and leaves the multipliers as they are. It holds one optimizer, so it is
            refused if a group has an optimizer of its own.
        partial : bool, default False
            Load the Parameters that file and trainer share, even if others differ.
        keep : str or iterable of str
            What the trainer keeps instead of restoring it: ``'learning_rate'`` (with the lr_scheduler), ``'lr_mult'``
            (with which Parameters are frozen), ``'wd_mult'``, ``'loss_scale'``, or another attribute of the optimizer,
            such as ``'wd'`` or ``'momentum'``; ``'accumulated'`` begins to collect gradients from nothing. If groups
            have optimizers of their own, all optimizers keep it.

        Returns
        -------
        dict of str to str
            The Parameters of the file or of the trainer that `partial` left out, each with the reason.

        Raises
        ------
        ValueError
            If the file is damaged or was written by stock Trainer; if it has another class of optimizer or
            lr_scheduler, or differs in the use of AMP; if it has other Parameters, or other shapes or dtypes (all are
            listed); if a Parameter was under the optimizer of another group; if one had a schedule in it and has none
            here; or if it holds gradients that were collected under another `accumulate`, on another number of
            contexts, or by one rank of several.
        RuntimeError
            If parameter servers update, because they hold the states; or if a Parameter has no values yet.

        Notes
        -----
        Parameters are identified by name, in any order. Those that were frozen when the file was written are frozen,
        the others are not, whatever the groups of this trainer say. A schedule of this trainer goes on from the number
        of updates in the file, unless the file says that it was ended. Classes are compared by name only, so a class
        may have moved to another module. The file may have been written with other contexts or another kvstore.

        Gradients that this trainer has collected are dropped.

        If a kvstore updates, ``set_data`` and ``load_parameters`` drop the optimizer's states, as under stock Trainer:
        so load the weights first.
        """
        self._multipliers.sync()
        training = self._training()
        path = Path(fname)
        if allow_pickle and not archive.is_archive(path):
            if partial or keep:
                raise ValueError(
                    f"{path} was not written by MultiLRTrainer.save_states: a file of stock Trainer has no names, so "
                    "it cannot be loaded with partial or keep"
                )
            if self._partition.is_divided:
                raise ValueError(
                    f"{path} was not written by MultiLRTrainer.save_states: a file of stock Trainer holds one "
                    f"optimizer, and this trainer has {1 + len(self.optimizers)}"
                )
            self._load_pickle(str(path))
            return {}
        return checkpoint.load(path, training, partial, keep)

    def set_learning_rate(self, lr: float) -> None:
        """Set a new learning rate of the trainer's own optimizer; see `mxnet.gluon.Trainer.set_learning_rate`.

        Groups with an optimizer of their own keep theirs: ``trainer.optimizers[name].set_learning_rate(lr)``.

        Raises
        ------
        TypeError
            If ``lr`` is not a number.
        RuntimeError
            If parameter servers update and have the optimizer already: it would never reach them.
        """
        if not isinstance(lr, SupportsFloat):
            raise TypeError(
                f"set_learning_rate takes a number, got {describe(lr)}; for a group that has its own optimizer, call "
                "trainer.optimizers[name].set_learning_rate(number); for another one, trainer.set_lr_mult"
            )
        self._multipliers.check_learning_rate(lr)
        super().set_learning_rate(lr)

    def _load_pickle(self, fname: str) -> None:
        super().load_states(fname)
        self._accumulation.collected = NOTHING
        self._multipliers.use_optimizer(self._optimizer)
        self._multipliers.sync()  # schedules go by the update count that was loaded

    def _training(self) -> checkpoint.TrainerState:
        """Collect what is saved and restored; the kvstore may hold it, so it is set up as stock Trainer does."""
        waiting = [param.name for param in self._params if not _mxnet.is_initialized(param)]
        if waiting:
            raise RuntimeError(
                f"these Parameters have no values yet: {', '.join(waiting)}. Initialize the network, and run one "
                "forward pass if shapes are still unknown, before states are saved or loaded"
            )
        if _mxnet.servers_update(self):
            raise RuntimeError(
                "the states cannot be saved or loaded if parameter servers update: the servers hold them and do not "
                "hand them out. Let the workers update: a synchronous kvstore such as 'dist_sync', dense weights and "
                "gradients, update_on_kvstore=False"
            )
        self._set_up_kvstore()
        updaters = [_mxnet.updater_of(self._kvstore)] if self._update_on_kvstore else self._updaters
        return checkpoint.TrainerState(
            self._params,
            self._partition,
            updaters,
            bool(self._update_on_kvstore),
            self._contexts,
            self._multipliers,
            [group.name or "" for group in self.groups],
            getattr(self, "_amp_loss_scaler", None),
            self._accumulation,
            self._num_ranks(),
        )

    def _set_up_kvstore(self) -> None:
        """Set up the kvstore as stock Trainer does at the first step."""
        if not self._kv_initialized:
            self._init_kvstore()
        if self._params_to_init:
            self._init_params()

    def _writes_states(self) -> bool:
        """Whether this process is the one that writes, if several hold equal states."""
        return not self._distributed or self._kvstore.rank == 0

    def _num_ranks(self) -> int:
        """Count the processes that exchange gradients with this one, and this one."""
        return self._kvstore.num_workers if self._distributed else 1

    def _mean_over_ranks(self, value: float) -> float:
        """Return the mean of the values that the ranks pass; every rank calls this."""
        _mxnet.check_one_horovod_rank(self)
        return value if self._comparison is None else self._comparison.mean(value)

    def _init_kvstore(self) -> None:
        # Every multiplier and schedule works there, and a kvstore updates before the norm of all gradients is known.
        if _mxnet.workers_should_update(self) or self._clipping.max_norm is not None:
            _mxnet.let_workers_update(self)
        if _mxnet.servers_update(self):
            pickle.dumps(self._optimizer, 0)  # as the kvstore will: an error comes before there is a kvstore
        with _mxnet.sharing_connection(self, self._creation_number):
            super()._init_kvstore()
        if _mxnet.has_sent_optimizer(self):
            self._multipliers.sent_to_servers()

    def _row_sparse_pull(self, *args: Any, **kwargs: Any) -> None:
        if not self._kv_initialized:  # the optimizer is about to be shipped, before any step
            self._multipliers.sync()
        super()._row_sparse_pull(*args, **kwargs)

    def _init_params(self) -> None:
        waiting = len(self._params_to_init)
        if self._distributed:
            _mxnet.use_plain_layout(self._params_to_init)
        super()._init_params()
        if not self._distributed:
            return
        if self._update_on_kvstore:
            # MXNet does not order a first pull before the first push: it can bring weights that are updated already.
            # Training is right all the same, but what compares with the weights from before would not be.
            nd.waitall()
            return
        is_new = self._comparison is None or self._comparison.size != len(self._params)
        if is_new and self._kvstore.num_workers > 1:
            self._comparison = StoreComparison(self._kvstore, len(self._params))
        if is_new or len(self._params_to_init) < waiting:
            # A server's key holds the initial weight until the first push and a sum of gradients after it. A rank that
            # pulls late would get gradients instead of weights, so no rank pushes before all have pulled.
            nd.waitall()
            self._kvstore._barrier()

    def _allreduce_grads(self) -> None:
        if self._comparison is not None:
            self._comparison.check(self._params, self._accumulation.steps_in_update)
        self._averages.include(self._params)  # a kvstore that updates does so in the exchange
        if self._update_on_kvstore:
            self._measurement.begin_update(self._params)
        super()._allreduce_grads()

    def _update(self, ignore_stale_grad: bool = False) -> None:
        self._averages.include(self._params)
        store_updates = bool(self._update_on_kvstore)
        if not store_updates:
            self._measurement.begin_update(self._params)
        with self._clipping.update(self._partition, self._params, ignore_stale_grad, store_updates):
            self._update_weights(ignore_stale_grad)
        self._measurement.end_update()

    def _update_weights(self, ignore_stale_grad: bool) -> None:
        fusable = not (self._update_on_kvstore or hasattr(self, "_amp_loss_scaler")) and len(self._updaters) == 1
        fused = self._fused.prepare(self._updaters[0], self._params) if fusable else []
        covered = {param for part in fused for param in part.params}
        # AMP looks for an overflow in the first gradient, and fails if no Parameter has one.
        if any(param not in covered and param.grad_req != "null" for param in self._params):
            # First, because it raises an error before anything has changed if a gradient is stale.
            with _mxnet.without_parameters(self, covered):
                super()._update(ignore_stale_grad)
        for part in fused:
            part.run()

    @contextlib.contextmanager
    def _surrounded_update(self) -> Iterator[set[Parameter]]:
        """Surround one update; gives the Parameters that left the network, and so may have a stale gradient."""
        self._clipping.forget_gradients()
        collected = self._accumulation.collected.gradients
        with self._averages.update(self), self._multipliers.update(self, collected) as departed:
            yield departed

    @contextlib.contextmanager
    def _summed_gradients(self, gradients: ContextManager[float]) -> Iterator[float]:
        """Surround an update with ``gradients``, for their batch size, without the Parameters that have none."""
        with gradients as total, _mxnet.without_parameters(self, self._accumulation.unused(self._params)):
            self._partition.rescale(self._scale, total)
            yield total

    def _added_gradients(self, batch_size: float, may_be_stale: Collection[Parameter]) -> ContextManager[float]:
        """Surround an update with the gradients of this step and those that were collected; gives the batch size."""
        return self._accumulation.added(self._params, self._partition, batch_size, self._scale, may_be_stale)

    def _flushed_gradients(self) -> ContextManager[float]:
        """Surround an update with the gradients that were collected; gives their batch size."""
        return self._accumulation.flushed(self._params, self._partition, self._scale)

    def _set(self, field: str, multipliers: Mapping[Any, Multiplier]) -> None:
        assigned, blocks = resolve_assignment(multipliers, field, self._params)
        self._multipliers.assign({field: assigned}, blocks)

    def _rows(self, **kwargs: Any) -> list[report.SummaryRow]:
        return report.summary_rows(self._resolved, self._multipliers.trainable, self._partition, **kwargs)

    def _members_of_groups(self) -> dict[str, list[Parameter]]:
        return report.members_of_groups(self._resolved, self._multipliers.trainable)

    def _planned(self, ahead: Sequence[int]) -> tuple[Sequence[int], list[tuple[str, list[float]]]]:
        """Give the numbers of later updates, the next one is 0 ahead, and the learning rates of each group at them."""
        updates = [self._optimizer.num_update + 1 + n for n in ahead]
        trainable, schedules = self._multipliers.trainable, self._multipliers.schedules["lr_mult"]
        return updates, report.planned_rates(self._resolved, trainable, self._partition, schedules, updates)
