"""`MultiLRTrainer`: a drop-in `gluon.Trainer` whose multipliers hold."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

from mxnet import nd
from mxnet.gluon import Trainer

from . import _mxnet, checkpoint, report
from ._mxnet import supports_multiplier
from .checkpoint import archive
from .freezing.rank_agreement import StoreComparison
from .freezing.stale_traces import warn_of_old_traces
from .fused.update import FusedUpdate
from .groups.param_group import FIELDS, ParamGroup
from .groups.resolve import resolve, resolve_within
from .groups.targets import Multiplier, known_name
from .multipliers.multipliers import Multipliers
from .multipliers.name_table import explicit_multipliers, parse_multipliers
from .multipliers.schedules import evaluate
from .multipliers.supported import check_supported, optimizer_class, updates_before
from .symbolic import attributes


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

    leaves_out_frozen = True  # its updates pass over frozen Parameters, whether or not these request a gradient

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
        brought = {
            field: parse_multipliers(explicit_multipliers(optimizer, field), plan.parameters, f"optimizer.{field}")
            for field in FIELDS
        }
        imported = attributes.symbol_multipliers(plan.blocks)
        brought = {field: {**imported[field], **brought[field]} for field in FIELDS}
        kind = optimizer_class(optimizer)
        for field in FIELDS:
            numbers = evaluate(given[field], field, updates_before(optimizer, optimizer_params) + 1)
            if not supports_multiplier(kind, field):
                own = {param: getattr(param, field) for param in plan.member_of}
                check_supported(kind, field, {**own, **brought[field], **numbers})
        self._comparison: StoreComparison | None = None
        owners = [_mxnet.owner(param) for param in plan.parameters]
        try:
            # A dict by position: Horovod sorts a list, which Parameters do not allow; sorted keys keep this order.
            super().__init__(dict(enumerate(plan.parameters)), optimizer, optimizer_params, *args, **kwargs)
        except BaseException:
            for param, owner in zip(plan.parameters, owners):
                _mxnet.set_owner(param, owner)
            raise
        for field, numbers in brought.items():
            for param, number in numbers.items():
                setattr(param, field, number)
        attributes.join_symbols(plan.blocks)
        self._plan = plan._replace(blocks=())  # a Block that was hybridized and called could not be copied with it
        self._fused = FusedUpdate()
        self._multipliers = Multipliers(self._params, self._optimizer)
        self._multipliers.assign(given, plan.blocks)
        attributes.record(self._multipliers.trainable, plan.blocks)

    @property
    def groups(self) -> tuple[ParamGroup, ...]:
        """The groups in the order given, each with its ``params`` as a dict of name to Parameter."""
        return self._plan.groups

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rate that each group's next update goes by, by the group's name: for loggers.

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

    def explain(self, name: str) -> str:
        """Say why a parameter learns as it does: which entry gave its multipliers, and the rates that come of them.

        Parameters
        ----------
        name : str
            The exact name of a parameter.

        Returns
        -------
        str
            For learning rate and weight decay: the value that the next update goes by, the multiplier, the entry that
            set it and the one that this refines; or that it was set since, or is the Parameter's own.

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
        rates = {"lr_mult": self._rates([self._optimizer.num_update + 1])[0], "wd_mult": self._optimizer.wd}
        return report.explain(self._plan, param, rates, self._multipliers.schedules)

    def __repr__(self) -> str:
        if "_multipliers" not in vars(self):  # its construction failed, and a traceback or a debugger shows it
            return object.__repr__(self)
        trainable = self._multipliers.trainable
        return (
            f"{type(self).__name__}({type(self._optimizer).__name__}, learning_rate={self.learning_rate:g}, "
            f"{len(self.groups)} groups, {len(trainable)} parameters, {sum(p.lr_mult == 0 for p in trainable)} frozen)"
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
        self._multipliers.sync(at_step=True)
        warn_of_old_traces(self._multipliers.trainable)
        with self._multipliers.updating(self):
            super().step(batch_size, ignore_stale_grad)

    def allreduce_grads(self) -> None:
        """Sum the gradients over contexts and workers; see `mxnet.gluon.Trainer.allreduce_grads`."""
        self._multipliers.sync(at_step=True)
        with _mxnet.leaving_out(self, self._multipliers.left_out()):
            super().allreduce_grads()

    def update(self, batch_size: int, ignore_stale_grad: bool = False) -> None:
        """Make one update after `allreduce_grads`; see `mxnet.gluon.Trainer.update`."""
        self._multipliers.sync(at_step=True)
        warn_of_old_traces(self._multipliers.trainable)
        with self._multipliers.updating(self):
            super().update(batch_size, ignore_stale_grad)

    def save_states(self, fname: str | os.PathLike[str]) -> None:
        """Save all that training goes on from, but for the weights (`save_parameters`): a kill leaves a whole file.

        Saved are the optimizer's states by parameter name, its settings and counts, multipliers and what is frozen, the
        lr_scheduler and AMP's loss scale. The file is an .npz of uncompressed arrays, which ``numpy.load(fname)``
        reads without pickle, and one JSON text, ``numpy.load(fname)['@header'].item()``. It is written beside `fname`,
        flushed to disk and moved there.

        Parameters
        ----------
        fname : str or PathLike
            The file, which is replaced. Where several workers update, rank 0 writes it and the others return.

        Raises
        ------
        TypeError
            If the optimizer or its lr_scheduler keeps something that such a file cannot hold (a function, an object).
        RuntimeError
            Where parameter servers update, for the states are theirs; or a Parameter has no values yet.
        OSError
            Where the file cannot be written; one that was there before is left as it was.

        Notes
        -----
        What was assigned to Parameters since the last step is taken over first, as a step does. Schedules, like all
        code, are not saved, but that they act or have ended is. Nor is the state of MXNet's random generators, from
        which SGLD draws its noise.

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
        if self._writes_states():
            checkpoint.save(Path(fname), training)

    def load_states(
        self,
        fname: str | os.PathLike[str],
        allow_pickle: bool = False,
        partial: bool = False,
        keep: str | Iterable[str] = (),
    ) -> dict[str, str]:
        """Go on from a file of `save_states`; a file that is refused changes nothing.

        Load the weights first, with ``net.load_parameters``.

        Parameters
        ----------
        fname : str or PathLike
            The file. Every rank loads it.
        allow_pickle : bool, default False
            Take a file that stock `gluon.Trainer` wrote, too. It is a pickle, which can run any code when it is loaded,
            goes by position, and leaves the multipliers as they are.
        partial : bool, default False
            Load the Parameters that file and trainer share, where they do not have the same ones.
        keep : str or iterable of str
            What the trainer is to keep of its own, where the file's holds otherwise: ``'learning_rate'`` (with the
            lr_scheduler), ``'lr_mult'`` (with what is frozen), ``'wd_mult'``, ``'loss_scale'``, or another attribute of
            the optimizer, as ``'wd'`` or ``'momentum'``.

        Returns
        -------
        dict of str to str
            The Parameters that `partial` left out, in the file or in the trainer, and why.

        Raises
        ------
        ValueError
            If the file is damaged, or was written by stock Trainer; is of another optimizer, lr_scheduler or AMP; has
            other Parameters, or with another shape or dtype (all are listed); or if a Parameter went by a schedule in
            it and has none here.
        RuntimeError
            Where parameter servers update, for the states are theirs; or a Parameter has no values yet.

        Notes
        -----
        Parameters are known by name, whatever their order. Those frozen in the file are frozen, those unfrozen in it
        are not, whatever the groups of this trainer say; a schedule of this trainer goes on by the count of updates in
        the file, unless the file says that it was ended. Classes are compared by name alone, so that one may move to
        another module. The file may have been written with other contexts or another kvstore.

        Under a kvstore that updates, ``set_data`` and ``load_parameters`` drop the optimizer's states, as under stock:
        there, the weights have to come first.
        """
        self._multipliers.sync()
        training = self._training()
        path = Path(fname)
        if allow_pickle and not archive.is_archive(path):
            if partial or keep:
                raise ValueError(
                    f"{path} is no file of MultiLRTrainer.save_states: one of stock Trainer knows no names, so that "
                    "partial and keep cannot be had of it"
                )
            self._load_pickle(str(path))
            return {}
        return checkpoint.load(path, training, partial, keep)

    def set_learning_rate(self, lr: float) -> None:
        """Set a new learning rate; see `mxnet.gluon.Trainer.set_learning_rate`.

        Raises
        ------
        RuntimeError
            Where parameter servers update and have the optimizer already: it would never reach them.
        """
        self._multipliers.check_learning_rate(lr)
        super().set_learning_rate(lr)

    def _load_pickle(self, fname: str) -> None:
        super().load_states(fname)
        self._multipliers.adopt(self._optimizer)
        self._multipliers.sync()  # schedules go by the update count that was loaded

    def _training(self) -> checkpoint.TrainerState:
        """Return what is saved and loaded, which a kvstore may hold: like stock Trainer, begin to use it."""
        waiting = [param.name for param in self._params if not _mxnet.is_initialized(param)]
        if waiting:
            raise RuntimeError(
                f"these Parameters have no values yet: {', '.join(waiting)}. Initialize the network, and run one "
                "forward pass where shapes are left to be found, before states are saved or loaded"
            )
        if self._servers_update():
            raise RuntimeError(
                "the states cannot be saved or loaded if parameter servers update: the servers hold them, and give "
                "them to nobody. Let the workers update: a synchronous kvstore such as 'dist_sync', dense weights and "
                "gradients, update_on_kvstore=False"
            )
        if not self._kv_initialized:
            self._init_kvstore()
        if self._params_to_init:
            self._init_params()
        updaters = [_mxnet.updater_of(self._kvstore)] if self._update_on_kvstore else self._updaters
        return checkpoint.TrainerState(
            self._params,
            self._optimizer,
            updaters,
            bool(self._update_on_kvstore),
            self._contexts,
            self._multipliers,
            [group.name or "" for group in self.groups],
            getattr(self, "_amp_loss_scaler", None),
        )

    def _writes_states(self) -> bool:
        """Whether this process is the one of all that hold the same states which writes them."""
        return not self._distributed or self._kvstore.rank == 0

    def _init_kvstore(self) -> None:
        if self._workers_should_update():
            self._kvstore_params["update_on_kvstore"] = False
        super()._init_kvstore()
        if self._distributed and self._update_on_kvstore:
            self._multipliers.shipped()

    def _row_sparse_pull(self, *args: Any, **kwargs: Any) -> None:
        if not self._kv_initialized:  # the optimizer is about to be shipped, before any step
            self._multipliers.sync()
        super()._row_sparse_pull(*args, **kwargs)

    def _store_kind(self) -> str:
        store = self._kvstore_params["kvstore"]
        return store if isinstance(store, str) else getattr(store, "type", "")

    def _workers_should_update(self) -> bool:
        """Whether it was left open who updates, and the workers can: there every multiplier and schedule works."""
        return (
            self._kvstore_params["update_on_kvstore"] is None
            and "MXNET_UPDATE_ON_KVSTORE" not in os.environ
            and "dist" in self._store_kind()
            and "async" not in self._store_kind()
            and not (self._contains_sparse_weight or self._contains_sparse_grad)
        )

    def _servers_update(self) -> bool:
        """Whether parameter servers update, or will once the kvstore is set up: that gives them the optimizer."""
        if self._kv_initialized:
            return bool(self._distributed and self._update_on_kvstore)
        chosen = self._kvstore_params["update_on_kvstore"]
        if chosen is None:
            chosen = not self._workers_should_update() and os.environ.get("MXNET_UPDATE_ON_KVSTORE", "1") != "0"
        return "dist" in self._store_kind() and (chosen or "async" in self._store_kind())

    def _init_params(self) -> None:
        waiting = len(self._params_to_init)
        if self._distributed:
            _mxnet.use_plain_layout(self._params_to_init)
        super()._init_params()
        if self._distributed and not self._update_on_kvstore and len(self._params_to_init) < waiting:
            if self._comparison is None and self._kvstore.num_workers > 1:
                self._comparison = StoreComparison(self._kvstore, len(self._params), len(self._params))
            # A server's key holds the initial weight until the first push and a sum of gradients after it. A rank
            # whose pull is late would take gradients for weights, so nobody pushes before everybody has pulled.
            nd.waitall()
            self._kvstore._barrier()

    def _allreduce_grads(self) -> None:
        if self._comparison is not None:
            self._comparison.check(self._params)
        super()._allreduce_grads()

    def _update(self, ignore_stale_grad: bool = False) -> None:
        # AMP looks for an overflow in the first gradient, and fails where there is none at all.
        if all(param.grad_req == "null" for param in self._params):
            return
        fusable = not (self._update_on_kvstore or hasattr(self, "_amp_loss_scaler")) and len(self._updaters) == 1
        if not (fusable and self._fused.update(self._updaters[0], self._params)):
            super()._update(ignore_stale_grad)

    def _set(self, field: str, multipliers: Mapping[Any, Multiplier]) -> None:
        plan = resolve_within(multipliers, field, self._params)
        self._multipliers.assign({field: plan.assignments(field)}, plan.blocks)

    def _rates(self, updates: Iterable[int]) -> list[float]:
        """Return the optimizer's own learning rate at ``updates``."""
        # Of a copy: schedulers keep count of what they were asked, and stock asks them in order.
        scheduler, rate = copy.deepcopy(self._optimizer.lr_scheduler), self._optimizer.lr
        return [rate if scheduler is None else scheduler(update) for update in updates]

    def _rows(self, **kwargs: Any) -> list[report.Row]:
        (rate,) = self._rates([self._optimizer.num_update + 1])
        return report.rows(self._plan, self._multipliers.trainable, rate, self._optimizer.wd, **kwargs)

    def _planned(self, num_updates: int) -> tuple[Sequence[int], list[tuple[str, list[float]]]]:
        """Return the numbers of the next updates, and the learning rates that each group will have at them."""
        updates = range(self._optimizer.num_update + 1, self._optimizer.num_update + 1 + num_updates)
        schedules, rates = self._multipliers.schedules["lr_mult"], self._rates(updates)
        return updates, report.planned(self._plan, self._multipliers.trainable, schedules, updates, rates)
