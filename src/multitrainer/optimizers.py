"""What an optimizer knows of multipliers: whether it asks for them, and the table it falls back to."""

from __future__ import annotations

import functools
import operator
import types
from typing import Any, Mapping, Sequence

from mxnet.gluon import Parameter
from mxnet.optimizer import LARS, Optimizer

from ._mxnet import is_auxiliary
from .groups import FIELDS
from .targets import Multiplier, check_multiplier, known_name

_FILLED = "_multitrainer_filled"
_DECAYING = ("_weight", "_gamma")  # the endings whose weight decay Optimizer.set_wd_mult leaves alone


class NameTable:
    """The multipliers that an optimizer looks up where it has no Parameters, kept by parameter name.

    Notes
    -----
    ``Optimizer.__getstate__`` drops ``param_dict``, so an optimizer that was pickled, to parameter servers or by hand,
    goes by ``lr_mult[idx2name[index]]`` (``Optimizer._get_lrs`` in mxnet/optimizer/optimizer.py). LARS reads
    ``idx2name`` for ends of its own and would train bias, gamma and beta otherwise than under stock Trainer once it
    is filled; it gets its table by index, where ``_get_lrs`` looks first.
    """

    def __init__(self, params: Sequence[Parameter], optimizer: Optimizer) -> None:
        self._params = params
        self._optimizer = optimizer
        self._param_dict = optimizer.param_dict
        by_index = isinstance(optimizer, LARS)
        self._keys: list[Any] = list(range(len(params))) if by_index else [param.name for param in params]
        if not by_index:
            optimizer.idx2name = dict(enumerate(self._keys))
        self.fill()

    def fill(self) -> None:
        """Make the table say what the Parameters say."""
        self._written: dict[str, dict[Any, float]] = {}
        for field in FIELDS:
            table = dict(zip(self._keys, map(operator.attrgetter(field), self._params)))
            setattr(self._optimizer, field, table)
            self._written[field] = table.copy()
        # Goes along when the optimizer is pickled: what was filled in is no wish of the user's.
        setattr(self._optimizer, _FILLED, self._written)

    def read(self) -> dict[str, dict[Parameter, float]]:
        """Return what somebody else wrote to the table since, as `Optimizer.set_lr_mult` does, field by field.

        Raises
        ------
        TypeError, ValueError
            If that names no Parameter, is no multiplier, or cannot be told from MXNet's own zeros. The table then
            says again what the Parameters say.
        RuntimeError
            If the optimizer serves another Trainer now.
        """
        if not self._optimizer.param_dict:  # `Optimizer.__getstate__` leaves it out of a trainer's copy
            self._optimizer.param_dict = self._param_dict
        if self._optimizer.param_dict is not self._param_dict:
            raise RuntimeError(
                "the Optimizer object of this trainer was given to another Trainer since, which looks up its own "
                "Parameters' multipliers; give every Trainer an Optimizer of its own"
            )
        found = {}
        try:
            for field in FIELDS:
                table, written = getattr(self._optimizer, field), self._written[field]
                if table != written:
                    new = {key: value for key, value in table.items() if written.get(key) != value}
                    _refuse_default_wd_mult(new if field == "wd_mult" else {})
                    found[field] = read_table(new, self._params, f"optimizer.set_{field}")
        except (TypeError, ValueError):
            self.fill()
            raise
        return found


class Shipped:
    """What parameter servers were told: the optimizer was pickled to them once, and no later change follows it.

    Parameters
    ----------
    optimizer : Optimizer
        As it was shipped.
    params : sequence of Parameter
        As they were then.
    """

    def __init__(self, params: Sequence[Parameter], optimizer: Optimizer) -> None:
        self._told = {field: {param: getattr(param, field) for param in params} for field in FIELDS}
        self._rates = {name: getattr(optimizer, name) for name in ("lr", "wd")}

    def check(self, field: str, multipliers: Mapping[Parameter, Multiplier]) -> None:
        """Raise a RuntimeError if a multiplier cannot reach the servers. A frozen Parameter is not pushed: 0 can."""
        for param, value in multipliers.items():
            told = self._told[field][param]
            if not (value == told or (field == "lr_mult" and value == 0)):
                raise _unreachable(f"{field} {value!r} of Parameter {param.name!r}", told)

    def check_rates(self, **rates: float) -> None:
        """Raise a RuntimeError if ``lr`` or ``wd`` of the optimizer is another than the servers have."""
        for name, value in rates.items():
            if value != self._rates[name]:
                raise _unreachable(f"{name} {value!r} of the optimizer", self._rates[name])


def _unreachable(what: str, told: Any) -> RuntimeError:
    return RuntimeError(
        f"{what} cannot reach the parameter servers: they update, and got the optimizer before the first step, with "
        f"{told!r}. Set it before that, or let the workers update: a synchronous kvstore such as 'dist_sync', dense "
        "weights and gradients, update_on_kvstore=False"
    )


def read_table(table: Mapping[Any, Any], params: Sequence[Parameter], where: str) -> dict[Parameter, float]:
    """Return the multipliers that an optimizer's table, by name or by index, gives to ``params``."""
    by_name = {param.name: param for param in params}
    found = {}
    for key, value in table.items():
        if isinstance(key, int) and 0 <= key < len(params):
            param = params[key]
        else:
            param = by_name[known_name(key, by_name, where)]
        if is_auxiliary(param):
            raise ValueError(f"{where}: {key!r} is a statistic or a constant, which no multiplier moves")
        multiplier = check_multiplier(value, f"{where}: {key!r}")
        if callable(multiplier):
            raise TypeError(f"{where}: {key!r} must be a number; a schedule goes to the trainer's own set_lr_mult")
        found[param] = multiplier
    return found


def own_table(optimizer: Any, field: str) -> dict[Any, Any]:
    """Return the multipliers that a ready Optimizer brings along, by name or by index.

    What a trainer filled in is not the user's, nor is the 0 that MXNet gives the weight decay of biases and the like.
    """
    if not isinstance(optimizer, Optimizer):
        return {}
    filled = getattr(optimizer, _FILLED, {}).get(field, {})
    defaults = set(optimizer.idx2name.values()) if field == "wd_mult" else ()
    return {
        key: value
        for key, value in getattr(optimizer, field).items()
        if filled.get(key) != value and not (value == 0 and key in defaults and not key.endswith(_DECAYING))
    }


def optimizer_class(optimizer: Any) -> type:
    """Return the class of an optimizer given as `gluon.Trainer` takes it; unknown names are left to MXNet's error."""
    if isinstance(optimizer, Optimizer):
        return type(optimizer)
    return Optimizer.opt_registry.get(str(optimizer).lower(), Optimizer)


def updates_before(optimizer: Any, optimizer_params: Mapping[str, Any] | None) -> int:
    """Return ``num_update`` of an optimizer that may not have been made yet."""
    if isinstance(optimizer, Optimizer):
        return optimizer.num_update
    return (optimizer_params or {}).get("begin_num_update", 0)


def check_honoured(optimizer: type, field: str, multipliers: Mapping[Parameter, Multiplier]) -> None:
    """Raise a ValueError if the class ``optimizer`` never asks for a multiplier that would have to act.

    0 asks nothing of it, for that freezes, nor does 1; a schedule is looked at update by update.
    """
    for param, value in multipliers.items() if not asks_for(optimizer, field) else ():
        if not (callable(value) or value in (0, 1)):
            raise ValueError(
                f"{field} {value!r} of Parameter {param.name!r} would have no effect: {optimizer.__name__} never asks "
                "for it. Use 0 or 1, or another optimizer"
            )


@functools.lru_cache(maxsize=None)
def asks_for(optimizer: Any, field: str) -> bool:
    """Whether the update of an Optimizer class leads to a look-up of ``field``, by the names that its code mentions."""
    wanted = {f"_get_{field[:2]}", f"_get_{field[:2]}s", field}
    functions = [optimizer.update, optimizer.update_multi_precision]
    if optimizer.update is Optimizer.update:
        return True  # none at all, or a name that MXNet does not know: its own error says so
    if any(not isinstance(function, types.FunctionType) for function in functions):
        return True  # compiled: it cannot be read, so it gets the benefit of the doubt
    seen = {Optimizer.update, Optimizer._update_count}
    while functions:
        function = functions.pop()
        if function in seen:
            continue
        seen.add(function)
        if _names_in(function.__code__) & wanted:
            return True
        functions += _functions_mentioned(optimizer, function)
    return False


def _functions_mentioned(optimizer: Any, function: types.FunctionType) -> list[types.FunctionType]:
    """Return the functions that ``function`` may call: methods, those of base classes too, helpers and closures."""
    mentioned = _names_in(function.__code__)
    found = [cell.cell_contents for cell in function.__closure__ or ()]
    modules = []
    for name in mentioned:
        # A method that mentions its own name, or super, calls up the hierarchy.
        upwards = name == function.__name__ or "super" in mentioned
        kinds = optimizer.__mro__ if upwards else [kind for kind in optimizer.__mro__ if name in vars(kind)][:1]
        found += [vars(kind)[name] for kind in kinds if name in vars(kind)]
        value = function.__globals__.get(name)
        found.append(value)
        if isinstance(value, types.ModuleType) and value.__name__.split(".")[0] not in ("mxnet", "numpy"):
            modules.append(value)
    found += [vars(module)[name] for module in modules for name in mentioned if name in vars(module)]
    found = [getattr(value, "__func__", getattr(value, "fget", value)) for value in found]
    return [value for value in found if isinstance(value, types.FunctionType)]


def _names_in(code: types.CodeType) -> set[str]:
    """Return every attribute and global that a function mentions, functions inside it included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names


def _refuse_default_wd_mult(table: Mapping[Any, Any]) -> None:
    # Optimizer.set_wd_mult adds 0 for every name without these endings, and nothing tells those from the named ones.
    added = [name for name, value in table.items() if value == 0 and not str(name).endswith(_DECAYING)]
    if added:
        raise ValueError(
            f"optimizer.set_wd_mult would take the weight decay of {added[0]!r} too, whether it was named or not: "
            "MXNet adds 0 for all that is neither weight nor gamma. Use trainer.set_wd_mult"
        )
