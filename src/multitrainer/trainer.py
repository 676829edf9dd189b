"""`MultiLRTrainer`: a drop-in `gluon.Trainer` whose multipliers hold."""

from __future__ import annotations

from typing import Any, Mapping

from mxnet.gluon import Trainer

from . import _mxnet, report
from .freezing import warn_of_old_traces
from .groups import FIELDS, ParamGroup, resolve, resolve_within
from .multipliers import Multipliers, evaluate
from .optimizers import check_honoured, optimizer_class, own_table, read_table, updates_before
from .targets import Multiplier


class MultiLRTrainer(Trainer):
    """Train several Blocks at once, each with its own learning-rate multiplier; 0 freezes.

    Parameters
    ----------
    params : Block, ParameterDict, dict, list or tuple
        Any of: what `gluon.Trainer` takes; a Block; a list whose entries are targets, ``(target, lr_mult)`` pairs or
        `ParamGroup`; a dict of target to lr_mult. A target is a Block, a ParameterDict, a dict of name to Parameter, a
        Parameter, or a list of these. A multiplier is a finite number >= 0, or a schedule, a callable ``num_update ->
        number``. A later entry refines an earlier one that contains it. Name the whole network first: then no layer
        is forgotten, and a hybridized network is traced anew where freezing calls for it.
    optimizer : str or mxnet.optimizer.Optimizer
        As `gluon.Trainer` takes it.
    optimizer_params : dict, optional
        As `gluon.Trainer` takes it.
    *args, **kwargs
        Passed on to `gluon.Trainer`: ``kvstore``, ``compression_params``, ``update_on_kvstore``.

    Raises
    ------
    TypeError, ValueError
        Before anything has changed, naming the entry: no target, no multiplier, an empty target, two entries that
        disagree, two Parameters of one name, a multiplier that the optimizer cannot honour (AdaDelta has no learning
        rate to multiply).

    Notes
    -----
    A multiplier is the Parameter's own ``lr_mult`` or ``wd_mult``, so ``param.lr_mult = x``,
    ``collect_params().setattr('lr_mult', x)`` and ``trainer.optimizer.set_lr_mult({name: x})`` work as well as
    `set_lr_mult`, and take effect at the next `step`. The optimizer looks for the multiplier of an index in
    ``param_dict``, then in ``lr_mult`` by index, then in ``lr_mult`` by the name in ``idx2name``
    (``Optimizer._get_lrs`` in mxnet/optimizer/optimizer.py). The first is lost when it is pickled; the trainer keeps
    the rest filled.

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

    def __init__(
        self,
        params: Any,
        optimizer: Any,
        optimizer_params: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        plan = resolve(params)
        given = {field: plan.assignments(field) for field in FIELDS}
        brought = read_table(own_table(optimizer), plan.parameters, "optimizer.lr_mult")
        given["lr_mult"] = {**brought, **given["lr_mult"]}
        for field in FIELDS:
            numbers = {param: getattr(param, field) for param in plan.member_of}
            numbers.update(evaluate(given[field], field, updates_before(optimizer, optimizer_params) + 1))
            check_honoured(optimizer_class(optimizer), field, numbers)
        owners = [_mxnet.owner(param) for param in plan.parameters]
        try:
            super().__init__(plan.parameters, optimizer, optimizer_params, *args, **kwargs)
        except BaseException:
            for param, owner in zip(plan.parameters, owners):
                _mxnet.set_owner(param, owner)
            raise
        self._plan = plan
        self._multipliers = Multipliers(self._params, self._optimizer)
        self._multipliers.assign(given, plan.blocks)

    @property
    def groups(self) -> tuple[ParamGroup, ...]:
        """The groups in the order given, each with its ``params`` as a dict of name to Parameter."""
        return self._plan.groups

    @property
    def learning_rates(self) -> dict[str, float]:
        """The effective learning rate of each group now, by the group's name: for loggers.

        A group whose Parameters no longer share one multiplier has an entry for each.
        """
        return {row.name: row.learning_rate for row in self._rows(by=("lr_mult",))}

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
        return report.table(self._rows())

    def __repr__(self) -> str:
        movable = self._multipliers.movable
        return (
            f"{type(self).__name__}({type(self._optimizer).__name__}, learning_rate={self.learning_rate:g}, "
            f"{len(self.groups)} groups, {len(movable)} parameters, {sum(p.lr_mult == 0 for p in movable)} frozen)"
        )

    def set_lr_mult(self, multipliers: Mapping[Any, Multiplier]) -> None:
        """Set learning-rate multipliers; what is not named keeps its own.

        Parameters
        ----------
        multipliers : dict of target to multiplier
            A target is also the exact name of a Parameter. 0 freezes, above 0 unfreezes, from the next forward on.

        Raises
        ------
        TypeError, ValueError
            Before anything has changed: a name or a target that is not in this trainer (with the closest names), an
            empty target, no multiplier, or one that the optimizer cannot honour.

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
        """Set weight-decay multipliers; what is not named keeps its own.

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

    def step(self, batch_size: int, ignore_stale_grad: bool = False) -> None:
        """Make one update of every Parameter that is not frozen; see `mxnet.gluon.Trainer.step`."""
        self._synchronize()
        with self._multipliers.updating():
            super().step(batch_size, ignore_stale_grad)

    def allreduce_grads(self) -> None:
        """Sum the gradients over contexts and workers; see `mxnet.gluon.Trainer.allreduce_grads`."""
        self._synchronize()
        super().allreduce_grads()

    def update(self, batch_size: int, ignore_stale_grad: bool = False) -> None:
        """Make one update after `allreduce_grads`; see `mxnet.gluon.Trainer.update`."""
        self._synchronize()
        with self._multipliers.updating():
            super().update(batch_size, ignore_stale_grad)

    def load_states(self, fname: str) -> None:
        """Load optimizer states; multipliers stay those of the Parameters. See `mxnet.gluon.Trainer.load_states`."""
        super().load_states(fname)
        self._multipliers.adopt(self._optimizer)
        self._multipliers.take_over()  # schedules go by the update count that was loaded

    def _update(self, ignore_stale_grad: bool = False) -> None:
        # AMP looks for an overflow in the first gradient, and fails where there is none at all.
        if any(param.grad_req != "null" for param in self._params):
            super()._update(ignore_stale_grad)

    def _synchronize(self) -> None:
        self._multipliers.before_gradients_are_used()
        warn_of_old_traces(self._multipliers.movable)

    def _set(self, field: str, multipliers: Mapping[Any, Multiplier]) -> None:
        plan = resolve_within(multipliers, field, self._params)
        self._multipliers.take_over()
        self._multipliers.assign({field: plan.assignments(field)}, plan.blocks)

    def _rows(self, **kwargs: Any) -> list[report.Row]:
        return report.rows(self._plan, self._multipliers.movable, self.learning_rate, self._optimizer.wd, **kwargs)
