"""Multipliers and symbols: `set_lr_mult` for Modules, and the attributes that exported networks carry.

A symbol keeps multipliers as attributes of its variables, ``__lr_mult__`` and ``__wd_mult__``. Gluon writes them when
it traces a network and never reads them again. Under Module the optimizer reads them, but each
`Optimizer.set_lr_mult` forgets what the call before it named.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, Dict, Iterable, Mapping, NamedTuple

import mxnet as mx
from mxnet.module import Module
from mxnet.optimizer import Optimizer

from .. import _mxnet
from .._mxnet import supports_multiplier
from ..groups.targets import check_multiplier, describe, known_name
from .attributes import _attribute

_Numbers = Dict[str, float]


def set_lr_mult(module: Any, multipliers: Mapping[str, float]) -> None:
    """Set learning-rate multipliers of a Module's parameters by name; what is not named keeps its own.

    `mxnet.optimizer.Optimizer.set_lr_mult` forgets what earlier calls named; this merges, call by call.

    Parameters
    ----------
    module : Module, BucketingModule, SequentialModule or mxnet.optimizer.Optimizer
        A module after ``init_optimizer``. A bare Optimizer must know names: made with ``sym=`` or ``param_idx2name=``.
    multipliers : dict of str to number
        Finite numbers >= 0, by the exact name of a parameter.

    Raises
    ------
    TypeError, ValueError
        Before anything has changed: no such parameter (with the closest names), no number, one that the optimizer
        cannot honour (AdaDelta ignores it, Ftrl and FTML turn the weights to nan at 0, SGLD fails), a parameter in
        ``fixed_param_names``, or an optimizer that looks under the name of another parameter.
    RuntimeError
        If there is no optimizer yet, or parameter servers have it already: no change reaches them. An Optimizer does
        not know whether it was sent, so there give the module.

    Warns
    -----
    UserWarning
        If 0 is set where the optimizer has built up momentum: it carries the weight on for a while.

    Notes
    -----
    0 is a learning rate of 0, not a freeze: the gradient is still computed and the optimizer still runs. What Module
    itself freezes is named in its ``fixed_param_names=``.

    A multiplier is looked for by ``Optimizer._get_lr``, in this order: at the Parameter in ``param_dict`` (Gluon only),
    in ``optimizer.lr_mult`` by index, in ``optimizer.lr_mult`` by the name in ``optimizer.idx2name``; else it is 1. On
    a local kvstore that updates, the index is the name itself. An entry by index would win over the name, so naming a
    parameter removes it. Attributes of a symbol that the optimizer was not shown (a ready one, made without ``sym=``)
    are filled in where nothing else was said.

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
    _set("lr_mult", module, multipliers)


def set_wd_mult(module: Any, multipliers: Mapping[str, float]) -> None:
    """Set weight-decay multipliers of a Module's parameters by name; what is not named keeps its own.

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
    An optimizer that is made with names, as Module does it, starts with 0 for all that ends in neither ``_weight`` nor
    ``_gamma`` (LARS: in ``_weight``). That holds until the parameter is named.

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
    _set("wd_mult", module, multipliers)


class _Table(NamedTuple):
    """One optimizer, with the parameters that it updates."""

    optimizer: Optimizer
    names: frozenset[str]
    said: Mapping[str, Mapping[str, str]]  # attributes of symbols that it was not shown


def _set(field: str, module: Any, multipliers: Mapping[str, float]) -> None:
    where = f"set_{field}"
    if not isinstance(multipliers, Mapping):
        raise TypeError(f"{where}: multipliers must be a dict of name to number, got {describe(multipliers)}")
    tables, fixed = _tables(module, where)
    numbers = _check_all(multipliers, where, set().union(*(table.names for table in tables)), fixed)
    plans = []
    for table in tables:
        own = {name: number for name, number in numbers.items() if name in table.names}
        filled = {name: _attribute(table.said.get(name, {}), field, name) for name in sorted(table.names)}
        said = {name: number for name, number in filled.items() if number is not None}
        _check_supported(table.optimizer, field, own)
        plans.append((table.optimizer, own, said))
    for optimizer, own, said in plans:
        _merge(optimizer, field, own, said)


def _check_all(multipliers: Mapping[str, float], where: str, known: set[str], fixed: set[str]) -> _Numbers:
    numbers = {}
    for name, value in multipliers.items():
        name = known_name(name, known | fixed, where, "this module")
        number = check_multiplier(value, f"{where}: {name!r}")
        if callable(number):
            raise TypeError(
                f"{where}: {name!r} must be a number, got {describe(value)}: schedules need a MultiLRTrainer; under a "
                f"Module call {where} anew, for instance in batch_end_callback="
            )
        if name not in known and number != 0:
            raise ValueError(f"{where}: {name!r} is in fixed_param_names, so {value!r} would have no effect; use 0")
        numbers[name] = number
    return numbers


def _merge(optimizer: Optimizer, field: str, numbers: _Numbers, said: _Numbers) -> None:
    names = optimizer.idx2name
    before = {key: value for key, value in getattr(optimizer, field).items() if names.get(key) not in numbers}
    by_index = {names[key] for key in before if key in names}
    unsaid = {name: number for name, number in said.items() if name not in before and name not in by_index}
    setattr(optimizer, field, {**unsaid, **before, **numbers})


def _tables(module: Any, where: str) -> tuple[list[_Table], set[str]]:
    """Return a table for each optimizer of ``module``, and the names that none of them updates."""
    if isinstance(module, Optimizer):
        return [_bare(module, where)], set()
    if not isinstance(module, mx.module.BaseModule):
        raise TypeError(f"{where}: {describe(module)} is neither a Module nor an Optimizer; a Gluon Trainer: {_GLUON}")
    parts = list(_mxnet.modules_inside(module))
    if not parts or not all(part.optimizer_initialized for part in parts):
        raise RuntimeError(f"{where}: this {type(module).__name__} has no optimizer yet; call init_optimizer first")
    found: dict[int, _Table] = {}
    fixed: set[str] = set()
    for part in parts:
        _check_reachable(part, where)
        optimizer = _mxnet.module_optimizer(part)
        table = found.get(id(optimizer), _Table(optimizer, frozenset(), {}))
        said = {} if optimizer.sym_info else part.symbol.attr_dict()
        names = set(_mxnet.module_parameters(part)) - _mxnet.fixed_parameters(part)
        found[id(optimizer)] = _Table(optimizer, table.names | names, {**said, **table.said})
        fixed |= _mxnet.fixed_parameters(part)
    return list(found.values()), fixed


def _bare(optimizer: Optimizer, where: str) -> _Table:
    if optimizer.param_dict:
        raise ValueError(f"{where}: this Optimizer belongs to a Gluon Trainer, which asks its Parameters; {_GLUON}")
    names = optimizer.idx2name.values() or (optimizer.sym_info[1] if optimizer.sym_info else ())
    if not names:
        raise ValueError(
            f"{where}: this Optimizer knows no parameter by name; give the module after init_optimizer, or make the "
            "Optimizer with sym= or param_idx2name="
        )
    return _Table(optimizer, frozenset(names), {})


_GLUON = "use trainer.set_lr_mult of MultiLRTrainer, or set param.lr_mult"


def _check_reachable(part: Module, where: str) -> None:
    """Raise if what is said to the optimizer of ``part`` does not reach what it is said of."""
    if _mxnet.updates_on_servers(part):
        raise RuntimeError(
            f"{where}: parameter servers update, and got their copy of the optimizer at init_optimizer; no change "
            "reaches them. Say it before: mx.sym.Variable(name, lr_mult=, wd_mult=), or make the Optimizer with sym=, "
            f"call {where} on it, and give it to init_optimizer"
        )
    looked_up = _mxnet.module_optimizer(part).idx2name
    for index, name in _mxnet.names_by_index(part).items():
        if looked_up.get(index) != name:
            raise ValueError(
                f"{where}: the optimizer takes parameter {index}, {name!r}, for {looked_up.get(index)!r}, so it would "
                "get the wrong multiplier: one Optimizer serves modules, or buckets, of different parameters. Use "
                "init_optimizer(kvstore=mx.kv.create('local')), where it goes by name"
            )


def _check_supported(optimizer: Optimizer, field: str, numbers: _Numbers) -> None:
    acting = [name for name, number in numbers.items() if number != 1]
    kind: Any = type(optimizer)
    if acting and not supports_multiplier(kind, field):
        raise ValueError(
            f"set_{field}: {numbers[acting[0]]!r} of {acting[0]!r} would have no effect: {kind.__name__} never asks "
            "for it. Use another optimizer"
        )
    to_zero = [name for name in acting if numbers[name] == 0]
    if field != "lr_mult" or not to_zero:
        return
    moves = _moves_of(optimizer, [0])
    if moves != [0] and _moves_of(optimizer, [1]) is not None:
        raise ValueError(
            f"set_lr_mult: {kind.__name__} does not leave weights alone at 0 "
            f"({'it fails' if moves is None else f'they become or move by {moves[0]:.2g}'}), so {to_zero[0]!r} cannot "
            "get it; name it in fixed_param_names= of the Module, or use another optimizer"
        )
    if optimizer.num_update > optimizer.begin_num_update and (_moves_of(optimizer, [1, 0]) or [0])[-1] != 0:
        warnings.warn(
            f"set_lr_mult: {kind.__name__} carries {to_zero[0]!r} on with the momentum built up so far, learning rate "
            "0 or not; what is to stay as it is belongs in fixed_param_names= of a new Module",
            stacklevel=4,
        )


def _moves_of(optimizer: Optimizer, multipliers: Iterable[float]) -> list[float] | None:
    """Return how far a copy of ``optimizer`` moves a weight under each multiplier in turn; None if it fails."""
    try:
        copied = copy.deepcopy(optimizer)
        copied.lr_scheduler, copied.lr = None, 0.1
        weight, updater, moves = mx.nd.ones((2, 2)), mx.optimizer.get_updater(copied), []
        for multiplier in multipliers:
            copied.lr_mult, before = {0: multiplier}, weight.asnumpy()
            updater(0, mx.nd.ones((2, 2)), weight)
            moves.append(float(abs(weight.asnumpy() - before).max()))
    except Exception:  # of MXNet's own or of a user's optimizer: there is nothing to learn from it
        return None
    return moves
