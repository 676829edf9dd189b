"""`set_lr_mult` and `set_wd_mult` for the Module API: set multipliers by name, and keep what earlier calls set."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Dict, Iterable, Mapping, NamedTuple

import mxnet as mx
from mxnet.module import Module
from mxnet.optimizer import Optimizer

from .. import _mxnet
from ..groups.targets import check_multiplier, describe, known_name
from .attributes import parse_multiplier

_Multipliers = Dict[str, float]  # by name

_GLUON = "use trainer.set_lr_mult of MultiLRTrainer, or set param.lr_mult"


def set_lr_mult(module: Any, multipliers: Mapping[str, float]) -> None:
    """Set learning-rate multipliers of a Module's parameters by name; other parameters keep theirs.

    `mxnet.optimizer.Optimizer.set_lr_mult` forgets what earlier calls set; this function adds to it.

    Parameters
    ----------
    module : Module, BucketingModule, SequentialModule or mxnet.optimizer.Optimizer
        A module after ``init_optimizer``. An Optimizer must know names: create it with ``sym=`` or
        ``param_idx2name=``.
    multipliers : dict of str to number
        Finite numbers >= 0, by the exact name of the parameter.

    Raises
    ------
    TypeError, ValueError
        Before anything changes: for an unknown parameter (with the closest names), a value that is not a number, a
        multiplier that the optimizer cannot honour (AdaDelta ignores it, Ftrl and FTML turn weights to nan at 0, SGLD
        fails), a parameter in ``fixed_param_names``, or an optimizer that looks up another parameter's name.
    RuntimeError
        If there is no optimizer yet, or parameter servers have it already and would not see a change. An Optimizer
        does not know whether it was sent to them, so pass the module in that case.

    Warns
    -----
    UserWarning
        If the multiplier is 0 and the optimizer has built up momentum, which moves the weight for a while.

    Notes
    -----
    0 is a learning rate of 0, not a freeze: the gradient is still computed and the optimizer still runs. To freeze
    parameters, name them in ``fixed_param_names=`` of the Module.

    ``Optimizer._get_lr`` looks for a multiplier in this order: at the Parameter in ``param_dict`` (Gluon only), in
    ``optimizer.lr_mult`` by index, in ``optimizer.lr_mult`` by the name in ``optimizer.idx2name``; otherwise it is 1.
    On a local kvstore that updates, the index is the name itself. An entry by index would have precedence over the
    name, so this function removes it. If the optimizer has not seen the symbol, because it was created without
    ``sym=``, the symbol's attributes are used for parameters without another multiplier.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import symbolic
    >>> weight = mx.sym.Variable('fc_weight', lr_mult=0.1)
    >>> output = mx.sym.FullyConnected(mx.sym.Variable('data'), weight, name='fc', num_hidden=1)
    >>> optimizer = mx.optimizer.create('sgd', sym=output, param_idx2name={0: 'fc_weight', 1: 'fc_bias'})
    >>> symbolic.set_lr_mult(optimizer, {'fc_bias': 2})
    >>> symbolic.set_lr_mult(optimizer, {})
    >>> optimizer.lr_mult
    {'fc_weight': 0.1, 'fc_bias': 2.0}
    """
    _set_multipliers("lr_mult", module, multipliers)


def set_wd_mult(module: Any, multipliers: Mapping[str, float]) -> None:
    """Set weight-decay multipliers of a Module's parameters by name; other parameters keep theirs.

    Parameters
    ----------
    module : Module, BucketingModule, SequentialModule or mxnet.optimizer.Optimizer
        As for `set_lr_mult`.
    multipliers : dict of str to number
        As for `set_lr_mult`; 0 means no weight decay.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `set_lr_mult` does.

    Notes
    -----
    An optimizer created with names, as Module does it, starts with 0 for all names that end in neither ``_weight`` nor
    ``_gamma`` (LARS: in ``_weight``), and keeps it until this function sets another multiplier.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import symbolic
    >>> optimizer = mx.optimizer.create('sgd', param_idx2name={0: 'fc_weight', 1: 'fc_bias', 2: 'bn_beta'})
    >>> symbolic.set_wd_mult(optimizer, {'fc_weight': 0.5})
    >>> symbolic.set_wd_mult(optimizer, {'fc_bias': 1})
    >>> optimizer.wd_mult
    {'fc_bias': 1.0, 'bn_beta': 0.0, 'fc_weight': 0.5}
    """
    _set_multipliers("wd_mult", module, multipliers)


class _Registration(NamedTuple):
    """An optimizer and the parameters that it updates."""

    optimizer: Optimizer
    names: frozenset[str]
    unseen: Mapping[str, Mapping[str, str]]  # attributes of symbols that the optimizer has not seen, by name

    def own(self, multipliers: _Multipliers) -> _Multipliers:
        """Return those of ``multipliers`` whose parameters this optimizer updates."""
        return {name: number for name, number in multipliers.items() if name in self.names}

    def unseen_multipliers(self, field: str) -> _Multipliers:
        """Return the multipliers in attributes that the optimizer has not seen."""
        parsed = {name: parse_multiplier(self.unseen.get(name, {}), field, name) for name in sorted(self.names)}
        return {name: number for name, number in parsed.items() if number is not None}


def _set_multipliers(field: str, module: Any, multipliers: Mapping[str, float]) -> None:
    where = f"set_{field}"
    if not isinstance(multipliers, Mapping):
        raise TypeError(f"{where}: multipliers must be a dict of name to number, got {describe(multipliers)}")
    registrations, fixed = _registrations(module, where)
    numbers = _validate(multipliers, where, set().union(*(each.names for each in registrations)), fixed)
    changes = []
    for each in registrations:
        changes.append((each.optimizer, each.own(numbers), each.unseen_multipliers(field)))
        _check_supported(each.optimizer, field, each.own(numbers))
    for optimizer, own, unseen in changes:
        _merge(optimizer, field, own, unseen)


def _validate(multipliers: Mapping[str, float], where: str, trained: set[str], fixed: set[str]) -> _Multipliers:
    numbers = {}
    for name, value in multipliers.items():
        name = known_name(name, trained | fixed, where, "this module")
        number = check_multiplier(value, f"{where}: {name!r}")
        if callable(number):
            raise TypeError(
                f"{where}: {name!r} must be a number, got {describe(value)}: schedules need a MultiLRTrainer; under a "
                f"Module call {where} again, for instance in batch_end_callback="
            )
        if name not in trained and number != 0:
            raise ValueError(f"{where}: {name!r} is in fixed_param_names, so {value!r} would have no effect; use 0")
        numbers[name] = number
    return numbers


def _merge(optimizer: Optimizer, field: str, numbers: _Multipliers, unseen: _Multipliers) -> None:
    """Add ``numbers`` to the optimizer's multipliers, and those of ``unseen`` for which it has none."""
    names = optimizer.idx2name
    kept = {key: value for key, value in getattr(optimizer, field).items() if names.get(key) not in numbers}
    kept_names = {*kept, *(names.get(key) for key in kept)}
    missing = {name: number for name, number in unseen.items() if name not in kept_names}
    setattr(optimizer, field, {**missing, **kept, **numbers})


def _registrations(module: Any, where: str) -> tuple[list[_Registration], set[str]]:
    """Return the optimizers of ``module`` with their parameters, and the names of parameters that none updates."""
    if isinstance(module, Optimizer):
        return [_register_alone(module, where)], set()
    if not isinstance(module, mx.module.BaseModule):
        raise TypeError(f"{where}: {describe(module)} is neither a Module nor an Optimizer; a Gluon Trainer: {_GLUON}")
    parts = list(_mxnet.modules_inside(module))
    if not parts or not all(part.optimizer_initialized for part in parts):
        raise RuntimeError(f"{where}: this {type(module).__name__} has no optimizer yet; call init_optimizer first")
    found: dict[int, _Registration] = {}
    fixed: set[str] = set()
    for part in parts:
        _check_reachable(part, where)
        optimizer = _mxnet.module_optimizer(part)
        before = found.get(id(optimizer), _Registration(optimizer, frozenset(), {}))
        unseen = {} if optimizer.sym_info else part.symbol.attr_dict()
        names = set(_mxnet.module_parameters(part)) - _mxnet.fixed_parameters(part)
        found[id(optimizer)] = _Registration(optimizer, before.names | names, {**unseen, **before.unseen})
        fixed |= _mxnet.fixed_parameters(part)
    return list(found.values()), fixed


def _register_alone(optimizer: Optimizer, where: str) -> _Registration:
    """Return an optimizer that was passed without a module, with the parameters that it knows by name."""
    if optimizer.param_dict:
        raise ValueError(f"{where}: this Optimizer belongs to a Gluon Trainer, which asks its Parameters; {_GLUON}")
    names = optimizer.idx2name.values() or (optimizer.sym_info[1] if optimizer.sym_info else ())
    if not names:
        raise ValueError(
            f"{where}: this Optimizer knows no parameter by name; give the module after init_optimizer, or make the "
            "Optimizer with sym= or param_idx2name="
        )
    return _Registration(optimizer, frozenset(names), {})


def _check_reachable(part: Module, where: str) -> None:
    """Raise an error if multipliers set on the optimizer of ``part`` would not reach the parameters they are for."""
    if _mxnet.updates_on_servers(part):
        raise RuntimeError(
            f"{where}: parameter servers update, and got their copy of the optimizer at init_optimizer; no change "
            "reaches them. Set it before: mx.sym.Variable(name, lr_mult=, wd_mult=), or make the Optimizer with sym=, "
            f"call {where} on it, and give it to init_optimizer"
        )
    looked_up = _mxnet.module_optimizer(part).idx2name
    for index, name in _mxnet.names_by_index(part).items():
        if looked_up.get(index) != name:
            raise ValueError(
                f"{where}: the optimizer takes parameter {index}, {name!r}, for {looked_up.get(index)!r}, so it would "
                "get the wrong multiplier: one Optimizer serves modules, or buckets, of different parameters. Use "
                "init_optimizer(kvstore=mx.kv.create('local')), which looks parameters up by name"
            )


def _check_supported(optimizer: Optimizer, field: str, numbers: _Multipliers) -> None:
    """Raise ValueError if the optimizer would ignore one of ``numbers``, or move a weight at 0; warn of momentum."""
    acting = [name for name, number in numbers.items() if number != 1]
    kind: Any = type(optimizer)
    if acting and not _mxnet.supports_multiplier(kind, field):
        raise ValueError(
            f"set_{field}: {numbers[acting[0]]!r} of {acting[0]!r} would have no effect: {kind.__name__} never asks "
            "for it. Use another optimizer"
        )
    to_zero = [name for name in acting if numbers[name] == 0]
    if field == "lr_mult" and to_zero:
        _check_holds_at_zero(optimizer, to_zero[0])


def _check_holds_at_zero(optimizer: Optimizer, name: str) -> None:
    """Raise ValueError if ``optimizer`` moves a weight at learning rate 0; warn if it does so by momentum."""
    kind = type(optimizer).__name__
    movements = _movements(optimizer, [0])
    if movements != [0] and _movements(optimizer, [1]) is not None:
        found = "it fails" if movements is None else f"they move by {movements[0]:.2g}"
        raise ValueError(
            f"set_lr_mult: {kind} does not leave weights alone at 0 ({found}), so {name!r} cannot get it; name it in "
            "fixed_param_names= of the Module, or use another optimizer"
        )
    if optimizer.num_update > optimizer.begin_num_update and (_movements(optimizer, [1, 0]) or [0])[-1] != 0:
        warnings.warn(
            f"set_lr_mult: {kind} goes on moving {name!r} with the momentum built up so far, although the learning "
            "rate is 0; name parameters that must not move in fixed_param_names= of a new Module",
            stacklevel=5,
        )


def _movements(optimizer: Optimizer, multipliers: Iterable[float]) -> list[float] | None:
    """Try out how far a copy of ``optimizer`` moves a weight under each multiplier in turn; None if it fails.

    This answers whether a weight stays where it is at 0. Whether the optimizer applies multipliers at all is another
    question, which `supports_multiplier` answers.
    """
    try:
        copied = copy.deepcopy(optimizer)
        copied.lr_scheduler, copied.lr = None, 0.1
        weight, updater, movements = mx.nd.ones((2, 2)), mx.optimizer.get_updater(copied), []
        for multiplier in multipliers:
            copied.lr_mult, before = {0: multiplier}, weight.asnumpy()
            updater(0, mx.nd.ones((2, 2)), weight)
            movements.append(float(abs(weight.asnumpy() - before).max()))
    except Exception:  # any error of MXNet or of a user's optimizer: the trial tells nothing
        return None
    return movements
